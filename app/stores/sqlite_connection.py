"""Opens SQLite files: one exclusive connection whose commits are on disk, and Tally's schema."""

import sqlite3
from pathlib import Path

from app.stores.base import StoreOpenError, check_zone

SCHEMA_VERSION = 5
EVENT_TABLES = ("minute", "hour", "day", "total")  # in the order of TimeSlot.buckets

_EVENT_TABLES_SQL = "".join(
    f"CREATE TABLE {table} (start INTEGER NOT NULL, event INTEGER NOT NULL,"
    " count INTEGER NOT NULL CHECK (count >= 0), PRIMARY KEY (start, event)) STRICT, WITHOUT ROWID;"
    for table in EVENT_TABLES
)
_TO_VERSION_1 = f"""
BEGIN;
CREATE TABLE event (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
INSERT INTO event VALUES (0, '');
{_EVENT_TABLES_SQL}
CREATE TABLE source (name TEXT PRIMARY KEY, offset INTEGER NOT NULL, answers TEXT NOT NULL,
                     used INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE key (id TEXT PRIMARY KEY, request TEXT NOT NULL, owner TEXT NOT NULL, minute INTEGER NOT NULL,
                  date TEXT NOT NULL, answer TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX key_minute ON key (minute);
PRAGMA user_version = 1;
COMMIT;
"""  # noqa: S608 # made of the constants above
# Buckets whose members are not events: a row per bucket, and a row per member of one.
_TO_VERSION_2 = """
BEGIN;
CREATE TABLE crowd (id INTEGER PRIMARY KEY, step TEXT NOT NULL, start INTEGER NOT NULL, of TEXT NOT NULL,
                    UNIQUE (step, start, of)) STRICT;
CREATE TABLE member (crowd INTEGER NOT NULL, name TEXT NOT NULL, count INTEGER NOT NULL,
                     PRIMARY KEY (crowd, name)) STRICT, WITHOUT ROWID;
PRAGMA user_version = 2;
COMMIT;
"""
# The redo log in front of the event tables.
_TO_VERSION_3 = """
BEGIN;
CREATE TABLE log (id INTEGER PRIMARY KEY, counts TEXT NOT NULL) STRICT;
PRAGMA user_version = 3;
COMMIT;
"""
# The time zone of the days, in one row.
_TO_VERSION_4 = """
BEGIN;
CREATE TABLE zone (name TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
PRAGMA user_version = 4;
COMMIT;
"""
# Records that are no counts, such as alerts.
_TO_VERSION_5 = """
BEGIN;
CREATE TABLE record (collection TEXT NOT NULL, id TEXT NOT NULL, text TEXT NOT NULL,
                     PRIMARY KEY (collection, id)) STRICT, WITHOUT ROWID;
PRAGMA user_version = 5;
COMMIT;
"""
_MIGRATIONS = (_TO_VERSION_1, _TO_VERSION_2, _TO_VERSION_3, _TO_VERSION_4, _TO_VERSION_5)


def connect(path: Path | str) -> sqlite3.Connection:
    """Return a connection that locks the file while it is open, and whose commits are on disk when they return.

    Raises sqlite3.OperationalError if the file cannot be used or another process has it open.
    """
    db = sqlite3.connect(path, isolation_level=None, timeout=0, check_same_thread=False)
    try:
        # EXCLUSIVE comes before the first access, so that SQLite keeps the index of its WAL in this process's memory.
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL"):
            db.execute(f"PRAGMA {pragma}")
        db.execute("BEGIN IMMEDIATE")
        db.execute("COMMIT")
    except sqlite3.Error:
        db.close()
        raise
    return db


def open_database(path: Path, zone: str) -> sqlite3.Connection:
    """Connect to a file of Tally's, which is created, or upgraded to SCHEMA_VERSION, if necessary.

    A file without a time zone gets this one. Raises StoreOpenError if the file has another zone, or if a newer Tally
    wrote it, and sqlite3.Error or OSError if it cannot be used.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    db = connect(path)
    try:
        _upgrade(db, path)
        db.execute("INSERT INTO zone SELECT ? WHERE NOT EXISTS (SELECT * FROM zone)", (zone,))
        (stored,) = db.execute("SELECT name FROM zone").fetchone()
        check_zone(stored, zone)
    except (sqlite3.Error, StoreOpenError):
        db.close()
        raise
    return db


def _upgrade(db: sqlite3.Connection, path: Path) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise StoreOpenError(f"{path} was written by a newer Tally: run that one, or name another file")
    for script in _MIGRATIONS[version:]:
        db.executescript(script)
