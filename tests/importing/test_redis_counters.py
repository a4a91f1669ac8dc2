"""Counters of a Redis: each key's count arrives once, however often and however interrupted it is imported."""

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from app.domain.buckets import ALL_EVENTS, TOTAL
from app.domain.calendar import Calendar, Clock
from app.domain.counting import HitGroup
from app.export_import import ExportError, export, import_line, read_lines
from app.importing.redis_counters import RedisCounters, add_counters, missing_counts, read_counters
from app.stores import create_store
from app.stores.base import CounterStore, StoreLimits
from app.stores.memory import MemoryStore
from tests.importing.commands import run_import, start_import
from tests.support.redis_servers import Cluster, RedisServer, wait_until
from tests.support.servers import settings_for

CLOCK = Clock(Calendar(ZoneInfo("UTC")), lambda: 1_795_435_200.0)
KEYS = 100_000


@pytest.fixture
async def memory_store() -> MemoryStore:
    return MemoryStore(StoreLimits(100))


def count_in(server: RedisServer, counts: dict[str, int]) -> None:
    with server.client() as client:
        pipeline = client.pipeline(transaction=False)
        for key, count in counts.items():
            pipeline.incrby(key, count)
        pipeline.execute()


async def totals_of(store: CounterStore) -> dict[str, int]:
    (totals,) = await store.read([TOTAL])
    return {event: count for event, count in totals.items() if event != ALL_EVENTS}


@pytest.mark.timeout(300)
def test_100_000_counters_are_imported_once_although_the_import_is_killed(
    own_redis: RedisServer, redis_server: RedisServer
) -> None:
    own_redis.start()
    count_in(own_redis, {f"hits:e{i}": i + 1 for i in range(KEYS)})
    words = "--from-redis", own_redis.url, "--match", "hits:*", "--strip", "hits:"
    everything = KEYS * (KEYS + 1) // 2
    with redis_server.client() as client:
        assert run_import(*words, "--dry-run", store=redis_server.url) == [
            f"The Redis has {everything} hits of {KEYS} events.",
            f"Without --dry-run, this would add {everything} hits of {KEYS} events.",
        ]
        assert not client.exists("tally:{0}:total:0")
        half = start_import(*words, store=redis_server.url)
        wait_until(lambda: half.poll() is not None or client.hlen("tally:{0}:total:0") > KEYS / 10, seconds=100)
        half.kill()
        half.communicate()
        assert half.returncode != 0
        assert 0 < client.hlen("tally:{0}:total:0") < KEYS
        run_import(*words, store=redis_server.url)
        totals = client.hgetall("tally:{0}:total:0")
        assert totals.pop("") == str(everything)
        assert totals == {f"e{i}": str(i + 1) for i in range(KEYS)}
        count_in(own_redis, {"hits:e7": 3, "hits:new": 2})
        assert run_import(*words, store=redis_server.url)[1] == "Imported 5 hits of 2 events."
        assert run_import(*words, store=redis_server.url)[1] == "Nothing to add: they were imported before."
        assert client.hmget("tally:{0}:total:0", "e7", "new", "") == ["11", "2", str(everything + 5)]


async def test_keys_become_events(redis_server: RedisServer, memory_store: MemoryStore) -> None:
    count_in(redis_server, {"K:mysite.com:visits": 5, "K:a/b": 1, "K:a:b": 2, "other": 7, "K:zero": 0})
    counters = await read_counters(redis_server.url, "K:*", "K:")
    await add_counters(memory_store, CLOCK, counters)
    assert await totals_of(memory_store) == {"mysite.com:visits": 5, "a:b": 3}


async def test_hits_and_a_smaller_counter_stay(memory_store: MemoryStore) -> None:
    """A counter that was reset in the old Redis takes nothing away, and hits of new clients are not overwritten."""
    await add_counters(memory_store, CLOCK, RedisCounters("a" * 32, {"a": 10, "b": 1}))
    await memory_store.apply("s", 0, 1, [HitGroup(CLOCK.slot(), {"a": 1})])
    await add_counters(memory_store, CLOCK, RedisCounters("a" * 32, {"a": 4, "b": 2}))
    assert await totals_of(memory_store) == {"a": 11, "b": 2}


