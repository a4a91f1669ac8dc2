"""The write buffer: POSTs are acknowledged when they are in Kafka, and counted from there."""

import asyncio
import json
import time
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from app.domain.calendar import Calendar, Clock
from app.domain.counting import HitGroup, IdempotencyKey
from app.kafka.buffer import HitBuffer
from app.metrics import Metrics
from app.settings import Settings
from app.stores.base import StoreLimits
from app.stores.memory import MemoryStore
from tests.kafka.conftest import MakeSettings, StartNode
from tests.kafka.waiting import wait_for_counts, wait_until_ready
from tests.support.kafka_broker import Broker
from tests.support.redis_servers import RedisServer, free_port
from tests.support.servers import SettableClock, serving, settings_for

pytestmark = pytest.mark.timeout(180)  # the first test of a run may download Kafka


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
async def test_a_post_is_acknowledged_when_kafka_has_it_and_counted_from_there(
    kind: str, buffering_node: StartNode, make_settings: MakeSettings, names
) -> None:
    async with buffering_node(kind) as (_, client):
        hit = await client.post("/event/a", json={"by": 3})
        day = hit.json()["day"]
        assert (hit.status_code, hit.json()) == (202, {"eventName": "a", "countSeen": 0, "day": day, "ack": "kafka"})
        batch = await client.post("/events", content="a\nb\nb\n")
        assert batch.status_code == 202
        assert batch.json()["accepted"] == 3
        assert batch.json()["ack"] == "kafka"
        await wait_for_counts(client, a=4, b=2)
        assert (await client.post("/event/a")).json()["countSeen"] == 4
        await wait_for_counts(client, a=5, b=2)
        assert (await client.post("/event/%2e")).status_code == 422
        assert (await client.post("/events", json=[{"event": "c"}, {"event": "/"}])).status_code == 422
        health = (await client.get("/health")).json()
        assert (health["ack"], "Kafka" in health["durability"]) == ("kafka", True)
        kafka = health["kafka"]
        assert (kafka["buffer"], kafka["records"], kafka["deadLetters"]) == (names["kafka_topic"], 3, 0)
        assert sum(partition["position"] for partition in kafka["partitions"]) == 3
        assert "tally_kafka_records_total 3.0" in (await client.get("/metrics")).text
    # The next process continues from the store's offset. With memory, it has to count all records again.
    async with serving(make_settings(kind)) as node, node.client() as client:
        await wait_until_ready(client)
        await wait_for_counts(client, a=5, b=2)
        records = (await client.get("/health")).json()["kafka"]["records"]
        assert records == (3 if kind == "memory" else 0)


@pytest.mark.fails_on_mutant(
    "no idempotency in the buffer", "app/kafka/commits.py", "        if key:\n", "        if False:\n"
)
async def test_an_idempotency_key_survives_the_buffer_and_counts_once(
    buffering_node: StartNode, broker: Broker, names
) -> None:
    async with buffering_node() as (_, client):
        key = {"Idempotency-Key": "order-17"}
        for _ in range(3):
            assert (await client.post("/event/a", headers=key)).status_code == 202
        assert (await client.post("/events", json={"a": 2, "b": 1}, headers=key)).status_code == 202
        # Without this wait, the next request could be counted first, because it is in another partition.
        await wait_for_counts(client, a=3, b=1)
        assert (await client.post("/events", json={"b": 7}, headers=key)).status_code == 202
        ((value, headers),) = await broker.read(names["kafka_dead_letters"], 1)
        assert headers["tally.reason"] == b"mismatch"
        assert json.loads(value)["counts"] == {"b": 7}


async def test_visitors_survive_the_buffer(buffering_node: StartNode) -> None:
    async with buffering_node("redis") as (_, client):
        await client.post("/event/a", json={"user": "Zoë", "by": 2})
        await client.post("/events", json=[{"event": "a", "user": "ann", "session": "s/1"}, {"event": "b"}])
        await client.post("/event/a", json={"user": "ann"}, headers={"Idempotency-Key": "k"})
        await wait_for_counts(client, a=4, b=1)
        assert (await client.get("/event/a/audience")).json()["users"] == 2
        ranks = (await client.get("/leaderboard?event=a")).json()
        assert {row["user"]: row["count"] for row in ranks} == {"Zoë": 2, "ann": 2}


