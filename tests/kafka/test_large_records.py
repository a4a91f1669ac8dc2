"""A record with many users and sessions is counted in several commits, each of them once."""

import json
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from app.domain.buckets import Bucket
from app.domain.calendar import Calendar, Clock
from app.domain.counting import COUNT_MAX, Commit, HitGroup, weight
from app.group_commit import VISITS_PER_COMMIT
from app.kafka.counter import RecordCounter
from app.kafka.dead_letters import DeadLetter, DeadLetterWriter
from app.kafka.decoding import VISITS_MAX, decode_buffered
from app.kafka.sources import parts_offset
from app.metrics import Metrics
from app.pending_commit import COMMIT_WEIGHT_MAX
from app.stores.base import CounterStore, OffsetMismatch, OutcomeUnknown, StoreLimits
from app.stores.memory import MemoryStore
from app.stores.redis import RedisStore
from app.stores.redis_sharded import ShardedRedisStore
from app.stores.redis_url import RedisTarget
from app.stores.results import ApplyResult
from tests.support.redis_servers import RedisServer

SOURCE = "kafka topic 0"
CALENDAR = Calendar(ZoneInfo("UTC"))
NOON = CALENDAR.slot(1_795_521_600)
USERS = 1000
VISITS = [["ab"[i % 2], 1, f"u{i}", f"s{i}"] for i in range(USERS)]
KEY = ["id", "request", "client"]


class Letters(DeadLetterWriter):
    """Keeps the dead letters."""

    def __init__(self) -> None:
        self.sent: list[DeadLetter] = []

    async def send(self, letters: Sequence[DeadLetter]) -> None:
        self.sent += letters


class Crash(Exception):
    """The consumer ends here."""


class Applied:
    """Records the commits of a store, and crashes before or after one of them."""

    def __init__(self, store: CounterStore, monkeypatch: pytest.MonkeyPatch, crash_at: int, after: bool) -> None:
        self.weights: list[int] = []
        self._apply, self._crash_at, self._after = store.apply, crash_at, after
        monkeypatch.setattr(store, "apply", self.apply)

    async def apply(self, source: str, expected: int, new: int, commit: Commit, note: str = "") -> ApplyResult:
        self.weights.append(sum(weight(group.amounts, group.visits) for group in commit))
        crashes = len(self.weights) - 1 == self._crash_at
        if crashes and not self._after:
            raise Crash
        applied = await self._apply(source, expected, new, commit, note)
        if crashes:
            raise OutcomeUnknown("the connection was lost")
        return applied


def counter(store: CounterStore) -> tuple[RecordCounter, Letters]:
    letters, clock = Letters(), Clock(CALENDAR, lambda: NOON.minute + 30.0)
    publish: Any = lambda *_: None  # noqa: E731 # nobody listens
    return RecordCounter({"topic": decode_buffered}, store, clock, publish, letters, Metrics(), 8), letters


def record(offset: int, amounts: dict[str, int], visits: object = (), key: object = None) -> Any:
    value = json.dumps({"counts": amounts, "visits": visits, "key": key}).encode()
    place = {"topic": "topic", "partition": 0, "offset": offset}
    return SimpleNamespace(**place, value=value, key=None, timestamp=NOON.minute * 1000, headers=[])


def make_store(kind: str, server: RedisServer) -> CounterStore:
    if kind == "memory":
        return MemoryStore(StoreLimits(1000))
    server.flush()
    shards = 3 if kind == "shards" else 1
    target = RedisTarget.from_url(server.url)
    stores = [RedisStore(target, StoreLimits(1000), shard) for shard in range(shards)]
    return ShardedRedisStore(stores) if shards > 1 else stores[0]


async def count_all(store: CounterStore, records: list[Any]) -> None:
    """Count as the consumer does: from the store's offset on, and again after an error."""
    while (offset := await store.get_offset(SOURCE)) < len(records):
        await counter(store)[0].count(SOURCE, offset, records[offset:])


