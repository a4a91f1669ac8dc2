"""kill -9 of a node or its Redis under load loses no acknowledged hit, according to the history checker."""

import asyncio
from pathlib import Path

import pytest

from tests.support.load import Load, assert_exact, read_all
from tests.support.scenarios import ALWAYS, EVERYSEC, NEVER
from tests.support.scenarios.changes import SHARDS, cut_changes
from tests.support.scenarios.kills import kill_node, kill_redis
from tests.support.servers import eventually


@pytest.mark.fails_on_mutant(
    "responses before the commit",
    "app/group_commit.py",
    "            applied = await self._apply(self._store.apply, pending.build(slot))\n",
    """            from app.stores.results import GroupResult, Value
            commit = pending.build(slot)
            zeros = [GroupResult({event: Value(0, 0) for event in group.amounts}) for group in commit]
            pending.resolve(ApplyResult(zeros, "disk"), slot.date)
            await asyncio.sleep(0.05)
            applied = await self._apply(self._store.apply, commit)
""",
)
@pytest.mark.fails_on_mutant(
    "idempotency keys are ignored", "app/http/parsing.py", "    if not texts:\n", "    if texts:\n"
)
@pytest.mark.parametrize("store", ["sqlite", "redis"])
async def test_kill_9_of_a_node_loses_no_acknowledged_hit_and_counts_none_twice(store: str, tmp_path: Path) -> None:
    figures = await kill_node(tmp_path, store, kills=5, hits=200)
    assert figures.violations == []
    assert figures.details["reads"] > 20


SPOOL_DROPPED = (
    "replay drops spooled commits",
    "app/stores/replay.py",
    "await self._replay_line(lines[replayed])",
    "pass",
)
LOSS_UNREPORTED = ("a loss is not reported", "app/stores/offline.py", "self._lost_commits += commits", "pass")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(ALWAYS, id="always", marks=pytest.mark.fails_on_mutant(*SPOOL_DROPPED)),
        pytest.param(EVERYSEC, id="everysec", marks=pytest.mark.fails_on_mutant(*SPOOL_DROPPED)),
        pytest.param(NEVER, id="never", marks=pytest.mark.fails_on_mutant(*LOSS_UNREPORTED)),
    ],
)
async def test_kill_9_of_redis_loses_only_unsynced_hits_and_reports_the_loss(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    figures = await kill_redis(tmp_path, options, kills=3, hits=300)
    assert figures.violations == []
    assert figures.details["spooled"] > 20
    assert bool(figures.lost) >= (options == NEVER)


async def test_sigterm_under_load_responds_to_every_counted_hit(process, tmp_path: Path) -> None:
    limits = {f"TALLY_{kind}_LIMIT": "100000/second" for kind in ("WRITE", "READ")}
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


@pytest.mark.fails_on_mutant(
    "a cut change stays unfinished",
    "app/stores/redis_sharded.py",
    '            await self._complete_changes()\n        return " ".join(epochs)',
    '            pass\n        return " ".join(epochs)',
)
async def test_kill_9_of_a_node_amid_a_change_of_a_cluster_leaves_it_complete_on_the_others(tmp_path: Path) -> None:
    assert (await cut_changes(tmp_path, range(4, SHARDS + 1, 12))).violations == []
