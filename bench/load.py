"""The load: wrk, which asks as fast as it is answered, hits at a chosen rate, readers; and whether it was counted."""

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
HITS = {"batch": 1000, "mostly-post": 0.9, "mostly-get": 0.1}  # in a request of this kind; in others 1
OPEN_CONNECTIONS = 256
ANSWER_SECONDS = 60  # the longest wait for what was sent at a chosen rate
SEED_NAMES = 5000  # in a batch
PAGE_NAMES = 1000
READS_PER_SECOND = 5

Figures = dict[str, float]

_COUNT = re.compile(rb'"count":(\d+)')
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class WrongError(Exception):
    """A server counted something else than it was told, or showed something else than it counted."""


class Meter:
    """The processor time that a server, its Redis and this load use from now on."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._began = self._now()

    def _now(self) -> tuple[float, float, float, float, float]:
        own = sum(use.ru_utime + use.ru_stime for use in map(getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN)))
        redis = self._server.redis.cpu_seconds() if self._server.redis else 0.0
        return time.perf_counter(), self._server.cpu_seconds(), core_seconds(), own, redis

    def read(self, hits: float) -> Figures:
        seconds, server, core, load, redis = (now - then for now, then in zip(self._now(), self._began, strict=True))
        figures = {"us": server / max(hits, 1) * 1e6, "server": server / seconds, "load": load / seconds}
        figures["others"] = max(0.0, core - server) / seconds
        if self._server.redis:
            figures |= {"redis_us": redis / max(hits, 1) * 1e6, "redis": redis / seconds}
        return figures


async def wrk(server: Server, kind: str, names: int, connections: int, seconds: float, warm: float) -> Figures:
    """Requests as fast as they are answered, after some to warm up; what they counted is checked."""
    if warm:
        await _wrk(server, kind, names, connections, warm)
    before = sum((await asyncio.to_thread(server.settled_counts)).values())
    meter = Meter(server)
    result = await _wrk(server, kind, names, connections, seconds)
    figures = meter.read(result["answers"] * max(1, HITS.get(kind, 1))) | {"ended": time.perf_counter()}
    counted = sum((await asyncio.to_thread(server.settled_counts)).values()) - before
    hits = result["answers"] * HITS.get(kind, 1)
    over = (connections + result["broken"]) * max(1, HITS.get(kind, 1))  # requests under way when wrk left
    under = connections if kind.startswith("mostly") else 0  # which of them were reads is not known
    if result["refused"] or not hits - under <= counted <= hits + over:
        raise WrongError(f"{server.name}: {hits:.0f} hits were answered, {counted} counted: {result}")
    rates = {"rate": result["answers"] / result["seconds"], "hits": hits / result["seconds"]}
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
    value: int  # the count in its answer
    due: float
    answered: float


class _Connection(asyncio.Protocol):
    """One connection, one hit at a time."""

    def __init__(self, offer: "_Offer") -> None:
        self._offer = offer
        self._data = b""
        self._under_way: tuple[str, float] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def send(self, event: str, due: float) -> None:
        self._under_way = event, due
        self._transport.write(b"POST /event/%b HTTP/1.1\r\nHost: bench\r\n\r\n" % event.encode())

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._data += data
        head, complete, body = self._data.partition(b"\r\n\r\n")
        if not complete or len(body) < int(_LENGTH.search(head)[1]):  # all servers tell it
            return
        count = _COUNT.search(body) if head.startswith(b"HTTP/1.1 200") else None
        if not count or not self._under_way:
            self._offer.failed = self._data.decode()
            return
        self._offer.hits.append(Hit(self._under_way[0], int(count[1]), self._under_way[1], now))
        self._data, self._under_way = b"", None
        self._offer.give(self)

    def connection_lost(self, _error: Exception | None) -> None:
        if self._under_way:
            self._offer.failed = f"no answer to {self._under_way[0]}"

    def close(self) -> None:
        self._transport.close()


class _Offer:
    """Hits that become due on a schedule, however long earlier ones take."""

    def __init__(self) -> None:
        self.hits: list[Hit] = []
        self.failed = ""
        self.free: list[_Connection] = []
        self.waiting: deque[tuple[str, float]] = deque()

    def give(self, connection: _Connection) -> None:
        if self.waiting:
            connection.send(*self.waiting.popleft())
        else:
            self.free.append(connection)

    async def run(self, rate: float, seconds: float, events: Iterator[str]) -> None:
        began = time.perf_counter()
        for i in range(round(rate * seconds)):
            due = began + i / rate
            if i % 100 == 0:
                await asyncio.sleep(0)  # also when late, or no answer would be read
            while time.perf_counter() < due:
                await asyncio.sleep(0.001)
            if time.perf_counter() > began + seconds + 1:
                break  # the load itself cannot keep up: the rate says so
            self.waiting.append((next(events), due))
            if self.free:
                self.free.pop().send(*self.waiting.popleft())
        self.waiting.clear()  # what the server did not get round to was never sent


async def offer(server: Server, rate: float, seconds: float, names: int) -> tuple[list[Hit], Figures]:
    """Hits at this rate, each answered; that the answers are each number once, and the last one kept, is checked."""
    before = await asyncio.to_thread(server.settled_counts)
    loop = asyncio.get_running_loop()
    offered = _Offer()
    connections = [
        (await loop.create_connection(lambda: _Connection(offered), "127.0.0.1", server.port))[1]
        for _ in range(OPEN_CONNECTIONS)
    ]
    offered.free = list(connections)
    meter = Meter(server)
    await offered.run(rate, seconds, (f"event-{i % names + 1}" for i in itertools.count()))
    async with asyncio.timeout(ANSWER_SECONDS):
        while len(offered.free) < OPEN_CONNECTIONS and not offered.failed:
            await asyncio.sleep(0.01)
    figures = meter.read(len(offered.hits))
    for connection in connections:
        connection.close()
    if offered.failed:
        raise WrongError(f"{server.name}: {offered.failed}")
    _check_answers(server, before, await asyncio.to_thread(server.settled_counts), offered.hits)
    times = [(hit.answered - hit.due) * 1e3 for hit in offered.hits]
    answers = {"answered": len(times) / seconds, "p50_ms": quantile(times, 0.5), "p99_ms": quantile(times, 0.99)}
    return offered.hits, answers | figures


def _check_answers(server: Server, before: dict[str, int], after: dict[str, int], hits: list[Hit]) -> None:
    answers: defaultdict[str, list[int]] = defaultdict(list)
    for hit in hits:
        answers[hit.event].append(hit.value)
    for event, counts in answers.items():
        first = before.get(event, 0) + 1
        if sorted(counts) != list(range(first, after[event] + 1)):
            raise WrongError(f"{server.name}: {len(counts)} hits of {event} from {first} on gave {after[event]}")


async def seed(server: Server, names: int, times: int = 1) -> None:
    """Hits of this many names, in batches."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        for _ in range(times):
            for first in range(1, names + 1, SEED_NAMES):
                batch = {f"event-{i}": 1 for i in range(first, min(first + SEED_NAMES, names + 1))}
                (await client.post("/events", content=msgspec.json.encode(batch))).raise_for_status()


async def read_pages(server: Server, delays: list[float]) -> None:
    """A leaderboard and a page of all names in turn, on a schedule, until cancelled."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        page = first = f"/events?sort=-count&limit={PAGE_NAMES}"
        for i in itertools.count():
            began = time.perf_counter()
            answer = await client.get(page if i % 2 else "/leaderboard")
            answer.raise_for_status()
            delays.append(time.perf_counter() - began)
            if i % 2:
                page = answer.links["next"]["url"] if "next" in answer.links else first
            await asyncio.sleep(max(0, 1 / READS_PER_SECOND - (time.perf_counter() - began)))


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
