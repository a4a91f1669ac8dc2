"""Spool files that a dead process has left are recovered by another process with the same store."""

from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from app.domain.buckets import TOTAL, Bucket
from app.domain.calendar import Calendar
from app.stores import offline
from app.stores.base import StoreLimits
from app.stores.offline import OfflineStore
from app.stores.redis import RedisStore
from app.stores.redis_url import RedisTarget
from tests.stores.offline_stores import (
    LIMITS,
    NOON,
    YESTERDAY,
    hits,
    offline_store,
    opened,
    redis_store,
    total_of,
    wait_ok,
    wait_online,
)
from tests.support.redis_servers import RedisServer
from tests.support.servers import eventually, serving, settings_for

pytestmark = pytest.mark.usefixtures("short_pauses")


@pytest.mark.fails_on_mutant(
    "no recovery", "app/stores/spool_file.py", "if _suffix_of(path) in self._suffixes)", "if False)"
)
async def test_the_spool_of_a_dead_process_is_recovered_once(tmp_path: Path, own_redis: RedisServer) -> None:
    async with opened(offline_store(own_redis, tmp_path)) as dead:
        for offset in range(5):
            await dead.apply("dead", offset, offset + 1, hits("a", 1, YESTERDAY))
    async with opened(offline_store(own_redis, tmp_path)) as store:
        assert await store.read([Bucket("day", YESTERDAY.day)], ["a"]) == [{"a": 5}]
        await store.apply("alive", 0, 1, hits("a", 1))
        own_redis.start()
        await wait_online(store)
        buckets = [Bucket("day", YESTERDAY.day), Bucket("day", NOON.day), TOTAL]
        assert await store.read(buckets, ["a"]) == [{"a": 5}, {"a": 1}, {"a": 6}]
    assert not list(tmp_path.glob("*.spool*"))


@pytest.mark.fails_on_mutant(
    "a node starts after the whole replay",
    "app/stores/offline.py",
    "while self._is_offline and not self._closing and time.monotonic() < until:",
    "while self._is_offline and not self._closing:",
)
async def test_a_node_accepts_hits_while_it_replays_a_large_spool(
    tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(offline_store(own_redis, tmp_path)) as dead:
        for offset in range(50):
            await dead.apply("dead", offset, offset + 1, hits("a", 1))
    monkeypatch.setattr(offline, "STARTUP_REPLAY_SECONDS", 0)
    own_redis.start()
    async with opened(offline_store(own_redis, tmp_path)) as store:
        assert store.status().stale_seconds is not None
        assert (await store.apply("s", 0, 1, hits("a", 1))).ack == "spooled"
        await wait_online(store)
        assert await store.read([TOTAL], ["a"]) == [{"a": 51}]


@pytest.mark.fails_on_mutant(
    "add without compare",
    "app/stores/lua/offset.lua",
    "(tonumber(offset) ~= tonumber(ARGV[2]) or tonumber(new_offset) < tonumber(offset))",
    "false",
)
@pytest.mark.fails_on_mutant(
    "missing dedup", "app/stores/rules.py", "if mismatch.offset >= new_offset:", "if mismatch.offset < 0:"
)
async def test_a_replay_that_was_interrupted_is_finished(tmp_path: Path, own_redis: RedisServer) -> None:
    async with opened(offline_store(own_redis, tmp_path)) as store:
        for offset in range(4):
            await store.apply("s", offset, offset + 1, hits("a", 1))
    own_redis.start()
    # The process died after two commits were applied, and before they were dropped from the file.
    redis = redis_store(own_redis)
    for offset in range(2):
        await redis.apply("s", offset, offset + 1, hits("a", 1))
    await redis.close()
    async with opened(offline_store(own_redis, tmp_path)) as store:
        assert await store.read([TOTAL], ["a"]) == [{"a": 4}]


async def test_spools_of_another_store_and_of_a_living_process_are_not_touched(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    async with opened(offline_store(own_redis, tmp_path)) as living:
        await living.apply("living", 0, 1, hits("a", 1))
        async with opened(offline_store(own_redis, tmp_path, identity="another redis")) as other:
            await other.apply("other", 0, 1, hits("a", 1))
        async with opened(offline_store(own_redis, tmp_path)) as third:
            assert await third.read([TOTAL], ["a"]) == [{}]
    assert len(list(tmp_path.glob("*.spool"))) == 2


async def test_a_spool_older_than_30_days_is_not_touched(
    tmp_path: Path, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    old = Calendar(ZoneInfo("UTC")).slot(1_700_000_000)
    async with opened(offline_store(own_redis, tmp_path)) as store:
        await store.apply("s", 0, 1, hits("a", 1, old))
    own_redis.start()
    for _ in range(2):
        async with opened(offline_store(own_redis, tmp_path)):
            assert "older than 30 days" in caplog.text
        caplog.clear()
    assert await total_of(own_redis, "a") == 0


async def test_a_damaged_spool_file_is_logged_and_not_touched(
    tmp_path: Path, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis.start()
    store = offline_store(own_redis, tmp_path)
    damaged = tmp_path / f"0{store._spool.suffix}"
    damaged.write_bytes(b"no database" * 1000)
    async with opened(store):
        assert f"{damaged} cannot be read" in caplog.text
        assert (await store.apply("s", 0, 1, hits("a", 1))).ack == "redis"
    assert damaged.read_bytes() == b"no database" * 1000


@pytest.mark.fails_on_mutant(
    "recovery only at the start", "app/scheduler.py", "add(self._store.recover_orphans, ", "add(self.publish_status, "
)
async def test_a_running_node_recovers_the_spool_of_a_dead_neighbour(tmp_path: Path, own_redis: RedisServer) -> None:
    target = RedisTarget.from_url(own_redis.url)
    async with serving(settings_for("redis", tmp_path, own_redis)) as tally, tally.client() as client:
        own_redis.start()
        await wait_ok(client)
        own_redis.stop()
        redis = RedisStore(target, StoreLimits(10))
        async with opened(OfflineStore(redis, target.identity, tmp_path / "spool", 10**6, LIMITS)) as dead:
            for offset in range(3):
                await dead.apply("dead", offset, offset + 1, hits("a", 1))
            own_redis.start()
            # One commit was applied before the neighbour died.
            await redis.apply("dead", 0, 1, hits("a", 1))
        await wait_ok(client)
        tally.app.state.jobs.get_job("recover_orphans").modify(next_run_time=datetime.now(UTC))

        async def recovered() -> bool:
            return (await client.get("/event/a")).json()["total"] == 3

        await eventually(recovered)
    assert not list((tmp_path / "spool").glob("*.spool"))
