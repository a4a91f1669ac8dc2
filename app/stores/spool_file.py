"""The spool: the on-disk queue of commits that wait to be replayed, and the format of its lines."""

import asyncio
import hashlib
import json
import logging
import math
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from app.domain.calendar import TimeSlot
from app.domain.counting import Commit, HitGroup, IdempotencyKey, Visit
from app.stores.results import Ack
from app.stores.rules import SOURCE_TTL_SECONDS
from app.stores.sqlite_connection import connect

# Lines that are kept in memory because the disk cannot be written.
MEMORY_BYTES_MAX = 64_000_000
ORPHAN_BYTES_SHOWN = 4_000_000  # lines of dead processes that are counted into what this node shows

log = logging.getLogger("tally.spool")


class SpoolFull(Exception):
    """The spool has reached its size limit. Nothing was written. The message names the limit."""


class SpooledCommit(NamedTuple):
    """A commit with the arguments of the `apply` that failed, so that replaying it is a retry of that call."""

    source: str
    expected_offset: int
    new_offset: int
    commit: Commit


class Spool:
    """The spool files that wait to be replayed, oldest first: those of dead processes, then the one of this process.

    `identity` names the store: only processes with the same store recover each other's files. `old_identities` are the
    names that earlier versions gave it. `is_full` is true if the last line was rejected because of `bytes_max`.
    """

    def __init__(self, directory: Path, identity: str, bytes_max: int, old_identities: Sequence[str] = ()) -> None:
        self.files: list[SpoolFile] = []
        self.is_full = False
        self.suffix, *old_suffixes = map(_suffix, (identity, *old_identities))
        self._suffixes = {self.suffix, *old_suffixes}
        self._directory = directory
        self._bytes_max = bytes_max

    @property
    def size(self) -> int:
        """The bytes that wait to be replayed."""
        return sum(file.size for file in self.files)

    @property
    def ack(self) -> Ack:
        """How durable the next line will be, as far as known."""
        return self.files[-1].ack if self.files else "spooled"

    def describe_outage(self, *, is_replaying: bool) -> str:
        """Return the cause of an outage, and what happens to new hits, for operators."""
        size = f"{self.size / 1e6:.1f} MB" if self.size >= 1e5 else "less than 0.1 MB"
        cause = f"{size} of spooled hits are being replayed" if is_replaying else "Redis is unreachable"
        if self.is_full:
            limit = f"in memory, {MEMORY_BYTES_MAX // 10**6} MB" if self.ack == "memory" else "TALLY_SPOOL_MAX_MB"
            return f"{cause}: hits are rejected, because the spool is full ({limit})"
        where = "spooled to disk" if self.ack == "spooled" else "kept in memory, the spool cannot be written"
        return f"{cause}: hits are {where}"

    def check_space(self, line_bytes: int) -> None:
        """Raise SpoolFull if a line of this size would exceed a limit."""
        self.is_full = True
        if self.size + line_bytes > self._bytes_max:
            raise SpoolFull("the spool is full (TALLY_SPOOL_MAX_MB)")
        if self.ack == "memory" and self.files[-1].size + line_bytes > MEMORY_BYTES_MAX:
            raise SpoolFull("the spool cannot be written (TALLY_SPOOL), and the memory for it is full")
        self.is_full = False

    async def append(self, line: str) -> Ack:
        """Append a line and return how durable it is: if the disk fails, it is kept in memory."""
        try:
            if not self.files:
                self._directory.mkdir(parents=True, exist_ok=True)
                self.files.append(SpoolFile(self._directory / f"{uuid.uuid4().hex}{self.suffix}"))
            await asyncio.to_thread(self.files[-1].append, line)
        except (sqlite3.Error, OSError) as error:
            log.warning("the spool cannot be written, so hits are kept in memory: %s", error)
            self.files.append(SpoolFile(":memory:"))
            self.files[-1].append(line)
        return self.files[-1].ack

    def find_orphans(self) -> "list[SpoolFile]":
        """Open the files that dead processes with the same store have left."""
        paths = sorted(path for path in self._directory.glob("*.spool") if _suffix_of(path) in self._suffixes)
        return [file for file in map(_open_orphan, paths) if file]

    def report_foreign_files(self) -> None:
        """Log the files of other stores, which only a node with the same TALLY_STORE replays."""
        for path in sorted(self._directory.glob("*.spool")):
            if _suffix_of(path) not in self._suffixes:
                log.warning(
                    "%s is of another store: only a node with the TALLY_STORE that wrote it counts its hits", path
                )

    def first_commits(self) -> Iterator[Commit]:
        """Yield the oldest commits, up to ORPHAN_BYTES_SHOWN in total."""
        size = 0
        for line in (line for file in self.files for line in file.lines()):
            size += len(line)
            if size > ORPHAN_BYTES_SHOWN:
                log.warning("the spool is large: only its oldest hits are shown until Redis is reachable")
                return
            yield decode(line).commit


