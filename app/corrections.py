"""What administrators change, as writes that every store knows how to do at once.

They are worked out from what the store says a moment before. A hit that comes in between is a hit after the change:
nothing here sets a number, but adds the difference. Another change in between is noticed: this one is worked out anew.
"""

from typing import Literal, NamedTuple

import msgspec

from app.events import COUNT_MAX, EVERYTHING, GENERATION, LOG, PART, TOTAL, VISITS, Bucket, Changes, Moment, Write
from app.stores.base import CounterStore, Value, is_of_events, visits_of

Action = Literal["correct", "delete", "reset"]


class ChangeRefused(Exception):
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
    store: CounterStore, moment: Moment, at: int, event: str, count: int | None, total: int | None, names_max: int
) -> tuple[Changes, Logged]:
    """Set an event's count of the day, its total, or both. Raises ChangeRefused."""
    earlier = len(await history(store, moment.day))
    counts = await store.counts(moment.day, [event, EVERYTHING])
    (totals,) = await store.read([TOTAL], [event, EVERYTHING])
    before = Value(counts.get(event, 0), totals.get(event, 0))
    after = Value(before.count if count is None else count, before.total if total is None else total)
    added = Value(after.count - before.count, after.total - before.total)
    if event not in totals and (await store.sizes([TOTAL]))[0] >= names_max:
        raise ChangeRefused("full")
    if max(counts.get(EVERYTHING, 0) + added.count, totals.get(EVERYTHING, 0) + added.total) > COUNT_MAX:
        raise ChangeRefused("overflow")
    writes = [Write("add", moment.counted[1], {event: added.count}), Write("add", TOTAL, {event: added.total})]
    return _logged(moment, writes, Logged(earlier + 1, at, "correct", event, before, after))


async def delete(store: CounterStore, moment: Moment, at: int, event: str) -> tuple[Changes, Logged]:
    """Forget an event everywhere, and who came to it."""
    earlier = len(await history(store, moment.day))
    counts = await store.counts(moment.day, [event])
    (totals,) = await store.read([TOTAL], [event])
    before = Value(counts.get(event, 0), totals.get(event, 0))
    buckets = await store.buckets()
    of_events = list(filter(is_of_events, buckets))
    found = await store.read(of_events, [event])
    writes = [Write("take", bucket, counts) for bucket, counts in zip(of_events, found, strict=True) if counts]
    writes += [Write("drop", bucket) for bucket in buckets if bucket.of in visits_of(event)]
    return _logged(moment, writes, Logged(earlier + 1, at, "delete", event, before, Value(0, 0)))


async def reset(store: CounterStore, moment: Moment, at: int) -> tuple[Changes, Logged]:
    """Let the day's counts restart at 0: what was counted becomes a part of its own, and is taken off from now on."""
    earlier = len(await history(store, moment.day))
    counts = dict(await store.counts(moment.day))
    (totals,) = await store.read([TOTAL], [EVERYTHING])
    before = Value(counts.pop(EVERYTHING, 0), totals.get(EVERYTHING, 0))
    day, offset = moment.counted
    writes = [
        Write("add", day._replace(of=f"{PART}{at}"), counts),
        Write("add", offset, {event: -count for event, count in counts.items()}),
    ]
    return _logged(moment, writes, Logged(earlier + 1, at, "reset", EVERYTHING, before, Value(0, before.total)))


async def erase(store: CounterStore, moment: Moment, user: str) -> tuple[Changes, None]:
    """Forget a user; no log says whom."""
    users = [bucket for bucket in await store.buckets() if bucket.of.startswith(VISITS[0])]
    found = await store.read(users, [user])
    writes = [Write("take", bucket, counts) for bucket, counts in zip(users, found, strict=True) if counts]
    return Changes(moment, writes), None


async def history(store: CounterStore, day: int) -> list[Logged]:
    """How a day's numbers were corrected, oldest first."""
    (log,) = await store.read([Bucket("day", day, LOG)])
    return sorted(msgspec.json.decode(entry, type=Logged) for entry in log)


def _logged(moment: Moment, writes: list[Write], logged: Logged) -> tuple[Changes, Logged]:
    day = Bucket("day", moment.day)
    writes += [
        Write("add", day._replace(of=LOG), {msgspec.json.encode(logged).decode(): 1}),
        Write("add", day._replace(of=GENERATION), {EVERYTHING: 1}),
    ]
    return Changes(moment, writes, after=logged.generation - 1), logged
