"""Tests of app/server and the command line: real processes, and nginx in front of them."""