class SpoolFile:
    """One process's commits on disk, one per line, in a SQLite file that only one process can have open.

    SQLite provides the lock, the sync, and the handling of torn writes and of a full disk. The path ":memory:" keeps
    the lines in memory. `size` is in bytes: lines are ASCII.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self.ack: Ack = "memory" if path == ":memory:" else "spooled"
        # At shutdown a cancelled task may have left a thread that still uses the file, and SQLite would crash.
        self._lock = threading.Lock()
        self._db = connect(path)
        self._db.execute("CREATE TABLE IF NOT EXISTS batch (id INTEGER PRIMARY KEY, line TEXT NOT NULL) STRICT")
        (self.size,) = self._db.execute("SELECT coalesce(sum(length(line)), 0) FROM batch").fetchone()

    def append(self, line: str) -> None:
        """Write a line; it is on disk when this returns."""
        with self._lock:
            self._db.execute("INSERT INTO batch (line) VALUES (?)", (line,))
            self.size += len(line)

    def first(self, lines_max: int, bytes_max: float = math.inf) -> list[str]:
        """Return the oldest lines: at least one, and no more after this number of bytes."""
        lines: list[str] = []
        with self._lock:
            for (line,) in self._db.execute("SELECT line FROM batch ORDER BY id LIMIT ?", (lines_max,)):
                lines.append(line)
                bytes_max -= len(line)
                if bytes_max <= 0:
                    break
        return lines

    def drop(self, lines: list[str]) -> None:
        """Delete these lines, which must be the oldest ones."""
        with self._lock:
            self._db.execute("DELETE FROM batch WHERE id IN (SELECT id FROM batch ORDER BY id LIMIT ?)", (len(lines),))
            self.size -= sum(map(len, lines))

    def lines(self) -> Iterator[str]:
        """Yield all lines, oldest first."""
        return (line for (line,) in self._db.execute("SELECT line FROM batch ORDER BY id"))

    def close(self) -> None:
        """Close the file, so that another process can recover it."""
        with self._lock:
            self._db.close()

    def delete(self) -> None:
        """Close the file and remove it."""
        self.close()
        try:
            if self.ack == "spooled":
                Path(self.path).unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s was replayed and is empty, but cannot be removed: %s", self.path, error)


def _suffix(identity: str) -> str:
    return f".{hashlib.sha256(identity.encode()).hexdigest()[:16]}.spool"


def _suffix_of(path: Path) -> str:
    """Return the end of a spool file's name, which depends on the identity of its store."""
    return "".join(path.suffixes[-2:])


def _open_orphan(path: Path) -> SpoolFile | None:
    """Open a spool file, unless it is empty, damaged, too old, or in use by a living process."""
    try:
        # SQLite has not written anything yet: a process is just creating this file.
        if not path.stat().st_size:
            return None
        file = SpoolFile(path)
        lines = file.first(1)
        if not lines:
            # Its process is about to delete it, or died while doing so. Nothing must be appended to it.
            file.delete()
        elif decode(lines[0]).commit[0].slot.minute < time.time() - SOURCE_TTL_SECONDS:
            # The store may no longer have the offsets that tell which of these commits it has applied.
            log.error("%s is older than 30 days: its hits could be counted twice. Inspect it, then remove it.", path)
            file.close()
        else:
            return file
    except FileNotFoundError:
        log.debug("%s was replayed by another process", path)
    except (sqlite3.Error, OSError, ValueError) as error:
        # A locked file belongs to a living process.
        if "locked" not in str(error):
            log.error("%s cannot be read, so its hits are not counted: %s", path, error)  # noqa: TRY400 # the text is enough
    return None


def encode(spooled: SpooledCommit) -> str:
    """Return the line of a spool file. The format must not change: a newer version reads the files of an older one."""
    source, expected_offset, new_offset, commit = spooled
    groups = [(group.slot, group.amounts, group.key, group.visits, not group.atomic) for group in commit]
    return json.dumps([source, expected_offset, new_offset, groups])


def decode(line: str) -> SpooledCommit:
    """Return a commit that `encode` wrote. Its groups have no limits: they are acknowledged. Raises ValueError."""
    source, expected_offset, new_offset, rows = json.loads(line)
    return SpooledCommit(source, expected_offset, new_offset, [_decode_group(*row) for row in rows])


def _decode_group(
    slot: list[int],
    amounts: dict[str, int],
    key: list[str] | None,
    visits: list[list[str]],
    # Lines of older versions lack this field.
    by_event: bool = False,
) -> HitGroup:
    return HitGroup(
        slot=TimeSlot(*slot),  # type: ignore[arg-type] # a date, then numbers
        amounts=amounts,
        key=IdempotencyKey(*key) if key else None,
        limited=False,
        visits=[Visit(*visit) for visit in visits],  # type: ignore[arg-type] # an event, a number, and two ids
        atomic=not by_event,
    )
