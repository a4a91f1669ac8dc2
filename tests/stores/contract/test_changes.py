"""Administrative changes: corrections, resets, deletions, erased users, and conflicts between them."""

from typing import Any

import pytest

from app import corrections
from app.domain.buckets import ALL_EVENTS, TOTAL, Bucket
from app.stores import redis_reads
from app.stores.base import CounterStore, WriteConflict
from app.stores.results import ApplyResult, GroupResult, Value
from tests.stores.contract.support import (
    CALENDAR,
    LATER,
    NOON,
    StoreMaker,
    apply_planned,
    commit_of,
    on_every_store,
    visitors_of,
    visits_commit,
)


async def test_a_correction_changes_the_values_of_later_hits_of_that_day(store: CounterStore) -> None:
    await store.apply("s", 0, 1, commit_of({"a": 5}))
    result = await apply_planned(store, corrections.correct(store, NOON, NOON.minute, "a", 2, None, 1000))
    assert result == ApplyResult([], store.ack, {NOON.day: 1})
    assert await store.counts(NOON.day, ["a"]) == {"a": 2}
    hits, total = await store.read([Bucket("day", NOON.day), TOTAL], ["a"])
    assert (hits, total) == ({"a": 5}, {"a": 5})
    commit = [*commit_of({"a": 1}), *commit_of({"a": 1}, slot=LATER)]
    result = await store.apply("s", 1, 2, commit)
    groups = [GroupResult({"a": Value(3, 6)}), GroupResult({"a": Value(1, 7)})]
    assert result == ApplyResult(groups, store.ack, {NOON.day: 1})
    assert await store.apply("s", 1, 2, commit) == result


async def test_a_reset_subtracts_the_counts_it_was_planned_with(store: CounterStore) -> None:
    await store.apply("s", 0, 1, commit_of({"a": 5, "b": 1}))
    change, _ = await corrections.reset(store, NOON, NOON.minute)
    await store.apply("s", 1, 2, commit_of({"a": 1}))  # after the plan, so it counts as after the reset
    assert (await store.apply_change("admin", 0, 1, change)).generations == {NOON.day: 1}
    assert await store.counts(NOON.day) == {"a": 1, ALL_EVENTS: 1}
    before_reset = Bucket("day", NOON.day, f"part:{NOON.minute}")
    assert await store.read([before_reset, TOTAL]) == [{"a": 5, "b": 1, ALL_EVENTS: 6}, {"a": 6, "b": 1, ALL_EVENTS: 7}]
    late = await store.apply("spooled", 0, 1, commit_of({"b": 4}, limited=False))
    assert late.groups == [GroupResult({"b": Value(4, 5)})]
    assert before_reset in await store.list_buckets([NOON.day])


@on_every_store(
    redis=pytest.mark.fails_on_mutant(
        "the dimensions of the wrong buckets are read",
        "app/stores/redis_reads.py",
        "for bucket in buckets[i : i + KEYS_PER_CALL]:\n                pipe.scard",
        "for bucket in buckets[:KEYS_PER_CALL]:\n                pipe.scard",
    )
)
async def test_a_deletion_leaves_only_a_line_in_the_correction_log(
    store: CounterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_reads, "KEYS_PER_CALL", 2)
    await store.apply("s", 0, 1, [*visits_commit(("a", "ann", "1")), *commit_of({"b": 2})])
    await store.apply("s", 1, 2, visits_commit(("a", "ann", "1"), slot=LATER))
    await apply_planned(store, corrections.reset(store, NOON, NOON.minute), "first")
    await apply_planned(store, corrections.delete(store, NOON, NOON.minute, "a"))
    for bucket in await store.list_buckets():
        (counts,) = await store.read([bucket])
        assert "a" not in counts, bucket
        assert bucket.dimension.partition(":")[2] != "a" or not counts, bucket
    assert (await store.count_distinct([visitors_of("user", "a", TOTAL)])).number == 0
    (totals,) = await store.read([TOTAL])
    assert totals == {"b": 2, "z": 1, ALL_EVENTS: 3}
    history = await corrections.history(store, NOON.day)
    assert [(entry.generation, entry.action, entry.event) for entry in history] == [
        (1, "reset", ""),
        (2, "delete", "a"),
    ]


DELETED_LATER = pytest.mark.fails_on_mutant(
    "hits after the plan are deleted from some buckets",
    "app/corrections.py",
    "    found |= zip(recent, await store.read_at_once(recent, event), strict=True)\n",
    "",
)


ALL_IS_TAKEN = pytest.mark.fails_on_mutant(
    "later hits are deleted, too", "app/stores/rules.py", "min(by, max(count, 0))", "max(count, 0)"
)


