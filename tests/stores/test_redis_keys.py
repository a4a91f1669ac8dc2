"""The table in app/stores/redis_keys.py: every key that exists has exactly one row, with its type and expiry."""

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4
from zoneinfo import ZoneInfo

import httpx
import pytest
from fastapi import FastAPI

from app.domain.buckets import SKETCH, Bucket
from app.domain.calendar import Calendar, Clock
from app.domain.counting import BucketWrite, DayChange, HitGroup, Visit
from app.importing.redis_counters import RedisCounters, add_counters
from app.main import create_app
from app.settings import Settings
from app.stores import hyperloglog, redis_keys, rules
from app.stores.base import StoreLimits
from app.stores.records import RecordChange
from app.stores.redis import RedisStore
from app.stores.redis_url import RedisTarget
from tests.support.redis_servers import Cluster, RedisServer
from tests.support.servers import ADMIN_KEY, AS_ADMIN, SettableClock, eventually

NOON = Calendar(ZoneInfo("UTC")).slot(1_795_521_600)

PLACEHOLDERS = {
    "<process>": r"(?!kafka ).+",
    "<partition>": r"kafka .+",
    "<start>": r"\d+",
    "<second>": r"\d+",
    "<step>": r"(minute|hour|day)",
    "<visitors>": r"(user|session):.*",
    "<id>": r"[0-9a-f]{32}@?",
    "<client>": r"[0-9a-f]+",
}
TTL_SECONDS = {
    "never": None,
    "SOURCE_TTL_SECONDS / 2": rules.SOURCE_TTL_SECONDS // 2,
    "SOURCE_TTL_SECONDS": rules.SOURCE_TTL_SECONDS,
    "VISITOR_MINUTES_TTL_SECONDS": rules.VISITOR_MINUTES_TTL_SECONDS,
    "2 * IDEMPOTENCY_TTL_SECONDS": 2 * rules.IDEMPOTENCY_TTL_SECONDS,
}


class Row(NamedTuple):
    name: str
    type: str
    ttl: str
    writers: str
    contents: str

    def matches(self, key: str) -> bool:
        parts = re.split(r"(<\w+>)", self.name)
        name = "".join(PLACEHOLDERS[part] if part.startswith("<") else re.escape(part) for part in parts)
        return bool(re.fullmatch(rf"tally:\{{\d+\}}:{name}", key, re.DOTALL))


def table() -> list[Row]:
    _, rows = re.split(r"\n-[- ]+\n", redis_keys.__doc__)
    return [Row(*re.split(" {2,}", line)) for line in rows.splitlines()]


class StoredKey(NamedTuple):
    name: str
    type: str
    ttl: int


@pytest.fixture(params=["redis_server", "redis_cluster"])
def masters(request: pytest.FixtureRequest, tmp_path: Path) -> list[RedisServer]:
    servers: RedisServer | Cluster = request.getfixturevalue(request.param)
    return servers.masters() if isinstance(servers, Cluster) else [servers]


@pytest.fixture
async def tally(request: pytest.FixtureRequest, masters: list[RedisServer], tmp_path: Path) -> AsyncIterator[FastAPI]:
    """The app, after one use of everything that it stores."""
    url = masters[0].url
    if len(masters) > 1:
        url = request.getfixturevalue("redis_cluster").url.replace("shards=16", "shards=3")
    clock = SettableClock()
    clock.go_to("2026-11-24T12:00:00+00:00")
    app = create_app(Settings(TALLY_STORE=url, spool=str(tmp_path / "spool"), admin_keys=ADMIN_KEY), clock)
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        await use_everything(client)
        await app.state.store.apply("kafka topic 0", 0, 7, [HitGroup(NOON, {"kafka": 1})])
        await app.state.store.record_data_loss(1)
        counters = RedisCounters("0" * 32, {"a": 1})
        await add_counters(app.state.store, Clock(Calendar(ZoneInfo("UTC")), clock), counters)
        for collection in ("alerts", "goals", "notes", "shares", f"deliveries:{uuid4().hex}"):
            await app.state.store.records.change([RecordChange(collection, "id", None, "text")])
        yield app


