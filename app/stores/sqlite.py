"""Counters in one SQLite file. A commit is on disk before it is acknowledged.

All reads, writes and checkpoints use one connection on a thread of its own. The connection locks the file while it is
open, so a second process cannot count into the same file.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from app.domain.buckets import CORRECTION, Bucket
from app.domain.calendar import TimeSlot
from app.domain.counting import Commit, DayChange
from app.stores.base import (
    BackupRunning,
    CounterStore,
    OutcomeUnknown,
    StoreInUse,
    StoreLimits,
    StoreOpenError,
    StoreStatus,
    StoreUnavailable,
)
from app.stores.results import ApplyResult
from app.stores.rules import visitor_cutoffs
from app.stores.sqlite_backup import FileBackup
from app.stores.sqlite_connection import open_database
from app.stores.sqlite_records import SqliteRecords
from app.stores.sqlite_tables import PAGE_ROWS, Counts, select
from app.stores.sqlite_writer import ACK, SqliteWriter

LOOKUP_ROWS = 20  # looking up members of one more bucket takes about as long as scanning this many rows
PRUNED_BUCKETS = 20  # buckets of visitors that one transaction deletes
PROBE_SOURCE = "probe"  # the source of empty commits that test whether the file can be written
FLUSH_PAUSE_SECONDS = 0.002  # between two steps of a flush

T = TypeVar("T")


class SqliteStore(CounterStore):
    """The store of one process with a disk."""

    kind = "sqlite"
    ack = ACK  # of commits while the file is where it was opened

    def __init__(self, path: Path, limits: StoreLimits, zone: str = "UTC") -> None:
        self._path = path.absolute()  # SQLite gives some relative paths, such as ":memory:", a special meaning
        self._limits, self._zone = limits, zone
        self.records = SqliteRecords(lambda work: self._execute(self._with_database(work)), self._write_records)
        self._flushing: asyncio.Task[None] | None = None
        self._flush_lock = asyncio.Lock()  # held while flushing, and by work that needs a complete flush before it
        self._changes_applied = 0
        self._write_error: str | None = None  # of the last write, if it failed
        self._opened_files: list[tuple[int, int]] = []
        self._backup: FileBackup | None = None  # the one that is being made
        self._is_detached = False  # whether the file was removed or replaced since it was opened
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._db: sqlite3.Connection | Any = None
        self._writer: SqliteWriter

    @property
    def durability(self) -> str:  # type: ignore[override] # the file may be removed
        if self._is_detached:
            return "nothing: the database file was removed or replaced"
        return "kill -9 and power loss: it is on disk"

    async def open(self) -> None:
        await self._run_in_thread(self._open)

    async def close(self) -> None:
        if self._flushing:
            self._flushing.cancel()
            await asyncio.gather(self._flushing, return_exceptions=True)
        if self._db:
            await self._run_in_thread(self._close)
        self._thread.shutdown()

    async def apply(
        self, source: str, expected_offset: int, new_offset: int, commit: Commit, note: str = ""
    ) -> ApplyResult:
        arguments = source, expected_offset, new_offset, commit, note
        result = await self._write(lambda: self._healthy_writer().apply(*arguments))
        if self._writer.events.flush_due and (self._flushing is None or self._flushing.done()):
            self._flushing = asyncio.create_task(self._flush_in_background())
        return result._replace(ack="memory") if self._is_detached else result

    async def apply_change(self, source: str, expected_offset: int, new_offset: int, change: DayChange) -> ApplyResult:
        def write() -> ApplyResult:
            writer = self._healthy_writer()
            self._changes_applied += 1
            return writer.apply_change(source, expected_offset, new_offset, change)

        async with self._flush_lock:
            if self._writer.healthy:
                await self._flush()  # step by step, so that `write` has to flush only the commits that arrive after it
            return await self._write(write)

    async def get_offset(self, source: str) -> int:
        return await self._execute(lambda: self._healthy_writer().offset_and_results(source)[0])

    async def get_note(self, source: str) -> str:
        return await self._execute(lambda: self._healthy_writer().get_note(source))

    async def read(self, buckets: Sequence[Bucket], members: Sequence[str] | None = None) -> list[Counts]:
        counts = self._read_from_cache(buckets, members)
        while counts is None:
            changes_before, found = self._changes_applied, {bucket: Counts() for bucket in buckets}
            scans: list[tuple[Bucket, Any]] = [(bucket, None) for bucket in found]
            while scans:
                await self._execute(lambda scans=scans, found=found: self._read_part(scans, found, members))  # type: ignore[misc] # mypy loses the defaults
            if changes_before == self._changes_applied:
                counts = [found[bucket] for bucket in buckets]
        return counts

    def _read_from_cache(self, buckets: Sequence[Bucket], members: Sequence[str] | None) -> list[Counts] | None:
        """Return the result of a read, or None if one of the buckets is not cached."""
        results: list[Counts] = []
        for bucket in buckets:
            is_empty = bucket.dimension == CORRECTION and bucket.start not in self._writer.members.generations
            counts = {} if is_empty else self._writer.events.cached.get(bucket)
            if counts is None:
                return None
            results.append(select(counts, members))
        return results

    def _read_part(
        self, scans: list[tuple[Bucket, Any]], found: dict[Bucket, Counts], members: Sequence[str] | None
    ) -> None:
        """Read about PAGE_ROWS rows into `found`. `scans` are the buckets that remain, each with its last row read."""
        rows = 0
        while scans and rows < PAGE_ROWS:
            bucket, after = scans.pop()
            tables = self._writer.tables_for(bucket)
            if members is not None:
                found[bucket] = tables.get_many(bucket, members)
                rows += LOOKUP_ROWS + len(members)
                continue
            page, last = tables.scan_page(bucket, after)
            found[bucket].update(page)
            rows += len(page) + 1
            if last is not None:
                scans.append((bucket, last))

    async def read_at_once(self, buckets: Sequence[Bucket], member: str) -> list[Counts]:
        return await self._execute(lambda: [self._writer.tables_for(b).get_many(b, [member]) for b in buckets])

    async def sizes(self, buckets: Sequence[Bucket]) -> list[int]:
        # Each bucket is a task of its own on the thread, so that commits can run in between.
        return [await self._execute(lambda b=bucket: self._writer.tables_for(b).size(b)) for bucket in buckets]  # type: ignore[misc] # mypy loses the default

    async def _count_union(self, buckets: Sequence[Bucket]) -> int:
        number = 0
        after: str | None = ""
        while after is not None:
            count = partial(self._writer.members.count_union_part, buckets, after)
            found, after = await self._execute(count)
            number += found
        return number

    async def list_buckets(self, days: Sequence[int] | None = None) -> list[Bucket]:
        def list_all() -> list[Bucket]:
            writer = self._writer
            event_buckets = writer.events.list_buckets() if days is None else [Bucket("day", day) for day in days]
            return event_buckets + writer.members.list_buckets(days)

        return await self._execute(list_all)

    async def newest_days(self) -> list[int]:
        def newest() -> list[int]:
            return self._healthy_writer().events.newest_days()

        return await self._execute(newest)

    async def prune(self, cutoffs: Mapping[str, int], slot: TimeSlot) -> None:
        def prune_keys_and_events() -> None:
            self._writer.keys.expire(slot)
            self._writer.events.prune(cutoffs)

        async with self._flush_lock:
            await self._flush()
            await self._execute(prune_keys_and_events)
        for step, cutoff in visitor_cutoffs(cutoffs, slot).items():
            while await self._execute(lambda step=step, cutoff=cutoff: self._prune_members(step, cutoff)):  # type: ignore[misc] # mypy loses the defaults
                pass

    async def _write_records(self, work: Callable[[Any], T]) -> T:
        return await self._write(self._with_database(work))

    def _with_database(self, work: Callable[[Any], T]) -> Callable[[], T]:
        def run() -> T:
            self._healthy_writer()
            return work(self._db)

        return run

    def _prune_members(self, step: str, cutoff: int) -> bool:
        """Delete a few buckets that start before the cutoff. Return whether there may be more."""
        old = self._writer.members.list_older(step, cutoff, PRUNED_BUCKETS)
        with self._db:
            self._db.execute("BEGIN")
            for bucket in old:
                self._writer.members.drop(bucket)
        return len(old) == PRUNED_BUCKETS

    async def back_up(self, path: Path) -> None:
        def begin() -> FileBackup:
            if self._backup:
                raise BackupRunning("another backup is being made; retry when it has finished")
            self._healthy_writer()
            self._backup = FileBackup(self._db, path)
            return self._backup

        backup = await self._execute(begin)
        running = asyncio.create_task(asyncio.to_thread(backup.run))
        try:
            await asyncio.shield(running)
        finally:
            backup.stop()  # if this task is cancelled
            await asyncio.gather(running, return_exceptions=True)
            self._backup = None

    async def _flush_in_background(self) -> None:
        # After an error the redo log still has the counts, and the next commit replaces the connection.
        with contextlib.suppress(StoreUnavailable):
            async with self._flush_lock:
                await self._flush()

    async def _flush(self) -> None:
        """Flush the redo log in steps, with time for commits in between."""
        steps = self._writer.events.flush()
        while await self._execute(lambda: next(steps, steps) is None):  # noqa: ASYNC110 # it waits for nothing
            await asyncio.sleep(FLUSH_PAUSE_SECONDS)

    async def refresh(self) -> str:
        """Notice a file that was removed or replaced, and write again after a failed write.

        The status can then recover even if no hits arrive.
        """
        self._is_detached = await self._run_in_thread(lambda: _file_ids(self._path) != self._opened_files)
        if self._write_error:
            offset = await self.get_offset(PROBE_SOURCE)
            await self.apply(PROBE_SOURCE, offset, offset + 1, [])
        return ""

    def status(self) -> StoreStatus:
        reasons = [f"hits are rejected: {self._write_error}"] if self._write_error else []
        if self._is_detached:
            reasons.append(
                f"the database file {self._path} was removed or replaced while Tally uses it: hits are lost when Tally"
                " stops. Put the file back, or save the counts with GET /export"
            )
        return StoreStatus("memory" if self._is_detached else self.ack, not self._write_error, tuple(reasons))

    async def _write(self, work: Callable[[], T]) -> T:
        """Execute a write, and save its error for the status."""
        try:
            result = await self._execute(work)
        except (StoreUnavailable, OutcomeUnknown) as error:
            self._write_error = str(error)
            raise
        self._write_error = None
        return result

    async def _execute(self, work: Callable[[], T]) -> T:
        """Run work on the SQLite thread. Raises StoreUnavailable for an error of SQLite."""

        def run() -> T:
            try:
                return work()
            except sqlite3.Error as error:
                self._writer.healthy = False  # on the thread, so that the work that waits there reopens the connection
                raise StoreUnavailable(f"SQLite: {error}") from error

        return await self._run_in_thread(run)

    async def _run_in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _close(self) -> None:
        if self._backup:
            self._backup.stop()
        self._db.close()

    def _open(self) -> None:
        try:
            self._db = open_database(self._path, self._zone)
            self._writer = SqliteWriter(self._db, self._limits)
            self._opened_files = _file_ids(self._path)
        except (sqlite3.Error, OSError) as error:
            if "locked" in str(error):
                raise StoreInUse(
                    f"{self._path} is in use by another process: is another Tally running? Stop it. SQLite serves one"
                    " process; for several, set TALLY_STORE to Redis"
                ) from error
            problem = f"cannot be used ({error}): make it writable, or name another file in TALLY_STORE"
            raise StoreOpenError(f"{self._path} {problem}") from error

    def _healthy_writer(self) -> SqliteWriter:
        if not self._writer.healthy:
            self._reopen()
        return self._writer

    def _reopen(self) -> None:
        """Replace the connection after an error, and truncate SQLite's WAL.

        After a failed fsync the system's cache may still have the data that did not reach the disk, and the next fsync
        may succeed without writing it. Only a WAL that starts from its beginning is known to be complete on disk.
        """
        try:
            self._close()
            self._open()
            (busy, *_) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except (StoreOpenError, sqlite3.Error) as error:
            self._writer.healthy = False
            raise StoreUnavailable(f"SQLite: {error}") from error
        self._writer.healthy = not busy


def _file_ids(path: Path) -> list[tuple[int, int]]:
    """Return the device and inode of a database file and of its WAL, as far as they exist."""
    files = (path, path.with_name(f"{path.name}-wal"))
    return [(found.st_dev, found.st_ino) for file in files if file.exists() for found in [file.stat()]]