@pytest.mark.fails_on_mutant(
    "a large request that is unknown", "app/kafka/producer.py", "except MessageSizeTooLargeError:", "except IndexError:"
)
async def test_a_request_that_exceeds_kafkas_message_size_is_rejected_with_413(buffering_node: StartNode) -> None:
    async with buffering_node("memory", write_limit="100000/second") as (_, client):
        # In NFC this musical symbol is three characters, so that the record is much larger than the request.
        items = [{"event": f"{number}" + "\U0001d160" * 40, "user": "\U0001d160" * 40} for number in range(9000)]
        response = await client.post("/events", content=json.dumps(items, ensure_ascii=False).encode())
        assert (response.status_code, response.json()["counted"]) == (413, "no")
        assert (await client.post("/event/a")).status_code == 202
        await wait_for_counts(client, a=1)


class FakeWriter:
    """Acknowledges every record."""

    async def write(self, *_: object) -> None:
        pass


async def submit(buffer: HitBuffer, event: str, key: IdempotencyKey | None = None) -> str | None:
    """Submit one hit. Returns the reason if it was rejected."""
    return (await buffer.submit({event: 1}, key)).result.reason


def buffer_on(store: MemoryStore, clock: SettableClock, **limits: int) -> HitBuffer:
    settings = Settings(TALLY_STORE="memory://", kafka="k:1", **limits)
    calendar_clock = Clock(Calendar(settings.timezone), clock)
    return HitBuffer(settings, FakeWriter(), store, calendar_clock, lambda _: 0, Metrics())


async def count(store: MemoryStore, clock: SettableClock, *events: str) -> None:
    """Count events, like a consumer or a node without a buffer."""
    group = HitGroup(Calendar(ZoneInfo("UTC")).slot(clock()), dict.fromkeys(events, 1))
    await store.apply(str(events), 0, 1, [group])


@pytest.mark.fails_on_mutant(
    "names that the store has stay new ones",
    "app/kafka/buffer.py",
    "        for event in known:\n",
    "        for event in ():\n",
)
async def test_the_buffer_rejects_exactly_the_new_event_names_beyond_the_limit_while_records_wait(
    clock: SettableClock,
) -> None:
    store = MemoryStore(StoreLimits(10))
    buffer = buffer_on(store, clock, events_max=3)
    assert [await submit(buffer, event) for event in ("a", "b")] == [None, None]
    await count(store, clock, "a")
    await buffer.refresh_name_limit(all_counted=False)
    assert [await submit(buffer, event) for event in ("c", "d", "a", "b")] == [None, "full", None, None]
    await count(store, clock, "b", "c")
    await buffer.refresh_name_limit(all_counted=False)
    assert [await submit(buffer, event) for event in ("d", "a", "c")] == ["full", None, None]


@pytest.mark.fails_on_mutant(
    "the names of other days take the place of new ones",
    "app/kafka/buffer.py",
    "                await self.refresh_name_limit(all_counted=False)\n",
    "                pass\n",
)
async def test_event_names_of_other_days_leave_room_for_new_ones(clock: SettableClock) -> None:
    store = MemoryStore(StoreLimits(10))
    await count(store, clock, "a", "b")
    buffer = buffer_on(store, clock, events_max=3)
    await buffer.refresh_name_limit(all_counted=False)
    assert [await submit(buffer, event) for event in ("a", "b", "c", "a", "d")] == [None, None, None, None, "full"]


@pytest.mark.fails_on_mutant(
    "names that were never counted stay for ever",
    "app/kafka/buffer.py",
    "self._round += all_counted",
    "self._round += 0",
)
async def test_a_new_event_name_that_the_store_rejected_leaves_room_once_all_records_are_counted(
    clock: SettableClock,
) -> None:
    buffer = buffer_on(MemoryStore(StoreLimits(10)), clock, events_max=1)
    assert await submit(buffer, "rejected") is None
    for _ in range(2):
        await buffer.refresh_name_limit(all_counted=True)
        await buffer.refresh_name_limit(all_counted=False)
        assert await submit(buffer, "a") == "full"
    await buffer.refresh_name_limit(all_counted=True)
    assert await submit(buffer, "a") is None


