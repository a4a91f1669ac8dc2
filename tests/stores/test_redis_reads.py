"""Reads of Redis are split, so that commits can run in between."""

import pytest

from app.domain.buckets import ALL_EVENTS, TOTAL, Bucket
from app.domain.counting import HitGroup, Visit
from app.stores import redis_reads
from app.stores.base import StoreLimits, StoreUnavailable
from app.stores.redis import RedisStore
from app.stores.redis_url import RedisTarget
from tests.stores.offline_stores import NOON, redis_store
from tests.support.redis_servers import RedisServer, free_port

DAY = Bucket("day", NOON.day)


@pytest.mark.fails_on_mutant(
    "one round trip for all",
    "app/stores/redis_reads.py",
    "if fields + len(some) + COMMAND_FIELDS > FIELDS_PER_CALL:",
    "if False:",
)
def test_a_round_trip_reads_a_limited_number_of_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_reads, "FIELDS_PER_CALL", 6)
    monkeypatch.setattr(redis_reads, "COMMAND_FIELDS", 1)
    for members, buckets, sizes in (
        ("a", 4, [3, 1]),
        ("ab", 3, [4, 2]),
        ("abc", 2, [3, 3]),
        ("abcdef", 2, [5, 1, 5, 1]),
    ):
        parts = list(redis_reads._split([(DAY, members)] * buckets))
        assert [sum(len(some) for _, _, some in part) for part in parts] == sizes
        found = [(index, name) for part in parts for index, _, some in part for name in some]
        assert found == [(index, name) for index in range(buckets) for name in members]


@pytest.mark.parametrize("fields", [6, 7, 8, 2000])
async def test_a_split_read_has_the_same_result(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, fields: int
) -> None:
    monkeypatch.setattr(redis_reads, "FIELDS_PER_CALL", fields)
    monkeypatch.setattr(redis_reads, "KEYS_PER_CALL", fields)
    store = redis_store(redis_server)
    await store.apply("s", 0, 1, [HitGroup(NOON, {"a": 1, "b": 2, "c": 3})])
    buckets = [DAY, Bucket("day", 0), TOTAL]
    counts = {"a": 1, "b": 2, "c": 3}
    assert await store.read(buckets, ["a", "x", "c", "b"]) == [counts, {}, counts]
    assert await store.read(buckets, [ALL_EVENTS]) == [{ALL_EVENTS: 6}, {}, {ALL_EVENTS: 6}]
    assert await store.sizes(buckets) == [3, 0, 3]
    await store.close()


@pytest.mark.fails_on_mutant(
    "only the first step is read", "app/stores/redis_reads.py", "            if not cursor:\n", "            if True:\n"
)
async def test_large_sets_of_dimensions_are_read_in_steps(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = redis_store(redis_server)
    names = [f"name {i}" for i in range(300)]
    visits = [Visit(name, 1, "ann", None) for name in names]
    await store.apply("s", 0, 1, [HitGroup(NOON, dict.fromkeys(names, 1), visits=visits)])
    users = {Bucket("day", NOON.day, f"user:{name}") for name in ["", *names]}
    for members in (10, 1000):
        monkeypatch.setattr(redis_reads, "MEMBERS_PER_CALL", members)
        buckets = await store.list_buckets([NOON.day])
        assert len(buckets) == len(set(buckets)) == 1 + 2 * 301
        assert users < set(buckets)
    await store.close()


@pytest.mark.fails_on_mutant(
    "an error has the address of Redis",
    "app/stores/redis.py",
    'raise StoreUnavailable("Redis did not reply") from error',
    'raise StoreUnavailable(f"Redis: {error}") from error',
)
async def test_an_error_for_clients_does_not_have_the_address_of_redis() -> None:
    port = free_port()
    store = RedisStore(RedisTarget.from_url(f"redis://127.0.0.1:{port}/0"), StoreLimits(10))
    with pytest.raises(StoreUnavailable) as caught:
        await store.read([TOTAL])
    assert str(port) not in str(caught.value)
    assert str(port) in str(caught.value.__cause__)
    await store.close()
