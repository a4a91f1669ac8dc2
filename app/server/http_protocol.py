"""HTTP/1.1 on uvicorn: a fast path without ASGI, and one write per response on the ordinary path."""

from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.utils import ClientDisconnected

from app.server.connection import HEADERS_MAX, LimitedProtocol

FRAMED_CHUNKS_EXTENSION = "tally.framed_chunks"

Headers = list[tuple[bytes, bytes]]

_EXTENSIONS: Any = {FRAMED_CHUNKS_EXTENSION: {}}


class FastPath(Protocol):
    """The rules of the requests that are processed without ASGI; app/http/fast_path.py has them."""

    def matches_url(self, url: bytes) -> bool:
        """Return whether a POST to this URL may be processed without ASGI."""

    def matches_headers(self, headers: Headers) -> bool:
        """Return whether a request with these headers may be processed without ASGI."""

    def check_head(self, scope: Any) -> Any:
        """Check the headers. The result has an `error`, or is valid for all requests with the same headers."""

    def count(self, head: Any, url: bytes, body: bytes, connection: "FastPathProtocol") -> None:
        """Process a request: call `connection.expect_response` now, and `connection.respond` now or later."""


class FastPathProtocol(LimitedProtocol):
    """Hands the requests that a FastPath matches to it, and all others to the ASGI application.

    The responses of a connection have the order of the requests. A request that follows one whose response is still
    missing takes the same path, or waits.
    """

    def __init__(
        self, *arguments: Any, fast_path: FastPath | None, use_proxy_headers: Callable[[Any], None], **options: Any
    ) -> None:
        """`use_proxy_headers` sets the client and the scheme of a scope to those that a trusted proxy has sent.

        The other arguments are those of LimitedProtocol.
        """
        super().__init__(*arguments, **options)
        self._fast_path, self._use_proxy_headers = fast_path, use_proxy_headers
        self._waiters: deque[object] = deque()  # of the requests on the fast path, oldest first
        self._early: dict[object, bytes] = {}  # responses that wait for an earlier one, by waiter
        self._is_fast = False  # whether the request that is being received takes the fast path
        self._body = b""
        self._checked_headers: Headers | None = None  # of the last request whose head was accepted
        self._head: Any = None
        self._closes_when_idle = False

    def requests_in_flight(self) -> int:
        return len(self._waiters) + super().requests_in_flight()

    # Parser callbacks

    def on_message_begin(self) -> None:
        # The scope is built when the request takes the ordinary path.
        self.url, self.headers, self.expect_100_continue = b"", [], False

    def on_headers_complete(self) -> None:
        self._is_fast = self._takes_fast_path()
        if self._is_fast:
            self._pending_bytes, self._body = 0, b""
            return
        url, headers, expects_continue = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = url, headers, expects_continue
        self.scope["headers"], self.scope["extensions"] = headers, _EXTENSIONS
        super().on_headers_complete()

    def _takes_fast_path(self) -> bool:
        parser = self.parser
        return (
            self._fast_path is not None
            and parser.get_method() == b"POST"
            and self._fast_path.matches_url(self.url)
            and (self.headers == self._checked_headers or self._fast_path.matches_headers(self.headers))
            and len(self.headers) <= HEADERS_MAX
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and (self.cycle is None or self.cycle.response_complete)
            and CLOSE_HEADER not in self.server_state.default_headers  # the server is shutting down
            and self.limit_concurrency is None
        )

    def on_body(self, body: bytes) -> None:
        if self._is_fast:
            self._pending_bytes = 0
            self._body += body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._is_fast or self._fast_path is None:
            super().on_message_complete()
            return
        if self.headers != self._checked_headers:
            self._head = self._fast_path.check_head(self._head_scope())
            self._checked_headers = None if self._head.error else self.headers
        self._fast_path.count(self._head, self.url, self._body, self)

    def _head_scope(self) -> dict[str, Any]:
        """Return the part of an ASGI scope that the checks of a head need."""
        scope: dict[str, Any] = {"type": "http", "method": "POST", "path": self.url.decode()}
        scope |= {"scheme": self.scheme, "client": self.client, "headers": self.headers}
        self._use_proxy_headers(scope)
        return scope

    # The connection of a FastPath

    def expect_response(self, waiter: object) -> None:
        """Reserve the place of a response."""
        self._waiters.append(waiter)

    def respond(self, waiter: object, status: int, header_lines: bytes, body: bytes) -> None:
        """Write the response of a waiter, after those of earlier requests."""
        if not self._waiters or self.transport.is_closing():  # the client has disconnected
            return
        response = httptools_impl.STATUS_LINE[status] + self._default_lines() + header_lines + b"\r\n" + body
        if self._waiters[0] is not waiter:
            self._early[waiter] = response
            return
        self._waiters.popleft()
        self.server_state.total_requests += 1
        while self._early and self._waiters and self._waiters[0] in self._early:
            response += self._early.pop(self._waiters.popleft())
            self.server_state.total_requests += 1
        self.transport.write(response)
        if not self._waiters:
            self._on_fast_path_idle()
        self._parse_rest()

    def _default_lines(self) -> bytes:
        """Return the lines of uvicorn's default headers."""
        headers = self.server_state.default_headers
        is_last = self._closes_when_idle and len(self._waiters) == 1
        return _lines(*headers, CLOSE_HEADER) if is_last else _lines(*headers)

    def _on_fast_path_idle(self) -> None:
        """Do what uvicorn does after a response: close, or start the next request."""
        if self._closes_when_idle and not self.pipeline:
            self.transport.close()
        elif self.pipeline:
            self.flow.resume_reading()
            self._start_asgi_task(*self.pipeline.pop())

    # The connection of uvicorn

    def _start_asgi_task(self, cycle: httptools_impl.RequestResponseCycle, app: Any) -> None:
        """Start a request with our cycle, or queue it behind the requests of the fast path.

        uvicorn has no setting for the class of a cycle, but every cycle starts here.
        """
        if self._waiters:
            self.flow.pause_reading()
            self.pipeline.append((cycle, app))
            return
        cycle.__class__ = SingleWriteCycle
        super()._start_asgi_task(cycle, app)

    def shutdown(self) -> None:
        """Close the connection after the responses that it still has to send."""
        if self._waiters:
            self._closes_when_idle = True
            if self.cycle is not None:
                self.cycle.keep_alive = False
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiters.clear()
        self._early.clear()
        super().connection_lost(exc)


