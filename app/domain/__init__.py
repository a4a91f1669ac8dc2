"""The domain: names, calendar, buckets and hits, as pure code without I/O; time is an argument.

May import no other package of `app`.
"""
