"""The decisions that all stores share: limits, overflow, idempotency, expiry, and commits after a data loss."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from app.domain.buckets import Bucket
from app.domain.calendar import TimeSlot
from app.domain.counting import COUNT_MAX, HitGroup, IdempotencyKey, visitor_buckets
from app.stores.base import OffsetMismatch, OutcomeUnknown, StoreLimits, StoreUnavailable
from app.stores.results import ApplyResult, GroupResult, Reason, Value, reject

IDEMPOTENCY_TTL_SECONDS = 86_400  # how long a retry with the same Idempotency-Key is recognised
VISITOR_MINUTES_TTL_SECONDS = 2 * 3600  # how long the visitors of a minute are kept
RANKED_VISITORS_MAX = 10_000  # visitors of a bucket that get a count of their own; later ones only add to its size
# Ids that SQLite and memory keep of a bucket, so that its size is exact. Later ones only add to its HyperLogLog.
STORED_VISITORS_MAX = 100_000
SOURCE_TTL_SECONDS = 30 * 86_400  # how long a process's offset is kept after its last use
RESULT_EVENTS_MAX = 100  # events of a result that is saved under an idempotency key; count.lua has the same number
# The names of sources that never expire begin with this prefix. They are Kafka partitions.
PERMANENT_SOURCE_PREFIX = "kafka "


class IdempotencyRecord(NamedTuple):
    """The data that a store saves under an idempotency key.

    `request` and `client` are hashes. `minute` is the minute of the first request (UTC second). `result` is the result
    for a retry.
    """

    request: str
    minute: int
    result: GroupResult
    client: str


def is_retry(offset: int, expected_offset: int, new_offset: int) -> bool:
    """Return whether a source at `offset` has this commit. Raises OffsetMismatch if the commit must not be applied."""
    if offset != new_offset and (offset != expected_offset or new_offset < offset):
        raise OffsetMismatch(offset)
    return offset == new_offset


def decide(group: HitGroup, value_of: Callable[[str], tuple[int, int] | None], names_left: float) -> GroupResult:
    """Return the result of counting a group: the new values, or the reasons for rejecting it or some of its events.

    `value_of` returns an event's count and total, or None if its name is new. `names_left` new names are allowed.
    """
    values: dict[str, Value] = {}
    rejected: dict[str, Reason] = {}
    for event, by in group.amounts.items():
        value = value_of(event)
        count, total = value or (0, 0)
        if value is None and names_left < 1:
            rejected[event] = "full"
        elif count + by > COUNT_MAX or total + by > COUNT_MAX:
            rejected[event] = "overflow"
        else:
            values[event] = Value(count + by, total + by)
            names_left -= value is None
            continue
        if group.atomic:
            return reject(rejected[event])
    return GroupResult(values, rejected)


def check_idempotency(
    key: IdempotencyKey,
    minute: int,
    record: IdempotencyRecord | None,
    keys: int,
    client_keys: int,
    limits: StoreLimits | None,
) -> GroupResult | None:
    """Return the result of a group with a key: its first result, or a rejection, or None if it has to be counted.

    `minute` is the current one (UTC second), `record` is saved under the key. `keys` is the number of live keys,
    `client_keys` the number of those of this client, which may have a tenth of `limits.keys`. Without limits any number
    is allowed.
    """
    if record and record.minute > minute - IDEMPOTENCY_TTL_SECONDS:
        return record.result if record.request == key.request else reject("mismatch")
    if limits and (keys >= limits.keys or client_keys >= max(1, limits.keys // 10)):
        return reject("keys")
    return None


def result_to_save(result: GroupResult) -> GroupResult:
    """Return what a store saves under an idempotency key: the result, or nothing of it if it is long.

    A client could otherwise fill the memory with few requests.
    """
    return result if len(result.values) <= RESULT_EVENTS_MAX else GroupResult()


def with_present_values(
    result: GroupResult, group: HitGroup, value_of: Callable[[str], tuple[int, int] | None]
) -> GroupResult:
    """Return a replayed result, with the present date and values if its own were not saved.

    `value_of` is as in `decide`.
    """
    if not result.replayed_on or len(result.values) == len(group.amounts):
        return result
    values = {event: Value(*(value_of(event) or (0, 0))) for event in group.amounts}
    return GroupResult(values, {}, group.slot.date)


def takeable(count: int, by: int) -> int:
    """Return how much of `by` can be taken out of a count, which may be negative in a correction.

    After a data loss, a count may be smaller than when the change was planned.
    """
    return max(min(count, 0), min(by, max(count, 0)))


def counted_visits(group: HitGroup, result: GroupResult) -> Sequence[tuple[Bucket, str, int]]:
    """Return the bucket, the visitor and the amount for each visit to an event that the commit counted.

    A group without amounts has visits of hits that an earlier commit counted.
    """
    if not group.visits:
        return ()
    counted = result.counted
    return [
        (bucket, visitor, visit.by)
        for visit in group.visits
        if visit.event in counted or not group.amounts
        for bucket, visitor in visitor_buckets(group.slot, visit)
    ]


async def apply_despite_loss(
    apply: Callable[[int], Awaitable[ApplyResult]],
    record_data_loss: Callable[[int], Awaitable[None]],
    expected_offset: int,
    new_offset: int,
) -> ApplyResult | None:
    """Apply a commit even if the store has lost earlier commits of its source.

    `apply` takes the expected offset. `record_data_loss` is called with the number of lost commits. Returns None if the
    source is already at `new_offset` or past it. Raises StoreUnavailable, OutcomeUnknown, or WriteConflict.
    """
    offset = expected_offset
    while True:
        try:
            return await apply(offset)
        except StoreUnavailable as error:
            if offset == expected_offset:
                raise
            # A shard of the store may have applied its part in the first attempt.
            raise OutcomeUnknown(str(error)) from error
        except OffsetMismatch as mismatch:
            if mismatch.offset >= new_offset:
                return None
            if mismatch.offset < expected_offset == offset:
                await record_data_loss(expected_offset - mismatch.offset)
            # A retry still finds the result, because new_offset identifies the commit.
            offset = mismatch.offset


def visitor_cutoffs(cutoffs: Mapping[str, int], slot: TimeSlot) -> dict[str, int]:
    """Return the cutoffs of `prune` (UTC seconds by step) for buckets of visitors, whose minutes expire earlier."""
    return {**cutoffs, "minute": max(cutoffs.get("minute", 0), slot.minute - VISITOR_MINUTES_TTL_SECONDS)}
