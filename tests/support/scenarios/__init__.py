"""The accuracy matrix: each fault is a scenario, written once. A test runs it small, `make accuracy` in its full size.

A scenario starts what it needs in a directory, and gives what it measured and which promises were broken.
"""

import asyncio
import contextlib
import re
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.support.history_checker import Add, History
from tests.support.load import Load, Offer
from tests.support.redis_servers import RedisServer
from tests.support.servers import Process, eventually

UNLIMITED = {"TALLY_WRITE_LIMIT": "1000000/second", "TALLY_READ_LIMIT": "1000000/second"}
UNLIMITED |= {"TALLY_KEYS_MAX": "100000000"}  # of which an address has a tenth
ALWAYS = ("--appendonly", "yes", "--appendfsync", "always")
EVERYSEC = ("--appendonly", "yes", "--appendfsync", "everysec")
NEVER = ("--appendonly", "no")


@dataclass
class Figures:
    """What was measured, in hits."""

    acknowledged: int
    unknown: int
    counted: int
    lost: int  # acknowledged, and not counted
    doubled: int  # counted, and neither acknowledged nor unknown
    also: dict[str, object] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)  # promises

    def promise(self, kept: object, what: str) -> None:
        if not kept:
            self.broken.append(what)


def exact(figures: Figures) -> Figures:
    figures.promise(not figures.lost, f"no acknowledged hit is lost, and {figures.lost} were")
    figures.promise(not figures.doubled, f"no hit is counted twice, and {figures.doubled} were")
    return figures


def compared(least: Counter[str], most: Counter[str], values: Mapping[str, int]) -> Figures:
    """What each event has, with what was acknowledged of it, and with what may be."""
    counted = Counter(values)
    lost, doubled = (least - counted).total(), (counted - most).total()
    return Figures(least.total(), (most - least).total(), counted.total(), lost, doubled)


def judged(adds: list[Add], values: Mapping[str, int]) -> Figures:
    least, most = Counter[str](), Counter[str]()
    for add in adds:
        least[add.event] += add.by * (add.outcome == "acknowledged")
        most[add.event] += add.by * (add.outcome != "refused")
    return compared(least, most, values)


def read_rightly(figures: Figures, *histories: History) -> None:
    reads, wrong = sum(len(h.reads) for h in histories), [w for h in histories for w in h.wrong_reads()]
    figures.also["reads"] = reads
    figures.promise(not wrong, f"every read lies within its bounds, and {len(wrong)} of {reads} did not: {wrong[:2]}")


@contextmanager
def redis(directory: Path, *options: str) -> Iterator[RedisServer]:
    server = RedisServer(directory)
    try:
        server.start(*options)
        yield server
    finally:
        server.stop()


@contextmanager
def store(directory: Path, kind: str) -> Iterator[str]:
    """The URL of an empty store."""
    if kind != "redis":
        yield {"sqlite": f"sqlite:///{directory}/tally.db", "memory": "memory://"}[kind]
        return
    with redis(directory, *ALWAYS) as server:
        yield server.url


@contextmanager
def node(directory: Path, url: str, *command: str, **environment: str) -> Iterator[Process]:
    app = Process(directory, *command, TALLY_STORE=url, **(UNLIMITED | environment))
    try:
        yield app.start()
    finally:
        app.kill()


@contextmanager
def nodes(directory: Path, url: str, number: int, **environment: str) -> Iterator[list[Process]]:
    with contextlib.ExitStack() as started:
        yield [started.enter_context(node(directory, url, **environment)) for _ in range(number)]


def places(directory: Path) -> Callable[[str], Path]:
    return lambda name: Path(tempfile.mkdtemp(prefix=name[:1], dir=directory))


@asynccontextmanager
async def send_nowait(work: Coroutine[None, None, None]) -> AsyncIterator[asyncio.Task[None]]:
    """Run it beside the block, and let it not outlive a block that fails."""
    running = asyncio.create_task(work)
    try:
        yield running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def loaded(load: Load | Offer) -> AsyncIterator[Callable[..., Coroutine[None, None, None]]]:
    """Under this load; what it gives waits for as many more 200s. In the end those under way are waited for."""
    async with send_nowait(load.run()) as running:

        async def go_on(more: int) -> None:
            enough = load.acknowledged + more
            await eventually(lambda: running.done() or load.acknowledged >= enough, 120)

        yield go_on
        load.stop.set()
        await running


async def healthy(*apps: Process) -> None:
    async def ok() -> bool:
        states = await asyncio.gather(*(asyncio.to_thread(app.get, "/health") for app in apps))
        well = [all("has lost" in reason for reason in state["reasons"]) for state in states]  # which it says for good
        return all(well) and all(state["nodes"] == len(apps) for state in states)

    await eventually(ok, 60)


def in_redis(server: RedisServer) -> dict[str, int]:
    """Today's counts as they stand in Redis, whoever put them there."""
    counts: Counter[str] = Counter()
    with server.client() as client:
        for key in client.scan_iter("tally:*"):
            if re.search(r"\}:day:\d+$", key):
                counts.update({event: int(count) for event, count in client.hgetall(key).items()})
    del counts[""]  # all of them together
    return dict(counts)


def memory_kb(app: Process, what: str) -> int:
    return int(re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{app.pid}/status").read_text())[1])


def metric(app: Process, name: str) -> float:
    metrics = httpx.get(f"{app.url}/metrics").text
    return float(re.search(rf"^{name} (\S+)", metrics, re.MULTILINE)[1])
