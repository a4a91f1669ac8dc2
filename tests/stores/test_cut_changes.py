"""A change in a cluster that a crash cuts between shards: any node completes it, once, and keeps newer hits."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from app import corrections
from app.domain.buckets import TOTAL, Bucket
from app.domain.calendar import Calendar
from app.domain.counting import BucketWrite, DayChange, HitGroup, Visit
from app.stores import rules
from app.stores.base import CounterStore, OutcomeUnknown, StoreLimits, WriteConflict
from app.stores.memory import MemoryStore
from app.stores.redis import RedisStore
from app.stores.redis_sharded import ShardedRedisStore
from app.stores.redis_url import RedisTarget
from tests.support.redis_servers import Cluster

pytestmark = pytest.mark.usefixtures("patience")

SHARDED = "app/stores/redis_sharded.py"
SHARDS = 16
NOON = Calendar(ZoneInfo("UTC")).slot(1_795_435_200)
NAMES = [f"event {i}" for i in range(40)]
FIRST = [HitGroup(NOON, {name: 5}, visits=[Visit(name, 5, "ann", None)]) for name in NAMES]
LATER = [HitGroup(NOON, {name: 2}) for name in NAMES]

Plan = Callable[[CounterStore], Awaitable[tuple[DayChange, Any]]]
PLANS: dict[str, Plan] = {
    "correct": lambda store: corrections.correct(store, NOON, NOON.minute, "event 7", 3, 4, 1000),
    "delete": lambda store: corrections.delete(store, NOON, NOON.minute, "event 7"),
    "reset": lambda store: corrections.reset(store, NOON, NOON.minute),
    "erase": lambda store: corrections.erase(store, NOON, "ann"),
}
# The shards that have the change when the node crashes. The first one is that of the correction log.
CUTS = {"first": range(1), "some": range(0, SHARDS, 3), "all but one": range(SHARDS - 1)}


@contextlib.asynccontextmanager
async def node(cluster: Cluster) -> AsyncIterator[ShardedRedisStore]:
    target = RedisTarget.from_url(cluster.url)
    store = ShardedRedisStore([RedisStore(target, StoreLimits(1000), shard) for shard in range(SHARDS)])
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def contents(store: CounterStore, buckets: Sequence[Bucket]) -> list[dict[str, int]]:
    return [{member: n for member, n in counts.items() if n} for counts in await store.read(buckets)]


async def unfinished(store: ShardedRedisStore) -> int:
    return len(await store._shards[0].unfinished_changes())


async def cut_change(cluster: Cluster, plan: Plan, shards: Sequence[int]) -> None:
    """Count hits, then crash when these shards have the change. If all have it, it is not removed yet."""
    async with node(cluster) as crashing:
        await crashing.apply("a", 0, 1, FIRST)
        change, _ = await plan(crashing)
        is_whole = len(shards) == SHARDS
        outcome = contextlib.nullcontext() if is_whole else pytest.raises(OutcomeUnknown)
        with cluster.writable(shards, forget_changes=not is_whole), outcome:
            await crashing.apply_change("a", 1, 2, change)


async def expected_store(plan: Plan) -> MemoryStore:
    store = MemoryStore(StoreLimits(1000))
    await store.apply("a", 0, 1, FIRST)
    await store.apply_change("a", 1, 2, (await plan(store))[0])
    await store.apply("b", 0, 1, LATER)
    return store


MUTANTS = {
    ("reset", "first"): pytest.mark.fails_on_mutant(
        "a cut change stays unfinished",
        SHARDED,
        '            await self._complete_changes()\n        return " ".join(epochs)',
        '            pass\n        return " ".join(epochs)',
    ),
    ("delete", "some"): pytest.mark.fails_on_mutant(
        "a completed change is kept",
        SHARDED,
        "from error\n            await self._shards[self._log_shard].finish_change(unfinished)\n",
        "from error\n",
    ),
    ("correct", "some"): pytest.mark.fails_on_mutant(
        "a change that some shards have is in the generation",
        "app/stores/redis_merging.py",
        "min(result.generations.get(day, 0) for result in results)",
        "max(result.generations.get(day, 0) for result in results)",
    ),
}


@pytest.mark.parametrize(
    ("action", "cut"),
    [
        pytest.param(action, cut, marks=MUTANTS.get((action, cut), ()))
        for action in PLANS
        for cut in (*CUTS, "all, not removed")
    ],
)
async def test_another_node_completes_a_cut_change_and_keeps_newer_hits(
    redis_cluster: Cluster, action: str, cut: str
) -> None:
    plan = PLANS[action]
    await cut_change(redis_cluster, plan, CUTS.get(cut, range(SHARDS)))
    expected = await expected_store(plan)
    async with node(redis_cluster) as other:
        applied = await other.apply("b", 0, 1, LATER)
        if cut in CUTS:
            assert applied.generations == {}  # until all shards have the change
        with redis_cluster.writable(range(0, SHARDS, 2)):  # it crashes, too
            await other.refresh()
        assert await unfinished(other) == 1
    async with node(redis_cluster) as last:
        await last.refresh()
        assert await unfinished(last) == 0
        await last.refresh()
        buckets = [bucket for bucket in await expected.list_buckets() if not bucket.dimension.startswith("sketch:")]
        assert await contents(last, buckets) == await contents(expected, buckets)
        records = await corrections.history(last, NOON.day)
        assert [record.action for record in records] == [action] * (action != "erase")


@pytest.mark.fails_on_mutant(
    "a change is planned on half of another one",
    SHARDED,
    "if any(bucket.dimension == CORRECTION_LOG for bucket in buckets):",
    "if False:",
)
async def test_the_next_change_is_planned_when_a_cut_one_is_complete(redis_cluster: Cluster) -> None:
    await cut_change(redis_cluster, PLANS["reset"], CUTS["first"])
    async with node(redis_cluster) as other:
        change, record = await PLANS["correct"](other)
        assert (record.generation, record.before.count) == (2, 0)
        await other.apply_change("b", 0, 1, change)
        assert await other.counts(NOON.day, ["event 7"]) == {"event 7": 3}


@pytest.mark.fails_on_mutant(
    "unfinished changes are not limited", "app/stores/lua/write.lua", "UNFINISHED_MAX = 16", "UNFINISHED_MAX = 17"
)
@pytest.mark.fails_on_mutant(
    "an unfinished change outlives the offset of its source",
    "app/stores/lua/write.lua",
    "math.floor(ARGV[6] / 2)",
    "ARGV[6]",
)
async def test_unfinished_changes_are_limited_and_expire(redis_cluster: Cluster) -> None:
    async with node(redis_cluster) as store:
        change, _ = await PLANS["erase"](store)
        with redis_cluster.writable(CUTS["first"]):
            for number in range(16):
                with pytest.raises(OutcomeUnknown):
                    await store.apply_change(f"source {number}", 0, 1, change)
            with pytest.raises(WriteConflict):
                await store.apply_change("one too many", 0, 1, change)
        ttl = await store._shards[0]._client.ttl("tally:{0}:unfinished")
        assert 0 < ttl <= rules.SOURCE_TTL_SECONDS // 2
        await store.refresh()
        assert await unfinished(store) == 0


@pytest.mark.fails_on_mutant(
    "the next change of a source is removed, too",
    "app/stores/redis_scripts.py",
    'return f"{self.source} {self.new_offset}"',
    "return self.source",
)
async def test_a_node_that_is_late_to_complete_a_change_keeps_the_next_one(
    redis_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node(redis_cluster) as crashing, node(redis_cluster) as late:
        await crashing.apply("a", 0, 1, FIRST)
        change, _ = await PLANS["correct"](crashing)
        with redis_cluster.writable(CUTS["first"]), pytest.raises(OutcomeUnknown):
            await crashing.apply_change("a", 1, 2, change)
        found = await late._shards[0].unfinished_changes()
        await crashing.apply_change("a", 1, 2, change)
        change, _ = await PLANS["reset"](crashing)
        with redis_cluster.writable(CUTS["first"]), pytest.raises(OutcomeUnknown):
            await crashing.apply_change("a", 2, 3, change)
        with monkeypatch.context() as earlier:
            earlier.setattr(late._shards[0], "unfinished_changes", lambda: asyncio.sleep(0, found))
            await late.refresh()
        assert await unfinished(late) == 1
        await late.refresh()
        assert await late.counts(NOON.day, NAMES) == {}


async def test_an_import_is_not_completed_by_other_nodes(redis_cluster: Cluster) -> None:
    """Its sender repeats it: see the offsets of an import."""
    write = BucketWrite("add", TOTAL, dict.fromkeys(NAMES, 1))
    async with node(redis_cluster) as store:
        change = DayChange(NOON, [write], may_be_late=True)
        with redis_cluster.writable(CUTS["some"]), pytest.raises(OutcomeUnknown):
            await store.apply_change("import", 0, 1, change)
        assert await unfinished(store) == 0
        await store.apply_change("import", 0, 1, change)
        assert await contents(store, [TOTAL]) == [{**dict.fromkeys(NAMES, 1), "": len(NAMES)}]
