"""Processes that are killed or ended."""

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
    exact,
    healthy,
    in_redis,
    judged,
    loaded,
    metric,
    node,
    places,
    read_rightly,
    redis,
    store,
)
from tests.support.servers import composed, eventually

EVERYSEC_LOSES_SECONDS = 2.0  # at most, as Redis says


async def app_killed(directory: Path, kind: str, kills: int, answers: int) -> Figures:
    """A node is killed with `kill -9` at random moments of a load, and started again.

    On SQLite and on Redis an acknowledged hit survives that, hits with an Idempotency-Key are exact, and no read ever
    lies outside what may have been counted then.
    """
    with store(directory, kind) as url, node(directory, url) as app:
        load = Load(app.url)
        async with loaded(load) as go_on:
            for _ in range(kills):
                await go_on(random.randint(answers // 5, answers * 9 // 5))
                app.kill()
                await asyncio.to_thread(app.start)
        values = await read_all(load, app)
        figures = exact(judged(load.history.adds, values))
        read_rightly(figures, load.history)
        figures.promise(load.problems == [], f"no hit is answered with an error: {load.problems[:2]}")
        days = app.get("/series?step=day&points=1")["points"][0]["count"]
        figures.promise(days == sum(values.values()), f"the sum of all is {days}")
        return figures


async def redis_killed(directory: Path, options: tuple[str, ...], kills: int, answers: int) -> Figures:
    """Redis is killed with `kill -9` at random moments of a load, and started again.

    What it had synced it has. With `appendfsync everysec` it may lose what it acknowledged in the last 2 seconds, and
    with no append-only file it loses all it had: that is Redis' to lose, and Tally says so in /health. Nothing is
    counted twice. Some 20 hits have a name of their own, so that a loss can hide no double that was made elsewhere.
    """
    with redis(directory, *options) as server, node(directory, server.url) as app:
        load = Load(app.url, atomic=False)
        times: list[tuple[float, int]] = []
        load.on_ack = lambda *_: times.append((time.monotonic(), load.history.tick()))
        forgettable: list[tuple[int, int]] = []  # from this tick to that
        async with loaded(load) as go_on:
            for _ in range(kills):
                await go_on(random.randint(answers // 5, answers * 9 // 5))
                server.stop()
                since = time.monotonic() - EVERYSEC_LOSES_SECONDS
                at = next((tick for told, tick in times if told >= since), load.history.tick())
                await go_on(20)  # to the spool
                forgettable.append((0 if options == NEVER else at, load.history.tick()))
                await asyncio.to_thread(server.start, *options)
                await healthy(app)
                times.clear()
        await healthy(app)
        figures = judged(load.history.adds, in_redis(server))
        figures.also["spooled"] = load.acks["spooled"]
        if options == ALWAYS:
            return exact(figures)
        figures.promise(not figures.doubled, f"no hit is counted twice, and {figures.doubled} were")
        kept: Counter[str] = Counter()  # which Redis may not lose
        for add in load.history.adds:
            if add.outcome == "acknowledged" and not any(a <= add.ended <= b for a, b in forgettable):
                kept[add.event] += add.by
        early = (kept - Counter(in_redis(server))).total()
        said = app.get("/health")["lostBatches"]
        figures.also["lost batches, as /health says"] = said
        figures.promise(not early, f"what was acknowledged more than 2 s before is kept, and {early} were not")
        figures.promise(said or not figures.lost, "a loss is said")
        return figures


async def fleet_killed(directory: Path, rounds: int) -> Figures:
    """Behind nginx, two of three nodes and their Redis are killed in each round, and hits lie in dead nodes' spools.

    Redis syncs every write. Nothing is lost or doubled, and in the end every node shows the same.
    """
    synced = ("--appendfsync", "always")
    with composed(places(directory), *synced, **UNLIMITED) as fleet:
        load = Load(fleet.proxy.url, addresses=12)
        async with loaded(load) as go_on:
            for number in range(rounds):
                one, other = fleet.nodes[number % 3], fleet.nodes[(number + 1) % 3]
                await go_on(random.randint(50, 200))
                one.kill()
                await go_on(random.randint(20, 100))
                fleet.redis.stop()
                await go_on(random.randint(20, 100))  # to the spools of those that live
                await asyncio.to_thread(one.start)  # without its Redis
                await go_on(random.randint(20, 100))
                other.kill()  # with what it has spooled
                await asyncio.to_thread(fleet.redis.start, *synced)
                await asyncio.to_thread(other.start)
                await healthy(*fleet.nodes)
        await healthy(*fleet.nodes)
        shown = [await read_all(load, app) for app in fleet.nodes]
    figures = exact(judged(load.history.adds, shown[0]))
    figures.promise(shown[0] == shown[1] == shown[2], "every node shows the same")
    # Before, a node did not know what another one had spooled; but none ever showed more than there was. While Redis is
    # away, though, it does not know the keys that others used, and so may show twice what was sent anew.
    stale = History([*load.stale.adds, *load.again], load.stale.reads)
    more = [w for h in (load.history, stale) for w in h.wrong_reads() if w.read.value > w.upper]
    figures.promise(not more, f"no node ever shows more than there may be: {more[:2]}")
    figures.also |= {"kills of nodes": 2 * rounds, "kills of Redis": rounds, "spooled": load.acks["spooled"]}
    figures.promise(min(load.acks["spooled"], load.acks["redis"]) > 20 * rounds, f"both ways were gone: {load.acks}")
    return figures


async def restarted(directory: Path, rounds: int, answers: int) -> Figures:
    """Behind nginx, each of three nodes in turn is ended with SIGTERM under load and started again, as for an upgrade.

    No request fails, and none is counted twice: every single one is answered with a 200.
    """
    with composed(places(directory), **UNLIMITED) as fleet:
        load = Load(fleet.proxy.url, addresses=12)
        longest = 0.0
        async with loaded(load) as go_on:
            for app in itertools.islice(itertools.cycle(fleet.nodes), rounds):
                await eventually(lambda: all(metric(one, "tally_hits_total") for one in fleet.nodes))
                await go_on(answers)
                began = time.monotonic()
                code = await asyncio.to_thread(app.terminate)
                longest = max(longest, time.monotonic() - began)
                assert code == 0, code
                await asyncio.to_thread(app.start)
        figures = exact(judged(load.history.adds, await read_all(load, fleet.nodes[0])))
    failed = [add for add in load.history.adds if add.outcome != "acknowledged"]
    figures.also |= {"requests": len(load.history.adds) + len(load.history.reads), "failed": len(failed) + load.missed}
    figures.also["longest end of a node, s"] = round(longest, 1)
    figures.promise(not (failed or load.problems or load.missed), f"no request fails: {failed[:2]}")
    return figures
