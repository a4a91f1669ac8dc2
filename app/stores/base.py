"""The contract of a store, with its errors."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from app.domain.buckets import CORRECTION, SKETCH, Bucket, VisitorKind
from app.domain.calendar import TimeSlot, is_same_zone
from app.domain.counting import Commit, DayChange
from app.stores import hyperloglog
from app.stores.records import RecordStore
from app.stores.results import Ack, ApplyResult


class StoreError(Exception):
    """Base class of the errors of a store. A client may see the message."""


class StoreOpenError(StoreError):
    """The store cannot be opened or its URL is invalid. The message says what to do."""


class StoreInUse(StoreOpenError):
    """Another process has the store open, and the store serves one process."""


class StoreUnavailable(StoreError):
    """The store cannot be reached. Nothing was written."""


class ChangeExpired(StoreUnavailable):
    """The store was reached after the deadline of an administrative change. Nothing was written."""


class OutcomeUnknown(StoreError):
    """The commit was applied once or not at all."""


class WriteConflict(StoreError):
    """Another change of the day was applied since this one was planned. Nothing was written."""


class BackupFailed(StoreError):
    """The store could not be copied. The message says what to do."""


class BackupRunning(StoreError):
    """Another copy of the store is being made."""


class BackupUnsupported(StoreError):
    """The store has no file that could be copied."""


class OffsetMismatch(StoreError):
    """The source is at `offset`, which is not the expected one. Nothing was written."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"the store has this source at offset {offset}")
        self.offset = offset


def check_zone(stored: str, configured: str) -> None:
    """Raise StoreOpenError if the days of a store belong to another time zone: they would become invisible."""
    if not is_same_zone(stored, configured):
        raise StoreOpenError(
            f"TALLY_TIMEZONE is {configured}, but the days in this store are those of {stored}: set"
            f" TALLY_TIMEZONE={stored}, or move the counts to a new store with `tally rezone`"
        )


class StoreLimits(NamedTuple):
    """The largest number of event names, and of live idempotency keys, that a store accepts."""

    names: int
    keys: int = 1_000_000


class Cardinality(NamedTuple):
    """A number of different visitors. `error` is its relative standard error, 0 if the number is exact."""

    number: int
    error: float


class StoreStatus(NamedTuple):
    """The current state of a store.

    `ack` is how durable a hit is if it is acknowledged now. `accepting` is false if hits are rejected. `reasons` are
    sentences for operators. `stale_seconds` is the age of the counts that reads return, or None if they are current.
    `spool_bytes` is the size of this node's spool. `lost_commits` is the number of acknowledged commits that the store
    lost. `rejected_hits` is the number of acknowledged hits that were spooled and then rejected by the store. `outages`
    is how often the store has become unreachable.
    """

    ack: Ack
    accepting: bool = True
    reasons: tuple[str, ...] = ()
    stale_seconds: float | None = None
    spool_bytes: int = 0
    lost_commits: int = 0
    rejected_hits: int = 0
    outages: int = 0


