"""Scenarios with Redis servers and nodes that are configured wrongly, or that are full."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from app.main import create_app
from app.settings import Settings
from tests.support.load import Connection
from tests.support.redis_servers import free_port
from tests.support.scenarios import (
    ALWAYS,
    Figures,
    compare_counts,
    counts_in_redis,
    memory_kb,
    node,
    redis,
    require_consistent,
    require_exact,
    store,
    wait_until_healthy,
)
from tests.support.servers import ROOT, SettableClock, eventually

FAST_DAYS = 500
GROWTH_KB_MAX = 250_000


async def fast_clock(directory: Path, kind: str, days: int) -> Figures:
    """A node whose clock is 500 days fast runs on a store with history, and counts one hit. Its jobs run each second.

    With Redis, another node counts meanwhile. No hit of the history is deleted, and a node on Redis reports its clock.
    """
    with store(directory, kind) as url:
        expected = await _count_history(directory, url, days)
        with contextlib.ExitStack() as started:
            others = [started.enter_context(node(directory, url))] if kind == "redis" else []
            ran = directory / "ran"
            fast = started.enter_context(node(directory, url, "-c", _fast_clock(ran)))
            fast_total = (await asyncio.to_thread(fast.post, "/event/a"))["total"]
            for _ in range(5):
                for app in others:
                    day = (await asyncio.to_thread(app.post, "/event/a"))["day"]
                    expected[day] += 1
            await eventually(lambda: ran.exists() and ran.stat().st_size >= 5, 60)
            reasons = fast.get("/health")["reasons"]
        with node(directory, url) as app:
            counted = {day["day"]: day["hits"] for day in app.get("/history")}
            today = app.get("/event/a")
            counted[today["day"]] = today["count"]
        figures = require_exact(compare_counts(expected, expected, {day: counted.get(day, 0) for day in expected}))
        await require_consistent(figures, directory, url)
    figures.details |= {"days of history": days, "days left": len(counted.keys() & expected.keys())}
    figures.require(len(expected) >= days, f"the history has only {len(expected)} days")
    figures.require(fast_total == expected.total() + 1 - 5 * len(others), f"the fast node returned {fast_total}")
    figures.require(kind != "redis" or any("ahead" in reason for reason in reasons), f"it reported {reasons}")
    return figures


async def _count_history(directory: Path, url: str, days: int) -> Counter[str]:
    """Count some hits on each of the last days; return their number by day."""
    expected: Counter[str] = Counter()
    clock = SettableClock()
    clock.go_to((datetime.now(UTC) - timedelta(days=days + 1)).isoformat())  # the day of a node never goes back
    app = create_app(Settings(TALLY_STORE=url, spool=str(directory / "spool")), clock)
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        for ago in range(days, 0, -1):
            clock.go_to((datetime.now(UTC) - timedelta(days=ago)).isoformat())
            response = (await client.post("/event/a", json={"by": ago})).json()
            expected[response["day"]] += ago
    return expected


def _fast_clock(ran: Path) -> str:
    """Return a program: a node with a fast clock, whose jobs run each second. Each retention adds a byte to a file."""
    return f"""
import time
right = time.time
time.time = lambda: right() + {FAST_DAYS} * 86_400
from app import scheduler
interval, close_day = scheduler.IntervalTrigger, scheduler.Jobs.close_day
async def record(self):
    await close_day(self)
    open({str(ran)!r}, "a").write("x")
