"""Tests of `app/http`: requests over a client in this process, or over a real socket."""
