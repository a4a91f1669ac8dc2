"""What every CounterStore promises; a further store is one more parameter."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from conftest import Cluster, RedisServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.events import COUNT_MAX, EVERYTHING, TOTAL, Batch, Bucket, Calendar, Key, Moment, Posting
from app.stores.base import Caps, Condition, CounterStore, Moved, OutcomeUnknown, Refused, Replayed, Value
from app.stores.memory import MemoryStore
from app.stores.redis import RedisStore, server
from app.stores.spool import SpooledStore
from app.stores.sqlite import SqliteStore
from app.stores.tags import TaggedStore

NOON = Calendar(ZoneInfo("UTC")).moment(1_795_435_200)
LATER = Calendar(ZoneInfo("UTC")).moment(1_795_435_200 + 86_400)
MakeStore = Callable[..., CounterStore]


ONE_SERVER = ["memory", "sqlite", "redis", "spooled"]
DURABLE = ["sqlite", "redis", "spooled", "cluster"]


@pytest.fixture(params=["memory", *DURABLE])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    kind = request.param
    cluster: Cluster = request.getfixturevalue("redis_cluster") if kind == "cluster" else None
    redis: RedisServer = request.getfixturevalue("redis_server") if kind in {"redis", "spooled"} else None

    def make(names: int = 1000, keys: int = 1000) -> CounterStore:
        caps = Caps(names, keys)
        match kind:
            case "memory":
                return MemoryStore(caps)
            case "sqlite":
                return SqliteStore(tmp_path / "tally.db", caps)
            case "redis":
                return RedisStore(server(redis.url), caps)
            case "cluster":
                way = server(cluster.url)
                return TaggedStore([RedisStore(way, caps, tag) for tag in range(way.tags)])
        return SpooledStore(RedisStore(server(redis.url), caps), "test", tmp_path / "spool", 10**6)

    def flush() -> None:
        (tmp_path / "tally.db").unlink(missing_ok=True)
        for servers in (cluster, redis):
            if servers:
                servers.flush()

    make.flush = flush
    return make


@pytest.fixture
async def store(make_store: MakeStore) -> AsyncIterator[CounterStore]:
    store = make_store()
    await store.open()
    yield store
    await store.close()


def batch(*counts: dict[str, int], moment: Moment = NOON, capped: bool = True) -> Batch:
    return [Posting(moment, c, capped=capped) for c in counts]


async def read_day(store: CounterStore, moment: Moment = NOON) -> dict[str, int]:
    (counts,) = await store.read([Bucket("day", moment.day)])
    return counts


async def test_where_a_source_stands_is_told_and_stays(store: CounterStore) -> None:
    assert await store.stands("kafka t 0") == 0
    await store.apply("kafka t 0", 0, 7, batch({"a": 1}, {"b": 2}))
    assert [await store.stands("kafka t 0") for _ in range(2)] == [7, 7]
    with pytest.raises(Moved):
        await store.apply("kafka t 0", 0, 5, batch({"a": 1}))
    assert (await read_day(store))["a"] == 1


@pytest.mark.catches(
    "a partition that is forgotten", "app/stores/sqlite.py", " AND substr(name, 1, ?) <> ?", " AND ? <> ?"
)
async def test_sqlite_keeps_a_partition_for_good(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "tally.db", Caps(1000))
    await store.open()
    await store.apply("kafka t 0", 0, 7, batch({"a": 1}))
    years_later = Calendar(ZoneInfo("UTC")).moment(NOON.minute + 1000 * 86_400)
    await store.apply("another", 0, 1, batch({"a": 1}, moment=years_later))
    assert await store.stands("kafka t 0") == 7
    await store.close()


@pytest.mark.catches("a position that expires", "app/stores/stand.lua", "if ARGV[6] ~= '0' then", "if ARGV[6] then")
async def test_redis_keeps_a_partition_for_good_and_a_process_for_a_month(redis_server: RedisServer) -> None:
    store = RedisStore(server(redis_server.url), Caps(1000))
    await store.open()
    for source in ("process", "kafka t 0"):
        await store.apply(source, 0, 1, batch({"a": 1}))
    await store.close()
    with redis_server.client() as client:
        left = [client.ttl(f"tally:{{0}}:source:{source}") for source in ("process", "kafka t 0")]
    assert left[0] > 29 * 86_400
    assert left[1] == -1


async def test_an_empty_store_reads_nothing(store: CounterStore) -> None:
    assert await store.read([Bucket("day", NOON.day), TOTAL]) == [{}, {}]
    assert await store.read([Bucket("minute", NOON.minute)], ["a"]) == [{}]
    assert store.condition() == Condition(store.ack)


async def test_apply_answers_the_values_after_each_posting(store: CounterStore) -> None:
    applied = await store.apply("s", 0, 1, batch({"a": 2}, {"a": 1, "b": 5}))
    assert applied.answers == [{"a": Value(2, 2)}, {"a": Value(3, 3), "b": Value(5, 5)}]
    assert applied.ack == store.ack


async def test_every_bucket_of_the_moment_is_counted_and_the_sum_of_all(store: CounterStore) -> None:
    await store.apply("s", 0, 1, batch({"a": 2}, {"b": 3}))
    for counts in await store.read(NOON.buckets):
        assert counts == {"a": 2, "b": 3, EVERYTHING: 5}
    assert await store.read([Bucket("hour", NOON.hour), Bucket("hour", LATER.hour)], ["b", "never"]) == [{"b": 3}, {}]


async def test_a_new_day_begins_at_0_and_the_total_goes_on(store: CounterStore) -> None:
    await store.apply("s", 0, 1, batch({"a": 2}))
    applied = await store.apply("s", 1, 2, batch({"a": 1}, moment=LATER))
    assert applied.answers == [{"a": Value(1, 3)}]
    assert await read_day(store) == {"a": 2, EVERYTHING: 2}
    assert await read_day(store, LATER) == {"a": 1, EVERYTHING: 1}


async def test_a_retry_is_counted_once_and_gets_the_first_answers(store: CounterStore) -> None:
    first = await store.apply("s", 0, 1, batch({"a": 2}, {}, {"b": 1}))
    await store.apply("other", 0, 1, batch({"a": 100}))
    assert await store.apply("s", 0, 1, batch({"a": 2}, {}, {"b": 1})) == first
    assert (await read_day(store))["a"] == 102


@pytest.mark.parametrize(("at", "next_offset"), [(0, 1), (3, 4), (7, 9)])
async def test_at_any_other_offset_the_caller_learns_where_the_store_stands(
    store: CounterStore, at: int, next_offset: int
) -> None:
    for offset in range(2):
        await store.apply("s", offset, offset + 1, batch({"a": 1}))
    with pytest.raises(Moved) as moved:
        await store.apply("s", at, next_offset, batch({"a": 1}))
    assert moved.value.offset == 2
    assert (await read_day(store))["a"] == 2


async def test_offsets_may_leap_as_kafkas_do(store: CounterStore) -> None:
    await store.apply("topic-0", 0, 500, batch({"a": 1}))
    await store.apply("topic-0", 500, 1234, batch({"a": 1}))
    assert (await read_day(store))["a"] == 2


async def test_a_posting_is_refused_whole_and_the_others_count(store: CounterStore) -> None:
    await store.apply("s", 0, 1, batch({"a": COUNT_MAX - 1}))
    applied = await store.apply("s", 1, 2, batch({"b": 1, "a": 2}, {"a": 1}, {"c": 1}))
    assert applied.answers == [Refused("overflow"), {"a": Value(COUNT_MAX, COUNT_MAX)}, {"c": Value(1, 1)}]
    assert set(await read_day(store)) == {"a", "c", EVERYTHING}
    again = await store.apply("s", 1, 2, batch({"b": 1, "a": 2}, {"a": 1}, {"c": 1}))
    assert again.answers == applied.answers


async def test_a_total_may_not_overflow_on_a_later_day_either(store: CounterStore) -> None:
    await store.apply("s", 0, 1, batch({"a": COUNT_MAX}))
    applied = await store.apply("s", 1, 2, batch({"a": 1}, moment=LATER))
    assert applied.answers == [Refused("overflow")]


@pytest.mark.parametrize("make_store", ONE_SERVER, indirect=True)
async def test_the_cap_on_names_is_exact_and_known_names_go_on(make_store: MakeStore) -> None:
    store = make_store(names=3)
    await store.open()
    applied = await store.apply("s", 0, 1, batch({"a": 1, "b": 1}, {"c": 1, "d": 1}, {"c": 1}, {"d": 1}, {"a": 1}))
    assert applied.answers[1:4] == [Refused("full"), {"c": Value(1, 1)}, Refused("full")]
    assert applied.answers[4] == {"a": Value(2, 2)}
    late = await store.apply("s", 1, 2, batch({"d": 1}, moment=LATER, capped=False))
    assert late.answers == [{"d": Value(1, 1)}]
    assert (await store.apply("s", 2, 3, batch({"e": 1}))).answers == [Refused("full")]
    await store.close()


@pytest.mark.parametrize(
    "name", ["é", "👩‍💻", "a b", "a\\b", "'; DROP TABLE day; --", '"', "{0}", "*", "total", "x" * 128]
)
async def test_hostile_names_are_names(store: CounterStore, name: str) -> None:
    await store.apply("s", 0, 1, batch({name: 1, "other": 2}))
    assert await store.read([TOTAL], [name]) == [{name: 1}]
    assert (await read_day(store))[name] == 1


async def test_a_batch_of_ten_thousand_names(store: CounterStore) -> None:
    counts = {f"name {i}": i + 1 for i in range(10_000)}
    applied = await store.apply("s", 0, 1, batch(counts, capped=False))
    assert applied.answers == [{name: Value(by, by) for name, by in counts.items()}]
    assert len(await read_day(store)) == 10_001


async def test_200_sources_at_once_lose_nothing(store: CounterStore) -> None:
    async def apply(i: int) -> None:
        while True:
            with contextlib.suppress(OutcomeUnknown):  # of a busy machine: whoever asks again is counted once
                await store.apply(f"s{i}", 0, 1, batch({"a": 1}, {"b": i + 1}))
                return

    await asyncio.gather(*map(apply, range(200)))
    assert await read_day(store) == {"a": 200, "b": 20_100, EVERYTHING: 20_300}


ONE_PAGE = pytest.mark.catches(
    "a page of many", "app/stores/redis.py", "            if cursor == 0:\n", "            if True:\n"
)


@pytest.mark.parametrize(
    "make_store", ["memory", "sqlite", pytest.param("redis", marks=ONE_PAGE), "spooled", "cluster"], indirect=True
)
async def test_a_long_bucket_is_read_as_a_whole_while_names_come_and_hits_are_counted(store: CounterStore) -> None:
    await store.apply("s", 0, 1, batch({f"name {i}": 1 for i in range(400)}, capped=False))
    reading = asyncio.gather(*(read_day(store) for _ in range(5)))
    for i in range(1, 30):  # a table that grows is gone through in another order, and some of it twice
        await store.apply("s", i, i + 1, batch({f"name {i * 400 + j}": 1 for j in range(400)}, capped=False))
        await asyncio.sleep(0)
    for counts in await reading:
        assert counts.keys() >= {EVERYTHING, *(f"name {i}" for i in range(400))}
        assert all(count == 1 for event, count in counts.items() if event)
    assert len(await read_day(store)) == 30 * 400 + 1


@pytest.mark.parametrize("make_store", DURABLE, indirect=True)
async def test_what_was_written_is_there_after_reopening(make_store: MakeStore) -> None:
    store = make_store()
    await store.open()
    await store.apply("s", 0, 1, batch({"a": 3}))
    await store.close()
    store = make_store()
    await store.open()
    assert await read_day(store) == {"a": 3, EVERYTHING: 3}
    with pytest.raises(Moved):
        await store.apply("s", 5, 6, batch({"a": 1}))
    assert (await store.apply("s", 0, 1, batch({"a": 3}))).answers == [{"a": Value(3, 3)}]
    await store.close()


A, B = (Key(letter * 32, letter * 32, "o") for letter in "ab")


def keyed(key: Key, by: int = 1, moment: Moment = NOON, event: str = "a", capped: bool = True) -> Batch:
    return [Posting(moment, {event: by}, key, capped)]


async def test_a_key_counts_once_and_gets_its_first_answer_again(store: CounterStore) -> None:
    first = await store.apply("s", 0, 1, keyed(A, 5))
    assert first.answers == [{"a": Value(5, 5)}]
    await store.apply("s", 1, 2, batch({"a": 100}))
    for offset, source in ((2, "s"), (0, "another node")):
        again = await store.apply(source, offset, offset + 1, keyed(A, 5))
        assert again.answers == [Replayed(NOON.date, {"a": Value(5, 5)})]
        assert (await store.apply(source, offset, offset + 1, keyed(A, 5))).answers == again.answers
    assert (await read_day(store))["a"] == 105


async def test_a_key_twice_in_one_batch_counts_once(store: CounterStore) -> None:
    applied = await store.apply("s", 0, 1, [Posting(NOON, {"a": 1, "b": 2}, A)] * 3)
    values = {"a": Value(1, 1), "b": Value(2, 2)}
    assert applied.answers == [values, Replayed(NOON.date, values), Replayed(NOON.date, values)]


async def test_an_empty_batch_can_have_a_key(store: CounterStore) -> None:
    for offset, answer in enumerate([{}, Replayed(NOON.date, {})]):
        assert (await store.apply("s", offset, offset + 1, [Posting(NOON, {}, A)])).answers == [answer]


async def test_a_key_is_remembered_over_midnight_and_for_a_day(store: CounterStore) -> None:
    tomorrow = Calendar(ZoneInfo("UTC")).moment(NOON.minute + 86_400 - 60)
    later = Calendar(ZoneInfo("UTC")).moment(NOON.minute + 86_400)
    await store.apply("s", 0, 1, keyed(A))
    replayed = Replayed(NOON.date, {"a": Value(1, 1)})
    assert (await store.apply("s", 1, 2, keyed(A, moment=tomorrow))).answers == [replayed]
    assert (await store.apply("s", 2, 3, keyed(A, moment=later))).answers == [{"a": Value(1, 2)}]
    replayed = Replayed(later.date, {"a": Value(1, 2)})
    assert (await store.apply("s", 3, 4, keyed(A, moment=later))).answers == [replayed]


async def test_a_key_of_another_request_is_refused(store: CounterStore) -> None:
    await store.apply("s", 0, 1, keyed(A))
    other = keyed(A._replace(request="f" * 32), by=2, event="b")
    assert (await store.apply("s", 1, 2, other)).answers == [Refused("mismatch")]
    assert "b" not in await read_day(store)


async def test_a_refused_posting_is_not_remembered(make_store: MakeStore) -> None:
    store = make_store(names=1)
    await store.open()
    await store.apply("s", 0, 1, batch({"x": 1}))
    assert (await store.apply("s", 1, 2, keyed(A))).answers == [Refused("full")]
    assert (await store.apply("s", 2, 3, keyed(A, event="x"))).answers == [{"x": Value(2, 2)}]
    await store.close()


@pytest.mark.parametrize("make_store", ONE_SERVER, indirect=True)
async def test_live_keys_are_bounded_a_tenth_for_one_client_and_then_expire(make_store: MakeStore) -> None:
    store = make_store(keys=20)
    await store.open()
    answers = []
    for i in range(30):
        key = Key(f"{i:032}", "r", f"o{i // 3}")  # ten clients with three keys each
        answers += (await store.apply("s", i, i + 1, keyed(key))).answers
    assert [i for i, answer in enumerate(answers) if answer == Refused("keys")] == list(range(2, 30, 3))
    assert (await store.apply("s", 30, 31, keyed(A))).answers == [Refused("keys")]
    assert (await store.apply("s", 31, 32, keyed(A, capped=False))).answers == [{"a": Value(21, 21)}]
    later = Calendar(ZoneInfo("UTC")).moment(NOON.minute + 90_000)
    assert (await store.apply("s", 32, 33, keyed(B, moment=later))).answers == [{"a": Value(1, 22)}]
    await store.close()


async def test_sizes_and_pruning(store: CounterStore) -> None:
    await store.apply("s", 0, 1, batch({"a": 1, "b": 1}))
    await store.apply("s", 1, 2, batch({"a": 1}, moment=LATER))
    days = [Bucket("day", NOON.day), Bucket("day", LATER.day), Bucket("day", 0)]
    assert await store.sizes(days) == [2, 1, 0]
    for _ in range(2):
        await store.prune({"minute": LATER.minute, "hour": LATER.hour, "day": NOON.day}, LATER)
    assert await store.read(NOON.buckets) == [{}, {}, {"a": 1, "b": 1, EVERYTHING: 2}, {"a": 2, "b": 1, EVERYTHING: 3}]
    assert await store.read(LATER.buckets[:3]) == [{"a": 1, EVERYTHING: 1}] * 3
    await store.prune({"day": LATER.day}, LATER)
    assert await store.sizes(days) == [0, 1, 0]


steps = st.lists(
    st.tuples(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 1000), max_size=3), st.booleans(), st.booleans()),
    max_size=12,
)


@given(steps)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_batches_with_any_retries_add_up(
    make_store: MakeStore, steps: list[tuple[dict[str, int], bool, bool]]
) -> None:
    async def run() -> None:
        make_store.flush()
        store = make_store()
        await store.open()
        expected: dict[Moment, dict[str, int]] = {NOON: {}, LATER: {}}
        for offset, (counts, retried, late) in enumerate(steps):
            moment = NOON if late else LATER
            for _ in range(1 + retried):
                await store.apply("s", offset, offset + 1, batch(counts, moment=moment))
            for event, by in [*counts.items(), (EVERYTHING, sum(counts.values()))]:
                expected[moment][event] = expected[moment].get(event, 0) + by
        for moment, counts in expected.items():
            found = await read_day(store, moment)
            assert {e: n for e, n in found.items() if n} == {e: n for e, n in counts.items() if n}
        (totals,) = await store.read([TOTAL])
        assert all(totals[e] == sum(day.get(e, 0) for day in expected.values()) for e in totals)
        await store.close()

    asyncio.run(run())
