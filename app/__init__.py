"""Tally, a self-hosted real-time event counter: one package per concern, and the modules that join them.

docs/explanation/architecture.md has the path of a hit. Only `main` creates the parts, and only `cli` starts a server.
"""

__version__ = "0.1.0"