async def use_everything(client: httpx.AsyncClient) -> None:
    for i in range(5):
        await client.post(f"/event/e{i}", json={"user": f"user {i}", "session": f"session {i}"})
    keyed = await client.post("/events", json={"a": 1, "b": 2}, headers={"Idempotency-Key": "one"})
    corrected = await client.put("/event/a", json={"count": 7}, headers=AS_ADMIN)
    exported = await client.get("/export", headers=AS_ADMIN)
    assert b"sketch:user:" in exported.content
    imported = await client.post("/import", content=exported.content, headers=AS_ADMIN)
    reset = await client.post("/reset", headers=AS_ADMIN)
    deleted = await client.delete("/event/e1", headers=AS_ADMIN)
    await client.post("/event/after-reset", json={"user": "user 1"})
    responses = keyed, corrected, exported, imported, reset, deleted
    assert [response.status_code for response in responses if not response.is_success] == []


def stored_keys(masters: list[RedisServer]) -> Iterator[StoredKey]:
    for master in masters:
        with master.client() as client:
            yield from (StoredKey(key, client.type(key), client.ttl(key)) for key in client.scan_iter())


def is_row_of(row: Row, key: StoredKey) -> bool:
    limit = TTL_SECONDS[row.ttl]
    in_time = key.ttl == -1 if limit is None else limit - 60 <= key.ttl <= limit
    return row.matches(key.name) and row.type == key.type and in_time


@pytest.mark.fails_on_mutant(
    "a key that expires too late", "app/stores/lua/count.lua", "'EX', 2 * key_ttl", "'EX', 3 * key_ttl"
)
@pytest.mark.fails_on_mutant(
    "a key that is not documented", "app/stores/lua/offset.lua", "'SADD', prefix .. 'ofs:'", "'SADD', prefix .. 'of:'"
)
async def test_each_stored_key_is_in_the_table_with_its_type_and_expiry(
    tally: FastAPI, masters: list[RedisServer]
) -> None:
    rows = table()
    used: set[Row] = set()
    for key in stored_keys(masters):
        (row,) = [row for row in rows if row.matches(key.name)]
        assert is_row_of(row, key), (row, key)
        used.add(row)
    # A channel is not stored, and the key of the sketch exists only while a script runs.
    # An unfinished change exists until all shards have it.
    assert [row.name for row in rows if row not in used] == ["news", "unfinished", "sketch"]


async def test_nodes_subscribe_to_the_channel_of_the_table(tally: FastAPI, masters: list[RedisServer]) -> None:
    (channel,) = [row for row in table() if row.type == "channel"]

    def channels() -> list[str]:
        found: list[str] = []
        for master in masters:
            with master.client() as client:
                found += client.pubsub_channels()
        return found

    await eventually(lambda: len(channels()) == 1)
    assert channel.matches(channels()[0])


@pytest.mark.fails_on_mutant(
    "a scratch key that another event has",
    "app/stores/lua/write.lua",
    "prefix .. 'seen:' .. bucket, prefix .. 'sketch'",
    "prefix .. 'seen:' .. bucket, prefix .. 'seen:' .. bucket .. ':other'",
)
async def test_a_merged_sketch_leaves_the_visitors_of_other_events(redis_server: RedisServer) -> None:
    store = RedisStore(RedisTarget.from_url(redis_server.url), StoreLimits(10))
    await store.open()
    visits = [Visit("a:other", 1, "ann", None)]
    await store.apply("s", 0, 1, [HitGroup(NOON, {"a:other": 1}, visits=visits)])
    sketch = Bucket("day", NOON.day, f"{SKETCH}user:a")
    merge = BucketWrite("merge", sketch, hyperloglog.sketch(["bob", "eve"]))
    await store.apply_change("s", 1, 2, DayChange(NOON, [merge]))
    visitors = [Bucket("day", NOON.day, f"user:{event}") for event in ("a", "a:other")]
    assert [(await store.count_distinct([bucket])).number for bucket in visitors] == [2, 1]
    await store.close()


def test_each_expiry_and_writer_of_the_table_exists() -> None:
    scripts = {path.stem for path in (Path(redis_keys.__file__).parent / "lua").iterdir()}
    for row in table():
        assert row.ttl in TTL_SECONDS, row
        assert all(writer in scripts or hasattr(RedisStore, writer) for writer in row.writers.split(", ")), row
