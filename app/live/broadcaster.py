"""Live numbers, over Socket.IO or as a stream: every commit at once while that is cheap, the latest values when not.

What a tick has to say is encoded once for all pages that are in step; a page that reads more slowly is left
out, and told what it missed, as it is by then, once it can take more.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import parse_qs

import socketio
from engineio.packet import MESSAGE, NOOP, Packet
from starlette.exceptions import HTTPException

from app.live.day import NO_CURSOR, Delta, LiveDay, Message, Place
from app.live.inbound import INBOUND_BYTES_MAX, InboundPacket, heard
from app.metrics import Metrics

CLIENTS_MAX = 10_000
SHARE = 0.16  # of the core, and as much again of what is idle of it, which sending may take by its own clock
BURST_SECONDS = 0.05  # of it, that may be taken at once after a rest
CLIENTS_AT_ONCE = 50  # served before others, who want to count something, have their turn
BLOCK_UPDATES = 100  # in one piece of a stream
QUEUE_MAX = 1000  # messages that wait for a polling client
RETRY_SECONDS = 0.05  # between two looks at pages that could not take more
IDLE_SECONDS = 0.05  # between two looks at what changes while no page is there
STUCK_SECONDS = 25.0  # after which a page that takes nothing is cut; before that its buffers have to be full

log = logging.getLogger("tally.live")
_packets = logging.getLogger("tally.live.packets")
_packets.setLevel(logging.ERROR)  # below that what clients say is logged, and so their keys

Block = dict[str, Any]  # a piece of a stream
Send = Callable[[Any], Awaitable[None]]


@dataclass(eq=False, slots=True)
class _Client:
    engine_id: str
    dashboard: bool  # on /live, or else on /
    send: Send | None  # to its WebSocket, or as a stream
    direct: bool = False  # whether all that was queued for it has gone, so that the WebSocket may be used
    marked: bool = False
    place: Place = NO_CURSOR
    state: object = None
    events: Collection[str] = ()  # which it is told of; none: all
    ended: asyncio.Event | None = None  # of a stream
    todo: Iterator[Message | Block] | None = None  # what it is in the midst of, and the place where that leads
    then: Place = NO_CURSOR
    held: Message | Block | None = None  # what it could not take
    blocked_since: float = math.inf


class _Marker(Packet):  # type: ignore[misc] # engineio ships no types
    """A packet that says nothing to the client; when it is encoded, all that was queued before it has gone."""

    def __init__(self, gone: Callable[[], None]) -> None:
        super().__init__(NOOP)
        self._gone = gone

    def encode(self, b64: bool = False) -> str:
        self._gone()
        return str(super().encode(b64))


class Broadcaster:
    def __init__(self, feed: LiveDay, metrics: Metrics, interval: float, admit: Callable[[object, Any], None]) -> None:
        self._admit = admit  # who says this when connecting, by this request; or raise HTTPException
        self._metrics, self._feed, self._interval = metrics, feed, interval
        metrics.watch("tally_live_clients", "Connections of pages.", lambda: len(self._clients))
        self._clients: dict[str, _Client] = {}
        self._upgraded: dict[str, Send] = {}
        self._strangers: set[str] = set()
        self._sends = 0  # in this round
        self._joined = asyncio.Event()  # the first page
        self._ticked = time.monotonic()
        self.server = socketio.AsyncServer(
            async_mode="asgi",
            cors_allowed_origins=[],  # as of all routes, access.py sees to it
            serializer=InboundPacket,
            http_compression=False,  # of long polls: it would be done here, between hits
            max_http_buffer_size=INBOUND_BYTES_MAX,
            logger=_packets,
            engineio_logger=_packets,
        )
        self._asgi = socketio.ASGIApp(self.server)
        for namespace in ("/", "/live"):
            self.server.on("connect", self._connector(namespace), namespace=namespace)
            self.server.on("disconnect", self._disconnect, namespace=namespace)
        self.server.on("resync", self._resync, namespace="/live")

    def start(self) -> None:
        self._sender = asyncio.create_task(self._send())

    async def close(self) -> None:
        self._sender.cancel()
        await asyncio.gather(self._sender, return_exceptions=True)
        await self.server.shutdown()

    def tick_seconds(self) -> float:
        """How long ago it was that pages were last looked after."""
        return time.monotonic() - self._ticked

    async def asgi(self, scope: Any, receive: Any, send: Any) -> None:
        """The application to mount at /socket.io, which notes the WebSocket of a client that began by polling."""
        query = parse_qs(scope["query_string"].decode("latin-1"))
        engine_id = query.get("sid", [""])[0]
        if (query.get("transport") == ["websocket"]) != (scope["type"] == "websocket"):
            raise HTTPException(400, "a WebSocket has transport=websocket, and nothing else has")
        if not engine_id and len(self.server.eio.sockets) >= CLIENTS_MAX:
            raise HTTPException(503, "too many connections")
        socket = self.server.eio.sockets.get(engine_id)
        if engine_id and (socket is None or socket.closed):
            raise HTTPException(400, "no such session")
        receive = heard(scope, receive)
        if scope["type"] != "websocket" or not engine_id or engine_id in self._upgraded:
            await self._asgi(scope, receive, send)
            return
        self._upgraded[engine_id] = send
        for client in self._clients.values():
            if client.engine_id == engine_id:
                client.send = send
        try:
            await self._asgi(scope, receive, send)
        finally:
            del self._upgraded[engine_id]

    def _connector(self, namespace: str) -> Any:
        async def connect(sid: str, environ: dict[str, Any], auth: object = None) -> None:
            try:
                self._admit(auth, environ["asgi.scope"])
            except HTTPException as error:
                refusal = socketio.exceptions.ConnectionRefusedError(error.detail, {"status": error.status_code})
                raise refusal from None
            if len(self._clients) >= CLIENTS_MAX:
                raise socketio.exceptions.ConnectionRefusedError("too many connections")
            engine_id = self.server.manager.eio_sid_from_sid(sid, namespace)
            first = environ["asgi.send"] if environ["asgi.scope"]["type"] == "websocket" else None
            send = self._upgraded.get(engine_id, first)
            dashboard = namespace == "/live"
            self._welcome()
            self._clients[sid] = _Client(engine_id, dashboard, send, place=NO_CURSOR if dashboard else self._feed.told)
            self._feed.changed.set()

        return connect

    def _welcome(self) -> None:
        """While nobody was there nothing was told: what was counted meanwhile is no news to who comes now."""
        if not self._clients:
            self._feed.collect()
            self._joined.set()

    @contextlib.contextmanager
    def stream(self, send: Send, ended: asyncio.Event, events: Collection[str], last_id: str) -> Iterator[_Client]:
        """While this lasts, tell what changes; before that what has changed since this id, or these events' values."""
        if len(self._clients) >= CLIENTS_MAX:
            raise HTTPException(503, "too many connections", {"Retry-After": "10"})
        self._welcome()
        place = self._feed.place(last_id) if last_id else NO_CURSOR if events else self._feed.told
        client = _Client("", False, send, True, True, place, events=events, ended=ended)
        self._clients[f"stream {id(client)}"] = client
        self._feed.changed.set()
        try:
            yield client
        finally:
            self._clients.pop(f"stream {id(client)}", None)

    def end_streams(self) -> None:
        for client in self._clients.values():
            if client.ended:
                client.ended.set()

    async def cut_strangers(self) -> None:
        """Close the connections that were on no namespace the last time either: refused there, or not asking."""
        sockets = self.server.eio.sockets
        strangers = sockets.keys() - {client.engine_id for client in self._clients.values()}
        for socket in [sockets[engine_id] for engine_id in strangers & self._strangers]:
            await socket.close(wait=False)
            socket.queue.put_nowait(None)  # ends its WebSocket, too
        self._strangers = strangers

    async def _disconnect(self, sid: str, _reason: str) -> None:
        self._clients.pop(sid, None)

    async def _resync(self, sid: str, *_: object) -> None:
        client = self._clients.get(sid)
        socket = client and self.server.eio.sockets.get(client.engine_id)
        # who has not read what was sent gets no snapshot on top of it, however often it asks
        if client and client.todo is None and socket and socket.queue.qsize() <= 1:
            client.place = NO_CURSOR
            self._feed.changed.set()

    async def _send(self) -> None:
        waiting, credit, worked = False, BURST_SECONDS, time.process_time()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_SECONDS if waiting else 1.0):
                    await self._feed.changed.wait()
            self._feed.changed.clear()
            passed, used = time.monotonic() - self._ticked, time.process_time() - worked
            self._ticked, worked = self._ticked + passed, worked + used
            share = SHARE * (1 + max(0.0, 1 - used / max(passed, 1e-6)))
            credit = min(BURST_SECONDS, credit + passed * share)
            try:
                spent, waiting = await self._round()
            except Exception:  # the hits are counted; whatever went wrong with a page, the next ones must be shown
                log.exception("a round of sending failed")
                spent, waiting = 1.0, True
            credit -= spent
            if credit < 0:  # what changes meanwhile is told as one
                await asyncio.sleep(max(-credit / share, self._interval))
            elif not self._clients:
                self._joined.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(IDLE_SECONDS):
                        await self._joined.wait()

    async def _round(self) -> tuple[float, bool]:
        """Tell every page what it lacks; the seconds of CPU that took, and whether some could not take it."""
        begun = time.thread_time()
        ticks = self._feed.collect()
        spent, waiting, clients = time.thread_time() - begun, False, list(self._clients.items())
        for i in range(0, len(clients), CLIENTS_AT_ONCE):
            begun = time.thread_time()
            for sid, client in clients[i : i + CLIENTS_AT_ONCE]:
                if not self._serve(sid, client, ticks):
                    waiting = True
                    await self._cut_if_stuck(sid, client)
            spent += time.thread_time() - begun
            await asyncio.sleep(0)
        self._metrics.sends.inc(self._sends)
        self._sends = 0
        return spent, waiting

    def _serve(self, sid: str, client: _Client, ticks: list[Delta]) -> bool:
        """Send a page what it lacks; whether it could take all of that."""
        try:
            if self._keep_in_step(client, ticks):
                return True
            for message in self._lacked(client, ticks):
                if not self._give(client, message):
                    client.held, client.blocked_since = message, min(client.blocked_since, time.monotonic())
                    return False
                client.held, client.blocked_since = None, math.inf
                self._sends += 1
            if not client.marked:
                self._mark(client)
        except (OSError, RuntimeError):  # its connection has just ended
            self._clients.pop(sid, None)
        except Exception:  # whatever is wrong with it is nobody else's concern
            log.exception("a page could not be told")
            self._clients.pop(sid, None)
        return True

    def _keep_in_step(self, client: _Client, ticks: list[Delta]) -> bool:
        """Tell a dashboard the one message that it lacks, as nearly all do; False where it was told nothing yet."""
        if len(ticks) != 1 or client.place is not ticks[0].begin or client.state is not self._feed.state:
            return False
        messages = ticks[0].changes()
        if client.held or len(messages) > 1 or not client.direct or not self._give(client, messages[0]):
            return False
        client.place = ticks[0].end
        self._sends += 1
        return True

    def _lacked(self, client: _Client, ticks: list[Delta]) -> Iterator[Message | Block]:
        """What a page lacks, in order. It may be left at any message, and begins there the next time."""
        if client.todo is not None or client.events:
            ticks = []  # what comes after an earlier round's rest may be newer; and a tick is of all events
        if client.held:
            yield client.held
        feed = self._feed
        while True:
            if client.todo is not None:
                for message in client.todo:  # noqa: UP028 # 'yield from' would end it where the page takes no more
                    yield message
                client.todo, client.place = None, client.then
            elif tick := next((tick for tick in ticks if tick.begin is client.place), None):
                _begin(client, tick.changes() if client.dashboard else tick.updates(), tick.end)
            elif client.place is not feed.told:
                place, events = client.place, client.events
                missed = feed.missed_changes(place) if client.dashboard else feed.missed_updates(place, events)
                _begin(client, *missed)
            elif client.dashboard and client.state is not feed.state:
                client.state = feed.state
                yield feed.state
            else:
                return

    def _give(self, client: _Client, message: Message | Block) -> bool:
        """Send this if the page takes it now, or else not at all. Raises OSError or RuntimeError for a closed one."""
        frame = message if isinstance(message, dict) else _frame(client, message)
        if client.direct and client.send:
            return send_nowait(client.send(frame))
        socket = self.server.eio.sockets.get(client.engine_id)
        if socket is None or socket.closed:
            raise ConnectionResetError
        if socket.queue.qsize() >= QUEUE_MAX:
            return False
        socket.queue.put_nowait(Packet(MESSAGE, frame["text"][1:]))
        return True

    def _mark(self, client: _Client) -> None:
        """Once a page has its WebSocket, find out when all has gone that is queued for it: from then on use that."""
        socket = self.server.eio.sockets.get(client.engine_id)

        def gone() -> None:
            client.direct = socket.queue.empty()
            client.marked = client.direct

        if client.send and socket and socket.upgraded and not socket.upgrading:
            client.marked = True
            socket.queue.put_nowait(_Marker(gone))

    async def _cut_if_stuck(self, sid: str, client: _Client) -> None:
        if time.monotonic() - client.blocked_since < STUCK_SECONDS:
            return
        log.info("a page that takes nothing is cut")
        self._clients.pop(sid, None)
        if client.ended:
            client.ended.set()
        socket = self.server.eio.sockets.get(client.engine_id)
        if socket:
            await socket.close(wait=False, abort=True)
            while not socket.queue.empty():  # its connection may live on until it misses a ping
                socket.queue.get_nowait()


