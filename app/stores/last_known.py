"""The counts that reads return while the store is unreachable."""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from app.domain.buckets import ALL_EVENTS, CORRECTION, GENERATION, TOTAL, Bucket
from app.domain.calendar import TimeSlot
from app.domain.counting import Commit, DayChange
from app.stores.base import StoreLimits
from app.stores.memory import MemoryStore
from app.stores.results import ApplyResult, GroupResult

DEFERRED_READS_MAX = 100


class CachedRead(NamedTuple):
    """The counts that the store returned for a bucket. `whole` is true if they include all of its members."""

    bucket: Bucket
    counts: Mapping[str, int]
    whole: bool


class LastKnownCounts:
    """The last counts that the store returned, with the spooled commits on top.

    `store` has what was merged so far. `generations` has the last known generation of each day (UTC second of its
    start) that an administrator has changed.

    A read of a whole bucket may be large, and the next one replaces it. It is merged only when an outage starts, so
    that reading stays cheap.
    """

    def __init__(self) -> None:
        self.store = _empty_store()
        self.generations: dict[int, int] = {}
        self._refilled_at: dict[int, int] = {}
        self._whole_reads: dict[Bucket, Mapping[str, int]] = {}
        self._deferred_reads: deque[CachedRead] = deque(maxlen=DEFERRED_READS_MAX)

    @property
    def is_outdated(self) -> bool:
        """Return whether a day has been changed since `refill`, so that counts may be too high."""
        return self._refilled_at != self.generations

    def merge_reads(self, reads: Iterable[CachedRead], *, commit_in_flight: bool) -> None:
        """Add counts that the store returned.

        During a commit, wait until its outcome is known. If it is spooled, it is counted on top, so merging a read
        that includes it would show it twice.
        """
        if commit_in_flight:
            self._deferred_reads.extend(reads)
            return
        for bucket, counts, whole in reads:
            if whole and not bucket.dimension:
                self._whole_reads[bucket] = counts
            else:
                self.store.merge_counts(bucket, counts)

    def merge_deferred_reads(self) -> None:
        """Add the counts that were read during a commit that has ended, unless `start_outage` has dropped it."""
        reads = list(self._deferred_reads)
        self._deferred_reads.clear()
        self.merge_reads(reads, commit_in_flight=False)

    def merge_result(self, commit: Commit, result: ApplyResult) -> None:
        """Add the values of a commit that the store has applied."""
        for group, group_result in zip(commit, result.groups, strict=True):
            self.store.merge_values(group.slot.day, group_result.counted)
        self.drop_stale_generations(result.generations)

    def merge_change(self, change: DayChange, result: ApplyResult) -> None:
        """Apply an administrative change that the store has applied."""
        # Without a new generation it is a line of an import, which may be large.
        if self._moved(result.generations):
            self.store.write(change.writes)
        self.drop_stale_generations(result.generations)

    def drop_stale_generations(self, generations: Mapping[int, int]) -> None:
        """Drop whole reads if one of these days has another generation than is known.

        A change of any day also changes the totals, so all of them are dropped. Merged counts stay until `refill`:
        outdated counts are better than none.
        """
        for day, generation in self._moved(generations).items():
            self.generations[day] = generation
            self._whole_reads.clear()
            self._deferred_reads.clear()
            self.store.merge_counts(Bucket("day", day, GENERATION), {ALL_EVENTS: generation})

    def _moved(self, generations: Mapping[int, int]) -> dict[int, int]:
        return dict(generations.items() - self.generations.items())

    def start_outage(self) -> None:
        """Merge whole reads, and drop deferred ones, which may include a commit that is now counted on top."""
        self._deferred_reads.clear()
        for bucket, counts in self._whole_reads.items():
            self.store.merge_counts(bucket, counts)
        self._whole_reads.clear()

    def count(self, commit: Commit) -> list[GroupResult]:
        """Count a spooled commit on top, without limits, and return its results."""
        return self.store.count([msgspec.structs.replace(group, limited=False) for group in commit])

    def buckets_to_refill(self) -> list[Bucket]:
        """Return the buckets that administrative changes have written to: the totals, and those of changed days."""
        dimensions = ("", CORRECTION, GENERATION)
        return [TOTAL, *(Bucket("day", day, dimension) for day in self.generations for dimension in dimensions)]

    def refill(self, found: Mapping[Bucket, Mapping[str, int]], generations: Mapping[int, int]) -> None:
        """Start again with these counts. `generations` are those that were known before the store was read."""
        self.store, self._refilled_at = _empty_store(), dict(generations)
        self._whole_reads.clear()
        for bucket, counts in found.items():
            self.store.merge_counts(bucket, counts)

    async def prune(self, cutoffs: Mapping[str, int], slot: TimeSlot) -> None:
        """Delete the same buckets as `CounterStore.prune`."""
        await self.store.prune(cutoffs, slot)
        for bucket in [bucket for bucket in self._whole_reads if bucket.start < cutoffs.get(bucket.step, 0)]:
            del self._whole_reads[bucket]


def _empty_store() -> MemoryStore:
    return MemoryStore(StoreLimits(names=0))
