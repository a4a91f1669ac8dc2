"""Scenarios of alerts: each crossing has one webhook-id, and reaches the receiver."""

import asyncio
import json
from collections import defaultdict
from pathlib import Path

import httpx

from tests.support.load import Connection
from tests.support.receiver import Receiver, receiving
from tests.support.scenarios import ALWAYS, Figures, in_background, nodes, redis, require_exact, wait_until_healthy
from tests.support.servers import ADMIN_KEY, AS_ADMIN, Process, eventually

EVERY = 10  # hits per crossing
PAUSE_SECONDS = 0.005  # between the hits of a node
NODES = 3


class Hits:
    """Counts one hit after the other on a node, also while it is killed and started again."""

    def __init__(self, app: Process) -> None:
        self.acknowledged = self.unknown = 0
        self._connection = Connection(app.url)

    async def run(self) -> None:
        try:
            while True:
                await self._hit()
                await asyncio.sleep(PAUSE_SECONDS)
        finally:
            self._connection.close()

    async def _hit(self) -> None:
        try:
            await self._connection.connect()
        except OSError:  # nothing was sent
            return
        try:
            outcome = (await self._connection.request("POST", "/event/order")).outcome
            self.acknowledged += outcome == "acknowledged"
            self.unknown += outcome == "unknown"
        except (OSError, EOFError):
            self.unknown += 1


async def crossings(directory: Path, number: int, rounds: int) -> Figures:
    """An alert fires at every tenth hit on three nodes, while a node, Redis and the receiver are killed in each round.

    The receiver gets each crossing, with one `webhook-id`. It may get a message more than once, with the same id.
    """
    settings = {"TALLY_ADMIN_KEYS": ADMIN_KEY, "TALLY_ALERTS_ALLOW_PRIVATE": "true"}
    with redis(directory, *ALWAYS) as server, nodes(directory, server.url, NODES, **settings) as apps:
        async with receiving() as receiver:
            await wait_until_healthy(*apps)
            alert = {"event": "order", "when": {"every": EVERY}, "url": receiver.url}
            httpx.post(f"{apps[0].url}/alerts", json=alert, headers=AS_ADMIN).raise_for_status()
            hits = [Hits(app) for app in apps]

            async def wait_for(crossed: int) -> None:
                await eventually(lambda: sum(hit.acknowledged for hit in hits) >= crossed * EVERY, 300)

            async with in_background(hits[0].run()), in_background(hits[1].run()), in_background(hits[2].run()):
                for i in range(rounds):
                    start, step = i * number // rounds, number // rounds
                    await wait_for(start + step // 3)
                    await receiver.stop()
                    apps[i % NODES].kill()
                    await wait_for(start + step // 2)
                    server.stop()
                    await wait_for(start + step * 2 // 3)  # these hits are spooled
                    apps[(i + 1) % NODES].kill()
                    await receiver.start()
                    for start_again in (lambda: server.start(*ALWAYS), apps[i % NODES].start):
                        await asyncio.to_thread(start_again)
                    await asyncio.to_thread(apps[(i + 1) % NODES].start)
                    await wait_until_healthy(*apps)
                await wait_for(number)
            await wait_until_healthy(*apps)
            acknowledged, unknown = sum(hit.acknowledged for hit in hits), sum(hit.unknown for hit in hits)
            return await compare(apps[0], receiver, acknowledged, unknown + NODES)


async def compare(app: Process, receiver: Receiver, acknowledged: int, unknown: int) -> Figures:
    """Wait for the messages of all crossings of the total, and compare."""
    await eventually(lambda: app.get("/event/order")["total"] >= acknowledged, 120)  # the spools are replayed
    total = app.get("/event/order")["total"]
    expected = set(range(EVERY, total + 1, EVERY))

    def received() -> dict[int, set[str]]:
        ids = defaultdict[int, set[str]](set)
        for request in receiver.requests:
            ids[json.loads(request.body)["data"]["threshold"]].add(request.headers["webhook-id"])
        return ids

    missed = set[int]()
    try:
        await eventually(lambda: received().keys() >= expected, 120)
    except AssertionError:
        missed = expected - received().keys()
    found = received()
    lost, doubled = max(0, acknowledged - total), max(0, total - acknowledged - unknown)
    figures = require_exact(Figures(acknowledged, unknown, total, lost, doubled))
    figures.require(not missed, f"{len(missed)} crossings were missed: {sorted(missed)[:5]}")
    figures.require(found.keys() <= expected, f"crossings that never were: {sorted(found.keys() - expected)[:5]}")
    several = [threshold for threshold, ids in found.items() if len(ids) > 1]
    figures.require(not several, f"crossings with several ids: {several[:5]}")
    figures.require(len(set(receiver.ids)) == len(found), "crossings share an id")
    figures.details |= {"crossings": len(expected), "messages": len(receiver.requests)}
    return figures
