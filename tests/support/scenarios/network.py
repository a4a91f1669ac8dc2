"""A network that fails, a Redis that is away, and requests that come twice at once."""

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
from tests.support.load import Connection, Load, Offer, read_all
from tests.support.redis_servers import RedisServer
from tests.support.scenarios import (
    ALWAYS,
    NEVER,
    Figures,
    compared,
    exact,
    healthy,
    in_redis,
    judged,
    loaded,
    memory_kb,
    node,
    nodes,
    read_rightly,
    redis,
    send_nowait,
)
from tests.support.servers import Process, eventually

ANSWER_SECONDS_MAX = 2.5  # the promise, whatever Redis does
GROWTH_KB_MAX = 50_000  # likewise
REST_SECONDS = 0.02  # so that the clients leave the node some of the machine to find Redis again


@dataclass
class Scene:
    """A node under load, with a proxy between it and Redis."""

    proxy: FaultProxy
    app: Process
    load: Load
    redis: RedisServer
    running: asyncio.Task[None]

    async def come_to(self, done: Callable[[], bool], seconds: float = 120) -> None:
        await eventually(lambda: self.running.done() or done(), seconds)

    async def strike(self, kind: Kind, times: int) -> Fault:
        """Let the fault strike so often; once more each time that Redis was found again, and now and then twice."""
        fault = self.proxy.strike(kind, left=1)

        def again(ack: str, sent: float) -> None:
            if ack == "redis" and sent > fault.chosen_at:
                fault.left = 1 if random.random() < 0.99 else 2

        self.load.on_ack = again
        await self.come_to(lambda: fault.struck >= times, 60 + times)
        return fault

    async def end(self) -> Figures:
        """Let the network be as it should, and after some more hits read everything."""
        self.proxy.strike("pass")
        enough = self.load.acks["redis"] + 200
        await self.come_to(lambda: self.load.acks["redis"] >= enough)
        self.load.stop.set()
        await self.running
        await healthy(self.app)
        values = await read_all(self.load, self.app)
        figures = exact(judged(self.load.history.adds, values))
        read_rightly(figures, self.load.history)
        figures.also["spooled"] = self.load.acks["spooled"]
        figures.promise(self.load.problems == [], f"no hit is answered with an error: {self.load.problems[:2]}")
        figures.promise(in_redis(self.redis) == values, "Redis has what the node shows")
        return figures


@asynccontextmanager
async def scene(directory: Path) -> AsyncIterator[Scene]:
    with redis(directory, *NEVER) as server:
        async with FaultProxy(server.socket) as proxy:
            with node(directory, proxy.url) as app:
                load = Load(app.url, REST_SECONDS)
                async with send_nowait(load.run()) as running:
                    yield Scene(proxy, app, load, server, running)


async def network_fails(directory: Path, kind: Kind, times: int) -> Figures:
    """Between a node and Redis, connections fail again and again.

    `cut after` loses the answer to what Redis has done; `cut before` and `reset` lose the request; `freeze` holds it
    and sends it on when nobody waits for it any more. Each hit is counted once: those with an Idempotency-Key are
    exact, the others within their bounds.
    """
    async with scene(directory) as now:
        fault = await now.strike(kind, times)
        figures = await now.end()
        if kind == "cut after":
            read_rightly(figures, now.load.history, now.load.stale)
        figures.also["struck"] = fault.struck
        return figures


async def redis_away(directory: Path, how: str, rate: int, seconds: float) -> Figures:
    """Redis is frozen, or is dead, for some seconds, while so many hits a second are offered.

    None is lost or doubled or left unknown, none waits longer than 2.5 s, and the node's memory stays where it was.
    """
    with redis(directory, *ALWAYS) as server, node(directory, server.url) as app:
        offer = Offer(app.url, [f"event{i}" for i in range(10)], rate, connections=100)
        async with loaded(offer) as go_on:
            await go_on(rate)
            resident = memory_kb(app, "VmRSS")
            if how == "frozen":
                os.kill(server.process.pid, signal.SIGSTOP)
            else:
                server.stop()
            await asyncio.sleep(seconds)  # this is the outage, and not a wait for something
            if how == "frozen":
                os.kill(server.process.pid, signal.SIGCONT)
            else:
                await asyncio.to_thread(server.start, *ALWAYS)
            back = time.monotonic()
            await healthy(app)
            found = time.monotonic() - back
        figures = exact(compared(offer.counts, offer.counts, await asyncio.to_thread(app.get, "/events")))
        figures.unknown, growth = offer.outcomes["unknown"], memory_kb(app, "VmHWM") - resident
        figures.promise(in_redis(server) == offer.counts, "Redis has what was acknowledged")
    figures.also |= {"spooled": offer.acks["spooled"], "found again after, s": round(found, 2)}
    figures.also |= {"longest wait, s": round(offer.longest_seconds, 2), "memory, MB": round(growth / 1000, 1)}
    figures.promise(not figures.unknown, f"no hit is left unknown, and {figures.unknown} were")
    figures.promise(offer.longest_seconds < ANSWER_SECONDS_MAX, f"no hit waits {offer.longest_seconds:.2f} s")
    figures.promise(growth < GROWTH_KB_MAX, f"memory grew by {growth} kB")
    return figures


async def duplicates(directory: Path, keys: int, copies: int) -> Figures:
    """Each of many Idempotency-Keys is sent several times at once, to three nodes on one Redis.

    Each key is counted once, all its answers are the same, and the same key with another body is refused with a 422.
    """
    with redis(directory, *NEVER) as server, nodes(directory, server.url, 3) as apps:
        answers: defaultdict[str, set[int]] = defaultdict(set)
        todo = iter([f"key-{n}" for n in range(keys) for _ in range(copies)])
        others = iter([f"key-{n}" for n in range(0, keys, 5)])
        refused = Counter[int]()

        async def send(app: Process) -> None:
            connection = Connection(app.url)
            for key in todo:
                answer = await connection.ask("POST", "/event/once", **{"idempotency-key": key})
                assert answer.status == 200, answer
                answers[key].add(answer.json["count"])
            for key in others:
                answer = await connection.ask("POST", "/event/once", b'{"by": 2}', **{"idempotency-key": key})
                refused[answer.status] += 1
            connection.close()

        await asyncio.gather(*(send(app) for _ in range(20) for app in apps))
        figures = exact(compared(Counter(once=keys), Counter(once=keys), in_redis(server)))
    given = sorted(count for counts in answers.values() for count in counts)
    figures.promise(given == list(range(1, keys + 1)), "all answers of a key are the same, and no other's")
    figures.promise(set(refused) == {422}, f"another body is refused: {refused}")
    figures.also |= {"requests": keys * copies, "refused with 422": refused[422]}
    return figures
