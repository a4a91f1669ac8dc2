"""Redis servers and nodes that are configured wrongly, or full, cost no acknowledged hit, or are reported."""

from pathlib import Path

import pytest

from tests.support.scenarios.servers import eviction, fast_clock, full_redis, offline_names, other_zone


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            "sqlite",
            marks=pytest.mark.fails_on_mutant(
                "the clock alone decides what is old",
                "app/scheduler.py",
                "            slot = await self._retention_slot(slot)\n",
                "",
            ),
        ),
        pytest.param(
            "redis",
            marks=pytest.mark.fails_on_mutant(
                "a wrong clock is not reported",
                "app/stores/redis_health.py",
                "        if self.has_wrong_clock:\n            direction",
                "        if False:\n            direction",
            ),
        ),
    ],
)
async def test_a_fast_clock_deletes_no_history(kind: str, tmp_path: Path) -> None:
    assert (await fast_clock(tmp_path, kind, days=20)).violations == []


@pytest.mark.fails_on_mutant(
    "eviction is not reported", "app/stores/redis_health.py", "        if self.evicts:\n", "        if False:\n"
)
@pytest.mark.parametrize("policy", ["volatile-lru", "allkeys-lru"])
async def test_a_redis_that_evicts_is_reported(policy: str, tmp_path: Path) -> None:
    assert (await eviction(tmp_path, policy, names=5000)).violations == []


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
@pytest.mark.fails_on_mutant(
    "any zone is accepted", "app/stores/base.py", "    if not is_same_zone(stored, configured):\n", "    if False:\n"
)
async def test_a_node_with_another_time_zone_does_not_start(kind: str, tmp_path: Path) -> None:
    assert (await other_zone(tmp_path, kind, starts=2)).violations == []


@pytest.mark.fails_on_mutant(
    "hits are dropped if Redis is full",
    "app/stores/spool_file.py",
    "await asyncio.to_thread(self.files[-1].append, line)",
    "pass",
)
async def test_a_full_redis_loses_nothing(tmp_path: Path) -> None:
    assert (await full_redis(tmp_path, times=2, maxmemory=4_000_000)).violations == []


@pytest.mark.fails_on_mutant(
    "no limit on names in an outage",
    "app/stores/last_known.py",
    "        super().__init__(limits)\n",
    "        super().__init__(StoreLimits(10**9))\n",
)
async def test_names_have_a_limit_while_redis_is_down(tmp_path: Path) -> None:
    assert (await offline_names(tmp_path, names=30_000, limit=5000)).violations == []
