"""Redis servers whose configuration, memory or clock can break a guarantee are reported."""

import time
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest

from app.domain.buckets import Bucket
from app.domain.calendar import Calendar
from app.domain.counting import HitGroup
from app.stores import redis_health
from app.stores.base import StoreLimits
from app.stores.redis import RedisStore
from app.stores.redis_sharded import ShardedRedisStore
from app.stores.redis_url import RedisTarget
from tests.support.redis_servers import RedisServer

HEALTH = "app/stores/redis_health.py"


def store_on(server: RedisServer) -> RedisStore:
    return RedisStore(RedisTarget.from_url(server.url), StoreLimits(1000))


async def reasons_of(server: RedisServer, caplog: pytest.LogCaptureFixture) -> str:
    """Open a store, and return the reasons of its status. Check that they are also logged."""
    store = store_on(server)
    try:
        await store.open()
        reasons = store.status().reasons
        assert all(reason in caplog.text for reason in reasons)
        return "; ".join(reasons)
    finally:
        await store.close()


async def test_a_redis_as_in_the_documentation_has_no_problem(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    assert await reasons_of(redis_server, caplog) == ""


@pytest.mark.fails_on_mutant("eviction is not reported", HEALTH, "        if self.evicts:\n", "        if False:\n")
@pytest.mark.fails_on_mutant("evicted keys are not reported", HEALTH, 'self._info.get("evicted_keys", 0)', "0")
async def test_eviction_is_reported(own_redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    own_redis.start("--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru")
    assert "its maxmemory-policy is allkeys-lru; set it to noeviction" in await reasons_of(own_redis, caplog)
    store = store_on(own_redis)
    await store.open()
    assert store.durability.startswith("nothing for certain")
    with own_redis.client() as client:
        for i in range(4000):
            client.set(f"filler {i}", "x" * 1000)
    await store.refresh()
    assert "keys since it started: counts or idempotency keys are lost" in "; ".join(store.status().reasons)
    await store.close()


@pytest.mark.fails_on_mutant(
    "the durability is read once", "app/stores/redis.py", "return _EVICTED if self._health.evicts else", "return"
)
@pytest.mark.fails_on_mutant(
    "the durability is that of one server",
    "app/stores/redis_sharded.py",
    "dict.fromkeys(shard.durability for shard in self._shards)",
    "[self._shards[0].durability]",
)
async def test_the_durability_follows_the_configuration_of_each_server(
    own_redis: RedisServer, redis_server: RedisServer
) -> None:
    own_redis.start("--appendonly", "yes", "--maxmemory", "100mb", "--maxmemory-policy", "noeviction")
    store = ShardedRedisStore([store_on(redis_server), store_on(own_redis)])
    await store.open()
    first, second = store.durability.split(" or, on another server, ")
    assert ("no append-only file" in first, second) == (True, "a crash of Redis, but for the last 2 seconds")
    with own_redis.client() as client:
        for policy, text in (("volatile-lru", "nothing for certain"), ("noeviction", second)):
            client.config_set("maxmemory-policy", policy)
            await store.refresh()
            assert store.durability.startswith(f"{first} or, on another server, {text}")
    for shard in store._shards:
        await shard.close()


@pytest.mark.fails_on_mutant(
    "the sync may pause", "app/stores/redis.py", 'config["no-appendfsync-on-rewrite"] == "yes"', "False"
)
@pytest.mark.fails_on_mutant(
    "a changed sync is not noticed",
    "app/stores/redis.py",
    "        self._persistence = await self._describe_persistence(info)\n",
    "        if 'a crash' not in self._persistence:\n"
    "            self._persistence = await self._describe_persistence(info)\n",
)
async def test_a_change_of_the_sync_is_noticed(own_redis: RedisServer) -> None:
    own_redis.start("--appendonly", "yes", "--appendfsync", "always")
    store = store_on(own_redis)
    await store.open()
    assert store.durability == "a crash of Redis and power loss: it is on the disk of Redis"
    with own_redis.client() as client:
        for setting, value, text in (
            ("no-appendfsync-on-rewrite", "yes", "but not power loss while it rewrites its file"),
            ("appendfsync", "no", "but for data that the operating system had not written yet"),
            ("appendonly", "no", "no append-only file"),
        ):
            client.config_set(setting, value)
            await store.refresh()
            assert text in store.durability
    await store.close()


@pytest.mark.fails_on_mutant(
    "a missing policy is an eviction policy", HEALTH, '"maxmemory_policy", "noeviction")', '"maxmemory_policy")'
)
def test_a_server_that_reports_no_policy_has_no_problem() -> None:
    health = redis_health.RedisHealth()
    health.update({"maxmemory": 100, "used_memory": 10})
    assert (health.evicts, health.reasons()) == (False, ())


async def test_a_policy_without_a_memory_limit_evicts_nothing(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis.start("--maxmemory-policy", "allkeys-lru")
    assert await reasons_of(own_redis, caplog) == ""


@pytest.mark.fails_on_mutant("memory is not reported", HEALTH, "used > MEMORY_FRACTION_MAX * limit", "used > 2 * limit")
async def test_a_redis_that_is_nearly_full_is_reported(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis.start()
    with own_redis.client() as client:
        for i in range(200):
            client.set(f"filler {i}", "x" * 100_000)
        client.config_set("maxmemory", int(client.info("memory")["used_memory"] * 1.1))
    assert "of its maxmemory; hits are spooled when it is full" in await reasons_of(own_redis, caplog)


@pytest.mark.fails_on_mutant(
    "a wrong clock is not reported", HEALTH, "> CLOCK_DIFFERENCE_MAX_SECONDS", "> 1e9 * CLOCK_DIFFERENCE_MAX_SECONDS"
)
@pytest.mark.fails_on_mutant(
    "a node with a wrong clock prunes", "app/stores/redis.py", "if self._health.has_wrong_clock:", "if False:"
)
@pytest.mark.parametrize(("days", "text"), [(500, "ahead of the clock of Redis"), (-500, "behind the clock of Redis")])
async def test_a_node_with_a_wrong_clock_says_so_and_deletes_nothing(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, days: int, text: str
) -> None:
    store = ShardedRedisStore([store_on(redis_server)])
    slot = Calendar(ZoneInfo("UTC")).slot(time.time())
    await store.open()
    await store.apply("a", 0, 1, [HitGroup(slot, {"x": 1})])
    wrong = time.time() + days * 86_400
    monkeypatch.setattr(redis_health, "time", SimpleNamespace(time=lambda: wrong, monotonic=time.monotonic))
    await store.refresh()
    assert text in "; ".join(store.status().reasons)
    await store.prune({"minute": int(wrong), "hour": int(wrong), "day": int(wrong)}, slot)
    await store.prune({"minute": slot.minute + 60, "day": slot.day + 1}, slot)
    assert await store.read([Bucket("day", slot.day)], ["x"]) == [{"x": 1}]
    monkeypatch.undo()
    await store.refresh()
    assert store.status().reasons == ()
    await store.close()


@pytest.mark.fails_on_mutant("a missing deadline is not reported", HEALTH, "if self.forbids_time:", "if False:")
async def test_a_redis_that_forbids_time_is_reported(own_redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    own_redis.start()
    with own_redis.client() as operator:
        operator.execute_command("ACL SETUSER", "default", "-time")
        assert "Redis forbids the command TIME" in await reasons_of(own_redis, caplog)
        store = store_on(own_redis)
        await store.open()
        operator.execute_command("ACL SETUSER", "default", "+time")
        await store.refresh()
        assert store.status().reasons == ()
        await store.close()