async def counts_by_user(store: CounterStore) -> dict[str, int]:
    a, b = await store.read([Bucket("day", NOON.day, f"user:{event}") for event in "ab"])
    return {**a, **b}


RECORDS = [
    record(0, {"a": 3}),
    record(1, {"a": 500, "b": 500}, VISITS, KEY),
    record(2, {"b": 4}),
    record(3, {"a": 500, "b": 500}, VISITS, KEY),  # sent twice
]


@pytest.mark.fails_on_mutant(
    "a large record is one commit", "app/kafka/commits.py", "if added > COMMIT_WEIGHT_MAX:", "if False:"
)
async def test_no_commit_is_too_large(monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer) -> None:
    store = make_store("memory", redis_server)
    applied = Applied(store, monkeypatch, -1, after=False)
    await count_all(store, RECORDS)
    assert max(applied.weights) <= COMMIT_WEIGHT_MAX
    assert len(applied.weights) > 6


@pytest.mark.fails_on_mutant(
    "parts that were counted are counted again",
    "app/kafka/counter.py",
    "if (next_offset := parts_offset(record.offset, number)) > offset:",
    "if next_offset := parts_offset(record.offset, number) + offset:",
)
@pytest.mark.parametrize("kind", ["memory", "redis", "shards"])
async def test_each_user_is_counted_once_wherever_the_consumer_crashes(
    kind: str, monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer
) -> None:
    for crash_at in range(10):
        for after in (False, True):
            store = make_store(kind, redis_server)
            await store.open()
            with monkeypatch.context() as patched:
                Applied(store, patched, crash_at, after=after)
                try:
                    await count_all(store, RECORDS)
                except (Crash, OutcomeUnknown):
                    await count_all(store, RECORDS)
            assert await store.counts(NOON.day, ["a", "b"]) == {"a": 503, "b": 504}
            assert await counts_by_user(store) == {f"u{i}": 1 for i in range(USERS)}
            await store.close()


async def test_a_crash_between_two_shards_is_completed(redis_server: RedisServer) -> None:
    """Some shards have the first visits of a record, and others do not."""
    store = make_store("shards", redis_server)
    assert isinstance(store, ShardedRedisStore)
    for number in range(6):
        redis_server.flush()
        await store.open()
        calls = 0
        apply = RedisStore.apply

        async def crash(self: RedisStore, *arguments: Any, last: int = number) -> ApplyResult:
            nonlocal calls
            calls += 1
            if calls > 3 * last + 2:
                raise OutcomeUnknown("the connection was lost")
            return await apply(self, *arguments)  # noqa: B023 # it is called in this round only

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(RedisStore, "apply", crash)
            with pytest.raises((OutcomeUnknown, OffsetMismatch)):
                await count_all(store, RECORDS)
        await count_all(store, RECORDS)
        assert await store.counts(NOON.day, ["a", "b"]) == {"a": 503, "b": 504}
        assert await counts_by_user(store) == {f"u{i}": 1 for i in range(USERS)}
    await store.close()


async def test_visits_of_hits_that_the_store_rejects_are_not_counted() -> None:
    store = MemoryStore(StoreLimits(1000))
    await store.apply("other", 0, 1, [HitGroup(NOON, {"a": COUNT_MAX - 1})])
    counting, letters = counter(store)
    large = record(0, {"a": 500, "b": 500}, VISITS)
    assert await counting.count(SOURCE, 0, [large, record(1, {"b": 1})]) == (1, 1)
    assert letters.sent == [DeadLetter(large, "overflow")]
    assert await counts_by_user(store) == {}
    assert await store.counts(NOON.day, ["b"]) == {}


def test_the_parts_of_a_record_come_before_those_of_the_next_one() -> None:
    parts = 1 + math.ceil(VISITS_MAX / VISITS_PER_COMMIT)
    assert parts_offset(7, parts - 1) < parts_offset(8, 0)
