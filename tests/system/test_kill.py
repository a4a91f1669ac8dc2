"""kill -9 in the middle of a load, of a node and of its Redis, seen by the checker."""

import asyncio
from pathlib import Path

import pytest

from tests.support.load import Load, assert_exact, read_all
from tests.support.scenarios import ALWAYS, EVERYSEC, NEVER
from tests.support.scenarios.killed import app_killed, redis_killed
from tests.support.servers import eventually


@pytest.mark.catches(
    "the answer before the commit",
    "app/group_commit.py",
    "            applied = await self._apply(self._store.apply, commit)\n",
    """            for waiter in waiters:
                values = {event: Value(0, 0) for event in waiter.amounts}
                _resolve(waiter, GroupResult(values), slot.date, "disk")
            await asyncio.sleep(0.05)
            applied = await self._apply(self._store.apply, commit)
""",
)
@pytest.mark.catches("missing dedup", "app/http/parsing.py", "    if not texts:\n", "    if texts:\n")
@pytest.mark.parametrize("store", ["sqlite", "redis"])
async def test_kill_9_loses_no_acknowledged_hit_and_counts_none_twice(store: str, tmp_path: Path) -> None:
    figures = await app_killed(tmp_path, store, kills=5, answers=200)
    assert figures.broken == []
    assert figures.also["reads"] > 20


DROPPED = (
    "the way back drops what it should send",
    "app/stores/offline.py",
    "await self._replay_line(lines[replayed])",
    "pass",
)
UNSAID = ("a loss is not said", "app/stores/offline.py", "self._lost_commits += commits", "pass")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(ALWAYS, id="always", marks=pytest.mark.catches(*DROPPED)),
        pytest.param(EVERYSEC, id="everysec", marks=pytest.mark.catches(*DROPPED)),
        pytest.param(NEVER, id="never", marks=pytest.mark.catches(*UNSAID)),
    ],
)
async def test_kill_9_of_redis_loses_only_what_redis_may_lose_and_that_is_said(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    figures = await redis_killed(tmp_path, options, kills=3, answers=300)
    assert figures.broken == []
    assert figures.also["spooled"] > 20
    assert bool(figures.lost) >= (options == NEVER)


async def test_sigterm_under_load_answers_every_hit_that_it_counts(process, tmp_path: Path) -> None:
    limits = {f"TALLY_{what}_LIMIT": "100000/second" for what in ("WRITE", "READ")}
    app = process(TALLY_STORE=f"sqlite:///{tmp_path}/tally.db", **limits)
    load = Load(app.url)
    running = asyncio.create_task(load.run())
    await eventually(lambda: load.acknowledged >= 300)
    assert await asyncio.to_thread(app.terminate) == 0
    await asyncio.to_thread(app.start)
    load.stop.set()
    await running
    assert_exact(load, await read_all(load, app))
    assert load.problems == []
