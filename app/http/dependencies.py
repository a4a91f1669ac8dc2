"""FastAPI dependencies that apply the rate limits to all routes of a router."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from app.http.origins import Headers
from app.http.rate_limits import RateLimits
from app.stores.base import CounterStore


class ReadLimit:
    """The read limit, and the Tally-Stale header of the routes that read counts."""

    def __init__(self, rate_limits: RateLimits, store: CounterStore) -> None:
        self._rate_limits, self._store = rate_limits, store

    def consume(self, request: Request) -> None:
        """Count this request as one read. Raises Problem (429)."""
        self._rate_limits.consume(request, "read")

    def stale_headers(self) -> Headers:
        """Return the Tally-Stale header if the store is unreachable. Call it after a read, which may detect that."""
        stale = self._store.stale_seconds()
        return [] if stale is None else [(b"tally-stale", b"%d" % round(stale))]

    async def __call__(self, request: Request) -> None:
        self.consume(request)

    def route_class(self) -> type[APIRoute]:
        """Return the class of the routes whose responses get the Tally-Stale header."""
        stale_headers = self.stale_headers

        class ReadRoute(APIRoute):
            def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
                handler = super().get_route_handler()

                async def handle(request: Request) -> Response:
                    response = await handler(request)
                    response.raw_headers += stale_headers()
                    return response

                return handle

        return ReadRoute


def limit_writes(rate_limits: RateLimits) -> Callable[[Request], Awaitable[None]]:
    """Return a dependency that counts a request as one write. It raises Problem (429)."""

    async def consume_write(request: Request) -> None:
        rate_limits.consume(request, "write")

    return consume_write
