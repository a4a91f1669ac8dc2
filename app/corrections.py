"""What administrators change, as writes that every store knows how to do at once.

They are worked out from what the store says a moment before. A hit that comes in between is a hit after the change:
nothing here sets a number, but adds the difference. Another change in between is noticed: this one is worked out anew.
"""

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
from app.stores.results import Value

Action = Literal["correct", "delete", "reset"]


class ChangeRejected(Exception):
    """The change would pass a cap; the message is the reason's name."""


class Logged(NamedTuple):
    """A correction as history remembers it: when, of which event or of EVERYTHING, from and to what."""

    generation: int  # that it began
    at: int  # UTC second
    action: Action
    event: str
    before: Value
    after: Value


async def correct(
    store: CounterStore, slot: TimeSlot, at: int, event: str, count: int | None, total: int | None, names_max: int
) -> tuple[DayChange, Logged]:
    """Set an event's count of the day, its total, or both. Raises ChangeRefused."""
    earlier = len(await history(store, slot.day))
    counts = await store.counts(slot.day, [event, ALL_EVENTS])
    (totals,) = await store.read([TOTAL], [event, ALL_EVENTS])
    before = Value(counts.get(event, 0), totals.get(event, 0))
    after = Value(before.count if count is None else count, before.total if total is None else total)
    added = Value(after.count - before.count, after.total - before.total)
    if event not in totals and (await store.sizes([TOTAL]))[0] >= names_max:
        raise ChangeRejected("full")
    if max(counts.get(ALL_EVENTS, 0) + added.count, totals.get(ALL_EVENTS, 0) + added.total) > COUNT_MAX:
        raise ChangeRejected("overflow")
    writes = [
        BucketWrite("add", slot.day_buckets[1], {event: added.count}),
        BucketWrite("add", TOTAL, {event: added.total}),
    ]
    return _logged(slot, writes, Logged(earlier + 1, at, "correct", event, before, after))


async def delete(store: CounterStore, slot: TimeSlot, at: int, event: str) -> tuple[DayChange, Logged]:
    """Forget an event everywhere, and who came to it."""
    earlier = len(await history(store, slot.day))
    counts = await store.counts(slot.day, [event])
    (totals,) = await store.read([TOTAL], [event])
    before = Value(counts.get(event, 0), totals.get(event, 0))
    buckets = await store.list_buckets()
    of_events = list(filter(is_event_bucket, buckets))
    found = await store.read(of_events, [event])
    writes = [BucketWrite("take", bucket, counts) for bucket, counts in zip(of_events, found, strict=True) if counts]
    writes += [BucketWrite("drop", bucket) for bucket in buckets if bucket.dimension in visitor_dimensions(event)]
    return _logged(slot, writes, Logged(earlier + 1, at, "delete", event, before, Value(0, 0)))


async def reset(store: CounterStore, slot: TimeSlot, at: int) -> tuple[DayChange, Logged]:
    """Let the day's counts restart at 0: what was counted becomes a part of its own, and is taken off from now on."""
    earlier = len(await history(store, slot.day))
    counts = dict(await store.counts(slot.day))
    (totals,) = await store.read([TOTAL], [ALL_EVENTS])
    before = Value(counts.pop(ALL_EVENTS, 0), totals.get(ALL_EVENTS, 0))
    day, offset = slot.day_buckets
    writes = [
        BucketWrite("add", day._replace(dimension=f"{BEFORE_RESET}{at}"), counts),
        BucketWrite("add", offset, {event: -count for event, count in counts.items()}),
    ]
    return _logged(slot, writes, Logged(earlier + 1, at, "reset", ALL_EVENTS, before, Value(0, before.total)))


async def erase(store: CounterStore, slot: TimeSlot, user: str) -> tuple[DayChange, None]:
    """Forget a user; no log says whom."""
    users = [bucket for bucket in await store.list_buckets() if bucket.dimension.startswith(VISITOR_DIMENSIONS[0])]
    found = await store.read(users, [user])
    writes = [BucketWrite("take", bucket, counts) for bucket, counts in zip(users, found, strict=True) if counts]
    return DayChange(slot, writes), None


async def history(store: CounterStore, day: int) -> list[Logged]:
    """How a day's numbers were corrected, oldest first."""
    (log,) = await store.read([Bucket("day", day, CORRECTION_LOG)])
    return sorted(msgspec.json.decode(entry, type=Logged) for entry in log)


def _logged(slot: TimeSlot, writes: list[BucketWrite], logged: Logged) -> tuple[DayChange, Logged]:
    day = Bucket("day", slot.day)
    writes += [
        BucketWrite("add", day._replace(dimension=CORRECTION_LOG), {msgspec.json.encode(logged).decode(): 1}),
        BucketWrite("add", day._replace(dimension=GENERATION), {ALL_EVENTS: 1}),
    ]
    return DayChange(slot, writes, expected_corrections=logged.generation - 1), logged
