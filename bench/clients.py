"""A swarm of Socket.IO clients, cheap enough that thousands fit on the load's core."""

import asyncio
import contextlib
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import AsyncIterator
from functools import lru_cache
from typing import Any

import msgspec

from bench.load import Hit, WrongError
from bench.servers import Server

CONNECTING_MAX = 50  # at a time
CONNECT_SECONDS = 60
WATCHED = 20  # clients, spread over the swarm, of which every arrival is kept

_UPGRADE = (
    b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10


@lru_cache(maxsize=4096)
def _decoded(payload: bytes) -> tuple[str, Any]:
    """The event in a Socket.IO packet. All clients get the same bytes, so they are decoded once."""
    event, data = msgspec.json.decode(payload[payload.index(b"[") :])
    return event, data


class Client(asyncio.Protocol):
    """What a page keeps: the latest number of each event. A raw WebSocket that speaks just enough of Socket.IO."""

    def __init__(self, namespace: str, watched: bool) -> None:
        self._where = "" if namespace == "/" else f"{namespace},"
        self._prefix = f"42{self._where}[".encode()
        self._rest = b""
        self._upgraded = False
        self._seq = -1
        self._names: list[str] = []  # on /live, an event is its place
        self.counts: dict[str, int] = {}
        self.ready = asyncio.get_running_loop().create_future()
        self.updates = 0  # messages that brought numbers
        self.changed = 0.0  # when the last one came
        self.backwards = 0
        self.resyncs = 0
        self.gone = False
        self.arrivals: list[tuple[float, str, int]] | None = [] if watched else None

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._transport.write(_UPGRADE)

    def connection_lost(self, _error: Exception | None) -> None:
        self.gone = True
        if not self.ready.done():
            self.ready.set_exception(ConnectionError("the server hung up"))

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        if not self._upgraded:
            at = data.find(b"\r\n\r\n") + 4
            self._upgraded = at > 3 and data.startswith(b"HTTP/1.1 101")
            if not self._upgraded:
                self._rest = data
                return
        while end - at >= 2:
            start, length = at + 2, data[at + 1]
            if length >= 126:
                start += 2 if length == 126 else 8
                length = int.from_bytes(data[at + 2 : start])
            if start + length > end or end < start:
                break
            self._frame(data[at] & 15, data[start : start + length], now)
            at = start + length
        self._rest = data[at:]

    def _frame(self, opcode: int, payload: bytes, now: float) -> None:
        if opcode == _TEXT and payload.startswith(self._prefix):
            event, data = _decoded(payload)
            if event in {"update", "changes", "snapshot"}:
                getattr(self, f"_{event}")(data, now)
                self.updates += 1
                self.changed = now
        elif opcode == _TEXT and payload.startswith(b"0"):
            self._say(f"40{self._where}")
        elif opcode == _TEXT and payload.startswith(b"40"):
            if not self._where:  # on /live it is ready once it has its snapshot
                self.ready.set_result(None)
        elif opcode == _TEXT and payload == b"2":
            self._say("3")
        elif opcode == _PING:
            self._send(_PONG, payload)
        elif opcode == _CLOSE:
            self._transport.close()

    def _update(self, data: dict[str, Any], now: float) -> None:
        self._set(data["eventName"], data["count"], now)

    def _snapshot(self, data: dict[str, Any], now: float) -> None:
        if data["offset"] == 0:
            self._names, self.counts = [], {}
        self._names += data["names"]
        for event, count in zip(data["names"], data["counts"], strict=True):
            self._set(event, count, now)
        self._seq = data["seq"]
        if len(self._names) == data["size"] and not self.ready.done():
            self.ready.set_result(None)

    def _changes(self, data: dict[str, Any], now: float) -> None:
        if data["seq"] != self._seq + 1:
            self.resyncs += 1
            self._say(f'42{self._where}["resync"]')
            return
        self._seq = data["seq"]
        self._names += data["names"]
        for index, count in data["changes"]:
            self._set(self._names[index], count, now)

    def _set(self, event: str, count: int, now: float) -> None:
        if count < self.counts.get(event, 0):
            self.backwards += 1
        self.counts[event] = count
        if self.arrivals is not None:
            self.arrivals.append((now, event, count))

    def _say(self, text: str) -> None:
        self._send(_TEXT, text.encode())

    def _send(self, opcode: int, payload: bytes) -> None:  # up to 125 bytes, under a mask of zeros
        self._transport.write(bytes([0x80 | opcode, 0x80 | len(payload), 0, 0, 0, 0]) + payload)


class Swarm:
    def __init__(self, server: Server, clients: list[Client]) -> None:
        self._server = server
        self.clients = clients

    def updates(self) -> list[int]:
        return [client.updates for client in self.clients]

    def forget_arrivals(self) -> None:
        for client in self.clients:
            if client.arrivals is not None:
                client.arrivals.clear()

    async def agree(self, seconds: float) -> float:
        """The moment from which all have shown what the server counted, once they do."""
        counts = await asyncio.to_thread(self._server.settled_counts)
        deadline = time.perf_counter() + seconds
        others = self.clients
        while others := [client for client in others if client.counts != counts]:
            if time.perf_counter() > deadline or any(client.gone for client in others):
                gone = sum(client.gone for client in others)
                raise WrongError(f"{self._server.name}: {len(others)} clients show other numbers, {gone} are cut off")
            await asyncio.sleep(0.02)
        backwards = sum(client.backwards for client in self.clients)
        if backwards:
            raise WrongError(f"{self._server.name}: a number ran backwards on a page, {backwards} times")
        return max((client.changed for client in self.clients), default=0.0)

    def delays(self, hits: list[Hit]) -> tuple[list[float], list[float]]:
        """From the answer, and from when it was due: until the pages that are watched showed each hit."""
        after_answer, after_due = [], []
        for client in self.clients:
            if client.arrivals is None:
                continue
            seen: defaultdict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
            for when, event, count in client.arrivals:
                seen[event][0].append(count)
                seen[event][1].append(when)
            for hit in hits:
                counts, times = seen[hit.event]
                shown = times[bisect_left(counts, hit.value)]
                after_answer.append(max(0.0, shown - hit.answered))
                after_due.append(shown - hit.due)
        return after_answer, after_due


@contextlib.asynccontextmanager
async def swarm(server: Server, size: int, namespace: str) -> AsyncIterator[Swarm]:
    """Clients that are connected and up to date."""
    loop = asyncio.get_running_loop()
    step = max(1, size // WATCHED)
    clients = []
    async with asyncio.timeout(CONNECT_SECONDS):
        for first in range(0, size, CONNECTING_MAX):
            group = [Client(namespace, i % step == 0) for i in range(first, min(first + CONNECTING_MAX, size))]
            for client in group:
                await loop.create_connection(lambda client=client: client, "127.0.0.1", server.port)
            await asyncio.gather(*(client.ready for client in group))
            clients += group
    try:
        yield Swarm(server, clients)
    finally:
        for client in clients:
            client.close()
