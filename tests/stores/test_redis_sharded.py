"""A store cut into tags: what concerns several of them is refused by all or by none, and counted once in each."""

import contextlib
from collections.abc import AsyncIterator
from zoneinfo import ZoneInfo

import pytest

from app.domain.buckets import ALL_EVENTS, TOTAL
from app.domain.calendar import Calendar
from app.domain.counting import COUNT_MAX, BucketWrite, DayChange, HitGroup, IdempotencyKey
from app.stores.base import OutcomeUnknown, StoreLimits, StoreOpenError, StoreUnavailable
from app.stores.redis import RedisStore, server
from app.stores.redis_sharded import ShardedRedisStore
from app.stores.results import GroupResult, Value, reject
from app.stores.rules import apply_despite_loss
from tests.support.redis_servers import Cluster

NOON = Calendar(ZoneInfo("UTC")).slot(1_795_435_200)
MANY = {f"event {i}": i + 1 for i in range(40)}  # in every tag some
KEY = IdempotencyKey("k" * 32, "r" * 32, "o")


def tagged(cluster: Cluster, names: int = 100, keys: int = 100) -> ShardedRedisStore:
    way = server(cluster.url)
    return ShardedRedisStore([RedisStore(way, StoreLimits(names, keys), tag) for tag in range(way.tags)])


@pytest.fixture
async def store(redis_cluster: Cluster) -> AsyncIterator[ShardedRedisStore]:
    store = tagged(redis_cluster)
    await store.open()
    yield store
    await store.close()


async def totals(store: ShardedRedisStore) -> dict[str, int]:
    (found,) = await store.read([TOTAL])
    return found


@pytest.mark.catches(
    "half refused", "app/stores/redis_sharded.py", "rejected = await self._ask(source, new_offset, commit)", "pass"
)
async def test_a_request_that_one_tag_refuses_is_counted_by_none(store: ShardedRedisStore) -> None:
    await store.apply("s", 0, 1, [HitGroup(NOON, {"event 7": COUNT_MAX})])
    applied = await store.apply("s", 1, 2, [HitGroup(NOON, {"b": 1}), HitGroup(NOON, MANY), HitGroup(NOON, {"c": 1})])
    assert applied.groups == [GroupResult({"b": Value(1, 1)}), reject("overflow"), GroupResult({"c": Value(1, 1)})]
    assert (
        await store.apply("s", 1, 2, [HitGroup(NOON, {"b": 1}), HitGroup(NOON, MANY), HitGroup(NOON, {"c": 1})])
    ) == applied
    assert await totals(store) == {"event 7": COUNT_MAX, "b": 1, "c": 1, ALL_EVENTS: COUNT_MAX + 2}


async def test_the_cap_on_names_holds_in_each_tag(redis_cluster: Cluster) -> None:
    store = tagged(redis_cluster, names=2)
    await store.open()
    applied = await store.apply("s", 0, 1, [HitGroup(NOON, {name: 1}) for name in MANY] + [HitGroup(NOON, MANY)])
    assert applied.groups[-1] == reject("full")
    assert len(await totals(store)) - 1 == sum(bool(result.values) for result in applied.groups) <= 2 * 16
    await store.close()


@pytest.mark.catches("no cap", "app/stores/redis_sharded.py", "(limited or not group.atomic)", "limited")
async def test_the_cap_on_names_holds_in_each_tag_for_events_apart(redis_cluster: Cluster) -> None:
    store = tagged(redis_cluster, names=1)
    await store.open()
    names = [f"event {i}" for i in range(200)]
    applied = await store.apply("s", 0, 1, [HitGroup(NOON, dict.fromkeys(names, 1), atomic=False)])
    (result,) = applied.groups
    assert result.values == {event: Value(1, 1) for event in result.values}
    assert result.rejected == {event: "full" for event in names if event not in result.values}
    assert await totals(store) == {**dict.fromkeys(result.values, 1), ALL_EVENTS: 16}
    await store.close()


