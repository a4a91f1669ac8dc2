"""Tests of live counts: the running day, Socket.IO and stream clients, and the sync between nodes."""
