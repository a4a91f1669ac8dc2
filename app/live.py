"""Live numbers: what each commit changed, sent to every open page over Socket.IO."""

import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import socketio
from engineio.exceptions import SocketIsClosedError
from engineio.packet import MESSAGE, Packet

from app.events import Clock, Moment
from app.metrics import Metrics

CLIENTS_MAX = 10_000
# Messages waiting for one client; who has more is cut, and comes back. They are shared by all whom they wait for.
UPDATES_MAX = 20_000  # on /, some 100 bytes each: two of the largest batches
QUEUE_MAX = 1000  # on /live, of up to PAGE_NAMES events each
PAGE_NAMES = 1000  # events in one message

log = logging.getLogger("tally.live")


class _Client(NamedTuple):
    engine_id: str
    dashboard: bool  # on /live, or else on /


class Live:
    def __init__(self, clock: Clock, metrics: Metrics) -> None:
        self._metrics = metrics
        metrics.watch("tally_live_clients", "Connections of pages.", lambda: len(self._clients))
        self._clock = clock
        self._epoch = secrets.token_hex(4)
        self._seq = 0
        self._moment = clock.moment()
        self._counts: dict[str, int] = {}  # of the day; an event's index is its place
        self._index: dict[str, int] = {}
        self._state: dict[str, object] = {"status": "ok", "reasons": []}
        self._clients: dict[str, _Client] = {}
        self._pages: tuple[int, list[Packet]] = (-1, [])
        self.server = socketio.AsyncServer(
            async_mode="asgi",
            always_connect=True,  # so that the snapshot can follow the greeting at once
            max_http_buffer_size=16_384,  # clients say next to nothing
            logger=log,
            engineio_logger=log,
        )
        for namespace in ("/", "/live"):
            self.server.on("connect", self._connector(namespace), namespace=namespace)
            self.server.on("disconnect", self._disconnect, namespace=namespace)
        self.server.on("resync", self._resync, namespace="/live")

    async def publish(self, moment: Moment, changes: Mapping[str, int]) -> None:
        """Send what a commit changed: absolute counts, of which a page keeps the larger."""
        await self.turn(moment)
        await self.merge(moment.day, changes)

    async def merge(self, day: int, counts: Mapping[str, int]) -> None:
        """Send what is larger than known, unless that day is over, or not begun here."""
        grown = {event: count for event, count in counts.items() if count > self._counts.get(event, 0)}
        if not grown or day != self._moment.day:
            return
        fresh = [event for event in grown if event not in self._index]
        self._index.update({event: len(self._index) + i for i, event in enumerate(fresh)})
        self._counts.update(grown)
        updates = [_packet("/", "update", {"eventName": event, "count": count}) for event, count in grown.items()]
        await self._broadcast(updates, list(self._changes(grown, fresh)))

    def _changes(self, grown: dict[str, int], fresh: list[str]) -> Iterator[Packet]:
        """In messages of a bounded size; a new name comes with or before its count, since both are in order."""
        pairs = sorted([self._index[event], count] for event, count in grown.items())
        first_fresh = len(self._index) - len(fresh)
        for i in range(0, len(pairs), PAGE_NAMES):
            part = pairs[i : i + PAGE_NAMES]
            begin, end = (max(index - first_fresh, 0) for index in (part[0][0], part[-1][0] + 1))
            names = fresh[begin:end]
            self._seq += 1
            yield _packet("/live", "changes", {"seq": self._seq, "changes": part, "names": names})

    async def turn(self, moment: Moment) -> None:
        """Begin a new day, once: counts restart at 0 on every page."""
        if moment.day <= self._moment.day:
            return
        self._moment, self._counts, self._index = moment, {}, {}
        self._seq += 1
        plain, dashboard = (_packet(namespace, "reset", {"day": moment.date}) for namespace in ("/", "/live"))
        await self._broadcast([plain], [dashboard, *self._snapshot()])

    async def replace(self, moment: Moment, counts: Mapping[str, int]) -> None:
        """Show these counts of the day even where they are smaller: the store has lost some."""
        if all(counts.get(event, 0) >= known for event, known in self._counts.items()):
            await self.publish(moment, counts)
            return
        await self.turn(moment)
        changed = [event for event in {**self._counts, **counts} if counts.get(event, 0) != self._counts.get(event, 0)]
        self._epoch = secrets.token_hex(4)
        self._seq += 1
        self._counts = dict(counts)
        self._index = {event: i for i, event in enumerate(counts)}
        updates = [_packet("/", "update", {"eventName": e, "count": counts.get(e, 0)}) for e in changed]
        await self._broadcast(updates, self._snapshot())

    @property
    def day(self) -> int:
        """The UTC second at which the shown day begins."""
        return self._moment.day

    def total(self) -> int:
        """All counts of the day, as they are shown."""
        return sum(self._counts.values())

    async def tell_state(self, status: str, reasons: Sequence[str]) -> None:
        """Tell the dashboards how the service is, when that has changed."""
        state: dict[str, object] = {"status": status, "reasons": list(reasons)}
        if state != self._state:
            self._state = state
            await self._broadcast([], [_packet("/live", "state", state)])

    def _connector(self, namespace: str) -> Any:
        async def connect(sid: str, _environ: dict[str, Any], _auth: object = None) -> None:
            if len(self._clients) >= CLIENTS_MAX:
                raise socketio.exceptions.ConnectionRefusedError("too many connections")
            engine_id = self.server.manager.eio_sid_from_sid(sid, namespace)
            client = self._clients[sid] = _Client(engine_id, dashboard=namespace == "/live")
            if client.dashboard:
                await self._send(sid, client, [*self._snapshot(), _packet("/live", "state", self._state)])

        return connect

    async def _disconnect(self, sid: str, _reason: str) -> None:
        self._clients.pop(sid, None)

    async def _resync(self, sid: str, *_: object) -> None:
        client = self._clients.get(sid)
        socket = client and self.server.eio.sockets.get(client.engine_id)
        # who has not read what was sent gets no snapshot on top of it, however often it asks
        if client and client.dashboard and socket and socket.queue.qsize() <= 1:
            await self._send(sid, client, [*self._snapshot(), _packet("/live", "state", self._state)])

    def _snapshot(self) -> list[Packet]:
        """All of the day, in pages, built once for all who ask before the next change."""
        if self._pages[0] == self._seq:
            return self._pages[1]
        head = {
            "epoch": self._epoch,
            "seq": self._seq,
            "day": self._moment.date,
            "generation": 0,  # it moves when counts are corrected, which nobody can do yet
            "resetsAt": datetime.fromtimestamp(self._clock.calendar.next_day(self._moment.day), UTC).isoformat(),
            "size": len(self._index),
        }
        names = list(self._index)
        counts = [self._counts[event] for event in names]
        pages = [slice(i, i + PAGE_NAMES) for i in range(0, max(1, len(names)), PAGE_NAMES)]
        bodies = ({"offset": page.start, "names": names[page], "counts": counts[page]} for page in pages)
        self._pages = (self._seq, [_packet("/live", "snapshot", head | body) for body in bodies])
        return self._pages[1]

    async def _broadcast(self, plain: list[Packet], dashboards: list[Packet]) -> None:
        for sid, client in list(self._clients.items()):
            await self._send(sid, client, dashboards if client.dashboard else plain)

    async def _send(self, sid: str, client: _Client, packets: list[Packet]) -> None:
        socket = self.server.eio.sockets.get(client.engine_id)
        if socket is None or socket.closed:
            self._clients.pop(sid, None)
            return
        if socket.queue.qsize() + len(packets) > (QUEUE_MAX if client.dashboard else UPDATES_MAX):
            log.info("a client that reads too little is cut")
            self._clients.pop(sid, None)
            await socket.close(wait=False, abort=True)
            while not socket.queue.empty():  # its connection may live on until it misses a ping
                socket.queue.get_nowait()
            return
        try:
            for packet in packets:
                await socket.send(packet)
            self._metrics.sends.inc(len(packets))
        except SocketIsClosedError:  # it was found dead just now, which is nobody else's concern
            self._clients.pop(sid, None)


def _packet(namespace: str, event: str, data: object) -> Packet:
    """A Socket.IO event, encoded once for all who get it."""
    where = "" if namespace == "/" else f"{namespace},"
    return Packet(MESSAGE, f"2{where}{msgspec.json.encode([event, data]).decode()}")
