"""Counters in one SQLite file: a commit is on disk before it is acknowledged.

One connection, on a thread of its own, writes, reads and checkpoints; it holds the file's lock for as
long as it lives, so that a second process is refused rather than let in to count beside the first.
"""

import asyncio
import json
import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from app.events import EVERYTHING, TOTAL, Batch, Bucket, Key, Moment, Posting
from app.stores import base
from app.stores.base import Ack, Answer, Applied, Caps, CounterStore, OutcomeUnknown, StoreRefused, StoreUnavailable

SCHEMA_VERSION = 1
TABLES = ("minute", "hour", "day", "total")  # as Moment.buckets names them

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
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""  # noqa: S608 # made of the constants above
# A statement has as many rows as a batch has events, but takes and gives them as one JSON text: Python would let
# another thread run after each row, and wait for its turn again.
_NAMES = "INSERT INTO event (name) SELECT value FROM json_each(?)"
_IDS = "SELECT json_group_object(name, id) FROM event WHERE name IN (SELECT value FROM json_each(?))"
_ADD = """INSERT INTO {} SELECT ?, CAST(key AS INTEGER), value FROM json_each(?) WHERE true
          ON CONFLICT DO UPDATE SET count = count + excluded.count"""
# CROSS JOIN is SQLite's word for joining in this order: it would rather look through all of the bucket.
_SOME = """SELECT json_group_object(name, count) FROM json_each(?) AS wanted
           CROSS JOIN event ON name = wanted.value CROSS JOIN {0} ON {0}.event = event.id AND start = ?"""
_PAGE = """SELECT json_group_object(name, count), max(event) FROM (SELECT name, event, count
           FROM {} JOIN event ON id = event WHERE start = ? AND event > ? ORDER BY event LIMIT ?)"""
PAGE_ROWS = 2000  # read at once, which takes about a millisecond; a commit may come between

T = TypeVar("T")
_counts = msgspec.json.Decoder(dict[str, int]).decode


