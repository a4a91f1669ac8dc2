"""Stands before the one that is installed for tests alone: a node has none, and starts sooner without it."""

raise ImportError
