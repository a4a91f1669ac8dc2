"""The buckets in a SQLite file: event buckets, as tables with a cache and a redo log, and member buckets.

The event buckets that hits are added to now are cached as a whole. A commit adds one line to the redo log, with the new
counts of its events. Once a minute these counts are flushed into the tables. So the cost of a commit does not depend on
the number of event names, and counts that were not flushed are read from the log when the file is opened again.
"""

import json
import sqlite3
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec

from app.domain.buckets import ALL_EVENTS, GENERATION, SKETCH, TOTAL, Bucket
from app.domain.calendar import TimeSlot
from app.stores import hyperloglog, rules
from app.stores.sqlite_connection import EVENT_TABLES

PAGE_ROWS = 2000  # rows per read, which takes about a millisecond; commits may run between two reads
FLUSH_NAMES = 250  # events per step of a flush, which takes a millisecond or two
FLUSH_LINES = 250  # log lines that one step of a flush deletes
CACHED_SIZES_MAX = 50_000  # buckets of visitors whose sizes are cached, about 20 MB
LOG_BYTES_MAX = 32_000_000  # a longer log is flushed before the minute is over

# How a row that exists is updated.
SQL_ADD, SQL_MAX, SQL_REPLACE = "count + excluded.count", "max(count, excluded.count)", "excluded.count"

# Statements take and return many rows as one JSON text. If Python fetched them one by one, it would release the GIL
# after each row and wait for it again.
_ADD_NAMES = "INSERT INTO event (name) SELECT value FROM json_each(?)"
_GET_IDS = "SELECT json_group_object(name, id) FROM event WHERE name IN (SELECT value FROM json_each(?))"
_UPSERT = """INSERT INTO {} SELECT ?, CAST(key AS INTEGER), value FROM json_each(?) WHERE true
             ON CONFLICT DO UPDATE SET count = {}"""
# CROSS JOIN fixes the order of a join in SQLite. Otherwise SQLite scans the whole bucket.
_GET_MANY = """SELECT json_group_object(name, count) FROM json_each(?) AS wanted
               CROSS JOIN event ON name = wanted.value CROSS JOIN {0} ON {0}.event = event.id AND start = ?"""
_SCAN_PAGE = """SELECT json_group_object(name, count), max(event) FROM (SELECT name, event, count
                FROM {} JOIN event ON id = event WHERE start = ? AND event > ? ORDER BY event LIMIT ?)"""
_SCAN_ALL = "SELECT json_group_object(name, count) FROM {} JOIN event ON id = event WHERE start = ?"
# The index begins with the start, so each step of the recursion is one look-up.
_STARTS = """WITH RECURSIVE found(start) AS (SELECT min(start) FROM {0} UNION ALL
             SELECT (SELECT min({0}.start) FROM {0} WHERE {0}.start > found.start) FROM found WHERE start IS NOT NULL)
             SELECT start FROM found WHERE start IS NOT NULL"""
_SHORTEN_LOG = "DELETE FROM log WHERE id IN (SELECT id FROM log WHERE id <= ? ORDER BY id LIMIT ?)"

_BUCKET_ID = "SELECT id FROM crowd WHERE step = ? AND start = ? AND of = ?"
_GET_MEMBERS = f"""SELECT json_group_object(name, count) FROM json_each(?) AS wanted CROSS JOIN member
                   ON name = wanted.value AND crowd = ({_BUCKET_ID})"""  # noqa: S608 # made of constants
_MEMBER_PAGE = f"""SELECT json_group_object(name, count), max(name) FROM (SELECT name, count FROM member
                   WHERE crowd = ({_BUCKET_ID}) AND name {{}} ? ORDER BY name LIMIT ?)"""  # noqa: S608 # same as above
# The first name that is the last one of the next rows of a bucket. Up to it, each bucket has no more than these rows.
_UNION_END = """SELECT min(last) FROM (SELECT (SELECT name FROM member WHERE crowd = value AND name > ? ORDER BY name
                LIMIT 1 OFFSET ?) AS last FROM json_each(?))"""