class CounterStore(ABC):
    """A map from buckets to their members (events or visitors) and counts.

    Every asynchronous method except `open` may raise StoreUnavailable. `kind` is the store's name in messages. `ack` is
    how durable its commits are, and `durability` describes what they survive. `shared` is true if other nodes may write
    to the same store. `records` has everything that is not a count.
    """

    records: RecordStore
    kind: str
    ack: Ack
    durability: str
    shared = False

    @abstractmethod
    async def open(self) -> None:
        """Connect, before any other method is called. Raises StoreOpenError."""

    async def close(self) -> None:  # noqa: B027 # MemoryStore has nothing to close
        """Close connections and files."""

    @abstractmethod
    async def apply(
        self, source: str, expected_offset: int, new_offset: int, commit: Commit, note: str = ""
    ) -> ApplyResult:
        """Write a commit and move its source from `expected_offset` to `new_offset`, in one atomic step.

        A new source is at offset 0. If the source is at `new_offset` already, this is a retry: return the saved results
        and write nothing. Never use an offset for two commits. `note` is saved with the offset. Raises OffsetMismatch
        if the source is at any other offset or would move backwards, StoreUnavailable, or OutcomeUnknown.
        """

    @abstractmethod
    async def apply_change(self, source: str, expected_offset: int, new_offset: int, change: DayChange) -> ApplyResult:
        """Do the bucket writes of an administrative change in one atomic step, with the rule of `apply` for offsets.

        The result has no groups. Raises WriteConflict if `change.expected_corrections` is not the number of corrections
        of that day, ChangeExpired, and the errors of `apply`.
        """

    @abstractmethod
    async def get_offset(self, source: str) -> int:
        """Return the offset of a source: 0 if it is new, the lowest one if its offset differs between shards."""

    @abstractmethod
    async def get_note(self, source: str) -> str:
        """Return the last note of a source, or "" if it has none. Later commits may have had no note."""

    @abstractmethod
    async def read(
        self, buckets: Sequence[Bucket], members: Sequence[str] | None = None
    ) -> Sequence[Mapping[str, int]]:
        """Return the counts of each bucket, in the same order, for these members or for all.

        A member that was never counted is missing. In a bucket of visitors, those after the first RANKED_VISITORS_MAX
        have the count 0. The result includes an administrative change in all of the buckets or in none. When a
        CORRECTION_LOG is returned, the changes in it are complete, so that the next one can be planned.
        """

    @abstractmethod
    async def read_at_once(self, buckets: Sequence[Bucket], member: str) -> list[dict[str, int]]:
        """Return the same as `read` for one member of some event buckets, as of one moment: between two commits.

        Hits wait meanwhile, so it is meant for about a hundred buckets.
        """

    @abstractmethod
    async def sizes(self, buckets: Sequence[Bucket]) -> list[int]:
        """Return the number of members of each bucket, without ALL_EVENTS."""

    @abstractmethod
    async def list_buckets(self, days: Sequence[int] | None = None) -> list[Bucket]:
        """Return all buckets, or those with the step "day" that start at these UTC seconds, in any order."""

    @abstractmethod
    async def newest_days(self) -> list[int]:
        """Return the starts (UTC seconds) of the two newest days with hits, newest first; fewer if there are fewer."""

    @abstractmethod
    async def prune(self, cutoffs: Mapping[str, int], slot: TimeSlot) -> None:
        """Delete the buckets of a step that start before its cutoff (UTC second), and everything that has expired."""

    async def counts(self, day: int, events: Sequence[str] | None = None) -> Mapping[str, int]:
        """Return the counts of the day that starts at this UTC second, corrections included, of these events or all.

        An event whose count is 0 is missing.
        """
        hits, corrections = await self.read([Bucket("day", day), Bucket("day", day, CORRECTION)], events)
        if not corrections:
            return hits
        return {e: n for e in {**hits, **corrections} if (n := hits.get(e, 0) + corrections.get(e, 0))}

    async def count_distinct(self, buckets: Sequence[Bucket]) -> Cardinality:
        """Return the number of different visitors in these buckets, exact or estimated."""
        sketches = await self.read([bucket._replace(dimension=SKETCH + bucket.dimension) for bucket in buckets])
        if len(buckets) == 1 and not any(sketches):
            return Cardinality((await self.sizes(buckets))[0], 0.0)
        if not any(sketches):
            return Cardinality(await self._count_union(buckets), 0.0)
        listed: dict[str, int] = {}
        for bucket in buckets:  # one at a time, because each may be large
            (members,) = await self.read([bucket])
            hyperloglog.add(listed, members)
        return Cardinality(hyperloglog.estimate(*sketches, listed), hyperloglog.ERROR)

    async def _count_union(self, buckets: Sequence[Bucket]) -> int:
        """Return the exact number of different members in these buckets."""
        ids = set[str]()
        for bucket in buckets:  # one at a time, because each may be large
            ids.update(*await self.read([bucket]))
        return len(ids)

    async def visits(self, kind: VisitorKind, visitor: str, days: Sequence[int]) -> list[dict[str, int]]:
        """Return one map per day, in the order of `days` (UTC seconds): a visitor's count of each event."""
        prefix = f"{kind}:"
        buckets = [bucket for bucket in await self.list_buckets(days) if bucket.dimension.startswith(prefix)]
        counts: dict[int, dict[str, int]] = {day: {} for day in days}
        for bucket, found in zip(buckets, await self.read(buckets, [visitor]), strict=True):
            if found.get(visitor) and bucket.dimension != prefix:
                counts[bucket.start][bucket.dimension.removeprefix(prefix)] = found[visitor]
        return list(counts.values())

    def status(self) -> StoreStatus:
        """Return the current state, without I/O."""
        return StoreStatus(self.ack)

    def stale_seconds(self) -> float | None:
        """Return the age of the counts that reads return, or None if they are current. Without I/O."""
        return None

    async def refresh(self) -> str:
        """Return the epoch, an id that changes when counts may have gone back: data was lost, or the store replaced.

        A store that keeps last known counts reads them again if they may be too high.
        """
        return ""

    async def record_data_loss(self, commits: int) -> None:  # noqa: B027 # only Redis can lose acknowledged data
        """Start a new epoch on all nodes, so that they replace their counts with those of the store.

        A source's offset is this many commits lower than expected, or 0 if nothing is lost but a node shows too much.
        """

    def add_known_counts(self, day: int, counts: Mapping[str, int], generation: int) -> None:  # noqa: B027 # only the offline store keeps them
        """Keep counts that another node got from the store, for an outage.

        They belong to this generation of the day that starts at this UTC second.
        """

    async def back_up(self, path: Path) -> None:  # noqa: ARG002 # only SQLite has a file
        """Write a copy of the store to a file, with its state of one moment during the call. Hits go on.

        Raises BackupFailed, BackupRunning or BackupUnsupported, and then leaves no file.
        """
        raise BackupUnsupported(
            f"the {self.kind} store has no file to copy; see docs/how-to/backup.md, or save all counts with an export"
        )

    async def recover_orphans(self) -> None:  # noqa: B027 # only the offline store leaves files behind
        """Replay the spool files of processes that have died."""

    async def publish(self, message: str) -> None:
        """Send a message to every node on this store, including this one. It may get lost. Only for shared stores."""
        raise NotImplementedError  # a store that is not shared has no other nodes

    def subscribe(self, timeout_seconds: float) -> AsyncIterator[str]:
        """Yield the messages that nodes publish. Only for shared stores.

        Raises StoreUnavailable if no message arrives for `timeout_seconds`, or if the connection breaks.
        """
        raise NotImplementedError  # a store that is not shared has no other nodes
