"""One store cut into tags, for a cluster: each event lives in one tag, and each tag in one slot.

A batch goes to every tag, so that a source stands at the same offset in all of them, and each tag takes
its part exactly once. Where a request has several events, or a key, all its tags are asked before any
counts, so that none of them refuses what another has counted.
"""

import asyncio
import contextlib
import itertools
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple

from app.domain.buckets import ALL_EVENTS, GENERATION, SKETCH, Bucket, is_event_bucket
from app.domain.calendar import TimeSlot
from app.domain.counting import BucketWrite, Commit, DayChange, HitGroup, Visit
from app.stores import hyperloglog
from app.stores.base import Cardinality, CounterStore, OffsetMismatch, OutcomeUnknown, StoreError, StoreUnavailable
from app.stores.redis import ANSWER_SECONDS, RedisStore
from app.stores.results import Ack, ApplyResult, GroupResult, Reason, reject


class _Part(NamedTuple):
    """What one tag gets of a batch, and each posting's place in the whole."""

    groups: list[HitGroup]
    indices: list[int]


class ShardedRedisStore(CounterStore):
    kind = "redis"
    ack: Ack = "redis"
    durability = RedisStore.durability
    shared = True

    def __init__(self, stores: Sequence[RedisStore]) -> None:
        self._stores = stores

    async def open(self) -> None:
        await self._stores[0].open()  # alone: it is where redis-py looks at the cluster for the first time
        await asyncio.gather(*(store.open() for store in self._stores[1:]))
        self.durability = self._stores[0].durability

    async def close(self) -> None:
        await self._stores[0].close()  # they share one client

    async def apply(self, source: str, expected_offset: int, new_offset: int, commit: Commit) -> ApplyResult:
        async with self._deadline():
            return await self._apply(source, expected_offset, new_offset, commit)

    async def apply_change(self, source: str, expected_offset: int, new_offset: int, change: DayChange) -> ApplyResult:
        async with self._deadline():
            return await self._apply_change(source, expected_offset, new_offset, change)

    @contextlib.asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        """Bound all steps of a commit together."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                yield
        except TimeoutError:
            raise OutcomeUnknown("Redis: no answer in time") from None

    async def get_offset(self, source: str) -> int:
        return min(await asyncio.gather(*(store.get_offset(source) for store in self._stores)))

    async def _apply_change(self, source: str, expected_offset: int, new_offset: int, change: DayChange) -> ApplyResult:
        parts = [
            change._replace(writes=[write._replace(counts=self._share(shard, write)) for write in change.writes])
            for shard in range(len(self._stores))
        ]
        # The shard of the correction log detects a conflicting change, so it goes first.
        home = self._shard(ALL_EVENTS)
        first = await self._stores[home].apply_change(source, expected_offset, new_offset, parts[home])
        outcomes = await asyncio.gather(
            *(
                store.apply_change(source, expected_offset, new_offset, part._replace(expected_corrections=None))
                for shard, (store, part) in enumerate(zip(self._stores, parts, strict=True))
                if shard != home
            ),
            return_exceptions=True,
        )
        return ApplyResult([], self.ack, _generations([*_all_applied([first, *outcomes])]))

    def _share(self, tag: int, write: BucketWrite) -> dict[str, int]:
        """What of it is this tag's."""
        if is_event_bucket(write.bucket):
            return {event: n for event, n in write.counts.items() if self._shard(event) == tag}
        return dict(write.counts) if write.op == "take" or self._has(tag, write.bucket) else {}

    async def _apply(self, source: str, expected_offset: int, new_offset: int, commit: Commit) -> ApplyResult:
        rejected: dict[int, Reason] = {}
        if any(group.key or (len(group.amounts) > 1 and group.atomic) for group in commit):
            rejected = await self._ask(source, new_offset, commit)
        slots = list(dict.fromkeys(group.slot for group in commit))
        parts = self._split(commit)
        by_shard = [{i: rejected[index] for i, index in enumerate(part.indices) if index in rejected} for part in parts]
        outcomes = await asyncio.gather(
            *(
                store.apply(source, expected_offset, new_offset, part.groups, reasons, slots)
                for store, part, reasons in zip(self._stores, parts, by_shard, strict=True)
            ),
            return_exceptions=True,
        )
        applied = _all_applied(outcomes)
        results = [reject(rejected[index]) if index in rejected else None for index in range(len(commit))]
        for part, shard_result in zip(parts, applied, strict=True):
            for index, result in zip(part.indices, shard_result.groups, strict=True):
                results[index] = _merged(results[index], result)
        return ApplyResult([result or GroupResult() for result in results], self.ack, _generations(applied))

    async def _ask(self, source: str, new_offset: int, commit: Commit) -> dict[int, Reason]:
        """Return the groups that no shard may count. Claims each key in its own shard."""
        parts = self._split(commit, limited=True)
        for index, group in enumerate(commit):
            if key := group.key:
                home = parts[self._shard(key.id)]
                home.groups.append(HitGroup(group.slot, {}, key._replace(id=f"{key.id}@"), group.limited))
                home.indices.append(index)
        asked = await asyncio.gather(
            *(store.ask(source, new_offset, part.groups) for store, part in zip(self._stores, parts, strict=True))
        )
        rejected: dict[int, Reason] = {}
        counted: set[int] = set()  # by shards that have applied this commit already
        for part, (applied, results) in zip(parts, asked, strict=True):
            for index, result in zip(part.indices, results, strict=False):  # an applied commit has no claims
                if result and result.reason:
                    rejected[index] = result.reason
                elif applied:
                    counted.add(index)
        return {index: reason for index, reason in rejected.items() if index not in counted}

    def _split(self, commit: Commit, *, limited: bool = False) -> list[_Part]:
        """Return each shard's part. Groups of several shards get `limited`."""
        parts = [_Part([], []) for _ in self._stores]
        for index, group in enumerate(commit):
            amounts: dict[int, dict[str, int]] = {}
            for event, by in group.amounts.items():
                amounts.setdefault(self._shard(event), {})[event] = by
            visits: dict[int, list[Visit]] = {}
            for visit in group.visits:
                visits.setdefault(self._shard(visit.event), []).append(visit)
            if group.key and not amounts:
                amounts[self._shard(group.key.id)] = {}
            for shard, shard_amounts in amounts.items():
                part = group
                if group.key or len(group.amounts) > 1:
                    key = group.key and group.key._replace(client="")  # the claim counts for the client
                    part_limited = group.limited and (limited or not group.atomic)
                    part = HitGroup(group.slot, shard_amounts, key, part_limited, visits.get(shard, ()), group.atomic)
                parts[shard].groups.append(part)
                parts[shard].indices.append(index)
        return parts

    def _shard(self, name: str) -> int:
        return zlib.crc32(name.encode()) % len(self._stores)

    async def read(self, buckets: Sequence[Bucket], members: Sequence[str] | None = None) -> list[dict[str, int]]:
        found: dict[Bucket, list[dict[str, int]]] = {bucket: [] for bucket in buckets}
        for of_events, theirs in itertools.groupby(found, is_event_bucket):
            alike = list(theirs)
            tags = await asyncio.gather(
                *(self._read(tag, alike, members, of_events) for tag in range(len(self._stores)))
            )
            for part in tags:
                for bucket, counts in part.items():
                    found[bucket].append(counts)
        return [_together(bucket, found[bucket]) for bucket in buckets]

    async def _read(
        self, tag: int, buckets: Sequence[Bucket], members: Sequence[str] | None, of_events: bool
    ) -> dict[Bucket, dict[str, int]]:
        """What this tag has of them."""
        if of_events:
            wanted = members and [event for event in members if event == ALL_EVENTS or self._shard(event) == tag]
            return dict(zip(buckets, await self._stores[tag].read(buckets, wanted), strict=True))
        own = [bucket for bucket in buckets if self._has(tag, bucket) or _event_of(bucket) == ALL_EVENTS]
        return dict(zip(own, await self._stores[tag].read(own, members), strict=True)) if own else {}

    def _has(self, tag: int, bucket: Bucket) -> bool:
        """Visits lie where their event does, and generations everywhere."""
        return bucket.dimension == GENERATION or self._shard(_event_of(bucket)) == tag

    async def count_distinct(self, buckets: Sequence[Bucket]) -> Cardinality:
        event = _event_of(buckets[0])
        if event != ALL_EVENTS:
            return await self._stores[self._shard(event)].count_distinct(buckets)
        return Cardinality(
            hyperloglog.estimate(*await asyncio.gather(*(store.sketch(buckets) for store in self._stores))),
            hyperloglog.ERROR,
        )

    async def list_buckets(self, days: Sequence[int] | None = None) -> list[Bucket]:
        found = await asyncio.gather(*(store.list_buckets(days) for store in self._stores))
        return list(dict.fromkeys(itertools.chain(*found)))

    async def sizes(self, buckets: Sequence[Bucket]) -> list[int]:
        found = await asyncio.gather(*(store.sizes(buckets) for store in self._stores))
        return [sum(sizes) for sizes in zip(*found, strict=True)]

    async def prune(self, cutoffs: Mapping[str, int], slot: TimeSlot) -> None:
        await asyncio.gather(*(store.prune(cutoffs, slot) for store in self._stores))

    async def epoch(self) -> str:
        return " ".join(await asyncio.gather(*(store.epoch() for store in self._stores)))

    async def record_data_loss(self, commits: int) -> None:
        await self._stores[0].record_data_loss(commits)

    async def publish(self, message: str) -> None:
        await self._stores[0].publish(message)

    def subscribe(self, timeout_seconds: float) -> AsyncIterator[str]:
        return self._stores[0].subscribe(timeout_seconds)


