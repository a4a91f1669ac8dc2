"""The limits of one connection: the head of a request, the requests in flight, and a client that does not read."""

import asyncio
import socket
import struct
from typing import Any

from app.server.upgrades import UpgradeProtocol

HEAD_BYTES_MAX = 65_536  # plus at most one read from the socket; a proxy usually has a lower limit
HEADERS_MAX = 200
# Linux doubles this value. By default it would buffer megabytes for a client that does not read.
SEND_BUFFER_BYTES = 65_536
IN_FLIGHT_MAX = 32  # requests that wait for their responses, plus those of the last piece that was parsed
PIECE_BYTES = 4096  # a read from the socket may have thousands of requests, so it is parsed in pieces
LINGER_SECONDS = 10.0  # how long a closed connection may take to send its remaining data
SLOW_CLIENT_SECONDS = 30.0  # how long a client may read nothing while responses wait
UNREAD_BYTES_MAX = 64 * 1024 * 1024  # of large responses that wait for all clients; a list of all events takes some MB
CONNECTIONS_MAX = 20_000  # of HTTP and WebSocket; a further one is closed at once


class UnreadResponses:
    """The connections whose clients do not read a large response. If too many bytes wait, the oldest is aborted."""

    def __init__(self) -> None:
        self._bytes: dict[LimitedProtocol, int] = {}  # oldest first
        self._total = 0

    def add(self, connection: "LimitedProtocol") -> None:
        """Add a connection, with the bytes that wait in its transport."""
        self._bytes[connection] = connection.transport.get_write_buffer_size()
        self._total += self._bytes[connection]
        while self._total > UNREAD_BYTES_MAX:
            oldest = next(iter(self._bytes))
            self.remove(oldest)
            oldest.transport.abort()

    def remove(self, connection: "LimitedProtocol") -> None:
        """Remove a connection, if it was added."""
        self._total -= self._bytes.pop(connection, 0)


class LimitedProtocol(UpgradeProtocol):
    """An HTTP protocol with limits for each connection.

    uvicorn would buffer a head of any size, and would start to process all requests that a client has pipelined.
    """

    transport: Any
    _pending_bytes = 0  # received since the end of a head or the last piece of a body
    _unparsed = b""  # received, but not parsed because too much is in flight; no more is read meanwhile
    _slow_client_timer: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, unread: UnreadResponses, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._unread = unread

    def connection_made(self, transport: Any) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        super().connection_made(ConnectionTransport(transport, self.loop))  # type: ignore[arg-type] # same methods
        self._received_at = self.loop.time()
        self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._close_if_idle)
        if len(self.connections) > CONNECTIONS_MAX:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unparsed = b""
        self._idle_timer.cancel()
        self.resume_writing()
        super().connection_lost(exc)

    def requests_in_flight(self) -> int:
        """Return the number of requests without a complete response."""
        return len(self.pipeline) + (self.cycle is not None and not self.cycle.response_complete)

    def _close_if_idle(self) -> None:
        """Close the connection if nothing was received for the keep-alive time and no response is due.

        One timer for a connection is enough. uvicorn sets one after each response, which costs as much as a hit.
        """
        seconds_left = self._received_at + self.timeout_keep_alive - self.loop.time()
        if self.transport.get_protocol() is not self:  # it is a WebSocket now
            return
        if seconds_left <= 0 and not self.requests_in_flight():
            self.transport.close()
        else:
            self._idle_timer = self.loop.call_later(max(1, seconds_left), self._close_if_idle)

    def data_received(self, data: bytes) -> None:
        self._received_at = self.loop.time()
        if self._unparsed:  # a read that had begun before the pause
            self._unparsed += data
        else:
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        """Parse data until too much is in flight; keep the rest."""
        for start in range(0, len(data), PIECE_BYTES):
            if self.requests_in_flight() >= IN_FLIGHT_MAX or self.flow.write_paused:
                self._unparsed = data[start:]
                self.transport.hold_reading()
                return
            if start and (self.transport.is_closing() or self.transport.get_protocol() is not self):
                return
            piece = data[start : start + PIECE_BYTES]
            self._pending_bytes += len(piece)
            super().data_received(piece)
            if self._pending_bytes and (self._pending_bytes > HEAD_BYTES_MAX or len(self.headers or ()) > HEADERS_MAX):
                self.send_400_response("The head of this request is too large.")

    def _parse_rest(self) -> None:
        """Parse what was kept, as far as that is now possible."""
        if self._unparsed and not self.transport.is_closing():
            data, self._unparsed = self._unparsed, b""
            self.transport.release_reading()
            self._parse(data)

    def _should_upgrade(self) -> bool:
        # Otherwise the responses to earlier requests would be written into the WebSocket.
        return not self.requests_in_flight() and super()._should_upgrade()

    def on_headers_complete(self) -> None:
        """Start the request. Raises ValueError, which the parser turns into a 400 response."""
        if len(self.headers) > HEADERS_MAX:
            raise ValueError("too many headers")
        self._pending_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._pending_bytes = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._parse_rest()

    def pause_writing(self) -> None:
        """Called by the transport when its buffer is full. If it stays full, the connection is aborted."""
        super().pause_writing()
        self._unread.add(self)
        self._slow_client_timer = self.loop.call_later(SLOW_CLIENT_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._unread.remove(self)
        if self._slow_client_timer:
            self._slow_client_timer.cancel()
            self._slow_client_timer = None
        super().resume_writing()
        self._parse_rest()


class ConnectionTransport:
    """A transport that aborts a closed connection after LINGER_SECONDS, and that two owners may pause.

    uvloop would keep a closed connection until the client has read everything, which may never happen. uvicorn pauses
    and resumes reading; while it is held, reading stays paused.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._is_held = self._is_paused = False
        # Called for each response: an attribute is faster than __getattr__.
        self.write, self.is_closing = transport.write, transport.is_closing

    def close(self) -> None:
        self._transport.close()
        self._loop.call_later(LINGER_SECONDS, self._transport.abort)

    def abort(self) -> None:
        """Close the connection at once. It is reset, or else the kernel would keep the data that was not sent."""
        if not self.is_closing():
            at_once = struct.pack("ii", 1, 0)
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        self._transport.abort()

    def pause_reading(self) -> None:
        self._is_paused = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._is_paused = False
        if not self._is_held:
            self._transport.resume_reading()

    def hold_reading(self) -> None:
        """Pause reading until `release_reading`."""
        self._is_held = True
        self._transport.pause_reading()

    def release_reading(self) -> None:
        """Resume reading, unless `pause_reading` was called."""
        self._is_held = False
        if not self._is_paused:
            self._transport.resume_reading()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
