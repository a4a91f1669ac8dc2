"""Scenarios that kill or restart processes."""

import asyncio
import itertools
import random
import time
from collections import Counter
from pathlib import Path

from tests.support.history_checker import History
from tests.support.load import Load, read_all
from tests.support.scenarios import (
    ALWAYS,
    NEVER,
    UNLIMITED,
    Figures,
    check_reads,
    compare_with_history,
    counts_in_redis,
    directories,
    metric,
    node,
    redis,
    require_consistent,
    require_exact,
    store,
    under_load,
    wait_until_healthy,
)
from tests.support.servers import compose_fleet, eventually

PROXY_REST_SECONDS = 0.001  # between requests, because nginx limits an address to 3,000 per second
EVERYSEC_LOSS_SECONDS = 2.0  # the maximum according to the Redis documentation


async def kill_node(directory: Path, kind: str, kills: int, hits: int) -> Figures:
    """A node is killed with `kill -9` at random times under load, and started again.

    On SQLite and on Redis, acknowledged hits survive, hits with an Idempotency-Key are exact, and each read is within
    its bounds.
    """
    with store(directory, kind) as url, node(directory, url) as app:
        load = Load(app.url)
        async with under_load(load) as wait_for_hits:
            for _ in range(kills):
                await wait_for_hits(random.randint(hits // 5, hits * 9 // 5))
                app.kill()
                await asyncio.to_thread(app.start)
        await wait_until_healthy(app)  # while Redis is unreachable, a node may show a hit twice
        values = await read_all(load, app)
        figures = require_exact(compare_with_history(load.history.adds, values))
        check_reads(figures, load.history)
        figures.require(load.problems == [], f"hits got error responses: {load.problems[:2]}")
        days = app.get("/series?step=day&points=1")["points"][0]["count"]
        figures.require(days == sum(values.values()), f"the sum of all events is {days}")
        app.kill()
        await require_consistent(figures, directory, url)
        return figures


async def kill_redis(directory: Path, options: tuple[str, ...], kills: int, hits: int) -> Figures:
    """Redis is killed with `kill -9` at random times under load, and started again.

    Redis keeps the writes that it synced. With `appendfsync everysec` it may lose the last 2 seconds, and without an
    append-only file it loses everything; Tally reports such a loss in /health. No hit is counted twice. Every 20 hits
    or so use another event name, so that a lost hit cannot hide a hit that was counted twice.
    """
    with redis(directory, *options) as server, node(directory, server.url) as app:
        load = Load(app.url, separate_names=True)
        times: list[tuple[float, int]] = []
        load.on_ack = lambda *_: times.append((time.monotonic(), load.history.tick()))
        lossy: list[tuple[int, int]] = []  # the intervals, in ticks, whose hits Redis may lose
        async with under_load(load) as wait_for_hits:
            for _ in range(kills):
                await wait_for_hits(random.randint(hits // 5, hits * 9 // 5))
                server.stop()
                since = time.monotonic() - EVERYSEC_LOSS_SECONDS
                first = next((tick for acknowledged, tick in times if acknowledged >= since), load.history.tick())
                await wait_for_hits(20)  # these hits are spooled
                lossy.append((0 if options == NEVER else first, load.history.tick()))
                await asyncio.to_thread(server.start, *options)
                await wait_until_healthy(app)
                times.clear()
        await wait_until_healthy(app)
        figures = compare_with_history(load.history.adds, counts_in_redis(server))
        figures.details["spooled"] = load.acks["spooled"]
        await require_consistent(figures, directory, server.url)
        if options == ALWAYS:
            return require_exact(figures)
        figures.require(not figures.doubled, f"{figures.doubled} hits were counted twice")
        durable: Counter[str] = Counter()  # the hits that Redis must not lose
        for add in load.history.adds:
            if add.outcome == "acknowledged" and not any(a <= add.ended <= b for a, b in lossy):
                durable[add.event] += add.by
        early = (durable - Counter(counts_in_redis(server))).total()
        reported = app.get("/health")["lostBatches"]
        figures.details["lost commits reported in /health"] = reported
        figures.require(not early, f"{early} hits that were acknowledged more than 2 s before were lost")
        figures.require(reported or not figures.lost, "a loss was not reported")
        return figures


async def kill_fleet(directory: Path, rounds: int) -> Figures:
    """Behind nginx, each round kills two of three nodes and their Redis, so that dead nodes leave spooled hits.

    Redis syncs every write. No hit is lost or counted twice, and at the end all nodes return the same counts. Hits with
    an Idempotency-Key that are sent again at the end are not counted again.
    """
    synced = ("--appendfsync", "always")
    with compose_fleet(directories(directory), *synced, **UNLIMITED) as fleet:
        load = Load(fleet.proxy.url, PROXY_REST_SECONDS, addresses=12)
        async with under_load(load) as wait_for_hits:
            for number in range(rounds):
                one, other = fleet.nodes[number % 3], fleet.nodes[(number + 1) % 3]
                await wait_for_hits(random.randint(50, 200))
                one.kill()
                await wait_for_hits(random.randint(20, 100))
                fleet.redis.stop()
                await wait_for_hits(random.randint(20, 100))  # the running nodes spool these hits
                await asyncio.to_thread(one.start)  # while Redis is down
                await wait_for_hits(random.randint(20, 100))
                other.kill()  # with spooled hits
                await asyncio.to_thread(fleet.redis.start, *synced)
                await asyncio.to_thread(other.start)
                await wait_until_healthy(*fleet.nodes)
        await wait_until_healthy(*fleet.nodes)
        await load.repeat(200)
        shown = [await read_all(load, app) for app in fleet.nodes]
    figures = require_exact(compare_with_history(load.history.adds, shown[0]))
    figures.require(shown[0] == shown[1] == shown[2], "nodes return different counts")
    # A node does not know the hits that others have spooled, so earlier counts may be too low, but never too high.
    # While Redis is down, it does not know the idempotency keys of others, and may show a retried hit twice.
    stale = History([*load.stale.adds, *load.retried], load.stale.reads)
    too_high = [w for h in (load.history, stale) for w in h.wrong_reads() if w.read.value > w.upper]
    figures.require(not too_high, f"nodes returned too high counts: {too_high[:2]}")
    figures.details |= {"kills of nodes": 2 * rounds, "kills of Redis": rounds, "spooled": load.acks["spooled"]}
    enough = min(load.acks["spooled"], load.acks["redis"]) > 20 * rounds
    figures.require(enough, f"too few hits were spooled or counted in Redis: {load.acks}")
    return figures


async def rolling_restart(directory: Path, rounds: int, hits: int) -> Figures:
    """Behind nginx, three nodes are stopped with SIGTERM under load in turn and started again, as in an upgrade.

    No request fails, and no hit is counted twice: every request gets a 200.
    """
    with compose_fleet(directories(directory), **UNLIMITED) as fleet:
        load = Load(fleet.proxy.url, PROXY_REST_SECONDS, addresses=12)
        longest = 0.0
        async with under_load(load) as wait_for_hits:
            for app in itertools.islice(itertools.cycle(fleet.nodes), rounds):
                await eventually(lambda: all(metric(one, "tally_hits_total") for one in fleet.nodes))
                await wait_for_hits(hits)
                began = time.monotonic()
                code = await asyncio.to_thread(app.terminate)
                longest = max(longest, time.monotonic() - began)
                assert code == 0, code
                await asyncio.to_thread(app.start)
        figures = require_exact(compare_with_history(load.history.adds, await read_all(load, fleet.nodes[0])))
    failed = [add for add in load.history.adds if add.outcome != "acknowledged"]
    figures.details["requests"] = len(load.history.adds) + len(load.history.reads)
    figures.details["failed"] = len(failed) + load.failed_reads
    figures.details["longest shutdown of a node, s"] = round(longest, 1)
    figures.require(not (failed or load.problems or load.failed_reads), f"requests failed: {failed[:2]}")
    return figures
