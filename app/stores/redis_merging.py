"""What the shards of a store return, merged into one result."""

from collections.abc import Sequence

from app.domain.buckets import ALL_EVENTS, GENERATION, SKETCH, Bucket
from app.stores.base import OffsetMismatch, OutcomeUnknown, StoreError, StoreUnavailable
from app.stores.results import ApplyResult, GroupResult


def require_all(outcomes: Sequence[ApplyResult | BaseException]) -> list[ApplyResult]:
    """Return the results of all shards, or raise the error for the whole commit.

    If it is unknown whether one shard applied its part, or if only some did, the outcome of the commit is unknown.
    """
    results = [outcome for outcome in outcomes if isinstance(outcome, ApplyResult)]
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    for error in errors:
        if not isinstance(error, OffsetMismatch):
            nothing_written = not results and all(isinstance(e, StoreUnavailable) for e in errors)
            raise error if nothing_written or not isinstance(error, StoreError) else OutcomeUnknown(str(error))
    # A shard at the lowest offset may not have this commit yet; if even that one is past it, then all are.
    if offsets := [error.offset for error in errors if isinstance(error, OffsetMismatch)]:
        raise OffsetMismatch(min(offsets))
    return results


def merge_results(one: GroupResult | None, other: GroupResult) -> GroupResult:
    """Merge the results of a group that is in several shards. If one shard replays, the retry completes the others."""
    if one is None or other.reason:
        return other
    if one.reason:
        return one
    return GroupResult(
        {**one.values, **other.values}, {**one.rejected, **other.rejected}, one.replayed_on or other.replayed_on
    )


def merge_counts(bucket: Bucket, parts: Sequence[dict[str, int]]) -> dict[str, int]:
    """Merge the counts of a bucket that is in several shards.

    Events differ between shards, but each shard has its own sum of all events, and the same visitor may be in several.
    A generation has begun when it has begun in all shards.
    """
    if bucket.dimension == GENERATION:
        return {ALL_EVENTS: n} if (n := min(part.get(ALL_EVENTS, 0) for part in parts)) else {}
    merge = max if bucket.dimension.startswith(SKETCH) else int.__add__
    counts: dict[str, int] = {}
    for part in parts:
        shared = part.keys() & counts.keys()
        counts |= part | {member: merge(counts[member], part[member]) for member in shared}
    return counts


def merge_generations(results: Sequence[ApplyResult]) -> dict[int, int]:
    """Return the generation of each day: the lowest one, because a change is complete when all shards have it."""
    days = {day for result in results for day in result.generations}
    lowest = {day: min(result.generations.get(day, 0) for result in results) for day in days}
    return {day: generation for day, generation in lowest.items() if generation}


def visited_event(bucket: Bucket) -> str:
    """Return the event of a bucket of visitors, or ALL_EVENTS."""
    return bucket.dimension.removeprefix(SKETCH).partition(":")[2]
