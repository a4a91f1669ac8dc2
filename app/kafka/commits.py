"""Records as a commit: hits without an idempotency key are added up, and bad records become dead letters."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from aiokafka import ConsumerRecord

from app.domain.calendar import Clock, TimeSlot
from app.domain.counting import Commit, HitGroup, IdempotencyKey, Visit
from app.kafka.dead_letters import DeadLetter
from app.kafka.decoding import Decoder, RecordRejected
from app.pending_commit import COMMIT_EVENTS_MAX
from app.stores.results import ApplyResult, GroupResult

DAY_SECONDS = 86_400
FUTURE_SECONDS_MAX = 300  # how far a sender's clock may be ahead; such a record counts as of now
RECORDS_PER_TURN = 1000  # decoded before other tasks run


class BuiltCommit(NamedTuple):
    """The commit and the dead letters of the first `taken` records."""

    commit: Commit
    dead_letters: Sequence[DeadLetter]
    taken: int


async def build_commit(
    decode: Decoder, limited: bool, records: Sequence[ConsumerRecord], clock: Clock, days_kept: int
) -> BuiltCommit:
    """Build a commit from as many records as it may have. `limited` is true if the store's limits apply to them."""
    now, calendar = clock.at(), clock.calendar
    oldest = calendar.slot(now).day - (days_kept - 1) * DAY_SECONDS
    latest = now + FUTURE_SECONDS_MAX
    sums: dict[TimeSlot, dict[str, int]] = {}
    visits: dict[TimeSlot, list[Visit]] = {}
    keyed: list[HitGroup] = []
    dead: list[DeadLetter] = []
    minute, size, taken = -1.0, 0, 0
    for taken, record in enumerate(records, 1):
        if taken % RECORDS_PER_TURN == 0:
            await asyncio.sleep(0)
        try:
            at, amounts, key, record_visits = decode(record)
            _check_time(at, oldest, latest)
        except RecordRejected as error:
            dead.append(DeadLetter(record, str(error)))
            continue
        if (at := min(at, now)) // 60 != minute:
            minute, slot = at // 60, calendar.slot(at)
            summed = sums.setdefault(slot, {})
        if key:
            keyed.append(HitGroup(slot, amounts, key, limited, record_visits))
            size += len(amounts)
        else:
            for event, by in amounts.items():
                size += event not in summed
                summed[event] = summed.get(event, 0) + by
            visits.setdefault(slot, []).extend(record_visits)
        size += len(record_visits)
        if size >= COMMIT_EVENTS_MAX:
            break
    unkeyed = [HitGroup(slot, summed, None, limited, visits[slot], False) for slot, summed in sums.items() if summed]
    return BuiltCommit(unkeyed + keyed, dead, taken)


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
