"""Tests of the import from other counters."""
