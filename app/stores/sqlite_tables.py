"""The buckets in a SQLite file: those of events, in tables with a log in front, and those of anything else.

The buckets that hits come to now are held in memory, whole. A commit adds one line to the log, which says what their
events have come to; once a minute that is flushed into the tables. So a commit costs the same however many names
there are, and what was not flushed is in the log when the file is opened again.
"""

import json
import sqlite3
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec

from app.domain.buckets import ALL_EVENTS, GENERATION, TOTAL, Bucket
from app.domain.calendar import TimeSlot
from app.stores import rules

TABLES = ("minute", "hour", "day", "total")  # as Moment.buckets names them
PAGE_ROWS = 2000  # read at once, which takes about a millisecond; a commit may come between
FLUSH_NAMES = 250  # written into the tables at once, which takes a millisecond or two
FLUSH_LINES = 250  # of the log, dropped at once
LOG_BYTES_MAX = 32_000_000  # beyond it the log is flushed also within a minute

ADDED, LARGER, GIVEN = "count + excluded.count", "max(count, excluded.count)", "excluded.count"

# A statement has as many rows as a batch has events, but takes and gives them as one JSON text: Python would let
# another thread run after each row, and wait for its turn again.
_NAMES = "INSERT INTO event (name) SELECT value FROM json_each(?)"
_IDS = "SELECT json_group_object(name, id) FROM event WHERE name IN (SELECT value FROM json_each(?))"
_ADD = """INSERT INTO {} SELECT ?, CAST(key AS INTEGER), value FROM json_each(?) WHERE true
          ON CONFLICT DO UPDATE SET count = {}"""
# CROSS JOIN is SQLite's word for joining in this order: it would rather look through all of the bucket.
_SOME = """SELECT json_group_object(name, count) FROM json_each(?) AS wanted
           CROSS JOIN event ON name = wanted.value CROSS JOIN {0} ON {0}.event = event.id AND start = ?"""
_PAGE = """SELECT json_group_object(name, count), max(event) FROM (SELECT name, event, count
           FROM {} JOIN event ON id = event WHERE start = ? AND event > ? ORDER BY event LIMIT ?)"""
_WHOLE = "SELECT json_group_object(name, count) FROM {} JOIN event ON id = event WHERE start = ?"
# The index begins with the start, so this leaps from one to the next.
_STARTS = """WITH RECURSIVE found(start) AS (SELECT min(start) FROM {0} UNION ALL
             SELECT (SELECT min({0}.start) FROM {0} WHERE {0}.start > found.start) FROM found WHERE start IS NOT NULL)
             SELECT start FROM found WHERE start IS NOT NULL"""
_SHORTEN = "DELETE FROM log WHERE id IN (SELECT id FROM log WHERE id <= ? ORDER BY id LIMIT ?)"

_CROWD = "SELECT id FROM crowd WHERE step = ? AND start = ? AND of = ?"
_SOME_MEMBERS = f"""SELECT json_group_object(name, count) FROM json_each(?) AS wanted CROSS JOIN member
                    ON name = wanted.value AND crowd = ({_CROWD})"""  # noqa: S608 # made of constants
_MEMBER_PAGE = f"""SELECT json_group_object(name, count), max(name) FROM (SELECT name, count FROM member
                   WHERE crowd = ({_CROWD}) AND name {{}} ? ORDER BY name LIMIT ?)"""  # noqa: S608 # likewise
_OF_DAYS = "SELECT step, start, of FROM crowd WHERE step = 'day' AND start IN (SELECT value FROM json_each(?))"
_PUT = "INSERT INTO member SELECT ?, key, value FROM json_each(?) WHERE true ON CONFLICT DO UPDATE SET count = {}"

T = TypeVar("T")
Counts = dict[str, int]
_counts = msgspec.json.Decoder(Counts).decode
_line = msgspec.json.Decoder(list[tuple[str, int, Counts]]).decode


def those(counts: Mapping[str, int], members: Iterable[str] | None) -> Counts:
    """Those of these members, or all."""
    return dict(counts) if members is None else {member: counts[member] for member in members if member in counts}


