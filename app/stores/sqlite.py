"""Counters in one SQLite file: a commit is on disk before it is acknowledged.

One connection, on a thread of its own, writes, reads and checkpoints; it holds the file's lock for as
long as it lives, so that a second process is refused rather than let in to count beside the first.
"""

import asyncio
import collections
import contextlib
import json
import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from app.domain.buckets import ALL_EVENTS, CORRECTION, CORRECTION_LOG, TOTAL, Bucket, is_event_bucket
from app.domain.calendar import TimeSlot
from app.domain.counting import BucketWrite, Commit, DayChange, HitGroup, IdempotencyKey, visitor_buckets
from app.stores.base import (
    CounterStore,
    OffsetMismatch,
    OutcomeUnknown,
    StoreError,
    StoreLimits,
    StoreOpenError,
    StoreUnavailable,
    WriteConflict,
)
from app.stores.results import Ack, ApplyResult, GroupResult, decode_result, encode_result, from_row, to_row
from app.stores.rules import (
    IDEMPOTENCY_TTL_SECONDS,
    PERMANENT_SOURCE_PREFIX,
    SOURCE_TTL_SECONDS,
    IdempotencyRecord,
    check_idempotency,
    decide,
    visitor_cutoffs,
)
from app.stores.sqlite_tables import ADDED, LARGER, PAGE_ROWS, TABLES, Counts, Crowds, Events, those

SCHEMA_VERSION = 3

_BUCKETS = "".join(
    f"CREATE TABLE {table} (start INTEGER NOT NULL, event INTEGER NOT NULL,"
    " count INTEGER NOT NULL CHECK (count >= 0), PRIMARY KEY (start, event)) STRICT, WITHOUT ROWID;"
    for table in TABLES
)
_SCHEMA = f"""
BEGIN;
CREATE TABLE event (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
INSERT INTO event VALUES (0, '');
{_BUCKETS}
CREATE TABLE source (name TEXT PRIMARY KEY, offset INTEGER NOT NULL, answers TEXT NOT NULL,
                     used INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE key (id TEXT PRIMARY KEY, request TEXT NOT NULL, owner TEXT NOT NULL, minute INTEGER NOT NULL,
                  date TEXT NOT NULL, answer TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX key_minute ON key (minute);
PRAGMA user_version = 1;
COMMIT;
"""  # noqa: S608 # made of the constants above
# Since version 2: buckets of anything but events.
_SINCE_1 = """
BEGIN;
CREATE TABLE crowd (id INTEGER PRIMARY KEY, step TEXT NOT NULL, start INTEGER NOT NULL, of TEXT NOT NULL,
                    UNIQUE (step, start, of)) STRICT;
CREATE TABLE member (crowd INTEGER NOT NULL, name TEXT NOT NULL, count INTEGER NOT NULL,
                     PRIMARY KEY (crowd, name)) STRICT, WITHOUT ROWID;
PRAGMA user_version = 2;
COMMIT;
"""
_SINCE_2 = """
BEGIN;
CREATE TABLE log (id INTEGER PRIMARY KEY, counts TEXT NOT NULL) STRICT;
PRAGMA user_version = 3;
COMMIT;
"""
SOME_ROWS = 20  # that could be read while some members of a bucket are looked up
CROWDS_AT_ONCE = 20  # forgotten in one commit
FLUSH_REST_SECONDS = 0.002  # after each part

T = TypeVar("T")


def connect(path: Path | str) -> sqlite3.Connection:
    """A connection that nobody else can have, whose every commit is on disk; raises sqlite3.OperationalError."""
    db = sqlite3.connect(path, isolation_level=None, timeout=0, check_same_thread=False)
    try:
        # EXCLUSIVE before the first access: the index of SQLite's log then lives in this process's memory.
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL"):
            db.execute(f"PRAGMA {pragma}")
        db.execute("BEGIN IMMEDIATE")
        db.execute("COMMIT")
    except sqlite3.Error:
        db.close()
        raise
    return db


