"""Reads of the store for the routes. Long work is done in slices, so that it does not delay hits."""

import asyncio
import heapq
import math
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import Literal, TypeVar

from app.domain.buckets import Bucket, Step
from app.domain.calendar import Calendar, Clock
from app.stores.base import CounterStore

SLICE = 2000  # events handled before other tasks run, about a millisecond of work
LARGE_READS_MAX = 4  # at once, because each holds the counts of all events; others wait
PAUSE_SECONDS = 0.001  # the shortest pause after a slice; the event loop does not wait for less

T = TypeVar("T")
# The position of an event in a listing: its sort value, then its name.
SortKey = tuple[float, str]
FIRST: SortKey = (-math.inf, "")
_LAST: SortKey = (math.inf, "")


class CountQueries:
    """Reads that several routes need. `large_reads` is held while a route reads the counts of all events."""

    def __init__(self, store: CounterStore, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.large_reads = asyncio.Semaphore(LARGE_READS_MAX)

    @property
    def calendar(self) -> Calendar:
        """The calendar of the clock."""
        return self.clock.calendar

    def buckets(self, step: Step, points: int, until: float | None = None) -> list[Bucket]:
        """Return the last `points` buckets of events, oldest first; the last one contains `until`, or now."""
        at = self.clock.at() if until is None else min(until, self.clock.at())
        return [Bucket(step, start) for start in self.calendar.starts(step, at, points)]

    async def counts_today(self) -> Mapping[str, int]:
        """Return the current day's count of every event, and their sum under ALL_EVENTS."""
        return await self.store.counts(self.clock.slot().day)

    async def sum_buckets(self, buckets: Sequence[Bucket]) -> Mapping[str, int]:
        """Return the sum of these buckets by member: events and ALL_EVENTS, or visitors."""
        first, *others = await self.store.read(buckets)
        if not others:
            return first
        sums = dict(first)
        for counts in others:
            await add_counts(sums, counts)
        return sums

    async def rank(self, counts: Mapping[str, int], limit: int) -> list[tuple[int, str, int]]:
        """Return rank, name and count of the members with the largest counts."""
        top = await first_sorted(((-count, name) for name, count in counts.items() if count and name), limit)
        return [(rank, name, counts[name]) for rank, (_, name) in enumerate(top, 1)]


async def add_counts(sums: dict[str, int], counts: Mapping[str, int], sign: Literal[1, -1] = 1) -> None:
    """Add counts to sums by member, or subtract them."""
    async for part in slices(counts.items()):
        for member, count in part:
            sums[member] = sums.get(member, 0) + sign * count


async def slices(items: Iterable[T], size: int = SLICE) -> AsyncIterator[list[T]]:
    """Yield the items in lists of this size. After each, hits get the event loop for as long as the slice took."""
    left = iter(items)
    part = list(islice(left, size))
    while part:
        began = time.perf_counter()
        yield part
        if part := list(islice(left, size)):
            await asyncio.sleep(max(PAUSE_SECONDS, time.perf_counter() - began))


async def first_sorted(
    keys: Iterable[SortKey], limit: int | None, after: SortKey = FIRST, prefix: str = ""
) -> list[SortKey]:
    """Return the first `limit` sort keys after `after`, in order, of names with this prefix; all without a limit."""
    runs: list[list[SortKey]] = []
    end = _LAST
    async for part in slices(keys):
        runs.append(sorted(key for key in part if after < key < end and key[1].startswith(prefix)))
        if limit is not None:
            top = sorted(chain(*runs))[:limit]
            runs = [top]
            end = top[-1] if len(top) == limit else _LAST
    return [key async for part in slices(heapq.merge(*runs)) for key in part]
