"""Hides the installed aiohttp, which only tests need: a node must run without it, and starts faster."""

raise ImportError
