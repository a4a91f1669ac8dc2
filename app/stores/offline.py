"""A store that keeps accepting hits while the store behind it is unreachable.

While Redis is unreachable, commits are spooled and counted on top of the last known counts. A replay uses the source
and offset of the first attempt, so a commit that Redis had applied without a response is not counted twice.
"""

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from app.domain.buckets import TOTAL, Bucket
from app.domain.calendar import TimeSlot
from app.domain.counting import Commit, DayChange
from app.stores import hyperloglog
from app.stores.base import (
    Cardinality,
    ChangeExpired,
    CounterStore,
    OutcomeUnknown,
    StoreError,
    StoreLimits,
    StoreOpenError,
    StoreStatus,
    StoreUnavailable,
)
from app.stores.last_known import CachedRead, LastKnownCounts
from app.stores.offline_records import OfflineRecords
from app.stores.replay import LIMITS, Replay
from app.stores.results import ApplyResult
from app.stores.rules import PERMANENT_SOURCE_PREFIX
from app.stores.spool_file import Spool, SpooledCommit, SpoolFull, encode

REPLAY_SLICE_SECONDS = 0.4  # hits wait for a slice, and for one time-out of Redis at its end: 2.4 s at most
PING_TIMEOUT_SECONDS = 1.0  # a read that failed has taken 1.5 s, and no request may wait longer than 2.5 s
RETRY_SECONDS = 0.5  # between two attempts to reconnect, plus or minus half of it
STARTUP_REPLAY_SECONDS = 10  # after which a starting node accepts hits while it replays the rest of a large spool

T = TypeVar("T")

log = logging.getLogger("tally.spool")


