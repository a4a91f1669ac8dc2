"""HTTP/1.1 on uvicorn: one write per response, a bounded request head, and a time-out for closing."""

import asyncio
import socket
from functools import lru_cache
from typing import Any

from uvicorn.protocols.http import httptools_impl

HEAD_BYTES_MAX = 65_536  # plus at most one read from the socket; a proxy usually has a lower limit
HEADERS_MAX = 200
# Linux doubles this value. By default it would buffer megabytes for a client that does not read.
SEND_BUFFER_BYTES = 65_536
LINGER_SECONDS = 10.0  # how long a closed connection may take to send its remaining data


class SingleWriteProtocol(httptools_impl.HttpToolsProtocol):
    """uvicorn's HTTP protocol with a bounded request head and one system call per response.

    uvicorn would buffer a head of any size, and writes the head and the body of a response separately. A system call
    costs as much as counting a hit.
    """

    _pending_bytes = 0  # received since the end of a head or the last piece of a body

    def connection_made(self, transport: Any) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        super().connection_made(LingeringTransport(transport, self.loop))  # type: ignore[arg-type] # same methods

    def data_received(self, data: bytes) -> None:
        self._pending_bytes += len(data)
        super().data_received(data)
        if self._pending_bytes > HEAD_BYTES_MAX or (self._pending_bytes and len(self.headers or ()) > HEADERS_MAX):
            self.send_400_response("The head of this request is too large.")

    def on_headers_complete(self) -> None:
        """Start the request. Raises ValueError, which the parser turns into a 400 response."""
        if len(self.headers) > HEADERS_MAX:
            raise ValueError("too many headers")
        self._pending_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._pending_bytes = 0
        super().on_body(body)

    def _start_asgi_task(self, cycle: httptools_impl.RequestResponseCycle, app: Any) -> None:
        """Start a request with our cycle. uvicorn has no setting for its class, but every cycle starts here."""
        cycle.__class__ = SingleWriteCycle
        super()._start_asgi_task(cycle, app)


class SingleWriteCycle(httptools_impl.RequestResponseCycle):
    """Holds the head of a response until its body arrives; if the response is then complete, both are one write.

    The write repeats what uvicorn's `send` does with a complete response, so it uses the same private attributes.
    """

    _held_start: Any = None

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._held_start = message
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


@lru_cache(maxsize=1000)  # checking each header takes longer than counting a hit
def _response_head(status: int, body_bytes: int, *headers: tuple[bytes, bytes]) -> bytes:
    """Return the head of a response with a body of this size, or b"" if uvicorn has to write or reject it itself."""
    names = [name for name, _ in headers]
    invalid_name, invalid_value = httptools_impl.HEADER_RE.search, httptools_impl.HEADER_VALUE_RE.search
    invalid = any(invalid_name(name) or invalid_value(value) for name, value in headers)
    if invalid or b"connection" in names or headers.count((b"content-length", b"%d" % body_bytes)) != 1:
        return b""
    return httptools_impl.STATUS_LINE[status] + b"".join(b"%b: %b\r\n" % header for header in headers) + b"\r\n"


class LingeringTransport:
    """A transport that aborts a closed connection after LINGER_SECONDS.

    uvloop would keep it until the client has read everything, which may never happen.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        # Called for each response: an attribute is faster than __getattr__.
        self.write, self.is_closing = transport.write, transport.is_closing

    def close(self) -> None:
        self._transport.close()
        self._loop.call_later(LINGER_SECONDS, self._transport.abort)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
