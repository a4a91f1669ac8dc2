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

from app.events import EVERYTHING, LOG, OFFSET, TOTAL, Batch, Bucket, Changes, Key, Moment, Posting, Write
from app.stores import base
from app.stores.base import Ack, Answer, Applied, Caps, CounterStore, OutcomeUnknown, StoreRefused, StoreUnavailable
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
    survives = "kill -9 and power loss: it is on disk"

    def __init__(self, path: Path, caps: Caps) -> None:
        self._path = path.absolute()  # so that no name is special to SQLite
        self._caps = caps
        self._flushing: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()  # to flush, or to change what must be flushed before
        self._keys = 0
        self._owners: Counter[str] = Counter()  # of keys
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

    async def apply(self, source: str, at: int, next: int, work: Batch | Changes) -> Applied:
        if isinstance(work, Changes):
            async with self._turn:
                if self._sound:
                    await self._flush()  # all but what comes meanwhile
                return await self._run(lambda: self._apply(source, at, next, work))
        applied = await self._run(lambda: self._apply(source, at, next, work))
        if self._events.flush_due and (self._flushing is None or self._flushing.done()):
            self._flushing = asyncio.create_task(self._flush_in_turn())
        return applied

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
            nothing = bucket.of == OFFSET and bucket.start not in self._crowds.generations
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

    async def buckets(self, days: Sequence[int] | None = None) -> list[Bucket]:
        def buckets() -> list[Bucket]:
            plain = self._events.buckets() if days is None else [Bucket("day", day) for day in days]
            return plain + self._crowds.buckets(days)

        return await self._or_unavailable(buckets)

    async def prune(self, before: Mapping[str, int], moment: Moment) -> None:
        def prune() -> None:
            self._forget_keys(moment)
            self._events.prune(before)

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
        for step, start in base.before_for_visits(before, moment).items():
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
        return self._crowds if bucket.of else self._events

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._db = connect(self._path)
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise StoreRefused(f"{self._path} was written by a newer Tally: run that one, or name another file")
            for script in (_SCHEMA, _SINCE_1, _SINCE_2)[version:]:
                self._db.executescript(script)
            self._load()
            self._events = Events(self._db)
        except (sqlite3.Error, OSError) as error:
            what = f"cannot be used ({error}): make it writable, or name another file in TALLY_STORE"
            if "locked" in str(error):
                what = "is in use by another process, and SQLite serves one: stop that one, or use a Redis"
            raise StoreRefused(f"{self._path} {what}") from error

    def _load(self) -> None:
        self._owners = Counter(dict(self._db.execute("SELECT owner, count(*) FROM key GROUP BY owner")))
        self._keys = self._owners.total()
        self._crowds = Crowds(self._db)

    def _renew(self) -> None:
        """After an error: take a new connection, which reads what there is, and begin the log anew.

        What could not be synced is lost to the disk and yet in the system's memory: the next sync says nothing of it.
        """
        try:
            self._db.close()
            self._open()
            (busy, *_) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except (StoreRefused, sqlite3.Error) as error:
            raise StoreUnavailable(f"SQLite: {error}") from error
        self._sound = not busy

    def _apply(self, source: str, at: int, next_offset: int, work: Batch | Changes) -> Applied:
        if not self._sound:
            self._renew()
        found = self._db.execute("SELECT offset, answers FROM source WHERE name = ?", (source,)).fetchone()
        offset, answers = found or (0, "[]")
        if offset == next_offset:
            return base.from_text(work, answers, self.ack)
        if offset != at:
            raise base.Moved(offset)
        if isinstance(work, Changes) and work.after not in {
            None,
            self._crowds.size(Bucket("day", work.moment.day, LOG)),
        }:
            raise base.Overtaken
        failure: type[base.StoreError] = StoreUnavailable
        answers, counted = list[Answer](), dict[Bucket, Counts]()
        try:
            if isinstance(work, Changes):
                collections.deque(self._events.flush(), 0)
            self._db.execute("BEGIN IMMEDIATE")
            if isinstance(work, Changes):
                self._change(work.writes)
            elif work:
                answers, counted = self._count(work)
            moments = [work.moment] if isinstance(work, Changes) else [posting.moment for posting in work]
            generations = {m.day: n for m in moments if (n := self._crowds.generations.get(m.day))}
            applied = Applied(answers, self.ack, generations)
            self._stand(
                source, next_offset, base.to_text(work, applied), max((moment.minute for moment in moments), default=0)
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
        return applied

    def _count(self, batch: Batch) -> tuple[list[Answer], dict[Bucket, Counts]]:
        """Decide on each posting by what is known when its turn comes, then write all that they add at once."""
        self._events.come_to(max((posting.moment for posting in batch), key=lambda moment: moment.minute))
        names = self._events.size(TOTAL)
        events = list({event for posting in batch for event in posting.counts})
        total = self._events.some(TOTAL, events)
        days = {day: self._known(day, events) for day in {posting.moment.day for posting in batch}}
        added: dict[Moment, Counts] = {posting.moment: {} for posting in batch}
        marked: dict[Bucket, Counts] = {}
        answers: list[Answer] = []

        def value_of(event: str) -> tuple[int, int] | None:
            return (day.get(event, 0), total[event]) if event in total else None

        for posting in batch:
            day = days[posting.moment.day]
            caps = self._caps if posting.capped else None
            names_left = caps.names - names if caps else math.inf
            recalled = posting.key and self._recall(posting, posting.key, caps)
            answer = recalled or base.settle(posting, value_of, names_left)
            answers.append(answer)
            values, sums = base.counted(answer), added[posting.moment]
            for event, value in values.items():
                names += event not in total
                day[event], total[event] = value.count, value.total
                sums[event] = sums.get(event, 0) + posting.counts[event]
            for visit in posting.visits:
                for bucket, visitor in posting.moment.marks(visit) if visit.event in values else ():
                    marks = marked.setdefault(bucket, {})
                    marks[visitor] = marks.get(visitor, 0) + visit.by
            if posting.key and isinstance(answer, dict):
                self._remember(posting, posting.key, answer)
        for bucket, marks in marked.items():
            self._crowds.mark(bucket, marks)
        together = {moment: {**sums, EVERYTHING: sum(sums.values())} for moment, sums in added.items() if sums}
        return answers, self._events.count(together)

    def _known(self, day: int, events: Sequence[str]) -> Counts:
        """The day's counts of these events, as they were corrected."""
        found = self._events.some(Bucket("day", day), events)
        if day not in self._crowds.generations:
            return found
        offset = self._crowds.some(Bucket("day", day, OFFSET), events)
        return {e: found.get(e, 0) + offset.get(e, 0) for e in found | offset}

    def _change(self, writes: Sequence[Write]) -> None:
        self._changes += 1
        self._events.let_go(write.bucket for write in writes)
        for write in writes:
            self._write(*write)

    def _write(self, how: str, bucket: Bucket, counts: Mapping[str, int]) -> None:
        of_events = base.is_of_events(bucket)
        if how == "drop":
            self._crowds.forget(bucket)
        elif how == "mark":
            self._crowds.mark(bucket, counts)
        elif how == "take":
            found = self._of(bucket).some(bucket, counts)
            if of_events:
                self._of(bucket).add(bucket, {EVERYTHING: -sum(found.values())})
            self._of(bucket).remove(bucket, found)
        else:
            everything = {EVERYTHING: sum(counts.values())} if of_events and counts else {}
            self._of(bucket).add(bucket, {**counts, **everything}, LARGER if how == "merge" else ADDED)

    def _remember(self, posting: Posting, key: Key, answer: dict[str, base.Value]) -> None:
        self._keys += 1
        self._owners[key.owner] += 1
        row = (*key, posting.moment.minute, posting.moment.date, json.dumps(base.to_row(posting, answer)))
        self._db.execute("INSERT INTO key VALUES (?, ?, ?, ?, ?, ?)", row)

    def _recall(self, posting: Posting, key: Key, caps: Caps | None) -> Answer | None:
        self._forget_keys(posting.moment)
        sql = "SELECT request, minute, date, answer, owner FROM key WHERE id = ?"
        found = self._db.execute(sql, (key.id,)).fetchone()
        if found:
            request, minute, date, answer, owner = found
            # another request's answer has other events, and is not read
            values: Any = base.from_row(posting, json.loads(answer)) if request == key.request else {}
            found = base.Remembered(request, minute, base.Replayed(date, values), owner)
        return base.recall(key, posting.moment.minute, found, self._keys, self._owners[key.owner], caps)

    def _forget_keys(self, moment: Moment) -> None:
        expired = (moment.minute - base.KEY_KEPT_SECONDS,)
        for (owner,) in self._db.execute("DELETE FROM key WHERE minute <= ? RETURNING owner", expired).fetchall():
            self._keys -= 1
            self._owners[owner] -= 1
            if not self._owners[owner]:
                del self._owners[owner]

    def _stand(self, source: str, offset: int, answers: str, used: int) -> None:
        """Keep the offset and its answers; where the source is new, forget those that nobody will ask for."""
        self._db.execute("INSERT OR REPLACE INTO source VALUES (?, ?, ?, ?)", (source, offset, answers, used))
        if offset == 1:
            forget = "DELETE FROM source WHERE used < ? AND substr(name, 1, ?) <> ?"
            limits = used - base.SOURCE_KEPT_SECONDS, len(base.FOR_GOOD), base.FOR_GOOD
            self._db.execute(forget, limits)
