"""A store in Redis Cluster: each event belongs to one shard, and all keys of a shard to one hash slot.

Every commit goes to every shard, so that a source is at the same offset in all of them, and each shard counts its part
exactly once. If a group has several events or an idempotency key, all of its shards prepare it first, so that none of
them rejects what another one counts. A crash between two shards is completed by a retry of the commit or of the key.

An administrative change goes first to the shard of the correction log, which detects conflicts. In the same step that
shard saves the whole change, and any node completes it if a crash keeps it from the other shards.
"""

import asyncio
import contextlib
import itertools
import zlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import NamedTuple

from app.domain.buckets import ALL_EVENTS, CORRECTION_LOG, GENERATION, Bucket, is_event_bucket
from app.domain.calendar import TimeSlot
from app.domain.counting import BucketWrite, Commit, DayChange, HitGroup, Visit
from app.stores import hyperloglog, redis_url
from app.stores.base import Cardinality, CounterStore, OutcomeUnknown, StoreError, StoreStatus, StoreUnavailable
from app.stores.redis import RedisStore
from app.stores.redis_merging import merge_counts, merge_generations, merge_results, require_all, visited_event
from app.stores.redis_scripts import UnfinishedChange
from app.stores.results import Ack, ApplyResult, GroupResult, Reason, reject
from app.stores.rules import apply_despite_loss


class _ShardPart(NamedTuple):
    """One shard's part of a commit: the groups, and their indices in the commit."""

    groups: list[HitGroup]
    indices: list[int]


