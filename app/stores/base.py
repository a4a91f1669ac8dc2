"""The contract that every store keeps."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple

from app.domain.buckets import CORRECTION, SKETCH, Bucket, VisitorKind
from app.domain.calendar import TimeSlot
from app.domain.counting import Commit, DayChange
from app.stores import hyperloglog
from app.stores.results import Ack, ApplyResult


class StoreError(Exception):
    """Base class of the errors of a store. A client may see the message."""


class StoreOpenError(StoreError):
    """The store cannot be opened or its URL is invalid. The message says what to do."""


class StoreUnavailable(StoreError):
    """The store cannot be reached. Nothing was written."""


class OutcomeUnknown(StoreError):
    """The commit was applied once or not at all."""


class WriteConflict(StoreError):
    """Another change of the day was applied since this one was planned. Nothing was written."""


class OffsetMismatch(StoreError):
    """The source is at another offset than expected. Nothing was written."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"the store has this source at offset {offset}")
        self.offset = offset


class StoreLimits(NamedTuple):
    """How many event names, and how many live idempotency keys, a store accepts."""

    names: int
    keys: int = 1_000_000


class Cardinality(NamedTuple):
    """A number of different visitors. `error` is the standard error as a fraction of it; 0 if it is exact."""

    number: int
    error: float


class StoreStatus(NamedTuple):
    """The present state of a store, from memory.

    `stale_seconds` is the age of the counts that reads return, or None if they are current. `spool_bytes` wait on this
    node to be replayed. `lost_commits` were acknowledged and then lost by the store.
    """

    ack: Ack
    accepting: bool = True
    reasons: tuple[str, ...] = ()
    stale_seconds: float | None = None
    spool_bytes: int = 0
    lost_commits: int = 0


class CounterStore(ABC):
    """A map of buckets, each of which maps members (events, visitors) to counts.

    Every method may raise StoreUnavailable. `durability` says in words what an acknowledged hit survives; `shared`
    whether other nodes write to the same store.
    """

    kind: str
    ack: Ack
    durability: str
    shared = False

    @abstractmethod
    async def open(self) -> None:
        """Connect. Raises StoreOpenError."""

    async def close(self) -> None:  # noqa: B027 # MemoryStore has nothing to close
        """Close connections and files."""

    @abstractmethod
    async def apply(self, source: str, expected_offset: int, new_offset: int, commit: Commit) -> ApplyResult:
        """Write a commit and move its source from `expected_offset` to `new_offset`, in one atomic step.

        A source that the store does not know is at offset 0. If it is at `new_offset` already, this is a retry: return
        the saved results. An offset must never be used for two commits. Raises OffsetMismatch if the source is
        anywhere else, StoreUnavailable, or OutcomeUnknown.
        """

    @abstractmethod
    async def apply_change(self, source: str, expected_offset: int, new_offset: int, change: DayChange) -> ApplyResult:
        """Do the bucket writes of an administrative change, with the same rule as `apply`; the result has no groups.

        Raises WriteConflict if `change.expected_corrections` is not the day's number of corrections, and what `apply`
        raises.
        """

    @abstractmethod
    async def get_offset(self, source: str) -> int:
        """Return the offset of a source, 0 if it is unknown; if it differs between shards, the lowest."""

    @abstractmethod
    async def read(
        self, buckets: Sequence[Bucket], members: Sequence[str] | None = None
    ) -> Sequence[Mapping[str, int]]:
        """Return each bucket's counts, of these members or of all. A member that was never counted is missing.

        In a bucket of visitors, those after the first RANKED_VISITORS_MAX have the count 0. An administrative change
        shows in all of the buckets or in none.
        """

    @abstractmethod
    async def sizes(self, buckets: Sequence[Bucket]) -> list[int]:
        """Return the number of members of each bucket, ALL_EVENTS not included."""

    @abstractmethod
    async def list_buckets(self, days: Sequence[int] | None = None) -> list[Bucket]:
        """Return all buckets, or those with the step "day" that start at these UTC seconds."""

    @abstractmethod
    async def prune(self, cutoffs: Mapping[str, int], slot: TimeSlot) -> None:
        """Delete the buckets of a step that start before its cutoff (UTC second), and what has expired in `slot`."""

    async def counts(self, day: int, events: Sequence[str] | None = None) -> Mapping[str, int]:
        """Return the counts of the day that starts at this UTC second, corrections included, of these events or all.

        An event whose count is 0 is missing.
        """
        hits, corrections = await self.read([Bucket("day", day), Bucket("day", day, CORRECTION)], events)
        if not corrections:
            return hits
        return {e: n for e in {**hits, **corrections} if (n := hits.get(e, 0) + corrections.get(e, 0))}

    async def count_distinct(self, buckets: Sequence[Bucket]) -> Cardinality:
        """Return how many different visitors these buckets have together."""
        sketches = await self.read([bucket._replace(dimension=SKETCH + bucket.dimension) for bucket in buckets])
        if len(buckets) == 1 and not any(sketches):
            return Cardinality((await self.sizes(buckets))[0], 0.0)
        ids = set[str]()
        for bucket in buckets:  # one read per bucket, because each may be large
            ids.update(*await self.read([bucket]))
        if not any(sketches):
            return Cardinality(len(ids), 0.0)
        return Cardinality(hyperloglog.estimate(*sketches, hyperloglog.sketch(ids)), hyperloglog.ERROR)

    async def visits(self, kind: VisitorKind, visitor: str, days: Sequence[int]) -> list[dict[str, int]]:
        """Return a visitor's count by event, for each day that starts at one of these UTC seconds."""
        prefix = f"{kind}:"
        buckets = [bucket for bucket in await self.list_buckets(days) if bucket.dimension.startswith(prefix)]
        counts: dict[int, dict[str, int]] = {day: {} for day in days}
        for bucket, found in zip(buckets, await self.read(buckets, [visitor]), strict=True):
            if found.get(visitor) and bucket.dimension != prefix:
                counts[bucket.start][bucket.dimension.removeprefix(prefix)] = found[visitor]
        return list(counts.values())

    def status(self) -> StoreStatus:
        """Return the present state, without I/O."""
        return StoreStatus(self.ack)

    async def epoch(self) -> str:
        """Return an id that changes when counts may have gone back, because the store lost data or was replaced."""
        return ""

    async def record_data_loss(self, commits: int) -> None:  # noqa: B027 # only Redis can lose acknowledged data
        """Begin a new epoch on all nodes: a source's offset is this many commits lower than expected."""

    async def recover_orphans(self) -> None:  # noqa: B027 # only the offline store leaves files behind
        """Replay the spool files that dead processes have left."""

    async def publish(self, message: str) -> None:
        """Send a message to every node on this store, including this one. It may get lost. Shared stores only."""
        raise NotImplementedError

    def subscribe(self, timeout_seconds: float) -> AsyncIterator[str]:
        """Yield the messages that nodes publish. Shared stores only.

        Raises StoreUnavailable if none arrives for `timeout_seconds` or the connection breaks.
        """
        raise NotImplementedError
