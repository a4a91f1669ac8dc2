"""Commits, reads and pruning: which buckets a hit adds to, and which values a commit returns."""

import asyncio

import pytest

from app.domain.buckets import ALL_EVENTS, TOTAL, Bucket
from app.stores.base import CounterStore, StoreStatus
from app.stores.results import GroupResult, Value
from tests.stores.contract.support import LATER, NOON, commit_of, on_every_store, read_day


async def test_an_empty_store_has_no_counts(store: CounterStore) -> None:
    assert await store.read([Bucket("day", NOON.day), TOTAL]) == [{}, {}]
    assert await store.read([Bucket("minute", NOON.minute)], ["a"]) == [{}]
    assert store.status() == StoreStatus(store.ack)


async def test_a_commit_returns_the_values_after_each_group(store: CounterStore) -> None:
    result = await store.apply("s", 0, 1, commit_of({"a": 2}, {"a": 1, "b": 5}))
    assert result.groups == [GroupResult({"a": Value(2, 2)}), GroupResult({"a": Value(3, 3), "b": Value(5, 5)})]
    assert result.ack == store.ack


async def test_a_hit_adds_to_every_bucket_of_its_slot_and_to_all_events(store: CounterStore) -> None:
    await store.apply("s", 0, 1, commit_of({"a": 2}, {"b": 3}))
    for counts in await store.read(NOON.buckets):
        assert counts == {"a": 2, "b": 3, ALL_EVENTS: 5}
    assert await store.read([Bucket("hour", NOON.hour), Bucket("hour", LATER.hour)], ["b", "never"]) == [{"b": 3}, {}]


async def test_a_new_day_starts_at_0_and_the_total_continues(store: CounterStore) -> None:
    await store.apply("s", 0, 1, commit_of({"a": 2}))
    result = await store.apply("s", 1, 2, commit_of({"a": 1}, slot=LATER))
    assert result.groups == [GroupResult({"a": Value(1, 3)})]
    assert await read_day(store) == {"a": 2, ALL_EVENTS: 2}
    assert await read_day(store, LATER) == {"a": 1, ALL_EVENTS: 1}


@pytest.mark.parametrize(
    "name", ["é", "👩‍💻", "a b", "a\\b", "'; DROP TABLE day; --", '"', "{0}", "*", "total", "x" * 128]
)
async def test_event_names_may_have_any_characters(store: CounterStore, name: str) -> None:
    await store.apply("s", 0, 1, commit_of({name: 1, "other": 2}))
    assert await store.read([TOTAL], [name]) == [{name: 1}]
    assert (await read_day(store))[name] == 1


async def test_a_commit_may_have_ten_thousand_events(store: CounterStore) -> None:
    amounts = {f"name {i}": i + 1 for i in range(10_000)}
    result = await store.apply("s", 0, 1, commit_of(amounts, limited=False))
    assert result.groups == [GroupResult({name: Value(by, by) for name, by in amounts.items()})]
    assert len(await read_day(store)) == 10_001


@on_every_store(
    redis=pytest.mark.fails_on_mutant(
        "only the first page is read",
        "app/stores/redis_reads.py",
        "            if cursor == 0:\n",
        "            if True:\n",
    )
)
async def test_a_long_bucket_is_read_as_a_whole_while_new_names_are_counted(store: CounterStore) -> None:
    await store.apply("s", 0, 1, commit_of({f"name {i}": 1 for i in range(400)}, limited=False))
    reading = asyncio.gather(*(read_day(store) for _ in range(5)))
    for i in range(1, 30):  # a hash table that grows is scanned in another order, and some of it twice
        names = {f"name {i * 400 + j}": 1 for j in range(400)}
        await store.apply("s", i, i + 1, commit_of(names, limited=False))
        await asyncio.sleep(0)
    for counts in await reading:
        assert counts.keys() >= {ALL_EVENTS, *(f"name {i}" for i in range(400))}
        assert all(count == 1 for event, count in counts.items() if event)
    assert len(await read_day(store)) == 30 * 400 + 1


async def test_prune_deletes_the_buckets_before_each_cutoff(store: CounterStore) -> None:
    await store.apply("s", 0, 1, commit_of({"a": 1, "b": 1}))
    await store.apply("s", 1, 2, commit_of({"a": 1}, slot=LATER))
    days = [Bucket("day", NOON.day), Bucket("day", LATER.day), Bucket("day", 0)]
    assert await store.sizes(days) == [2, 1, 0]
    for _ in range(2):
        await store.prune({"minute": LATER.minute, "hour": LATER.hour, "day": NOON.day}, LATER)
    assert await store.read(NOON.buckets) == [{}, {}, {"a": 1, "b": 1, ALL_EVENTS: 2}, {"a": 2, "b": 1, ALL_EVENTS: 3}]
    assert await store.read(LATER.buckets[:3]) == [{"a": 1, ALL_EVENTS: 1}] * 3
    await store.prune({"day": LATER.day}, LATER)
    assert await store.sizes(days) == [0, 1, 0]
