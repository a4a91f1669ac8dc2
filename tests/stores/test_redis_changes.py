"""An administrative change whose request has failed is never applied later."""

import signal
import time
from zoneinfo import ZoneInfo

import pytest

from app.domain.buckets import TOTAL
from app.domain.calendar import Calendar
from app.domain.counting import BucketWrite, DayChange, HitGroup
from app.stores import redis_url
from app.stores.base import OutcomeUnknown, StoreLimits
from app.stores.redis import RedisStore
from app.stores.redis_url import RedisTarget
from tests.support.redis_servers import RedisServer, wait_until


@pytest.mark.fails_on_mutant(
    "a late change is applied", "app/stores/lua/write.lua", "if deadline and not now.err", "if false and not now.err"
)
async def test_a_change_that_a_frozen_redis_executes_later_does_nothing(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script waits in the socket of Redis, and is executed after its request got an error."""
    monkeypatch.setattr(redis_url, "COMMAND_TIMEOUT_SECONDS", 0.5)
    own_redis.start()
    store = RedisStore(RedisTarget.from_url(own_redis.url), StoreLimits(10))
    await store.open()
    slot = Calendar(ZoneInfo("UTC")).slot(time.time())
    change = DayChange(slot, [BucketWrite("add", TOTAL, {"a": 10})])
    await store.apply("s", 0, 1, [HitGroup(slot, {"a": 1})])
    await store.apply_change("s", 1, 2, change)
    assert own_redis.process
    own_redis.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(OutcomeUnknown):
            await store.apply_change("s", 2, 3, change)
    finally:
        own_redis.process.send_signal(signal.SIGCONT)
    with own_redis.client() as client:
        wait_until(lambda: client.info("commandstats")["cmdstat_evalsha"]["calls"] >= 3)
    await store.refresh()
    assert await store.read([TOTAL], ["a"]) == [{"a": 11}]
    assert await store.get_offset("s") == 2
    await store.apply_change("s", 2, 3, change)  # in time
    assert await store.read([TOTAL], ["a"]) == [{"a": 21}]
    await store.close()
