"""Tests of the repository: structure, vocabulary, dependencies, documents and compose."""
