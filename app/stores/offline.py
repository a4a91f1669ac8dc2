"""A store that goes on while the one behind it is away.

Batches that Redis does not take are written to a file and counted on top of the last known numbers.
When Redis answers again they are applied with the source and offset they were first sent with, so
that one which Redis had taken, though its answer was lost, is not counted twice.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import math
import random
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from app.domain.buckets import ALL_EVENTS, CORRECTION, GENERATION, TOTAL, Bucket
from app.domain.calendar import TimeSlot
from app.domain.counting import Commit, DayChange, HitGroup, IdempotencyKey, Visit
from app.stores import hyperloglog
from app.stores.base import (
    Cardinality,
    CounterStore,
    OutcomeUnknown,
    StoreError,
    StoreLimits,
    StoreOpenError,
    StoreStatus,
    StoreUnavailable,
)
from app.stores.memory import MemoryStore
from app.stores.results import Ack, ApplyResult, GroupResult, Reason
from app.stores.rules import PERMANENT_SOURCE_PREFIX, SOURCE_TTL_SECONDS, apply_despite_loss
from app.stores.sqlite_connection import connect

LINES_AT_ONCE = 20  # applied, then dropped in one commit of the file
SLICE_SECONDS = 0.4  # with an answer that does not come, hits wait 2.4 s
TAUGHT_MAX = 100  # buckets that are read during one commit and still learnt from
LIMITS: set[Reason | None] = {"full", "keys"}
RETRY_SECONDS = 0.5  # between two tries to reach the store, give or take a half

A = TypeVar("A")
T = TypeVar("T")
Ask = Callable[[A], Awaitable[T]]
Lesson = tuple[Bucket, Mapping[str, int], bool]  # what was read, and whether that is all there is

log = logging.getLogger("tally.spool")


class OfflineStore(CounterStore):
    def __init__(self, store: CounterStore, identity: str, directory: Path, bytes_max: int) -> None:
        self.kind, self.ack, self.shared = store.kind, store.ack, store.shared
        self._store = store
        self._known = MemoryStore(StoreLimits(0))  # the last known numbers; what is spooled is past the caps
        self._directory = directory
        self._suffix = f".{hashlib.sha256(identity.encode()).hexdigest()[:16]}.spool"  # whose hits a file keeps
        self._bytes_max = bytes_max
        self._files: list[SpoolFile] = []  # what waits, oldest first
        self._seen: dict[Bucket, Mapping[str, int]] = {}  # read as a whole, and known once the store is away
        self._taught: list[Lesson] = []  # by reads, while a batch was under way
        self._drained = 0  # lines so far
        self._full = False
        self._lost = 0
        self._epoch = ""
        self._generations: dict[int, int] = {}  # of days, as far as known
        self._read_in: dict[int, int] = {}  # those in which the known numbers were read; else they may be too many
        self._refusal: StoreOpenError | None = None
        self._gate = asyncio.Lock()  # one batch at a time, and none while the way changes
        self._away_since: float | None = time.monotonic()
        self._returning: asyncio.Task[None] | None = None

    @property
    def durability(self) -> str:  # type: ignore[override] # it is the store's, which may still find out
        return self._store.durability

    async def open(self) -> None:
        self._files = find_orphans(self._directory, self._suffix)
        for file in self._files:
            for line in file.lines():
                self._count_known(_decode(line)[3])
        try:
            await self._come_back()
        except StoreOpenError:
            raise
        except StoreError as error:
            self._away_since = None
            self._leave(error)

    async def close(self) -> None:
        if self._returning:
            self._returning.cancel()
            await asyncio.gather(self._returning, return_exceptions=True)
        await self._store.close()
        for file in self._files:
            file.close()

    async def apply(self, source: str, expected_offset: int, new_offset: int, commit: Commit) -> ApplyResult:
        def remember(result: ApplyResult) -> None:
            for group, group_result in zip(commit, result.groups, strict=True):
                self._known.learn_values(group.slot.day, group_result.counted)

        async with self._gate:
            try:
                return await self._try(self._store.apply(source, expected_offset, new_offset, commit), remember)
            except (OutcomeUnknown, StoreUnavailable) as error:
                if source.startswith(PERMANENT_SOURCE_PREFIX):
                    raise  # Kafka keeps these records itself
                return await self._spool(_encode(source, expected_offset, new_offset, commit), commit, error)

    async def apply_change(self, source: str, expected_offset: int, new_offset: int, change: DayChange) -> ApplyResult:
        def remember(result: ApplyResult) -> None:
            # Without a new generation it is a line of an import, and may be large.
            if result.generations.items() - self._generations.items():
                self._known.write(change.writes)

        async with self._gate:
            return await self._try(self._store.apply_change(source, expected_offset, new_offset, change), remember)

    async def get_offset(self, source: str) -> int:
        return await self._store.get_offset(source)

    async def _try(
        self, apply: Coroutine[Any, Any, ApplyResult], remember: Callable[[ApplyResult], None]
    ) -> ApplyResult:
        """Apply, unless the store is unreachable. Raises what the store raises; an outage takes this node offline."""
        if self._away_since is not None:
            apply.close()
            raise StoreUnavailable("the store is away")
        try:
            result = await apply
        except (OutcomeUnknown, StoreUnavailable) as error:
            self._leave(error)
            raise
        else:
            remember(result)
            self._heed(result.generations)
            return result
        finally:  # what was read meanwhile may have this commit in it, which is now to be counted on top
            taught, self._taught = self._taught, []
            if self._away_since is None:
                self._see(taught)

    async def read(
        self, buckets: Sequence[Bucket], members: Sequence[str] | None = None
    ) -> Sequence[Mapping[str, int]]:
        if self._away_since is None:
            try:
                found = await self._store.read(buckets, members)
            except StoreUnavailable as error:
                self._leave(error)
            else:
                taught = [(b, counts, members is None) for b, counts in zip(buckets, found, strict=True) if counts]
                self._heed({b.start: counts[ALL_EVENTS] for b, counts, _ in taught if b.dimension == GENERATION})
                if self._away_since is None and self._gate.locked():
                    self._taught = [*self._taught, *taught][-TAUGHT_MAX:]
                elif self._away_since is None:
                    self._see(taught)
                return found
        return await self._known.read(buckets, members)

    async def sizes(self, buckets: Sequence[Bucket]) -> list[int]:
        return await self._or_known(self._store.sizes, self._known.sizes, buckets)

    async def count_distinct(self, buckets: Sequence[Bucket]) -> Cardinality:
        found = await self._or_known(self._store.count_distinct, self._known.count_distinct, buckets)
        return found._replace(error=max(found.error, hyperloglog.ERROR))  # what is known here is no count of all either

    async def list_buckets(self, days: Sequence[int] | None = None) -> list[Bucket]:
        return await self._or_known(self._store.list_buckets, self._known.list_buckets, days)

    async def _or_known(self, ask: Ask[A, T], ask_known: Ask[A, T], what: A) -> T:
        if self._away_since is None:
            try:
                return await ask(what)
            except StoreUnavailable as error:
                self._leave(error)
        return await ask_known(what)

    async def prune(self, cutoffs: Mapping[str, int], slot: TimeSlot) -> None:
        await self._known.prune(cutoffs, slot)
        self._seen = {b: counts for b, counts in self._seen.items() if b.start >= cutoffs.get(b.step, 0)}
        if self._away_since is None:
            await self._store.prune(cutoffs, slot)

    async def epoch(self) -> str:
        if self._away_since is None:
            epoch = await self._store.epoch()
            if self._read_in != self._generations or self._epoch not in {"", epoch}:
                generations = dict(self._generations)
                buckets = [TOTAL]
                buckets += [Bucket("day", day, of) for day in self._generations for of in ("", CORRECTION, GENERATION)]
                found = await self._store.read(buckets)
                if self._away_since is not None:
                    return self._epoch
                self._known, self._seen, self._read_in = MemoryStore(StoreLimits(0)), {}, generations
                self._see((bucket, counts, False) for bucket, counts in zip(buckets, found, strict=True))
            self._epoch = epoch
        return self._epoch

    async def publish(self, message: str) -> None:
        if self._away_since is None:
            await self._store.publish(message)

    def subscribe(self, timeout_seconds: float) -> AsyncIterator[str]:
        return self._store.subscribe(timeout_seconds)

    def status(self) -> StoreStatus:
        ack, reasons, stale = self.ack, [], None
        if self._lost:
            reasons.append(f"the store has lost {self._lost} acknowledged batches since this process was started")
        if self._away_since is not None:
            ack, stale = self._files[-1].ack if self._files else "spooled", time.monotonic() - self._away_since
            what = "refused: the spool is full" if self._full else "kept in memory" if ack == "memory" else "spooled"
            reasons.append(f"the store is away, hits are {what}")
        if self._refusal:
            reasons.append(str(self._refusal))
        return StoreStatus(ack, not self._full, tuple(reasons), stale, self._spool_bytes(), self._lost)

    def _spool_bytes(self) -> int:
        return sum(file.size for file in self._files)

    async def _spool(self, line: str, batch: Commit, lost: StoreError) -> ApplyResult:
        self._full = self._spool_bytes() + len(line) > self._bytes_max
        if self._full:
            raise lost if isinstance(lost, OutcomeUnknown) else StoreUnavailable(f"{lost}, and the spool is full")
        try:
            if not self._files:
                self._directory.mkdir(parents=True, exist_ok=True)
                self._files.append(SpoolFile(self._directory / f"{uuid.uuid4().hex}{self._suffix}"))
            await asyncio.to_thread(self._files[-1].append, line)
        except (sqlite3.Error, OSError) as error:
            log.warning("the spool cannot be written, hits are kept in memory alone: %s", error)
            self._files.append(SpoolFile(":memory:"))
            self._files[-1].append(line)
        return ApplyResult(self._count_known(batch), self._files[-1].ack, dict(self._generations))

    def _leave(self, error: StoreError) -> None:
        if self._away_since is None:
            log.warning("the store is away, hits are spooled: %s", error)
            for bucket, counts in self._seen.items():
                self._known.learn(bucket, counts)
            self._seen = {}
            self._away_since = time.monotonic()
            self._returning = asyncio.create_task(self._return())

    async def _return(self) -> None:
        async with self._gate:  # what is under way is counted on top of what is known, before that is learnt anew
            pass
        while self._away_since is not None:
            drained = self._drained
            try:
                await self._come_back()
            except Exception as error:  # noqa: BLE001 # whatever it is, the way back is tried again
                log.log(logging.DEBUG if isinstance(error, StoreError) else logging.ERROR, "still away: %r", error)
                self._refusal = error if isinstance(error, StoreOpenError) else None
                if self._drained > drained:
                    continue  # an answer got lost on the way, which on a bad network each of many may
                await asyncio.sleep(RETRY_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 # nodes shall not knock together

    async def _come_back(self) -> None:
        """Apply what waits, oldest first, then stop spooling. Raises StoreError while the store is away."""
        await self._store.open()
        for totals in await self._store.read([TOTAL]):
            self._known.learn(TOTAL, totals)
        while self._away_since is not None:
            # In slices: what arrives meanwhile waits for its turn and comes as one batch, so there is ever less.
            async with self._gate:
                if await self._drain(self._files, until=time.monotonic() + SLICE_SECONDS):
                    self._away_since, self._full, self._refusal = None, False, None

    async def recover_orphans(self) -> None:
        """Apply what other processes have left in the directory since this one was started."""
        if self._away_since is not None:
            return  # what waits here is enough
        files = await asyncio.to_thread(find_orphans, self._directory, self._suffix)
        try:
            await self._drain(files, until=math.inf)
        finally:  # what an error has left is there for the next time
            for file in files:
                file.close()

    async def _drain(self, files: "list[SpoolFile]", until: float) -> bool:
        """Apply what waits in these, oldest first, and drop it, for so long; whether nothing is left."""
        while files:
            while lines := await asyncio.to_thread(files[0].first, LINES_AT_ONCE):
                applied = 0
                try:
                    while applied < len(lines) and (not applied or time.monotonic() < until):
                        await self._send_spooled(lines[applied])
                        applied += 1
                finally:
                    await asyncio.to_thread(files[0].drop, lines[:applied])
                    self._drained += applied
                if applied < len(lines):
                    return False
            files.pop(0).delete()
        return True

    async def _send_spooled(self, line: str) -> None:
        source, expected_offset, new_offset, commit = _decode(line)
        result = await apply_despite_loss(
            lambda offset: self._store.apply(source, offset, new_offset, commit),
            self.record_data_loss,
            expected_offset,
            new_offset,
        )
        if result is None:
            return
        # A limit had rejected it, but that answer was lost, and so it was acknowledged as spooled: it counts now.
        late = []
        for group, group_result in zip(commit, result.groups, strict=True):
            if group_result.reason in LIMITS:
                late.append(group)
            elif events := [event for event, reason in group_result.rejected.items() if reason in LIMITS]:
                late.append(group.only(events))
        if late:
            await self._store.apply(f"{source} {expected_offset}", 0, 1, late)

    async def record_data_loss(self, batches: int) -> None:
        self._lost += batches
        log.error("the store has lost %s acknowledged batches of this node", batches)
        with contextlib.suppress(StoreError):  # the replication id will do, or the next loss
            await self._store.record_data_loss(batches)

    def _see(self, taught: Iterable[Lesson]) -> None:
        for bucket, counts, whole in taught:
            if whole and not bucket.dimension:  # which may be large
                self._seen[bucket] = counts
            else:
                self._known.learn(bucket, counts)

    def _heed(self, generations: Mapping[int, int]) -> None:
        """Where a day has a new one, the counts that are known of it mean nothing any more."""
        for day, generation in generations.items() - self._generations.items():
            self._generations[day], self._seen = generation, {}
            self._known.learn(Bucket("day", day, GENERATION), {ALL_EVENTS: generation})

    def _count_known(self, commit: Commit) -> list[GroupResult]:
        return self._known.count([msgspec.structs.replace(group, limited=False) for group in commit])


class SpoolFile:
    """One process's batches on disk, a line each, in a SQLite file that only one process can have open."""

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self.ack: Ack = "memory" if path == ":memory:" else "spooled"
        self._db = connect(path)
        self._db.execute("CREATE TABLE IF NOT EXISTS batch (id INTEGER PRIMARY KEY, line TEXT NOT NULL) STRICT")
        (self.size,) = self._db.execute("SELECT coalesce(sum(length(line)), 0) FROM batch").fetchone()

    def append(self, line: str) -> None:
        self._db.execute("INSERT INTO batch (line) VALUES (?)", (line,))
        self.size += len(line)

    def first(self, lines_max: int) -> list[str]:
        rows = self._db.execute("SELECT line FROM batch ORDER BY id LIMIT ?", (lines_max,))
        return [line for (line,) in rows]

    def drop(self, lines: list[str]) -> None:
        """Forget these, which are the first."""
        self._db.execute("DELETE FROM batch WHERE id IN (SELECT id FROM batch ORDER BY id LIMIT ?)", (len(lines),))
        self.size -= sum(map(len, lines))

    def lines(self) -> Iterator[str]:
        return (line for (line,) in self._db.execute("SELECT line FROM batch ORDER BY id"))

    def close(self) -> None:
        self._db.close()

    def delete(self) -> None:
        self.close()
        try:
            if self.ack == "spooled":
                Path(self.path).unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s is applied and empty, but cannot be removed: %s", self.path, error)


