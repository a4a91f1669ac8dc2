"""Rejections: overflow, the limit on event names, and groups that are atomic or not."""

import pytest

from app import corrections
from app.domain.buckets import ALL_EVENTS
from app.domain.counting import COUNT_MAX, HitGroup, IdempotencyKey, Visit
from app.stores.base import CounterStore
from app.stores.results import GroupResult, Value, reject
from tests.stores.contract.support import LATER, NOON, ONE_SHARD_NAMES, StoreMaker, commit_of, on_every_store, read_day


async def test_a_group_that_overflows_is_rejected_and_the_others_count(store: CounterStore) -> None:
    await store.apply("s", 0, 1, commit_of({"a": COUNT_MAX - 1}))
    result = await store.apply("s", 1, 2, commit_of({"b": 1, "a": 2}, {"a": 1}, {"c": 1}))
    assert result.groups == [
        reject("overflow"),
        GroupResult({"a": Value(COUNT_MAX, COUNT_MAX)}),
        GroupResult({"c": Value(1, 1)}),
    ]
    assert set(await read_day(store)) == {"a", "c", ALL_EVENTS}
    retry = await store.apply("s", 1, 2, commit_of({"b": 1, "a": 2}, {"a": 1}, {"c": 1}))
    assert retry.groups == result.groups


VISITS_OF_REJECTED_HITS = pytest.mark.fails_on_mutant(
    "visits of rejected hits are counted", "app/stores/rules.py", "if visit.event in counted", "if True"
)


@on_every_store(
    memory=VISITS_OF_REJECTED_HITS,
    sqlite=pytest.mark.fails_on_mutant(
        "results are saved in another order than the group's",
        "app/stores/results.py",
        "    for event in group.amounts:\n",
        "    for event in {**result.values, **result.rejected}:\n",
    ),
    redis=pytest.mark.fails_on_mutant(
        "visits of rejected hits are counted",
        "app/stores/lua/count.lua",
        "if not rejections[visit[1]] then",
        "if true then",
    ),
)
async def test_events_of_a_group_that_is_not_atomic_are_rejected_one_by_one_with_their_visits(
    store: CounterStore,
) -> None:
    await store.apply("s", 0, 1, commit_of({"a": COUNT_MAX - 1}))
    visits = [Visit(event, 1, "ann", None) for event in "abc"]
    commit = [HitGroup(NOON, {"b": 1, "a": 2, "c": 3}, visits=visits, atomic=False), *commit_of({"a": 1})]
    result = await store.apply("s", 1, 2, commit)
    partial = GroupResult({"b": Value(1, 1), "c": Value(3, 3)}, {"a": "overflow"})
    assert result.groups == [partial, GroupResult({"a": Value(COUNT_MAX, COUNT_MAX)})]
    assert await store.apply("s", 1, 2, commit) == result
    assert await read_day(store) == {"a": COUNT_MAX, "b": 1, "c": 3, ALL_EVENTS: COUNT_MAX + 4}
    assert await store.visits("user", "ann", [NOON.day]) == [{"b": 1, "c": 1}]


async def test_the_limit_on_names_is_exact_for_a_group_that_is_not_atomic(make_store: StoreMaker) -> None:
    a, b, c, d, e, *_ = ONE_SHARD_NAMES
    store = make_store(names=3)
    await store.open()
    await store.apply("s", 0, 1, commit_of({a: 1}))
    group = HitGroup(NOON, dict.fromkeys([a, b, c, d, e], 1), atomic=False)
    result = await store.apply("s", 1, 2, [group, *commit_of({b: 1}, {a: 1, d: 1})])
    partial = GroupResult({a: Value(2, 2), b: Value(1, 1), c: Value(1, 1)}, dict.fromkeys([d, e], "full"))
    assert result.groups == [partial, GroupResult({b: Value(2, 2)}), reject("full")]
    unlimited = await store.apply("s", 2, 3, [group.only([d, e])])
    assert unlimited.groups == [GroupResult({d: Value(1, 1), e: Value(1, 1)})]
    await store.close()


@on_every_store(
    cluster=pytest.mark.fails_on_mutant(
        "each group of a commit may use all that is left",
        "app/stores/lua/count.lua",
        "    prepare_group(slot, events, amounts, rejections)\n",
        "",
    )
)
async def test_the_limit_on_names_is_exact_for_the_groups_of_a_commit(make_store: StoreMaker) -> None:
    """Groups of several events or with keys are prepared in a cluster, and may not exceed the limit together."""
    store = make_store(names=5)
    await store.open()
    names = iter(ONE_SHARD_NAMES)
    pairs = [HitGroup(NOON, {next(names): 1, next(names): 1}) for _ in range(10)]
    keyed = [HitGroup(NOON, {next(names): 1}, IdempotencyKey(f"{i:032}", "r", f"client {i}")) for i in range(10)]
    commit = [*pairs, *keyed, pairs[0]]
    result = await store.apply("s", 0, 1, commit)
    accepted = [index for index, group in enumerate(result.groups) if not group.rejected]
    assert accepted == [0, 1, 10, 20]
    assert {group.reason for group in result.groups} == {None, "full"}
    assert await store.apply("s", 0, 1, commit) == result
    assert len(await read_day(store)) == 5 + 1
    await store.close()


@on_every_store(
    redis=pytest.mark.fails_on_mutant(
        "a day's hits are not compared",
        "app/stores/lua/count.lua",
        "math.max(total_sum, slot.hits + most_added) + sum",
        "total_sum + sum",
    )
)
async def test_a_count_does_not_overflow_after_the_total_was_lowered(store: CounterStore) -> None:
    await store.apply("s", 0, 1, commit_of({"a": COUNT_MAX - 1}))
    change, _ = await corrections.correct(store, NOON, NOON.minute, "a", None, 5, 1000)
    await store.apply_change("s", 1, 2, change)
    result = await store.apply("s", 2, 3, commit_of({"a": 2}, {"a": 1}, {"b": 3}))
    assert result.groups == [
        reject("overflow"),
        GroupResult({"a": Value(COUNT_MAX, 6)}),
        GroupResult({"b": Value(3, 3)}),
    ]


async def test_a_total_does_not_overflow_on_a_later_day(store: CounterStore) -> None:
    await store.apply("s", 0, 1, commit_of({"a": COUNT_MAX}))
    result = await store.apply("s", 1, 2, commit_of({"a": 1}, slot=LATER))
    assert result.groups == [reject("overflow")]


async def test_the_limit_on_names_is_exact_and_existing_names_still_count(make_store: StoreMaker) -> None:
    a, b, c, d, e, *_ = ONE_SHARD_NAMES
    store = make_store(names=3)
    await store.open()
    result = await store.apply("s", 0, 1, commit_of({a: 1, b: 1}, {c: 1, d: 1}, {c: 1}, {d: 1}, {a: 1}))
    assert result.groups[1:4] == [reject("full"), GroupResult({c: Value(1, 1)}), reject("full")]
    assert result.groups[4] == GroupResult({a: Value(2, 2)})
    unlimited = await store.apply("s", 1, 2, commit_of({d: 1}, slot=LATER, limited=False))
    assert unlimited.groups == [GroupResult({d: Value(1, 1)})]
    assert (await store.apply("s", 2, 3, commit_of({e: 1}))).groups == [reject("full")]
    await store.close()
