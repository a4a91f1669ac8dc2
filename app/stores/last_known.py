"""The counts that reads return while the store is unreachable."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from app.domain.buckets import ALL_EVENTS, CORRECTION, GENERATION, SKETCH, TOTAL, Bucket
from app.domain.calendar import TimeSlot
from app.domain.counting import Commit, DayChange
from app.stores.base import StoreLimits
from app.stores.memory import MemoryStore
from app.stores.results import ApplyResult, GroupResult, Value

DEFERRED_READS_MAX = 100
# Counts that are kept besides the totals and those of today, which TALLY_EVENTS_MAX limits, and as many of idempotency
# keys. They need up to 160 MB.
ENTRIES_MAX = 500_000
RECENT_SECONDS = 3600  # minutes that are kept if a read returned all of their events


class CachedRead(NamedTuple):
    """The counts that the store returned for a bucket. `whole` is true if they include all of its members."""

    bucket: Bucket
    counts: Mapping[str, int]
    whole: bool


class LastKnownCounts:
    """The last counts that the store returned, with the spooled commits on top, within the limits of the store.

    `store` has what was merged so far. `generations` has the last known generation of each day (UTC second of its
    start) that an administrator has changed.

    A read of a whole bucket may be large, and the next one replaces it. It is kept only if clients may ask for it again
    in an outage, and merged only when an outage starts, so that reading stays cheap.
    """

    def __init__(self, limits: StoreLimits) -> None:
        self._limits = limits
        self.store = _BoundedStore(limits)
        self.generations: dict[int, int] = {}
        self._refilled_at: dict[int, int] = {}
        self._is_refilling = False
        self._newer_values: dict[int, dict[str, Value]] = {}  # by day, of commits since `begin_refill`
        self._whole_reads: dict[Bucket, Mapping[str, int]] = {}
        self._deferred_reads: deque[CachedRead] = deque()
        self._deferred_counts: deque[tuple[int, Mapping[str, int]]] = deque(maxlen=DEFERRED_READS_MAX)
        self._newest_start: dict[str, int] = {}  # by step, of the buckets that were read or counted

    @property
    def is_outdated(self) -> bool:
        """Return whether a day has been changed since `refill`, so that counts may be too high."""
        return self._refilled_at != self.generations

    def merge_reads(self, reads: Sequence[CachedRead], *, commit_in_flight: bool) -> None:
        """Add counts that the store returned.

        During a commit, wait until its outcome is known. If it is spooled, it is counted on top, so merging a read
        that includes it would show it twice.
        """
        generations = {r.bucket.start: r.counts[ALL_EVENTS] for r in reads if r.bucket.dimension == GENERATION}
        if generations:
            self.drop_stale_generations(generations)
        for read in reads:
            self._see(read.bucket)
        # A whole bucket of the past, such as those of an export, is not kept.
        kept = [read for read in reads if not read.whole or self._is_recent(read.bucket)]
        if commit_in_flight:
            # Whole reads may be large, so only the last one of each bucket waits.
            replaced = {read.bucket for read in kept if read.whole}
            waiting = [r for r in self._deferred_reads if not (r.whole and r.bucket in replaced)]
            self._deferred_reads = deque([*waiting, *kept], DEFERRED_READS_MAX)
            return
        for bucket, counts, whole in kept:
            if whole and not bucket.dimension:
                self._whole_reads[bucket] = counts
                self._drop_old_reads()
            else:
                self.store.merge_counts(bucket, counts)
                self.store.shrink(len(counts), self._newest_start.get("day", 0))

    def _see(self, bucket: Bucket) -> None:
        if bucket.start > self._newest_start.get(bucket.step, -1):
            self._newest_start[bucket.step] = bucket.start

    def _see_slot(self, slot: TimeSlot) -> None:
        if slot.minute > self._newest_start.get("minute", -1):
            for bucket in slot.buckets:
                self._see(bucket)

    def _is_recent(self, bucket: Bucket) -> bool:
        age = self._newest_start.get(bucket.step, 0) - bucket.start
        return age < (RECENT_SECONDS if bucket.step == "minute" else 1) and not bucket.dimension.startswith(SKETCH)

    def _drop_old_reads(self) -> None:
        """Drop whole reads that are no longer recent, and the least recent ones if they have too many counts."""
        size = 0
        for bucket in sorted(self._whole_reads, key=lambda bucket: (bucket.step == "minute", -bucket.start)):
            size += len(self._whole_reads[bucket])
            if not self._is_recent(bucket) or (bucket.step == "minute" and size > ENTRIES_MAX):
                del self._whole_reads[bucket]

    def merge_counts_of_day(
        self, day: int, counts: Mapping[str, int], generation: int, *, commit_in_flight: bool
    ) -> None:
        """Add counts of the day that starts at this UTC second, which another node got from the store."""
        if self.generations.get(day, 0) != generation:
            return
        if commit_in_flight:
            self._deferred_counts.append((day, counts))
        else:
            self.store.merge_values(day, {event: Value(count, count) for event, count in counts.items()})

    def merge_deferred(self) -> None:
        """Add the counts that arrived during a commit that has ended, unless `start_outage` has dropped them."""
        reads, counts_of_days = list(self._deferred_reads), list(self._deferred_counts)
        self._drop_deferred()
        self.merge_reads(reads, commit_in_flight=False)
        for day, counts in counts_of_days:
            self.merge_counts_of_day(day, counts, self.generations.get(day, 0), commit_in_flight=False)

    def _drop_deferred(self) -> None:
        self._deferred_reads.clear()
        self._deferred_counts.clear()

    def merge_result(self, commit: Commit, result: ApplyResult) -> None:
        """Add the values of a commit that the store has applied."""
        for group, group_result in zip(commit, result.groups, strict=True):
            self._see_slot(group.slot)
            self.store.merge_values(group.slot.day, group_result.counted)
            if self._is_refilling:
                self._newer_values.setdefault(group.slot.day, {}).update(group_result.counted)
            self.store.shrink(2 * len(group.amounts), group.slot.day)
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
            self._drop_deferred()
            self.store.merge_counts(Bucket("day", day, GENERATION), {ALL_EVENTS: generation})

    def _moved(self, generations: Mapping[int, int]) -> dict[int, int]:
        return dict(generations.items() - self.generations.items())

    def start_outage(self) -> None:
        """Merge whole reads, and drop deferred counts, which may include a commit that is now counted on top."""
        self._drop_deferred()
        for bucket, counts in self._whole_reads.items():
            self.store.merge_counts(bucket, counts)
            self.store.shrink(len(counts), self._newest_start.get("day", 0))
        self._whole_reads.clear()

    def count(self, commit: Commit) -> list[GroupResult]:
        """Count a spooled commit on top, and return its results. The limits are those of the known names and keys."""
        for group in commit:
            self._see_slot(group.slot)
        results = self.store.count(commit)
        added = sum(4 * len(group.amounts) + 8 * len(group.visits) + 1 for group in commit)
        self.store.shrink(added, self._newest_start.get("day", 0))
        return results

    def begin_refill(self) -> list[Bucket]:
        """Return the buckets to read again after an administrative change: the totals, and those of the changed day."""
        self._is_refilling, self._newer_values = True, {}
        dimensions = ("", CORRECTION, GENERATION)
        days = [day for day in self.generations if day >= self._newest_start.get("day", 0)]
        return [TOTAL, *(Bucket("day", day, dimension) for day in days for dimension in dimensions)]

    def refill(self, found: Mapping[Bucket, Mapping[str, int]], generations: Mapping[int, int]) -> None:
        """Start again with these counts, and the values of commits during the read, which it may lack.

        `generations` are those that were known before the read.
        """
        self.store, self._refilled_at = _BoundedStore(self._limits), dict(generations)
        self._whole_reads.clear()
        for bucket, counts in found.items():
            self.store.merge_counts(bucket, counts)
        for day, values in self._newer_values.items():
            self.store.merge_values(day, values)
        self._is_refilling, self._newer_values = False, {}

    async def prune(self, cutoffs: Mapping[str, int], slot: TimeSlot) -> None:
        """Delete the same buckets as `CounterStore.prune`."""
        self._see_slot(slot)
        await self.store.prune(cutoffs, slot)
        for bucket in [bucket for bucket in self._whole_reads if bucket.start < cutoffs.get(bucket.step, 0)]:
            del self._whole_reads[bucket]


class _BoundedStore(MemoryStore):
    """A memory store that drops what is needed least."""

    def __init__(self, limits: StoreLimits) -> None:
        super().__init__(limits)
        self._added = 0  # an upper bound of the counts that were added since it was last checked

    def shrink(self, added: int, day: int) -> None:
        """Drop visitors, then the oldest buckets, down to ENTRIES_MAX, and idempotency keys too.

        `added` counts were added. Those of this day and later (UTC second of its start) and the totals are kept.
        """
        self._added += added
        if self._added < ENTRIES_MAX // 10:
            return
        self._added = 0
        kept = {TOTAL, *(Bucket("day", day, dimension) for dimension in ("", CORRECTION, GENERATION))}
        # An empty bucket needs memory, too.
        size = sum(len(counts) + 3 for bucket, counts in self._buckets.items() if bucket not in kept)
        for bucket in sorted(self._buckets.keys() - kept, key=lambda bucket: (not bucket.dimension, bucket.start)):
            if size <= ENTRIES_MAX:
                break
            size -= len(self._buckets[bucket]) + 3
            self._drop(bucket)
        size = sum(len(record.result.values) + 5 for record in self._keys.values())
        for key in list(self._keys):
            if size <= ENTRIES_MAX:
                break
            size -= len(self._keys[key].result.values) + 5
            self._drop_key(key)
