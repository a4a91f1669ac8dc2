"""The records in a SQLite file."""

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from app.stores.records import RecordChange, RecordStore

Run = Callable[[Callable[[Any], Any]], Awaitable[Any]]  # runs a function with the connection, on the SQLite thread


class SqliteRecords(RecordStore):
    """One table for all collections."""

    def __init__(self, read: Run, write: Run) -> None:
        self._read, self._write = read, write

    async def read(self, collection: str) -> dict[str, str]:
        sql = "SELECT json_group_object(id, text) FROM record WHERE collection = ?"
        found: dict[str, str] = json.loads(await self._read(lambda db: db.execute(sql, (collection,)).fetchone()[0]))
        return found

    async def size(self, collection: str) -> int:
        sql = "SELECT count(*) FROM record WHERE collection = ?"
        return int(await self._read(lambda db: db.execute(sql, (collection,)).fetchone()[0]))

    async def change(self, changes: Sequence[RecordChange], dropped: str = "") -> bool:
        return bool(await self._write(lambda db: _change(db, changes, dropped)))


def _change(db: Any, changes: Sequence[RecordChange], dropped: str) -> bool:
    with db:
        db.execute("BEGIN IMMEDIATE")
        for collection, id_, before, _ in changes:
            sql = "SELECT text FROM record WHERE collection = ? AND id = ?"
            found = db.execute(sql, (collection, id_)).fetchone()
            if (found[0] if found else None) != before:
                return False
        for collection, id_, _, after in changes:
            if after is None:
                db.execute("DELETE FROM record WHERE collection = ? AND id = ?", (collection, id_))
            else:
                db.execute("INSERT OR REPLACE INTO record VALUES (?, ?, ?)", (collection, id_, after))
        db.execute("DELETE FROM record WHERE collection = ?", (dropped,))
    return True
