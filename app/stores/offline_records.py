"""The records of a store that may become unreachable."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from app.stores.base import StoreUnavailable
from app.stores.records import RecordChange, RecordStore

T = TypeVar("T")


class OfflineRecords(RecordStore):
    """Records without a copy: every method raises StoreUnavailable at once while the store is unreachable.

    Otherwise each caller in turn would wait for a time-out. `is_reachable` pings the store after an error.
    """

    def __init__(
        self, records: RecordStore, is_reachable: Callable[[], Awaitable[bool]], is_offline: Callable[[], bool]
    ) -> None:
        self._records, self._is_reachable, self._is_offline = records, is_reachable, is_offline

    async def read(self, collection: str) -> Mapping[str, str]:
        return await self._attempt(lambda: self._records.read(collection))

    async def size(self, collection: str) -> int:
        return await self._attempt(lambda: self._records.size(collection))

    async def change(self, changes: Sequence[RecordChange], dropped: str = "") -> bool:
        return await self._attempt(lambda: self._records.change(changes, dropped))

    async def _attempt(self, operation: Callable[[], Awaitable[T]]) -> T:
        if self._is_offline():
            raise StoreUnavailable("Redis is unreachable")
        try:
            return await operation()
        except StoreUnavailable:
            await self._is_reachable()
            raise
