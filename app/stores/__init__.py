"""The stores that keep counts: the contract in `base`, and one module or more for each back end.

May import settings and domain. Other packages create a store with `create_store`, and use only the contract.
"""

import math
from pathlib import Path

from app.settings import Settings
from app.stores.base import CounterStore, StoreLimits
from app.stores.memory import MemoryStore
from app.stores.offline import OfflineStore
from app.stores.redis import RedisStore
from app.stores.redis_sharded import ShardedRedisStore
from app.stores.redis_url import RedisTarget
from app.stores.sqlite import SqliteStore


def create_store(settings: Settings) -> CounterStore:
    """Return the store that TALLY_STORE names, not yet opened. Raises StoreOpenError if a Redis URL is invalid."""
    limits = StoreLimits(settings.events_max, settings.keys_max)
    if settings.store_kind == "redis":
        return _create_redis_store(settings, limits)
    if settings.store_kind == "sqlite":
        return SqliteStore(settings.sqlite_file, limits, settings.timezone.key)
    return MemoryStore(limits)


def _create_redis_store(settings: Settings, limits: StoreLimits) -> CounterStore:
    redis = RedisTarget.from_url(settings.store)
    shard_limits = StoreLimits(math.ceil(limits.names / redis.shards), math.ceil(limits.keys / redis.shards))
    shards = [RedisStore(redis, shard_limits, shard, settings.timezone.key) for shard in range(redis.shards)]
    store = shards[0] if len(shards) == 1 else ShardedRedisStore(shards)
    directory, bytes_max = Path(settings.spool), settings.spool_max_mb * 1_000_000
    return OfflineStore(store, redis.identity, directory, bytes_max, limits, redis.old_identities)
