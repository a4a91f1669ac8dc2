"""The requests of clients and administrators with their outcomes, and what a store must have after them."""

import itertools
import math
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import msgspec

from app.corrections import CorrectionRecord
from app.domain.buckets import (
    ALL_EVENTS,
    BEFORE_RESET,
    CORRECTION,
    CORRECTION_LOG,
    GENERATION,
    TOTAL,
    Bucket,
    is_event_bucket,
)
from app.group_commit import Overloaded
from app.stores.base import CounterStore, OutcomeUnknown, StoreUnavailable
from tests.fuzz.nodes import NoResponse
from tests.support.history_checker import Outcome

Counts = Mapping[Bucket, Mapping[str, int]]
ADMINISTRATIVE = (CORRECTION, CORRECTION_LOG, GENERATION, BEFORE_RESET)  # dimensions, or their prefixes
USERS = "user:"  # the dimension with the users of all events, or followed by an event, those of one event

T = TypeVar("T")


@dataclass(eq=False)
class Request:
    """A request as its sender observed it, in the time of the ledger. It may be executed from `began` to `ended`."""

    began: int = 0
    ended: float = math.inf
    outcome: Outcome = "unknown"


@dataclass(eq=False)
class Hits(Request):
    """The hits of one request. `day` is the UTC second at which their day begins, if they are acknowledged.

    Hits that are acknowledged as spooled may be counted later, also after a change that began later.
    """

    amounts: Mapping[str, int] = field(default_factory=dict)
    user: str | None = None
    day: int | None = None
    is_spooled: bool = False


@dataclass(eq=False)
class Change(Request):
    """A correction, deletion or reset: the records of its plans, and the record that it was answered with."""

    planned: list[CorrectionRecord] = field(default_factory=list)
    acknowledged: CorrectionRecord | None = None


@dataclass(eq=False)
class Erasure(Request):
    user: str = ""


class Applied(NamedTuple):
    """A change in the history of a day."""

    day: int
    record: CorrectionRecord
    change: Change