def _all_applied(outcomes: Sequence[ApplyResult | BaseException]) -> list[ApplyResult]:
    """Every tag's answers, or the error that says most: what is unknown in one tag is unknown in all."""
    applied = [outcome for outcome in outcomes if isinstance(outcome, ApplyResult)]
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    for error in errors:
        if not isinstance(error, OffsetMismatch):
            nothing = not applied and all(isinstance(e, StoreUnavailable) for e in errors)
            raise error if nothing or not isinstance(error, StoreError) else OutcomeUnknown(str(error))
    offsets = sorted(error.offset for error in errors if isinstance(error, OffsetMismatch))
    if offsets:  # the lowest, since that tag still wants this batch; or else every tag is past it
        raise OffsetMismatch(offsets[0])
    return applied


def _merged(one: GroupResult | None, other: GroupResult) -> GroupResult:
    """Merge the results of a group that lies in several shards. A replay in one completes a first attempt."""
    if one is None or other.reason:
        return other
    if one.reason:
        return one
    return GroupResult(
        {**one.values, **other.values}, {**one.rejected, **other.rejected}, one.replayed_on or other.replayed_on
    )


def _together(bucket: Bucket, parts: Sequence[dict[str, int]]) -> dict[str, int]:
    """A bucket of several tags: they have different events, but know the same visitors, and each its own sum.

    A new generation has begun when it has in all of them.
    """
    if bucket.dimension == GENERATION:
        return {ALL_EVENTS: n} if (n := min(part.get(ALL_EVENTS, 0) for part in parts)) else {}
    counts: dict[str, int] = {}
    for part in parts:
        shared = part.keys() & counts.keys()
        together = max if bucket.dimension.startswith(SKETCH) else int.__add__
        counts |= part | {member: together(counts[member], part[member]) for member in shared}
    return counts


def _event_of(bucket: Bucket) -> str:
    """Whose visits they are."""
    return bucket.dimension.removeprefix(SKETCH).partition(":")[2]


def _generations(applied: Sequence[ApplyResult]) -> dict[int, int]:
    days = {day for part in applied for day in part.generations}
    return {day: min(part.generations.get(day, 0) for part in applied) for day in days}