def find_orphans(directory: Path, suffix: str) -> list[SpoolFile]:
    """The files of dead processes that belong to this store."""
    files = []
    for path in sorted(directory.glob(f"*{suffix}")):
        try:
            if not path.stat().st_size:
                continue  # its process is making it
            file = SpoolFile(path)
            first = file.first(1)
            if not first:  # its process is about to delete it, or has died doing so: nothing may be added
                file.delete()
            elif _decode(first[0])[3][0].slot.minute < time.time() - SOURCE_TTL_SECONDS:
                log.error("%s is older than 30 days, some of it could be counted twice: look at it, remove it", path)
                file.close()
            else:
                files.append(file)
        except FileNotFoundError:
            continue  # it has just been applied
        except (sqlite3.Error, OSError, ValueError) as error:
            if "locked" not in str(error):  # else its process lives
                log.error("%s cannot be read, and what it keeps is not counted: %s", path, error)  # noqa: TRY400 # a trace says no more
    return files


def _encode(source: str, expected_offset: int, new_offset: int, commit: Commit) -> str:
    groups = [(group.slot, group.amounts, group.key, group.visits, not group.atomic) for group in commit]
    return json.dumps([source, expected_offset, new_offset, groups])


def _decode(line: str) -> tuple[str, int, int, Commit]:
    source, expected_offset, new_offset, groups = json.loads(line)
    commit = []
    for slot, amounts, key, visits, *by_event in groups:  # lines of older versions have no fifth field
        commit.append(
            HitGroup(
                TimeSlot(*slot),
                amounts,
                key and IdempotencyKey(*key),
                False,
                [Visit(*v) for v in visits],
                by_event != [True],
            )
        )
    return source, expected_offset, new_offset, commit
