"""Live counts: the running day, its delivery to clients, and the sync between nodes.

May import domain, stores and metrics. Its modules, in import order: messages, day, clients, broadcaster, inbound,
socketio; peers imports only day.
"""
