"""The Socket.IO server: namespaces, connections and resync.

python-engineio has no back-pressure (its issue 133): it queues messages without bound for a client that does not read.
So EngineIoConnection uses its sockets directly. A new version of the library may need changes here and in
direct_socket.py, and only there.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

import socketio
from engineio.packet import MESSAGE, NOOP, Packet
from starlette.exceptions import HTTPException

from app.live.broadcaster import CLIENTS_MAX, Broadcaster, TooManyConnections
from app.live.clients import DashboardClient, PlainClient, Send, SocketIoClient, send_nowait
from app.live.direct_socket import DirectSocket
from app.live.inbound import INBOUND_BYTES_MAX, InboundPacket, guard_receive
from app.live.messages import Message

PREPARED_FRAME_EXTENSION = "tally.prepared_frame"  # of ASGI, offered by server/websocket_protocol.py
# The queue of a client that polls. One poll takes all of it, so a client that is silent gets fewer, newer messages.
QUEUE_MAX = 16  # messages; some clients reject a response with more
QUEUE_BYTES_MAX = 32_768  # beyond it, no message is added

# Below this level the libraries log what clients send, and so their API keys.
_packets = logging.getLogger("tally.live.packets")
_packets.setLevel(logging.ERROR)


class WebSocket:
    """Writes messages to a WebSocket without a queue."""

    def __init__(self, scope: Mapping[str, Any], send: Send) -> None:
        self._send = send
        self._send_frame: Callable[[bytes], bool] | None = scope.get("extensions", {}).get(PREPARED_FRAME_EXTENSION)

    def try_send(self, message: Message) -> bool:
        """Send a message, or return False if the socket cannot take it now. Raises OSError or RuntimeError."""
        if self._send_frame:
            return self._send_frame(message.frame)
        return send_nowait(self._send({"type": "websocket.send", "text": f"4{message.packet}"}))


class EngineIoConnection:
    """A connection to one client, directly to its WebSocket if its `first` request was one.

    Otherwise it began by polling, and uses the queue of its Engine.IO socket. It continues directly if its id has a
    WebSocket in `upgraded`.

    It uses attributes that python-engineio does not document, because there is no public way:
    - `sockets` of the server, and `closed` of a socket, to find out whether the client is still connected.
    - `queue` of a socket, to bound it and to know when it is empty: the library's `send` never rejects a packet.
    - `upgraded` and `upgrading` of a socket, because its queue is used until a client has changed to a WebSocket.
    - `close` of a socket, to close it without waiting for a client that does not read.
    """

    def __init__(
        self, engineio_server: Any, engine_id: str, first: WebSocket | None, upgraded: Mapping[str, WebSocket]
    ) -> None:
        self.engine_id = engine_id
        self.is_direct = first is not None
        self._server, self._websocket, self._upgraded = engineio_server, first, upgraded
        self._queued_bytes = 0  # at most, since the queue was empty

    @property
    def _socket(self) -> Any:
        return self._server.sockets.get(self.engine_id)

    def try_send(self, message: Message) -> bool:
        """Send or queue a message, or return False if the client cannot take it now. Raises OSError, RuntimeError."""
        if self.is_direct and self._websocket:
            return self._websocket.try_send(message)
        socket = self._socket
        if socket is None or socket.closed:
            raise ConnectionResetError
        if socket.queue.empty():
            self._queued_bytes = 0
        if socket.queue.qsize() >= QUEUE_MAX or self._queued_bytes >= QUEUE_BYTES_MAX:
            return False
        self._queued_bytes += len(message.packet)
        socket.queue.put_nowait(Packet(MESSAGE, message.packet))
        return True

    def request_direct(self) -> None:
        """Write directly to the client's WebSocket, if it has one, as soon as its queue was sent."""
        if self._websocket:
            return
        socket, websocket = self._socket, self._upgraded.get(self.engine_id)
        if websocket and socket and socket.upgraded and not socket.upgrading:
            self._websocket = websocket
            socket.queue.put_nowait(FlushSentinel(self._on_flushed))

    def _on_flushed(self) -> None:
        socket = self._socket
        if socket and socket.queue.empty():
            self.is_direct = True
        else:  # more was queued since, and another sentinel has to follow it
            self._websocket = None

    async def abort(self) -> None:
        """Close the connection, and empty its queue, because the socket may exist until it misses a ping."""
        socket = self._socket
        if socket:
            await socket.close(wait=False, abort=True)
            while not socket.queue.empty():
                socket.queue.get_nowait()


class FlushSentinel(Packet):  # type: ignore[misc] # engineio ships no types
    """A packet without effect for the client. It is encoded when everything that was queued before it was sent."""

    def __init__(self, on_flushed: Callable[[], None]) -> None:
        super().__init__(NOOP)
        self._on_flushed = on_flushed

    def encode(self, b64: bool = False) -> str:
        self._on_flushed()
        return str(super().encode(b64))


