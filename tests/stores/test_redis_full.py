"""A Redis whose memory is full rejects every commit, and nothing is half written."""

import time
from zoneinfo import ZoneInfo

import pytest

from app.domain.buckets import TOTAL
from app.domain.calendar import Calendar
from app.domain.counting import HitGroup, IdempotencyKey, Visit
from app.stores.base import StoreLimits, StoreUnavailable
from app.stores.redis import RedisStore
from app.stores.redis_url import RedisTarget
from tests.support.redis_servers import RedisServer


@pytest.mark.fails_on_mutant(
    "a script with a key begins with a deletion",
    "app/stores/lua/count.lua",
    "  if limited and key[3] ~= '' and (redis.call('ZCOUNT', live_keys",
    "  redis.call('ZREMRANGEBYSCORE', live_keys, '-inf', expired)\n"
    "  if limited and key[3] ~= '' and (redis.call('ZCOUNT', live_keys",
)
async def test_a_full_redis_rejects_commits_with_and_without_a_key(own_redis: RedisServer) -> None:
    own_redis.start("--maxmemory-policy", "noeviction")
    store = RedisStore(RedisTarget.from_url(own_redis.url), StoreLimits(1000))
    await store.open()
    slot = Calendar(ZoneInfo("UTC")).slot(time.time())
    key = IdempotencyKey("a" * 32, "b" * 32, "c" * 32)
    groups = [HitGroup(slot, {"x": 1}, key._replace(id=f"{i:032}")) for i in range(2)]
    await store.apply("writer", 0, 1, [HitGroup(slot, {"x": 1}), groups[0]])
    with own_redis.client() as client:
        client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
    visit = HitGroup(slot, {"x": 1}, visits=[Visit("x", 1, "u", "s")])
    for group in (HitGroup(slot, {"x": 1}), groups[1], visit):
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            await store.apply("writer", 1, 2, [group])
    assert await store.read([TOTAL], ["x"]) == [{"x": 2}]
    with own_redis.client() as client:
        client.config_set("maxmemory", 0)
    result = await store.apply("writer", 1, 2, [groups[0], groups[1]])
    assert [bool(group.replayed_on) for group in result.groups] == [True, False]
    await store.close()