@pytest.mark.fails_on_mutant(
    "another store does not know what was imported",
    "app/export_import.py",
    'rf"{IMPORTED}[0-9a-f]{{32}}"), ("total",)',
    'rf"{IMPORTED}[0-9a-f]{{32}}"), ("day",)',
)
async def test_what_was_imported_moves_with_an_export(memory_store: MemoryStore) -> None:
    counters = RedisCounters("a" * 32, {"a": 10, "b": 1})
    await add_counters(memory_store, CLOCK, counters)
    copy, file = MemoryStore(StoreLimits(100)), io.BytesIO()
    file.writelines([line async for line in export(memory_store, CLOCK)])
    file.seek(0)
    for line in read_lines(file, CLOCK):
        await import_line(copy, CLOCK, line)
    assert await missing_counts(copy, counters) == {}
    assert await missing_counts(copy, RedisCounters("a" * 32, {"a": 12})) == {"a": 2}


ADD_TWICE = pytest.mark.fails_on_mutant(  # in memory, an import is not interrupted between its read and its change
    "two imports at once both add",
    "app/importing/redis_counters.py",
    "source, offset, offset + 1, change)",
    "str(id(change)), 0, 1, change)",
)


@pytest.fixture(params=["memory", "sqlite", pytest.param("redis", marks=ADD_TWICE), "cluster"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer, patience: None
) -> AsyncIterator[CounterStore]:
    kind: str = request.param
    settings = settings_for("redis" if kind == "cluster" else kind, tmp_path, redis_server)
    if kind == "cluster":
        cluster: Cluster = request.getfixturevalue("redis_cluster")
        settings = settings.model_copy(update={"store": cluster.url})
    store = create_store(settings)
    await store.open()
    yield store
    await store.close()


async def test_imports_at_once_and_a_cancelled_one_count_once(store: CounterStore) -> None:
    counts = {f"e{i}": i + 1 for i in range(2500)}
    cancelled = asyncio.create_task(add_counters(store, CLOCK, RedisCounters("a" * 32, counts)))
    while not await store.sizes([TOTAL]) > [0]:
        await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    more = counts | {"e1": 100, "new": 7}
    both = (add_counters(store, CLOCK, RedisCounters("a" * 32, which)) for which in (counts, more))
    await asyncio.gather(*both)
    assert await totals_of(store) == more
    assert await missing_counts(store, RedisCounters("a" * 32, more)) == {}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hits:a", "x", "key 'hits:a': the count must be a whole number"),
        ("hits:a", "-1", "key 'hits:a': the count must be a whole number"),
        ("hits:a", ["list"], "key 'hits:a': the count must be a whole number"),
        ("hits:\x1b[31m", "1", r"key 'hits:\x1b[31m': the event name must not contain"),
        ("hits:" + "a" * 129, "1", "the event name must have 1 to 128 characters"),
        (b"hits:\xff", "1", "a key in this Redis is not UTF-8 text"),
        ("hit", "1", "no key with a count matches --match"),
    ],
)
async def test_a_key_that_is_no_counter_is_named(
    redis_server: RedisServer, key: str | bytes, value: str | list[str], message: str
) -> None:
    with redis_server.client() as client:
        client.rpush(key, *value) if isinstance(value, list) else client.set(key, value)
        if key != "hit":
            client.set("hits:good", "5")
    with pytest.raises(ExportError) as error:
        await read_counters(redis_server.url, "hits:*", "hits:")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://127.0.0.1:1/0", "the Redis of --from-redis cannot be read: "),
        ("http://127.0.0.1", "--from-redis is not a valid Redis URL: write redis://"),
        ("redis://user:pass/word@host:6379/0", "--from-redis is not a valid Redis URL: write redis://"),
    ],
)
async def test_a_redis_that_cannot_be_read_is_named(url: str, message: str) -> None:
    with pytest.raises(ExportError) as error:
        await read_counters(url, "*", "")
    assert message in str(error.value)
    assert "pass/word" not in str(error.value)