class SingleWriteCycle(httptools_impl.RequestResponseCycle):
    """Holds the head of a response until its body arrives; if the response is then complete, both are one write.

    uvicorn writes them separately, and a system call costs as much as counting a hit. The write repeats what uvicorn's
    `send` does with a complete response, so it uses the same private attributes.

    It also offers the ASGI extension FRAMED_CHUNKS_EXTENSION. After the first part of a body, the application may send
    a message of this type, and gets the method of the same name as its `send_framed`, or None if the response is not
    chunked. ASGI has no message for a chunk that was framed once for many clients, nor one that never waits.
    """

    _held_start: Any = None

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._held_start = message
            return
        if message["type"] == FRAMED_CHUNKS_EXTENSION:
            message["send_framed"] = self.send_framed if self.chunked_encoding else None
            return
        start, self._held_start = self._held_start, None
        if start:
            body, is_complete = message.get("body", b""), self.keep_alive and not message.get("more_body")
            if is_complete and self.scope["method"] != "HEAD" and not (self.disconnected or self.flow.write_paused):
                head = _response_head(start["status"], len(body), *self.default_headers, *start["headers"])
                if head:
                    self.response_started = self.response_complete = True
                    self.message_event.set()
                    self.transport.write(head + body)
                    self.on_response()
                    return
            await super().send(start)
        await super().send(message)

    def send_framed(self, chunk: bytes) -> bool:
        """Write a chunk in the chunked transfer coding if the socket can take it now.

        Returns False and writes nothing while the transport's buffer is over its high-water mark. Raises
        ClientDisconnected, an OSError, if the response has ended or the connection is closed or closing.
        """
        if self.flow.write_paused:
            return False
        if self.disconnected or self.response_complete or self.transport.is_closing():
            raise ClientDisconnected
        self.transport.write(chunk)
        return True


@lru_cache(maxsize=1000)  # checking each header takes longer than counting a hit
def _response_head(status: int, body_bytes: int, *headers: tuple[bytes, bytes]) -> bytes:
    """Return the head of a response with a body of this size, or b"" if uvicorn has to write or reject it itself."""
    names = [name for name, _ in headers]
    invalid_name, invalid_value = httptools_impl.HEADER_RE.search, httptools_impl.HEADER_VALUE_RE.search
    invalid = any(invalid_name(name) or invalid_value(value) for name, value in headers)
    if invalid or b"connection" in names or headers.count((b"content-length", b"%d" % body_bytes)) != 1:
        return b""
    return httptools_impl.STATUS_LINE[status] + _lines(*headers) + b"\r\n"


@lru_cache(maxsize=100)  # the default headers change once a second
def _lines(*headers: tuple[bytes, bytes]) -> bytes:
    return b"".join(b"%b: %b\r\n" % header for header in headers)
