"""The redo log in front of SQLite's event tables loses no commit, whenever the process dies."""

import contextlib
import itertools
import shutil
import sqlite3
from collections import Counter, defaultdict
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from app.domain.buckets import TOTAL, Bucket
from app.domain.calendar import Calendar
from app.domain.counting import HitGroup
from app.stores import sqlite_tables
from app.stores.base import StoreLimits
from app.stores.sqlite import SqliteStore
from app.stores.sqlite_connection import connect, open_database
from app.stores.sqlite_tables import EventTables

TABLES = "app/stores/sqlite_tables.py"
CALENDAR = Calendar(ZoneInfo("UTC"))
START = 1_800_000_000
SLOT = CALENDAR.slot(START)
LIMITS = StoreLimits(100)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of the present version without counts."""
    file = tmp_path / "tally.db"
    open_database(file, "UTC").close()
    return file


def copy_with_wal(file: Path, copy: Path) -> None:
    """Copy what a process that dies now would leave behind."""
    shutil.copy(file, copy)
    shutil.copy(f"{file}-wal", f"{copy}-wal")


@pytest.mark.fails_on_mutant(
    "the log is shortened too early", TABLES, "event in self._unflushed]", "not self._unflushed]"
)
@pytest.mark.fails_on_mutant("a late hit is evicted", TABLES, " - self._changed", "")
@pytest.mark.fails_on_mutant("the log is never flushed", TABLES, "slot.buckets, True", "slot.buckets, False")
async def test_the_file_has_every_acknowledged_commit_at_any_time(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each new minute flushes the counts from the log into the tables while commits arrive."""
    monkeypatch.setattr(sqlite_tables, "FLUSH_NAMES", 2)
    monkeypatch.setattr(sqlite_tables, "FLUSH_LINES", 1)
    copy = tmp_path / "copy.db"
    expected: dict[Bucket, Counter[str]] = defaultdict(Counter)
    store = SqliteStore(file, LIMITS)
    await store.open()
    log_lengths = []
    for i in range(120):
        slot = CALENDAR.slot(START + i // 4 * 60 - (60 if i % 7 == 0 else 0))
        amounts = {f"event {(i + j) % 9}": j + 1 for j in range(4)}
        for bucket in slot.buckets:
            expected[bucket].update(amounts)
        await store.apply("test", i, i + 1, [HitGroup(slot, amounts)])
        copy_with_wal(file, copy)
        with contextlib.closing(sqlite3.connect(copy)) as db:
            log_lengths += db.execute("SELECT count(*) FROM log").fetchone()
        recovered = SqliteStore(copy, LIMITS)
        await recovered.open()
        for opened in (store, recovered):
            found = await opened.read([*expected])
            assert [{e: n for e, n in counts.items() if e} for counts in found] == [*expected.values()]
        await recovered.close()
    await store.close()
    assert min(log_lengths[20:]) < max(log_lengths) < 60


@pytest.mark.fails_on_mutant(
    "line numbers are used twice", TABLES, "(self._last_line, line.decode())", "(None, line.decode())"
)
def test_a_commit_between_two_steps_of_a_flush_is_not_lost(file: Path, tmp_path: Path) -> None:
    copy, total = tmp_path / "copy.db", 0
    with contextlib.closing(connect(file)) as db:
        events = EventTables(db)
        for commits_between in itertools.product([False, True], repeat=4):  # on the log that the one before has left
            steps = events.flush()
            for commits in (True, *commits_between):
                if commits:
                    events.advance_to(SLOT)
                    events.commit_to_cache(events.count({SLOT: {"a": 1}}))
                    total += 1
                next(steps, None)
                copy_with_wal(file, copy)
                with contextlib.closing(connect(copy)) as recovered:
                    assert EventTables(recovered).get_many(TOTAL, ["a"]) == {"a": total}


@pytest.mark.fails_on_mutant(
    "every event counts as flushed after one step", TABLES, "self._unflushed -= ids.keys()", "self._unflushed.clear()"
)
def test_a_cancelled_flush_is_completed_by_the_next(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_tables, "FLUSH_NAMES", 1)
    with contextlib.closing(connect(file)) as db:
        events = EventTables(db)
        events.advance_to(SLOT)
        events.commit_to_cache(events.count({SLOT: {"a": 1, "b": 2, "c": 3}}))
        next(events.flush())
        for _ in events.flush():
            pass
    with contextlib.closing(connect(file)) as db:
        assert EventTables(db).get_many(TOTAL, ["a", "b", "c"]) == {"a": 1, "b": 2, "c": 3}
