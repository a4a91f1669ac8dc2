"""Engine.IO sessions that begin with a WebSocket. With socketio.py the only user of python-engineio's private parts.

python-engineio has a queue and a task that writes for each session, a task that sleeps until the next ping, and two
more for each message. When thousands of pages reconnect, that is most of the cost.
"""

import asyncio
import contextlib
import time
from typing import Any

from engineio.async_socket import AsyncSocket
from engineio.exceptions import UnknownPacketError
from engineio.packet import OPEN, PING, Packet

from app.live.clients import Send, send_nowait

PING_RETRY_SECONDS = 1.0  # if the client could not take the ping


class DirectSocket(AsyncSocket):  # type: ignore[misc] # engineio ships no types
    """An Engine.IO socket that writes its packets to a WebSocket at once. The task of the request reads from it.

    It is a socket of the library: its server closes it if a pong is missing, and has it in `sockets`.
    """

    def __init__(self, server: Any, scope: Any, receive: Any, send: Send) -> None:
        super().__init__(server, server.generate_id())
        self._environ = {"asgi.scope": scope, "asgi.send": send}
        self._receive, self._send = receive, send
        self._ping_timer: asyncio.TimerHandle | None = None
        self.last_ping: float | None
        self.connected = self.upgraded = True

    async def serve(self) -> None:
        """Serve the session until the client or the server ends it."""
        self._start_monitor()
        await self._receive()  # the message websocket.connect
        await self._send({"type": "websocket.accept"})
        self.server.sockets[self.sid] = self
        try:
            await self.server._trigger_event("connect", self.sid, self._environ)  # noqa: SLF001
            await self.send(self._open_packet())
            self.schedule_ping()
            while not self.closed and (data := await self._read()) is not None:
                with contextlib.suppress(UnknownPacketError):
                    await self.receive(Packet(encoded_packet=data))
        finally:
            if self._ping_timer:
                self._ping_timer.cancel()
            await self.close(wait=False, abort=True, reason=self.server.reason.TRANSPORT_CLOSE)
            self.server.sockets.pop(self.sid, None)

    def _start_monitor(self) -> None:
        """Start the library's task that closes sockets without a pong, as the library does with its first session."""
        if self.server.start_service_task:
            self.server.start_service_task = False
            self.server.service_task_handle = self.server.start_background_task(self.server._service_task)  # noqa: SLF001

    def _open_packet(self) -> Packet:
        server = self.server
        options: dict[str, Any] = {"sid": self.sid, "upgrades": [], "pingTimeout": int(server.ping_timeout * 1000)}
        interval = int(server.ping_interval + server.ping_interval_grace_period) * 1000
        return Packet(OPEN, options | {"pingInterval": interval, "maxPayload": server.max_http_buffer_size})

    async def _read(self) -> str | bytes | None:
        """Return the next message, or None if the session has to end."""
        message = await self._receive()
        data = message.get("text") if message.get("bytes") is None else message["bytes"]
        return None if data is None or len(data) > self.server.max_http_buffer_size else data

    async def send(self, packet: Packet) -> None:
        if await self.check_ping_timeout():
            sending = self._send({"type": "websocket.send", "text": packet.encode()})
            with contextlib.suppress(OSError, RuntimeError):  # it is closed, and `_read` returns that
                if self.closing:  # the library must not wait for a client that does not read
                    send_nowait(sending)
                else:
                    await sending

    def schedule_ping(self) -> None:
        if self.last_ping:  # else the next ping is due already
            self.last_ping = None
            self._ping_after(self.server.ping_interval)

    def _ping_after(self, seconds: float) -> None:
        self._ping_timer = asyncio.get_running_loop().call_later(seconds, self._ping)

    def _ping(self) -> None:
        if self.closing or self.closed:
            return
        with contextlib.suppress(OSError, RuntimeError):
            if send_nowait(self._send({"type": "websocket.send", "text": Packet(PING).encode()})):
                self.last_ping = time.time()
            else:
                self._ping_after(PING_RETRY_SECONDS)

    async def close(self, wait: bool = True, abort: bool = False, reason: str | None = None) -> None:
        """Close the session and its WebSocket, without waiting for a client that does not read."""
        if not self.closed and not self.closing:
            await super().close(wait, abort, reason)
            with contextlib.suppress(OSError, RuntimeError):
                send_nowait(self._send({"type": "websocket.close"}))