class SqliteStore(CounterStore):
    kind = "sqlite"
    ack: Ack = "disk"
    durability = "kill -9 and power loss: it is on disk"

    def __init__(self, path: Path, limits: StoreLimits) -> None:
        self._path = path.absolute()  # so that no name is special to SQLite
        self._limits = limits
        self._flushing: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()  # to flush, or to change what must be flushed before
        self._keys = 0
        self._client_keys: Counter[str] = Counter()  # of keys
        self._changes = 0  # so far
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._db: sqlite3.Connection | Any = None
        self._events: Events
        self._crowds: Crowds
        self._sound = True  # whether all that was written is on disk, as far as is known

    async def open(self) -> None:
        await self._run(self._open)

    async def close(self) -> None:
        if self._flushing:
            self._flushing.cancel()
            await asyncio.gather(self._flushing, return_exceptions=True)
        if self._db:
            await self._run(self._db.close)
        self._thread.shutdown()

    async def apply(self, source: str, expected_offset: int, new_offset: int, commit: Commit) -> ApplyResult:
        result = await self._run(lambda: self._apply(source, expected_offset, new_offset, commit))
        if self._events.flush_due and (self._flushing is None or self._flushing.done()):
            self._flushing = asyncio.create_task(self._flush_in_turn())
        return result

    async def apply_change(self, source: str, expected_offset: int, new_offset: int, change: DayChange) -> ApplyResult:
        async with self._turn:
            if self._sound:
                await self._flush()  # what arrives from here on is flushed in the change's own turn of the thread
            return await self._or_unavailable(lambda: self._apply_change(source, expected_offset, new_offset, change))

    async def get_offset(self, source: str) -> int:
        return await self._or_unavailable(lambda: self._offset_and_results(source)[0])

    async def read(self, buckets: Sequence[Bucket], members: Sequence[str] | None = None) -> list[Counts]:
        at_hand = self._at_hand(buckets, members)
        while at_hand is None:
            changes, found = self._changes, {bucket: Counts() for bucket in buckets}
            left: list[tuple[Bucket, Any]] = [(bucket, None) for bucket in found]  # and after which member
            while left:
                await self._or_unavailable(lambda left=left, found=found: self._read_on(left, found, members))  # type: ignore[misc] # mypy loses the defaults
            if changes == self._changes:
                at_hand = [found[bucket] for bucket in buckets]
        return at_hand

    def _at_hand(self, buckets: Sequence[Bucket], members: Sequence[str] | None) -> list[Counts] | None:
        """What a read is to give, where all of that is in memory."""
        found: list[Counts] = []
        for bucket in buckets:
            nothing = bucket.dimension == CORRECTION and bucket.start not in self._crowds.generations
            counts = {} if nothing else self._events.held.get(bucket)
            if counts is None:
                return None
            found.append(those(counts, members))
        return found

    def _read_on(
        self, left: list[tuple[Bucket, Any]], found: dict[Bucket, Counts], members: Sequence[str] | None
    ) -> None:
        rows = 0
        while left and rows < PAGE_ROWS:
            bucket, after = left.pop()
            if members is not None:
                found[bucket] = self._of(bucket).some(bucket, members)
                rows += SOME_ROWS + len(members)
                continue
            page, last = self._of(bucket).page(bucket, after)
            found[bucket].update(page)
            rows += len(page) + 1
            if last is not None:
                left.append((bucket, last))

    async def sizes(self, buckets: Sequence[Bucket]) -> list[int]:
        # each on its own turn of the thread, so that commits come between
        return [await self._or_unavailable(lambda b=bucket: self._of(b).size(b)) for bucket in buckets]  # type: ignore[misc] # mypy loses the default

    async def list_buckets(self, days: Sequence[int] | None = None) -> list[Bucket]:
        def buckets() -> list[Bucket]:
            plain = self._events.buckets() if days is None else [Bucket("day", day) for day in days]
            return plain + self._crowds.buckets(days)

        return await self._or_unavailable(buckets)

    async def prune(self, cutoffs: Mapping[str, int], slot: TimeSlot) -> None:
        def prune() -> None:
            self._expire_keys(slot)
            self._events.prune(cutoffs)

        def forget(step: str, start: int) -> bool:
            old = self._crowds.before(step, start, CROWDS_AT_ONCE)
            with self._db:
                self._db.execute("BEGIN")
                for bucket in old:
                    self._crowds.forget(bucket)
            return len(old) == CROWDS_AT_ONCE

        async with self._turn:
            await self._flush()
            await self._or_unavailable(prune)
        for step, start in visitor_cutoffs(cutoffs, slot).items():
            while await self._or_unavailable(lambda step=step, start=start: forget(step, start)):  # type: ignore[misc] # as above
                pass

    async def _flush_in_turn(self) -> None:
        # what fails is still in the log, and the next commit takes a new connection
        with contextlib.suppress(StoreUnavailable):
            async with self._turn:
                await self._flush()

    async def _flush(self) -> None:
        """With time for commits in between."""
        steps = self._events.flush()
        while await self._or_unavailable(lambda: next(steps, steps) is None):  # noqa: ASYNC110 # it waits for nothing
            await asyncio.sleep(FLUSH_REST_SECONDS)

    async def _or_unavailable(self, work: Callable[[], T]) -> T:
        try:
            return await self._run(work)
        except sqlite3.Error as error:
            self._sound = False
            raise StoreUnavailable(f"SQLite: {error}") from error

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _of(self, bucket: Bucket) -> Any:
        """Where this bucket is: Events and Crowds have some of their verbs in common."""
        return self._crowds if bucket.dimension else self._events

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._db = connect(self._path)
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise StoreOpenError(f"{self._path} was written by a newer Tally: run that one, or name another file")
            for script in (_SCHEMA, _SINCE_1, _SINCE_2)[version:]:
                self._db.executescript(script)
            self._load()
            self._events = Events(self._db)
        except (sqlite3.Error, OSError) as error:
            what = f"cannot be used ({error}): make it writable, or name another file in TALLY_STORE"
            if "locked" in str(error):
                what = "is in use by another process, and SQLite serves one: stop that one, or use a Redis"
            raise StoreOpenError(f"{self._path} {what}") from error

    def _load(self) -> None:
        self._client_keys = Counter(dict(self._db.execute("SELECT owner, count(*) FROM key GROUP BY owner")))
        self._keys = self._client_keys.total()
        self._crowds = Crowds(self._db)

    def _renew(self) -> None:
        """After an error: take a new connection, which reads what there is, and begin the log anew.

        What could not be synced is lost to the disk and yet in the system's memory: the next sync says nothing of it.
        """
        try:
            self._db.close()
            self._open()
            (busy, *_) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except (StoreOpenError, sqlite3.Error) as error:
            raise StoreUnavailable(f"SQLite: {error}") from error
        self._sound = not busy

    def _offset_and_results(self, source: str) -> tuple[int, str]:
        if not self._sound:
            self._renew()
        found = self._db.execute("SELECT offset, answers FROM source WHERE name = ?", (source,)).fetchone()
        return found or (0, "[]")

    def _saved_result(self, source: str, expected_offset: int, new_offset: int, commit: Commit) -> ApplyResult | None:
        """Return the saved result of a retry, or None if the source is at the expected offset."""
        offset, results = self._offset_and_results(source)
        if offset == new_offset:
            return decode_result(commit, results, self.ack)
        if offset != expected_offset:
            raise OffsetMismatch(offset)
        return None

    def _apply(self, source: str, expected_offset: int, new_offset: int, commit: Commit) -> ApplyResult:
        slots = [group.slot for group in commit]
        saved = self._saved_result(source, expected_offset, new_offset, commit)
        return saved or self._commit(source, new_offset, commit, slots, lambda: self._count(commit))

    def _apply_change(self, source: str, expected_offset: int, new_offset: int, change: DayChange) -> ApplyResult:
        if saved := self._saved_result(source, expected_offset, new_offset, ()):
            return saved
        corrections = self._crowds.size(Bucket("day", change.slot.day, CORRECTION_LOG))
        if change.expected_corrections not in {None, corrections}:
            raise WriteConflict
        collections.deque(self._events.flush(), 0)
        return self._commit(source, new_offset, (), [change.slot], lambda: self._change(change.writes))

    def _commit(
        self,
        source: str,
        new_offset: int,
        commit: Commit,
        slots: Sequence[TimeSlot],
        write: Callable[[], tuple[list[GroupResult], dict[Bucket, Counts]]],
    ) -> ApplyResult:
        """Write in one transaction, with the source's new offset and results."""
        failure: type[StoreError] = StoreUnavailable
        try:
            self._db.execute("BEGIN IMMEDIATE")
            results, counted = write()
            generations = {slot.day: n for slot in slots if (n := self._crowds.generations.get(slot.day))}
            result = ApplyResult(results, self.ack, generations)
            self._save_offset(
                source, new_offset, encode_result(commit, result), max((slot.minute for slot in slots), default=0)
            )
            failure = OutcomeUnknown
            self._db.execute("COMMIT")
        except Exception as error:
            self._sound = not isinstance(error, sqlite3.Error)
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._load()
            if not self._sound:
                raise failure(f"SQLite: {error}") from error
            raise
        self._events.keep(counted)
        return result

    def _count(self, commit: Commit) -> tuple[list[GroupResult], dict[Bucket, Counts]]:
        """Decide on each group by the values at its turn, then write everything at once."""
        if not commit:
            return [], {}
        self._events.come_to(max((group.slot for group in commit), key=lambda slot: slot.minute))
        names = self._events.size(TOTAL)
        events = list({event for group in commit for event in group.amounts})
        total = self._events.some(TOTAL, events)
        days = {day: self._known(day, events) for day in {group.slot.day for group in commit}}
        added: dict[TimeSlot, Counts] = {group.slot: {} for group in commit}
        marked: dict[Bucket, Counts] = {}
        results: list[GroupResult] = []

        def value_of(event: str) -> tuple[int, int] | None:
            return (day.get(event, 0), total[event]) if event in total else None

        for group in commit:
            day, sums = days[group.slot.day], added[group.slot]
            limits = self._limits if group.limited else None
            names_left = limits.names - names if limits else math.inf
            result = (group.key and self._check_key(group, group.key, limits)) or decide(group, value_of, names_left)
            results.append(result)
            for event, value in result.counted.items():
                names += event not in total
                day[event], total[event] = value.count, value.total
                sums[event] = sums.get(event, 0) + group.amounts[event]
            for visit in group.visits:
                for bucket, visitor in visitor_buckets(group.slot, visit) if visit.event in result.counted else ():
                    marks = marked.setdefault(bucket, {})
                    marks[visitor] = marks.get(visitor, 0) + visit.by
            if group.key and not (result.rejected or result.replayed_on):
                self._save_key(group, group.key, result)
        for bucket, marks in marked.items():
            self._crowds.mark(bucket, marks)
        sums_by_slot = {slot: {**sums, ALL_EVENTS: sum(sums.values())} for slot, sums in added.items() if sums}
        return results, self._events.count(sums_by_slot)

    def _known(self, day: int, events: Sequence[str]) -> Counts:
        """The day's counts of these events, as they were corrected."""
        found = self._events.some(Bucket("day", day), events)
        if day not in self._crowds.generations:
            return found
        offset = self._crowds.some(Bucket("day", day, CORRECTION), events)
        return {e: found.get(e, 0) + offset.get(e, 0) for e in found | offset}

    def _change(self, writes: Sequence[BucketWrite]) -> tuple[list[GroupResult], dict[Bucket, Counts]]:
        self._changes += 1
        self._events.let_go(write.bucket for write in writes)
        for write in writes:
            self._write(*write)
        return [], {}

    def _write(self, how: str, bucket: Bucket, counts: Mapping[str, int]) -> None:
        of_events = is_event_bucket(bucket)
        if how == "drop":
            self._crowds.forget(bucket)
        elif how == "mark":
            self._crowds.mark(bucket, counts)
        elif how == "take":
            found = self._of(bucket).some(bucket, counts)
            if of_events:
                self._of(bucket).add(bucket, {ALL_EVENTS: -sum(found.values())})
            self._of(bucket).remove(bucket, found)
        else:
            everything = {ALL_EVENTS: sum(counts.values())} if of_events and counts else {}
            self._of(bucket).add(bucket, {**counts, **everything}, LARGER if how == "merge" else ADDED)

    def _save_key(self, group: HitGroup, key: IdempotencyKey, result: GroupResult) -> None:
        self._keys += 1
        self._client_keys[key.client] += 1
        row = (*key, group.slot.minute, group.slot.date, json.dumps(to_row(group, result)))
        self._db.execute("INSERT INTO key VALUES (?, ?, ?, ?, ?, ?)", row)

    def _check_key(self, group: HitGroup, key: IdempotencyKey, limits: StoreLimits | None) -> GroupResult | None:
        self._expire_keys(group.slot)
        sql = "SELECT request, minute, date, answer, owner FROM key WHERE id = ?"
        record = None
        if found := self._db.execute(sql, (key.id,)).fetchone():
            request, minute, date, row, client = found
            # Another request's row has other events, so only the row of the same request can be decoded.
            values = from_row(group, json.loads(row)).values if request == key.request else {}
            record = IdempotencyRecord(request, minute, GroupResult(values, {}, date), client)
        return check_idempotency(key, group.slot.minute, record, self._keys, self._client_keys[key.client], limits)

    def _expire_keys(self, slot: TimeSlot) -> None:
        expired = (slot.minute - IDEMPOTENCY_TTL_SECONDS,)
        for (owner,) in self._db.execute("DELETE FROM key WHERE minute <= ? RETURNING owner", expired).fetchall():
            self._keys -= 1
            self._client_keys[owner] -= 1
            if not self._client_keys[owner]:
                del self._client_keys[owner]

    def _save_offset(self, source: str, offset: int, answers: str, used: int) -> None:
        """Keep the offset and its answers; where the source is new, forget those that nobody will ask for."""
        self._db.execute("INSERT OR REPLACE INTO source VALUES (?, ?, ?, ?)", (source, offset, answers, used))
        if offset == 1:
            forget = "DELETE FROM source WHERE used < ? AND substr(name, 1, ?) <> ?"
            limits = used - SOURCE_TTL_SECONDS, len(PERMANENT_SOURCE_PREFIX), PERMANENT_SOURCE_PREFIX
            self._db.execute(forget, limits)
