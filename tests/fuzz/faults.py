"""Stores whose writes fail at random, as they do on a bad network."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from app.stores.base import CounterStore, OutcomeUnknown, StoreError, StoreLimits, StoreUnavailable
from app.stores.memory import MemoryStore
from app.stores.redis import RedisStore
from app.stores.redis_sharded import ShardedRedisStore
from app.stores.redis_url import RedisTarget
from app.stores.sqlite import SqliteStore

LIMITS = StoreLimits(1000)
# What can happen to a request. A late one is executed when its caller has an error already.
LOCAL_FATES = ("refused", "lost", "response lost", "twice")
NETWORK_FATES = (*LOCAL_FATES, "late")

T = TypeVar("T")


class Faults:
    """Decides what happens to each request to a store: at this `rate`, one of these `fates`.

    `late` has the requests that are yet to be executed. Their callers have an error already.
    """

    def __init__(self, rng: random.Random, fates: Sequence[str] = NETWORK_FATES, rate: float = 0.2) -> None:
        self._rng = rng
        self.fates, self.rate = fates, rate
        self.late: list[Callable[[], Awaitable[object]]] = []

    async def execute(self, send: Callable[[], Awaitable[T]]) -> T:
        """Send a request, or lose it, keep it for later, send it twice, or lose its response."""
        await asyncio.sleep(0)
        if self._rng.random() >= self.rate:
            return await send()
        fate = self._rng.choice(self.fates)
        if fate == "refused":
            raise StoreUnavailable(fate)
        if fate == "late":
            self.late.append(send)
        elif fate != "lost":
            reply = await send()
            if fate == "twice":
                return await send()
            raise OutcomeUnknown(f"after {reply}")
        raise OutcomeUnknown(fate)

    async def execute_late(self, number: int) -> None:
        """Execute so many of the late requests, in any order."""
        for _ in range(min(number, len(self.late))):
            send = self.late.pop(self._rng.randrange(len(self.late)))
            with contextlib.suppress(StoreError):
                await send()


class UnreliableRedis(RedisStore):
    """A shard whose scripts meet these faults. Reads and connections work."""

    def __init__(self, target: RedisTarget, shard: int, faults: Faults) -> None:
        super().__init__(target, LIMITS, shard)
        self._faults = faults

    async def _evaluate(self, *arguments: Any, **named: Any) -> tuple[str, str]:
        evaluate = super()._evaluate
        return await self._faults.execute(lambda: evaluate(*arguments, **named))


def unreliable_redis(url: str, faults: Faults) -> CounterStore:
    """Return a store on this Redis, or on all shards of this cluster."""
    target = RedisTarget.from_url(url)
    shards = [UnreliableRedis(target, shard, faults) for shard in range(target.shards)]
    return ShardedRedisStore(shards) if target.shards > 1 else shards[0]


class _UnreliableWrites(CounterStore):
    """Makes the writes of a store meet faults."""

    faults: Faults

    async def apply(self, *arguments: Any, **named: Any) -> Any:
        apply = super().apply
        return await self.faults.execute(lambda: apply(*arguments, **named))

    async def apply_change(self, *arguments: Any, **named: Any) -> Any:
        apply_change = super().apply_change
        return await self.faults.execute(lambda: apply_change(*arguments, **named))


class UnreliableMemory(_UnreliableWrites, MemoryStore):
    pass


class UnreliableSqlite(_UnreliableWrites, SqliteStore):
    pass