async def test_the_buffer_rejects_idempotency_keys_beyond_a_clients_tenth_and_the_total(clock: SettableClock) -> None:
    buffer = buffer_on(MemoryStore(StoreLimits(10)), clock, keys_max=20)
    for number in range(20):
        assert await submit(buffer, "a", IdempotencyKey(f"id {number}", "request", f"client {number // 2}")) is None
        if number == 1:
            assert await submit(buffer, "a", IdempotencyKey("id", "request", "client 0")) == "keys"
    assert await submit(buffer, "a", IdempotencyKey("id", "request", "client 99")) == "keys"
    assert await submit(buffer, "a") is None
    clock.shift += 86_400 + 1
    assert await submit(buffer, "a", IdempotencyKey("id", "request", "client 0")) is None


async def test_without_kafka_a_post_is_rejected_in_time(tmp_path: Path, redis_server: RedisServer) -> None:
    settings = settings_for("memory", tmp_path, redis_server, kafka=f"127.0.0.1:{free_port()}")
    async with serving(settings) as node, node.client() as client:
        began = time.monotonic()
        response = await client.post("/event/a")
        assert time.monotonic() - began < 2.5
        assert (response.status_code, response.json()["counted"]) == (503, "no")
        health = await client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "down")


@pytest.mark.fails_on_mutant(
    "writes to a partition that does not acknowledge",
    "app/kafka/producer.py",
    "(stuck and not stuck.done()) or not await",
    "not await",
)
@pytest.mark.fails_on_mutant(
    "an unknown outcome reported as rejected",
    "app/kafka/producer.py",
    'raise OutcomeUnknown("Kafka did not',
    'raise StoreUnavailable("Kafka did not',
)
async def test_a_post_that_kafka_does_not_acknowledge_in_time_is_unknown_and_counts_at_most_once(
    buffering_node: StartNode, broker: Broker
) -> None:
    async with buffering_node() as (_, client):
        assert (await client.post("/event/a")).status_code == 202
        with broker.paused():
            began = time.monotonic()
            responses = await asyncio.gather(*(client.post("/event/a") for _ in range(5)))
            assert time.monotonic() - began < 2.5
            assert {response.json()["counted"] for response in responses} == {"unknown"}
            began = time.monotonic()
            response = await client.post("/event/a")
            assert time.monotonic() - began < 1
            assert (response.status_code, response.json()["counted"]) == (503, "no")
        await wait_for_counts(client, a=6)  # the producer has kept trying


async def test_a_hit_counts_on_the_day_of_its_acknowledgement(
    make_settings: MakeSettings, broker: Broker, names, clock: SettableClock
) -> None:
    await broker.create_topics(names["kafka_topic"], message_timestamp_after_max_ms=str(2 * 86_400_000))
    settings = make_settings()
    midnight = Calendar(settings.timezone).next_day(time.time())
    clock.shift = midnight - time.time() - 3600
    async with serving(settings, clock) as node, node.client() as client:
        await wait_until_ready(client)
        before = (await client.post("/event/a")).json()["day"]
        await wait_for_counts(client, a=1)
        clock.shift += 7200
        after = (await client.post("/event/a", json={"by": 2})).json()["day"]
        assert before < after
        await wait_for_counts(client, a=2)
        assert (await client.get(f"/history/{before}")).json()["parts"][0]["counts"] == {"a": 1}


async def test_the_buffer_accepts_hits_while_the_store_is_unreachable_and_spools_nothing(
    buffering_node: StartNode, own_redis: RedisServer
) -> None:
    own_redis.start()
    async with buffering_node("redis", redis=own_redis) as (_, client):
        await client.post("/event/a")
        await wait_for_counts(client, a=1)
        own_redis.client().save()
        await client.post("/event/b")
        await wait_for_counts(client, a=1, b=1)
        own_redis.stop()
        for _ in range(3):
            assert (await client.post("/event/a")).status_code == 202
        health = (await client.get("/health")).json()
        assert health["status"] in {"ok", "degraded"}
        own_redis.start()  # with the data from before b
        await wait_for_counts(client, a=4, b=1)
        assert (await client.get("/health")).json()["spoolBytes"] == 0
        # The store is set back once more, now while no hits arrive.
        own_redis.stop()
        own_redis.start()
        await wait_for_counts(client, a=4, b=1)
