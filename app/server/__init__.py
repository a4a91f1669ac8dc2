"""The server of `python -m app`: uvicorn with its own HTTP and WebSocket protocols, and a graceful shutdown.

The only package that uses uvicorn's private parts. May import no other package of `app`: the application and its
callbacks are arguments.
"""