def send_nowait(sending: Any) -> bool:
    """Whether this is done at once. A server waits before it writes: where it would wait, nothing is sent."""
    try:
        sending.send(None)
    except StopIteration:
        return True
    sending.close()
    return False


def _begin(client: _Client, messages: Iterable[Message], then: Place) -> None:
    rest, client.then = iter(messages), then
    client.todo = _blocks(rest, client.place.id_field, then.id_field) if client.ended else rest


def _blocks(updates: Iterator[Message], begin: str, end: str) -> Iterator[Block]:
    """As Server-Sent Events. Who has got the last of them stands at the end, and until then still at the beginning."""
    while part := list(islice(updates, BLOCK_UPDATES)):
        fields = [begin] * (len(part) - 1) + [end if len(part) < BLOCK_UPDATES else begin]
        events = [f"{id_}event: {u.event}\ndata: {u.data}\n\n" for id_, u in zip(fields, part, strict=True)]
        yield {"type": "http.response.body", "body": "".join(events).encode(), "more_body": True}


def _frame(client: _Client, message: Message) -> dict[str, str]:
    """As a WebSocket is sent it; a message is for one namespace, so that all who get it get the same."""
    if message.frame is None:
        text = f'42{"/live," if client.dashboard else ""}["{message.event}",{message.data}]'
        message.frame = {"type": "websocket.send", "text": text}
    return message.frame
