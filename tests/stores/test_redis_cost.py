"""What a commit of many events makes Redis do: nothing else runs there meanwhile."""

from collections.abc import AsyncIterator
from zoneinfo import ZoneInfo

import pytest

from app.domain.buckets import BEFORE_RESET
from app.domain.calendar import Calendar
from app.domain.counting import BucketWrite, DayChange, HitGroup
from app.stores.base import StoreLimits
from app.stores.redis import RedisStore
from app.stores.redis_url import RedisTarget
from tests.support.redis_servers import RedisServer

SLOT = Calendar(ZoneInfo("UTC")).slot(1_795_521_600)
EVENTS = {f"e{i}": i + 1 for i in range(5000)}


@pytest.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    redis_server.flush()
    store = RedisStore(RedisTarget.from_url(redis_server.url), StoreLimits(10_000))
    await store.open()
    await store.apply("s", 0, 1, [HitGroup(SLOT, EVENTS)])
    yield store
    await store.close()


async def calls_of_commit(store: RedisStore, server: RedisServer, group: HitGroup) -> dict[str, int]:
    """Return the calls of each command while a commit of this group is applied."""
    with server.client() as client:
        client.config_resetstat()
        result = await store.apply("s", 1, 2, [group])
        assert not result.groups[0].rejected
        stats = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): command["calls"] for name, command in stats.items()}


@pytest.mark.fails_on_mutant(
    "each event is read",
    "app/stores/lua/count.lua",
    "if has_names and math.max(total_sum, slot.hits + most_added) + sum <= COUNT_MAX then return {} end",
    "",
)
@pytest.mark.parametrize("atomic", [True, False])
async def test_events_far_from_all_limits_are_counted_without_being_read(
    store: RedisStore, redis_server: RedisServer, atomic: bool
) -> None:
    calls = await calls_of_commit(store, redis_server, HitGroup(SLOT, EVENTS, atomic=atomic))
    assert "hmget" not in calls
    assert calls["hincrby"] == 4 * len(EVENTS) + 4


async def test_on_a_day_with_corrections_events_are_read_many_at_a_time(
    store: RedisStore, redis_server: RedisServer
) -> None:
    _, correction = SLOT.day_buckets
    part = correction._replace(dimension=f"{BEFORE_RESET}1")
    negative = {event: -by for event, by in EVENTS.items()}
    await store.apply_change(
        "admin", 0, 1, DayChange(SLOT, [BucketWrite("add", part, EVENTS), BucketWrite("add", correction, negative)])
    )
    calls = await calls_of_commit(store, redis_server, HitGroup(SLOT, EVENTS))
    assert await store.counts(SLOT.day, ["e0", "e9"]) == {"e0": 1, "e9": 10}
    assert calls["hmget"] <= 10
    assert calls["hget"] <= 10
