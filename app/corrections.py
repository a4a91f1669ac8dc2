"""Administrative changes: correct, delete, reset and erase, as bucket writes that a store applies in one step.

A change is planned from counts that were read earlier. It adds differences instead of setting numbers, so hits that
were counted in between are kept. If another change was applied in between, the store rejects this one with
WriteConflict, and it is planned again.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import msgspec

from app.domain.buckets import (
    ALL_EVENTS,
    BEFORE_RESET,
    CORRECTION_LOG,
    GENERATION,
    TOTAL,
    VISITOR_DIMENSIONS,
    Bucket,
    is_event_bucket,
    visitor_dimensions,
)
from app.domain.calendar import TimeSlot
from app.domain.counting import COUNT_MAX, BucketWrite, DayChange
from app.stores.base import CounterStore
from app.stores.results import Reason, Value

LATE_SECONDS = 3600  # hits of an event that arrive later than this, while it is being deleted, may not be consistent
_STEP_SECONDS_MAX = {"minute": 60, "hour": 3600, "day": 25 * 3600, TOTAL.step: math.inf}
CHANGES_PER_DAY_MAX = 10_000  # each change reads the records of the day, and its history keeps them

Action = Literal["correct", "delete", "reset"]
# A function that returns the new values of an event for the present ones, which are None if it was never counted.
Revision = Callable[[Value | None], Value]


class ChangeRejected(Exception):
    """The change would exceed a limit. The reason is "changes" if the day has CHANGES_PER_DAY_MAX changes."""

    def __init__(self, reason: Reason | Literal["changes"]) -> None:
        super().__init__(reason)
        self.reason = reason


class CountMoved(Exception):
    """The event no longer has the expected numbers, so nothing is changed."""

    def __init__(self, event: str, found: Value) -> None:
        super().__init__(f"{event} now has the count {found.count} and the total {found.total}")


class CorrectionRecord(NamedTuple):
    """A correction as the day's history keeps it: the counts before and after, of an event or of ALL_EVENTS."""

    generation: int  # the day's generation after it
    at: int  # UTC second
    action: Action
    event: str
    before: Value
    after: Value


async def correct(
    store: CounterStore,
    slot: TimeSlot,
    at: int,
    event: str,
    count: int | None,
    total: int | None,
    names_max: int,
    expected: tuple[int | None, int | None] = (None, None),
) -> tuple[DayChange, CorrectionRecord]:
    """Plan to set an event's count of the day, its total, or both; None leaves a number as it is.

    `at` is the current UTC second, `names_max` the limit on event names, and `expected` the count and the total that
    the event must have, or None for any. Raises ChangeRejected, CountMoved and StoreError.
    """

    def corrected(value: Value | None) -> Value:
        value = value or Value(0, 0)
        if expected[0] not in {None, value.count} or expected[1] not in {None, value.total}:
            raise CountMoved(event, value)
        return Value(value.count if count is None else count, value.total if total is None else total)

    return await revise(store, slot, at, event, corrected, names_max)


async def revise(
    store: CounterStore, slot: TimeSlot, at: int, event: str, revised: Revision, names_max: int
) -> tuple[DayChange, CorrectionRecord]:
    """Plan to replace an event's count of the day and its total by those that `revised` returns; see `correct`."""
    generation = await _next_generation(store, slot)
    counts = await store.counts(slot.day, [event, ALL_EVENTS])
    (totals,) = await store.read([TOTAL], [event, ALL_EVENTS])
    before = Value(counts.get(event, 0), totals.get(event, 0))
    after = revised(before if event in totals else None)
    added = Value(after.count - before.count, after.total - before.total)
    if event not in totals and (await store.sizes([TOTAL]))[0] >= names_max:
        raise ChangeRejected("full")
    if max(counts.get(ALL_EVENTS, 0) + added.count, totals.get(ALL_EVENTS, 0) + added.total) > COUNT_MAX:
        raise ChangeRejected("overflow")
    _, correction = slot.day_buckets
    writes = [BucketWrite("add", correction, {event: added.count}), BucketWrite("add", TOTAL, {event: added.total})]
    return _with_record(slot, writes, CorrectionRecord(generation, at, "correct", event, before, after))


