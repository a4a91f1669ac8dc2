"""Copies an open SQLite file, in small steps between the commits of its connection, and checks a copy."""

import contextlib
import os
import shutil
import sqlite3
import threading
import time
from pathlib import Path

from app.stores.base import BackupFailed

PAGE_BYTES = 4096  # of every file that Tally creates
STEP_PAGES = 64  # 256 KB, which takes less than a millisecond; commits may run between two steps
PAUSE_FACTOR = 4  # a pause is this many times as long as the step before it, so that hits are hardly delayed
PAUSE_SECONDS_MIN = 0.002
SYNC_BYTES = 8_000_000  # a longer sync would delay those of the commits
FREE_BYTES_MIN = 100_000_000  # what a backup leaves free on the disk, because hits are rejected when it is full


class FileBackup:
    """One copy of the database of a connection, which goes on writing on another thread.

    SQLite adds to the copy what this connection commits meanwhile, so the copy has the state of its last step. The
    connection must not be closed before `stop` has returned.
    """

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db, self._path = db, path
        self._stop_requested, self._released = threading.Event(), threading.Event()
        self._step_began = 0.0
        self._unsynced_steps = 0

    def run(self) -> None:
        """Write the copy, which gets its name when it is complete and on disk. Raises BackupFailed."""
        part = self._path.with_name(f"{self._path.name}.part")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            part.unlink(missing_ok=True)
            self._copy(part)
            _sync(part)
            part.replace(self._path)
            _sync(self._path.parent)
        except (sqlite3.Error, OSError) as error:
            raise BackupFailed(f"the backup could not be written: {error}") from error
        finally:
            self._released.set()
            part.unlink(missing_ok=True)

    def stop(self) -> None:
        """Make `run` raise BackupFailed if it is copying, and wait until it no longer uses the connection."""
        self._stop_requested.set()
        self._released.wait()

    def _copy(self, part: Path) -> None:
        with contextlib.closing(sqlite3.connect(part, isolation_level=None)) as copy, part.open("rb") as file:
            for pragma in ("journal_mode = OFF", "synchronous = OFF"):  # an incomplete copy is deleted
                copy.execute(f"PRAGMA {pragma}")

            def pause(_status: int, pages_left: int, pages: int) -> None:
                self._pause(file.fileno(), pages_left, pages)

            self._step_began = time.monotonic()
            # SQLite reports SQLITE_BUSY during a commit, and the step is repeated after the pause.
            self._db.backup(copy, pages=STEP_PAGES, progress=pause, sleep=0)
        self._released.set()

    def _pause(self, file: int, pages_left: int, pages: int) -> None:
        """Wait between two steps."""
        took = time.monotonic() - self._step_began
        if shutil.disk_usage(self._path.parent).free < pages_left * PAGE_BYTES + FREE_BYTES_MIN:
            raise BackupFailed(
                f"a backup needs {pages * PAGE_BYTES // 1_000_000} MB, and {FREE_BYTES_MIN // 1_000_000} MB must stay"
                f" free: make room on the disk of {self._path.parent}"
            )
        self._unsynced_steps += 1
        if self._unsynced_steps * STEP_PAGES * PAGE_BYTES >= SYNC_BYTES:
            self._unsynced_steps = 0
            os.fsync(file)
        if self._stop_requested.wait(max(PAUSE_SECONDS_MIN, took * PAUSE_FACTOR)):
            raise BackupFailed("the backup was stopped, because Tally stops or has reopened its file; try again")
        self._step_began = time.monotonic()


def find_damage(path: Path) -> list[str]:
    """Return what SQLite's integrity check finds in a file that no connection has open. It takes seconds per GB."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        try:
            found = [str(problem) for (problem,) in db.execute("PRAGMA integrity_check")]
        except sqlite3.DatabaseError as error:
            return [str(error)]
    return [] if found == ["ok"] else found


def _sync(path: Path) -> None:
    """Write a file, or the names in a directory, to the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
