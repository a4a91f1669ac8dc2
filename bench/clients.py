"""Thousands of live clients, of Socket.IO and of event streams, cheap enough for the core of the load."""

import asyncio
import contextlib
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from functools import lru_cache
from typing import Any

import msgspec

from bench.load import Hit, ResultMismatch
from bench.servers import Server

CONNECTING_MAX = 50  # at the same time
CONNECT_TIMEOUT_SECONDS = 60
RECORDING_CLIENTS = 20

_UPGRADE = (
    b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10


@lru_cache(maxsize=4096)
def _decoded(payload: bytes) -> Any:
    """Decode JSON, once for all clients because they get the same bytes."""
    return msgspec.json.decode(payload)


class Client(asyncio.Protocol):
    """A client that keeps the latest count of each event."""

    request: bytes

    def __init__(self, recording: bool) -> None:
        self._unparsed = b""
        self.counts: dict[str, int] = {}
        self.ready = asyncio.get_running_loop().create_future()
        self.updates = 0  # messages with counts
        self.updated_at = 0.0
        self.decreases = 0
        self.closed = False
        self.arrivals: list[tuple[float, str, int]] | None = [] if recording else None

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._transport.write(self.request)

    def connection_lost(self, _error: Exception | None) -> None:
        self.closed = True
        if not self.ready.done():
            self.ready.set_exception(ConnectionError("the server closed the connection"))

    def close(self) -> None:
        self._transport.close()

    def _set(self, event: str, count: int, now: float) -> None:
        if count < self.counts.get(event, 0):
            self.decreases += 1
        self.counts[event] = count
        if self.arrivals is not None:
            self.arrivals.append((now, event, count))


class StreamClient(Client):
    """A client of Server-Sent Events. It does not decode chunks, because no event of Tally's is in two chunks."""

    def __init__(self, path: str, recording: bool) -> None:
        super().__init__(recording)
        self.request = f"GET {path} HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n\r\n".encode()

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        *blocks, self._unparsed = (self._unparsed + data).split(b"\n\n")
        for block in blocks:
            before, _, payload = block.partition(b"\ndata: ")
            if before.endswith(b"event: update"):
                update = _decoded(payload)
                self._set(update["eventName"], update["count"], now)
                self.updates += 1
                self.updated_at = now
            elif b"retry: " in before:
                self.ready.set_result(None)


class SocketIoClient(Client):
    """A raw WebSocket with just enough of Socket.IO."""

    request = _UPGRADE

    def __init__(self, namespace: str, recording: bool) -> None:
        super().__init__(recording)
        self._namespace = "" if namespace == "/" else f"{namespace},"
        self._prefix = f"42{self._namespace}[".encode()
        self._upgraded = False
        self._seq = -1
        self._names: list[str] = []  # /live sends the index of an event
        self.resyncs = 0

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self._unparsed:
            data = self._unparsed + data
        at, end = 0, len(data)
        if not self._upgraded:
            at = data.find(b"\r\n\r\n") + 4
            self._upgraded = at > 3 and data.startswith(b"HTTP/1.1 101")
            if not self._upgraded:
                self._unparsed = data
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
        self._unparsed = data[at:]

    def _frame(self, opcode: int, payload: bytes, now: float) -> None:
        if opcode == _TEXT and payload.startswith(self._prefix):
            event, data = _decoded(payload[payload.index(b"[") :])
            if event in {"update", "changes", "snapshot"}:
                getattr(self, f"_{event}")(data, now)
                self.updates += 1
                self.updated_at = now
        elif opcode == _TEXT and payload.startswith(b"0"):
            self._send_text(f"40{self._namespace}")
        elif opcode == _TEXT and payload.startswith(b"40"):
            if not self._namespace:  # a client of /live is ready when it has its snapshot
                self.ready.set_result(None)
        elif opcode == _TEXT and payload == b"2":
            self._send_text("3")
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
            self._send_text(f'42{self._namespace}["resync"]')
            return
        self._seq = data["seq"]
        self._names += data["names"]
        for index, count in data["changes"]:
            self._set(self._names[index], count, now)

    def _send_text(self, text: str) -> None:
        self._send(_TEXT, text.encode())

    def _send(self, opcode: int, payload: bytes) -> None:
        """Send a frame of up to 125 bytes, with a mask of zeros."""
        self._transport.write(bytes([0x80 | opcode, 0x80 | len(payload), 0, 0, 0, 0]) + payload)


class Clients:
    """All clients of a measurement."""

    def __init__(self, server: Server, clients: list[Client]) -> None:
        self._server = server
        self.all = clients

    def updates(self) -> list[int]:
        return [client.updates for client in self.all]

    def forget_arrivals(self) -> None:
        for client in self.all:
            if client.arrivals is not None:
                client.arrivals.clear()

    async def wait_until_converged(self, timeout_seconds: float) -> float:
        """Wait until all clients have the counts of the server; return when the last client got them.

        Raises ResultMismatch if they do not within the time-out, or if a count ever decreased.
        """
        counts = await asyncio.to_thread(self._server.settled_counts)
        deadline = time.perf_counter() + timeout_seconds
        behind = self.all
        while behind := [client for client in behind if client.counts != counts]:
            if time.perf_counter() > deadline or any(client.closed for client in behind):
                closed = sum(client.closed for client in behind)
                raise ResultMismatch(
                    f"{self._server.name}: {len(behind)} clients have other counts, {closed} are closed"
                )
            await asyncio.sleep(0.02)
        decreases = sum(client.decreases for client in self.all)
        if decreases:
            raise ResultMismatch(f"{self._server.name}: counts decreased on a client, {decreases} times")
        return max((client.updated_at for client in self.all), default=0.0)

    def latencies(self, hits: list[Hit]) -> tuple[list[float], list[float]]:
        """Return the seconds until each recording client had each hit: after the response, and after it was due."""
        after_response, after_due = [], []
        for shown_at in self._shown_at(hits):
            after_response += [max(0.0, shown - hit.acknowledged) for hit, shown in zip(hits, shown_at, strict=True)]
            after_due += [shown - hit.due for hit, shown in zip(hits, shown_at, strict=True)]
        return after_response, after_due

    def latencies_to_all(self, hits: list[Hit]) -> list[float]:
        """Return the seconds from when each hit was due until the last recording client had it."""
        last = map(max, zip(*self._shown_at(hits), strict=True))
        return [shown - hit.due for hit, shown in zip(hits, last, strict=True)]

    def _shown_at(self, hits: list[Hit]) -> Iterator[list[float]]:
        """Yield for each recording client when it had each of the hits."""
        for client in self.all:
            if client.arrivals is not None:
                arrived: defaultdict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
                for when, event, count in client.arrivals:
                    arrived[event][0].append(count)
                    arrived[event][1].append(when)
                yield [arrived[hit.event][1][bisect_left(arrived[hit.event][0], hit.count)] for hit in hits]


@contextlib.asynccontextmanager
async def connected_clients(
    server: Server, number: int, channel: str, recording: int = RECORDING_CLIENTS
) -> AsyncIterator[Clients]:
    """Connect clients to a namespace of Socket.IO or to the path of a stream, and yield them when all are ready.

    So many of them, spread evenly, record when each count arrives.
    """
    loop = asyncio.get_running_loop()
    step = max(1, number // recording)
    kind = StreamClient if channel.startswith("/stream") else SocketIoClient
    clients: list[Client] = []
    async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
        for first in range(0, number, CONNECTING_MAX):
            group = [kind(channel, i % step == 0) for i in range(first, min(first + CONNECTING_MAX, number))]
            for client in group:
                await loop.create_connection(lambda client=client: client, "127.0.0.1", server.port)
            await asyncio.gather(*(client.ready for client in group))
            clients += group
    try:
        yield Clients(server, clients)
    finally:
        for client in clients:
            client.close()