async def delete(store: CounterStore, slot: TimeSlot, at: int, event: str) -> tuple[DayChange, CorrectionRecord]:
    """Plan to delete an event from all buckets, with its visitors. Raises StoreError.

    The event keeps the hits that are counted after the plan: the same number in each bucket that they belong to.
    """
    generation = await _next_generation(store, slot)
    buckets = await store.list_buckets()
    listed = list(filter(is_event_bucket, buckets))
    found = dict(zip(listed, await store.read(listed, [event]), strict=True))
    # Hits may be counted during this read, so the buckets that they change are read again, all at once.
    recent = list({*_next_buckets(slot), *(bucket for bucket in listed if _is_recent(bucket, slot))})
    found |= zip(recent, await store.read_at_once(recent, event), strict=True)
    hits, corrected, total = (found.get(bucket, {}).get(event, 0) for bucket in (*slot.day_buckets, TOTAL))
    before = Value(hits + corrected, total)
    writes = [BucketWrite("take", bucket, counts) for bucket, counts in found.items() if counts]
    writes += [BucketWrite("drop", bucket) for bucket in buckets if bucket.dimension in visitor_dimensions(event)]
    return _with_record(slot, writes, CorrectionRecord(generation, at, "delete", event, before, Value(0, 0)))


async def reset(store: CounterStore, slot: TimeSlot, at: int) -> tuple[DayChange, CorrectionRecord]:
    """Plan to restart the day's counts at 0.

    The counts so far become a part of their own, and are subtracted from the day's hits. Raises StoreError.
    """
    generation = await _next_generation(store, slot)
    counts = dict(await store.counts(slot.day))
    (totals,) = await store.read([TOTAL], [ALL_EVENTS])
    before = Value(counts.pop(ALL_EVENTS, 0), totals.get(ALL_EVENTS, 0))
    day, correction = slot.day_buckets
    writes = [
        BucketWrite("add", day._replace(dimension=f"{BEFORE_RESET}{at}"), counts),
        BucketWrite("add", correction, {event: -count for event, count in counts.items()}),
    ]
    after = Value(0, before.total)
    return _with_record(slot, writes, CorrectionRecord(generation, at, "reset", ALL_EVENTS, before, after))


async def erase(store: CounterStore, slot: TimeSlot, user: str) -> tuple[DayChange, None]:
    """Plan to erase a user. No record is kept, because it would contain the user's id. Raises StoreError."""
    user_prefix, _ = VISITOR_DIMENSIONS
    buckets = [bucket for bucket in await store.list_buckets() if bucket.dimension.startswith(user_prefix)]
    found = await store.read(buckets, [user])
    writes = [BucketWrite("take", bucket, counts) for bucket, counts in zip(buckets, found, strict=True) if counts]
    return DayChange(slot, writes), None


async def history(store: CounterStore, day: int) -> list[CorrectionRecord]:
    """Return the corrections of the day that starts at this UTC second, oldest first. Raises StoreError."""
    (records,) = await store.read([Bucket("day", day, CORRECTION_LOG)])
    return sorted(msgspec.json.decode(record, type=CorrectionRecord) for record in records)


async def _next_generation(store: CounterStore, slot: TimeSlot) -> int:
    """Return the generation of the day after one more change. Raises ChangeRejected."""
    changes = len(await history(store, slot.day))
    if changes >= CHANGES_PER_DAY_MAX:
        raise ChangeRejected("changes")
    return changes + 1


def _next_buckets(slot: TimeSlot) -> list[Bucket]:
    """Return the buckets of the hits that are counted until the next minute ends."""
    return [*slot.buckets, Bucket("minute", slot.minute + 60), Bucket("hour", slot.hour + 3600)]


def _is_recent(bucket: Bucket, slot: TimeSlot) -> bool:
    """Return whether hits may still be added to a bucket: new ones, or those that were spooled within the last hour."""
    ends = bucket.start + _STEP_SECONDS_MAX[bucket.step]
    return not bucket.dimension and ends > slot.minute - LATE_SECONDS


def _with_record(
    slot: TimeSlot, writes: list[BucketWrite], record: CorrectionRecord
) -> tuple[DayChange, CorrectionRecord]:
    """Return the change that does these writes, adds the record and begins the record's generation."""
    day = Bucket("day", slot.day)
    writes += [
        BucketWrite("add", day._replace(dimension=CORRECTION_LOG), {msgspec.json.encode(record).decode(): 1}),
        BucketWrite("add", day._replace(dimension=GENERATION), {ALL_EVENTS: 1}),
    ]
    return DayChange(slot, writes, expected_corrections=record.generation - 1), record