class Events:
    """Buckets of events; all on the connection's thread, but for a look at what is held."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.held: dict[Bucket, Counts] = {}  # for these, the tables may be behind
        self.flush_due = False
        self._newest: tuple[Bucket, ...] = ()  # that hits come to
        self._unflushed: set[str] = set()  # events
        self._touched: set[Bucket] = set()  # since a flush was begun
        self._lines = 0  # of the log so far: no number is used again, for a flush may be about to drop it
        self._logged = 0  # bytes since a flush was begun
        self._sizes: dict[Bucket, int] = {}  # of others than are held, for counting rows takes time
        self._replay()

    def _replay(self) -> None:
        """Hold what the log speaks of. It says what counts have come to, so it does not matter what was flushed."""
        for number, text in self._db.execute("SELECT id, counts FROM log ORDER BY id"):
            self._lines = number
            for step, start, counts in _line(text):
                self._hold(Bucket(step, start)).update(counts)
                self._unflushed.update(counts)
        self.flush_due = bool(self.held)

    def _hold(self, bucket: Bucket) -> Counts:
        if bucket not in self.held:
            self._sizes.pop(bucket, None)
            (text,) = self._db.execute(_WHOLE.format(bucket.step), (bucket.start,)).fetchone()
            self.held[bucket] = _counts(text)
        return self.held[bucket]

    def come_to(self, slot: TimeSlot) -> None:
        """Hold the buckets of the newest moment so far; those before it are flushed for the last time."""
        if not self._newest or slot.minute > self._newest[0].start:
            self._newest, self.flush_due = slot.buckets, True
        for bucket in self._newest:
            self._hold(bucket)

    def count(self, sums: Mapping[TimeSlot, Mapping[str, int]]) -> dict[Bucket, Counts]:
        """Add these, and log what that makes of the buckets that are held: to be kept once it is committed."""
        counted: dict[Bucket, Counts] = {}
        for slot, added in sums.items():
            for bucket in slot.buckets:
                if bucket not in self.held:  # a late one
                    self.add(bucket, added)
                    continue
                known, held = counted.get(bucket, {}), self.held[bucket]
                so_far = ChainMap(known, held) if known else held
                counted[bucket] = known | {event: so_far.get(event, 0) + by for event, by in added.items()}
        if counted:
            line = msgspec.json.encode([(bucket.step, bucket.start, counts) for bucket, counts in counted.items()])
            self._lines += 1
            self._db.execute("INSERT INTO log VALUES (?, ?)", (self._lines, line.decode()))
            self._logged += len(line)
        return counted

    def keep(self, counted: Mapping[Bucket, Counts]) -> None:
        for bucket in reversed([*counted]):  # so that nobody sees more of a day than in total
            self.held[bucket].update(counted[bucket])
        self._unflushed.update(counted.get(TOTAL, ()))
        self._touched.update(counted)
        self.flush_due |= self._logged > LOG_BYTES_MAX

    def flush(self) -> Iterator[None]:
        """Write what only the log has into the tables, a little at a time and in the order of rows; then shorten it."""
        self._touched, self.flush_due, self._logged, end = set(), False, 0, self._lines
        ordered = [event for event in self.held.get(TOTAL, ()) if event in self._unflushed]
        for i in range(0, len(ordered), FLUSH_NAMES):
            with self._db:
                self._db.execute("BEGIN")
                ids = self._numbers(ordered[i : i + FLUSH_NAMES])
                for bucket, counts in self.held.items():
                    self._put(bucket, {ids[event]: counts[event] for event in ids if event in counts}, GIVEN)
            self._unflushed -= ids.keys()  # only now, for whoever flushes may be cancelled
            yield
        while self._db.execute(_SHORTEN, (end, FLUSH_LINES)).rowcount:
            yield
        for bucket in self.held.keys() - {*self._newest} - self._touched:
            del self.held[bucket]

    def buckets(self) -> list[Bucket]:
        starts = [Bucket(table, start) for table in TABLES for (start,) in self._db.execute(_STARTS.format(table))]
        return [*dict.fromkeys([*starts, *(bucket for bucket, counts in self.held.items() if counts)])]

    def some(self, bucket: Bucket, members: Iterable[str]) -> Counts:
        if bucket in self.held:
            return those(self.held[bucket], members)
        wanted = json.dumps(list(members))
        return _counts(self._db.execute(_SOME.format(bucket.step), (wanted, bucket.start)).fetchone()[0])

    def page(self, bucket: Bucket, after: int | None) -> tuple[Counts, int | None]:
        """Of all that the bucket has, and where the next one begins, if there is more."""
        if bucket in self.held:
            return dict(self.held[bucket]), None
        where = bucket.start, -1 if after is None else after, PAGE_ROWS
        return _page(*self._db.execute(_PAGE.format(bucket.step), where).fetchone())

    def size(self, bucket: Bucket) -> int:
        if bucket in self.held:
            return len(self.held[bucket]) - (ALL_EVENTS in self.held[bucket])
        if bucket not in self._sizes:
            sql = f"SELECT count(*) FROM {bucket.step} WHERE start = ? AND event > 0"  # noqa: S608 # a step is a table
            (self._sizes[bucket],) = self._db.execute(sql, (bucket.start,)).fetchone()
        return self._sizes[bucket]

    def add(self, bucket: Bucket, counts: Mapping[str, int], how: str = ADDED) -> None:
        ids = self._numbers(counts)
        self._put(bucket, {number: max(0, counts[event]) for event, number in ids.items()}, how)
        less = [(counts[event], bucket.start, number) for event, number in ids.items() if counts[event] < 0]
        self._db.executemany(f"UPDATE {bucket.step} SET count = count + ? WHERE start = ? AND event = ?", less)  # noqa: S608 # a step is a table

    def remove(self, bucket: Bucket, members: Iterable[str]) -> None:
        ids = self._numbers(members).values()  # which stay: nothing else may ever get them
        sql = f"DELETE FROM {bucket.step} WHERE start = ? AND event = ?"  # noqa: S608 # as above
        self._db.executemany(sql, [(bucket.start, number) for number in ids])

    def let_go(self, buckets: Iterable[Bucket]) -> None:
        """Of these, which are about to be changed, the tables alone are to know; all was flushed."""
        for bucket in buckets:
            self.held.pop(bucket, None)
            self._sizes.pop(bucket, None)

    def prune(self, before: Mapping[str, int]) -> None:
        """All was flushed."""
        self.let_go([b for b in (*self._sizes, *self.held) if b.start < before.get(b.step, 0)])
        for table, start in before.items():
            self._db.execute(f"DELETE FROM {table} WHERE start < ?", (start,))  # noqa: S608 # as above

    def _put(self, bucket: Bucket, rows: Mapping[int, int], how: str) -> None:
        self._sizes.pop(bucket, None)
        self._db.execute(_ADD.format(bucket.step, how), (bucket.start, json.dumps(rows)))

    def _numbers(self, names: Iterable[str]) -> Counts:
        """Their ids; new ones get theirs."""
        wanted = list(names)
        ids = _counts(self._db.execute(_IDS, (json.dumps(wanted),)).fetchone()[0])
        if len(ids) == len(wanted):
            return ids
        self._db.execute(_NAMES, (json.dumps([name for name in wanted if name not in ids]),))
        return self._numbers(wanted)


class Crowds:
    """Buckets of anything but events, one below the other in a table; all on the connection's thread."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._ranked: dict[Bucket, int] = {}  # ids that have a count of their own, for counting rows takes time
        sql = "SELECT start, count FROM crowd JOIN member ON crowd = id WHERE of = ?"
        self.generations: dict[int, int] = dict(db.execute(sql, (GENERATION,)))

    def buckets(self, days: Sequence[int] | None = None) -> list[Bucket]:
        """All of them, or those of these days as a whole."""
        if days is None:
            return [Bucket(*row) for row in self._db.execute("SELECT step, start, of FROM crowd")]
        return [Bucket(*row) for row in self._db.execute(_OF_DAYS, (json.dumps(list(days)),))]

    def before(self, step: str, start: int, limit: int) -> list[Bucket]:
        sql = "SELECT step, start, of FROM crowd WHERE step = ? AND start < ? LIMIT ?"
        return [Bucket(*row) for row in self._db.execute(sql, (step, start, limit))]

    def some(self, bucket: Bucket, members: Iterable[str]) -> Counts:
        return _counts(self._db.execute(_SOME_MEMBERS, (json.dumps(list(members)), *bucket)).fetchone()[0])

    def page(self, bucket: Bucket, after: str | None) -> tuple[Counts, str | None]:
        """As with events."""
        sql = _MEMBER_PAGE.format(">=" if after is None else ">")
        return _page(*self._db.execute(sql, (*bucket, after or "", PAGE_ROWS)).fetchone())

    def size(self, bucket: Bucket) -> int:
        sql = "SELECT count(*) FROM member WHERE crowd = ? AND name > ''"
        return int(self._db.execute(sql, (self._number(bucket),)).fetchone()[0])

    def add(self, bucket: Bucket, counts: Mapping[str, int], how: str = ADDED) -> None:
        crowd = self._number(bucket)
        if not crowd:
            crowd = self._db.execute("INSERT INTO crowd (step, start, of) VALUES (?, ?, ?)", bucket).lastrowid or 0
        self._db.execute(_PUT.format(how), (crowd, json.dumps(counts)))
        if bucket.dimension == GENERATION:
            self.generations[bucket.start] = self.some(bucket, [ALL_EVENTS])[ALL_EVENTS]

    def mark(self, bucket: Bucket, ids: Mapping[str, int]) -> None:
        """Count these users or sessions; who comes after the first RANKED_MAX is only known to have come."""
        if bucket not in self._ranked:
            sql = "SELECT count(*) FROM member WHERE crowd = ? AND count > 0"
            (self._ranked[bucket],) = self._db.execute(sql, (self._number(bucket),)).fetchone()
        known = self.some(bucket, ids)
        fresh = [visitor for visitor, by in ids.items() if by and not known.get(visitor)]
        late = fresh[max(0, rules.RANKED_VISITORS_MAX - self._ranked[bucket]) :]
        self._ranked[bucket] += len(fresh) - len(late)
        self.add(bucket, {**ids, **dict.fromkeys(late, 0)})

    def remove(self, bucket: Bucket, members: Iterable[str]) -> None:
        self._ranked.pop(bucket, None)
        rows = [(self._number(bucket), member) for member in members]
        self._db.executemany("DELETE FROM member WHERE crowd = ? AND name = ?", rows)

    def forget(self, bucket: Bucket) -> None:
        self._ranked.pop(bucket, None)
        crowd = self._number(bucket)
        self._db.execute("DELETE FROM member WHERE crowd = ?", (crowd,))
        self._db.execute("DELETE FROM crowd WHERE id = ?", (crowd,))

    def _number(self, bucket: Bucket) -> int:
        """0 where there is no such bucket."""
        found = self._db.execute(_CROWD, bucket).fetchone()
        return int(found[0]) if found else 0


def _page(text: str, last: T) -> tuple[Counts, T | None]:
    counts = _counts(text)
    return counts, last if len(counts) == PAGE_ROWS else None
