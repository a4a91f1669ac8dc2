"""A disk that fails under SQLite, a file of the previous version, and what a backup brings back."""

import contextlib
import itertools
import shutil
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import httpx
import pytest

from app.domain.buckets import TOTAL, Bucket
from app.domain.calendar import Calendar
from app.domain.counting import HitGroup
from app.stores import sqlite_tables
from app.stores.base import StoreLimits
from app.stores.sqlite import SqliteStore
from app.stores.sqlite_connection import connect
from app.stores.sqlite_tables import EventTables
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.scenarios.disks import disk_full, limit_files, sync_fails, synced_first
from tests.support.servers import Process


def log_salts(file: Path) -> bytes:
    """What SQLite's log bears in its head, new whenever the log begins anew; each page in it bears the same."""
    return Path(f"{file}-wal").read_bytes()[16:24]


@pytest.mark.catches("goes on with the same log", "app/stores/sqlite.py", "if not self._writer.healthy:", "if False:")
def test_after_a_write_that_failed_the_file_is_opened_again(tmp_path: Path, process: Callable[..., Process]) -> None:
    file = tmp_path / "tally.db"
    app = process(TALLY_STORE=f"sqlite:///{file}")
    counted = [app.post("/event/a")["count"] for _ in range(20)]
    before = log_salts(file)
    limit_files(app.pid, 1000)
    refused = [httpx.post(f"{app.url}/event/a") for _ in range(5)]
    assert {answer.status_code for answer in refused} == {503}
    assert [answer.json()["counted"] for answer in refused] == ["unknown", "no", "no", "no", "no"]
    assert app.get("/event/a")["count"] in {20, 21}
    limit_files(app.pid)
    counted += [app.post("/event/a")["count"] for _ in range(20)]
    assert counted == sorted(set(counted))
    assert log_salts(file) != before
    app.kill()
    app.start()
    assert app.get("/event/a")["count"] == counted[-1] <= 41


FAILED_COMMIT = (
    "acknowledges what was not committed",
    "app/stores/sqlite_writer.py",
    'raise failure(f"SQLite: {error}") from error',
    "return result",
)
needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")


@pytest.mark.parametrize("kind", [pytest.param("sqlite", marks=pytest.mark.catches(*FAILED_COMMIT)), "redis"])
async def test_a_disk_that_is_full_and_has_room_again_loses_nothing_acknowledged(kind: str, tmp_path: Path) -> None:
    figures = await disk_full(tmp_path, kind, times=2)
    assert figures.broken == []
    assert figures.also["503s"] + figures.also["spooled"] > 100


@needs_strace
@pytest.mark.catches(*FAILED_COMMIT)
async def test_a_sync_that_fails_is_not_acknowledged(tmp_path: Path) -> None:
    assert (await sync_fails(tmp_path, times=5)).broken == []


@needs_strace
@pytest.mark.catches(
    "answers are not synced", "app/stores/sqlite_connection.py", '"synchronous = FULL"', '"synchronous = NORMAL"'
)
async def test_no_hit_is_answered_before_it_is_synced(tmp_path: Path) -> None:
    assert (await synced_first(tmp_path, answers=100)).broken == []


VERSION_1 = """
CREATE TABLE event (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
INSERT INTO event VALUES (0, ''), (1, 'signup'), (2, 'café');
CREATE TABLE minute (start INTEGER NOT NULL, event INTEGER NOT NULL, count INTEGER NOT NULL CHECK (count >= 0),
                     PRIMARY KEY (start, event)) STRICT, WITHOUT ROWID;
CREATE TABLE hour (start INTEGER NOT NULL, event INTEGER NOT NULL, count INTEGER NOT NULL CHECK (count >= 0),
                   PRIMARY KEY (start, event)) STRICT, WITHOUT ROWID;
CREATE TABLE day (start INTEGER NOT NULL, event INTEGER NOT NULL, count INTEGER NOT NULL CHECK (count >= 0),
                  PRIMARY KEY (start, event)) STRICT, WITHOUT ROWID;
CREATE TABLE total (start INTEGER NOT NULL, event INTEGER NOT NULL, count INTEGER NOT NULL CHECK (count >= 0),
                    PRIMARY KEY (start, event)) STRICT, WITHOUT ROWID;
CREATE TABLE source (name TEXT PRIMARY KEY, offset INTEGER NOT NULL, answers TEXT NOT NULL,
                     used INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE key (id TEXT PRIMARY KEY, request TEXT NOT NULL, owner TEXT NOT NULL, minute INTEGER NOT NULL,
                  date TEXT NOT NULL, answer TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX key_minute ON key (minute);
INSERT INTO total VALUES (0, 0, 42), (0, 1, 40), (0, 2, 2);
INSERT INTO day VALUES (:yesterday, 0, 42), (:yesterday, 1, 40), (:yesterday, 2, 2);
INSERT INTO hour VALUES (:yesterday, 0, 42), (:yesterday, 1, 40), (:yesterday, 2, 2);
PRAGMA user_version = 1;
"""  # as the first version that had a file made it, with what it had counted on one day


