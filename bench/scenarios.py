"""What is measured: scenarios of cases, each a server and what is asked of it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from bench.clients import swarm
from bench.kafka import records
from bench.load import Figures, offer, quantile, read_pages, seed, wrk
from bench.servers import UNLIMITED, Server

NAMES = 50
CONNECTIONS = 64
BATCH_CONNECTIONS = 8
MANY_NAMES = 100_000
AGREE_SECONDS = 60  # the longest wait for pages to show the same numbers

STORES = ("memory", "sqlite", "redis")
PEER = {"memory": "express memory", "sqlite": "express memory", "redis": "express redis"}
PEERS = ("express memory", "express redis")


@dataclass(frozen=True)
class Pace:
    seconds: float  # of each measurement
    warm: float  # before it


Measure = Callable[[Server, Pace], Awaitable[Figures]]


@dataclass(frozen=True)
class Case:
    server: str
    what: str  # distinguishes it from other cases of the server
    measure: Measure
    beside: tuple[str, ...] = ()  # "scenario/row" of those to divide its rate by
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def row(self) -> str:
        return f"{self.server}, {self.what}" if self.what else self.server


@dataclass(frozen=True)
class Scenario:
    title: str
    text: str
    cases: list[Case]
    saturating: bool = True  # the load asks as fast as it is answered, so the server should be busy
    times: int = 1  # it is measured in each round


async def posts(
    server: Server, pace: Pace, *, kind: str = "post", names: int = NAMES, connections: int = CONNECTIONS
) -> Figures:
    if names > NAMES:
        await seed(server, names)
    figures = await wrk(server, kind, names, connections, pace.seconds, pace.warm)
    return _without(figures, "ended", "rate" if kind == "batch" else "hits")


async def posts_with_clients(server: Server, pace: Pace, *, clients: int, namespace: str) -> Figures:
    async with swarm(server, clients, namespace) as pages:
        await wrk(server, "post", NAMES, CONNECTIONS, pace.warm, 0)
        await pages.agree(AGREE_SECONDS)
        before, began = pages.updates(), time.perf_counter()
        figures = await wrk(server, "post", NAMES, CONNECTIONS, pace.seconds, 0)
        updates = [now - then for now, then in zip(pages.updates(), before, strict=True)]
        seconds = time.perf_counter() - began
        agreed = await pages.agree(AGREE_SECONDS)
    if clients:
        figures |= {"updates": min(updates) / seconds, "same_s": max(0.0, agreed - figures["ended"])}
    return _without(figures, "ended", "hits")


def _without(figures: Figures, *names: str) -> Figures:
    return {name: figure for name, figure in figures.items() if name not in names}


async def delays(server: Server, pace: Pace, *, rate: int, namespace: str, clients: int) -> Figures:
    async with swarm(server, clients, namespace) as pages:
        await offer(server, rate, pace.warm, NAMES)
        await pages.agree(AGREE_SECONDS)
        pages.forget_arrivals()
        hits, figures = await offer(server, rate, pace.seconds, NAMES)
        agreed = await pages.agree(AGREE_SECONDS)
    after_answer, after_due = pages.delays(hits)
    return figures | {
        "shown_p50_ms": quantile(after_answer, 0.5) * 1e3,
        "shown_p99_ms": quantile(after_answer, 0.99) * 1e3,
        "due_p99_ms": quantile(after_due, 0.99) * 1e3,
        "same_s": max(0.0, agreed - max(hit.answered for hit in hits)),
    }


async def posts_while_reading(server: Server, pace: Pace) -> Figures:
    await seed(server, MANY_NAMES)
    await offer(server, 1000, pace.warm, NAMES)
    _, alone = await offer(server, 1000, pace.seconds, NAMES)
    read: list[float] = []
    async with asyncio.TaskGroup() as tasks:
        reader = tasks.create_task(read_pages(server, read))
        _, figures = await offer(server, 1000, pace.seconds, NAMES)
        reader.cancel()
    figures |= {"alone_p50_ms": alone["p50_ms"], "alone_p99_ms": alone["p99_ms"]}
    figures["read_p50_ms"] = quantile(read, 0.5) * 1e3
    return _without(figures, "us", "redis_us")  # which would be of more than the hits


async def memory(server: Server, _pace: Pace) -> Figures:
    """What a name costs: what the process, Redis and the file grow by from the first hundred names on."""
    await seed(server, 100, times=3)
    begin = _sizes(server)
    figures: Figures = {}
    for names in (10_000, MANY_NAMES):
        await seed(server, names, times=3)
        await asyncio.sleep(0.5)
        figures |= {f"{what}_{names}": (size - begin[what]) / (names - 100) for what, size in _sizes(server).items()}
    return figures


async def waiting_records(server: Server, pace: Pace) -> Figures:
    return await records(server, pace.seconds)


def _sizes(server: Server) -> dict[str, int]:
    sizes = {"rss": server.rss()}
    if server.redis:
        sizes["redis_b"] = server.redis.used_memory()
    if "sqlite" in server.name:
        sizes["file"] = sum(path.stat().st_size for path in server.directory.glob("tally.db*"))
    return sizes


def _watched(server: str, clients: int, namespace: str, *beside: str) -> Case:
    what = f"{clients:,} on {namespace}" if clients else "nobody"
    measure = partial(posts_with_clients, clients=clients, namespace=namespace)
    return Case(server, what, measure, tuple(f"dashboards/{row}" for row in beside))


def _delay(server: str, rate: int, namespace: str) -> Case:
    return Case(server, f"{rate:,} a second", partial(delays, rate=rate, namespace=namespace, clients=200))


ANOTHER_LIMIT = {"TALLY_WRITE_LIMIT": f"{UNLIMITED};1000000000000/minute"}

SCENARIOS: dict[str, Scenario] = {
    "post": Scenario(
        "Bare POST",
        f"One hit a request, {NAMES} names in turn, {CONNECTIONS} connections, nobody watching.",
        [
            *(Case(f"tally {store}", "", posts, (f"post/{PEER[store]}", "post/bare")) for store in STORES),
            Case("express memory", "", posts),
            Case("express redis", "", posts),
            Case("naive memory", "", posts, ("post/express memory",)),
            Case("naive redis", "", posts, ("post/express redis",)),
            Case("webdis", "", partial(posts, kind="webdis"), ("post/express redis",)),
            Case("bare", "", posts, ("post/express memory",)),
        ],
    ),
    "connections": Scenario(
        "Many connections",
        "The same from 512 connections.",
        [
            *(
                Case(
                    f"tally {s}",
                    "512",
                    partial(posts, connections=512),
                    (f"connections/{PEER[s]}, 512", f"post/tally {s}"),
                )
                for s in STORES
            ),
            *(Case(s, "512", partial(posts, connections=512), (f"post/{s}",)) for s in PEERS),
        ],
    ),
    "names": Scenario(
        "Many names",
        "The same over more and more names. With 100,000 they were all counted once before. Each is measured three "
        "times in a round, since neighbours on the same machine change these figures by as much as names do.",
        [
            Case(
                f"tally {store}",
                f"{names:,} names",
                partial(posts, names=names),
                () if names == 10 else (f"names/tally {store}, 10 names",),
            )
            for store in STORES
            for names in (10, MANY_NAMES, 1000)  # the two that are compared one after the other
        ],
        times=3,
    ),
    "dashboards": Scenario(
        "With dashboards",
        "The same while pages are connected: Tally's own dashboard on `/live`, or plain Socket.IO clients on `/`. The "
        "updates are those of the client that got the fewest; one on `/live` holds all that a commit changed.",
        [
            _watched("tally memory", 0, "/live"),
            _watched("tally memory", 200, "/live", "tally memory, nobody", "express memory, 200 on /"),
            _watched("tally memory", 1000, "/live", "tally memory, nobody", "express memory, 1,000 on /"),
            _watched("tally memory", 200, "/", "tally memory, nobody", "express memory, 200 on /"),
            _watched("tally sqlite", 200, "/live", "express memory, 200 on /"),
            _watched("tally redis", 200, "/live", "express redis, 200 on /"),
            _watched("express memory", 200, "/"),
            _watched("express memory", 1000, "/"),
            _watched("express redis", 200, "/"),
            _watched("naive memory", 200, "/", "express memory, 200 on /"),
        ],
    ),
    "batch": Scenario(
        "Batches",
        f"`POST /events` with 1,000 objects, {BATCH_CONNECTIONS} connections.",
        [
            Case(
                f"tally {store}",
                "",
                partial(posts, kind="batch", names=1000, connections=BATCH_CONNECTIONS),
                (f"post/tally {store}",),
            )
            for store in STORES
        ],
    ),
    "mixed": Scenario(
        "Reads and writes",
        f"`POST` and `GET /event/{{name}}`, nine of one and one of the other, {CONNECTIONS} connections.",
        [
            case
            for kind, what in (("mostly-post", "90 % POST"), ("mostly-get", "90 % GET"))
            for case in (
                Case("tally memory", what, partial(posts, kind=kind), (f"mixed/express memory, {what}",)),
                Case("tally sqlite", what, partial(posts, kind=kind), (f"mixed/express memory, {what}",)),
                Case("express memory", what, partial(posts, kind=kind)),
            )
        ],
    ),
    "reads": Scenario(
        "Large reads",
        "1,000 hits a second are due, alone and then while the leaderboard and pages of 1,000 of 100,000 names are "
        "read, five a second.",
        [Case(f"tally {store}", "", posts_while_reading) for store in STORES],
        saturating=False,
    ),
    "delay": Scenario(
        "From a hit to every page",
        "Hits are due at a rate, however long earlier ones take, and 200 pages are connected (Tally's on `/live`): the "
        "time from an answer until a page has shown that hit, 0 where it did before, on twenty pages spread over them. "
        "Express shows a hit in the turn that answers it, and others wait, which is seen from when a hit was due.",
        [
            _delay(server, rate, namespace)
            for rate in (100, 1000, 10_000)
            for server, namespace in (("tally memory", "/live"), ("express memory", "/"))
        ],
        saturating=False,
    ),
    "crowd": Scenario(
        "A crowd on one node",
        "2,000 dashboards, 1,000 hits a second due: how long after the last answer all show the same, final numbers.",
        [
            Case(f"tally {store}", "2,000", partial(delays, rate=1000, namespace="/live", clients=2000))
            for store in ("memory", "sqlite")
        ],
        saturating=False,
    ),
    "memory": Scenario(
        "Memory",
        "What a name costs that was hit three times within a minute or two. A name that is hit in many minutes costs "
        "more: each minute keeps its own count.",
        [Case(f"tally {store}", "", memory) for store in STORES],
        saturating=False,
    ),
    "features": Scenario(
        "What each feature costs",
        "The bare POST with one thing more. The minutes, hours and totals of a hit cannot be switched off.",
        [
            Case("tally memory", "bare", posts),
            Case("tally memory", "a body", partial(posts, kind="by"), ("features/tally memory, bare",)),
            Case("tally memory", "a key", partial(posts, kind="key"), ("features/tally memory, bare",)),
            Case("tally memory", "a second limit", posts, ("features/tally memory, bare",), ANOTHER_LIMIT),
            Case(
                "tally memory",
                "a dashboard",
                partial(posts_with_clients, clients=1, namespace="/live"),
                ("features/tally memory, bare",),
            ),
            Case("tally redis", "a key", partial(posts, kind="key"), ("post/tally redis",)),
        ],
    ),
    "log": Scenario(
        "Kafka in front",
        "POSTs that are answered once they are in Kafka, whose one broker has the load's core, and are counted from "
        "there at the same time; and records of 50 names in 8 partitions that wait to be counted, beside a consumer "
        "that counts them in a dict and does nothing else.",
        [
            *(Case(f"kafka {store}", "POST", posts, (f"post/tally {store}",)) for store in STORES),
            Case(
                "kafka memory",
                "batches",
                partial(posts, kind="batch", names=1000, connections=BATCH_CONNECTIONS),
                ("batch/tally memory",),
            ),
            *(Case(f"kafka {store}", "records", waiting_records) for store in STORES),
        ],
    ),
}