class Ledger:
    """All requests of an episode. `imported` has the counts of complete imports by day and event."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.imported: Counter[tuple[int, str]] = Counter()
        self._ticks = itertools.count(1)

    async def send(self, request: Request, response: Coroutine[Any, Any, T]) -> T | None:
        """Wait for the response to a request, and note the outcome. Return None if it is not acknowledged."""
        request.began = next(self._ticks)
        self.requests.append(request)
        try:
            result = await response
        except (StoreUnavailable, Overloaded):
            request.outcome, request.ended = "rejected", next(self._ticks)
            return None
        except (OutcomeUnknown, NoResponse):
            return None
        request.outcome, request.ended = "acknowledged", next(self._ticks)
        return result

    def check(self, counts: Counts) -> None:
        """Compare a store with all outcomes, and its buckets with each other, when no request is executed any more."""
        now = next(self._ticks)
        for request in self.requests:
            request.ended = min(request.ended, now)
        check_sums(counts)
        applied = self._applied_changes(counts)
        hits = [request for request in self.requests if isinstance(request, Hits)]
        for event in sorted({event for request in hits for event in request.amounts}):
            deletions = [a for a in applied if (a.record.action, a.record.event) == ("delete", event)]
            check_corrections(counts, event, applied[applied.index(deletions[-1]) + 1 :] if deletions else applied)
            removals = [deletion.change for deletion in deletions]
            adds = [(request, request.amounts[event]) for request in hits if event in request.amounts]
            self._check_days(counts, "", event, adds, removals)
            self._check_users(counts, f"{USERS}{event}", adds, removals)
        self._check_users(counts, USERS, [(request, sum(request.amounts.values())) for request in hits], [])

    def _check_users(
        self, counts: Counts, dimension: str, adds: Sequence[tuple[Hits, int]], removals: Sequence[Request]
    ) -> None:
        erasures = [request for request in self.requests if isinstance(request, Erasure)]
        for user in {request.user for request, _ in adds if request.user}:
            erased = [erasure for erasure in erasures if erasure.user == user and erasure.outcome != "rejected"]
            own = [(request, by) for request, by in adds if request.user == user]
            self._check_days(counts, dimension, user, own, [*removals, *erased])

    def _check_days(
        self, counts: Counts, dimension: str, member: str, adds: Sequence[tuple[Hits, int]], removals: Sequence[Request]
    ) -> None:
        """Require that a member's counts of each day are within the bounds that its adds and removals allow.

        A removal was certainly executed if it is in the history or acknowledged. Otherwise, its outcome is unknown.
        """
        certain = max((r.began for r in removals if isinstance(r, Change) or r.outcome == "acknowledged"), default=0)
        possible = max((r.ended for r in removals), default=0)
        for bucket in [bucket for bucket in counts if (bucket.step, bucket.dimension) == ("day", dimension)]:
            lower = upper = self.imported[bucket.start, member]
            for request, by in adds:
                is_acknowledged = request.outcome == "acknowledged" and request.day == bucket.start
                is_removed = is_acknowledged and request.ended < certain and not request.is_spooled
                lower += by * (is_acknowledged and request.began > possible)
                upper += by * (is_acknowledged or request.outcome == "unknown") * (not is_removed)
            count = counts[bucket].get(member, 0)
            assert lower <= count <= upper, (bucket, member, lower, count, upper)

    def _applied_changes(self, counts: Counts) -> list[Applied]:
        """Return the changes in the history, in the order in which they were applied."""
        changes = [request for request in self.requests if isinstance(request, Change)]
        planner = {record: change for change in changes for record in change.planned}
        applied = []
        for bucket in sorted(bucket for bucket in counts if bucket.dimension == CORRECTION_LOG):
            records = sorted(msgspec.json.decode(text, type=CorrectionRecord) for text in counts[bucket])
            assert set(counts[bucket].values()) == {1}, counts[bucket]
            assert [record.generation for record in records] == list(range(1, len(records) + 1)), records
            assert counts[bucket._replace(dimension=GENERATION)] == {ALL_EVENTS: len(records)}
            applied += [Applied(bucket.start, record, planner[record]) for record in records]
        for change in changes:
            records = [a.record for a in applied if a.change is change]
            if change.outcome == "acknowledged":
                assert records == [change.acknowledged], (change, records)
            else:
                assert len(records) <= (change.outcome == "unknown"), (change, records)
        return applied


def check_sums(counts: Counts) -> None:
    """Require that each bucket has the sum of its events, each hour that of its minutes, and each day of its hours."""
    for bucket in filter(is_event_bucket, counts):
        events = sum(n for event, n in counts[bucket].items() if event != ALL_EVENTS)
        assert counts[bucket].get(ALL_EVENTS, 0) == events, (bucket, counts[bucket])
    for step, parent, seconds in (("minute", "hour", 3600), ("hour", "day", 86_400)):
        sums: Counter[tuple[int, str]] = Counter()
        for bucket, members in counts.items():
            if (bucket.step, bucket.dimension) == (step, ""):
                sums.update({(bucket.start // seconds * seconds, event): n for event, n in members.items()})
        parents = {
            (b.start, e): n for b, m in counts.items() if b[0] == parent and not b.dimension for e, n in m.items()
        }
        assert +sums == {key: n for key, n in parents.items() if n}, (step, sums, parents)


def check_corrections(counts: Counts, event: str, applied: Sequence[Applied]) -> None:
    """Require that an event's total, and the correction of each day, agree with the changes since its last deletion."""
    corrections = [a for a in applied if (a.record.action, a.record.event) == ("correct", event)]
    days = [bucket for bucket in counts if (bucket.step, bucket.dimension) == ("day", "")]
    hits = sum(counts[day].get(event, 0) for day in days)
    added = sum(record.after.total - record.before.total for _, record, _ in corrections)
    assert counts[TOTAL].get(event, 0) == hits + added, (event, counts[TOTAL], hits, corrections)
    for day in days:
        added = sum(record.after.count - record.before.count for start, record, _ in corrections if start == day.start)
        parts = (b for b in counts if b.start == day.start and b.dimension.startswith(BEFORE_RESET))
        expected = added - sum(counts[part].get(event, 0) for part in parts)
        found = counts.get(day._replace(dimension=CORRECTION), {}).get(event, 0)
        assert found == expected, (day, event, found, expected, applied)
    for (day, earlier, _), (next_day, later, _) in itertools.pairwise(applied_to(event, applied)):
        if day == next_day and (earlier.action, later.action) == ("correct", "correct"):
            assert later.before.count >= earlier.after.count, (earlier, later)
            assert later.before.total >= earlier.after.total, (earlier, later)


def applied_to(event: str, applied: Iterable[Applied]) -> list[Applied]:
    """Return the changes of an event's counts."""
    return [a for a in applied if a.record.event in {event, ALL_EVENTS}]


def check_late(before: Counts, after: Counts) -> None:
    """Require that late requests have changed nothing, except that hits whose outcome was unknown may be counted."""
    for bucket in before.keys() | after.keys():
        old, new = before.get(bucket, {}), after.get(bucket, {})
        if bucket.dimension.startswith(ADMINISTRATIVE):
            assert old == new, (bucket, old, new)
        else:
            assert all(new.get(member, 0) >= n for member, n in old.items()), (bucket, old, new)


async def read_all(store: CounterStore) -> Counts:
    """Return the counts of all buckets."""
    buckets = await store.list_buckets()
    return dict(zip(buckets, await store.read(buckets), strict=True))
