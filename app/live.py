"""Live numbers over Socket.IO: every commit at once while that is cheap, the latest values when it is not.

Counts are absolute, so a page that gets fewer messages than others still ends on the same numbers. What
a tick has to say is encoded once for all pages that are in step; a page that reads more slowly is left
out, and told what it missed, as it is by then, once it can take more.
"""

import asyncio
import contextlib
import itertools
import logging
import math
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import msgspec
import socketio
from engineio.packet import MESSAGE, NOOP, Packet
from socketio.packet import CONNECT, DISCONNECT, EVENT
from starlette.exceptions import HTTPException

from app.events import Clock, Moment
from app.metrics import Metrics

CLIENTS_MAX = 10_000
SHARE = 0.25  # of the core, which sending may take
BURST_SECONDS = 0.05  # of it, that may be taken at once after a rest
CLIENTS_AT_ONCE = 50  # served before others, who want to count something, have their turn
QUEUE_MAX = 1000  # messages that wait for a polling client
PAGE_NAMES = 1000  # events in one message
LOG_MAX = 20_000  # changes that are remembered for pages that fall behind
SNAPSHOT_SECONDS = 1.0  # how old a snapshot may be, since what changed after it follows
RETRY_SECONDS = 0.05  # between two looks at pages that could not take more
STUCK_SECONDS = 30.0  # after which a page that takes nothing is cut

log = logging.getLogger("tally.live")


class _Message(NamedTuple):
    """A Socket.IO event, encoded once: as a packet to be queued, and as what a WebSocket is sent."""

    packet: Packet
    frame: dict[str, str]


class _Place(NamedTuple):
    """How far a page has been told: the number of changes, of messages and of names, in this epoch and day."""

    change: int
    seq: int
    names: int
    epoch: str
    day: int


class _Tick(NamedTuple):
    """What is new since a place, for those who stand there."""

    begin: _Place
    end: _Place
    plain: list[_Message]
    dashboards: list[_Message]


Send = Callable[[dict[str, str]], Coroutine[Any, Any, None]]
NOWHERE = _Place(-1, -1, 0, "", -1)


@dataclass(eq=False, slots=True)
class _Client:
    engine_id: str
    dashboard: bool  # on /live, or else on /
    send: Send | None  # to its WebSocket
    direct: bool = False  # whether all that was queued for it has gone, so that the WebSocket may be used
    marked: bool = False
    place: _Place = NOWHERE
    state: object = None
    todo: Iterator[_Message] | None = None  # what it is in the midst of, and the place where that leads
    then: _Place = NOWHERE
    held: _Message | None = None  # what it could not take
    blocked_since: float | None = None


class _Marker(Packet):  # type: ignore[misc] # engineio ships no types
    """A packet that says nothing to the client; when it is encoded, all that was queued before it has gone."""

    def __init__(self, gone: Callable[[], None]) -> None:
        super().__init__(NOOP)
        self._gone = gone

    def encode(self, b64: bool = False) -> str:
        self._gone()
        return str(super().encode(b64))


class _FromClient(socketio.packet.Packet):  # type: ignore[misc] # likewise
    """What clients may say: nothing binary, and no event but `resync`, for python-socketio takes some for its own."""

    packet_type: int
    data: Any

    def decode(self, encoded_packet: str) -> int:
        try:
            super().decode(encoded_packet)
            spoken = self.packet_type in {CONNECT, DISCONNECT} or (self.packet_type, self.data[0]) == (EVENT, "resync")
        except Exception:  # noqa: BLE001 # whatever nonsense it is
            spoken = False
        if not spoken:
            self.packet_type, self.data = EVENT, ["ignored"]
        return 0


