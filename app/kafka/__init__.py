"""Kafka in front of a store: a buffer for write requests, and the records of existing topics as hits.

May import settings, domain, stores, metrics and group_commit; not http or live.
"""
