"""Live counts: the running day, its delivery to clients, and the sync between nodes. Imports domain, stores, metrics.

In import order: messages, day, clients, broadcaster, inbound, socketio; and peers, which uses day.
"""
