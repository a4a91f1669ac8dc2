"""Hides the installed requests, which only tests need: a node must run without it, and starts faster."""

raise ImportError
