"""Scenarios with heavy batches and heavy reads during the hits of others, and with many clients that poll."""

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from pathlib import Path

from tests.support.load import Connection, OpenLoopLoad
from tests.support.scenarios import (
    NEVER,
    Figures,
    compare_counts,
    memory_kb,
    node,
    redis,
    require_exact,
    store,
    under_load,
)
from tests.support.scenarios.clients import connected_clients
from tests.support.servers import Process, eventually
from tests.support.watchers import PollingWatcher, watching

BATCH = 10_000  # items, the largest batch
WAIT_SECONDS_MAX = 2.5
OFFLINE_ACKS = {"spooled", "memory"}
HEAVY_READS = ("/events?sort=-count", "/leaderboard?window=1h", "/leaderboard?window=total", "/series?points=1440")
CLIENT_KB_MAX = 300


async def heavy_batches(directory: Path, kind: str, batches: int, wait_max: float = WAIT_SECONDS_MAX) -> Figures:
    """A client sends batches of 10,000 hits with users and sessions, while others send single hits at a fixed rate.

    All hits are counted once, none of the others waits for more than 2.5 s, and a node on Redis never takes Redis for
    unreachable.
    """
    counted: Counter[str] = Counter()
    with store(directory, kind) as url, node(directory, url) as app:
        load = OpenLoopLoad(app.url, [f"event{i}" for i in range(10)], rate=200, connections=20)
        acks: Counter[str] = Counter()
        async with under_load(load):
            connection = Connection(app.url)
            for number in range(batches):
                items = [
                    {"event": f"batch{i % 50}", "user": f"u{number} {i}", "session": f"s{number} {i}"}
                    for i in range(BATCH)
                ]
                response = await connection.request("POST", "/events", json.dumps(items).encode())
                assert response.status == 200, response
                counted.update(item["event"] for item in items)
                acks[response.json["ack"]] += 1
            connection.close()
        expected = load.counts + counted
        figures = require_exact(compare_counts(expected, expected, app.get("/events")))
        audience = app.get("/audience")
    figures.details |= {"hits in batches": batches * BATCH, "hits of others": load.acknowledged}
    figures.details["longest wait of others, s"] = round(load.longest_seconds, 2)
    _require_served(figures, load, acks, wait_max)
    number = batches * BATCH
    figures.require(abs(audience["users"] - number) <= number * 5 * audience["error"], f"{audience['users']} users")
    return figures


def _require_served(figures: Figures, load: OpenLoopLoad, acks: Counter[str], wait_max: float) -> None:
    """Require that each hit was acknowledged by the store, and in time."""
    failed = load.outcomes["unknown"] + load.outcomes["rejected"]
    offline = sum((load.acks + acks)[ack] for ack in OFFLINE_ACKS)
    figures.require(not failed, f"{failed} hits were not acknowledged")
    figures.require(not offline, f"{offline} requests were spooled")
    figures.require(load.longest_seconds < wait_max, f"a hit waited for {load.longest_seconds:.2f} s")


async def heavy_reads(
    directory: Path, kind: str, names: int, reads: int, wait_max: float = WAIT_SECONDS_MAX
) -> Figures:
    """Eight clients read lists and leaderboards of all events, one after the other, while others send single hits.

    All hits are counted once, none waits for more than 2.5 s, and a node on Redis never takes Redis for unreachable.
    """
    expected = Counter({f"name {i}": 1 for i in range(names)})
    limit = str(names + 100)
    with store(directory, kind) as url, node(directory, url, TALLY_EVENTS_MAX=limit) as app:
        connection = Connection(app.url)
        for i in range(0, names, BATCH):
            part = {f"name {number}": 1 for number in range(i, min(names, i + BATCH))}
            assert (await connection.request("POST", "/events", json.dumps(part).encode())).status == 200
        connection.close()
        resident = memory_kb(app, "VmRSS")
        todo = iter(range(reads))

        async def read() -> None:
            reader = Connection(app.url)
            for _ in todo:
                await reader.fetch("GET", random.choice(HEAVY_READS))
            reader.close()

        load = OpenLoopLoad(app.url, [f"event{i}" for i in range(10)], rate=100, connections=10)
        async with under_load(load):
            began = time.monotonic()
            await asyncio.gather(*(read() for _ in range(8)))
            took = time.monotonic() - began
        expected += load.counts
        figures = require_exact(compare_counts(expected, expected, app.get("/events")))
        growth = (memory_kb(app, "VmHWM") - resident) / 1000
    figures.details |= {"names": names, "reads": reads, "reads/s": round(reads / took, 1)}
    figures.details["longest wait of a hit, s"] = round(load.longest_seconds, 2)
    figures.details["memory, MB"] = round(growth, 1)
    _require_served(figures, load, Counter(), wait_max)
    return figures


async def polling_clients(directory: Path, clients: int, seconds: float, within_seconds: float = 20) -> Figures:
    """Dashboards and plain clients poll while hits of 300 events arrive, and as many sessions never poll.

    No count ever decreases, within 2 s of the last hit every client that polls shows the acknowledged counts, and each
    client needs at most 300 KB.
    """
    names = [f"name {i}" for i in range(300)]
    expected: Counter[str] = Counter()
    stop = asyncio.Event()
    with redis(directory, *NEVER) as server, node(directory, server.url) as app:
        resident = memory_kb(app, "VmRSS")
        async with watching(app.url, live=clients // 2, plain=clients // 2, kind=PollingWatcher) as watchers:
            await asyncio.gather(*(_begin_session(app) for _ in range(clients)))
            connected = connected_clients(app)

            async def write() -> None:
                connection = Connection(app.url)
                while not stop.is_set():
                    counts = Counter(random.choices(names, k=100))
                    response = await connection.request("POST", "/events", json.dumps(counts).encode())
                    assert response.status == 200, response
                    expected.update(counts)
                    await asyncio.sleep(0.05)
                connection.close()

            writing = asyncio.create_task(write())
            await asyncio.wait([writing], timeout=seconds)
            stop.set()
            await writing
            began = time.monotonic()
            values = Counter(app.get("/events"))
            with contextlib.suppress(AssertionError):
                await eventually(lambda: all(watcher.counts == values for watcher in watchers), 60)
            took = time.monotonic() - began
            behind = sum(watcher.counts != values for watcher in watchers)
        each = (memory_kb(app, "VmHWM") - resident) / (2 * clients)
        figures = require_exact(compare_counts(expected, expected, values))
    wrong = [text for watcher in watchers for text in watcher.wrong]
    figures.details |= {"clients": connected, "messages": sum(watcher.message_count for watcher in watchers)}
    figures.details |= {"converged after, s": round(took, 2), "KB per client": round(each)}
    figures.require(connected == 2 * clients, f"{connected} of {2 * clients} clients are connected")
    figures.require(not wrong, f"counts decreased: {wrong[:2]}")
    figures.require(not behind and took < within_seconds, f"{behind} clients were behind after {took:.2f} s")
    figures.require(each < CLIENT_KB_MAX, f"a client needs {each:.0f} KB")
    return figures


async def _begin_session(app: Process) -> None:
    """Connect a dashboard that never polls."""
    connection = Connection(app.url)
    opened = json.loads((await connection.fetch("GET", "/socket.io/?EIO=4&transport=polling"))[1:])
    await connection.fetch("POST", f"/socket.io/?EIO=4&transport=polling&sid={opened['sid']}", b"40/live,")
    connection.close()