@on_every_store(
    memory=ALL_IS_TAKEN,
    sqlite=ALL_IS_TAKEN,
    redis=DELETED_LATER,
    spooled=DELETED_LATER,
    cluster=pytest.mark.fails_on_mutant(
        "later hits are deleted, too",
        "app/stores/lua/write.lua",
        "math.min(counts[i + 1], math.max(count, 0))",
        "math.max(count, 0)",
    ),
)
async def test_hits_during_a_deletion_are_in_each_of_their_buckets_or_in_none(
    store: CounterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another node counts hits between any two reads of the plan, and before the change is applied."""
    read, offset, next_minute = store.read, 0, CALENDAR.slot(NOON.minute + 60)

    async def count_hits() -> None:
        nonlocal offset
        offset += 1
        await store.apply("other", offset - 1, offset, commit_of({"a": 3}, {"b": 1}))
        offset += 1
        await store.apply("other", offset - 1, offset, commit_of({"a": 1}, slot=next_minute))

    async def read_between_hits(*arguments: Any) -> Any:
        await count_hits()
        found = await read(*arguments)
        await count_hits()
        return found

    await store.apply("s", 0, 1, commit_of({"a": 5}))
    with monkeypatch.context() as during_the_plan:
        during_the_plan.setattr(store, "read", read_between_hits)
        change, record = await corrections.delete(store, NOON, NOON.minute, "a")
    counted_before = 5 + 4 * offset // 2
    assert record.before == Value(counted_before, counted_before)
    await count_hits()
    await store.apply_change("admin", 0, 1, change)
    minutes = [Bucket("minute", slot.minute) for slot in (NOON, next_minute)]
    found = await store.read([*minutes, *NOON.buckets[1:]], ["a", ALL_EVENTS])
    assert [counts["a"] for counts in found] == [3, 1, 4, 4, 4]
    events_b = offset // 2
    assert [counts[ALL_EVENTS] for counts in found] == [3 + events_b, 1, *[4 + events_b] * 3]
    assert await store.counts(NOON.day, ["a"]) == {"a": 4}


@on_every_store(
    cluster=pytest.mark.fails_on_mutant(
        "a user is erased in one shard only",
        "app/stores/redis_sharded.py",
        'if write.op == "take" or self._has_bucket(shard, write.bucket)',
        "if self._has_bucket(shard, write.bucket)",
    )
)
async def test_an_erased_user_is_in_no_bucket_and_the_counts_stay(store: CounterStore) -> None:
    await store.apply("s", 0, 1, visits_commit(("a", "ann", "1"), ("a", "bob", None)))
    await store.apply("s", 1, 2, visits_commit(("b", "ann", None), event="b", slot=LATER))
    result = await apply_planned(store, corrections.erase(store, LATER, "ann"))
    assert result.generations == {}
    for bucket in await store.list_buckets():
        if not bucket.dimension.startswith("sketch:"):
            assert "ann" not in (await store.read([bucket]))[0], bucket
    assert (await store.read([TOTAL], ["a", "b"])) == [{"a": 2, "b": 1}]


CONFLICT_IS_IGNORED = pytest.mark.fails_on_mutant(
    "two nodes change a day at the same time",
    "app/stores/lua/write.lua",
    "if expected_corrections and redis.call('HLEN', prefix .. day .. ':log') ~= expected_corrections then",
    "if false then",
)


@on_every_store(redis=CONFLICT_IS_IGNORED, cluster=CONFLICT_IS_IGNORED)
async def test_the_second_of_two_changes_planned_together_conflicts(store: CounterStore) -> None:
    await store.apply("s", 0, 1, commit_of({"a": 5}))
    first, second = [(await corrections.reset(store, NOON, NOON.minute + i))[0] for i in range(2)]
    await store.apply_change("one", 0, 1, first)
    with pytest.raises(WriteConflict):
        await store.apply_change("other", 0, 1, second)
    assert await store.counts(NOON.day) == {}
    planned_again, _ = await corrections.reset(store, NOON, NOON.minute + 1)
    assert (await store.apply_change("other", 0, 1, planned_again)).generations == {NOON.day: 2}
    assert await store.counts(NOON.day) == {}


@on_every_store(
    redis=pytest.mark.fails_on_mutant(
        "a day's visitors are not pruned",
        "app/stores/redis.py",
        "keys += [bucket_key(visitors), hll_key(visitors)]",
        "keys += [hll_key(visitors)]",
    ),
    cluster=pytest.mark.fails_on_mutant(
        "a bucket is in no list", "app/stores/lua/offset.lua", "if sum == amount and step", "if sum ~= amount and step"
    ),
)
async def test_prune_deletes_everything_about_an_old_day(
    store: CounterStore, make_store: StoreMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_reads, "KEYS_PER_CALL", 2)
    await store.apply("s", 0, 1, visits_commit(("a", "ann", "1")))
    await apply_planned(store, corrections.correct(store, NOON, NOON.minute, "a", 7, None, 1000), "first")
    await apply_planned(store, corrections.reset(store, NOON, NOON.minute))
    await store.apply("s", 1, 2, visits_commit(("a", "ann", "1"), slot=LATER))
    starts = {"minute": LATER.minute, "hour": LATER.hour, "day": LATER.day}
    for _ in range(2):
        await store.prune(starts, LATER)
    assert {(b.step, b.start) for b in await store.list_buckets()} <= {*starts.items(), ("total", 0)}
    assert await store.counts(NOON.day) == {}
    assert await corrections.history(store, NOON.day) == []
    buckets = [visitors_of("user", "a", Bucket("day", LATER.day)), visitors_of("user", "a", TOTAL)]
    assert await store.read(buckets) == [{"ann": 1}, {"ann": 2}]
    assert [key for key in make_store.key_ttls() if f":{NOON.day}" in key or f":{NOON.minute}" in key] == []
