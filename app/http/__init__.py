"""HTTP: the FastAPI application, its routes, permissions, rate limits, errors and headers.

May import settings, domain, stores, metrics, group_commit, corrections, export_import, live, kafka and status.
"""
