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

from app.events import Batch, Bucket, Moment, Posting
from app.stores import base
from app.stores.base import (
    Ack,
    Answer,
    Applied,
    Caps,
    CounterStore,
    OutcomeUnknown,
    Refused,
    StoreRefused,
    StoreUnavailable,
)

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
_FIND = """SELECT id, (SELECT count FROM day WHERE start = ? AND event = id),
                  (SELECT count FROM total WHERE start = 0 AND event = id) FROM event WHERE name = ?"""
_ADD = "INSERT INTO {} VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count"
_READ = "SELECT name, count FROM {} JOIN event ON id = event WHERE start = ?"

T = TypeVar("T")


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

    async def apply(self, source: str, at: int, next: int, batch: Batch) -> Applied:  # noqa: A002 # the contract's word
        return await self._run(lambda: self._apply(source, at, next, batch))

    async def read(self, buckets: Sequence[Bucket], events: Sequence[str] | None = None) -> list[dict[str, int]]:
        among, names = ("", []) if events is None else (" AND name IN (SELECT value FROM json_each(?))", [events])
        sqls = [(_READ.format(table) + among, start) for table, start in buckets]

        def fetch() -> list[dict[str, int]]:
            return [dict(self._db.execute(sql, (start, *map(json.dumps, names))).fetchall()) for sql, start in sqls]

        return await self._or_unavailable(fetch)

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
            applied = Applied([self._count(posting) for posting in batch], self.ack)
            self._stand(source, next_offset, applied, batch)
            failure = OutcomeUnknown
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._load()
            raise failure(f"SQLite: {error}") from error
        return applied

    def _count(self, posting: Posting) -> Answer:
        known = self._recall(posting, self._caps if posting.capped else None)
        if known:
            return known
        ids: dict[str, int] = {}

        def value_of(event: str) -> base.Value | None:
            row = self._db.execute(_FIND, (posting.moment.day, event)).fetchone()
            if row is None:
                return None
            ids[event] = row[0]
            return base.Value(row[1] or 0, row[2])

        answer = base.settle(posting, value_of, self._caps.names - self._names if posting.capped else math.inf)
        if isinstance(answer, Refused):
            return answer
        amounts = [(ids.get(event) or self._name(event), by) for event, by in posting.counts.items()]
        amounts.append((0, sum(posting.counts.values())))
        self._newest = max(self._newest, posting.moment.day)
        for table, start in posting.moment.buckets:
            self._sizes.pop((table, start), None)
            self._db.executemany(_ADD.format(table), [(start, event, by) for event, by in amounts])
        if posting.key:
            self._keys += 1
            self._owners[posting.key.owner] += 1
            row = (*posting.key, posting.moment.minute, posting.moment.date, json.dumps(base.to_row(answer)))
            self._db.execute("INSERT INTO key VALUES (?, ?, ?, ?, ?, ?)", row)
        return answer

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

    def _name(self, event: str) -> int:
        self._names += 1
        return int(self._db.execute("INSERT INTO event (name) VALUES (?)", (event,)).lastrowid or 0)

    def _stand(self, source: str, offset: int, applied: Applied, batch: Batch) -> None:
        """Keep the offset and its answers; where the source is new, forget those that nobody will ask for."""
        rows = [base.to_row(answer) for answer in applied.answers]
        used = max((posting.moment.minute for posting in batch), default=0)
        self._db.execute("INSERT OR REPLACE INTO source VALUES (?, ?, ?, ?)", (source, offset, json.dumps(rows), used))
        if offset == 1:
            self._db.execute("DELETE FROM source WHERE used < ?", (used - base.SOURCE_KEPT_SECONDS,))
