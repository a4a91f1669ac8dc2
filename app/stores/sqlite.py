"""Counters in one SQLite file: a commit is on disk before it is acknowledged.

One connection, on a thread of its own, writes, reads and checkpoints; it holds the file's lock for as
long as it lives, so that a second process is refused rather than let in to count beside the first.
"""

import asyncio
import itertools
import json
import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from app.events import EVERYTHING, GENERATION, LOG, OFFSET, TOTAL, Batch, Bucket, Changes, Key, Moment, Posting, Write
from app.stores import base
from app.stores.base import Ack, Answer, Applied, Caps, CounterStore, OutcomeUnknown, StoreRefused, StoreUnavailable

SCHEMA_VERSION = 2
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
_SOME_MEMBERS = """SELECT json_group_object(name, count) FROM json_each(?) AS wanted CROSS JOIN member
                   ON name = wanted.value AND crowd = (SELECT id FROM crowd WHERE step = ? AND start = ? AND of = ?)"""
_MEMBER_PAGE = """SELECT json_group_object(name, count), max(name) FROM (SELECT name, count FROM member
                  WHERE crowd = (SELECT id FROM crowd WHERE step = ? AND start = ? AND of = ?) AND name {} ?
                  ORDER BY name LIMIT ?)"""
_OF_DAYS = "SELECT step, start, of FROM crowd WHERE step = 'day' AND start IN (SELECT value FROM json_each(?))"
_PUT = "INSERT INTO member SELECT ?, key, value FROM json_each(?) WHERE true ON CONFLICT DO UPDATE SET count = {}"
_ADDED, _LARGER = "count + excluded.count", "max(count, excluded.count)"
# The index begins with the start, so this leaps from one to the next.
_STARTS = """WITH RECURSIVE found(start) AS (SELECT min(start) FROM {0} UNION ALL
             SELECT (SELECT min({0}.start) FROM {0} WHERE {0}.start > found.start) FROM found WHERE start IS NOT NULL)
             SELECT start FROM found WHERE start IS NOT NULL"""
PAGE_ROWS = 2000  # read at once, which takes about a millisecond; a commit may come between
SOME_ROWS = 20  # that could be read while some members of a bucket are looked up
CROWDS_AT_ONCE = 20  # forgotten in one commit

T = TypeVar("T")
_counts = msgspec.json.Decoder(dict[str, int]).decode


