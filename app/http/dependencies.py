"""FastAPI dependencies that apply the rate limits to all routes of a router."""

from collections.abc import Awaitable, Callable

from fastapi import Request, Response

from app.http.origins import Headers
from app.http.rate_limits import RateLimits
from app.stores.base import CounterStore


class ReadLimit:
    """The read limit, and the Tally-Stale header of the routes that read counts."""

    def __init__(self, rate_limits: RateLimits, store: CounterStore) -> None:
        self._rate_limits, self._store = rate_limits, store

    def consume(self, request: Request) -> Headers:
        """Count this request as one read, and return the headers of its response. Raises Problem (429)."""
        self._rate_limits.consume(request, "read")
        stale = self._store.status().stale_seconds
        return [] if stale is None else [(b"tally-stale", b"%d" % round(stale))]

    async def __call__(self, request: Request, response: Response) -> None:
        response.raw_headers += self.consume(request)


def limit_writes(rate_limits: RateLimits) -> Callable[[Request], Awaitable[None]]:
    """Return a dependency that counts a request as one write. It raises Problem (429)."""

    async def consume_write(request: Request) -> None:
        rate_limits.consume(request, "write")

    return consume_write
