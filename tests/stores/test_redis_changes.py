"""An administrative change whose request has failed is never applied later."""

import signal
import time
from pathlib import Path
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest

from app.domain.buckets import TOTAL
from app.domain.calendar import Calendar
from app.domain.counting import BucketWrite, DayChange, HitGroup
from app.stores import redis_health, redis_url
from app.stores.base import ChangeExpired, OutcomeUnknown, StoreLimits
from app.stores.redis import RedisStore
from app.stores.redis_url import RedisTarget
from tests.stores.offline_stores import offline_store, opened
from tests.support.redis_servers import GuardedRedis, RedisServer, wait_until

SLOT = Calendar(ZoneInfo("UTC")).slot(time.time())
CHANGE = DayChange(SLOT, [BucketWrite("add", TOTAL, {"a": 10})])


@pytest.mark.fails_on_mutant(
    "a late change is applied", "app/stores/lua/write.lua", "if deadline and not now.err", "if false and not now.err"
)
@pytest.mark.fails_on_mutant("nodes may not read the time", "tests/support/redis_servers.py", "+info +time", "+info")
async def test_a_change_that_a_frozen_redis_executes_later_does_nothing(
    guarded_redis: GuardedRedis, monkeypatch: pytest.MonkeyPatch, patience: None
) -> None:
    """The script waits in the socket of Redis, and is executed after its request got an error."""
    store = RedisStore(RedisTarget.from_url(guarded_redis.url), StoreLimits(10))
    await store.open()
    await store.apply("s", 0, 1, [HitGroup(SLOT, {"a": 1})])
    await store.apply_change("s", 1, 2, CHANGE)
    assert guarded_redis.process
    guarded_redis.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(OutcomeUnknown), monkeypatch.context() as impatient:
            impatient.setattr(redis_url, "COMMAND_TIMEOUT_SECONDS", 0.5)
            await store.apply_change("s", 2, 3, CHANGE)
    finally:
        guarded_redis.process.send_signal(signal.SIGCONT)
    with guarded_redis.client() as client:
        wait_until(lambda: client.info("commandstats")["cmdstat_evalsha"]["calls"] >= 3)
    await store.refresh()
    assert await store.read([TOTAL], ["a"]) == [{"a": 11}]
    assert await store.get_offset("s") == 2
    await store.apply_change("s", 2, 3, CHANGE)  # in time
    assert await store.read([TOTAL], ["a"]) == [{"a": 21}]
    await store.close()


@pytest.mark.fails_on_mutant(
    "the clock of Redis is not read again",
    "app/stores/redis.py",
    "            with contextlib.suppress(StoreUnavailable):\n                await self._read_health()\n",
    "",
)
@pytest.mark.fails_on_mutant(
    "a change that expired looks like an outage",
    "app/stores/offline.py",
    "if not isinstance(error, ChangeExpired):",
    "if True:",
)
async def test_a_change_expires_at_most_once_after_the_clock_of_redis_is_set(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(offline_store(redis_server, tmp_path)) as store:
        late = SimpleNamespace(time=time.time, monotonic=lambda: time.monotonic() - 3600)
        monkeypatch.setattr(redis_health, "time", late)  # as if the clock of Redis was set an hour ahead
        with pytest.raises(ChangeExpired, match="it was not made; try again"):
            await store.apply_change("s", 0, 1, CHANGE)
        assert store.status().stale_seconds is None
        await store.apply_change("s", 0, 1, CHANGE)
        assert await store.read([TOTAL], ["a"]) == [{"a": 10}]


@pytest.mark.fails_on_mutant(
    "every change has a deadline",
    "app/stores/redis.py",
    "None if change.may_be_late else self._deadline()",
    "self._deadline()",
)
async def test_a_change_that_may_be_late_has_no_deadline(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RedisStore(RedisTarget.from_url(redis_server.url), StoreLimits(10))
    await store.open()
    late = SimpleNamespace(time=time.time, monotonic=lambda: time.monotonic() - 3600)
    monkeypatch.setattr(redis_health, "time", late)
    await store.apply_change("s", 0, 1, CHANGE._replace(may_be_late=True))
    assert await store.read([TOTAL], ["a"]) == [{"a": 10}]
    await store.close()
