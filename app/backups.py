"""Backups of a SQLite store while it counts: copies for download, and local copies at intervals."""

import contextlib
import glob
import logging
import re
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from app.settings import Settings
from app.stores.base import BackupRunning, CounterStore, StoreError

_TIME = "%Y%m%dT%H%M%SZ"  # sorts by age

log = logging.getLogger("tally.backups")


class Backups:
    """The folder `backups` next to the file of the store, with the local copies, the newest of which is complete."""

    def __init__(self, store: CounterStore, now: Callable[[], float], settings: Settings) -> None:
        """`now` returns the present UTC time in seconds, also after the clock was set back."""
        self._store, self._now = store, now
        self._every_seconds, self._keep = settings.backup_every * 3600, settings.backup_keep
        file = settings.sqlite_file
        self._directory = file.parent / "backups"
        self._prefix = f"{file.stem}-"  # another store may have its file in the same directory
        self._name = re.compile(rf"{re.escape(self._prefix)}(\d{{8}}T\d{{6}}Z)\.db")
        self._downloaded = self._directory / f"{self._prefix}download"
        self._download: BinaryIO | None = None
        self._error = ""

    def remove_incomplete(self) -> None:
        """Delete what a process left behind that has crashed during a backup. The caller has opened the store."""
        for ending in ("*.part", "download", "check*"):
            for file in self._directory.glob(f"{glob.escape(self._prefix)}{ending}"):
                file.unlink(missing_ok=True)

    async def open_copy(self) -> BinaryIO:
        """Return a new copy of the store as an open file without a name, so that a crash leaves nothing behind.

        The next copy can be made when the file is closed. Raises BackupRunning and the errors of `back_up`.
        """
        if self._download and not self._download.closed:
            raise BackupRunning("another backup is being downloaded; retry when it has finished")
        await self._store.back_up(self._downloaded)
        self._download = self._downloaded.open("rb")
        self._remove(self._downloaded)
        return self._download

    @contextlib.asynccontextmanager
    async def temporary_copy(self) -> AsyncIterator[Path]:
        """Yield a new copy of the store, which is deleted afterwards. Raises the errors of `back_up`."""
        copy = self._directory / f"{self._prefix}check"
        try:
            await self._store.back_up(copy)
            yield copy
        finally:
            self._remove(*self._directory.glob(f"{glob.escape(copy.name)}*"))

    def _remove(self, *files: Path) -> None:
        """Delete files, and the folder unless it has others."""
        for file in files:
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._directory.rmdir()

    async def back_up_if_due(self) -> None:
        """Make a local copy if the newest one is too old, and delete old ones. Errors become a reason in /health."""
        now = self._now()
        copies = self._copies()
        # A copy with a time in the future was made while the clock was fast.
        if any(0 <= now - made < self._every_seconds for made in copies.values()):
            return
        new = self._directory / f"{self._prefix}{datetime.fromtimestamp(now, UTC).strftime(_TIME)}.db"
        try:
            await self._store.back_up(new)
            for old in sorted(copies, reverse=True)[self._keep - 1 :]:
                old.unlink(missing_ok=True)
        except BackupRunning:
            return  # the next call is soon
        except (StoreError, OSError) as error:
            log.warning("the local backup failed: %s", error)
            self._error = f"the last local backup failed: {error}"
        else:
            self._error = ""

    def _copies(self) -> dict[Path, float]:
        """Return the local copies, with the UTC second at which each was begun."""
        names = [(file, self._name.fullmatch(file.name)) for file in self._directory.glob("*.db")]
        return {f: datetime.strptime(m[1], _TIME).replace(tzinfo=UTC).timestamp() for f, m in names if m}

    def reasons(self) -> list[str]:
        """Return why the status is degraded."""
        return [self._error] if self._error else []