@pytest.mark.catches(
    "no claim", "app/stores/redis_sharded.py", "                home.groups.append(", "                list().append("
)
async def test_a_key_belongs_to_one_request_even_if_another_has_no_event_in_common(store: ShardedRedisStore) -> None:
    await store.apply("s", 0, 1, [HitGroup(NOON, {"a": 1}, KEY)])
    others = [HitGroup(NOON, {f"event {i}": 1}, KEY._replace(request="x" * 32)) for i in range(40)]
    applied = await store.apply("s", 1, 2, others)
    assert applied.groups == [reject("mismatch")] * 40
    assert await totals(store) == {"a": 1, ALL_EVENTS: 1}


async def test_keys_are_bounded_where_they_are_claimed(redis_cluster: Cluster) -> None:
    store = tagged(redis_cluster, keys=10)
    await store.open()
    keys = [IdempotencyKey(f"{i:032}", "r", "one client") for i in range(100)]
    applied = await store.apply("s", 0, 1, [HitGroup(NOON, {"a": 1}, key) for key in keys])
    counted = [result for result in applied.groups if result.values]
    assert len(counted) == 16  # one of ten in each tag
    assert await totals(store) == {"a": 16, ALL_EVENTS: 16}
    await store.close()


@pytest.mark.parametrize("key", [None, KEY])
async def test_a_batch_that_some_tags_have_taken_is_finished(
    store: ShardedRedisStore, key: IdempotencyKey | None
) -> None:
    await store.apply("s", 0, 1, [HitGroup(NOON, {"a": 1})])
    batch = [HitGroup(NOON, MANY, key), HitGroup(NOON, {"a": 1})]
    await take_half(store, batch)
    answers = (await store.apply("s", 1, 2, batch)).groups
    assert answers == [
        GroupResult({event: Value(by, by) for event, by in MANY.items()}),
        GroupResult({"a": Value(2, 2)}),
    ]
    assert await totals(store) == MANY | {"a": 2, ALL_EVENTS: sum(MANY.values()) + 2}


async def test_a_keyed_retry_completes_what_a_crash_left_undone(store: ShardedRedisStore) -> None:
    await store.apply("s", 0, 1, [HitGroup(NOON, {"a": 1})])
    batch = [HitGroup(NOON, MANY, KEY)]
    await take_half(store, batch)  # then its process died; the client asks another
    for source, at in (("t", 0), ("t", 1), ("u", 0)):
        answers = (await store.apply(source, at, at + 1, batch)).groups
        assert answers == [GroupResult({event: Value(by, by) for event, by in MANY.items()}, {}, NOON.date)]
    assert await totals(store) == MANY | {"a": 1, ALL_EVENTS: sum(MANY.values()) + 1}


async def take_half(store: ShardedRedisStore, batch: list[HitGroup]) -> None:
    await store._ask("s", 2, batch)
    for inner, part in list(zip(store._stores, store._split(batch), strict=True))[::2]:
        await inner.apply("s", 1, 2, part.groups)


@pytest.mark.catches(
    "a lost part stops all",
    "app/stores/rules.py",
    "            offset = mismatch.offset  # new",
    "            raise  # new",
)
async def test_a_tag_that_went_back_takes_what_comes_and_the_loss_is_noted(
    store: ShardedRedisStore, redis_cluster: Cluster
) -> None:
    for offset in range(3):
        await store.apply("s", offset, offset + 1, [HitGroup(NOON, MANY)])
    lost: list[int] = []

    async def record_data_loss(batches: int) -> None:
        lost.append(batches)

    redis_cluster.masters()[0].flush()  # as if it had come back empty
    before = await totals(store)
    assert 0 < len(before) < len(MANY)
    applied = await apply_despite_loss(
        lambda offset: store.apply("s", offset, 4, [HitGroup(NOON, MANY)]), record_data_loss, 3, 4
    )
    assert applied
    assert lost == [3]
    assert {e: n for e, n in (await totals(store)).items() if e} == {
        event: before.get(event, 0) + by for event, by in MANY.items()
    }