scheduler.IntervalTrigger = lambda seconds: interval(seconds=min(seconds, 1))
scheduler.Jobs.close_day = record
from app.cli import main
main()
"""


async def eviction(directory: Path, policy: str, names: int) -> Figures:
    """Redis has a `maxmemory-policy` that evicts keys, and clients count more names than fit into its memory.

    Tally cannot prevent the loss, so hits may be lost or counted twice here. It reports the policy before anything is
    lost, reports evicted keys, and does not claim any durability.
    """
    options = ("--maxmemory", "6mb", "--maxmemory-policy", policy, "--appendonly", "no")
    with redis(directory, *options) as server, node(directory, server.url) as app:
        before = app.get("/health")
        expected: Counter[str] = Counter()
        connection = Connection(app.url)
        for i in range(names):
            keyed = {"idempotency-key": uuid.uuid4().hex}
            counts = {uuid.uuid4().hex: 1 for _ in range(100)}
            response = await connection.request("POST", "/events", json.dumps(counts).encode(), **keyed)
            expected.update(counts if response.status == 200 else {})
            if i % 10 == 0 and server.info("stats")["evicted_keys"]:
                break
        connection.close()
        evicted = server.info("stats")["evicted_keys"]
        await eventually(lambda: "evicted" in " ".join(app.get("/health")["reasons"]))
        health = app.get("/health")
        figures = compare_counts(expected, expected, counts_in_redis(server))
    figures.details["evicted keys"] = evicted
    figures.require("maxmemory-policy" in " ".join(before["reasons"]), f"before, it reported {before['reasons']}")
    figures.require(before["status"] == health["status"] == "degraded", f"the status is {health['status']}")
    figures.require("nothing for certain" in health["durability"], f"the durability is {health['durability']}")
    figures.require(evicted, "Redis evicted nothing")
    return figures


async def other_zone(directory: Path, kind: str, starts: int) -> Figures:
    """A node is started with another TALLY_TIMEZONE on a store with counts, many times.

    It exits with an error, because the days would become invisible. With Redis, a node with the right zone counts
    meanwhile. No count changes.
    """
    expected = Counter(a=0)
    with store(directory, kind) as url, contextlib.ExitStack() as started:
        app = started.enter_context(node(directory, url))
        codes, explained = Counter[int](), 0
        for number in range(starts):
            app.post("/event/a")
            expected["a"] += 1
            if kind != "redis":
                app.terminate()
            wrong = _start_with_zone(directory, url, ("Europe/Berlin", "Asia/Tokyo")[number % 2])
            codes[wrong.returncode] += 1
            explained += "TALLY_TIMEZONE=UTC" in wrong.stderr
            if kind != "redis":
                app.start()
        figures = require_exact(compare_counts(expected, expected, app.get("/events")))
    figures.details |= {"starts": starts, "refused": codes.total() - codes[0]}
    figures.require(not codes[0] and explained == starts, f"the exit codes were {dict(codes)}, {explained} explained")
    return figures


def _start_with_zone(directory: Path, url: str, zone: str) -> subprocess.CompletedProcess[str]:
    settings = {"TALLY_STORE": url, "TALLY_TIMEZONE": zone, "TALLY_PORT": str(free_port())}
    environment = os.environ | settings | {"TALLY_SPOOL": str(directory / "spool")}
    command = [sys.executable, "-m", "app"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


async def full_redis(directory: Path, times: int, maxmemory: int = 8_000_000) -> Figures:
    """The memory of Redis is full under load and gets more room, many times, with `noeviction`.

    Redis rejects commits, and the node spools them. No acknowledged hit is lost or counted twice, also those with an
    Idempotency-Key. Redis exceeds its `maxmemory` only by what a growing hash needs, at most a quarter.
    """
    expected: Counter[str] = Counter()
    acks: Counter[str] = Counter()
    excess = 0.0
    options = ("--maxmemory", str(maxmemory), "--maxmemory-policy", "noeviction", *ALWAYS)
    with redis(directory, *options) as server, node(directory, server.url, TALLY_EVENTS_MAX="10000000") as app:
        connection = Connection(app.url)

        async def count() -> None:
            counts = {uuid.uuid4().hex: 1 for _ in range(50)} | {"known": 1}
            keyed = {"idempotency-key": uuid.uuid4().hex} if len(acks) % 2 else {}
            response = await connection.request("POST", "/events", json.dumps(counts).encode(), **keyed)
            assert response.status == 200, response
            expected.update(counts)
            acks[response.json["ack"]] += 1

        for number in range(1, times + 1):
            spooled = acks["spooled"]
            while acks["spooled"] < spooled + 20:
                await count()
                memory = server.info("memory")
                used = memory["used_memory"] - memory["mem_not_counted_for_evict"]  # the buffer of the append-only file
                excess = max(excess, used / (number * maxmemory) - 1)
            with server.client() as client:
                client.config_set("maxmemory", (number + 1) * maxmemory)
            await eventually(lambda: app.get("/health")["staleSeconds"] is None, 60)
            await count()
        connection.close()
        figures = require_exact(compare_counts(expected, expected, counts_in_redis(server)))
        figures.require(app.get("/events") == dict(expected), "the node shows other counts")
    figures.details |= {"times full": times, "spooled requests": acks["spooled"]}
    figures.details["memory beyond maxmemory, %"] = round(100 * excess, 1)
    figures.require(excess < 0.25, f"Redis exceeded its maxmemory by {excess:.0%}")
    return figures


async def offline_names(directory: Path, names: int, limit: int) -> Figures:
    """While Redis is down, clients count random names, 1,000 per request, and the node is killed in between.

    Names up to the limit (TALLY_EVENTS_MAX) are counted, further ones are rejected with a 429, and the memory of the
    node stays bounded, also after it has started again with its spool. Once Redis is back, it has all acknowledged
    hits.
    """
    with redis(directory, *ALWAYS) as server, node(directory, server.url, TALLY_EVENTS_MAX=str(limit)) as app:
        expected = Counter({"known": 1})
        app.post("/event/known")
        resident, peak = memory_kb(app, "VmRSS"), 0
        server.stop()
        rejected = 0
        connection = Connection(app.url)
        for number in range(names // 1000):
            for counts in (dict.fromkeys((uuid.uuid4().hex for _ in range(1000)), 1), {"known": 1}):
                response = await connection.request("POST", "/events", json.dumps(counts).encode())
                assert response.status in {200, 429}, response
                expected.update(counts if response.status == 200 else {})
                rejected += response.status == 429
            if number == names // 2000:
                peak = memory_kb(app, "VmHWM")
                connection.close()
                app.kill()
                await asyncio.to_thread(app.start)
        connection.close()
        peak = max(peak, memory_kb(app, "VmHWM"))
        spool = app.get("/health")["spoolBytes"]
        await asyncio.to_thread(server.start, *ALWAYS)
        await wait_until_healthy(app)
        figures = require_exact(compare_counts(expected, expected, counts_in_redis(server)))
    figures.details |= {"names tried": names, "names counted": len(expected), "limit": limit}
    figures.details |= {"rejected requests": rejected, "spool, MB": round(spool / 1e6, 1)}
    figures.details["memory of the node, MB"] = round((peak - resident) / 1000, 1)
    figures.require(len(expected) <= limit + 1000, f"{len(expected)} names were counted with a limit of {limit}")
    figures.require(peak - resident < GROWTH_KB_MAX, f"memory grew by {peak - resident} kB")
    return figures