class OfflineStore(CounterStore):
    """Wraps a store that may become unreachable. `identity` names it: spool files of other stores are not touched.

    It goes offline when a write of the store or a ping fails, and online when all spooled commits are replayed. A read
    that fails makes it ping the store, and raises StoreUnavailable if the store replies. Offline, an administrative
    change raises StoreUnavailable, because applying it later would surprise. So does a commit of a Kafka partition,
    because Kafka keeps the records.
    """

    def __init__(
        self,
        store: CounterStore,
        identity: str,
        directory: Path,
        bytes_max: int,
        limits: StoreLimits,
        old_identities: Sequence[str] = (),
    ) -> None:
        self.kind, self.ack, self.shared = store.kind, store.ack, store.shared
        self._store, self._closing, self._is_replaying = store, False, False
        self.records = OfflineRecords(
            store.records, self._is_reachable, lambda: self._is_offline and not self._is_replaying
        )
        self._spool = Spool(directory, identity, bytes_max, old_identities)
        self._last_known, self._replay = LastKnownCounts(limits), Replay(store, self.record_data_loss)
        self._lost_commits, self._outages, self._epoch = 0, 0, ""
        self._open_error: StoreOpenError | None = None
        # Held during each commit and each slice of the replay: going back online must not overtake a spooled commit.
        self._commit_lock = asyncio.Lock()
        self._offline_since: float | None = time.monotonic()
        self._reconnecting: asyncio.Task[None] | None = None
        self._ping: asyncio.Task[None] | None = None

    @property
    def durability(self) -> str:  # type: ignore[override] # the wrapped store may read it later
        return self._store.durability

    @property
    def _is_offline(self) -> bool:
        return self._offline_since is not None

    async def open(self) -> None:
        self._spool.report_foreign_files()
        self._spool.files = self._spool.find_orphans()
        try:
            await self._reconnect(until=time.monotonic() + STARTUP_REPLAY_SECONDS)
        except StoreOpenError:
            raise
        except StoreError as error:
            for commit in self._spool.first_commits():
                self._last_known.count(commit)
            self._start_outage(error)
        else:
            if self._is_offline:
                self._start_outage(StoreUnavailable("the spool is large and is still being replayed"))

    async def close(self) -> None:
        self._closing = True
        self._replay.stop()
        for task in filter(None, (self._ping, self._reconnecting)):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._store.close()
        for file in self._spool.files:
            file.close()

    async def apply(
        self, source: str, expected_offset: int, new_offset: int, commit: Commit, note: str = ""
    ) -> ApplyResult:
        async with self._commit_lock:
            try:
                with self._attempt():
                    result = await self._store.apply(source, expected_offset, new_offset, commit, note)
                    self._last_known.merge_result(commit, result)
                    return result
            except (OutcomeUnknown, StoreUnavailable) as error:
                if source.startswith(PERMANENT_SOURCE_PREFIX):
                    raise
                return await self._spool_commit(SpooledCommit(source, expected_offset, new_offset, commit), error)

    async def apply_change(self, source: str, expected_offset: int, new_offset: int, change: DayChange) -> ApplyResult:
        async with self._commit_lock:
            with self._attempt():
                result = await self._store.apply_change(source, expected_offset, new_offset, change)
                self._last_known.merge_change(change, result)
                return result

    @contextlib.contextmanager
    def _attempt(self) -> Iterator[None]:
        """Enclose a write: raise StoreUnavailable if offline, and go offline if the store is unreachable."""
        if self._is_offline:
            raise StoreUnavailable("Redis is unreachable")
        try:
            yield
        except (OutcomeUnknown, StoreUnavailable) as error:
            if not isinstance(error, ChangeExpired):
                self._go_offline(error)
            raise
        finally:
            self._last_known.merge_deferred()

    async def _spool_commit(self, spooled: SpooledCommit, cause: StoreError) -> ApplyResult:
        """Count a commit on top of the last known counts, and spool what the limits accept."""
        source, expected_offset, new_offset, commit = spooled
        is_unknown = isinstance(cause, OutcomeUnknown)
        line = encode(spooled)
        try:
            self._spool.check_space(len(line))
        except SpoolFull as error:
            raise cause if is_unknown else StoreUnavailable(f"{cause}, and {error}") from None
        # Clients may have the generation of a correction already, and these counts not.
        self._replay.shows_too_much |= self._last_known.is_outdated
        results = self._last_known.count(commit)
        if is_unknown and any(LIMITS.intersection(result.rejected.values()) for result in results):
            # Redis may have counted the hits that a limit rejects here, and its saved results have the whole commit.
            self._replay.shows_too_much = True
            raise cause
        if not is_unknown and not all(result.is_counted for result in results):
            accepted = [g if r.is_counted else g.only(r.counted) for g, r in zip(commit, results, strict=True)]
            line = encode(SpooledCommit(source, expected_offset, new_offset, accepted))
        ack = await self._spool.append(line)
        return ApplyResult(results, ack, dict(self._last_known.generations))

    async def get_offset(self, source: str) -> int:
        return await self._store.get_offset(source)

    async def get_note(self, source: str) -> str:
        return await self._store.get_note(source)

    async def read(
        self, buckets: Sequence[Bucket], members: Sequence[str] | None = None
    ) -> Sequence[Mapping[str, int]]:
        found = await self._query(lambda store: store.read(buckets, members))
        # If an outage began during this read, its counts may include a commit that was then counted on top.
        if not self._is_offline:
            reads = [CachedRead(b, c, members is None) for b, c in zip(buckets, found, strict=True) if c]
            self._last_known.merge_reads(reads, commit_in_flight=self._commit_lock.locked())
        return found

    async def read_at_once(self, buckets: Sequence[Bucket], member: str) -> list[dict[str, int]]:
        return await self._query(lambda store: store.read_at_once(buckets, member))

    async def sizes(self, buckets: Sequence[Bucket]) -> list[int]:
        return await self._query(lambda store: store.sizes(buckets))

    async def count_distinct(self, buckets: Sequence[Bucket]) -> Cardinality:
        found = await self._query(lambda store: store.count_distinct(buckets))
        # The last known counts may lack visitors, so their number is never exact.
        return found._replace(error=max(found.error, hyperloglog.ERROR))

    async def list_buckets(self, days: Sequence[int] | None = None) -> list[Bucket]:
        return await self._query(lambda store: store.list_buckets(days))

    async def _query(self, query: Callable[[CounterStore], Awaitable[T]]) -> T:
        """Query the store or, while it is unreachable, the last known counts. Raises StoreUnavailable."""
        if not self._is_offline:
            try:
                return await query(self._store)
            except StoreUnavailable:
                # A query may fail because it is large, or because Redis is busy. Commits go on meanwhile.
                if await self._is_reachable():
                    raise
        return await query(self._last_known.store)

    async def _is_reachable(self) -> bool:
        """Ping the store, and go offline if it does not reply. Concurrent calls share one ping."""
        if self._ping is None or self._ping.done():
            self._ping = asyncio.create_task(self._send_ping())
        await asyncio.shield(self._ping)
        return not self._is_offline

    async def _send_ping(self) -> None:
        try:
            async with asyncio.timeout(PING_TIMEOUT_SECONDS):
                await self._store.get_offset("ping")
        except (StoreUnavailable, TimeoutError) as error:
            self._go_offline(StoreUnavailable(str(error) or "no reply to a ping"))

    async def newest_days(self) -> list[int]:
        return await self._query(lambda store: store.newest_days())

    async def prune(self, cutoffs: Mapping[str, int], slot: TimeSlot) -> None:
        await self._last_known.prune(cutoffs, slot)
        if not self._is_offline:
            await self._store.prune(cutoffs, slot)

    async def refresh(self) -> str:
        if self._is_offline:
            return self._epoch
        try:
            epoch = await self._store.refresh()
        except StoreUnavailable:
            if await self._is_reachable():
                raise
            return self._epoch
        if self._last_known.is_outdated or self._epoch not in {"", epoch}:
            await self._refill_last_known()
        if not self._is_offline:  # else the last known counts may be those of the previous epoch
            self._epoch = epoch
        return self._epoch

    async def _refill_last_known(self) -> None:
        """Replace the last known counts, which may be too high, unless the store becomes unreachable meanwhile."""
        generations, outages = dict(self._last_known.generations), self._outages
        buckets = self._last_known.begin_refill()
        found = await self._store.read(buckets)
        async with self._commit_lock:  # these counts may include the commit in flight, which may be counted on top
            if not self._is_offline and outages == self._outages:
                self._last_known.refill(dict(zip(buckets, found, strict=True)), generations)

    async def publish(self, message: str) -> None:
        if not self._is_offline:
            await self._store.publish(message)

    def subscribe(self, timeout_seconds: float) -> AsyncIterator[str]:
        return self._store.subscribe(timeout_seconds)

    def status(self) -> StoreStatus:
        ack, reasons = self.ack, [*self._store.status().reasons, *self._replay.reasons()]
        lost, rejected = self._lost_commits, self._replay.rejected_hits
        if lost:
            reasons.append(f"Redis has lost {lost} acknowledged commits since this process started")
        if self._is_offline:
            ack = self._spool.ack
            reasons.append(self._spool.describe_outage(is_replaying=self._is_replaying))
        reasons += [str(self._open_error)] if self._open_error else []
        stale, spool = self.stale_seconds(), self._spool
        return StoreStatus(ack, not spool.is_full, tuple(reasons), stale, spool.size, lost, rejected, self._outages)

    def stale_seconds(self) -> float | None:
        return None if self._offline_since is None else time.monotonic() - self._offline_since

    def _go_offline(self, error: StoreError) -> None:
        if not self._is_offline:
            self._start_outage(error)

    def _start_outage(self, error: StoreError) -> None:
        log.warning("Redis is unreachable, hits are spooled: %s", str(error.__cause__ or "") or error)
        self._last_known.start_outage()
        self._offline_since, self._outages = time.monotonic(), self._outages + 1
        self._reconnecting = asyncio.create_task(self._reconnect_loop())

    async def _reconnect_loop(self) -> None:
        async with self._commit_lock:
            # Let the commit in flight finish, so that it is counted before the totals are read again.
            pass
        while self._is_offline and not self._closing:
            replayed_lines = self._replay.lines
            try:
                await self._reconnect()
            except Exception as error:  # noqa: BLE001 # after any error the next attempt may succeed
                level = logging.DEBUG if isinstance(error, StoreError) else logging.ERROR
                log.log(level, "Redis is still unreachable: %r", error)
                self._is_replaying = False
                self._open_error = error if isinstance(error, StoreOpenError) else None
                # On a bad network each of many responses may get lost, but the replay makes progress.
                if self._replay.lines > replayed_lines:
                    continue
                # A random pause keeps nodes from reconnecting at the same time.
                await asyncio.sleep(RETRY_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311

    async def _reconnect(self, until: float = math.inf) -> None:
        """Replay the spool until this monotonic time, and go online if all is replayed. Raises StoreError."""
        await self._store.open()
        for totals in await self._store.read([TOTAL]):
            self._last_known.store.merge_counts(TOTAL, totals)
        self._is_replaying = self._spool.size > 0
        while self._is_offline and not self._closing and time.monotonic() < until:
            # Between two slices, the hits that have arrived are spooled in one commit, so the spool gets ever shorter.
            async with self._commit_lock:
                if await self._replay.run(self._spool.files, until=time.monotonic() + REPLAY_SLICE_SECONDS):
                    await self._go_online()

    async def _go_online(self) -> None:
        if self._replay.shows_too_much:
            # In a new epoch, the nodes replace the counts that they show with the smaller ones of the store.
            await self._store.record_data_loss(0)
            self._replay.shows_too_much = False
        if self._reconnecting:
            log.warning("Redis is reachable again after %.0f s, and all spooled hits are counted", self.stale_seconds())
        self._offline_since, self._spool.is_full, self._open_error, self._is_replaying = None, False, None, False

    def add_known_counts(self, day: int, counts: Mapping[str, int], generation: int) -> None:
        is_busy = self._commit_lock.locked()
        self._last_known.merge_counts_of_day(day, counts, generation, commit_in_flight=is_busy)

    async def recover_orphans(self) -> None:
        if self._is_offline:  # it has its own spool to replay first
            return
        files = await asyncio.to_thread(self._spool.find_orphans)
        try:
            await self._replay.run(files, until=math.inf)
        finally:
            for file in files:  # after an error, any node can find the remaining ones again
                file.close()

    async def record_data_loss(self, commits: int) -> None:
        self._lost_commits += commits
        log.error("Redis has lost %s acknowledged commits of this node", commits)
        # If this fails, Redis' replication id or the next loss begins the new epoch.
        with contextlib.suppress(StoreError):
            await self._store.record_data_loss(commits)