class SocketIoServer:
    """Connects Socket.IO clients to the broadcaster.

    `admit` receives the `auth` object of a client that connects, and the ASGI scope of its request. It raises
    HTTPException if the client may not connect. `limit_sessions` receives the scope of a request that begins a session,
    and raises HTTPException if the client has begun too many.
    """

    def __init__(
        self, broadcaster: Broadcaster, admit: Callable[[object, Any], None], limit_sessions: Callable[[Any], None]
    ) -> None:
        self._broadcaster, self._admit, self._limit_sessions = broadcaster, admit, limit_sessions
        self._upgraded: dict[str, WebSocket] = {}
        self._unjoined: set[str] = set()
        self.server = socketio.AsyncServer(
            async_mode="asgi",
            cors_allowed_origins=[],  # origins are checked for all routes by http/permissions.py
            serializer=InboundPacket,
            http_compression=False,  # it would be done on the event loop, between hits
            max_http_buffer_size=INBOUND_BYTES_MAX,
            logger=_packets,
            engineio_logger=_packets,
        )
        self._asgi = socketio.ASGIApp(self.server)
        for namespace in ("/", "/live"):
            self.server.on("connect", self._connector(namespace), namespace=namespace)
            self.server.on("disconnect", self._disconnect, namespace=namespace)
        self.server.on("resync", self._resync, namespace="/live")

    async def close(self) -> None:
        await self.server.shutdown()

    @property
    def _sockets(self) -> dict[str, Any]:
        """python-engineio's sockets by id, also of clients that are in no namespace; it has no public list of them."""
        return self.server.eio.sockets  # type: ignore[no-any-return] # engineio ships no types

    async def asgi(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve a request to /socket.io. Raises HTTPException or TooManyConnections."""
        engine_id = self._check_request(scope)
        receive = guard_receive(scope, receive)
        if scope["type"] == "websocket" and not engine_id:
            await DirectSocket(self.server.eio, scope, receive, send).serve()
        elif scope["type"] == "websocket" and engine_id not in self._upgraded:
            await self._upgrade(engine_id, scope, receive, send)
        else:
            await self._asgi(scope, receive, send)

    def _check_request(self, scope: Any) -> str:
        """Return the id of the Engine.IO session that a request continues; empty if it begins one."""
        query = parse_qs(scope["query_string"].decode("latin-1"))
        engine_id: str = query.get("sid", [""])[0]
        sockets = self._sockets
        if (query.get("transport") == ["websocket"]) != (scope["type"] == "websocket"):
            raise HTTPException(400, "transport=websocket is required for WebSocket requests, and only valid there")
        if not engine_id:
            if query.get("EIO") != ["4"]:
                raise HTTPException(400, "EIO=4 is required: use a client of Socket.IO 3 or later")
            self._limit_sessions(scope)
            if len(sockets) >= CLIENTS_MAX:
                raise TooManyConnections
        if engine_id and (engine_id not in sockets or sockets[engine_id].closed):
            raise HTTPException(400, "unknown Socket.IO session; connect again")
        return engine_id

    async def _upgrade(self, engine_id: str, scope: Any, receive: Any, send: Any) -> None:
        """Serve the WebSocket of a client that began by polling."""
        self._upgraded[engine_id] = WebSocket(scope, send)
        try:
            await self._asgi(scope, receive, send)
        finally:
            del self._upgraded[engine_id]

    def _connector(self, namespace: str) -> Any:
        async def connect(sid: str, environ: dict[str, Any], auth: object = None) -> None:
            scope = environ["asgi.scope"]
            refused = socketio.exceptions.ConnectionRefusedError
            try:
                self._admit(auth, scope)
                # `environ` is that of the first request, which a client that has upgraded made by polling.
                first = WebSocket(scope, environ["asgi.send"]) if scope["type"] == "websocket" else None
                engine_id = self.server.manager.eio_sid_from_sid(sid, namespace)
                connection = EngineIoConnection(self.server.eio, engine_id, first, self._upgraded)
                kind = DashboardClient if namespace == "/live" else PlainClient
                self._broadcaster.add(sid, kind(connection))
            except HTTPException as error:
                raise refused(error.detail, {"status": error.status_code}) from None
            except TooManyConnections as error:
                raise refused(str(error)) from None

        return connect

    async def _disconnect(self, sid: str, _reason: str) -> None:
        self._broadcaster.remove(sid)

    async def _resync(self, sid: str, *_: object) -> None:
        """Send a snapshot, unless the client has yet to read the last one."""
        client = self._broadcaster.clients.get(sid)
        if isinstance(client, DashboardClient) and not client.is_catching_up:
            client.resync()
            self._broadcaster.wake(sid)

    async def close_unjoined(self) -> None:
        """Close connections that are in no namespace, and were in none at the last call: refused or silent clients."""
        sockets = self._sockets
        clients = self._broadcaster.clients.values()
        joined = {client.connection.engine_id for client in clients if isinstance(client, SocketIoClient)}
        unjoined = sockets.keys() - joined
        for socket in [sockets[engine_id] for engine_id in unjoined & self._unjoined]:
            await socket.close(wait=False)
            # This ends the task that writes to a WebSocket, and so the WebSocket.
            socket.queue.put_nowait(None)
        self._unjoined = unjoined
