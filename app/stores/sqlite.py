"""Counters in one SQLite file: a commit is on disk before it is acknowledged.

One connection, on a thread of its own, writes, reads and checkpoints; it holds the file's lock for as
long as it lives, so that a second process is refused rather than let in to count beside the first.
"""

import asyncio
import json
import math
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from app.events import Batch, Bucket, Posting
from app.stores import base
from app.stores.base import Ack, Answer, Applied, CounterStore, OutcomeUnknown, Refused, StoreRefused, StoreUnavailable

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
    # EXCLUSIVE before the first access: the log's index then lives in this process's memory.
    for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL"):
        db.execute(f"PRAGMA {pragma}")
    db.execute("BEGIN IMMEDIATE")
    db.execute("COMMIT")
    return db


class SqliteStore(CounterStore):
    kind = "sqlite"
    ack: Ack = "disk"

    def __init__(self, path: Path, names_max: int) -> None:
        self._path = path
        self._names_left = names_max
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

        try:
            return await self._run(fetch)
        except sqlite3.Error as error:
            raise StoreUnavailable(f"SQLite: {error}") from error

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._db = connect(self._path)
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise StoreRefused(f"{self._path} was written by a newer Tally: run that one, or name another file")
            if version == 0:
                self._db.executescript(_SCHEMA)
            self._names_left -= self._db.execute("SELECT count(*) FROM event WHERE id > 0").fetchone()[0]
        except (sqlite3.Error, OSError) as error:
            what = f"cannot be used ({error}): make it writable, or name another file in TALLY_STORE"
            if "locked" in str(error):
                what = "is in use by another process, and SQLite serves one: stop that one, or use a Redis"
            raise StoreRefused(f"{self._path} {what}") from error

    def _apply(self, source: str, at: int, next_offset: int, batch: Batch) -> Applied:
        found = self._db.execute("SELECT offset, answers FROM source WHERE name = ?", (source,)).fetchone()
        offset, answers = found or (0, "[]")
        if offset == next_offset:
            return Applied(base.read_answers(batch, json.loads(answers)), self.ack)
        if offset != at:
            raise base.Moved(offset)
        names_left = self._names_left
        failure: type[base.StoreError] = StoreUnavailable
        try:
            self._db.execute("BEGIN IMMEDIATE")
            applied = Applied([self._count(p, capped=batch.capped) for p in batch.postings], self.ack)
            self._stand(source, next_offset, applied, batch)
            failure = OutcomeUnknown
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._names_left = names_left
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise failure(f"SQLite: {error}") from error
        return applied

    def _count(self, posting: Posting, *, capped: bool) -> Answer:
        ids: dict[str, int] = {}

        def value_of(event: str) -> base.Value | None:
            row = self._db.execute(_FIND, (posting.moment.day, event)).fetchone()
            if row is None:
                return None
            ids[event] = row[0]
            return base.Value(row[1] or 0, row[2])

        answer = base.settle(posting, value_of, self._names_left if capped else math.inf)
        if isinstance(answer, Refused):
            return answer
        amounts = [(ids.get(event) or self._name(event), by) for event, by in posting.counts.items()]
        amounts.append((0, sum(posting.counts.values())))
        for table, start in posting.moment.buckets:
            self._db.executemany(_ADD.format(table), [(start, event, by) for event, by in amounts])
        return answer

    def _name(self, event: str) -> int:
        self._names_left -= 1
        return int(self._db.execute("INSERT INTO event (name) VALUES (?)", (event,)).lastrowid or 0)

    def _stand(self, source: str, offset: int, applied: Applied, batch: Batch) -> None:
        """Keep the offset and its answers; where the source is new, forget those that nobody will ask for."""
        rows = [a if isinstance(a, Refused) else [n for value in a.values() for n in value] for a in applied.answers]
        used = max((posting.moment.minute for posting in batch.postings), default=0)
        self._db.execute("INSERT OR REPLACE INTO source VALUES (?, ?, ?, ?)", (source, offset, json.dumps(rows), used))
        if offset == 1:
            self._db.execute("DELETE FROM source WHERE used < ?", (used - base.SOURCE_KEPT_SECONDS,))