class Live:
    def __init__(self, clock: Clock, metrics: Metrics, interval: float) -> None:
        self._metrics = metrics
        metrics.watch("tally_live_clients", "Connections of pages.", lambda: len(self._clients))
        self._clock = clock
        self._interval = interval
        self._moment = clock.moment()
        self._names: list[str] = []  # of the day
        self._index: dict[str, int] = {}
        self._counts: list[int] = []
        self._gone: set[str] = set()  # what the store has lost of it
        self._log: list[int] = []  # indices, in the order of their changes
        self._base = 0  # the number of the log's first change
        self._told = _Place(0, 0, 0, secrets.token_hex(4), self._moment.day)
        self._ticks: list[_Tick] = []  # of days that ended before they were sent
        self._pages: tuple[float, _Place, list[_Message]] = (0.0, NOWHERE, [])
        self._state = _message("/live", "state", {"status": "ok", "reasons": []})
        self._clients: dict[str, _Client] = {}
        self._upgraded: dict[str, Send] = {}
        self._changed = asyncio.Event()
        self._ticked = time.monotonic()
        self.server = socketio.AsyncServer(
            async_mode="asgi",
            always_connect=True,
            serializer=_FromClient,
            http_compression=False,  # of long polls: it would be done here, between hits
            max_http_buffer_size=16_384,  # clients say next to nothing
            logger=log,
            engineio_logger=log,
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

    @property
    def day(self) -> int:
        """The UTC second at which the shown day begins."""
        return self._moment.day

    def tick_seconds(self) -> float:
        """How long ago it was that pages were last looked after."""
        return time.monotonic() - self._ticked

    def publish(self, moment: Moment, counts: Mapping[str, int]) -> None:
        """Show what a commit made of the counts."""
        self.turn(moment)
        self.merge(moment.day, counts)

    def merge(self, day: int, counts: Mapping[str, int]) -> None:
        """Show what is larger than known, unless that day is over, or has not begun here."""
        if day != self._moment.day:
            return
        for event, count in counts.items():
            index = self._place_of(event)
            if count > self._counts[index]:
                self._counts[index] = count
                self._log.append(index)
        self._changed.set()

    def turn(self, moment: Moment) -> None:
        """Begin a new day, once: counts restart at 0 on every page."""
        if moment.day > self._moment.day:
            self._collect()  # what the old day still has to say
            self._moment, self._gone = moment, set()
            self._begin_anew({}, self._told.epoch, [self._reset("/")], [self._reset("/live")])

    def shown(self) -> dict[str, int]:
        """The counts of the day, as they are shown."""
        return dict(zip(self._names, self._counts, strict=True))

    def replace(self, moment: Moment, counts: Mapping[str, int], before: Mapping[str, int]) -> None:
        """Show these counts where they are smaller than what was shown before they were read: the store lost some."""
        self.turn(moment)
        shown = self.shown()
        lost = {event for event, known in before.items() if event in shown and counts.get(event, 0) < known}
        if not lost:
            self.merge(moment.day, counts)
            return
        self._collect()
        kept = {event: 0 if event in lost else count for event, count in shown.items()}
        now = {event: max(counts.get(event, 0), kept.get(event, 0)) for event in {**shown, **counts}}
        self._gone |= {event for event in lost if not now[event]}
        changed = [_update(event, count) for event, count in now.items() if count != shown.get(event)]
        self._begin_anew({e: n for e, n in now.items() if n}, secrets.token_hex(4), changed, [])

    def _begin_anew(
        self, counts: Mapping[str, int], epoch: str, plain: list[_Message], dashboards: list[_Message]
    ) -> None:
        """With these counts; every page is told so, and whoever falls behind here has to be told everything."""
        begin = self._told
        self._names, self._counts = list(counts), list(counts.values())
        self._index = {event: index for index, event in enumerate(counts)}
        self._base, self._log = begin.change + 1, []
        self._told = _Place(self._base, begin.seq + 1, len(counts), epoch, self._moment.day)
        self._ticks.append(_Tick(begin, self._told, plain, [*dashboards, *self._snapshot()[1]]))
        self._changed.set()

    def tell_state(self, status: str, reasons: Sequence[str]) -> None:
        """Tell the dashboards how the service is, when that has changed."""
        state = _message("/live", "state", {"status": status, "reasons": reasons})
        if state.frame != self._state.frame:
            self._state = state
            self._changed.set()

    def _place_of(self, event: str) -> int:
        index = self._index.get(event)
        if index is None:
            index = self._index[event] = len(self._names)
            self._names.append(event)
            self._counts.append(0)
        return index

    async def asgi(self, scope: Any, receive: Any, send: Any) -> None:
        """The application to mount at /socket.io, which notes the WebSocket of a client that began by polling."""
        engine_id = parse_qs(scope["query_string"].decode("latin-1")).get("sid", [""])[0]
        if not engine_id and len(self.server.eio.sockets) >= CLIENTS_MAX:
            raise HTTPException(503, "too many connections")
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
        async def connect(sid: str, environ: dict[str, Any], _auth: object = None) -> None:
            if len(self._clients) >= CLIENTS_MAX:
                raise socketio.exceptions.ConnectionRefusedError("too many connections")
            engine_id = self.server.manager.eio_sid_from_sid(sid, namespace)
            first = environ["asgi.send"] if environ["asgi.scope"]["type"] == "websocket" else None
            send = self._upgraded.get(engine_id, first)
            dashboard = namespace == "/live"
            self._clients[sid] = _Client(engine_id, dashboard, send, place=NOWHERE if dashboard else self._told)
            self._changed.set()

        return connect

    async def _disconnect(self, sid: str, _reason: str) -> None:
        self._clients.pop(sid, None)

    async def _resync(self, sid: str, *_: object) -> None:
        client = self._clients.get(sid)
        socket = client and self.server.eio.sockets.get(client.engine_id)
        # who has not read what was sent gets no snapshot on top of it, however often it asks
        if client and client.todo is None and socket and socket.queue.qsize() <= 1:
            client.place = NOWHERE
            self._changed.set()

    async def _send(self) -> None:
        waiting, credit = False, BURST_SECONDS
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_SECONDS if waiting else 1.0):
                    await self._changed.wait()
            self._changed.clear()
            now = time.monotonic()
            credit, self._ticked = min(BURST_SECONDS, credit + (now - self._ticked) * SHARE), now
            try:
                spent, waiting = await self._round()
            except Exception:  # the hits are counted; whatever went wrong with a page, the next ones must be shown
                log.exception("a round of sending failed")
                spent, waiting = 1.0, True
            credit -= spent
            if credit < 0:  # what changes meanwhile is told as one
                await asyncio.sleep(max(-credit / SHARE, self._interval))

    async def _round(self) -> tuple[float, bool]:
        """Tell every page what it lacks; the seconds of CPU that took, and whether some could not take it."""
        begun = time.thread_time()
        self._collect()
        ticks, self._ticks = self._ticks, []
        spent, waiting, clients = time.thread_time() - begun, False, list(self._clients.items())
        for i in range(0, len(clients), CLIENTS_AT_ONCE):
            begun = time.thread_time()
            for sid, client in clients[i : i + CLIENTS_AT_ONCE]:
                waiting |= not await self._serve(sid, client, ticks)
            spent += time.thread_time() - begun
            await asyncio.sleep(0)
        return spent, waiting

    def _collect(self) -> None:
        """Make a tick of what has changed since the last one, in the words of those who listen."""
        begin = self._told
        changed = list(dict.fromkeys(self._log[begin.change - self._base :]))
        if not changed:
            return
        kinds = {client.dashboard for client in self._clients.values()}
        plain = [_update(self._names[i], self._counts[i]) for i in changed] if False in kinds else []
        dashboards = self._changes(changed, begin) if True in kinds else []
        self._told = begin._replace(
            change=self._base + len(self._log),
            seq=begin.seq + math.ceil(len(changed) / PAGE_NAMES),  # whoever listens
            names=len(self._names),
        )
        self._ticks.append(_Tick(begin, self._told, plain, dashboards))
        if len(self._log) > LOG_MAX:
            self._log = self._log[-LOG_MAX // 2 :]
            self._base = self._told.change - len(self._log)

    async def _serve(self, sid: str, client: _Client, ticks: list[_Tick]) -> bool:
        """Send a page what it lacks; whether it could take all of that."""
        try:
            for message in self._lacked(client, ticks):
                if not self._give(client, message):
                    client.held = message
                    client.blocked_since = client.blocked_since or time.monotonic()
                    if time.monotonic() - client.blocked_since > STUCK_SECONDS:
                        await self._cut(sid, client)
                    return False
                client.held = client.blocked_since = None
                self._metrics.sends.inc()
            if not client.marked:
                self._mark(client)
        except (OSError, RuntimeError):  # its connection has just ended
            self._clients.pop(sid, None)
        except Exception:  # whatever is wrong with it is nobody else's concern
            log.exception("a page could not be told")
            self._clients.pop(sid, None)
        return True

    def _lacked(self, client: _Client, ticks: list[_Tick]) -> Iterator[_Message]:
        """What a page lacks, in order. It may be left at any message, and begins there the next time."""
        if client.todo is not None:  # from an earlier round: what it is told next may be newer than this round's ticks
            ticks = []
        if client.held:
            yield client.held
        while True:
            if client.todo is not None:
                for message in client.todo:  # noqa: UP028 # 'yield from' would end it where the page takes no more
                    yield message
                client.todo, client.place = None, client.then
            elif tick := next((tick for tick in ticks if tick.begin is client.place), None):
                client.todo, client.then = iter(tick.dashboards if client.dashboard else tick.plain), tick.end
            elif client.place is not self._told:
                client.todo, client.then = self._missed(client)
            elif client.dashboard and client.state is not self._state:
                client.state = self._state
                yield self._state
            else:
                return

    def _missed(self, client: _Client) -> tuple[Iterator[_Message], _Place]:
        """What a page that is not in step has to be told, and the place where it stands then."""
        place, told = client.place, self._told
        reset = [] if place.day in {told.day, NOWHERE.day} else [self._reset("/live" if client.dashboard else "/")]
        forgotten = place.change < self._base
        changed = list(dict.fromkeys(self._log[max(0, place.change - self._base) : told.change - self._base]))
        if not client.dashboard:
            names, counts = self._names, self._counts  # a new day has others
            indices = range(told.names) if forgotten else changed
            gone = (_update(event, 0) for event in list(self._gone) if forgotten)
            return itertools.chain(reset, gone, (_update(names[i], counts[i]) for i in indices)), told
        if forgotten or (place.epoch, place.day) != (told.epoch, told.day):
            stands, pages = self._snapshot()
            return itertools.chain(reset, pages), stands
        return iter(self._changes(changed, place, until=told.seq)), told

    def _changes(self, changed: Iterable[int], begin: _Place, until: int | None = None) -> list[_Message]:
        """In messages of a bounded size; a new name comes with or before its count, since both are in order."""
        indices, messages = sorted(changed), []
        for seq, i in enumerate(range(0, len(indices), PAGE_NAMES), begin.seq + 1):
            page = indices[i : i + PAGE_NAMES]
            body: dict[str, object] = {"seq": seq, "changes": [[index, self._counts[index]] for index in page]}
            body["names"] = self._names[max(page[0], begin.names) : page[-1] + 1]
            if until is not None and i + PAGE_NAMES >= len(indices):
                body |= {"seq": until, "since": seq}
            messages.append(_message("/live", "changes", body))
        return messages

    def _snapshot(self) -> tuple[_Place, list[_Message]]:
        """All of the day as told, in pages, and their place; built once for all who ask within a second."""
        made, place, pages = self._pages
        told, current = self._told, (place.epoch, place.day) == (self._told.epoch, self._told.day)
        if place == told or (current and place.change >= self._base and time.monotonic() - made < SNAPSHOT_SECONDS):
            return place, pages
        head = {
            "epoch": told.epoch,
            "seq": told.seq,
            "day": self._moment.date,
            "generation": 0,  # it moves when counts are corrected, which nobody can do yet
            "resetsAt": datetime.fromtimestamp(self._clock.calendar.next_day(self._moment.day), UTC).isoformat(),
            "size": told.names,
        }
        names, counts = self._names[: told.names], self._counts[: told.names]
        parts = [slice(i, i + PAGE_NAMES) for i in range(0, max(1, told.names), PAGE_NAMES)]
        bodies = ({"offset": part.start, "names": names[part], "counts": counts[part]} for part in parts)
        pages = [_message("/live", "snapshot", head | body) for body in bodies]
        self._pages = (time.monotonic(), told, pages)
        return told, pages

    def _reset(self, namespace: str) -> _Message:
        return _message(namespace, "reset", {"day": self._moment.date})

    def _give(self, client: _Client, message: _Message) -> bool:
        """Send this if the page takes it now, or else not at all. Raises OSError or RuntimeError for a closed one."""
        if client.direct and client.send:
            return _at_once(client.send(message.frame))
        socket = self.server.eio.sockets.get(client.engine_id)
        if socket is None or socket.closed:
            raise ConnectionResetError
        if socket.queue.qsize() >= QUEUE_MAX:
            return False
        socket.queue.put_nowait(message.packet)
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

    async def _cut(self, sid: str, client: _Client) -> None:
        log.info("a page that takes nothing is cut")
        self._clients.pop(sid, None)
        socket = self.server.eio.sockets.get(client.engine_id)
        if socket:
            await socket.close(wait=False, abort=True)
            while not socket.queue.empty():  # its connection may live on until it misses a ping
                socket.queue.get_nowait()


def _at_once(sending: Coroutine[Any, Any, None]) -> bool:
    """Whether this is done at once. A server waits before it writes: where it would wait, nothing is sent."""
    try:
        sending.send(None)
    except StopIteration:
        return True
    sending.close()
    return False


def _update(event: str, count: int) -> _Message:
    return _message("/", "update", {"eventName": event, "count": count})


def _message(namespace: str, event: str, data: object) -> _Message:
    where = "" if namespace == "/" else f"{namespace},"
    packet = Packet(MESSAGE, f"2{where}{msgspec.json.encode([event, data]).decode()}")
    return _Message(packet, {"type": "websocket.send", "text": packet.encode()})
