"""The idempotency keys in a SQLite file."""

import json
import sqlite3
from collections import Counter

from app.domain.calendar import TimeSlot
from app.domain.counting import HitGroup, IdempotencyKey
from app.stores.base import StoreLimits
from app.stores.results import GroupResult, from_row, to_row
from app.stores.rules import IDEMPOTENCY_TTL_SECONDS, IdempotencyRecord, check_idempotency, result_to_save


class KeyTable:
    """The table of idempotency keys, and how many are live. Call only on the SQLite thread, within a transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._by_client = Counter[str](dict(db.execute("SELECT owner, count(*) FROM key GROUP BY owner")))
        self._live = self._by_client.total()

    def check(self, group: HitGroup, key: IdempotencyKey, limits: StoreLimits | None) -> GroupResult | None:
        """Return the group's first result or a rejection, or None if the group is to be counted."""
        self.expire(group.slot)
        sql = "SELECT request, minute, date, answer, owner FROM key WHERE id = ?"
        record = None
        if found := self._db.execute(sql, (key.id,)).fetchone():
            request, minute, date, row, client = found
            # Another request's row has other events, so only the row of the same request can be decoded.
            values = from_row(group, json.loads(row)).values if request == key.request and row != "[]" else {}
            record = IdempotencyRecord(request, minute, GroupResult(values, {}, date), client)
        return check_idempotency(key, group.slot.minute, record, self._live, self._by_client[key.client], limits)

    def save(self, group: HitGroup, key: IdempotencyKey, result: GroupResult) -> None:
        """Save the first result of a group under its key."""
        self._live += 1
        self._by_client[key.client] += 1
        row = (*key, group.slot.minute, group.slot.date, json.dumps(to_row(group, result_to_save(result))))
        self._db.execute("INSERT INTO key VALUES (?, ?, ?, ?, ?, ?)", row)

    def expire(self, slot: TimeSlot) -> None:
        """Delete the keys that have expired in this time slot."""
        expired = (slot.minute - IDEMPOTENCY_TTL_SECONDS,)
        for (client,) in self._db.execute("DELETE FROM key WHERE minute <= ? RETURNING owner", expired).fetchall():
            self._live -= 1
            self._by_client[client] -= 1
            if not self._by_client[client]:
                del self._by_client[client]
