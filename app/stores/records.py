"""The contract of records: small texts by id, such as alerts, that are changed by comparing and setting."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class RecordChange(NamedTuple):
    """Replace the record `before`, or None if there must be none, by `after`, or by None to delete it."""

    collection: str
    id: str
    before: str | None
    after: str | None


class RecordStore(ABC):
    """Collections of records. Their callers bound the number and the size of the records.

    Every method may raise StoreUnavailable. After that of `change`, the changes may be written: read the records again.
    """

    @abstractmethod
    async def read(self, collection: str) -> Mapping[str, str]:
        """Return all records of a collection by id."""

    @abstractmethod
    async def size(self, collection: str) -> int:
        """Return the number of records of a collection."""

    @abstractmethod
    async def change(self, changes: Sequence[RecordChange], dropped: str = "") -> bool:
        """Do these changes, and drop a whole collection, in one atomic step.

        Return False, and change nothing, if a record is not as its change expects.
        """


class MemoryRecords(RecordStore):
    """Records in dictionaries."""

    def __init__(self) -> None:
        self._collections: defaultdict[str, dict[str, str]] = defaultdict(dict)

    async def read(self, collection: str) -> dict[str, str]:
        return dict(self._collections.get(collection, {}))

    async def size(self, collection: str) -> int:
        return len(self._collections.get(collection, ()))

    async def change(self, changes: Sequence[RecordChange], dropped: str = "") -> bool:
        if any(self._collections[name].get(id_) != before for name, id_, before, _ in changes):
            return False
        for name, id_, _, after in changes:
            if after is None:
                self._collections[name].pop(id_, None)
            else:
                self._collections[name][id_] = after
        self._collections.pop(dropped, None)
        return True
