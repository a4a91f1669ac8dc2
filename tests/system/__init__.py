"""Tests of whole systems: nodes, Redis and proxies as processes that are killed, frozen and cut off."""
