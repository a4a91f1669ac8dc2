"""Nodes of a fuzzer: a group committer on a store, and the requests that wait for its responses."""

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from app.domain.calendar import Calendar, Clock
from app.group_commit import GroupCommitter
from app.metrics import Metrics
from app.stores.base import CounterStore, OutcomeUnknown, StoreUnavailable
from app.stores.offline import OfflineStore
from tests.fuzz.faults import LIMITS, Faults, unreliable_redis
from tests.support.servers import eventually

CALENDAR = Calendar(ZoneInfo("UTC"))
CRASH_SECONDS = 60  # on a busy machine, a node that loses a cancellation ends after its attempt to reconnect

T = TypeVar("T")


class NoResponse(Exception):
    """The node crashed, or the client disconnected."""


class Node:
    """The parts of a process that count. Its store meets `faults`."""

    def __init__(self, store: CounterStore, faults: Faults, now: Callable[[], float]) -> None:
        self.store, self.faults = store, faults
        self.clock = Clock(CALENDAR, now)
        self.committer = GroupCommitter(store, self.clock, lambda *_: None, Metrics())
        self._requests: set[asyncio.Task[Any]] = set()

    async def start(self) -> "Node":
        await self.store.open()
        self.committer.start()
        return self

    async def respond(self, request: Coroutine[Any, Any, T], patience: float | None = None) -> T:
        """Return the result of a request. Raises its errors, or NoResponse: after `patience` its client disconnects."""
        task = asyncio.create_task(request)
        self._requests.add(task)
        try:
            await asyncio.wait([task], timeout=patience)
        finally:
            task.cancel()  # without effect if it is done
            self._requests.discard(task)
        await asyncio.wait([task])
        if task.cancelled():
            raise NoResponse
        return task.result()

    async def crash(self) -> None:
        """Stop at once. A spool file remains, and clients get no response."""
        async with asyncio.timeout(CRASH_SECONDS):
            while self.committer.is_running:  # redis-py may lose a cancellation
                self.committer._task.cancel()
                await asyncio.wait([self.committer._task], timeout=0.1)
            for request in self._requests:
                request.cancel()
            await self.store.close()

    async def close(self) -> None:
        """End the committer if it runs, and close connections, which a late request may have opened again."""
        self.faults.rate = 0
        if self.committer.is_running:
            await self.committer.close()
        await self.store.close()

    @property
    def is_online(self) -> bool:
        return self.store.status().stale_seconds is None


def redis_node(url: str, directory: Path, rng: random.Random, now: Callable[[], float]) -> Node:
    """Return a node on Redis. Without room for a spool, its clients get errors in an outage."""
    faults = Faults(random.Random(rng.random()))
    spool_bytes = rng.choice([0, 10_000_000])
    return Node(OfflineStore(unreliable_redis(url, faults), "fuzz", directory, spool_bytes, LIMITS), faults, now)


class Cluster:
    """Nodes on one store. Each may crash, and is replaced by a new one."""

    def __init__(self, make: Callable[[], Node], rng: random.Random) -> None:
        self._make, self._rng = make, rng
        self.nodes: list[Node] = []
        self.dead: list[Node] = []

    async def add(self) -> None:
        self.nodes.append(await self._make().start())

    async def crash(self) -> None:
        """Crash a node. Its clients see its replacement first, so that they never lack a node."""
        node = self._rng.choice(self.nodes)
        await self.add()
        self.nodes.remove(node)
        self.dead.append(node)
        await node.crash()

    async def recover_orphans(self) -> None:
        with contextlib.suppress(OutcomeUnknown, StoreUnavailable):
            await self._rng.choice(self.nodes).store.recover_orphans()

    async def execute_late(self, number: int) -> None:
        """Execute so many of the late requests of a node, which may be dead."""
        await self._rng.choice([*self.nodes, *self.dead]).faults.execute_late(number)

    async def settle(self) -> None:
        """End all faults, and wait until every spooled hit is replayed."""
        for node in [*self.nodes, *self.dead]:
            node.faults.rate = 0
        await eventually(lambda: all(node.is_online for node in self.nodes))
        await self.nodes[0].store.recover_orphans()

    async def execute_all_late(self) -> None:
        """Execute all late requests, in any order."""
        for node in [*self.nodes, *self.dead]:
            await node.faults.execute_late(len(node.faults.late))

    async def close(self) -> None:
        for node in [*self.nodes, *self.dead]:
            await node.close()