@pytest.mark.catches("no way from there", "app/stores/sqlite_connection.py", "_MIGRATIONS[version:]", "_MIGRATIONS[3:]")
def test_a_file_of_the_previous_version_is_upgraded_with_its_counts(
    tmp_path: Path, process: Callable[..., Process]
) -> None:
    file = tmp_path / "tally.db"
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    yesterday = midnight - timedelta(days=1)
    with contextlib.closing(sqlite3.connect(file)) as db:
        db.executescript(VERSION_1.replace(":yesterday", str(int(yesterday.timestamp()))))
    app = process(TALLY_STORE=f"sqlite:///{file}")
    for total in (41, 42):
        httpx.post(f"{app.url}/event/signup", json={"user": f"u{total}"})
        assert app.get("/event/signup")["total"] == total
        app.kill()
        app.start()  # now it is of this version
    assert app.get("/audience")["users"] == 2
    assert app.get(f"/history/{yesterday.date()}")["parts"][0]["counts"] == {"café": 2, "signup": 40}
    assert app.terminate() == 0
    with contextlib.closing(sqlite3.connect(file)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (3,)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


LOG = "app/stores/sqlite_tables.py"


@pytest.mark.catches("drops the log too early", LOG, "event in self._unflushed]", "not self._unflushed]")
@pytest.mark.catches("forgets a late hit", LOG, " - self._changed", "")
@pytest.mark.catches("the log is never flushed", LOG, "slot.buckets, True", "slot.buckets, False")
async def test_whenever_it_dies_the_file_has_what_was_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts are flushed from the log into the tables while others arrive, each minute anew."""
    monkeypatch.setattr(sqlite_tables, "FLUSH_NAMES", 2)
    monkeypatch.setattr(sqlite_tables, "FLUSH_LINES", 1)
    file, copy, calendar = tmp_path / "tally.db", tmp_path / "copy.db", Calendar(ZoneInfo("UTC"))
    wanted: dict[Bucket, Counter[str]] = defaultdict(Counter)
    store, caps = SqliteStore(file, StoreLimits(100)), StoreLimits(100)
    await store.open()
    lengths = []
    for i in range(120):
        slot = calendar.slot(1_800_000_000 + i // 4 * 60 - (60 if i % 7 == 0 else 0))
        counts = {f"event {(i + j) % 9}": j + 1 for j in range(4)}
        for bucket in slot.buckets:
            wanted[bucket].update(counts)
        await store.apply("test", i, i + 1, [HitGroup(slot, counts)])
        shutil.copy(file, copy)
        shutil.copy(f"{file}-wal", f"{copy}-wal")
        with contextlib.closing(sqlite3.connect(copy)) as db:
            lengths += db.execute("SELECT count(*) FROM log").fetchone()
        for one in (store, revived := SqliteStore(copy, caps)):
            if one is revived:
                await one.open()
            found = await one.read([*wanted])
            assert [{e: n for e, n in b.items() if e} for b in found] == [*wanted.values()]
        await revived.close()
    await store.close()
    assert min(lengths[20:]) < max(lengths) < 60


@pytest.mark.catches("numbers of the log come again", LOG, "(self._last_line, line.decode())", "(None, line.decode())")
async def test_no_commit_between_two_parts_of_a_flush_is_lost(tmp_path: Path) -> None:
    file, copy, now = tmp_path / "tally.db", tmp_path / "copy.db", Calendar(ZoneInfo("UTC")).slot(1_800_000_000)
    store, total = SqliteStore(file, StoreLimits(100)), 0
    await store.open()
    await store.close()
    with contextlib.closing(connect(file)) as db:
        events = EventTables(db)
        for between in itertools.product([False, True], repeat=4):  # each finds what the one before has left
            steps = events.flush()
            for committed in (True, *between):
                if committed:
                    events.advance_to(now)
                    events.commit_to_cache(events.count({now: {"a": 1}}))
                    total += 1
                next(steps, None)
                shutil.copy(file, copy)
                shutil.copy(f"{file}-wal", f"{copy}-wal")
                with contextlib.closing(connect(copy)) as revived:
                    assert EventTables(revived).get_many(TOTAL, ["a"]) == {"a": total}


@pytest.mark.catches("takes all for flushed at once", LOG, "self._unflushed -= ids.keys()", "self._unflushed.clear()")
async def test_a_flush_that_was_given_up_is_made_good_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_tables, "FLUSH_NAMES", 1)
    file, now = tmp_path / "tally.db", Calendar(ZoneInfo("UTC")).slot(1_800_000_000)
    store = SqliteStore(file, StoreLimits(100))
    await store.open()
    await store.close()
    with contextlib.closing(connect(file)) as db:
        events = EventTables(db)
        events.advance_to(now)
        events.commit_to_cache(events.count({now: {"a": 1, "b": 2, "c": 3}}))
        next(events.flush())
        for _ in events.flush():
            pass
    with contextlib.closing(connect(file)) as db:
        assert EventTables(db).get_many(TOTAL, ["a", "b", "c"]) == {"a": 1, "b": 2, "c": 3}


def test_a_backup_of_sqlite_brings_back_what_it_had(tmp_path: Path, process: Callable[..., Process]) -> None:
    """As docs/operating.md says: stopped, there is one file; after a crash, its log belongs to it."""
    file, log, kept = tmp_path / "tally.db", tmp_path / "tally.db-wal", tmp_path / "kept"
    kept.mkdir()
    app = process(TALLY_STORE=f"sqlite:///{file}")
    app.post("/events", b'{"a": 3}')
    other, refused = sqlite3.connect(file, timeout=0), pytest.raises(sqlite3.OperationalError, match="locked")
    with contextlib.closing(other), refused:
        other.execute("SELECT * FROM event")
    assert app.terminate() == 0
    assert not log.exists()
    shutil.copy(file, kept)
    app.start()
    app.post("/events", b'{"a": 4}')
    app.kill()
    shutil.copy(file, kept / "crashed.db")
    shutil.copy(log, kept / "crashed.db-wal")
    app.start()
    app.post("/events", b'{"a": 5}')
    for copied, count in (("tally.db", 3), ("crashed.db", 7)):
        app.terminate()
        shutil.copy(kept / copied, file)
        if (kept / f"{copied}-wal").exists():
            shutil.copy(kept / f"{copied}-wal", log)
        app.start()
        assert app.get("/events") == {"a": count}
        assert app.post("/event/a")["total"] == count + 1


def test_a_backup_of_redis_brings_back_what_it_had(
    tmp_path: Path, own_redis: RedisServer, process: Callable[..., Process]
) -> None:
    """As docs/operating.md says: the nodes go on meanwhile, and say what a restored Redis has not."""
    aof, kept = tmp_path / "appendonlydir", tmp_path / "kept"
    always = ("--appendonly", "yes", "--appendfsync", "always")
    own_redis.start(*always)
    app = process(TALLY_STORE=own_redis.url)

    def back() -> bool:
        own = app.get("/health")
        return own["staleSeconds"] is None and own["spoolBytes"] == 0

    def stopped(copy: Callable[[], object]) -> None:
        own_redis.stop()
        assert app.post("/event/a")["ack"] == "spooled"
        copy()
        own_redis.start(*always)
        wait_until(back)

    app.post("/events", b'{"a": 3}')
    stopped(lambda: shutil.copytree(aof, kept))
    assert app.get("/events") == {"a": 4}
    assert app.post("/event/a")["count"] == 5

    def restore() -> None:
        shutil.rmtree(aof)
        shutil.copytree(kept, aof)

    stopped(restore)
    assert app.get("/health")["lostBatches"] > 0
    wait_until(lambda: app.get("/events") == {"a": 4})  # the three of the copy, and what was spooled
    assert app.post("/event/a")["count"] == 5