def connect(path: Path | str) -> sqlite3.Connection:
    """A connection that nobody else can have, whose every commit is on disk; raises sqlite3.OperationalError."""
    db = sqlite3.connect(path, isolation_level=None, timeout=0, check_same_thread=False)
    try:
        # EXCLUSIVE before the first access: the log's index then lives in this process's memory. Of a new file each
        # page is small, for a commit writes a page or more for each of its events, in each table.
        for pragma in ("page_size = 1024", "locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL"):
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
        self._ranked: dict[Bucket, int] = {}  # ids that have a count of their own, for the same reason
        self._generations: dict[int, int] = {}
        self._changes = 0  # so far
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._db: sqlite3.Connection | Any = None
        self._sound = True  # whether all that was written is on disk, as far as is known

    async def open(self) -> None:
        await self._run(self._open)

    async def close(self) -> None:
        if self._db:
            await self._run(self._db.close)
        self._thread.shutdown()

    async def apply(self, source: str, at: int, next: int, work: Batch | Changes) -> Applied:
        return await self._run(lambda: self._apply(source, at, next, work))

    async def read(self, buckets: Sequence[Bucket], members: Sequence[str] | None = None) -> list[dict[str, int]]:
        while True:
            changes, found = self._changes, {bucket: dict[str, int]() for bucket in buckets}
            left: list[tuple[Bucket, Any]] = [(bucket, None) for bucket in found]  # and after which member
            while left:
                await self._or_unavailable(lambda left=left, found=found: self._read_on(left, found, members))  # type: ignore[misc] # mypy loses the defaults
            if changes == self._changes:
                return [found[bucket] for bucket in buckets]

    def _read_on(
        self, left: list[tuple[Bucket, Any]], found: dict[Bucket, dict[str, int]], members: Sequence[str] | None
    ) -> None:
        rows = 0
        while left and rows < PAGE_ROWS:
            bucket, after = left.pop()
            where: tuple[Any, ...]
            if members is not None:
                found[bucket] = self._some(bucket, members)
                rows += SOME_ROWS + len(members)
                continue
            if bucket.of:
                sql, where = _MEMBER_PAGE.format(">=" if after is None else ">"), (*bucket, after or "")
            else:
                sql, where = _PAGE.format(bucket.step), (bucket.start, -1 if after is None else after)
            text, last = self._db.execute(sql, (*where, PAGE_ROWS)).fetchone()
            page = _counts(text)
            found[bucket].update(page)
            rows += len(page) + 1
            if len(page) == PAGE_ROWS:
                left.append((bucket, last))

    async def sizes(self, buckets: Sequence[Bucket]) -> list[int]:
        # each on its own turn of the thread, so that commits come between
        return [await self._or_unavailable(lambda bucket=bucket: self._size(bucket)) for bucket in buckets]  # type: ignore[misc] # mypy loses the default

    async def buckets(self, days: Sequence[int] | None = None) -> list[Bucket]:
        def buckets() -> list[Bucket]:
            if days is not None:
                crowds = self._db.execute(_OF_DAYS, (json.dumps(list(days)),))
                return [*(Bucket("day", day) for day in days), *itertools.starmap(Bucket, crowds)]
            crowds = self._db.execute("SELECT step, start, of FROM crowd")
            starts = [Bucket(table, start) for table in TABLES for (start,) in self._db.execute(_STARTS.format(table))]
            return [*starts, *itertools.starmap(Bucket, crowds)]

        return await self._or_unavailable(buckets)

    async def prune(self, before: Mapping[str, int], moment: Moment) -> None:
        def prune() -> None:
            self._forget_keys(moment)
            self._sizes = {bucket: n for bucket, n in self._sizes.items() if bucket.start >= before.get(bucket.step, 0)}
            for table, start in before.items():
                self._db.execute(f"DELETE FROM {table} WHERE start < ?", (start,))  # noqa: S608 # a step is a table

        def forget(step: str, start: int) -> bool:
            sql = "SELECT step, start, of FROM crowd WHERE step = ? AND start < ? LIMIT ?"
            crowds = [Bucket(*row) for row in self._db.execute(sql, (step, start, CROWDS_AT_ONCE))]
            with self._db:
                self._db.execute("BEGIN")
                self._forget(crowds)
            return len(crowds) == CROWDS_AT_ONCE

        await self._or_unavailable(prune)
        for step, start in base.before_for_visits(before, moment).items():
            while await self._or_unavailable(lambda step=step, start=start: forget(step, start)):  # type: ignore[misc] # as above
                pass

    async def _or_unavailable(self, work: Callable[[], T]) -> T:
        try:
            return await self._run(work)
        except sqlite3.Error as error:
            self._sound = False
            raise StoreUnavailable(f"SQLite: {error}") from error

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _size(self, bucket: Bucket) -> int:
        if bucket not in self._sizes:
            sql, where = f"SELECT count(*) FROM {bucket.step} WHERE start = ? AND event > 0", (bucket.start,)  # noqa: S608 # a step is a table
            if bucket.of:
                sql, where = "SELECT count(*) FROM member WHERE crowd = ? AND name > ''", (self._crowd(bucket),)
            (size,) = self._db.execute(sql, where).fetchone()
            if bucket.of or bucket.start >= self._newest:
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
            for script in (_SCHEMA, _SINCE_1)[version:]:
                self._db.executescript(script)
            self._load()
        except (sqlite3.Error, OSError) as error:
            what = f"cannot be used ({error}): make it writable, or name another file in TALLY_STORE"
            if "locked" in str(error):
                what = "is in use by another process, and SQLite serves one: stop that one, or use a Redis"
            raise StoreRefused(f"{self._path} {what}") from error

    def _load(self) -> None:
        (self._names,) = self._db.execute("SELECT count(*) FROM total WHERE event > 0").fetchone()
        self._owners = Counter(dict(self._db.execute("SELECT owner, count(*) FROM key GROUP BY owner")))
        self._keys = self._owners.total()
        sql = "SELECT start, count FROM crowd JOIN member ON crowd = id WHERE of = ?"
        self._generations, self._ranked = dict(self._db.execute(sql, (GENERATION,))), {}
        (self._newest,) = self._db.execute("SELECT coalesce(max(start), 0) FROM day").fetchone()

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
        if isinstance(work, Changes) and work.after not in {None, self._size(Bucket("day", work.moment.day, LOG))}:
            raise base.Overtaken
        failure: type[base.StoreError] = StoreUnavailable
        try:
            self._db.execute("BEGIN IMMEDIATE")
            moments = [work.moment] if isinstance(work, Changes) else [posting.moment for posting in work]
            answers = self._change(work.writes) if isinstance(work, Changes) else self._count(work)
            applied = Applied(answers, self.ack, {m.day: n for m in moments if (n := self._generations.get(m.day))})
            self._stand(source, next_offset, applied, max((moment.minute for moment in moments), default=0))
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
        return applied

    def _count(self, batch: Batch) -> list[Answer]:
        """Decide on each posting by what is known when its turn comes, then write all that they add at once."""
        events = list({event for posting in batch for event in posting.counts})
        total = self._some(TOTAL, events)
        days = {day: self._known(day, events) for day in {posting.moment.day for posting in batch}}
        added: dict[Moment, dict[str, int]] = {posting.moment: {} for posting in batch}
        marked: dict[Bucket, dict[str, int]] = {}
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
            for visit in posting.visits:
                for bucket, visitor in posting.moment.marks(visit):
                    marks = marked.setdefault(bucket, {})
                    marks[visitor] = marks.get(visitor, 0) + visit.by
            if posting.key:
                self._remember(posting, posting.key, answer)
        for moment, sums in added.items():
            self._newest = max(self._newest, moment.day)
            self._add(moment.buckets, sums)
        for bucket, marks in marked.items():
            self._mark(bucket, marks)
        return answers

    def _known(self, day: int, events: Sequence[str]) -> dict[str, int]:
        """The day's counts of these events, as they were corrected."""
        found = self._some(Bucket("day", day), events)
        offset = self._some(Bucket("day", day, OFFSET), events) if day in self._generations else {}
        return {e: found.get(e, 0) + offset.get(e, 0) for e in found | offset}

    def _add(self, buckets: Iterable[Bucket], counts: Mapping[str, int]) -> None:
        ids = self._ids(counts.keys())
        if len(ids) < len(counts):
            self._db.execute(_NAMES, (json.dumps(list(counts.keys() - ids.keys())),))
            ids = self._ids(counts.keys())
        rows = json.dumps({ids[event]: by for event, by in counts.items()})
        for bucket in buckets:
            self._sizes.pop(bucket, None)
            self._db.execute(_ADD.format(bucket.step), (bucket.start, rows))

    def _ids(self, names: Iterable[str]) -> dict[str, int]:
        return _counts(self._db.execute(_IDS, (json.dumps(list(names)),)).fetchone()[0])

    def _some(self, bucket: Bucket, members: Sequence[str]) -> dict[str, int]:
        sql, where = (_SOME_MEMBERS, [*bucket]) if bucket.of else (_SOME.format(bucket.step), [bucket.start])
        return _counts(self._db.execute(sql, (json.dumps(members), *where)).fetchone()[0])

    def _crowd(self, bucket: Bucket) -> int:
        """The number of such a bucket."""
        found = self._db.execute("SELECT id FROM crowd WHERE step = ? AND start = ? AND of = ?", bucket).fetchone()
        return int(found[0]) if found else 0

    def _put(self, bucket: Bucket, counts: Mapping[str, int], how: str = _ADDED) -> None:
        crowd = self._crowd(bucket)
        if not crowd:
            crowd = self._db.execute("INSERT INTO crowd (step, start, of) VALUES (?, ?, ?)", bucket).lastrowid or 0
        self._db.execute(_PUT.format(how), (crowd, json.dumps(counts)))

    def _mark(self, bucket: Bucket, ids: Mapping[str, int]) -> None:
        """Count these users or sessions; who comes after the first RANKED_MAX is only known to have come."""
        if bucket not in self._ranked:
            sql = "SELECT count(*) FROM member WHERE crowd = ? AND count > 0"
            (self._ranked[bucket],) = self._db.execute(sql, (self._crowd(bucket),)).fetchone()
        known = self._some(bucket, list(ids))
        fresh = [visitor for visitor, by in ids.items() if by and not known.get(visitor)]
        late = fresh[max(0, base.RANKED_MAX - self._ranked[bucket]) :]
        self._ranked[bucket] += len(fresh) - len(late)
        self._put(bucket, {**ids, **dict.fromkeys(late, 0)})

    def _change(self, writes: Sequence[Write]) -> list[Answer]:
        self._changes += 1
        self._sizes.clear()
        for write in writes:
            self._write(*write)
            if write.bucket.of == GENERATION:
                (self._generations[write.bucket.start],) = self._some(write.bucket, [EVERYTHING]).values()
            elif write.bucket == TOTAL:
                self._names = self._size(TOTAL)
        return []

    def _write(self, how: str, bucket: Bucket, counts: Mapping[str, int]) -> None:
        if how == "drop":
            self._forget([bucket])
        elif how == "mark":
            self._mark(bucket, counts)
        elif how == "take":
            found = self._some(bucket, list(counts))
            if base.is_of_events(bucket):
                self._add_to(bucket, {EVERYTHING: -sum(found.values())})
            self._remove(bucket, list(found))
        else:
            everything = {EVERYTHING: sum(counts.values())} if base.is_of_events(bucket) and counts else {}
            self._add_to(bucket, {**counts, **everything}, _LARGER if how == "merge" else _ADDED)

    def _add_to(self, bucket: Bucket, counts: Mapping[str, int], how: str = _ADDED) -> None:
        """Add what may also be less than nothing, which no new row of an event could be."""
        if bucket.of:
            self._put(bucket, counts, how)
            return
        self._add([bucket], dict.fromkeys(counts, 0))
        rows = [(counts[event], bucket.start, number) for event, number in self._ids(counts).items()]
        self._db.executemany(f"UPDATE {bucket.step} SET count = count + ? WHERE start = ? AND event = ?", rows)  # noqa: S608 # a step is a table

    def _remove(self, bucket: Bucket, members: Sequence[str]) -> None:
        if bucket.of:
            self._ranked.pop(bucket, None)
            rows = [(self._crowd(bucket), member) for member in members]
            self._db.executemany("DELETE FROM member WHERE crowd = ? AND name = ?", rows)
            return
        ids = self._ids(members).values()  # which stay: nothing else may ever get them
        sql = f"DELETE FROM {bucket.step} WHERE start = ? AND event = ?"  # noqa: S608 # as above
        self._db.executemany(sql, [(bucket.start, number) for number in ids])

    def _forget(self, buckets: Sequence[Bucket]) -> None:
        for bucket in buckets:
            self._ranked.pop(bucket, None)
            crowd = self._crowd(bucket)
            self._db.execute("DELETE FROM member WHERE crowd = ?", (crowd,))
            self._db.execute("DELETE FROM crowd WHERE id = ?", (crowd,))

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

    def _stand(self, source: str, offset: int, applied: Applied, used: int) -> None:
        """Keep the offset and its answers; where the source is new, forget those that nobody will ask for."""
        text = base.to_text(applied.answers, applied.generations)
        self._db.execute("INSERT OR REPLACE INTO source VALUES (?, ?, ?, ?)", (source, offset, text, used))
        if offset == 1:
            forget = "DELETE FROM source WHERE used < ? AND substr(name, 1, ?) <> ?"
            limits = used - base.SOURCE_KEPT_SECONDS, len(base.FOR_GOOD), base.FOR_GOOD
            self._db.execute(forget, limits)
