"""What `python -m app` adds to uvicorn: protocols and a graceful shutdown. The only user of uvicorn's private parts.

Imports nothing of `app`: the application and its callbacks are arguments.
"""