def connect(path: Path | str) -> sqlite3.Connection:
    """A connection that nobody else can have, whose every commit is on disk; raises sqlite3.OperationalError."""
    db = sqlite3.connect(path, isolation_level=None, timeout=0, check_same_thread=False)
    try:
        # EXCLUSIVE before the first access: the log's index then lives in this process's memory.
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
        self._names = 0
        self._keys = 0
        self._owners: Counter[str] = Counter()  # of keys
        self._sizes: dict[Bucket, int] = {}  # of buckets before the newest, for counting rows takes time
        self._newest = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._db: sqlite3.Connection | Any = None

    async def open(self) -> None:
        await self._run(self._open)

    async def close(self) -> None:
        if self._db:
            await self._run(self._db.close)
        self._thread.shutdown()

    async def apply(self, source: str, at: int, next: int, batch: Batch) -> Applied:
        return await self._run(lambda: self._apply(source, at, next, batch))

    async def read(self, buckets: Sequence[Bucket], events: Sequence[str] | None = None) -> list[dict[str, int]]:
        if events is not None:
            return await self._or_unavailable(lambda: [self._some(bucket, events) for bucket in buckets])
        found: dict[Bucket, dict[str, int]] = {bucket: {} for bucket in buckets}
        left = [(bucket, -1) for bucket in found]  # and after which event

        def read_on() -> None:
            rows = 0
            while left and rows < PAGE_ROWS:
                (table, start), after = left.pop()
                text, last = self._db.execute(_PAGE.format(table), (start, after, PAGE_ROWS)).fetchone()
                page = _counts(text)
                found[table, start].update(page)
                rows += len(page) + 1
                if len(page) == PAGE_ROWS:
                    left.append(((table, start), last))

        while left:
            await self._or_unavailable(read_on)
        return [found[bucket] for bucket in buckets]

    async def sizes(self, buckets: Sequence[Bucket]) -> list[int]:
        # each on its own turn of the thread, so that commits come between
        return [await self._or_unavailable(lambda bucket=bucket: self._size(bucket)) for bucket in buckets]  # type: ignore[misc] # mypy loses the default

    async def prune(self, before: Mapping[str, int], moment: Moment) -> None:
        def prune() -> None:
            self._forget_keys(moment)
            self._sizes = {bucket: n for bucket, n in self._sizes.items() if bucket[1] >= before.get(bucket[0], 0)}
            for table, start in before.items():
                self._db.execute(f"DELETE FROM {table} WHERE start < ?", (start,))  # noqa: S608 # a step is a table

        await self._or_unavailable(prune)

    async def _or_unavailable(self, work: Callable[[], T]) -> T:
        try:
            return await self._run(work)
        except sqlite3.Error as error:
            raise StoreUnavailable(f"SQLite: {error}") from error

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _size(self, bucket: Bucket) -> int:
        if bucket not in self._sizes:
            sql = f"SELECT count(*) FROM {bucket[0]} WHERE start = ? AND event > 0"  # noqa: S608 # a step is a table
            (size,) = self._db.execute(sql, (bucket[1],)).fetchone()
            if bucket[1] >= self._newest:
                return int(size)
            self._sizes[bucket] = size
        return self._sizes[bucket]

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._db = connect(self._path)
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise StoreRefused(f"{self._path} was written by a newer Tally: run that one, or name another file")
            if version == 0:
                self._db.executescript(_SCHEMA)
            self._load()
        except (sqlite3.Error, OSError) as error:
            what = f"cannot be used ({error}): make it writable, or name another file in TALLY_STORE"
            if "locked" in str(error):
                what = "is in use by another process, and SQLite serves one: stop that one, or use a Redis"
            raise StoreRefused(f"{self._path} {what}") from error

    def _load(self) -> None:
        (self._names,) = self._db.execute("SELECT count(*) FROM event WHERE id > 0").fetchone()
        self._owners = Counter(dict(self._db.execute("SELECT owner, count(*) FROM key GROUP BY owner")))
        self._keys = self._owners.total()
        (self._newest,) = self._db.execute("SELECT coalesce(max(start), 0) FROM day").fetchone()

    def _apply(self, source: str, at: int, next_offset: int, batch: Batch) -> Applied:
        found = self._db.execute("SELECT offset, answers FROM source WHERE name = ?", (source,)).fetchone()
        offset, answers = found or (0, "[]")
        if offset == next_offset:
            return Applied(list(map(base.from_row, batch, json.loads(answers))), self.ack)
        if offset != at:
            raise base.Moved(offset)
        failure: type[base.StoreError] = StoreUnavailable
        try:
            self._db.execute("BEGIN IMMEDIATE")
            applied = Applied(self._count(batch), self.ack)
            self._stand(source, next_offset, applied, batch)
            failure = OutcomeUnknown
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._load()
            raise failure(f"SQLite: {error}") from error
        return applied

    def _count(self, batch: Batch) -> list[Answer]:
        """Decide on each posting by what is known when its turn comes, then write all that they add at once."""
        events = list({event for posting in batch for event in posting.counts})
        total = self._some(TOTAL, events)
        days = {day: self._some(("day", day), events) for day in {posting.moment.day for posting in batch}}
        added: dict[Moment, dict[str, int]] = {posting.moment: {} for posting in batch}
        answers: list[Answer] = []

        def value_of(event: str) -> tuple[int, int] | None:
            return (day.get(event, 0), total[event]) if event in total else None

        for posting in batch:
            day = days[posting.moment.day]
            caps = self._caps if posting.capped else None
            names_left = caps.names - self._names if caps else math.inf
            answer = self._recall(posting, caps) or base.settle(posting, value_of, names_left)
            answers.append(answer)
            if not isinstance(answer, dict):
                continue
            for event, value in answer.items():
                self._names += event not in total
                day[event], total[event] = value
            sums = added[posting.moment]
            for event, by in [*posting.counts.items(), (EVERYTHING, sum(posting.counts.values()))]:
                sums[event] = sums.get(event, 0) + by
            if posting.key:
                self._remember(posting, posting.key, answer)
        self._add(added)
        return answers

    def _add(self, added: dict[Moment, dict[str, int]]) -> None:
        names = {event for sums in added.values() for event in sums}
        ids = self._ids(names)
        if len(ids) < len(names):
            self._db.execute(_NAMES, (json.dumps(list(names - ids.keys())),))
            ids = self._ids(names)
        for moment, sums in added.items():
            self._newest = max(self._newest, moment.day)
            rows = json.dumps({ids[event]: by for event, by in sums.items()})
            for table, start in moment.buckets:
                self._sizes.pop((table, start), None)
                self._db.execute(_ADD.format(table), (start, rows))

    def _ids(self, names: set[str]) -> dict[str, int]:
        return _counts(self._db.execute(_IDS, (json.dumps(list(names)),)).fetchone()[0])

    def _some(self, bucket: Bucket, events: Sequence[str]) -> dict[str, int]:
        table, start = bucket
        return _counts(self._db.execute(_SOME.format(table), (json.dumps(events), start)).fetchone()[0])

    def _remember(self, posting: Posting, key: Key, answer: dict[str, base.Value]) -> None:
        self._keys += 1
        self._owners[key.owner] += 1
        row = (*key, posting.moment.minute, posting.moment.date, json.dumps(base.to_row(answer)))
        self._db.execute("INSERT INTO key VALUES (?, ?, ?, ?, ?, ?)", row)

    def _recall(self, posting: Posting, caps: Caps | None) -> Answer | None:
        if posting.key is None:
            return None
        self._forget_keys(posting.moment)
        sql = "SELECT request, minute, date, answer, owner FROM key WHERE id = ?"
        found = self._db.execute(sql, (posting.key.id,)).fetchone()
        if found:
            request, minute, date, answer, owner = found
            # another request's answer has other events, and is not read
            values: Any = base.from_row(posting, json.loads(answer)) if request == posting.key.request else {}
            found = base.Remembered(request, minute, base.Replayed(date, values), owner)
        return base.recall(posting, found, self._keys, self._owners[posting.key.owner], caps)

    def _forget_keys(self, moment: Moment) -> None:
        expired = (moment.minute - base.KEY_KEPT_SECONDS,)
        for (owner,) in self._db.execute("DELETE FROM key WHERE minute <= ? RETURNING owner", expired).fetchall():
            self._keys -= 1
            self._owners[owner] -= 1
            if not self._owners[owner]:
                del self._owners[owner]

    def _stand(self, source: str, offset: int, applied: Applied, batch: Batch) -> None:
        """Keep the offset and its answers; where the source is new, forget those that nobody will ask for."""
        rows = [base.to_row(answer) for answer in applied.answers]
        used = max((posting.moment.minute for posting in batch), default=0)
        self._db.execute("INSERT OR REPLACE INTO source VALUES (?, ?, ?, ?)", (source, offset, json.dumps(rows), used))
        if offset == 1:
            self._db.execute("DELETE FROM source WHERE used < ?", (used - base.SOURCE_KEPT_SECONDS,))
