"""The domain: names, calendar, buckets and hits. Pure: no I/O, time is an argument. Imports nothing of `app`."""
