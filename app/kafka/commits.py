"""Records as a commit: hits without an idempotency key are added up, and bad records become dead letters."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import NamedTuple

from aiokafka import ConsumerRecord

from app.domain.calendar import Calendar, TimeSlot, day_start
from app.domain.counting import VISITOR_WEIGHT, Commit, HitGroup, IdempotencyKey, Visit, weight
from app.group_commit import VISITS_PER_COMMIT
from app.kafka.dead_letters import DeadLetter
from app.kafka.decoding import DecodedRecord, Decoder, RecordRejected
from app.pending_commit import COMMIT_WEIGHT_MAX
from app.stores.results import ApplyResult, GroupResult

FUTURE_SECONDS_MAX = 300  # how far a sender's clock may be ahead; such a record counts as of now
BYTES_PER_TURN = 100_000  # decoded before other tasks run: some milliseconds. A larger record is decoded in a thread
RECORD_BYTES = 100  # added to the size of each record, because decoding a small one takes time too


class BuiltCommit(NamedTuple):
    """The commit and the dead letters of the first `taken` records.

    If the last of them is too large for a commit, it is in `parts` instead, and the commit is empty. The first part has
    its hits. The others have its visits, which belong to the hits only if these are counted.
    """

    commit: Commit
    dead_letters: Sequence[DeadLetter]
    taken: int
    parts: Sequence[Commit] = ()


async def build_commit(
    decode: Decoder,
    acknowledged: bool,
    records: Sequence[ConsumerRecord],
    now: float,
    calendar: Calendar,
    days_kept: int,
) -> BuiltCommit:
    """Build a commit from as many records as it may have.

    `acknowledged` is true if the records are hits that Tally has acknowledged. Then the store's limits do not apply,
    and no record is rejected because of its time: the clock of the node that wrote it may have been wrong.
    """
    oldest, latest = _oldest_kept(calendar, now, days_kept), now + FUTURE_SECONDS_MAX
    builder = _CommitBuilder(now, calendar, limited=not acknowledged)
    dead: list[DeadLetter] = []
    taken = turn_bytes = 0
    for taken, record in enumerate(records, 1):
        size = RECORD_BYTES + len(record.value or b"")
        turn_bytes += size
        if turn_bytes > BYTES_PER_TURN:
            turn_bytes = 0
            await asyncio.sleep(0)
        try:
            decoded = await asyncio.to_thread(decode, record) if size > BYTES_PER_TURN else decode(record)
            if not acknowledged:
                _check_time(decoded.at, oldest, latest)
        except RecordRejected as error:
            dead.append(DeadLetter(record, str(error)))
            continue
        if len(decoded.amounts) > 1 or decoded.visits:
            added = weight(decoded.amounts, decoded.visits)
            if builder.size and builder.size + added > COMMIT_WEIGHT_MAX:
                return BuiltCommit(builder.commit(), dead, taken - 1)
            if added > COMMIT_WEIGHT_MAX:
                return BuiltCommit([], dead, taken, _split(calendar.slot(_possible_time(decoded.at, now)), decoded))
        builder.add(*decoded)
        if builder.size >= COMMIT_WEIGHT_MAX:
            break
    return BuiltCommit(builder.commit(), dead, taken)


def _split(slot: TimeSlot, record: DecodedRecord) -> list[Commit]:
    """Return the parts of a record of Tally's own topic."""
    visits = record.visits
    chunks = [visits[i : i + VISITS_PER_COMMIT] for i in range(0, len(visits), VISITS_PER_COMMIT)]
    hits = HitGroup(slot, record.amounts, record.key, limited=False)
    return [[hits], *([HitGroup(slot, {}, visits=chunk, limited=False, atomic=False)] for chunk in chunks)]


def _possible_time(at: float, now: float) -> float:
    """Return the time of hits. A time in the future, or before 1970, is the fault of a clock."""
    return max(0.0, min(at, now))


class _CommitBuilder:
    """Adds up the hits without an idempotency key by minute. `size` grows with what the commit writes."""

    def __init__(self, now: float, calendar: Calendar, *, limited: bool) -> None:
        self._now, self._calendar, self._limited = now, calendar, limited
        self._sums: dict[TimeSlot, dict[str, int]] = {}
        self._visits: dict[TimeSlot, list[Visit]] = {}
        self._keyed: list[HitGroup] = []
        self._minute = -1.0
        self.size = 0

    def add(self, at: float, amounts: Mapping[str, int], key: IdempotencyKey | None, visits: Sequence[Visit]) -> None:
        """Add the hits of a record."""
        if (at := _possible_time(at, self._now)) // 60 != self._minute:
            self._minute, self._slot = at // 60, self._calendar.slot(at)
            self._summed = self._sums.setdefault(self._slot, {})
        if key:
            self._keyed.append(HitGroup(self._slot, amounts, key, self._limited, visits))
            self.size += len(amounts)
        else:
            summed, known = self._summed, len(self._summed)
            for event, by in amounts.items():
                summed[event] = summed.get(event, 0) + by
            self.size += len(summed) - known
            if visits:
                self._visits.setdefault(self._slot, []).extend(visits)
        for visit in visits:
            self.size += VISITOR_WEIGHT * ((visit.user is not None) + (visit.session is not None))

    def commit(self) -> Commit:
        unkeyed = [
            HitGroup(slot, summed, None, self._limited, self._visits.get(slot, ()), False)
            for slot, summed in self._sums.items()
            if summed
        ]
        return unkeyed + self._keyed


def _oldest_kept(calendar: Calendar, now: float, days_kept: int) -> int:
    """Return the UTC second at which the oldest of the kept days begins."""
    return day_start(calendar.zone, calendar.local(now).date() - timedelta(days=days_kept - 1))


def _check_time(at: float, oldest: float, latest: float) -> None:
    if not oldest <= at <= latest:
        raise RecordRejected("old: its day is no longer kept" if at < oldest else "future: its time is in the future")


def pair_results(commit: Commit, applied: ApplyResult) -> Iterator[tuple[HitGroup, GroupResult]]:
    """Return each hit group with its result.

    After a retry there may be fewer or more results, if another consumer has made other groups of these records.
    """
    return zip(commit, applied.groups, strict=False)


def rejection_reasons(commit: Commit, applied: ApplyResult) -> dict[IdempotencyKey | str, str]:
    """Return why the store has rejected hits of a commit, by idempotency key or event."""
    reasons: dict[IdempotencyKey | str, str] = {}
    for group, result in pair_results(commit, applied):
        if result.reason and group.key:
            reasons[group.key] = result.reason
        elif not group.atomic:
            reasons.update(result.rejected.items())
    return reasons
