"""Alerts: notice crossings in the counts, store them as deliveries, and send these to their URLs.

May import domain, stores, metrics and corrections. The store keeps alerts and deliveries, so any node can go on.
"""
