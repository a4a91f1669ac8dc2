"""Idempotency keys: replays, expiry and limits."""

import msgspec
import pytest

from app.domain.counting import HitGroup, IdempotencyKey
from app.stores import rules
from app.stores.base import CounterStore
from app.stores.results import GroupResult, Value, reject
from tests.stores.contract.support import (
    CALENDAR,
    NOON,
    ONE_SHARD_NAMES,
    UNSHARDED_STORES,
    StoreMaker,
    commit_of,
    keyed_commit,
    on_every_store,
    read_day,
)

A, B = (IdempotencyKey(letter * 32, letter * 32, "client") for letter in "ab")


async def test_a_key_counts_once_and_replays_its_first_result(store: CounterStore) -> None:
    first = await store.apply("s", 0, 1, keyed_commit(A, 5))
    assert first.groups == [GroupResult({"a": Value(5, 5)})]
    await store.apply("s", 1, 2, commit_of({"a": 100}))
    for offset, source in ((2, "s"), (0, "another node")):
        replay = await store.apply(source, offset, offset + 1, keyed_commit(A, 5))
        assert replay.groups == [GroupResult({"a": Value(5, 5)}, {}, NOON.date)]
        assert (await store.apply(source, offset, offset + 1, keyed_commit(A, 5))).groups == replay.groups
    assert (await read_day(store))["a"] == 105


async def test_a_key_that_occurs_twice_in_a_commit_counts_once(store: CounterStore) -> None:
    result = await store.apply("s", 0, 1, [HitGroup(NOON, {"a": 1, "b": 2}, A)] * 3)
    values = {"a": Value(1, 1), "b": Value(2, 2)}
    replay = GroupResult(values, {}, NOON.date)
    assert result.groups == [GroupResult(values), replay, replay]


async def test_a_group_without_hits_can_have_a_key(store: CounterStore) -> None:
    for offset, expected in enumerate([GroupResult(), GroupResult({}, {}, NOON.date)]):
        assert (await store.apply("s", offset, offset + 1, [HitGroup(NOON, {}, A)])).groups == [expected]


async def test_a_key_is_replayed_after_midnight_and_expires_after_24_hours(store: CounterStore) -> None:
    tomorrow = CALENDAR.slot(NOON.minute + 86_400 - 60)
    later = CALENDAR.slot(NOON.minute + 86_400)
    await store.apply("s", 0, 1, keyed_commit(A))
    replay = GroupResult({"a": Value(1, 1)}, {}, NOON.date)
    assert (await store.apply("s", 1, 2, keyed_commit(A, slot=tomorrow))).groups == [replay]
    assert (await store.apply("s", 2, 3, keyed_commit(A, slot=later))).groups == [GroupResult({"a": Value(1, 2)})]
    replay = GroupResult({"a": Value(1, 2)}, {}, later.date)
    assert (await store.apply("s", 3, 4, keyed_commit(A, slot=later))).groups == [replay]


async def test_a_key_of_another_request_is_rejected(store: CounterStore) -> None:
    await store.apply("s", 0, 1, keyed_commit(A))
    other = keyed_commit(A._replace(request="f" * 32), by=2, event="b")
    assert (await store.apply("s", 1, 2, other)).groups == [reject("mismatch")]
    assert "b" not in await read_day(store)


@on_every_store(
    cluster=pytest.mark.fails_on_mutant(
        "a rejected group keeps its claim",
        "app/stores/lua/count.lua",
        "for _, key in ipairs(released_keys) do release_claim(key) end",
        "",
    )
)
async def test_a_key_of_a_rejected_group_is_not_saved(make_store: StoreMaker) -> None:
    known, new, *_ = ONE_SHARD_NAMES
    store = make_store(names=1, keys=10)
    await store.open()
    await store.apply("s", 0, 1, commit_of({known: 1}))
    for offset in (1, 2):
        rejected = await store.apply("s", offset, offset + 1, keyed_commit(A, event=new))
        assert rejected.groups == [reject("full")]
        assert await store.apply("s", offset, offset + 1, keyed_commit(A, event=new)) == rejected
    other_request = keyed_commit(A._replace(request="x" * 32), event=known)
    assert (await store.apply("s", 3, 4, other_request)).groups == [GroupResult({known: Value(2, 2)})]
    assert (await store.apply("s", 4, 5, keyed_commit(A, event=new))).groups == [reject("mismatch")]
    replay = GroupResult({known: Value(2, 2)}, {}, NOON.date)
    assert (await store.apply("s", 5, 6, other_request)).groups == [replay]
    await store.close()


@on_every_store(UNSHARDED_STORES)
async def test_a_client_may_have_a_tenth_of_the_live_keys(make_store: StoreMaker) -> None:
    store = make_store(keys=20)
    await store.open()
    results = []
    for i in range(30):
        key = IdempotencyKey(f"{i:032}", "r", f"client {i // 3}")  # ten clients with three keys each
        results += (await store.apply("s", i, i + 1, keyed_commit(key))).groups
    assert [i for i, result in enumerate(results) if result == reject("keys")] == list(range(2, 30, 3))
    assert (await store.apply("s", 30, 31, keyed_commit(A))).groups == [reject("keys")]
    unlimited = await store.apply("s", 31, 32, keyed_commit(A, limited=False))
    assert unlimited.groups == [GroupResult({"a": Value(21, 21)})]
    later = CALENDAR.slot(NOON.minute + 90_000)
    assert (await store.apply("s", 32, 33, keyed_commit(B, slot=later))).groups == [GroupResult({"a": Value(1, 22)})]
    await store.close()


@on_every_store(
    memory=pytest.mark.fails_on_mutant(
        "a long result is saved", "app/stores/rules.py", "len(result.values) <= RESULT_EVENTS_MAX", "True"
    ),
    redis=pytest.mark.fails_on_mutant(
        "Redis saves a long result", "app/stores/lua/count.lua", "#events > RESULT_EVENTS_MAX and '[]' or row", "row"
    ),
)
async def test_a_replay_of_many_events_has_their_present_values(store: CounterStore) -> None:
    """Their first values are not saved, because they could fill the memory. They are counted once all the same."""
    many = {f"e{i:04}": 1 for i in range(16 * (rules.RESULT_EVENTS_MAX + 50))}
    group = HitGroup(NOON, many, A, limited=False)
    assert (await store.apply("s", 0, 1, [group])).groups[0].is_counted
    await store.apply("s", 1, 2, commit_of(dict.fromkeys(many, 5), limited=False))
    (replay,) = (await store.apply("s", 2, 3, [group])).groups
    assert replay == GroupResult(dict.fromkeys(many, Value(6, 6)), {}, NOON.date)
    tomorrow = CALENDAR.slot(NOON.minute + 86_400 - 60)
    (replay,) = (await store.apply("s", 3, 4, [msgspec.structs.replace(group, slot=tomorrow)])).groups
    assert replay == GroupResult(dict.fromkeys(many, Value(0, 6)), {}, tomorrow.date)
    assert set((await read_day(store)).values()) <= {6, 6 * len(many)}
