"""Hits, hit groups, commits and administrative changes: the input of a store."""

from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

import msgspec

from app.domain.buckets import ALL_EVENTS, Bucket
from app.domain.calendar import TimeSlot

AMOUNT_MAX = 1_000_000
COUNT_MAX = 2**53 - 1  # the largest integer that every JSON client reads exactly

Amount = Annotated[int, msgspec.Meta(ge=1, le=AMOUNT_MAX)]


class Hit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One occurrence of an event, counted `by` times."""

    event: str
    by: Amount = 1
    user: str | None = None
    session: str | None = None


class Visit(NamedTuple):
    """The user and session of a hit."""

    event: str
    by: int
    user: str | None
    session: str | None


def visitor_buckets(slot: TimeSlot, visit: Visit) -> Iterator[tuple[Bucket, str]]:
    """Yield each bucket that a visit adds to, with the id to add under: per event, and over all events."""
    users, sessions = _visitor_buckets(slot, visit.event)
    if visit.user is not None:
        yield from ((bucket, visit.user) for bucket in users)
    if visit.session is not None:
        yield from ((bucket, visit.session) for bucket in sessions)


@lru_cache(maxsize=8192)  # the same events recur within a minute
def _visitor_buckets(slot: TimeSlot, event: str) -> tuple[list[Bucket], list[Bucket]]:
    minute, _, day, total = slot.buckets
    users = ((minute, event), (day, event), (total, event), (day, ALL_EVENTS))
    sessions = ((minute, event), (day, event), (minute, ALL_EVENTS), (day, ALL_EVENTS))
    return (
        [bucket._replace(dimension=f"user:{name}") for bucket, name in users],
        [bucket._replace(dimension=f"session:{name}") for bucket, name in sessions],
    )


# What it costs a store to count a user or a session, compared with an event. Each is counted in four buckets.
VISITOR_WEIGHT = 16


def weight(events: Collection[str], visits: Collection[Visit]) -> int:
    """Return how much a store has to write for these hits, in units of one event."""
    if not visits:  # as of most hits, each of which is weighed twice
        return len(events)
    visitors = sum((visit.user is not None) + (visit.session is not None) for visit in visits)
    return len(events) + VISITOR_WEIGHT * visitors


class IdempotencyKey(NamedTuple):
    """An idempotency key as hashes: of the key within its scope, of the request, and of the client."""

    id: str
    request: str
    client: str


class HitGroup(msgspec.Struct, frozen=True):
    """Hits that are accepted or rejected together, or event by event if `atomic` is false.

    `amounts` is the amount to add by event name. If `limited` is false, the group was acknowledged before it reached
    the store, so the limits on event names and idempotency keys do not apply. Only an atomic group may have a key.
    """

    slot: TimeSlot
    amounts: Mapping[str, int]
    key: IdempotencyKey | None = None
    limited: bool = True
    visits: Sequence[Visit] = ()
    atomic: bool = True

    def only(self, events: Container[str]) -> "HitGroup":
        """Return the part of this group that belongs to these events, without limits and without its key."""
        amounts = {event: by for event, by in self.amounts.items() if event in events}
        visits = [visit for visit in self.visits if visit.event in events]
        return HitGroup(self.slot, amounts, None, False, visits, self.atomic)


Commit = Sequence[HitGroup]  # a store writes it in one atomic step


class BucketWrite(NamedTuple):
    """One operation on a bucket. If the members are events, the store also updates ALL_EVENTS.

    `op`: "add" to counts, "mark" visitors, "merge" a HyperLogLog, "take" from counts and remove the members of which
    nothing is left, or "drop" the bucket.
    """

    op: Literal["add", "mark", "merge", "take", "drop"]
    bucket: Bucket
    counts: Mapping[str, int] = {}


class DayChange(NamedTuple):
    """An administrative change: bucket writes in one atomic step.

    If `expected_corrections` is set, the day must have had exactly that many corrections so far (an optimistic lock).
    Unless `may_be_late` is set, the store must not apply the change after its request has failed.
    """

    slot: TimeSlot
    writes: Sequence[BucketWrite]
    expected_corrections: int | None = None
    may_be_late: bool = False
