"""Commits, time slots and reads that the contract tests share."""

import zlib
from collections.abc import Awaitable
from typing import Protocol
from zoneinfo import ZoneInfo

import pytest

from app.domain.buckets import Bucket
from app.domain.calendar import Calendar, TimeSlot
from app.domain.counting import Commit, DayChange, HitGroup, IdempotencyKey, Visit
from app.stores.base import CounterStore
from app.stores.results import ApplyResult

EVERY_STORE = ["memory", "sqlite", "redis", "spooled", "cluster"]
DURABLE_STORES = EVERY_STORE[1:]
UNSHARDED_STORES = EVERY_STORE[:-1]  # each shard of a cluster has a part of every limit

# Names in the same shard of a cluster with 16 shards, so that a limit on them is exact there, too.
ONE_SHARD_NAMES = [name for name in map(str, range(2000)) if zlib.crc32(name.encode()) % 16 == 5]

CALENDAR = Calendar(ZoneInfo("UTC"))
NOON = CALENDAR.slot(1_795_435_200)
LATER = CALENDAR.slot(1_795_435_200 + 86_400)


class StoreMaker(Protocol):
    """Makes stores that share a file or a server, which it can empty and inspect."""

    def __call__(self, names: int = 1000, keys: int = 1000) -> CounterStore:
        """Return a store with these limits, not opened yet."""

    def flush(self) -> None:
        """Delete all data."""

    def key_ttls(self) -> dict[str, int]:
        """Return the seconds to live of every Redis key, -1 if it does not expire; nothing for other stores."""


def on_every_store(stores: list[str] = EVERY_STORE, **mutants: pytest.MarkDecorator) -> pytest.MarkDecorator:
    """Run a test on these stores. Each keyword is a store and the mutant that its run has to kill."""
    params = [pytest.param(store, marks=mutants.get(store, ())) for store in stores]
    return pytest.mark.parametrize("make_store", params, indirect=True)


def commit_of(*amounts: dict[str, int], slot: TimeSlot = NOON, limited: bool = True) -> Commit:
    """Return a commit with an atomic hit group of each of these amounts."""
    return [HitGroup(slot, group, limited=limited) for group in amounts]


def keyed_commit(
    key: IdempotencyKey, by: int = 1, slot: TimeSlot = NOON, event: str = "a", limited: bool = True
) -> Commit:
    """Return a commit of one hit with an idempotency key."""
    return [HitGroup(slot, {event: by}, key, limited)]


def visits_commit(*visits: tuple[str, str | None, str | None], slot: TimeSlot = NOON, event: str = "a") -> Commit:
    """Return a commit of one hit group with these visits, each (event, user, session)."""
    return [HitGroup(slot, {event: len(visits)}, visits=[Visit(e, 1, user, session) for e, user, session in visits])]


def visitors_of(kind: str, event: str, bucket: Bucket) -> Bucket:
    """Return the bucket of an event's users or sessions in the same time as this one."""
    return bucket._replace(dimension=f"{kind}:{event}")


async def read_day(store: CounterStore, slot: TimeSlot = NOON) -> dict[str, int]:
    """Return the hits of a day by event."""
    (counts,) = await store.read([Bucket("day", slot.day)])
    return counts


async def apply_planned(
    store: CounterStore, plan: Awaitable[tuple[DayChange, object]], source: str = "admin"
) -> ApplyResult:
    """Apply a planned change, and check that a retry after another commit changes nothing."""
    change, _ = await plan
    result = await store.apply_change(source, 0, 1, change)
    await store.apply("between", 0, 1, commit_of({"z": 1}))
    assert await store.apply_change(source, 0, 1, change) == result
    return result
