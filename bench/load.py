"""The load: wrk as fast as it can, hits at a fixed rate, readers. Each load checks that its hits were counted."""

import asyncio
import itertools
import json
import re
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from typing import NamedTuple

import httpx
import msgspec

from bench.servers import Server, core_seconds

LUA = Path(__file__).parent / "wrk.lua"
# Hits per request, by kind of request. Other kinds have 1.
HITS = {"batch": 1000, "mostly-post": 0.9, "mostly-get": 0.1, "get": 0}
OPEN_CONNECTIONS = 256
RESPONSE_TIMEOUT_SECONDS = 60  # after the last hit at a fixed rate
SEED_BATCH_NAMES = 5000
PAGE_NAMES = 1000
READS_PER_SECOND = 5
ADMIN_KEY = "a-key-of-the-benchmark"

Figures = dict[str, float]

_COUNT = re.compile(rb'"count":(\d+)')
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class ResultMismatch(Exception):
    """A server counted other hits than it acknowledged, or its clients show other counts."""


class Meter:
    """Measures the processor time of a server, its Redis and this load from its creation on."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._began = self._now()

    def _now(self) -> tuple[float, float, float, float, float]:
        own = sum(use.ru_utime + use.ru_stime for use in map(getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN)))
        redis = self._server.redis.cpu_seconds() if self._server.redis else 0.0
        return time.perf_counter(), self._server.cpu_seconds(), core_seconds(), own, redis

    def read(self, hits: float) -> Figures:
        """Return µs per hit, and the share of a core that each program used."""
        seconds, server, core, load, redis = (end - start for end, start in zip(self._now(), self._began, strict=True))
        figures = {"cpu_us": server / max(hits, 1) * 1e6, "server": server / seconds, "load": load / seconds}
        figures["others"] = max(0.0, core - server) / seconds
        if self._server.redis:
            figures |= {"redis_us": redis / max(hits, 1) * 1e6, "redis": redis / seconds}
        return figures


async def wrk(server: Server, kind: str, names: int, connections: int, seconds: float, warm: float) -> Figures:
    """Send requests as fast as possible for so many seconds, after `warm` seconds of warm-up.

    Raises ResultMismatch if the server rejected a request or counted other hits than it acknowledged.
    """
    if warm:
        await _wrk(server, kind, names, connections, warm)
    before = sum((await asyncio.to_thread(server.settled_counts)).values())
    meter = Meter(server)
    result = await _wrk(server, kind, names, connections, seconds)
    figures = meter.read(result["responses"] * max(1, HITS.get(kind, 1))) | {"ended": time.perf_counter()}
    counted = sum((await asyncio.to_thread(server.settled_counts)).values()) - before
    hits = result["responses"] * HITS.get(kind, 1)
    # The requests in flight when wrk ended may have been counted. In a mix it is unknown which of them were reads.
    surplus = (connections + result["broken"]) * max(1, HITS.get(kind, 1))
    shortage = connections if kind.startswith("mostly") else 0
    if result["rejected"] or not hits - shortage <= counted <= hits + surplus:
        raise ResultMismatch(f"{server.name}: {hits:.0f} hits were acknowledged, {counted} counted: {result}")
    rates = {"rate": result["responses"] / result["seconds"], "hits": hits / result["seconds"]}
    return rates | {key: result[key] for key in ("p50_ms", "p99_ms")} | figures


async def _wrk(server: Server, kind: str, names: int, connections: int, seconds: float) -> Figures:
    options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "60s", "-s", str(LUA)]
    process = await asyncio.create_subprocess_exec(
        "wrk",
        *options,
        server.url,
        "--",
        kind,
        str(names),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    found = re.search(rb"^result (.*)$", output, re.MULTILINE)
    if not found:
        raise RuntimeError(f"wrk: {output.decode()}")
    return json.loads(found[1])


class Hit(NamedTuple):
    event: str
    count: int  # in the response
    due: float
    acknowledged: float


class _Connection(asyncio.Protocol):
    """A connection with at most one hit in flight."""

    def __init__(self, load: "_OpenLoopLoad") -> None:
        self._load = load
        self._data = b""
        self._in_flight: tuple[str, float] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def send(self, event: str, due: float) -> None:
        self._in_flight = event, due
        self._transport.write(b"POST /event/%b HTTP/1.1\r\nHost: bench\r\n\r\n" % event.encode())

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._data += data
        head, complete, body = self._data.partition(b"\r\n\r\n")
        if not complete or len(body) < int(_LENGTH.search(head)[1]):  # every server sends it
            return
        count = _COUNT.search(body) if head.startswith(b"HTTP/1.1 200") else None
        if not count or not self._in_flight:
            self._load.failed = self._data.decode()
            return
        self._load.hits.append(Hit(self._in_flight[0], int(count[1]), self._in_flight[1], now))
        self._data, self._in_flight = b"", None
        self._load.release(self)

    def connection_lost(self, _error: Exception | None) -> None:
        if self._in_flight:
            self._load.failed = f"no response to {self._in_flight[0]}"

    def close(self) -> None:
        self._transport.close()


class _OpenLoopLoad:
    """Hits that become due on a schedule, however long earlier ones take."""

    def __init__(self) -> None:
        self.hits: list[Hit] = []
        self.failed = ""
        self.free: list[_Connection] = []
        self.waiting: deque[tuple[str, float]] = deque()

    def release(self, connection: _Connection) -> None:
        if self.waiting:
            connection.send(*self.waiting.popleft())
        else:
            self.free.append(connection)

    async def run(self, rate: float, seconds: float, events: Iterator[str]) -> None:
        began = time.perf_counter()
        for i in range(round(rate * seconds)):
            due = began + i / rate
            if i % 100 == 0:
                await asyncio.sleep(0)  # so that responses are read even when the load is late
            while time.perf_counter() < due:
                await asyncio.sleep(0.001)
            if time.perf_counter() > began + seconds + 1:
                break  # the load itself is too slow, which shows in the rate
            self.waiting.append((next(events), due))
            if self.free:
                self.free.pop().send(*self.waiting.popleft())
        self.waiting.clear()  # these hits were never sent


async def open_loop_load(server: Server, rate: float, seconds: float, names: int) -> tuple[list[Hit], Figures]:
    """Send `rate` hits per second over so many event names, and wait for all responses.

    Raises ResultMismatch unless the responses contain each count exactly once, up to the final one.
    """
    before = await asyncio.to_thread(server.settled_counts)
    loop = asyncio.get_running_loop()
    load = _OpenLoopLoad()
    connections = [
        (await loop.create_connection(lambda: _Connection(load), "127.0.0.1", server.port))[1]
        for _ in range(OPEN_CONNECTIONS)
    ]
    load.free = list(connections)
    meter = Meter(server)
    await load.run(rate, seconds, (f"event-{i % names + 1}" for i in itertools.count()))
    async with asyncio.timeout(RESPONSE_TIMEOUT_SECONDS):
        while len(load.free) < OPEN_CONNECTIONS and not load.failed:
            await asyncio.sleep(0.01)
    figures = meter.read(len(load.hits))
    for connection in connections:
        connection.close()
    if load.failed:
        raise ResultMismatch(f"{server.name}: {load.failed}")
    _check_counts(server, before, await asyncio.to_thread(server.settled_counts), load.hits)
    times = [(hit.acknowledged - hit.due) * 1e3 for hit in load.hits]
    responses = {"answered": len(times) / seconds, "p50_ms": quantile(times, 0.5), "p99_ms": quantile(times, 0.99)}
    return load.hits, responses | figures


def _check_counts(server: Server, before: dict[str, int], after: dict[str, int], hits: list[Hit]) -> None:
    by_event: defaultdict[str, list[int]] = defaultdict(list)
    for hit in hits:
        by_event[hit.event].append(hit.count)
    for event, counts in by_event.items():
        first = before.get(event, 0) + 1
        if sorted(counts) != list(range(first, after[event] + 1)):
            raise ResultMismatch(
                f"{server.name}: {len(counts)} hits of {event}, counted from {first}, end at {after[event]}"
            )


async def seed(server: Server, names: int, times: int = 1) -> None:
    """Count each of so many event names `times` times, in batches."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        for _ in range(times):
            for first in range(1, names + 1, SEED_BATCH_NAMES):
                batch = {f"event-{i}": 1 for i in range(first, min(first + SEED_BATCH_NAMES, names + 1))}
                (await client.post("/events", content=msgspec.json.encode(batch))).raise_for_status()


async def add_alerts(server: Server, alerts: int) -> None:
    """Add alerts on events that are not counted."""
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60) as client:
        for i in range(alerts):
            alert = {"event": f"other-{i}", "when": {"total": 1000}, "url": "http://127.0.0.1:9/"}
            (await client.post("/alerts", json=alert)).raise_for_status()


async def read_pages(server: Server, delays: list[float]) -> None:
    """Read the leaderboard and a page of all event names in turn, on a schedule, until cancelled."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        page = first = f"/events?sort=-count&limit={PAGE_NAMES}"
        for i in itertools.count():
            began = time.perf_counter()
            response = await client.get(page if i % 2 else "/leaderboard")
            response.raise_for_status()
            delays.append(time.perf_counter() - began)
            if i % 2:
                page = response.links["next"]["url"] if "next" in response.links else first
            await asyncio.sleep(max(0, 1 / READS_PER_SECOND - (time.perf_counter() - began)))


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
