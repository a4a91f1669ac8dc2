"""A client of the application in this process, without a server."""

import contextlib
from collections.abc import AsyncIterator, Callable

import httpx

from app.main import create_app
from app.settings import Settings


@contextlib.asynccontextmanager
async def asgi_client(
    settings: Settings, clock: Callable[[], float], *, raise_app_exceptions: bool = True
) -> AsyncIterator[httpx.AsyncClient]:
    """Run the application with these settings, and yield a client of it. An exception may become a response of 500."""
    app = create_app(settings, clock)
    transport = httpx.ASGITransport(app, raise_app_exceptions=raise_app_exceptions)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://tally") as client,
    ):
        yield client
