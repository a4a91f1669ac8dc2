"""The decisions that all stores share: limits, overflow, idempotency, and what to do after a loss."""

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from app.domain.calendar import TimeSlot
from app.domain.counting import COUNT_MAX, HitGroup, IdempotencyKey
from app.stores.base import OffsetMismatch, OutcomeUnknown, StoreLimits, StoreUnavailable
from app.stores.results import ApplyResult, GroupResult, Reason, Value, reject

IDEMPOTENCY_TTL_SECONDS = 86_400  # how long a retry with the same Idempotency-Key is recognised
VISITOR_MINUTES_TTL_SECONDS = 2 * 3600  # how long the visitors of a minute are kept
RANKED_VISITORS_MAX = 10_000  # users, or sessions, with a count of their own in a bucket: the first to appear
SOURCE_TTL_SECONDS = 30 * 86_400  # how long a process's offset is kept after its last use
# Begins the name of a source whose offset never expires: a partition of Kafka.
PERMANENT_SOURCE_PREFIX = "kafka "


class IdempotencyRecord(NamedTuple):
    """What a store keeps for an idempotency key: hash of the request, minute of use, replayed result, client hash."""

    request: str
    minute: int
    result: GroupResult
    client: str


def decide(group: HitGroup, value_of: Callable[[str], tuple[int, int] | None], names_left: float) -> GroupResult:
    """Decide whether to count a group: return its values afterwards, or the reasons for rejecting it.

    `value_of` returns an event's count and total, or None for a new name; `names_left` new names are allowed.
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
    """Decide by a group's key: return its first result or a rejection, or None if the group is to be counted.

    `record` is what the store has under this key; `keys` are live, `client_keys` of them from this client. A client
    may have a tenth of `limits.keys`; without limits any number is allowed.
    """
    if record and record.minute > minute - IDEMPOTENCY_TTL_SECONDS:
        return record.result if record.request == key.request else reject("mismatch")
    if limits and (keys >= limits.keys or client_keys >= max(1, limits.keys // 10)):
        return reject("keys")
    return None


async def apply_despite_loss(
    apply: Callable[[int], Awaitable[ApplyResult]],
    record_data_loss: Callable[[int], Awaitable[None]],
    expected_offset: int,
    new_offset: int,
) -> ApplyResult | None:
    """Apply a commit even if the store has lost earlier commits of the source, which it reports.

    `apply` takes the expected offset. Returns None if the store is past `new_offset` already. Raises StoreUnavailable,
    OutcomeUnknown, WriteConflict.
    """
    offset = expected_offset
    while True:
        try:
            return await apply(offset)
        except StoreUnavailable as error:
            if offset == expected_offset:
                raise
            # One shard may have applied the commit in the first attempt.
            raise OutcomeUnknown(str(error)) from error
        except OffsetMismatch as mismatch:
            if mismatch.offset >= new_offset:
                return None
            if mismatch.offset < expected_offset == offset:
                await record_data_loss(expected_offset - mismatch.offset)
            offset = mismatch.offset  # new_offset alone identifies the commit, so a retry still finds its result


def visitor_cutoffs(cutoffs: Mapping[str, int], slot: TimeSlot) -> dict[str, int]:
    """Return the cutoffs of `prune` for visitor buckets, whose minutes expire earlier."""
    return {**cutoffs, "minute": max(cutoffs.get("minute", 0), slot.minute - VISITOR_MINUTES_TTL_SECONDS)}
