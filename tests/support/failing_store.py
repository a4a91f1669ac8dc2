"""A store that fails when a test says so."""

from app.stores.memory import MemoryStore
from app.stores.results import ApplyResult


class FailingStore(MemoryStore):
    """A memory store that raises `failure` if it is set."""

    failure: Exception | None = None

    async def apply(self, *arguments: object) -> ApplyResult:
        if self.failure:
            raise self.failure
        return await super().apply(*arguments)
