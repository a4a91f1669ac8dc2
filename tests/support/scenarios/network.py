"""Scenarios with network faults, with an unreachable Redis, and with concurrent duplicate requests."""

import asyncio
import os
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.fault_proxy import Fault, FaultProxy, Kind
from tests.support.load import Connection, Load, OpenLoopLoad, read_all
from tests.support.redis_servers import RedisServer
from tests.support.scenarios import (
    ALWAYS,
    NEVER,
    Figures,
    check_reads,
    compare_counts,
    compare_with_history,
    counts_in_redis,
    in_background,
    memory_kb,
    node,
    nodes,
    redis,
    require_exact,
    under_load,
    wait_until_healthy,
)
from tests.support.servers import Process, eventually

RESPONSE_SECONDS_MAX = 2.5
GROWTH_KB_MAX = 50_000
REST_SECONDS = 0.02  # leaves the node CPU time to reconnect to Redis


@dataclass
class Scene:
    """A node under load, with a fault proxy between it and Redis."""

    proxy: FaultProxy
    app: Process
    load: Load
    redis: RedisServer
    running: asyncio.Task[None]

    async def wait_until(self, done: Callable[[], bool], seconds: float = 120) -> None:
        """Wait for a condition, or for the end of a load that failed."""
        await eventually(lambda: self.running.done() or done(), seconds)

    async def inject(self, kind: Kind, times: int) -> Fault:
        """Inject a fault so many times: each time after the node has reconnected, and sometimes twice in a row."""
        fault = self.proxy.inject(kind, remaining=1)

        def again(ack: str, sent: float) -> None:
            if ack == "redis" and sent > fault.matched_at:
                fault.remaining = 1 if random.random() < 0.99 else 2

        self.load.on_ack = again
        await self.wait_until(lambda: fault.injected >= times, 60 + times)
        return fault

    async def end(self) -> Figures:
        """Repair the network, wait for 200 more hits, and compare all counts."""
        self.proxy.inject("pass")
        target = self.load.acks["redis"] + 200
        await self.wait_until(lambda: self.load.acks["redis"] >= target)
        self.load.stop.set()
        await self.running
        await wait_until_healthy(self.app)
        values = await read_all(self.load, self.app)
        figures = require_exact(compare_with_history(self.load.history.adds, values))
        check_reads(figures, self.load.history)
        figures.details["spooled"] = self.load.acks["spooled"]
        figures.require(self.load.problems == [], f"hits got error responses: {self.load.problems[:2]}")
        figures.require(counts_in_redis(self.redis) == values, "Redis and the node have different counts")
        return figures


@asynccontextmanager
async def scene(directory: Path) -> AsyncIterator[Scene]:
    """Start a node, its Redis, a fault proxy and a load."""
    with redis(directory, *NEVER) as server:
        async with FaultProxy(server.socket) as proxy:
            with node(directory, proxy.url) as app:
                load = Load(app.url, REST_SECONDS)
                async with in_background(load.run()) as running:
                    yield Scene(proxy, app, load, server, running)


async def network_faults(directory: Path, kind: Kind, times: int) -> Figures:
    """Connections between a node and Redis fail many times.

    `cut after` loses the response of Redis; `cut before` and `reset` lose the request; `freeze` holds the request and
    sends it when its client no longer waits. Each hit is counted once: hits with an Idempotency-Key are exact, the
    others within their bounds.
    """
    async with scene(directory) as current:
        fault = await current.inject(kind, times)
        figures = await current.end()
        if kind == "cut after":
            check_reads(figures, current.load.history, current.load.stale)
        figures.details["faults"] = fault.injected
        return figures


async def redis_offline(directory: Path, how: str, rate: int, seconds: float) -> Figures:
    """Redis is frozen or down for some seconds, under a load at a fixed rate.

    No hit is lost, counted twice or left unknown, each gets its response within 2.5 s, and the node's memory stays
    stable.
    """
    with redis(directory, *ALWAYS) as server, node(directory, server.url) as app:
        load = OpenLoopLoad(app.url, [f"event{i}" for i in range(10)], rate, connections=100)
        async with under_load(load) as wait_for_hits:
            await wait_for_hits(rate)
            resident = memory_kb(app, "VmRSS")
            if how == "frozen":
                os.kill(server.process.pid, signal.SIGSTOP)
            else:
                server.stop()
            await asyncio.sleep(seconds)  # the duration of the outage
            if how == "frozen":
                os.kill(server.process.pid, signal.SIGCONT)
            else:
                await asyncio.to_thread(server.start, *ALWAYS)
            started = time.monotonic()
            await wait_until_healthy(app)
            recovery_seconds = time.monotonic() - started
        figures = require_exact(compare_counts(load.counts, load.counts, await asyncio.to_thread(app.get, "/events")))
        figures.unknown, growth = load.outcomes["unknown"], memory_kb(app, "VmHWM") - resident
        figures.require(counts_in_redis(server) == load.counts, "Redis has other counts than the acknowledged hits")
    figures.details |= {"spooled": load.acks["spooled"], "recovered after, s": round(recovery_seconds, 2)}
    figures.details |= {"longest wait, s": round(load.longest_seconds, 2), "memory, MB": round(growth / 1000, 1)}
    figures.require(not figures.unknown, f"{figures.unknown} hits are left unknown")
    figures.require(load.longest_seconds < RESPONSE_SECONDS_MAX, f"a hit waited for {load.longest_seconds:.2f} s")
    figures.require(growth < GROWTH_KB_MAX, f"memory grew by {growth} kB")
    return figures


async def duplicate_requests(directory: Path, keys: int, copies: int) -> Figures:
    """Hits with the same Idempotency-Key are sent at the same time to three nodes on one Redis.

    Each key is counted once and gets the same response each time. The same key with another body is rejected with a
    422.
    """
    with redis(directory, *NEVER) as server, nodes(directory, server.url, 3) as apps:
        counts_by_key: defaultdict[str, set[int]] = defaultdict(set)
        keys_to_send = iter([f"key-{n}" for n in range(keys) for _ in range(copies)])
        keys_with_other_body = iter([f"key-{n}" for n in range(0, keys, 5)])
        statuses = Counter[int]()

        async def send(app: Process) -> None:
            connection = Connection(app.url)
            for key in keys_to_send:
                response = await connection.request("POST", "/event/once", **{"idempotency-key": key})
                assert response.status == 200, response
                counts_by_key[key].add(response.json["count"])
            for key in keys_with_other_body:
                response = await connection.request("POST", "/event/once", b'{"by": 2}', **{"idempotency-key": key})
                statuses[response.status] += 1
            connection.close()

        await asyncio.gather(*(send(app) for _ in range(20) for app in apps))
        figures = require_exact(compare_counts(Counter(once=keys), Counter(once=keys), counts_in_redis(server)))
    counts = sorted(count for counts in counts_by_key.values() for count in counts)
    figures.require(counts == list(range(1, keys + 1)), "keys got different responses, or those of other keys")
    figures.require(set(statuses) == {422}, f"another body got {statuses}")
    figures.details |= {"requests": keys * copies, "rejected with 422": statuses[422]}
    return figures
