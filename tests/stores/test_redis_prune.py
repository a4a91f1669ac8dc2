"""Pruning leaves nothing behind in Redis, even if late hits are counted meanwhile."""

from collections.abc import AsyncIterator
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from app.domain.calendar import Calendar
from app.domain.counting import HitGroup, Visit
from app.stores.base import StoreLimits
from app.stores.redis import DIMENSIONS_PER_CALL, RedisStore
from app.stores.redis_url import RedisTarget
from tests.support.redis_servers import RedisServer

SLOT = Calendar(ZoneInfo("UTC")).slot(1_795_521_600)
CUTOFFS = {"minute": SLOT.minute + 60, "hour": SLOT.hour + 1, "day": SLOT.day + 1}


@pytest.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    redis_server.flush()
    store = RedisStore(RedisTarget.from_url(redis_server.url), StoreLimits(1000))
    await store.open()
    yield store
    await store.close()


def keys_of_steps(server: RedisServer) -> list[str]:
    """Every key of a minute, an hour or a day."""
    with server.client() as client:
        return [key for step in ("minute", "hour", "day") for key in client.keys(f"*{step}*")]


def late_hits(store: RedisStore, patched: pytest.MonkeyPatch, command: str, user: str | None) -> None:
    """Count a hit of a new event after each call of a command of the client."""
    run, hits = getattr(store._client, command), iter(range(1, 1000))

    async def run_and_count(*arguments: Any) -> Any:
        reply = await run(*arguments)
        number = next(hits)
        visits = () if user is None else [Visit(f"late {number}", 1, user, None)]
        await store.apply("late", number - 1, number, [HitGroup(SLOT, {f"late {number}": 1}, visits=visits)])
        return reply

    patched.setattr(store._client, command, run_and_count)


@pytest.mark.parametrize(
    ("command", "user"),
    [
        ("zrangebyscore", None),
        ("zrangebyscore", "u"),
        ("smembers", None),
        pytest.param(
            "smembers",
            "u",
            marks=pytest.mark.fails_on_mutant(
                "a bucket is no longer listed while its dimensions exist",
                "app/stores/lua/prune.lua",
                "if redis.call('EXISTS', KEYS[2]) == 0 then",
                "if true then",
            ),
        ),
        ("eval", None),
        ("eval", "u"),
    ],
)
async def test_a_late_hit_during_the_prune_is_pruned_by_the_next_one(
    store: RedisStore, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, command: str, user: str | None
) -> None:
    visits = [Visit(f"e{i}", 1, "u", "s") for i in range(DIMENSIONS_PER_CALL)]
    amounts = {visit.event: 1 for visit in visits}
    await store.apply("a", 0, 1, [HitGroup(SLOT, amounts, visits=visits)])
    with monkeypatch.context() as patched:
        late_hits(store, patched, command, user)
        await store.prune(CUTOFFS, SLOT)
    await store.prune(CUTOFFS, SLOT)
    assert keys_of_steps(redis_server) == []