@pytest.mark.catches(
    "keys untold", "app/stores/redis.py", "(len(all_keys), *all_keys, *arguments)", "(1, all_keys[0], *arguments)"
)
async def test_a_batch_that_meets_a_slot_on_the_move_is_not_half_counted(redis_cluster: Cluster) -> None:
    store = RedisStore(server(redis_cluster.url.replace("?tags=16", "")), StoreLimits(100))
    await store.open()
    await store.apply("s", 0, 1, [HitGroup(NOON, {"a": 1})])
    await store.apply_change(
        "s", 1, 2, DayChange(NOON, [BucketWrite("add", NOON.day_buckets[1], {"a": 5})])
    )  # else it is what is missed
    late = [HitGroup(NOON, {"a": 1}), HitGroup(NOON, {"b": 1}, KEY)]  # whose keys are there, and are not
    with contextlib.ExitStack() as opened:
        operators = [opened.enter_context(node.client()) for node in redis_cluster.nodes]
        slot = operators[0].execute_command("CLUSTER KEYSLOT", "tally:{0}:keys")
        names = [operator.execute_command("CLUSTER MYID") for operator in operators]
        owner = slot * 3 // 16_384
        other = (owner + 1) % 3
        operators[other].execute_command("CLUSTER SETSLOT", slot, "IMPORTING", names[owner])
        operators[owner].execute_command("CLUSTER SETSLOT", slot, "MIGRATING", names[other])
        with pytest.raises((StoreUnavailable, OutcomeUnknown)):
            await store.apply("s", 2, 3, late)
        for operator in operators:
            operator.execute_command("CLUSTER SETSLOT", slot, "STABLE")
    assert await store.read(NOON.buckets) == [{"a": 1, ALL_EVENTS: 1}] * 4
    assert (await store.apply("s", 2, 3, late)).groups == [
        GroupResult({"a": Value(7, 2)}),
        GroupResult({"b": Value(1, 1)}),
    ]
    await store.close()


async def test_a_store_keeps_the_tags_it_was_begun_with(store: ShardedRedisStore, redis_cluster: Cluster) -> None:
    for url in (redis_cluster.url.replace("tags=16", "tags=4"), redis_cluster.url.replace("?tags=16", "")):
        other = RedisStore(server(url), StoreLimits(10))
        with pytest.raises(StoreOpenError, match="begun with tags=16"):
            await other.open()
        await other.close()


@pytest.mark.parametrize(
    ("errors", "kind"),
    [([StoreUnavailable("x"), StoreUnavailable("y")], StoreUnavailable), ([OutcomeUnknown("x")], OutcomeUnknown)],
)
async def test_what_no_tag_has_taken_is_certainly_not_counted(
    store: ShardedRedisStore, monkeypatch: pytest.MonkeyPatch, errors: list[Exception], kind: type[Exception]
) -> None:
    async def fail(*_: object) -> None:
        raise errors[len(tried) % len(errors)]

    tried: list[int] = []
    monkeypatch.setattr(RedisStore, "apply", fail)
    with pytest.raises(kind):
        await store.apply("s", 0, 1, [HitGroup(NOON, {"a": 1})])


@pytest.mark.parametrize(
    "url",
    [
        "redis://h/0?tags=2",
        "redis+cluster://h?tags=0",
        "redis+cluster://h?tags=x",
        "redis://h:port",
        "redis+cluster://h:99999",
        "redis+cluster://h/1",
        "redis://:pa55/word@h",
    ],
)
def test_a_url_that_makes_no_sense_is_refused_in_a_sentence(url: str) -> None:
    with pytest.raises(StoreOpenError, match="TALLY_STORE"):
        server(url)


def test_what_a_spool_belongs_to_is_the_place_and_not_the_way() -> None:
    same = ["redis+cluster://a:1,b:2?tags=4", "redis+cluster://u:p@b:2,a:1?tags=4", "rediss+cluster://a:1,b:2?tags=4"]
    assert len({server(url).identity for url in same}) == 1
    others = ["redis://h", "redis://h/1", "redis://h:1", "redis+sentinel://h/x", "redis+sentinel://h/y", "unix:///h"]
    assert len({server(url).identity for url in others}) == len(others)
