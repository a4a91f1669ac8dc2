"""What every CounterStore promises; a further store is one more parameter."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app import corrections as changes
from app.domain.buckets import ALL_EVENTS, TOTAL, Bucket
from app.domain.calendar import Calendar, TimeSlot
from app.domain.counting import COUNT_MAX, BucketWrite, Commit, DayChange, HitGroup, IdempotencyKey, Visit
from app.stores import hyperloglog, rules, sqlite
from app.stores import redis as redis_store
from app.stores import redis_sharded as tags
from app.stores.base import Cardinality, CounterStore, OffsetMismatch, StoreLimits, StoreStatus, WriteConflict
from app.stores.memory import MemoryStore
from app.stores.offline import OfflineStore
from app.stores.redis import RedisStore, server
from app.stores.redis_sharded import ShardedRedisStore
from app.stores.results import ApplyResult, GroupResult, Value, reject
from app.stores.rules import VISITOR_MINUTES_TTL_SECONDS
from app.stores.sqlite import SqliteStore
from tests.support.redis_servers import Cluster, RedisServer

NOON = Calendar(ZoneInfo("UTC")).slot(1_795_435_200)
LATER = Calendar(ZoneInfo("UTC")).slot(1_795_435_200 + 86_400)
MakeStore = Callable[..., CounterStore]


ONE_SERVER = ["memory", "sqlite", "redis", "spooled"]
DURABLE = ["sqlite", "redis", "spooled", "cluster"]


@pytest.fixture(params=["memory", *DURABLE])
def make_store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeStore:
    kind = request.param
    for module in redis_store, tags:  # what a store answers in the end is asked here, on a machine as busy as it likes
        monkeypatch.setattr(module, "ANSWER_SECONDS", 30)
    cluster: Cluster = request.getfixturevalue("redis_cluster") if kind == "cluster" else None
    redis: RedisServer = request.getfixturevalue("redis_server") if kind in {"redis", "spooled"} else None

    def make(names: int = 1000, keys: int = 1000) -> CounterStore:
        caps = StoreLimits(names, keys)
        match kind:
            case "memory":
                return MemoryStore(caps)
            case "sqlite":
                return SqliteStore(tmp_path / "tally.db", caps)
            case "redis":
                return RedisStore(server(redis.url), caps)
            case "cluster":
                way = server(cluster.url)
                return ShardedRedisStore([RedisStore(way, caps, tag) for tag in range(way.tags)])
        return OfflineStore(RedisStore(server(redis.url), caps), "test", tmp_path / "spool", 10**6)

    def flush() -> None:
        (tmp_path / "tally.db").unlink(missing_ok=True)
        for servers in (cluster, redis):
            if servers:
                servers.flush()

    def seconds_left() -> dict[str, int]:
        """All keys of a Redis, and for how many seconds each is kept."""
        found = {}
        for one in cluster.masters() if cluster else [redis] if redis else []:
            with one.client() as client:
                found |= {key: client.ttl(key) for key in client.scan_iter()}
        return found

    make.flush, make.seconds_left = flush, seconds_left
    return make


@pytest.fixture
async def store(make_store: MakeStore) -> AsyncIterator[CounterStore]:
    store = make_store()
    await store.open()
    yield store
    await store.close()


def batch(*counts: dict[str, int], slot: TimeSlot = NOON, limited: bool = True) -> Commit:
    return [HitGroup(slot, c, limited=limited) for c in counts]


async def read_day(store: CounterStore, slot: TimeSlot = NOON) -> dict[str, int]:
    (counts,) = await store.read([Bucket("day", slot.day)])
    return counts


async def test_where_a_source_stands_is_told_and_stays(store: CounterStore) -> None:
    assert await store.get_offset("kafka t 0") == 0
    await store.apply("kafka t 0", 0, 7, batch({"a": 1}, {"b": 2}))
    assert [await store.get_offset("kafka t 0") for _ in range(2)] == [7, 7]
    with pytest.raises(OffsetMismatch):
        await store.apply("kafka t 0", 0, 5, batch({"a": 1}))
    assert (await read_day(store))["a"] == 1


@pytest.mark.catches(
    "a partition that is forgotten", "app/stores/sqlite_writer.py", " AND substr(name, 1, ?) <> ?", " AND ? <> ?"
)
async def test_sqlite_keeps_a_partition_for_good(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "tally.db", StoreLimits(1000))
    await store.open()
    await store.apply("kafka t 0", 0, 7, batch({"a": 1}))
    years_later = Calendar(ZoneInfo("UTC")).slot(NOON.minute + 1000 * 86_400)
    await store.apply("another", 0, 1, batch({"a": 1}, slot=years_later))
    assert await store.get_offset("kafka t 0") == 7
    await store.close()


@pytest.mark.catches(
    "a position that expires", "app/stores/lua/offset.lua", "if ARGV[6] ~= '0' then", "if ARGV[6] then"
)
async def test_redis_keeps_a_partition_for_good_and_a_process_for_a_month(redis_server: RedisServer) -> None:
    store = RedisStore(server(redis_server.url), StoreLimits(1000))
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
    assert store.status() == StoreStatus(store.ack)


async def test_apply_answers_the_values_after_each_posting(store: CounterStore) -> None:
    applied = await store.apply("s", 0, 1, batch({"a": 2}, {"a": 1, "b": 5}))
    assert applied.groups == [GroupResult({"a": Value(2, 2)}), GroupResult({"a": Value(3, 3), "b": Value(5, 5)})]
    assert applied.ack == store.ack


async def test_every_bucket_of_the_moment_is_counted_and_the_sum_of_all(store: CounterStore) -> None:
    await store.apply("s", 0, 1, batch({"a": 2}, {"b": 3}))
    for counts in await store.read(NOON.buckets):
        assert counts == {"a": 2, "b": 3, ALL_EVENTS: 5}
    assert await store.read([Bucket("hour", NOON.hour), Bucket("hour", LATER.hour)], ["b", "never"]) == [{"b": 3}, {}]


async def test_a_new_day_begins_at_0_and_the_total_goes_on(store: CounterStore) -> None:
    await store.apply("s", 0, 1, batch({"a": 2}))
    applied = await store.apply("s", 1, 2, batch({"a": 1}, slot=LATER))
    assert applied.groups == [GroupResult({"a": Value(1, 3)})]
    assert await read_day(store) == {"a": 2, ALL_EVENTS: 2}
    assert await read_day(store, LATER) == {"a": 1, ALL_EVENTS: 1}


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
    with pytest.raises(OffsetMismatch) as moved:
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
    assert applied.groups == [
        reject("overflow"),
        GroupResult({"a": Value(COUNT_MAX, COUNT_MAX)}),
        GroupResult({"c": Value(1, 1)}),
    ]
    assert set(await read_day(store)) == {"a", "c", ALL_EVENTS}
    again = await store.apply("s", 1, 2, batch({"b": 1, "a": 2}, {"a": 1}, {"c": 1}))
    assert again.groups == applied.groups


@pytest.mark.parametrize(
    "make_store",
    [
        pytest.param(
            "memory",
            marks=pytest.mark.catches(
                "visits of refused hits", "app/stores/rules.py", "if visit.event in counted", "if True"
            ),
        ),
        pytest.param(
            "sqlite",
            marks=[
                pytest.mark.catches(
                    "visits of refused hits", "app/stores/rules.py", "if visit.event in counted", "if True"
                ),
                pytest.mark.catches(
                    "answers in an order of their own",
                    "app/stores/results.py",
                    "    for event in group.amounts:\n",
                    "    for event in {**result.values, **result.rejected}:\n",
                ),
            ],
        ),
        pytest.param(
            "redis",
            marks=pytest.mark.catches(
                "visits of refused hits", "app/stores/lua/count.lua", "if not out[marks[m]] then", "if true then"
            ),
        ),
        "spooled",
        "cluster",
    ],
    indirect=True,
)
async def test_events_apart_are_refused_each_by_itself_and_so_are_their_visits(store: CounterStore) -> None:
    await store.apply("s", 0, 1, batch({"a": COUNT_MAX - 1}))
    visits = [Visit(event, 1, "ann", None) for event in "abc"]
    work = [HitGroup(NOON, {"b": 1, "a": 2, "c": 3}, visits=visits, atomic=False), *batch({"a": 1})]
    applied = await store.apply("s", 1, 2, work)
    apart = GroupResult({"b": Value(1, 1), "c": Value(3, 3)}, {"a": "overflow"})
    assert applied.groups == [apart, GroupResult({"a": Value(COUNT_MAX, COUNT_MAX)})]
    assert await store.apply("s", 1, 2, work) == applied
    assert await read_day(store) == {"a": COUNT_MAX, "b": 1, "c": 3, ALL_EVENTS: COUNT_MAX + 4}
    assert await store.visits("user", "ann", [NOON.day]) == [{"b": 1, "c": 1}]


@pytest.mark.parametrize("make_store", ONE_SERVER, indirect=True)
async def test_the_cap_on_names_is_exact_for_events_apart(make_store: MakeStore) -> None:
    store = make_store(names=3)
    await store.open()
    await store.apply("s", 0, 1, batch({"a": 1}))
    many = HitGroup(NOON, dict.fromkeys("abcde", 1), atomic=False)
    applied = await store.apply("s", 1, 2, [many, *batch({"b": 1}, {"a": 1, "d": 1})])
    apart = GroupResult({"a": Value(2, 2), "b": Value(1, 1), "c": Value(1, 1)}, dict.fromkeys("de", "full"))
    assert applied.groups == [apart, GroupResult({"b": Value(2, 2)}), reject("full")]
    late = await store.apply("s", 2, 3, [many.only("de")])
    assert late.groups == [GroupResult({"d": Value(1, 1), "e": Value(1, 1)})]
    await store.close()


async def test_a_total_may_not_overflow_on_a_later_day_either(store: CounterStore) -> None:
    await store.apply("s", 0, 1, batch({"a": COUNT_MAX}))
    applied = await store.apply("s", 1, 2, batch({"a": 1}, slot=LATER))
    assert applied.groups == [reject("overflow")]


@pytest.mark.parametrize("make_store", ONE_SERVER, indirect=True)
async def test_the_cap_on_names_is_exact_and_known_names_go_on(make_store: MakeStore) -> None:
    store = make_store(names=3)
    await store.open()
    applied = await store.apply("s", 0, 1, batch({"a": 1, "b": 1}, {"c": 1, "d": 1}, {"c": 1}, {"d": 1}, {"a": 1}))
    assert applied.groups[1:4] == [reject("full"), GroupResult({"c": Value(1, 1)}), reject("full")]
    assert applied.groups[4] == GroupResult({"a": Value(2, 2)})
    late = await store.apply("s", 1, 2, batch({"d": 1}, slot=LATER, limited=False))
    assert late.groups == [GroupResult({"d": Value(1, 1)})]
    assert (await store.apply("s", 2, 3, batch({"e": 1}))).groups == [reject("full")]
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
    applied = await store.apply("s", 0, 1, batch(counts, limited=False))
    assert applied.groups == [GroupResult({name: Value(by, by) for name, by in counts.items()})]
    assert len(await read_day(store)) == 10_001


async def test_200_sources_at_once_lose_nothing(store: CounterStore) -> None:
    await asyncio.gather(*(store.apply(f"s{i}", 0, 1, batch({"a": 1}, {"b": i + 1})) for i in range(200)))
    assert await read_day(store) == {"a": 200, "b": 20_100, ALL_EVENTS: 20_300}


ONE_PAGE = pytest.mark.catches(
    "a page of many", "app/stores/redis.py", "            if cursor == 0:\n", "            if True:\n"
)


@pytest.mark.parametrize(
    "make_store", ["memory", "sqlite", pytest.param("redis", marks=ONE_PAGE), "spooled", "cluster"], indirect=True
)
async def test_a_long_bucket_is_read_as_a_whole_while_names_come_and_hits_are_counted(store: CounterStore) -> None:
    await store.apply("s", 0, 1, batch({f"name {i}": 1 for i in range(400)}, limited=False))
    reading = asyncio.gather(*(read_day(store) for _ in range(5)))
    for i in range(1, 30):  # a table that grows is gone through in another order, and some of it twice
        await store.apply("s", i, i + 1, batch({f"name {i * 400 + j}": 1 for j in range(400)}, limited=False))
        await asyncio.sleep(0)
    for counts in await reading:
        assert counts.keys() >= {ALL_EVENTS, *(f"name {i}" for i in range(400))}
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
    assert await read_day(store) == {"a": 3, ALL_EVENTS: 3}
    with pytest.raises(OffsetMismatch):
        await store.apply("s", 5, 6, batch({"a": 1}))
    assert (await store.apply("s", 0, 1, batch({"a": 3}))).groups == [GroupResult({"a": Value(3, 3)})]
    await store.close()


A, B = (IdempotencyKey(letter * 32, letter * 32, "o") for letter in "ab")


def keyed(key: IdempotencyKey, by: int = 1, slot: TimeSlot = NOON, event: str = "a", limited: bool = True) -> Commit:
    return [HitGroup(slot, {event: by}, key, limited)]


async def test_a_key_counts_once_and_gets_its_first_answer_again(store: CounterStore) -> None:
    first = await store.apply("s", 0, 1, keyed(A, 5))
    assert first.groups == [GroupResult({"a": Value(5, 5)})]
    await store.apply("s", 1, 2, batch({"a": 100}))
    for offset, source in ((2, "s"), (0, "another node")):
        again = await store.apply(source, offset, offset + 1, keyed(A, 5))
        assert again.groups == [GroupResult({"a": Value(5, 5)}, {}, NOON.date)]
        assert (await store.apply(source, offset, offset + 1, keyed(A, 5))).groups == again.groups
    assert (await read_day(store))["a"] == 105


async def test_a_key_twice_in_one_batch_counts_once(store: CounterStore) -> None:
    applied = await store.apply("s", 0, 1, [HitGroup(NOON, {"a": 1, "b": 2}, A)] * 3)
    values = {"a": Value(1, 1), "b": Value(2, 2)}
    replay = GroupResult(values, {}, NOON.date)
    assert applied.groups == [GroupResult(values), replay, replay]


async def test_an_empty_batch_can_have_a_key(store: CounterStore) -> None:
    for offset, answer in enumerate([GroupResult(), GroupResult({}, {}, NOON.date)]):
        assert (await store.apply("s", offset, offset + 1, [HitGroup(NOON, {}, A)])).groups == [answer]


async def test_a_key_is_remembered_over_midnight_and_for_a_day(store: CounterStore) -> None:
    tomorrow = Calendar(ZoneInfo("UTC")).slot(NOON.minute + 86_400 - 60)
    later = Calendar(ZoneInfo("UTC")).slot(NOON.minute + 86_400)
    await store.apply("s", 0, 1, keyed(A))
    replayed = GroupResult({"a": Value(1, 1)}, {}, NOON.date)
    assert (await store.apply("s", 1, 2, keyed(A, slot=tomorrow))).groups == [replayed]
    assert (await store.apply("s", 2, 3, keyed(A, slot=later))).groups == [GroupResult({"a": Value(1, 2)})]
    replayed = GroupResult({"a": Value(1, 2)}, {}, later.date)
    assert (await store.apply("s", 3, 4, keyed(A, slot=later))).groups == [replayed]


async def test_a_key_of_another_request_is_refused(store: CounterStore) -> None:
    await store.apply("s", 0, 1, keyed(A))
    other = keyed(A._replace(request="f" * 32), by=2, event="b")
    assert (await store.apply("s", 1, 2, other)).groups == [reject("mismatch")]
    assert "b" not in await read_day(store)


async def test_a_refused_posting_is_not_remembered(make_store: MakeStore) -> None:
    store = make_store(names=1)
    await store.open()
    await store.apply("s", 0, 1, batch({"x": 1}))
    assert (await store.apply("s", 1, 2, keyed(A))).groups == [reject("full")]
    assert (await store.apply("s", 2, 3, keyed(A, event="x"))).groups == [GroupResult({"x": Value(2, 2)})]
    await store.close()


@pytest.mark.parametrize("make_store", ONE_SERVER, indirect=True)
async def test_live_keys_are_bounded_a_tenth_for_one_client_and_then_expire(make_store: MakeStore) -> None:
    store = make_store(keys=20)
    await store.open()
    answers = []
    for i in range(30):
        key = IdempotencyKey(f"{i:032}", "r", f"o{i // 3}")  # ten clients with three keys each
        answers += (await store.apply("s", i, i + 1, keyed(key))).groups
    assert [i for i, answer in enumerate(answers) if answer == reject("keys")] == list(range(2, 30, 3))
    assert (await store.apply("s", 30, 31, keyed(A))).groups == [reject("keys")]
    assert (await store.apply("s", 31, 32, keyed(A, limited=False))).groups == [GroupResult({"a": Value(21, 21)})]
    later = Calendar(ZoneInfo("UTC")).slot(NOON.minute + 90_000)
    assert (await store.apply("s", 32, 33, keyed(B, slot=later))).groups == [GroupResult({"a": Value(1, 22)})]
    await store.close()


async def test_sizes_and_pruning(store: CounterStore) -> None:
    await store.apply("s", 0, 1, batch({"a": 1, "b": 1}))
    await store.apply("s", 1, 2, batch({"a": 1}, slot=LATER))
    days = [Bucket("day", NOON.day), Bucket("day", LATER.day), Bucket("day", 0)]
    assert await store.sizes(days) == [2, 1, 0]
    for _ in range(2):
        await store.prune({"minute": LATER.minute, "hour": LATER.hour, "day": NOON.day}, LATER)
    assert await store.read(NOON.buckets) == [{}, {}, {"a": 1, "b": 1, ALL_EVENTS: 2}, {"a": 2, "b": 1, ALL_EVENTS: 3}]
    assert await store.read(LATER.buckets[:3]) == [{"a": 1, ALL_EVENTS: 1}] * 3
    await store.prune({"day": LATER.day}, LATER)
    assert await store.sizes(days) == [0, 1, 0]


def visited(*visits: tuple[str, str | None, str | None], slot: TimeSlot = NOON, event: str = "a") -> Commit:
    """One posting of these visits, each (event, user, session)."""
    return [HitGroup(slot, {event: len(visits)}, visits=[Visit(e, 1, user, session) for e, user, session in visits])]


def of(kind: str, event: str, bucket: Bucket) -> Bucket:
    return bucket._replace(dimension=f"{kind}:{event}")


async def test_visitors_are_counted_by_event_and_day_and_all_together(store: CounterStore) -> None:
    minute, _, day, _ = NOON.buckets
    tomorrow = Bucket("day", LATER.day)
    await store.apply("s", 0, 1, visited(("a", "ann", "1"), ("a", "ann", "2"), ("a", "a/b", None), ("a", None, "1")))
    await store.apply("s", 1, 2, visited(("b", "Zoë", None), event="b"))
    await store.apply("s", 2, 3, visited(("a", "ann", None), ("a", "eve", "9"), slot=LATER))
    assert await store.read([of("user", "a", day), of("session", "a", day), of("user", "a", TOTAL)]) == [
        {"ann": 2, "a/b": 1},
        {"1": 2, "2": 1},
        {"ann": 3, "a/b": 1, "eve": 1},
    ]
    error = 0.0 if store.kind in {"memory", "sqlite"} else hyperloglog.ERROR
    for buckets, number in (
        ([of("user", "a", day)], 2),
        ([of("user", "a", day), of("user", "a", tomorrow)], 3),
        ([of("user", ALL_EVENTS, day)], 3),
        ([of("user", ALL_EVENTS, day), of("user", ALL_EVENTS, tomorrow)], 4),
        ([of("session", ALL_EVENTS, minute)], 2),
        ([of("user", "never", day)], 0),
    ):
        assert await store.count_distinct(buckets) == Cardinality(number, error), buckets
    days = [NOON.day, LATER.day]
    assert await store.visits("user", "ann", days) == [{"a": 2}, {"a": 1}]
    assert await store.visits("user", "Zoë", days) == [{"b": 1}, {}]
    assert await store.visits("session", "1", days) == [{"a": 2}, {}]
    assert await store.visits("session", "ann", days) == [{}, {}]


RANKED_AT_ONCE = pytest.mark.catches(
    "a cap for each batch",
    "app/stores/sqlite_tables.py",
    "self._ranked[bucket] += len(uncounted) - len(unranked)",
    "pass",
)
UNRANKED = pytest.mark.catches("no cap", "app/stores/lua/offset.lua", "size < ranked_max or", "true or")


@pytest.mark.parametrize(
    "make_store",
    [
        "memory",
        pytest.param("sqlite", marks=RANKED_AT_ONCE),
        pytest.param("redis", marks=UNRANKED),
        "spooled",
        "cluster",
    ],
    indirect=True,
)
async def test_who_comes_after_the_first_is_only_known_to_have_come(
    store: CounterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "RANKED_VISITORS_MAX", 3)
    users = of("user", "a", Bucket("day", NOON.day))
    for offset, names in enumerate(("ab", "cdea", "edcb")):
        await store.apply("s", offset, offset + 1, visited(*(("a", name, None) for name in names)))
    (ranked,) = await store.read([users])
    assert {user: n for user, n in ranked.items() if n} == {"a": 2, "b": 2, "c": 2}
    assert (await store.count_distinct([users])).number == 5
    await store.apply_change("s", 3, 4, DayChange(NOON, [BucketWrite("take", users, {"b": 2})]))  # makes room for one
    await store.apply("s", 4, 5, visited(("a", "e", None), ("a", "d", None)))
    assert await store.read([users], ["e"]) == [{"e": 1}]
    (ranked,) = await store.read([users])
    assert {user: n for user, n in ranked.items() if n} == {"a": 2, "c": 2, "e": 1}


async def test_a_sketch_goes_on_in_any_store(store: CounterStore) -> None:
    users = of("user", "a", Bucket("day", NOON.day))
    theirs = hyperloglog.sketch(f"user {i}" for i in range(1000))
    for offset in range(2):  # to merge it again changes nothing
        write = BucketWrite("merge", users._replace(dimension=f"sketch:{users.dimension}"), theirs)
        await store.apply_change("s", offset, offset + 1, DayChange(NOON, [write]))
    (merged,) = await store.read([users._replace(dimension=f"sketch:{users.dimension}")])
    assert merged == theirs
    assert await store.count_distinct([users]) == Cardinality(hyperloglog.estimate(theirs), hyperloglog.ERROR)
    await store.apply("s", 2, 3, visited(*(("a", f"user {i}", None) for i in range(990, 1010))))
    everyone = hyperloglog.estimate(hyperloglog.sketch(f"user {i}" for i in range(1010)))
    assert await store.count_distinct([users]) == Cardinality(everyone, hyperloglog.ERROR)


async def changed(
    store: CounterStore, planned: Awaitable[tuple[DayChange, object]], source: str = "admin"
) -> ApplyResult:
    work, _ = await planned
    applied = await store.apply_change(source, 0, 1, work)
    await store.apply("between", 0, 1, batch({"z": 1}))
    assert await store.apply_change(source, 0, 1, work) == applied  # a retry does nothing, and says the same
    return applied


async def test_a_correction_is_of_the_day_and_of_the_next_hits_alone(store: CounterStore) -> None:
    await store.apply("s", 0, 1, batch({"a": 5}))
    applied = await changed(store, changes.correct(store, NOON, NOON.minute, "a", 2, None, 1000))
    assert applied == ApplyResult([], store.ack, {NOON.day: 1})
    assert await store.counts(NOON.day, ["a"]) == {"a": 2}
    (hits, total) = await store.read([Bucket("day", NOON.day), TOTAL], ["a"])
    assert (hits, total) == ({"a": 5}, {"a": 5})
    applied = await store.apply("s", 1, 2, [*batch({"a": 1}), *batch({"a": 1}, slot=LATER)])
    assert applied == ApplyResult(
        [GroupResult({"a": Value(3, 6)}), GroupResult({"a": Value(1, 7)})], store.ack, {NOON.day: 1}
    )
    assert (await store.apply("s", 1, 2, [*batch({"a": 1}), *batch({"a": 1}, slot=LATER)])) == applied


async def test_a_reset_takes_off_what_was_counted_and_late_hits_count_on(store: CounterStore) -> None:
    await store.apply("s", 0, 1, batch({"a": 5, "b": 1}))
    work, _ = await changes.reset(store, NOON, NOON.minute)
    await store.apply("s", 1, 2, batch({"a": 1}))  # came between the look and the reset, and so is after it
    assert (await store.apply_change("admin", 0, 1, work)).generations == {NOON.day: 1}
    assert await store.counts(NOON.day) == {"a": 1, ALL_EVENTS: 1}
    part = Bucket("day", NOON.day, f"part:{NOON.minute}")
    assert await store.read([part, TOTAL]) == [{"a": 5, "b": 1, ALL_EVENTS: 6}, {"a": 6, "b": 1, ALL_EVENTS: 7}]
    late = await store.apply("spooled", 0, 1, batch({"b": 4}, limited=False))
    assert late.groups == [GroupResult({"b": Value(4, 5)})]
    assert part in await store.list_buckets([NOON.day])


A_FEW = pytest.mark.catches(
    "only some are looked for", "app/stores/redis.py", "zip(plain[i:], await", "zip(plain, await"
)


@pytest.mark.parametrize(
    "make_store", ["memory", "sqlite", pytest.param("redis", marks=A_FEW), "spooled", "cluster"], indirect=True
)
async def test_a_deletion_leaves_nothing_but_a_line_in_the_log(
    store: CounterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "KEYS_AT_ONCE", 2)
    await store.apply("s", 0, 1, [*visited(("a", "ann", "1")), *batch({"b": 2})])
    await store.apply("s", 1, 2, visited(("a", "ann", "1"), slot=LATER))
    await changed(store, changes.reset(store, NOON, NOON.minute), "first")
    await changed(store, changes.delete(store, NOON, NOON.minute, "a"))
    for bucket in await store.list_buckets():
        (found,) = await store.read([bucket])
        assert "a" not in found, bucket
        assert bucket.dimension.partition(":")[2] != "a" or not found, bucket
    assert (await store.count_distinct([of("user", "a", TOTAL)])).number == 0
    (totals,) = await store.read([TOTAL])
    assert totals == {"b": 2, "z": 1, ALL_EVENTS: 3}
    told = [(logged.generation, logged.action, logged.event) for logged in await changes.history(store, NOON.day)]
    assert told == [(1, "reset", ""), (2, "delete", "a")]


ONE_TAG = pytest.mark.catches(
    "an erasure in one tag",
    "app/stores/redis_sharded.py",
    'if write.op == "take" or self._has(tag, write.bucket)',
    "if self._has(tag, write.bucket)",
)


@pytest.mark.parametrize(
    "make_store", ["memory", "sqlite", "redis", "spooled", pytest.param("cluster", marks=ONE_TAG)], indirect=True
)
async def test_an_erasure_leaves_no_id_and_every_count(store: CounterStore) -> None:
    await store.apply("s", 0, 1, visited(("a", "ann", "1"), ("a", "bob", None)))
    await store.apply("s", 1, 2, visited(("b", "ann", None), event="b", slot=LATER))
    applied = await changed(store, changes.erase(store, LATER, "ann"))
    assert applied.generations == {}
    for bucket in await store.list_buckets():
        if not bucket.dimension.startswith("sketch:"):
            assert "ann" not in (await store.read([bucket]))[0], bucket
    assert (await store.read([TOTAL], ["a", "b"])) == [{"a": 2, "b": 1}]


NO_LOOK = pytest.mark.catches(
    "two nodes change a day at once",
    "app/stores/lua/write.lua",
    "if after and redis.call('HLEN', prefix .. day .. ':log') ~= after then",
    "if false then",
)


@pytest.mark.parametrize(
    "make_store",
    ["memory", "sqlite", pytest.param("redis", marks=NO_LOOK), "spooled", pytest.param("cluster", marks=NO_LOOK)],
    indirect=True,
)
async def test_of_two_changes_worked_out_at_once_the_second_is_worked_out_anew(store: CounterStore) -> None:
    await store.apply("s", 0, 1, batch({"a": 5}))
    works = [(await changes.reset(store, NOON, NOON.minute + i))[0] for i in range(2)]
    await store.apply_change("one", 0, 1, works[0])
    with pytest.raises(WriteConflict):
        await store.apply_change("other", 0, 1, works[1])
    assert await store.counts(NOON.day) == {}
    again, _ = await changes.reset(store, NOON, NOON.minute + 1)
    assert (await store.apply_change("other", 0, 1, again)).generations == {NOON.day: 2}
    assert await store.counts(NOON.day) == {}


OUTLIVED = pytest.mark.catches(
    "a day's visitors outlive it",
    "app/stores/redis.py",
    "keys = [key for of in ofs for key in _listing(bucket._replace(dimension=of))]",
    "keys = []",
)
UNLISTED = pytest.mark.catches(
    "a bucket that nobody finds", "app/stores/lua/write.lua", "if of_events and #counts > 0 then", "if of_events then"
)


@pytest.mark.parametrize(
    "make_store",
    ["memory", "sqlite", pytest.param("redis", marks=OUTLIVED), "spooled", pytest.param("cluster", marks=UNLISTED)],
    indirect=True,
)
async def test_of_an_old_day_nothing_is_left(
    store: CounterStore, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "KEYS_AT_ONCE", 2)
    await store.apply("s", 0, 1, visited(("a", "ann", "1")))
    await changed(store, changes.correct(store, NOON, NOON.minute, "a", 7, None, 1000), "first")
    await changed(store, changes.reset(store, NOON, NOON.minute))
    await store.apply("s", 1, 2, visited(("a", "ann", "1"), slot=LATER))
    before = {"minute": LATER.minute, "hour": LATER.hour, "day": LATER.day}
    for _ in range(2):
        await store.prune(before, LATER)
    starts = {"minute": LATER.minute, "hour": LATER.hour, "day": LATER.day, "total": 0}
    assert {(b.step, b.start) for b in await store.list_buckets()} <= set(starts.items())
    assert await store.counts(NOON.day) == {}
    assert await changes.history(store, NOON.day) == []
    assert await store.read([of("user", "a", Bucket("day", LATER.day)), of("user", "a", TOTAL)]) == [
        {"ann": 1},
        {"ann": 2},
    ]
    assert [key for key in make_store.seconds_left() if f":{NOON.day}" in key or f":{NOON.minute}" in key] == []


@pytest.mark.parametrize("make_store", ["memory", "sqlite"], indirect=True)
async def test_who_came_in_which_minute_is_forgotten_soon(store: CounterStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "PRUNED_BUCKETS", 2)
    slots = [Calendar(ZoneInfo("UTC")).slot(NOON.minute + 60 * i) for i in range(5)]
    for i, slot in enumerate(slots):
        await store.apply("s", i, i + 1, visited(("a", "ann", "1"), slot=slot))
    soon = Calendar(ZoneInfo("UTC")).slot(slots[3].minute + VISITOR_MINUTES_TTL_SECONDS)
    await store.prune({"minute": NOON.minute, "hour": NOON.hour, "day": NOON.day}, soon)
    minutes = {bucket.start for bucket in await store.list_buckets() if bucket.step == "minute" and bucket.dimension}
    assert minutes == {slot.minute for slot in slots[3:]}
    counts = await store.read([Bucket("minute", slot.minute) for slot in slots], ["a"])
    assert counts == [{"a": 1}] * 5


@pytest.mark.parametrize("make_store", ["redis", "cluster"], indirect=True)
async def test_redis_forgets_by_itself_who_came_in_which_minute(store: CounterStore, make_store: MakeStore) -> None:
    await store.apply("s", 0, 1, visited(("a", "ann", "1")))
    lasting = {key: ttl for key, ttl in make_store.seconds_left().items() if f"minute:{NOON.minute}:" in key}
    assert len(lasting) == 6  # the counts and the estimates of its users, its sessions, and all sessions
    assert all(0 < ttl <= VISITOR_MINUTES_TTL_SECONDS for ttl in lasting.values())


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
        expected: dict[TimeSlot, dict[str, int]] = {NOON: {}, LATER: {}}
        for offset, (counts, retried, late) in enumerate(steps):
            slot = NOON if late else LATER
            for _ in range(1 + retried):
                await store.apply("s", offset, offset + 1, batch(counts, slot=slot))
            for event, by in [*counts.items(), (ALL_EVENTS, sum(counts.values()))]:
                expected[slot][event] = expected[slot].get(event, 0) + by
        for slot, counts in expected.items():
            found = await read_day(store, slot)
            assert {e: n for e, n in found.items() if n} == {e: n for e, n in counts.items() if n}
        (totals,) = await store.read([TOTAL])
        assert all(totals[e] == sum(day.get(e, 0) for day in expected.values()) for e in totals)
        await store.close()

    asyncio.run(run())
