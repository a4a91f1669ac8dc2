"""Offline stores in front of a real Redis, and what their tests have in common."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from zoneinfo import ZoneInfo

import httpx

from app.domain.buckets import TOTAL
from app.domain.calendar import Calendar
from app.domain.counting import Commit, HitGroup
from app.stores.base import StoreLimits
from app.stores.offline import OfflineStore
from app.stores.redis import RedisStore
from app.stores.redis_url import RedisTarget
from tests.support.redis_servers import RedisServer
from tests.support.servers import eventually

NOON = Calendar(ZoneInfo("UTC")).slot(1_795_435_200)
YESTERDAY = Calendar(ZoneInfo("UTC")).slot(1_795_435_200 - 86_400)
LIMITS = StoreLimits(1000)
# The options with which Redis keeps every acknowledged hit when it is killed.
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


def hits(event: str, by: int, slot=NOON) -> Commit:
    return [HitGroup(slot, {event: by})]


def redis_store(server: RedisServer, names: int = 1000) -> RedisStore:
    return RedisStore(RedisTarget.from_url(server.url), StoreLimits(names))


def offline_store(
    server: RedisServer, directory: Path, bytes_max: int = 10**6, identity: str = "redis", limits: StoreLimits = LIMITS
) -> OfflineStore:
    return OfflineStore(redis_store(server, limits.names), identity, directory, bytes_max, limits)


@contextlib.asynccontextmanager
async def opened(store: OfflineStore) -> AsyncIterator[OfflineStore]:
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def total_of(server: RedisServer, event: str) -> int:
    """Return what Redis itself has."""
    store = redis_store(server)
    (totals,) = await store.read([TOTAL], [event])
    await store.close()
    return totals.get(event, 0)


async def wait_online(store: OfflineStore) -> None:
    """Wait until everything is replayed."""
    await eventually(lambda: store.status().stale_seconds is None)


async def wait_ok(client: httpx.AsyncClient) -> None:
    """Wait until /health reports that all is well."""

    async def is_ok() -> bool:
        return (await client.get("/health")).json()["status"] == "ok"

    await eventually(is_ok)