class ShardedRedisStore(CounterStore):
    """All shards of a store. They share one client."""

    kind = "redis"
    ack: Ack = "redis"
    shared = True

    def __init__(self, shards: Sequence[RedisStore]) -> None:
        self._shards = shards
        self._log_shard = self._shard(ALL_EVENTS)  # it has the correction logs
        self.records = shards[self._log_shard].records

    @property
    def durability(self) -> str:  # type: ignore[override] # the servers of a cluster may be configured differently
        return " or, on another server, ".join(dict.fromkeys(shard.durability for shard in self._shards))

    async def open(self) -> None:
        # The first command makes redis-py read the cluster's slots, which would otherwise happen once per shard.
        await self._shards[0].open()
        await asyncio.gather(*(shard.open() for shard in self._shards[1:]))

    async def close(self) -> None:
        await self._shards[0].close()

    async def apply(
        self, source: str, expected_offset: int, new_offset: int, commit: Commit, note: str = ""
    ) -> ApplyResult:
        async with _deadline():
            return await self._apply(source, expected_offset, new_offset, commit, note)

    async def apply_change(self, source: str, expected_offset: int, new_offset: int, change: DayChange) -> ApplyResult:
        async with _deadline():
            return await self._apply_change(source, expected_offset, new_offset, change)

    async def get_offset(self, source: str) -> int:
        return min(await asyncio.gather(*(shard.get_offset(source) for shard in self._shards)))

    async def get_note(self, source: str) -> str:
        offsets = await asyncio.gather(*(shard.get_offset(source) for shard in self._shards))
        return await self._shards[offsets.index(min(offsets))].get_note(source)

    async def _apply_change(self, source: str, expected_offset: int, new_offset: int, change: DayChange) -> ApplyResult:
        unfinished = UnfinishedChange(source, expected_offset, new_offset, change)
        part = self._part_of_change(self._log_shard, change)
        # A change that may be late is not completed by other nodes, because its sender repeats it.
        saved = None if change.may_be_late else unfinished
        first = await self._shards[self._log_shard].apply_change(source, expected_offset, new_offset, part, saved)
        results = await self._apply_in_other_shards(unfinished, expected_offset, [first])
        if saved:
            with contextlib.suppress(StoreError):  # then another node removes it
                await self._shards[self._log_shard].finish_change(unfinished)
        return ApplyResult([], self.ack, merge_generations(results))

    async def _apply_in_other_shards(
        self, unfinished: UnfinishedChange, expected_offset: int, outcomes: Sequence[ApplyResult] = ()
    ) -> list[ApplyResult]:
        """Apply the rest of a change. Return all results, with those of `outcomes`."""
        source, _, new_offset, change = unfinished
        late_change = change._replace(expected_corrections=None, may_be_late=True)  # it must be completed
        others = await asyncio.gather(
            *(
                shard.apply_change(source, expected_offset, new_offset, self._part_of_change(index, late_change))
                for index, shard in enumerate(self._shards)
                if index != self._log_shard
            ),
            return_exceptions=True,
        )
        return require_all([*outcomes, *others])

    async def _complete_changes(self) -> None:
        """Complete the changes that some shards lack, because a process has crashed. Raises StoreUnavailable."""
        for unfinished in await self._shards[self._log_shard].unfinished_changes():
            try:
                await apply_despite_loss(
                    lambda offset, unfinished=unfinished: self._complete(unfinished, offset),  # type: ignore[misc] # mypy loses the default
                    self.record_data_loss,
                    unfinished.expected_offset,
                    unfinished.new_offset,
                )
            except OutcomeUnknown as error:
                raise StoreUnavailable(str(error)) from error
            await self._shards[self._log_shard].finish_change(unfinished)

    async def _complete(self, unfinished: UnfinishedChange, expected_offset: int) -> ApplyResult:
        await self._apply_in_other_shards(unfinished, expected_offset)
        return ApplyResult([], self.ack)

    def _part_of_change(self, shard: int, change: DayChange) -> DayChange:
        writes = [write._replace(counts=self._shard_part(shard, write)) for write in change.writes]
        return change._replace(writes=[write for write in writes if write.counts or write.op == "drop"])

    def _shard_part(self, shard: int, write: BucketWrite) -> dict[str, int]:
        """Return the members that a bucket write changes in this shard. A visitor is taken out of every shard."""
        if is_event_bucket(write.bucket):
            return {event: n for event, n in write.counts.items() if self._shard(event) == shard}
        return dict(write.counts) if write.op == "take" or self._has_bucket(shard, write.bucket) else {}

    async def _apply(
        self, source: str, expected_offset: int, new_offset: int, commit: Commit, note: str
    ) -> ApplyResult:
        rejected: dict[int, Reason] = {}
        if any(group.key or (len(group.amounts) > 1 and group.atomic) for group in commit):
            rejected = await self._prepare(source, new_offset, commit)
        slots = list(dict.fromkeys(group.slot for group in commit))
        parts = self._split(commit)
        self._add_claims(parts, commit, rejected)  # their shards release them
        by_shard = [{i: rejected[index] for i, index in enumerate(part.indices) if index in rejected} for part in parts]
        outcomes = await asyncio.gather(
            *(
                shard.apply(source, expected_offset, new_offset, part.groups, note, reasons, slots)
                for shard, part, reasons in zip(self._shards, parts, by_shard, strict=True)
            ),
            return_exceptions=True,
        )
        shard_results = require_all(outcomes)
        results = [reject(rejected[index]) if index in rejected else None for index in range(len(commit))]
        for part, shard_result in zip(parts, shard_results, strict=True):
            for index, result in zip(part.indices, shard_result.groups, strict=True):
                results[index] = merge_results(results[index], result)
        merged = [result or GroupResult() for result in results]
        return ApplyResult(merged, self.ack, merge_generations(shard_results))

    async def _prepare(self, source: str, new_offset: int, commit: Commit) -> dict[int, Reason]:
        """Return the reasons by index of the groups that no shard may count.

        Each idempotency key is claimed in the shard of the key, so that only one request gets it, whatever its events.
        """
        parts = self._split(commit, preparing=True)
        sizes = [len(part.groups) for part in parts]
        self._add_claims(parts, commit, range(len(commit)))
        prepared = await asyncio.gather(
            *(shard.prepare(source, new_offset, part.groups) for shard, part in zip(self._shards, parts, strict=True))
        )
        rejected: dict[int, Reason] = {}
        counted: set[int] = set()
        for part, size, (applied, results) in zip(parts, sizes, prepared, strict=True):
            # An applied commit has other claims: those that it released.
            indices = part.indices[:size] if applied else part.indices
            for i, (index, result) in enumerate(zip(indices, results, strict=False)):
                if result and result.reason:
                    rejected[index] = result.reason
                elif applied or (result and i < size):  # a replay, but not that of a claim
                    counted.add(index)
        # A group that one shard has counted in an earlier attempt has to be counted by the others.
        return {index: reason for index, reason in rejected.items() if index not in counted}

    def _add_claims(self, parts: Sequence[_ShardPart], commit: Commit, indices: Iterable[int]) -> None:
        """Add the claims of these groups' keys to the shards of the keys."""
        for index in indices:
            if key := commit[index].key:
                slot, limited = commit[index].slot, commit[index].limited
                part = parts[self._shard(key.id)]
                part.groups.append(HitGroup(slot, {}, key._replace(id=f"{key.id}@"), limited))
                part.indices.append(index)

    def _split(self, commit: Commit, *, preparing: bool = False) -> list[_ShardPart]:
        """Return each shard's part. The limits of a group that has to be prepared apply only when it is prepared."""
        parts = [_ShardPart([], []) for _ in self._shards]
        for index, group in enumerate(commit):
            amounts: dict[int, dict[str, int]] = {}
            for event, by in group.amounts.items():
                amounts.setdefault(self._shard(event), {})[event] = by
            visits: dict[int, list[Visit]] = {}
            for visit in group.visits:
                visits.setdefault(self._shard(visit.event), []).append(visit)
            if group.key and not amounts:
                amounts[self._shard(group.key.id)] = {}
            if not group.amounts:
                amounts |= {shard: {} for shard in visits}
            for shard, shard_amounts in amounts.items():
                part = group
                if group.key or len(group.amounts) != 1:
                    # The claim of the key counts for the client, so its copies do not.
                    key = group.key and group.key._replace(client="")
                    limited = group.limited and (preparing or not group.atomic)
                    part = HitGroup(group.slot, shard_amounts, key, limited, visits.get(shard, ()), group.atomic)
                parts[shard].groups.append(part)
                parts[shard].indices.append(index)
        return parts

    def _shard(self, name: str) -> int:
        """Return the shard of an event name or of an idempotency key. It must never change for a store."""
        return zlib.crc32(name.encode()) % len(self._shards)

    async def read(self, buckets: Sequence[Bucket], members: Sequence[str] | None = None) -> list[dict[str, int]]:
        counts: dict[Bucket, list[dict[str, int]]] = {bucket: [] for bucket in buckets}
        for has_events, group in itertools.groupby(counts, is_event_bucket):
            alike = list(group)
            shards = await asyncio.gather(
                *(self._read_shard(shard, alike, members, has_events) for shard in range(len(self._shards)))
            )
            for shard_counts in shards:
                for bucket, part in shard_counts.items():
                    counts[bucket].append(part)
        if any(bucket.dimension == CORRECTION_LOG for bucket in buckets):
            await self._complete_changes()
        return [merge_counts(bucket, counts[bucket]) for bucket in buckets]

    async def read_at_once(self, buckets: Sequence[Bucket], member: str) -> list[dict[str, int]]:
        return await self._shards[self._shard(member)].read_at_once(buckets, member)

    async def _read_shard(
        self, shard: int, buckets: Sequence[Bucket], members: Sequence[str] | None, has_events: bool
    ) -> dict[Bucket, dict[str, int]]:
        """Return this shard's counts of these buckets: either all of them have events, or none has."""
        if has_events:
            own_members = members and [event for event in members if event == ALL_EVENTS or self._shard(event) == shard]
            return dict(zip(buckets, await self._shards[shard].read(buckets, own_members), strict=True))
        own = [bucket for bucket in buckets if self._has_bucket(shard, bucket) or visited_event(bucket) == ALL_EVENTS]
        return dict(zip(own, await self._shards[shard].read(own, members), strict=True)) if own else {}

    def _has_bucket(self, shard: int, bucket: Bucket) -> bool:
        """Return whether a shard has a bucket without events: visitors are where their event is, generations in all."""
        return bucket.dimension == GENERATION or self._shard(visited_event(bucket)) == shard

    async def count_distinct(self, buckets: Sequence[Bucket]) -> Cardinality:
        event = visited_event(buckets[0])
        if event != ALL_EVENTS:
            return await self._shards[self._shard(event)].count_distinct(buckets)
        sketches = await asyncio.gather(*(shard.read_sketch(buckets) for shard in self._shards))
        return Cardinality(hyperloglog.estimate(*sketches), hyperloglog.ERROR)

    async def list_buckets(self, days: Sequence[int] | None = None) -> list[Bucket]:
        buckets = await asyncio.gather(*(shard.list_buckets(days) for shard in self._shards))
        return list(dict.fromkeys(itertools.chain(*buckets)))

    async def sizes(self, buckets: Sequence[Bucket]) -> list[int]:
        sizes = await asyncio.gather(*(shard.sizes(buckets) for shard in self._shards))
        return [sum(of_bucket) for of_bucket in zip(*sizes, strict=True)]

    async def prune(self, cutoffs: Mapping[str, int], slot: TimeSlot) -> None:
        await asyncio.gather(*(shard.prune(cutoffs, slot) for shard in self._shards))

    async def newest_days(self) -> list[int]:
        newest = await asyncio.gather(*(shard.newest_days() for shard in self._shards))
        return sorted(set(itertools.chain(*newest)), reverse=True)[:2]

    def status(self) -> StoreStatus:
        reasons = dict.fromkeys(reason for shard in self._shards for reason in shard.status().reasons)
        return StoreStatus(self.ack, reasons=tuple(reasons))

    async def refresh(self) -> str:
        epochs = await asyncio.gather(*(shard.refresh() for shard in self._shards))
        with contextlib.suppress(StoreError):  # the next refresh repeats it
            await self._complete_changes()
        return " ".join(epochs)

    async def record_data_loss(self, commits: int) -> None:
        await self._shards[0].record_data_loss(commits)

    async def publish(self, message: str) -> None:
        await self._shards[0].publish(message)

    def subscribe(self, timeout_seconds: float) -> AsyncIterator[str]:
        return self._shards[0].subscribe(timeout_seconds)


@contextlib.asynccontextmanager
async def _deadline() -> AsyncIterator[None]:
    """Limit the time of all phases of a commit together."""
    try:
        async with asyncio.timeout(redis_url.COMMAND_TIMEOUT_SECONDS):
            yield
    except TimeoutError:
        raise OutcomeUnknown("Redis did not reply in time; the hits may be counted or not") from None
