"""Commits are applied exactly once: offsets, retries and sources."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.domain.buckets import ALL_EVENTS, TOTAL
from app.domain.calendar import TimeSlot
from app.stores.base import CounterStore, OffsetMismatch, StoreLimits
from app.stores.memory import MemoryStore
from app.stores.redis import RedisStore
from app.stores.redis_url import RedisTarget
from app.stores.results import GroupResult, Value
from app.stores.rules import SOURCE_TTL_SECONDS
from app.stores.sqlite import SqliteStore
from tests.stores.contract.support import (
    CALENDAR,
    DURABLE_STORES,
    LATER,
    NOON,
    StoreMaker,
    commit_of,
    on_every_store,
    read_day,
)
from tests.support.redis_servers import RedisServer


async def test_get_offset_returns_the_offset_of_the_last_commit(store: CounterStore) -> None:
    assert await store.get_offset("kafka t 0") == 0
    await store.apply("kafka t 0", 0, 7, commit_of({"a": 1}, {"b": 2}))
    assert [await store.get_offset("kafka t 0") for _ in range(2)] == [7, 7]
    with pytest.raises(OffsetMismatch):
        await store.apply("kafka t 0", 0, 5, commit_of({"a": 1}))
    assert (await read_day(store))["a"] == 1


@pytest.mark.fails_on_mutant(
    "a source moves backwards", "app/stores/rules.py", " or new_offset < offset)", " or new_offset < 0)"
)
async def test_a_source_of_sqlite_never_moves_backwards(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "tally.db", StoreLimits(1000))
    await store.open()
    await assert_never_backwards(store)
    await store.close()


@pytest.mark.fails_on_mutant(
    "a source moves backwards", "app/stores/lua/offset.lua", " or tonumber(new_offset) < tonumber(offset)", ""
)
async def test_a_source_of_redis_never_moves_backwards(redis_server: RedisServer) -> None:
    store = RedisStore(RedisTarget.from_url(redis_server.url), StoreLimits(1000))
    await store.open()
    await assert_never_backwards(store)
    await store.close()


async def test_a_source_never_moves_backwards(store: CounterStore) -> None:
    await assert_never_backwards(store)


async def assert_never_backwards(store: CounterStore) -> None:
    await store.apply("kafka t 0", 0, 1000, commit_of({"a": 1}))
    with pytest.raises(OffsetMismatch) as mismatch:
        await store.apply("kafka t 0", 1000, 990, commit_of({"a": 1}))
    assert mismatch.value.offset == await store.get_offset("kafka t 0") == 1000
    assert (await read_day(store))["a"] == 1


@pytest.mark.fails_on_mutant(
    "sources stay for ever", "app/stores/memory.py", "0 < used < slot.minute - SOURCE_TTL_SECONDS", "used < 0"
)
@pytest.mark.fails_on_mutant(
    "the offset of a partition is deleted",
    "app/stores/memory.py",
    " and not source.startswith(PERMANENT_SOURCE_PREFIX)",
    "",
)
async def test_the_memory_store_deletes_unused_sources_after_30_days() -> None:
    store = MemoryStore(StoreLimits(1000))
    month_later = CALENDAR.slot(NOON.minute + SOURCE_TTL_SECONDS + 60)
    for source in ("unused", "kafka t 0"):
        await store.apply(source, 0, 1, commit_of({"a": 1}))
    await store.apply("used", 0, 1, commit_of({"a": 1}, slot=month_later))
    await store.prune({}, month_later)
    assert [await store.get_offset(source) for source in ("unused", "kafka t 0", "used")] == [0, 1, 1]


async def test_a_source_of_commits_without_hits_keeps_its_offset(store: CounterStore) -> None:
    """It was seen to fail on memory and on SQLite, where such a commit has no time."""
    await store.apply("probe", 0, 1, [])
    await store.apply("other", 0, 1, commit_of({"a": 1}))
    await store.prune({}, NOON)
    assert await store.get_offset("probe") == 1


@on_every_store(DURABLE_STORES)
async def test_the_note_of_a_source_is_saved_with_its_offset(make_store: StoreMaker) -> None:
    store = make_store()
    await store.open()
    assert await store.get_note("kafka t 0") == ""
    await store.apply("kafka t 0", 0, 7, commit_of({"a": 1}), "first")
    with pytest.raises(OffsetMismatch):
        await store.apply("kafka t 0", 0, 9, commit_of({"a": 1}), "second")
    assert await store.get_note("kafka t 0") == "first"
    await store.apply("kafka t 0", 7, 9, commit_of({"a": 1}), "second")
    await store.apply("another", 0, 1, commit_of({"a": 1}), "third")
    await store.apply("kafka t 0", 7, 9, commit_of({"a": 1}), "a retry")
    await store.close()
    store = make_store()
    await store.open()
    assert [await store.get_note(source) for source in ("kafka t 0", "another")] == ["second", "third"]
    await store.close()


@pytest.mark.fails_on_mutant(
    "a partition's offset expires", "app/stores/sqlite_writer.py", " AND substr(name, 1, ?) <> ?", " AND ? <> ?"
)
async def test_sqlite_never_deletes_the_offset_of_a_partition(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "tally.db", StoreLimits(1000))
    await store.open()
    await store.apply("kafka t 0", 0, 7, commit_of({"a": 1}))
    centuries_later = CALENDAR.slot(NOON.minute + 1000 * 86_400)
    await store.apply("another", 0, 1, commit_of({"a": 1}, slot=centuries_later))
    assert await store.get_offset("kafka t 0") == 7
    await store.close()


@pytest.mark.fails_on_mutant(
    "a partition's offset expires", "app/stores/lua/offset.lua", "if ARGV[6] ~= '0' then", "if ARGV[6] then"
)
async def test_redis_never_expires_the_offset_of_a_partition(redis_server: RedisServer) -> None:
    store = RedisStore(RedisTarget.from_url(redis_server.url), StoreLimits(1000))
    await store.open()
    for source in ("process", "kafka t 0"):
        await store.apply(source, 0, 1, commit_of({"a": 1}))
    await store.close()
    with redis_server.client() as client:
        process, partition = (client.ttl(f"tally:{{0}}:source:{source}") for source in ("process", "kafka t 0"))
    assert process > 29 * 86_400
    assert partition == -1


async def test_a_retry_is_counted_once_and_returns_the_first_result(store: CounterStore) -> None:
    first = await store.apply("s", 0, 1, commit_of({"a": 2}, {}, {"b": 1}))
    await store.apply("other", 0, 1, commit_of({"a": 100}))
    assert await store.apply("s", 0, 1, commit_of({"a": 2}, {}, {"b": 1})) == first
    assert (await read_day(store))["a"] == 102


@pytest.mark.parametrize(("expected_offset", "new_offset"), [(0, 1), (3, 4), (7, 9)])
async def test_an_offset_mismatch_contains_the_offset_of_the_source(
    store: CounterStore, expected_offset: int, new_offset: int
) -> None:
    for offset in range(2):
        await store.apply("s", offset, offset + 1, commit_of({"a": 1}))
    with pytest.raises(OffsetMismatch) as mismatch:
        await store.apply("s", expected_offset, new_offset, commit_of({"a": 1}))
    assert mismatch.value.offset == 2
    assert (await read_day(store))["a"] == 2


async def test_offsets_may_skip_numbers_as_those_of_kafka_do(store: CounterStore) -> None:
    await store.apply("topic-0", 0, 500, commit_of({"a": 1}))
    await store.apply("topic-0", 500, 1234, commit_of({"a": 1}))
    assert (await read_day(store))["a"] == 2


async def test_200_concurrent_sources_lose_no_hit(store: CounterStore) -> None:
    await asyncio.gather(*(store.apply(f"s{i}", 0, 1, commit_of({"a": 1}, {"b": i + 1})) for i in range(200)))
    assert await read_day(store) == {"a": 200, "b": 20_100, ALL_EVENTS: 20_300}


@on_every_store(DURABLE_STORES)
async def test_a_reopened_store_has_its_counts_offsets_and_results(make_store: StoreMaker) -> None:
    store = make_store()
    await store.open()
    await store.apply("s", 0, 1, commit_of({"a": 3}))
    await store.close()
    store = make_store()
    await store.open()
    assert await read_day(store) == {"a": 3, ALL_EVENTS: 3}
    with pytest.raises(OffsetMismatch):
        await store.apply("s", 5, 6, commit_of({"a": 1}))
    assert (await store.apply("s", 0, 1, commit_of({"a": 3}))).groups == [GroupResult({"a": Value(3, 3)})]
    await store.close()


steps = st.lists(
    st.tuples(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 1000), max_size=3), st.booleans(), st.booleans()),
    max_size=12,
)


@given(steps)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_commits_with_any_retries_add_up(
    make_store: StoreMaker, steps: list[tuple[dict[str, int], bool, bool]]
) -> None:
    async def run() -> None:
        make_store.flush()
        store = make_store()
        await store.open()
        expected: dict[TimeSlot, dict[str, int]] = {NOON: {}, LATER: {}}
        for offset, (amounts, is_retried, is_late) in enumerate(steps):
            slot = NOON if is_late else LATER
            for _ in range(1 + is_retried):
                await store.apply("s", offset, offset + 1, commit_of(amounts, slot=slot))
            for event, by in [*amounts.items(), (ALL_EVENTS, sum(amounts.values()))]:
                expected[slot][event] = expected[slot].get(event, 0) + by
        for slot, counts in expected.items():
            found = await read_day(store, slot)
            assert {e: n for e, n in found.items() if n} == {e: n for e, n in counts.items() if n}
        (totals,) = await store.read([TOTAL])
        assert all(totals[e] == sum(day.get(e, 0) for day in expected.values()) for e in totals)
        await store.close()

    asyncio.run(run())
