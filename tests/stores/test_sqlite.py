"""SQLite on a disk that fails, and a file of an earlier schema."""

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from app.domain.buckets import Bucket
from app.domain.counting import BucketWrite, DayChange
from app.stores import sqlite_tables
from app.stores.base import Cardinality, StoreLimits, StoreUnavailable
from app.stores.sqlite import SqliteStore
from tests.stores.contract.support import commit_of
from tests.stores.offline_stores import NOON
from tests.support.redis_servers import wait_until
from tests.support.scenarios.disks import disk_full, limit_files, sync_before_response, sync_errors
from tests.support.servers import Process


def wal_salts(file: Path) -> bytes:
    """Return the salts in the header of SQLite's WAL, which change when the WAL starts from its beginning."""
    return Path(f"{file}-wal").read_bytes()[16:24]


@pytest.mark.fails_on_mutant(
    "the connection and its WAL are used after an error",
    "app/stores/sqlite.py",
    "if not self._writer.healthy:",
    "if False:",
)
def test_sqlite_reopens_the_file_after_a_failed_write(tmp_path: Path, process: Callable[..., Process]) -> None:
    file = tmp_path / "tally.db"
    app = process(TALLY_STORE=f"sqlite:///{file}")
    counted = [app.post("/event/a")["count"] for _ in range(20)]
    salts = wal_salts(file)
    limit_files(app.pid, 1000)
    rejected = [httpx.post(f"{app.url}/event/a") for _ in range(5)]
    assert {response.status_code for response in rejected} == {503}
    assert [response.json()["counted"] for response in rejected] == ["unknown", "no", "no", "no", "no"]
    assert app.get("/event/a")["count"] in {20, 21}
    limit_files(app.pid)
    counted += [app.post("/event/a")["count"] for _ in range(20)]
    assert counted == sorted(set(counted))
    assert wal_salts(file) != salts
    app.kill()
    app.start()
    assert app.get("/event/a")["count"] == counted[-1] <= 41


def remove(file: Path) -> None:
    file.rename(file.with_name("removed"))


def remove_the_log(file: Path) -> None:
    Path(f"{file}-wal").rename(file.with_name("removed"))


def replace(file: Path) -> None:
    """Do what a restored backup or a synchronizing tool does."""
    copy = shutil.copy(file, file.with_name("copy"))
    remove(file)
    Path(copy).rename(file)


@pytest.mark.fails_on_mutant(
    "a removed file is not noticed", "app/stores/sqlite.py", "_file_ids(self._path) != self._opened_files", "False"
)
@pytest.mark.fails_on_mutant(
    "hits in a removed file are acknowledged as on disk",
    "app/stores/sqlite.py",
    'result._replace(ack="memory") if self._is_detached else result',
    "result",
)
@pytest.mark.parametrize("damage", [remove, remove_the_log, replace])
def test_a_file_that_was_removed_or_replaced_is_noticed(
    tmp_path: Path, process: Callable[..., Process], damage: Callable[[Path], None]
) -> None:
    file = tmp_path / "tally.db"
    app = process(TALLY_STORE=f"sqlite:///{file}")
    assert app.post("/event/a")["ack"] == "disk"
    damage(file)
    wait_until(lambda: app.get("/health")["status"] == "degraded")
    health = app.get("/health")
    assert f"{file} was removed or replaced" in health["reasons"][0]
    assert health["durability"].startswith("nothing")
    # Hits are still counted, and an export has them.
    assert app.post("/event/a") | {"day": ""} == {"eventName": "a", "count": 2, "total": 2, "day": "", "ack": "memory"}
    (file.with_name("removed")).rename(f"{file}-wal" if damage is remove_the_log else file)
    wait_until(lambda: app.get("/health")["status"] == "ok")
    assert app.post("/event/a")["ack"] == "disk"


FAILED_COMMIT = (
    "a failed commit is acknowledged",
    "app/stores/sqlite_writer.py",
    'raise failure(f"SQLite: {error}") from error',
    "return result",
)
needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")