_COUNT_UNION = """SELECT count(DISTINCT name) FROM json_each(?) CROSS JOIN member
                  ON crowd = value AND name > ? AND name <= ?"""
_BUCKETS_OF_DAYS = "SELECT step, start, of FROM crowd WHERE step = 'day' AND start IN (SELECT value FROM json_each(?))"
_UPSERT_MEMBERS = """INSERT INTO member SELECT ?, key, value FROM json_each(?) WHERE true
                     ON CONFLICT DO UPDATE SET count = {}"""

T = TypeVar("T")
Counts = dict[str, int]
_decode_counts = msgspec.json.Decoder(Counts).decode
_decode_line = msgspec.json.Decoder(list[tuple[str, int, Counts]]).decode


def select(counts: Mapping[str, int], members: Iterable[str] | None) -> Counts:
    """Return the counts of these members that exist, or of all members."""
    return dict(counts) if members is None else {member: counts[member] for member in members if member in counts}


class EventTables:
    """The event buckets. Call only on the SQLite thread, except for reading `cached`, which the event loop may do too.

    `cached` maps the cached buckets to their counts; the rows of these buckets may be older. `flush_due` is true when
    the caller should run `flush`.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.cached: dict[Bucket, Counts] = {}
        self.flush_due = False
        self._current: tuple[Bucket, ...] = ()  # the buckets of the newest time slot
        self._unflushed: set[str] = set()  # names of events
        self._changed: set[Bucket] = set()  # since the last flush began
        self._last_line = 0  # of the log; no number is used twice, because a flush may be about to delete that line
        self._logged_bytes = 0  # since the last flush began
        self._sizes: dict[Bucket, int] = {}  # of buckets that are not cached, because counting rows takes time
        self._replay_log()

    def _replay_log(self) -> None:
        """Cache the buckets in the log. It has absolute counts, so a line that was flushed already does no harm."""
        for number, text in self._db.execute("SELECT id, counts FROM log ORDER BY id"):
            self._last_line = number
            for step, start, counts in _decode_line(text):
                self._load(Bucket(step, start)).update(counts)
                self._unflushed.update(counts)
        self.flush_due = bool(self.cached)

    def _load(self, bucket: Bucket) -> Counts:
        if bucket not in self.cached:
            self._sizes.pop(bucket, None)
            (text,) = self._db.execute(_SCAN_ALL.format(bucket.step), (bucket.start,)).fetchone()
            self.cached[bucket] = _decode_counts(text)
        return self.cached[bucket]

    def advance_to(self, slot: TimeSlot) -> None:
        """Cache the buckets of the newest time slot so far. The next flush evicts the buckets of older ones."""
        if not self._current or slot.minute > self._current[0].start:
            self._current, self.flush_due = slot.buckets, True
        for bucket in self._current:
            self._load(bucket)

    def count(self, amounts: Mapping[TimeSlot, Mapping[str, int]]) -> dict[Bucket, Counts]:
        """Add these amounts and log the new counts of cached buckets, which are returned.

        After the transaction the caller has to hand them to `commit_to_cache`.
        """
        counted: dict[Bucket, Counts] = {}
        for slot, added in amounts.items():
            for bucket in slot.buckets:
                if bucket not in self.cached:  # the hit is late
                    self.add(bucket, added)
                    continue
                pending, cached = counted.get(bucket, {}), self.cached[bucket]
                latest = ChainMap(pending, cached) if pending else cached
                counted[bucket] = pending | {event: latest.get(event, 0) + by for event, by in added.items()}
        if counted:
            line = msgspec.json.encode([(bucket.step, bucket.start, counts) for bucket, counts in counted.items()])
            self._last_line += 1
            self._db.execute("INSERT INTO log VALUES (?, ?)", (self._last_line, line.decode()))
            self._logged_bytes += len(line)
        return counted

    def commit_to_cache(self, counted: Mapping[Bucket, Counts]) -> None:
        """Update the cache with counts that `count` returned and that are on disk now."""
        # The total comes first, so that a reader on the event loop never gets a day's count above the total.
        for bucket in reversed([*counted]):
            self.cached[bucket].update(counted[bucket])
        self._unflushed.update(counted.get(TOTAL, ()))
        self._changed.update(counted)
        self.flush_due |= self._logged_bytes > LOG_BYTES_MAX

    def flush(self) -> Iterator[None]:
        """Write into the tables the counts that only the log has, then shorten the log; each step takes milliseconds.

        Commits may run between two steps. The events are written in the order of their rows.
        """
        self._changed, self.flush_due, self._logged_bytes, end = set(), False, 0, self._last_line
        ordered = [event for event in self.cached.get(TOTAL, ()) if event in self._unflushed]
        for i in range(0, len(ordered), FLUSH_NAMES):
            with self._db:
                self._db.execute("BEGIN")
                ids = self._event_ids(ordered[i : i + FLUSH_NAMES])
                for bucket, counts in self.cached.items():
                    self._upsert(bucket, {ids[event]: counts[event] for event in ids if event in counts}, SQL_REPLACE)
            self._unflushed -= ids.keys()  # step by step, because the caller may be cancelled between two steps
            yield
        while self._db.execute(_SHORTEN_LOG, (end, FLUSH_LINES)).rowcount:
            yield
        for bucket in self.cached.keys() - {*self._current} - self._changed:
            del self.cached[bucket]

    def list_buckets(self) -> list[Bucket]:
        """Return all event buckets."""
        rows = [(step, start) for step in EVENT_TABLES for (start,) in self._db.execute(_STARTS.format(step))]
        cached = [bucket for bucket, counts in self.cached.items() if counts]
        return [*dict.fromkeys([*(Bucket(*row) for row in rows), *cached])]

    def newest_days(self) -> list[int]:
        """Return the starts of the two newest days with hits, newest first."""
        starts = {bucket.start for bucket, counts in self.cached.items() if bucket.step == "day" and counts}
        newest, start = "SELECT max(start) FROM day WHERE start < ?", 1 << 62
        for _ in range(2):  # DISTINCT would read every row of a day
            starts.add(start := self._db.execute(newest, (start,)).fetchone()[0])
        return sorted(starts - {None}, reverse=True)[:2]

    def get_many(self, bucket: Bucket, members: Iterable[str]) -> Counts:
        """Return the counts of these events; an event that was never counted is missing."""
        if bucket in self.cached:
            return select(self.cached[bucket], members)
        wanted = json.dumps(list(members))
        return _decode_counts(self._db.execute(_GET_MANY.format(bucket.step), (wanted, bucket.start)).fetchone()[0])

    def scan_page(self, bucket: Bucket, after: int | None) -> tuple[Counts, int | None]:
        """Return at most PAGE_ROWS counts after the row `after`, and the last row, or None at the end."""
        if bucket in self.cached:
            return dict(self.cached[bucket]), None
        arguments = bucket.start, -1 if after is None else after, PAGE_ROWS
        return _page(*self._db.execute(_SCAN_PAGE.format(bucket.step), arguments).fetchone())

    def size(self, bucket: Bucket) -> int:
        """Return the number of events in a bucket."""
        if bucket in self.cached:
            return len(self.cached[bucket]) - (ALL_EVENTS in self.cached[bucket])
        if bucket not in self._sizes:
            sql = f"SELECT count(*) FROM {bucket.step} WHERE start = ? AND event > 0"  # noqa: S608 # a step is a table
            (self._sizes[bucket],) = self._db.execute(sql, (bucket.start,)).fetchone()
        return self._sizes[bucket]

    def add(self, bucket: Bucket, counts: Mapping[str, int], update: str = SQL_ADD) -> None:
        """Add to a bucket that is not cached. Amounts may be negative."""
        ids = self._event_ids(counts)
        self._upsert(bucket, {number: max(0, counts[event]) for event, number in ids.items()}, update)
        less = [(counts[event], bucket.start, number) for event, number in ids.items() if counts[event] < 0]
        self._db.executemany(f"UPDATE {bucket.step} SET count = count + ? WHERE start = ? AND event = ?", less)  # noqa: S608 # same as above

    def remove(self, bucket: Bucket, members: Iterable[str]) -> None:
        """Delete events from a bucket that is not cached. They keep their ids, which no other event may get."""
        ids = self._event_ids(members).values()
        sql = f"DELETE FROM {bucket.step} WHERE start = ? AND event = ?"  # noqa: S608 # same as above
        self._db.executemany(sql, [(bucket.start, number) for number in ids])

    def evict(self, buckets: Iterable[Bucket]) -> None:
        """Remove buckets from the cache, so that their rows can be changed. The caller has run `flush` to its end."""
        for bucket in buckets:
            self.cached.pop(bucket, None)
            self._sizes.pop(bucket, None)

    def prune(self, cutoffs: Mapping[str, int]) -> None:
        """Delete the buckets of a step that start before its cutoff. The caller has run `flush` to its end."""
        self.evict([b for b in (*self._sizes, *self.cached) if b.start < cutoffs.get(b.step, 0)])
        for table, start in cutoffs.items():
            self._db.execute(f"DELETE FROM {table} WHERE start < ?", (start,))  # noqa: S608 # same as above

    def _upsert(self, bucket: Bucket, rows: Mapping[int, int], update: str) -> None:
        self._sizes.pop(bucket, None)
        self._db.execute(_UPSERT.format(bucket.step, update), (bucket.start, json.dumps(rows)))

    def _event_ids(self, names: Iterable[str]) -> Counts:
        """Return the id of each name, after giving one to new names."""
        wanted = list(names)
        ids = _decode_counts(self._db.execute(_GET_IDS, (json.dumps(wanted),)).fetchone()[0])
        if len(ids) == len(wanted):
            return ids
        self._db.execute(_ADD_NAMES, (json.dumps([name for name in wanted if name not in ids]),))
        return self._event_ids(wanted)


class MemberTables:
    """All buckets that have a dimension, in one table. Call only on the SQLite thread.

    `generations` maps a day's start (UTC second) to its generation, if that is not 0; the event loop may read it.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        # How many visitors have a count, and how many are stored, because counting rows takes time.
        self._ranked: dict[Bucket, int] = {}
        self._stored: dict[Bucket, int] = {}
        sql = "SELECT start, count FROM crowd JOIN member ON crowd = id WHERE of = ?"
        self.generations: dict[int, int] = dict(db.execute(sql, (GENERATION,)))

    def list_buckets(self, days: Sequence[int] | None = None) -> list[Bucket]:
        """Return all member buckets, or those with the step "day" that start at these UTC seconds."""
        if days is None:
            return [Bucket(*row) for row in self._db.execute("SELECT step, start, of FROM crowd")]
        return [Bucket(*row) for row in self._db.execute(_BUCKETS_OF_DAYS, (json.dumps(list(days)),))]

    def list_older(self, step: str, cutoff: int, limit: int) -> list[Bucket]:
        """Return at most `limit` buckets of a step that start before the cutoff (UTC second)."""
        sql = "SELECT step, start, of FROM crowd WHERE step = ? AND start < ? LIMIT ?"
        return [Bucket(*row) for row in self._db.execute(sql, (step, cutoff, limit))]

    def get_many(self, bucket: Bucket, members: Iterable[str]) -> Counts:
        """Return the counts of these members; one that was never counted is missing."""
        return _decode_counts(self._db.execute(_GET_MEMBERS, (json.dumps(list(members)), *bucket)).fetchone()[0])

    def scan_page(self, bucket: Bucket, after: str | None) -> tuple[Counts, str | None]:
        """Return at most PAGE_ROWS counts after the member `after`, and the last member, or None at the end."""
        sql = _MEMBER_PAGE.format(">=" if after is None else ">")
        return _page(*self._db.execute(sql, (*bucket, after or "", PAGE_ROWS)).fetchone())

    def size(self, bucket: Bucket) -> int:
        """Return the number of members of a bucket."""
        sql = "SELECT count(*) FROM member WHERE crowd = ? AND name > ''"
        return int(self._db.execute(sql, (self._bucket_id(bucket),)).fetchone()[0])

    def count_union_part(self, buckets: Sequence[Bucket], after: str) -> tuple[int, str | None]:
        """Return how many different members these buckets have after a name, up to about PAGE_ROWS rows in all.

        Also return the last name of this part, or None at the end.
        """
        numbers = json.dumps([self._bucket_id(bucket) for bucket in buckets])
        (end,) = self._db.execute(_UNION_END, (after, max(20, PAGE_ROWS // len(buckets)), numbers)).fetchone()
        (found,) = self._db.execute(
            _COUNT_UNION, (numbers, after, end or b"")
        ).fetchone()  # a BLOB is larger than all text
        return found, end

    def add(self, bucket: Bucket, counts: Mapping[str, int], update: str = SQL_ADD) -> None:
        """Add to the counts of members, and create the bucket if it is new."""
        number = self._bucket_id(bucket)
        if not number:
            number = self._db.execute("INSERT INTO crowd (step, start, of) VALUES (?, ?, ?)", bucket).lastrowid or 0
        self._db.execute(_UPSERT_MEMBERS.format(update), (number, json.dumps(counts)))
        if bucket.dimension == GENERATION:
            self.generations[bucket.start] = self.get_many(bucket, [ALL_EVENTS])[ALL_EVENTS]

    def count_visitors(self, bucket: Bucket, amounts: Mapping[str, int]) -> None:
        """Add visits to users or sessions.

        Visitors after the first RANKED_VISITORS_MAX are stored with the count 0. Those after the first
        STORED_VISITORS_MAX only add to the bucket's HyperLogLog.
        """
        if bucket not in self._ranked:
            if len(self._ranked) >= CACHED_SIZES_MAX:
                self._ranked, self._stored = {}, {}
            sql = "SELECT count(*) FILTER (WHERE count > 0), count(*) FROM member WHERE crowd = ?"
            self._ranked[bucket], self._stored[bucket] = self._db.execute(sql, (self._bucket_id(bucket),)).fetchone()
        counts = self.get_many(bucket, amounts)
        new = [visitor for visitor in amounts if visitor not in counts]
        later = dict.fromkeys(new[max(0, rules.STORED_VISITORS_MAX - self._stored[bucket]) :])
        if later:
            sketch_bucket = bucket._replace(dimension=SKETCH + bucket.dimension)
            self.add(sketch_bucket, hyperloglog.sketch(later), SQL_MAX)
            amounts = {visitor: by for visitor, by in amounts.items() if visitor not in later}
        self._stored[bucket] += len(new) - len(later)
        uncounted = [visitor for visitor, by in amounts.items() if by and not counts.get(visitor)]
        unranked = uncounted[max(0, rules.RANKED_VISITORS_MAX - self._ranked[bucket]) :]
        self._ranked[bucket] += len(uncounted) - len(unranked)
        self.add(bucket, {**amounts, **dict.fromkeys(unranked, 0)})

    def remove(self, bucket: Bucket, members: Iterable[str]) -> None:
        """Delete members from a bucket."""
        self._forget_sizes(bucket)
        rows = [(self._bucket_id(bucket), member) for member in members]
        self._db.executemany("DELETE FROM member WHERE crowd = ? AND name = ?", rows)

    def drop(self, bucket: Bucket) -> None:
        """Delete a bucket."""
        self._forget_sizes(bucket)
        number = self._bucket_id(bucket)
        self._db.execute("DELETE FROM member WHERE crowd = ?", (number,))
        self._db.execute("DELETE FROM crowd WHERE id = ?", (number,))

    def _forget_sizes(self, bucket: Bucket) -> None:
        self._ranked.pop(bucket, None)
        self._stored.pop(bucket, None)

    def _bucket_id(self, bucket: Bucket) -> int:
        """Return the id of a bucket, or 0 if it does not exist."""
        found = self._db.execute(_BUCKET_ID, bucket).fetchone()
        return int(found[0]) if found else 0


def _page(text: str, last: T) -> tuple[Counts, T | None]:
    counts = _decode_counts(text)
    return counts, last if len(counts) == PAGE_ROWS else None
