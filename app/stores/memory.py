"""Counters in dictionaries. They are lost when the process ends."""

import heapq
import math
import multiprocessing
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter

from app.domain.buckets import (
    ALL_EVENTS,
    CORRECTION,
    CORRECTION_LOG,
    GENERATION,
    SKETCH,
    TOTAL,
    Bucket,
    is_event_bucket,
)
from app.domain.calendar import TimeSlot
from app.domain.counting import BucketWrite, Commit, DayChange, HitGroup, IdempotencyKey
from app.stores import hyperloglog, rules
from app.stores.base import CounterStore, StoreLimits, StoreOpenError, WriteConflict
from app.stores.records import MemoryRecords
from app.stores.results import Ack, ApplyResult, GroupResult, Value
from app.stores.rules import (
    IDEMPOTENCY_TTL_SECONDS,
    PERMANENT_SOURCE_PREFIX,
    SOURCE_TTL_SECONDS,
    IdempotencyRecord,
    check_idempotency,
    counted_visits,
    decide,
    is_retry,
    result_to_save,
    takeable,
    visitor_cutoffs,
    with_present_values,
)


class MemoryStore(CounterStore):
    """The store for demos and tests, and the shortest implementation of the contract."""

    kind = "memory"
    ack: Ack = "memory"
    durability = "only until this process stops"

    def __init__(self, limits: StoreLimits) -> None:
        self._limits = limits
        self.records = MemoryRecords()
        self._buckets: defaultdict[Bucket, dict[str, int]] = defaultdict(dict)
        # By source: its offset, the result of its last commit, and the minute (UTC second) of that commit.
        self._sources: dict[str, tuple[int, ApplyResult, int]] = {}
        self._notes: dict[str, str] = {}  # by source
        self._keys: dict[str, IdempotencyRecord] = {}  # oldest first
        self._client_keys: Counter[str] = Counter()
        self._ranked: Counter[Bucket] = Counter()  # visitors that have a count

    async def open(self) -> None:
        if multiprocessing.parent_process():
            raise StoreOpenError(
                "memory:// serves one process: run it without --workers, or set TALLY_STORE to a Redis"
            )

    async def apply(
        self, source: str, expected_offset: int, new_offset: int, commit: Commit, note: str = ""
    ) -> ApplyResult:
        slots = [group.slot for group in commit]
        result = self._apply_once(source, expected_offset, new_offset, slots, lambda: self.count(commit))
        if note:
            self._notes[source] = note
        return result

    async def apply_change(self, source: str, expected_offset: int, new_offset: int, change: DayChange) -> ApplyResult:
        def write() -> list[GroupResult]:
            corrections = len(self._buckets.get(Bucket("day", change.slot.day, CORRECTION_LOG), {}))
            if change.expected_corrections not in {None, corrections}:
                raise WriteConflict
            self.write(change.writes)
            return []

        return self._apply_once(source, expected_offset, new_offset, [change.slot], write)

    async def get_offset(self, source: str) -> int:
        return self._sources[source][0] if source in self._sources else 0

    async def get_note(self, source: str) -> str:
        return self._notes.get(source, "")

    def _apply_once(
        self,
        source: str,
        expected_offset: int,
        new_offset: int,
        slots: Sequence[TimeSlot],
        write: Callable[[], list[GroupResult]],
    ) -> ApplyResult:
        """Write and move the source, or return the saved result if it is at the new offset."""
        offset, result, _ = self._sources.get(source, (0, ApplyResult([], self.ack), 0))
        if is_retry(offset, expected_offset, new_offset):
            return result
        days = {slot.day for slot in slots}
        result = ApplyResult(write(), self.ack, {day: n for day in days if (n := self._generation(day))})
        self._sources[source] = (new_offset, result, max((slot.minute for slot in slots), default=0))
        return result

    def count(self, commit: Commit) -> list[GroupResult]:
        """Count hit groups without an offset, and return their results."""
        return [result for slot, groups in groupby(commit, attrgetter("slot")) for result in self._count(slot, groups)]

    def _count(self, slot: TimeSlot, groups: Iterable[HitGroup]) -> Iterator[GroupResult]:
        buckets = [self._buckets[bucket] for bucket in slot.buckets]
        corrections = self._buckets.get(Bucket("day", slot.day, CORRECTION), {})
        _, _, day, total = buckets
        names_max, sum_of_all = self._limits.names + (ALL_EVENTS in total), 0

        def value_of(event: str) -> tuple[int, int] | None:
            return (day.get(event, 0) + corrections.get(event, 0), total[event]) if event in total else None

        for group in groups:
            names_left = names_max - len(total) if group.limited else math.inf
            replay = group.key and self._check_key(group, group.key)
            result = with_present_values(replay, group, value_of) if replay else decide(group, value_of, names_left)
            for event in result.counted:
                by = group.amounts[event]
                sum_of_all += by
                for counts in buckets:
                    counts[event] = counts.get(event, 0) + by
            for bucket, visitor, by in counted_visits(group, result):
                self._count_visitor(bucket, visitor, by)
            if group.key and result.is_counted:
                self._save_key(group.key, slot, result)
            yield result
        for counts in buckets if sum_of_all else ():
            counts[ALL_EVENTS] = counts.get(ALL_EVENTS, 0) + sum_of_all

    def _save_key(self, key: IdempotencyKey, slot: TimeSlot, result: GroupResult) -> None:
        replay = GroupResult(result_to_save(result).values, {}, slot.date)
        self._keys[key.id] = IdempotencyRecord(key.request, slot.minute, replay, key.client)
        self._client_keys[key.client] += 1

    def _check_key(self, group: HitGroup, key: IdempotencyKey) -> GroupResult | None:
        self._expire_keys(group.slot)
        record, limits = self._keys.get(key.id), self._limits if group.limited else None
        return check_idempotency(key, group.slot.minute, record, len(self._keys), self._client_keys[key.client], limits)

    def _expire_keys(self, slot: TimeSlot) -> None:
        while self._keys:
            oldest = next(iter(self._keys))
            if self._keys[oldest].minute > slot.minute - IDEMPOTENCY_TTL_SECONDS:
                return
            self._drop_key(oldest)

    def _drop_key(self, key: str) -> None:
        client = self._keys.pop(key).client
        self._client_keys[client] -= 1
        if not self._client_keys[client]:
            del self._client_keys[client]

    def _count_visitor(self, bucket: Bucket, visitor: str, by: int) -> None:
        """Add to a user's or session's count, which stays 0 for those after the first RANKED_VISITORS_MAX.

        Those after the first STORED_VISITORS_MAX only add to the bucket's HyperLogLog.
        """
        counts = self._buckets[bucket]
        if len(counts) >= rules.STORED_VISITORS_MAX and visitor not in counts:
            hyperloglog.add(self._buckets[bucket._replace(dimension=SKETCH + bucket.dimension)], [visitor])
            return
        count = counts.setdefault(visitor, 0)
        if by and (count or self._ranked[bucket] < rules.RANKED_VISITORS_MAX):
            self._ranked[bucket] += not count
            counts[visitor] += by

    def merge_counts(self, bucket: Bucket, counts: Mapping[str, int]) -> None:
        """Merge counts that were read from another store. The larger count of an event is the newer one."""
        known = self._buckets[bucket]
        known.update(
            counts if bucket.dimension else {event: n for event, n in counts.items() if n > known.get(event, 0)}
        )

    def merge_values(self, start: int, values: Mapping[str, Value]) -> None:
        """Merge values that another store returned for the day that starts at this UTC second."""
        day, total = self._buckets[Bucket("day", start)], self._buckets[TOTAL]
        corrections = self._buckets.get(Bucket("day", start, CORRECTION), {})
        for event, value in values.items():
            day[event] = max(day.get(event, 0), value.count - corrections.get(event, 0))
            total[event] = max(total.get(event, 0), value.total)

    async def read(self, buckets: Sequence[Bucket], members: Sequence[str] | None = None) -> list[dict[str, int]]:
        found = [self._buckets.get(bucket, {}) for bucket in buckets]
        if members is None:
            return [dict(counts) for counts in found]
        return [{member: counts[member] for member in members if member in counts} for counts in found]

    async def read_at_once(self, buckets: Sequence[Bucket], member: str) -> list[dict[str, int]]:
        found = [self._buckets.get(bucket, {}) for bucket in buckets]
        return [{member: counts[member]} if member in counts else {} for counts in found]

    async def sizes(self, buckets: Sequence[Bucket]) -> list[int]:
        return [len(counts) - (ALL_EVENTS in counts) for counts in (self._buckets.get(b, {}) for b in buckets)]

    async def list_buckets(self, days: Sequence[int] | None = None) -> list[Bucket]:
        return [b for b in self._buckets if days is None or (b.step == "day" and b.start in days)]

    async def newest_days(self) -> list[int]:
        return heapq.nlargest(2, (b.start for b in self._buckets if b.step == "day" and not b.dimension))

    async def prune(self, cutoffs: Mapping[str, int], slot: TimeSlot) -> None:
        self._expire_keys(slot)
        for source, (_, _, used) in list(self._sources.items()):
            # Only commits without hits have been used at 0, and they are those of few sources.
            if 0 < used < slot.minute - SOURCE_TTL_SECONDS and not source.startswith(PERMANENT_SOURCE_PREFIX):
                del self._sources[source]
        cutoffs_by_kind = cutoffs, visitor_cutoffs(cutoffs, slot)
        for bucket in [b for b in self._buckets if b.start < cutoffs_by_kind[bool(b.dimension)].get(b.step, 0)]:
            self._drop(bucket)

    def _drop(self, bucket: Bucket) -> None:
        self._buckets.pop(bucket, None)
        self._ranked.pop(bucket, None)

    def _generation(self, day: int) -> int:
        return self._buckets.get(Bucket("day", day, GENERATION), {}).get(ALL_EVENTS, 0)

    def write(self, writes: Iterable[BucketWrite]) -> None:
        """Do bucket writes without an offset."""
        for op, bucket, amounts in writes:
            if op == "drop":
                self._drop(bucket)
            else:
                self._write(op, bucket, amounts)

    def _write(self, op: str, bucket: Bucket, amounts: Mapping[str, int]) -> None:
        counts, added = self._buckets[bucket], 0
        for member, by in amounts.items():
            count = counts.get(member, 0)
            if op == "mark":
                self._count_visitor(bucket, member, by)
            elif op == "take":
                taken = takeable(count, by)
                counts[member] = count - taken
                if not counts[member]:
                    self._ranked[bucket] -= count > 0
                    del counts[member]
                added -= taken
            else:
                counts[member] = max(by, count) if op == "merge" else count + by
                added += by
        if is_event_bucket(bucket) and amounts:
            counts[ALL_EVENTS] = counts.get(ALL_EVENTS, 0) + added
