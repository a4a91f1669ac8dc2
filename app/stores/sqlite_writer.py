"""Writes commits and administrative changes to a SQLite file, each in one transaction."""

import collections
import math
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from app.domain.buckets import ALL_EVENTS, CORRECTION, CORRECTION_LOG, TOTAL, Bucket, is_event_bucket
from app.domain.calendar import TimeSlot
from app.domain.counting import BucketWrite, Commit, DayChange
from app.stores.base import OutcomeUnknown, StoreError, StoreLimits, StoreUnavailable, WriteConflict
from app.stores.results import Ack, ApplyResult, GroupResult, decode_result, encode_result
from app.stores.rules import (
    PERMANENT_SOURCE_PREFIX,
    SOURCE_TTL_SECONDS,
    counted_visits,
    decide,
    is_retry,
    takeable,
    with_present_values,
)
from app.stores.sqlite_keys import KeyTable
from app.stores.sqlite_tables import SQL_ADD, SQL_MAX, Counts, EventTables, MemberTables

ACK: Ack = "disk"


class SqliteWriter:
    """The tables of an open file, and the transactions that write to them. Call only on the SQLite thread.

    `healthy` becomes false when SQLite reports an error: the connection must be replaced then, because data that it
    returns may not be on disk.
    """

    def __init__(self, db: sqlite3.Connection, limits: StoreLimits) -> None:
        self.healthy = True
        self._db = db
        self._limits = limits
        self._load_counters()
        self.events = EventTables(db)

    def _load_counters(self) -> None:
        """Load the numbers that are cached in memory, on opening and after a rollback."""
        self.keys = KeyTable(self._db)
        self.members = MemberTables(self._db)

    def tables_for(self, bucket: Bucket) -> Any:
        """Return the tables that have a bucket. EventTables and MemberTables share some methods."""
        return self.members if bucket.dimension else self.events

    def offset_and_results(self, source: str) -> tuple[int, str]:
        """Return a source's offset and the saved results of its last commit, as JSON."""
        found = self._db.execute("SELECT offset, answers FROM source WHERE name = ?", (source,)).fetchone()
        return found or (0, "[]")

    def get_note(self, source: str) -> str:
        """Implement CounterStore.get_note."""
        found = self._db.execute("SELECT answers FROM source WHERE name = ?", (_note_name(source),)).fetchone()
        return found[0] if found else ""

    def apply(self, source: str, expected_offset: int, new_offset: int, commit: Commit, note: str) -> ApplyResult:
        """Implement CounterStore.apply."""
        slots = [group.slot for group in commit]
        saved = self._saved_result(source, expected_offset, new_offset, commit)
        return saved or self._commit(source, new_offset, commit, slots, lambda: self._count(commit), note)

    def apply_change(self, source: str, expected_offset: int, new_offset: int, change: DayChange) -> ApplyResult:
        """Implement CounterStore.apply_change."""
        if saved := self._saved_result(source, expected_offset, new_offset, ()):
            return saved
        corrections = self.members.size(Bucket("day", change.slot.day, CORRECTION_LOG))
        if change.expected_corrections not in {None, corrections}:
            raise WriteConflict
        collections.deque(self.events.flush(), 0)
        return self._commit(source, new_offset, (), [change.slot], lambda: self._write_all(change.writes))

    def _saved_result(self, source: str, expected_offset: int, new_offset: int, commit: Commit) -> ApplyResult | None:
        """Return the saved result of a retry, or None if the source is at the expected offset."""
        offset, results = self.offset_and_results(source)
        return decode_result(commit, results, ACK) if is_retry(offset, expected_offset, new_offset) else None

    def _commit(
        self,
        source: str,
        new_offset: int,
        commit: Commit,
        slots: Sequence[TimeSlot],
        write: Callable[[], tuple[list[GroupResult], dict[Bucket, Counts]]],
        note: str = "",
    ) -> ApplyResult:
        """Write in one transaction, with the source's new offset and results."""
        failure: type[StoreError] = StoreUnavailable
        try:
            self._db.execute("BEGIN IMMEDIATE")
            results, counted = write()
            generations = {slot.day: n for slot in slots if (n := self.members.generations.get(slot.day))}
            result = ApplyResult(results, ACK, generations)
            used = max((slot.minute for slot in slots), default=0)
            self._save_offset(source, new_offset, encode_result(commit, result), used)
            if note:  # in a row of its own, so that older versions of Tally can use the table
                self._save_offset(_note_name(source), new_offset, note, used)
            failure = OutcomeUnknown
            self._db.execute("COMMIT")
        except Exception as error:  # after any error the transaction has to be rolled back
            self.healthy = not isinstance(error, sqlite3.Error)
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._load_counters()
            if not self.healthy:
                raise failure(f"SQLite: {error}") from error
            raise
        self.events.commit_to_cache(counted)
        return result

    def _count(self, commit: Commit) -> tuple[list[GroupResult], dict[Bucket, Counts]]:
        """Decide on each group by the values after the groups before it, then write them all at once."""
        if not commit:
            return [], {}
        self.events.advance_to(max((group.slot for group in commit), key=lambda slot: slot.minute))
        names = self.events.size(TOTAL)
        events = list({event for group in commit for event in group.amounts})
        total = self.events.get_many(TOTAL, events)
        days = {day: self._day_counts(day, events) for day in {group.slot.day for group in commit}}
        amounts: dict[TimeSlot, Counts] = {group.slot: {} for group in commit}
        visits: dict[Bucket, Counts] = {}
        results: list[GroupResult] = []

        def value_of(event: str) -> tuple[int, int] | None:
            return (day.get(event, 0), total[event]) if event in total else None

        for group in commit:
            day, sums = days[group.slot.day], amounts[group.slot]
            limits = self._limits if group.limited else None
            names_left = limits.names - names if limits else math.inf
            replay = group.key and self.keys.check(group, group.key, limits)
            result = with_present_values(replay, group, value_of) if replay else decide(group, value_of, names_left)
            results.append(result)
            for event, value in result.counted.items():
                names += event not in total
                day[event], total[event] = value.count, value.total
                sums[event] = sums.get(event, 0) + group.amounts[event]
            for bucket, visitor, by in counted_visits(group, result):
                visitors = visits.setdefault(bucket, {})
                visitors[visitor] = visitors.get(visitor, 0) + by
            if group.key and result.is_counted:
                self.keys.save(group, group.key, result)
        return results, self._write_counts(amounts, visits)

    def _write_counts(self, amounts: dict[TimeSlot, Counts], visits: dict[Bucket, Counts]) -> dict[Bucket, Counts]:
        """Return the new counts of cached buckets, for `commit_to_cache`."""
        for bucket, visitors in visits.items():
            self.members.count_visitors(bucket, visitors)
        return self.events.count(
            {slot: {**sums, ALL_EVENTS: sum(sums.values())} for slot, sums in amounts.items() if sums}
        )

    def _day_counts(self, day: int, events: Sequence[str]) -> Counts:
        """Return the day's counts of these events, corrections included."""
        hits = self.events.get_many(Bucket("day", day), events)
        if day not in self.members.generations:
            return hits
        corrections = self.members.get_many(Bucket("day", day, CORRECTION), events)
        return {event: hits.get(event, 0) + corrections.get(event, 0) for event in hits | corrections}

    def _write_all(self, writes: Sequence[BucketWrite]) -> tuple[list[GroupResult], dict[Bucket, Counts]]:
        self.events.evict(write.bucket for write in writes)
        for write in writes:
            self._write(*write)
        return [], {}

    def _write(self, op: str, bucket: Bucket, counts: Mapping[str, int]) -> None:
        tables = self.tables_for(bucket)
        if op == "drop":
            self.members.drop(bucket)
        elif op == "mark":
            self.members.count_visitors(bucket, counts)
        elif op == "take":
            found = tables.get_many(bucket, counts)
            taken = {member: takeable(count, counts[member]) for member, count in found.items()}
            sums = {ALL_EVENTS: sum(taken.values())} if is_event_bucket(bucket) else {}
            if less := {member: -count for member, count in {**taken, **sums}.items() if count}:
                tables.add(bucket, less)
            tables.remove(bucket, [member for member, count in found.items() if count == taken[member]])
        else:
            sums = {ALL_EVENTS: sum(counts.values())} if is_event_bucket(bucket) and counts else {}
            tables.add(bucket, {**counts, **sums}, SQL_MAX if op == "merge" else SQL_ADD)

    def _save_offset(self, source: str, offset: int, results: str, used: int) -> None:
        """Save a source's offset and results. If the source may be new, delete the sources that have expired."""
        self._db.execute("INSERT OR REPLACE INTO source VALUES (?, ?, ?, ?)", (source, offset, results, used))
        if offset == 1:
            # Only commits without hits have been used at 0, and they are those of few sources.
            sql = "DELETE FROM source WHERE used > 0 AND used < ? AND substr(name, 1, ?) <> ?"
            arguments = used - SOURCE_TTL_SECONDS, len(PERMANENT_SOURCE_PREFIX), PERMANENT_SOURCE_PREFIX
            self._db.execute(sql, arguments)


def _note_name(source: str) -> str:
    return f"{source} note"
