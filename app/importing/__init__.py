"""Import from other counters: their files and Redis keys become lines of an export, or counts to add.

May import domain, stores and export_import.
"""
