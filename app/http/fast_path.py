"""The fast path: an unkeyed POST /event/{name} that the HTTP protocol hands over without ASGI.

It applies the same rules as the route in routes/count.py, through the same functions. A test compares their responses.
"""

import logging
import re
from functools import lru_cache
from typing import NamedTuple, Protocol

import msgspec
from starlette.requests import HTTPConnection
from starlette.types import Scope

from app.group_commit import GroupCommitter
from app.http.errors import EXPECTED_ERRORS, ErrorHandler, rejection
from app.http.middleware import SECURITY_HEADERS, browser_headers
from app.http.origins import Headers, Origins
from app.http.parsing import HIT_BYTES_MAX, parse_event_path, parse_hit, visit_of
from app.http.permissions import Permissions
from app.http.rate_limits import RateLimits, client_address
from app.http.router_bypass import EVENT_ROUTE
from app.stores.results import Ack, Reason

# One segment of visible ASCII characters. An encoded slash makes it the path of another route.
_EVENT_URL = rb"/event/(?:(?!%2[fF])[!-\"$-.0->@-~])+"
# A request with one of these headers goes to the route.
_ROUTE_HEADERS = {b"idempotency-key", b"transfer-encoding", b"expect", b"upgrade"}
_LENGTH_DIGITS_MAX = 5

log = logging.getLogger("tally.http")


class Connection(Protocol):
    """The connection that a request came from. It sends responses in the order of `expect_response`."""

    def expect_response(self, waiter: object) -> None:
        """Reserve the place of a response."""

    def respond(self, waiter: object, status: int, header_lines: bytes, body: bytes) -> None:
        """Send the response of this waiter. Does nothing if the client has disconnected."""


class RequestHead(NamedTuple):
    """The result of checking the headers of a request. It holds for every request with the same headers.

    `header_lines` are the security and CORS headers of the response, `address` is what the rate limit counts, and
    `amount_max` is the largest amount of a hit. `error` is set if the request is rejected: then each request must be
    checked again.
    """

    scope: Scope
    header_lines: bytes
    address: str = ""
    amount_max: int = 0
    error: Exception | None = None


class FastPath:
    """Counts unkeyed hits without ASGI, and without a task for each: the commit writes the response."""

    def __init__(
        self,
        committer: GroupCommitter,
        permissions: Permissions,
        origins: Origins,
        rate_limits: RateLimits,
        error_response: ErrorHandler,
        root_path: str,
    ) -> None:
        self._committer, self._permissions, self._origins = committer, permissions, origins
        self._rate_limits, self._error_response = rate_limits, error_response
        self._url = re.compile(b"(%b)?%b" % (re.escape(root_path.encode()), _EVENT_URL))

    def matches_url(self, url: bytes) -> bool:
        """Return whether this is the URL of EVENT_ROUTE, with or without the root path."""
        return self._url.fullmatch(url) is not None

    def matches_headers(self, headers: Headers) -> bool:
        """Return whether a POST with these headers is counted here. Its body is then at most 16 KiB."""
        for name, value in headers:
            if name in _ROUTE_HEADERS:
                return False
            if name == b"content-length" and (len(value) > _LENGTH_DIGITS_MAX or int(value) > HIT_BYTES_MAX):
                return False
        return True

    def check_head(self, scope: Scope) -> RequestHead:
        """Check the host, the origin and the API key of a request."""
        headers = SECURITY_HEADERS
        try:
            headers = browser_headers(scope, self._origins)
            self._permissions.authorize(scope, f"POST {EVENT_ROUTE}")
        except Exception as error:  # noqa: BLE001 # `count` responds with it
            return RequestHead(scope, _lines(headers), error=error)
        address = client_address(HTTPConnection(scope))
        return RequestHead(scope, _lines(headers), address, self._permissions.amount_max(scope))

    def count(self, head: RequestHead, url: bytes, body: bytes, connection: Connection) -> None:
        """Count a hit, or reject it. The connection gets the response, now or after the commit."""
        waiter = _ConnectionHit(self, connection, head)
        connection.expect_response(waiter)
        if head.error:
            waiter.failed(head.error)
            return
        try:
            event, waiter.event_json = _event_of(url)
            self._rate_limits.consume_for(head.address, "write")
            hit = parse_hit(body, head.amount_max)
            self._committer.add_hit(event, hit.by, visit_of(event, hit), waiter)
        except Exception as error:  # noqa: BLE001 # the client gets the response of the route
            waiter.failed(error)

    def respond_with_error(self, connection: Connection, waiter: object, head: RequestHead, error: Exception) -> None:
        """Send the response of the route to an exception."""
        if not isinstance(error, EXPECTED_ERRORS):
            log.error("%s failed", EVENT_ROUTE, exc_info=error)
        response = self._error_response(HTTPConnection(head.scope), error)
        header_lines = _lines(response.raw_headers) + head.header_lines
        connection.respond(waiter, response.status_code, header_lines, bytes(response.body))


class _ConnectionHit:
    """A waiter that writes the response to the connection of its request."""

    __slots__ = ("_connection", "_fast_path", "_head", "event_json")

    def __init__(self, fast_path: FastPath, connection: Connection, head: RequestHead) -> None:
        self._fast_path, self._connection, self._head = fast_path, connection, head
        self.event_json = b""

    def counted(self, count: int, total: int, date: str, ack: Ack) -> None:
        numbers = (self.event_json, count, total, date.encode(), ack.encode())
        body = b'{"eventName":%b,"count":%d,"total":%d,"day":"%b","ack":"%b"}' % numbers
        length = b"content-length: %d\r\ncontent-type: application/json\r\n" % len(body)
        self._connection.respond(self, 200, length + self._head.header_lines, body)

    def rejected(self, reason: Reason, date: str, ack: Ack) -> None:  # noqa: ARG002 # the error has no date
        self.failed(rejection(reason))

    def failed(self, error: Exception) -> None:
        self._fast_path.respond_with_error(self._connection, self, self._head, error)


@lru_cache(maxsize=10_000)
def _event_of(url: bytes) -> tuple[str, bytes]:
    """Return the event of a URL, and its name as JSON. Raises Problem (422)."""
    event = parse_event_path(url[url.rindex(b"/event/") :])  # without the root path
    return event, msgspec.json.encode(event)


def _lines(headers: Headers) -> bytes:
    return b"".join(b"%b: %b\r\n" % header for header in headers)
