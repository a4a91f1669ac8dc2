"""Tally, a self-hosted real-time event counter. docs/architecture.md is the map."""

__version__ = "0.1.0"
