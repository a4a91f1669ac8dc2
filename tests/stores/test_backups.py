"""A restored backup has the counts of the time it was made, as docs/how-to/backup.md describes."""

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from app.stores.sqlite_backup import find_damage
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.scenarios.backups import enlarge
from tests.support.servers import ADMIN_KEY, Process, run_tally


def test_a_restored_sqlite_file_has_the_counts_of_its_backup(tmp_path: Path, process: Callable[..., Process]) -> None:
    """After a clean stop there is one file; after a crash the WAL belongs to it."""
    file, wal, backups = tmp_path / "tally.db", tmp_path / "tally.db-wal", tmp_path / "backups"
    backups.mkdir()
    app = process(TALLY_STORE=f"sqlite:///{file}")
    app.post("/events", b'{"a": 3}')
    other, locked = sqlite3.connect(file, timeout=0), pytest.raises(sqlite3.OperationalError, match="locked")
    with contextlib.closing(other), locked:
        other.execute("SELECT * FROM event")
    assert app.terminate() == 0
    assert not wal.exists()
    shutil.copy(file, backups)
    app.start()
    app.post("/events", b'{"a": 4}')
    app.kill()
    shutil.copy(file, backups / "crashed.db")
    shutil.copy(wal, backups / "crashed.db-wal")
    app.start()
    app.post("/events", b'{"a": 5}')
    for backup, count in (("tally.db", 3), ("crashed.db", 7)):
        app.terminate()
        shutil.copy(backups / backup, file)
        if (backups / f"{backup}-wal").exists():
            shutil.copy(backups / f"{backup}-wal", wal)
        app.start()
        assert app.get("/events") == {"a": count}
        assert app.post("/event/a")["total"] == count + 1


@pytest.mark.fails_on_mutant(
    "a copy without a key", "app/backup_download.py", 'f"Bearer {settings', 'f"Basic {settings'
)
def test_a_backup_of_a_running_store_is_restored_by_stop_copy_and_start(
    tmp_path: Path, process: Callable[..., Process]
) -> None:
    """`tally backup` asks the process that has the file; after a crash, its WAL is deleted before the restore."""
    file, wal, copy = tmp_path / "tally.db", tmp_path / "tally.db-wal", tmp_path / "copy.db"
    environment = {"TALLY_STORE": f"sqlite:///{file}", "TALLY_ADMIN_KEYS": ADMIN_KEY}
    app = process(**environment)
    app.post("/events", b'{"a": 3}')
    done = run_tally("backup", str(copy), TALLY_PORT=str(app.port), **environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"Wrote {copy}\n", "")
    app.post("/events", b'{"a": 4}')
    app.kill()
    assert wal.exists()
    shutil.copy(copy, file)
    wal.unlink()
    app.start()
    assert app.get("/events") == {"a": 3}
    assert app.post("/event/a")["total"] == 4


@pytest.mark.fails_on_mutant(
    "what a crash left stays", "app/main.py", "            services.backups.remove_incomplete()\n", ""
)
def test_a_node_that_is_killed_during_a_backup_leaves_nothing_after_its_next_start(
    tmp_path: Path, process: Callable[..., Process]
) -> None:
    enlarge(tmp_path / "tally.db", 20)
    app = process(TALLY_STORE=f"sqlite:///{tmp_path}/tally.db", TALLY_ADMIN_KEYS=ADMIN_KEY, TALLY_BACKUP_EVERY="1")
    wait_until(lambda: list((tmp_path / "backups").glob("*.part")))
    app.kill()
    (part,) = (tmp_path / "backups").iterdir()
    assert part.name.endswith(".part")
    app.start()
    wait_until(lambda: list((tmp_path / "backups").glob("*.db")))
    (copy,) = (tmp_path / "backups").iterdir()
    assert find_damage(copy) == []


def test_a_restored_redis_has_the_counts_of_its_backup_and_the_spooled_hits(
    tmp_path: Path, own_redis: RedisServer, process: Callable[..., Process]
) -> None:
    """Nodes run on during the restore, and report the commits that the restored Redis lacks."""
    aof, backup = tmp_path / "appendonlydir", tmp_path / "backup"
    always = ("--appendonly", "yes", "--appendfsync", "always")
    own_redis.start(*always)
    app = process(TALLY_STORE=own_redis.url)

    def is_reconnected() -> bool:
        health = app.get("/health")
        return health["staleSeconds"] is None and health["spoolBytes"] == 0

    def while_stopped(copy: Callable[[], object]) -> None:
        own_redis.stop()
        assert app.post("/event/a")["ack"] == "spooled"
        copy()
        own_redis.start(*always)
        wait_until(is_reconnected)

    app.post("/events", b'{"a": 3}')
    while_stopped(lambda: shutil.copytree(aof, backup))
    assert app.get("/events") == {"a": 4}
    assert app.post("/event/a")["count"] == 5

    def restore() -> None:
        shutil.rmtree(aof)
        shutil.copytree(backup, aof)

    while_stopped(restore)
    assert app.get("/health")["lostBatches"] > 0
    wait_until(lambda: app.get("/events") == {"a": 4})  # three from the backup, one from the spool
    assert app.post("/event/a")["count"] == 5