@pytest.mark.parametrize("kind", [pytest.param("sqlite", marks=pytest.mark.fails_on_mutant(*FAILED_COMMIT)), "redis"])
async def test_a_disk_that_was_full_has_every_acknowledged_hit(kind: str, tmp_path: Path) -> None:
    figures = await disk_full(tmp_path, kind, times=2)
    assert figures.violations == []
    assert figures.details["503s"] + figures.details["spooled"] > 100


@pytest.mark.fails_on_mutant(
    "a read of alerts ends the failure",
    "app/stores/sqlite.py",
    "SqliteRecords(lambda work: self._execute(self._with_database(work)), self._write_records)",
    "SqliteRecords(self._write_records, self._write_records)",
)
async def test_only_a_write_ends_a_failure_to_write(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "tally.db", StoreLimits(10))
    await store.open()
    await store._run_in_thread(lambda: store._db.execute("PRAGMA query_only = ON"))
    with pytest.raises(StoreUnavailable):
        await store.apply("s", 0, 1, commit_of({"a": 1}))
    assert (await store.records.read("alerts"), await store.records.size("alerts")) == ({}, 0)
    assert not store.status().accepting
    await store.refresh()
    assert store.status().accepting
    await store.close()


@needs_strace
@pytest.mark.fails_on_mutant(*FAILED_COMMIT)
async def test_a_hit_is_not_acknowledged_if_fsync_fails(tmp_path: Path) -> None:
    assert (await sync_errors(tmp_path, times=5)).violations == []


@needs_strace
@pytest.mark.fails_on_mutant(
    "commits are not synced", "app/stores/sqlite_connection.py", '"synchronous = FULL"', '"synchronous = NORMAL"'
)
async def test_a_hit_is_synced_before_its_response_is_sent(tmp_path: Path) -> None:
    assert (await sync_before_response(tmp_path, responses=100)).violations == []


# The first schema, with the counts of one day.
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
"""


@pytest.mark.fails_on_mutant(
    "no migration", "app/stores/sqlite_connection.py", "_MIGRATIONS[version:]", "_MIGRATIONS[3:]"
)
def test_a_file_of_the_first_schema_is_upgraded_with_its_counts(
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
        app.start()
    assert app.get("/audience")["users"] == 2
    assert app.get(f"/history/{yesterday.date()}")["parts"][0]["counts"] == {"café": 2, "signup": 40}
    assert app.terminate() == 0
    with contextlib.closing(sqlite3.connect(file)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (5,)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.fails_on_mutant(
    "all ids at once",
    "app/stores/sqlite_tables.py",
    "(after, max(20, PAGE_ROWS // len(buckets)), numbers)",
    "(after, 10**6, numbers)",
)
async def test_visitors_of_many_days_are_counted_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_tables, "PAGE_ROWS", 60)
    store, parts = SqliteStore(tmp_path / "tally.db", StoreLimits(10)), list[int]()
    await store.open()
    # Days with the same ids, with overlapping ids, with ids that come later, and with none.
    days = [range(500), range(0, 500, 2), range(450, 700), range(9000, 9100), range(0)]
    buckets = [Bucket("day", NOON.day - 86_400 * day, "user:a") for day in range(len(days))]
    for offset, (bucket, ids) in enumerate(zip(buckets, days, strict=True)):
        write = BucketWrite("mark", bucket, {f"user {i:05}": 1 for i in ids})
        await store.apply_change("s", offset, offset + 1, DayChange(NOON, [write]))
    count = store._writer.members.count_union_part

    def record(*arguments: object) -> tuple[int, str | None]:
        found, end = count(*arguments)
        parts.append(found)
        return found, end

    store._writer.members.count_union_part = record
    assert await store.count_distinct(buckets) == Cardinality(800, 0.0)
    assert max(parts) <= 20 * len(buckets)
    assert len(parts) > 10
    await store.close()
