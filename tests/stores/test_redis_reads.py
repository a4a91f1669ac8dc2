"""Reads of Redis are split, so that commits can run in between."""

import pytest

from app.domain.buckets import ALL_EVENTS, TOTAL, Bucket
from app.domain.counting import HitGroup
from app.stores import redis_reads
from tests.stores.offline_stores import NOON, redis_store
from tests.support.redis_servers import RedisServer

DAY = Bucket("day", NOON.day)


@pytest.mark.fails_on_mutant(
    "one round trip for all", "app/stores/redis_reads.py", "if fields + len(some) > FIELDS_PER_CALL:", "if False:"
)
def test_a_round_trip_reads_a_limited_number_of_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_reads, "FIELDS_PER_CALL", 4)
    for members, buckets, sizes in (("a", 3, [3]), ("ab", 3, [4, 2]), ("abc", 2, [3, 3]), ("abcde", 2, [4, 1, 4, 1])):
        parts = list(redis_reads._split([(DAY, members)] * buckets))
        assert [sum(len(some) for _, _, some in part) for part in parts] == sizes
        found = [(index, name) for part in parts for index, _, some in part for name in some]
        assert found == [(index, name) for index in range(buckets) for name in members]


@pytest.mark.parametrize("fields", [1, 2, 3, 2000])
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
