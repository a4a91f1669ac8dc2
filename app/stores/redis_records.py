"""The records in Redis: a hash for each collection, all in one hash slot."""

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from app.stores import redis_scripts
from app.stores.records import RecordChange, RecordStore

Execute = Callable[[Coroutine[Any, Any, Any]], Awaitable[Any]]


class RedisRecords(RecordStore):
    """The records of one shard.

    `execute` waits for the reply to a command, and `execute_read` for a large one. Both may raise StoreUnavailable.
    """

    def __init__(self, client: Any, prefix: str, execute: Execute, execute_read: Execute) -> None:
        self._client, self._prefix, self._execute, self._execute_read = client, prefix, execute, execute_read

    async def read(self, collection: str) -> dict[str, str]:
        found: dict[str, str] = await self._execute_read(self._client.hgetall(self._key(collection)))
        return found

    async def size(self, collection: str) -> int:
        return int(await self._execute(self._client.hlen(self._key(collection))))

    async def change(self, changes: Sequence[RecordChange], dropped: str = "") -> bool:
        collections = list(dict.fromkeys([change.collection for change in changes] + ([dropped] if dropped else [])))
        arguments: list[object] = [collections.index(dropped) + 1 if dropped else 0]
        for collection, *record in changes:
            arguments += [collections.index(collection) + 1, *("" if text is None else text for text in record)]
        keys = map(self._key, collections)
        call = self._client.eval(redis_scripts.RECORDS.text, len(collections), *keys, *arguments)
        return bool(await self._execute(call))

    def _key(self, collection: str) -> str:
        return self._prefix + collection
