"""The accuracy scenarios. Tests run them in a small size, and `make accuracy` in full size.

A scenario is a function that injects a fault, compares the counts with the responses to its clients, and returns
Figures with the violated guarantees. It starts its servers in a directory that its caller provides.
"""

import asyncio
import contextlib
import re
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from app.check import check_copy, check_store
from app.settings import Settings
from app.stores import create_store
from tests.support.history_checker import Add, History
from tests.support.load import Load, OpenLoopLoad
from tests.support.redis_servers import RedisServer
from tests.support.servers import Process, eventually

UNLIMITED = {"TALLY_WRITE_LIMIT": "1000000/second", "TALLY_READ_LIMIT": "1000000/second"}
UNLIMITED |= {"TALLY_KEYS_MAX": "100000000"}  # one address may use a tenth of them
ALWAYS = ("--appendonly", "yes", "--appendfsync", "always")
EVERYSEC = ("--appendonly", "yes", "--appendfsync", "everysec")
NEVER = ("--appendonly", "no")


@dataclass
class Figures:
    """The measured hits, further details, and descriptions of the violated guarantees."""

    acknowledged: int
    unknown: int
    counted: int
    lost: int  # acknowledged, but not counted
    doubled: int  # counted more often than acknowledged or unknown
    details: dict[str, object] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def require(self, holds: object, violation: str) -> None:
        """Record a violation unless a guarantee holds."""
        if not holds:
            self.violations.append(violation)


def require_exact(figures: Figures) -> Figures:
    """Require that no hit is lost or counted twice."""
    figures.require(not figures.lost, f"{figures.lost} acknowledged hits were lost")
    figures.require(not figures.doubled, f"{figures.doubled} hits were counted twice")
    return figures


def compare_counts(lower: Counter[str], upper: Counter[str], values: Mapping[str, int]) -> Figures:
    """Compare the count of each event with its bounds: the acknowledged hits, and these with the unknown ones."""
    counted = Counter(values)
    lost, doubled = (lower - counted).total(), (counted - upper).total()
    return Figures(lower.total(), (upper - lower).total(), counted.total(), lost, doubled)


def compare_with_history(adds: list[Add], values: Mapping[str, int]) -> Figures:
    """Compare the count of each event with the outcomes of its hits."""
    lower, upper = Counter[str](), Counter[str]()
    for add in adds:
        lower[add.event] += add.by * (add.outcome == "acknowledged")
        upper[add.event] += add.by * (add.outcome != "rejected")
    return compare_counts(lower, upper, values)


async def require_consistent(figures: Figures, directory: Path, url: str, at: float | None = None) -> None:
    """Require that `tally check` finds nothing at this UTC second, or now. No process has a SQLite file open."""
    settings = Settings(TALLY_STORE=url, spool=str(directory / "unused"))
    if settings.store_kind == "sqlite":
        found = await check_copy(settings.sqlite_file, settings, at or time.time())
    else:
        store = create_store(settings)
        await store.open()
        try:
            found = await check_store(store, settings, at or time.time())
        finally:
            await store.close()
    figures.require(not found, f"the check found {len(found)} differences: {found[:3]}")


def check_reads(figures: Figures, *histories: History) -> None:
    """Require that each read lies within its bounds."""
    reads, wrong = sum(len(h.reads) for h in histories), [w for h in histories for w in h.wrong_reads()]
    figures.details["reads"] = reads
    figures.require(not wrong, f"{len(wrong)} of {reads} reads are outside their bounds: {wrong[:2]}")


@contextmanager
def redis(directory: Path, *options: str) -> Iterator[RedisServer]:
    """Run a Redis server with these options."""
    server = RedisServer(directory)
    try:
        server.start(*options)
        yield server
    finally:
        server.stop()


@contextmanager
def store(directory: Path, kind: str) -> Iterator[str]:
    """Yield the URL of an empty store."""
    if kind != "redis":
        yield {"sqlite": f"sqlite:///{directory}/tally.db", "memory": "memory://"}[kind]
        return
    with redis(directory, *ALWAYS) as server:
        yield server.url


@contextmanager
def node(directory: Path, url: str, *command: str, **environment: str) -> Iterator[Process]:
    """Run a node without rate limits on this store."""
    app = Process(directory, *command, TALLY_STORE=url, **(UNLIMITED | environment))
    try:
        yield app.start()
    finally:
        app.kill()


@contextmanager
def nodes(directory: Path, url: str, number: int, **environment: str) -> Iterator[list[Process]]:
    """Run several nodes without rate limits on this store."""
    with contextlib.ExitStack() as started:
        yield [started.enter_context(node(directory, url, **environment)) for _ in range(number)]


def directories(directory: Path) -> Callable[[str], Path]:
    """Return a function that creates new directories with short names in this one."""
    return lambda name: Path(tempfile.mkdtemp(prefix=name[:1], dir=directory))


@asynccontextmanager
async def in_background(work: Coroutine[None, None, None]) -> AsyncIterator[asyncio.Task[None]]:
    """Run a coroutine during the block, and cancel it at the end of the block."""
    running = asyncio.create_task(work)
    try:
        yield running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def under_load(load: Load | OpenLoopLoad) -> AsyncIterator[Callable[..., Coroutine[None, None, None]]]:
    """Run a load during the block, and wait for its pending responses at the end.

    Yields a function that waits for so many further acknowledged hits.
    """
    async with in_background(load.run()) as running:

        async def wait_for_hits(more: int) -> None:
            target = load.acknowledged + more
            await eventually(lambda: running.done() or load.acknowledged >= target, 120)

        yield wait_for_hits
        load.stop.set()
        await running


async def wait_until_healthy(*apps: Process) -> None:
    """Wait until each node reports that it is healthy and sees all nodes. A reported data loss is permanent."""

    async def ok() -> bool:
        states = await asyncio.gather(*(asyncio.to_thread(app.get, "/health") for app in apps))
        healthy = [all("has lost" in reason for reason in state["reasons"]) for state in states]
        return all(healthy) and all(state["nodes"] == len(apps) for state in states)

    await eventually(ok, 60)


def counts_in_redis(server: RedisServer) -> dict[str, int]:
    """Read today's counts from the keys in Redis."""
    counts: Counter[str] = Counter()
    with server.client() as client:
        for key in client.scan_iter("tally:*"):
            if re.search(r"\}:day:\d+$", key):
                counts.update({event: int(count) for event, count in client.hgetall(key).items()})
    del counts[""]  # the sum of all events
    return dict(counts)


def memory_kb(app: Process, field: str) -> int:
    """Return a field of the node's /proc status, such as VmRSS, in kB."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{app.pid}/status").read_text())[1])


def metric(app: Process, name: str) -> float:
    metrics = httpx.get(f"{app.url}/metrics").text
    return float(re.search(rf"^{name} (\S+)", metrics, re.MULTILINE)[1])
