"""A backup of a SQLite file that is being written: consistent, bounded, and never in the way of a commit."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.domain.buckets import TOTAL
from app.stores import sqlite_backup
from app.stores.base import BackupFailed, BackupRunning, BackupUnsupported, StoreLimits
from app.stores.memory import MemoryStore
from app.stores.sqlite import SqliteStore
from app.stores.sqlite_backup import find_damage
from tests.stores.contract.support import commit_of
from tests.support.scenarios.backups import backups, enlarge, restored_totals
from tests.support.servers import eventually


@pytest.fixture
async def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SqliteStore]:
    """A store whose backup takes so long that a test can act meanwhile."""
    monkeypatch.setattr(sqlite_backup, "STEP_PAGES", 1)
    monkeypatch.setattr(sqlite_backup, "PAUSE_SECONDS_MIN", 0.1)
    enlarge(tmp_path / "tally.db", 2)
    store = SqliteStore(tmp_path / "tally.db", StoreLimits(1000))
    await store.open()
    yield store
    if not store._thread._shutdown:  # a test may have closed it
        await store.close()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return tmp_path / "backups/copy.db"


async def begin(store: SqliteStore, copy: Path) -> asyncio.Task[None]:
    """Start a backup, and wait until it has its file."""
    running = asyncio.create_task(store.back_up(copy))
    part = copy.with_name("copy.db.part")
    await eventually(lambda: running.done() or part.exists())
    assert not running.done()
    return running


def finish_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_backup, "STEP_PAGES", 1000)
    monkeypatch.setattr(sqlite_backup, "PAUSE_SECONDS_MIN", 0)


@pytest.mark.fails_on_mutant(
    "the file is copied without its WAL",
    "app/stores/sqlite_backup.py",
    "self._db.backup(copy, pages=STEP_PAGES, progress=pause, sleep=0)",
    'shutil.copy(self._path.parent.parent / "tally.db", part)',
)
async def test_every_backup_under_load_has_the_hits_before_it_and_none_after_it(tmp_path: Path) -> None:
    assert (await backups(tmp_path, number=5, megabytes=3)).violations == []


async def test_commits_during_a_backup_do_not_wait_for_it_and_are_in_it(
    store: SqliteStore, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await begin(store, copy)
    for offset in range(20):
        await store.apply("test", offset, offset + 1, commit_of({"a": 1}))
    await store.prune({"day": 86_400 * 19_999}, commit_of({"a": 1})[0].slot)  # it deletes a part that was copied
    assert not running.done()
    finish_quickly(monkeypatch)
    await running
    assert await restored_totals(copy) == ({"": 20, "a": 20}, [])
    assert not list(copy.parent.glob("*.part"))


@pytest.mark.fails_on_mutant(
    "two at once", "app/stores/sqlite.py", "if self._backup:\n                raise", "if False:\n                raise"
)
async def test_one_backup_is_made_at_a_time(store: SqliteStore, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = await begin(store, copy)
    with pytest.raises(BackupRunning):
        await store.back_up(copy)
    finish_quickly(monkeypatch)
    await running
    await store.back_up(copy)
    assert find_damage(copy) == []


@pytest.mark.fails_on_mutant(
    "a backup fills the disk", "app/stores/sqlite_backup.py", "if shutil.disk_usage(self._path.parent).free <", "if 0 >"
)
async def test_a_backup_stops_before_it_fills_the_disk(
    store: SqliteStore, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_backup, "FREE_BYTES_MIN", 10**18)
    with pytest.raises(BackupFailed, match=r"make room on the disk of .*/backups"):
        await store.back_up(copy)
    assert not list(copy.parent.iterdir())


KEPT_OPEN = pytest.mark.fails_on_mutant(
    "a backup keeps the connection open",
    "app/stores/sqlite.py",
    "        if self._backup:\n            self._backup.stop()\n",
    "",
)


@pytest.mark.parametrize("end", [pytest.param("reopen", marks=KEPT_OPEN), "close", "cancel"])
async def test_a_backup_ends_when_its_connection_does_or_nobody_waits_for_it(
    store: SqliteStore, copy: Path, end: str
) -> None:
    running = await begin(store, copy)
    if end == "reopen":
        store._writer.healthy = False  # as after an error of SQLite
        await store.apply("test", 0, 1, commit_of({"a": 1}))
    elif end == "close":
        await store.close()
    else:
        running.cancel()
    with pytest.raises(asyncio.CancelledError if end == "cancel" else BackupFailed):
        await running
    assert not list(copy.parent.iterdir())
    if end != "close":
        assert (await store.read([TOTAL]))[0].get("a", 0) == (end == "reopen")
        await store.apply("later", 0, 1, commit_of({"b": 1}))


async def test_a_store_without_a_file_says_what_to_do(copy: Path) -> None:
    with pytest.raises(BackupUnsupported, match=r"memory store has no file to copy; see docs/how-to/backup\.md"):
        await MemoryStore(StoreLimits(10)).back_up(copy)


def test_the_check_of_a_copy_finds_an_overwritten_page(tmp_path: Path) -> None:
    file = tmp_path / "tally.db"
    enlarge(file, 1)
    assert find_damage(file) == []
    with file.open("r+b") as pages:
        pages.seek(4096 * 100)
        pages.write(b"x" * 4096)
    assert find_damage(file)
