"""Fixtures of the contract tests: an empty store of each kind."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.stores.base import CounterStore, StoreLimits
from app.stores.memory import MemoryStore
from app.stores.offline import OfflineStore
from app.stores.redis import RedisStore
from app.stores.redis_sharded import ShardedRedisStore
from app.stores.redis_url import RedisTarget
from app.stores.sqlite import SqliteStore
from tests.stores.contract.support import EVERY_STORE, StoreMaker
from tests.support.redis_servers import Cluster, RedisServer


class Maker:
    """Makes stores of one kind, which share a file or a server."""

    def __init__(self, kind: str, directory: Path, servers: RedisServer | Cluster | None) -> None:
        self.kind, self.directory, self.servers = kind, directory, servers

    def __call__(self, names: int = 1000, keys: int = 1000) -> CounterStore:
        limits = StoreLimits(names, keys)
        if self.kind == "memory":
            return MemoryStore(limits)
        if self.kind == "sqlite":
            return SqliteStore(self.directory / "tally.db", limits)
        target = RedisTarget.from_url(self.servers.url)
        if self.kind == "cluster":
            return ShardedRedisStore([RedisStore(target, limits, shard) for shard in range(target.shards)])
        store = RedisStore(target, limits)
        return store if self.kind == "redis" else OfflineStore(store, "test", self.directory / "spool", 10**6, limits)

    def flush(self) -> None:
        (self.directory / "tally.db").unlink(missing_ok=True)
        if self.servers:
            self.servers.flush()

    def key_ttls(self) -> dict[str, int]:
        ttls = {}
        servers = self.servers.masters() if isinstance(self.servers, Cluster) else [self.servers]
        for redis in servers if self.servers else ():
            with redis.client() as client:
                ttls |= {key: client.ttl(key) for key in client.scan_iter()}
        return ttls


@pytest.fixture(params=EVERY_STORE)
def make_store(request: pytest.FixtureRequest, tmp_path: Path, patience: None) -> StoreMaker:
    fixtures = {"redis": "redis_server", "spooled": "redis_server", "cluster": "redis_cluster"}
    fixture = fixtures.get(request.param)
    return Maker(request.param, tmp_path, request.getfixturevalue(fixture) if fixture else None)


@pytest.fixture
async def store(make_store: StoreMaker) -> AsyncIterator[CounterStore]:
    store = make_store()
    await store.open()
    yield store
    await store.close()
