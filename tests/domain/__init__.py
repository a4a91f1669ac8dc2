"""Tests of app/domain: pure functions, with examples and properties."""
