"""The scenarios. Each is a table of the report, and each of its cases is a row: a server and a measurement."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from bench.clients import connected_clients
from bench.kafka import records
from bench.load import ADMIN_KEY, Figures, Meter, add_alerts, open_loop_load, quantile, read_pages, seed, wrk
from bench.servers import UNLIMITED, Server

NAMES = 50
CONNECTIONS = 64
BATCH_CONNECTIONS = 8
MANY_NAMES = 100_000
CONVERGE_TIMEOUT_SECONDS = 60
UPDATES_PER_SECOND = 15

STORES = ("memory", "sqlite", "redis")
PEER = {"memory": "express memory", "sqlite": "express memory", "redis": "express redis"}
PEERS = ("express memory", "express redis")


@dataclass(frozen=True)
class Durations:
    """How long a measurement and the warm-up before it take, in seconds."""

    measured: float
    warm_up: float


Measure = Callable[[Server, Durations], Awaitable[Figures]]


@dataclass(frozen=True)
class Case:
    """A row of a table. `baselines` are the ids ("scenario/row") of the rows to divide its rate by."""

    server: str
    variant: str  # distinguishes it from other cases of the server
    measure: Measure
    baselines: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def row(self) -> str:
        return f"{self.server}, {self.variant}" if self.variant else self.server


@dataclass(frozen=True)
class Scenario:
    """A table of the report. A saturating load sends as fast as the server responds, so the server should be busy."""

    title: str
    text: str
    cases: list[Case]
    saturating: bool = True
    repeat: int = 1  # measurements of each case in a round


async def posts(
    server: Server, durations: Durations, *, kind: str = "post", names: int = NAMES, connections: int = CONNECTIONS
) -> Figures:
    if names > NAMES:
        await seed(server, names)
    figures = await wrk(server, kind, names, connections, durations.measured, durations.warm_up)
    return _without(figures, "ended", "rate" if kind == "batch" else "hits")


async def posts_with_alerts(server: Server, durations: Durations) -> Figures:
    await add_alerts(server, ALERTS)
    return await posts(server, durations)


async def gets(server: Server, durations: Durations) -> Figures:
    await wrk(server, "post", NAMES, CONNECTIONS, durations.warm_up, 0)
    figures = await wrk(server, "get", NAMES, CONNECTIONS, durations.measured, durations.warm_up)
    return _without(figures, "ended", "hits")


async def posts_with_clients(server: Server, durations: Durations, *, clients: int, namespace: str) -> Figures:
    async with connected_clients(server, clients, namespace) as connected:
        await wrk(server, "post", NAMES, CONNECTIONS, durations.warm_up, 0)
        await connected.wait_until_converged(CONVERGE_TIMEOUT_SECONDS)
        before, began = connected.updates(), time.perf_counter()
        figures = await wrk(server, "post", NAMES, CONNECTIONS, durations.measured, 0)
        updates = [after - earlier for after, earlier in zip(connected.updates(), before, strict=True)]
        seconds = time.perf_counter() - began
        converged = await connected.wait_until_converged(CONVERGE_TIMEOUT_SECONDS)
    if clients:
        figures |= {"updates": min(updates) / seconds, "converged_s": max(0.0, converged - figures["ended"])}
    return _without(figures, "ended", "hits")


def _without(figures: Figures, *names: str) -> Figures:
    return {name: figure for name, figure in figures.items() if name not in names}


async def latencies(server: Server, durations: Durations, *, rate: int, namespace: str, clients: int) -> Figures:
    async with connected_clients(server, clients, namespace) as connected:
        await open_loop_load(server, rate, durations.warm_up, NAMES)
        await connected.wait_until_converged(CONVERGE_TIMEOUT_SECONDS)
        connected.forget_arrivals()
        hits, figures = await open_loop_load(server, rate, durations.measured, NAMES)
        converged = await connected.wait_until_converged(CONVERGE_TIMEOUT_SECONDS)
    after_response, after_due = connected.latencies(hits)
    return figures | {
        "shown_p50_ms": quantile(after_response, 0.5) * 1e3,
        "shown_p99_ms": quantile(after_response, 0.99) * 1e3,
        "due_p99_ms": quantile(after_due, 0.99) * 1e3,
        "converged_s": max(0.0, converged - max(hit.acknowledged for hit in hits)),
    }


async def updates(server: Server, durations: Durations, *, channel: str, clients: int) -> Figures:
    """Measure what connections and updates cost, with hits so rare that each update can be sent at once."""
    connecting = Meter(server)
    async with connected_clients(server, clients, channel, recording=clients) as connected:
        figures = {"connect_us": connecting.read(clients)["cpu_us"]}
        await open_loop_load(server, UPDATES_PER_SECOND, durations.warm_up, 1)
        await connected.wait_until_converged(CONVERGE_TIMEOUT_SECONDS)
        connected.forget_arrivals()
        before = sum(connected.updates())
        hits, load = await open_loop_load(server, UPDATES_PER_SECOND, durations.measured, 1)
        await connected.wait_until_converged(CONVERGE_TIMEOUT_SECONDS)
    messages, to_all = sum(connected.updates()) - before, connected.latencies_to_all(hits)
    figures |= {"message_us": load["cpu_us"] * len(hits) / messages, "per_hit": messages / len(hits) / clients}
    figures |= {"all_p50_ms": quantile(to_all, 0.5) * 1e3, "all_p99_ms": quantile(to_all, 0.99) * 1e3}
    return figures | {name: load[name] for name in ("server", "load", "others")}


async def posts_while_reading(server: Server, durations: Durations) -> Figures:
    await seed(server, MANY_NAMES)
    await open_loop_load(server, 1000, durations.warm_up, NAMES)
    _, without_reads = await open_loop_load(server, 1000, durations.measured, NAMES)
    read: list[float] = []
    async with asyncio.TaskGroup() as tasks:
        reader = tasks.create_task(read_pages(server, read))
        _, figures = await open_loop_load(server, 1000, durations.measured, NAMES)
        reader.cancel()
    figures |= {f"without_reads_{name}": without_reads[name] for name in ("p50_ms", "p99_ms")}
    figures["read_p50_ms"] = quantile(read, 0.5) * 1e3
    return _without(figures, "cpu_us", "redis_us")  # which would include the reads


async def memory(server: Server, _durations: Durations) -> Figures:
    """Measure the growth of the process, Redis and the file per event name, from the first hundred names on."""
    await seed(server, 100, times=3)
    begin = _sizes(server)
    figures: Figures = {}
    for names in (10_000, MANY_NAMES):
        await seed(server, names, times=3)
        await asyncio.sleep(0.5)
        figures |= {f"{kind}_{names}": (size - begin[kind]) / (names - 100) for kind, size in _sizes(server).items()}
    return figures


async def waiting_records(server: Server, durations: Durations) -> Figures:
    return await records(server, durations.measured)


def _sizes(server: Server) -> dict[str, int]:
    sizes = {"rss": server.rss()}
    if server.redis:
        sizes["redis_b"] = server.redis.used_memory()
    if "sqlite" in server.name:
        sizes["file"] = sum(path.stat().st_size for path in server.directory.glob("tally.db*"))
    return sizes


def _with_dashboards(server: str, clients: int, namespace: str, *baselines: str) -> Case:
    variant = f"{clients:,} on {namespace}" if clients else "none"
    measure = partial(posts_with_clients, clients=clients, namespace=namespace)
    return Case(server, variant, measure, tuple(f"dashboards/{row}" for row in baselines))


def _latency(server: str, rate: int, namespace: str) -> Case:
    return Case(server, f"{rate:,} hits/s", partial(latencies, rate=rate, namespace=namespace, clients=200))


def _updates(server: str, channel: str) -> Case:
    return Case(server, channel, partial(updates, channel=channel, clients=1000))


ALERTS = 100  # the most that Tally keeps
ADMIN = {"TALLY_ADMIN_KEYS": ADMIN_KEY, "TALLY_ALERTS_ALLOW_PRIVATE": "true"}
SECOND_LIMIT = {"TALLY_WRITE_LIMIT": f"{UNLIMITED};1000000000000/minute"}

SCENARIOS: dict[str, Scenario] = {
    "post": Scenario(
        "Single POST",
        f"One hit per request, {NAMES} event names in turn, {CONNECTIONS} connections, no dashboards.",
        [
            *(
                Case(f"tally {store}", "", posts, (f"post/{PEER[store]}", "post/bare", "post/floor"))
                for store in STORES
            ),
            Case("express memory", "", posts),
            Case("express redis", "", posts),
            Case("naive memory", "", posts, ("post/express memory",)),
            Case("naive redis", "", posts, ("post/express redis",)),
            Case("webdis", "", partial(posts, kind="webdis"), ("post/express redis",)),
            Case("bare", "", posts, ("post/express memory", "post/floor")),
            Case("floor", "", posts, ("post/express memory",)),
        ],
    ),
    "get": Scenario(
        "Single GET",
        f"`GET /event/{{name}}` of {NAMES} event names in turn, {CONNECTIONS} connections.",
        [
            *(
                Case(f"tally {s}", "", gets, (f"get/{PEER[s]}", *(["get/tally memory"] * (s != "memory"))))
                for s in STORES
            ),
            *(Case(peer, "", gets) for peer in PEERS),
        ],
    ),
    "connections": Scenario(
        "Many connections",
        "Single POST over 512 connections.",
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
        "Single POST over more event names. All 100,000 names exist before the measurement starts. Each row is "
        "measured three times per round, because other programs on the machine change these figures as much as names "
        "do.",
        [
            Case(
                f"tally {store}",
                f"{names:,} names",
                partial(posts, names=names),
                () if names == 10 else (f"names/tally {store}, 10 names",),
            )
            for store in STORES
            for names in (10, MANY_NAMES, 1000)  # rows that are compared are measured one after the other
        ],
        repeat=3,
    ),
    "dashboards": Scenario(
        "With dashboards",
        "Single POST with connected clients: Tally's dashboards on `/live`, or plain Socket.IO clients on `/`. "
        "updates/s is that of the client with the fewest updates. An update on `/live` contains all changes of a "
        "commit.",
        [
            _with_dashboards("tally memory", 0, "/live"),
            _with_dashboards("tally memory", 200, "/live", "tally memory, none", "express memory, 200 on /"),
            _with_dashboards("tally memory", 1000, "/live", "tally memory, none", "express memory, 1,000 on /"),
            _with_dashboards("tally memory", 200, "/", "tally memory, none", "express memory, 200 on /"),
            _with_dashboards("tally sqlite", 200, "/live", "express memory, 200 on /"),
            _with_dashboards("tally redis", 200, "/live", "express redis, 200 on /"),
            _with_dashboards("express memory", 200, "/"),
            _with_dashboards("express memory", 1000, "/"),
            _with_dashboards("express redis", 200, "/"),
            _with_dashboards("naive memory", 200, "/", "express memory, 200 on /"),
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
        f"A mix of `POST` and `GET /event/{{name}}`, 90 % of one and 10 % of the other, {CONNECTIONS} connections.",
        [
            case
            for kind, mix in (("mostly-post", "90 % POST"), ("mostly-get", "90 % GET"))
            for case in (
                Case("tally memory", mix, partial(posts, kind=kind), (f"mixed/express memory, {mix}",)),
                Case("tally sqlite", mix, partial(posts, kind=kind), (f"mixed/express memory, {mix}",)),
                Case("express memory", mix, partial(posts, kind=kind)),
            )
        ],
    ),
    "reads": Scenario(
        "Large reads",
        "1,000 hits/s, first without reads, then with five reads per second: the leaderboard and pages of 1,000 of "
        "100,000 event names.",
        [Case(f"tally {store}", "", posts_while_reading) for store in STORES],
        saturating=False,
    ),
    "latency": Scenario(
        "End-to-end latency",
        "Hits at a fixed rate with 200 connected clients (Tally's on `/live`). *shown* is the time from the response "
        "until a client has the hit, or 0 if it had it before; it is measured on 20 of the clients. Express broadcasts "
        "each hit before it handles the next request. Its delay therefore shows up in *due to shown*, not in *shown*.",
        [
            _latency(server, rate, namespace)
            for rate in (100, 1000, 10_000)
            for server, namespace in (("tally memory", "/live"), ("express memory", "/"))
        ],
        saturating=False,
    ),
    "updates": Scenario(
        "One update to 1,000 clients",
        f"{UPDATES_PER_SECOND} hits/s of one event with 1,000 clients of one channel. *messages per hit* is below 1 if "
        "updates were merged. *to all* is the time from when a hit was due until the last client had it.",
        [
            *(_updates("tally memory", channel) for channel in ("/live", "/", "/stream", "/stream?event=event-1")),
            _updates("express memory", "/"),
        ],
        saturating=False,
    ),
    "many-dashboards": Scenario(
        "2,000 dashboards on one node",
        "1,000 hits/s with 2,000 dashboards. *converged after* is the time from the last response until all show its "
        "count.",
        [
            Case(f"tally {store}", "2,000", partial(latencies, rate=1000, namespace="/live", clients=2000))
            for store in ("memory", "sqlite")
        ],
        saturating=False,
    ),
    "memory": Scenario(
        "Memory",
        "Memory per event name, after three hits within two minutes. A name with hits in many minutes needs more, "
        "because each minute has its own count.",
        [Case(f"tally {store}", "", memory) for store in STORES],
        saturating=False,
    ),
    "features": Scenario(
        "Cost of each feature",
        "Single POST with one more feature. Counts per minute, hour and in total are always on. Alerts are on other "
        "events.",
        [
            *(
                case
                for s in STORES[::-1]  # memory is last, next to the rows that are compared with it
                for case in (
                    Case(
                        f"tally {s}", f"with {ALERTS} alerts", posts_with_alerts, (f"features/tally {s}, plain",), ADMIN
                    ),
                    Case(f"tally {s}", "plain", posts),
                )
            ),
            Case("tally memory", "with a body", partial(posts, kind="by"), ("features/tally memory, plain",)),
            Case(
                "tally memory", "with an idempotency key", partial(posts, kind="key"), ("features/tally memory, plain",)
            ),
            Case("tally memory", "with a second rate limit", posts, ("features/tally memory, plain",), SECOND_LIMIT),
            Case(
                "tally memory",
                "with a dashboard",
                partial(posts_with_clients, clients=1, namespace="/live"),
                ("features/tally memory, plain",),
            ),
            Case("tally redis", "with an idempotency key", partial(posts, kind="key"), ("post/tally redis",)),
        ],
    ),
    "kafka": Scenario(
        "Kafka in front of a store",
        "POSTs that are acknowledged once they are in Kafka and counted at the same time; the broker shares the core "
        "of the load. *records* are waiting records of 50 event names in 8 partitions, compared with a plain consumer "
        "that only counts them in a dict.",
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
