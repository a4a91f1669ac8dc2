"""Kafka in front: POSTs that wait in the log, and records of others that are counted, on a real Apache Kafka."""

import asyncio
import json
import shutil
import signal
import time
import urllib.error
import uuid
import zlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from importlib.metadata import distribution
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from playwright.sync_api import expect, sync_playwright

from app.domain.calendar import Calendar
from app.domain.counting import Commit, HitGroup
from app.domain.names import InvalidName, event_name
from app.kafka.decoding import RecordRejected, Ways, connection, read_foreign, read_own, topics
from app.settings import Settings
from app.stores.base import StoreLimits, StoreOpenError
from app.stores.redis import RedisStore
from app.stores.redis_url import RedisTarget
from app.stores.results import ApplyResult
from tests.support.fault_proxy import FaultProxy
from tests.support.kafka_broker import Broker
from tests.support.redis_servers import Cluster, RedisServer, free_port, wait_until
from tests.support.servers import ChosenClock, Served, eventually, serving, settings_for

pytestmark = pytest.mark.timeout(120)  # the first of them may fetch Kafka


@pytest.fixture
def named() -> dict[str, str]:
    """Topics and a group of this test alone."""
    name = uuid.uuid4().hex
    return {"kafka_topic": f"own.{name}", "kafka_dead_letters": f"dead.{name}", "kafka_group": name}


async def produce(
    broker: Broker, topic: str, *values: object, key: bytes | None = None, at: float | None = None
) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=broker.servers)
    await producer.start()
    ms = None if at is None else int(at * 1000)
    raw = [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]
    sent = [await producer.send(topic, value, key=key, timestamp_ms=ms) for value in raw]
    await asyncio.gather(*sent)
    await producer.stop()


async def letters(broker: Broker, topic: str, number: int) -> list[tuple[bytes, dict[str, bytes]]]:
    """So many dead letters: what was in each, and what it says beside."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=broker.servers, auto_offset_reset="earliest")
    await consumer.start()
    found = [await asyncio.wait_for(consumer.getone(), 20) for _ in range(number)]
    await consumer.stop()
    return [(record.value, dict(record.headers)) for record in found]


@asynccontextmanager
async def buffering(
    kind: str, tmp_path: Path, redis: RedisServer, broker: Broker, named: dict[str, str], **chosen: object
) -> AsyncIterator[Served]:
    """A node with Kafka in front of its store, which it has reached."""
    await broker.create(named["kafka_topic"], named["kafka_dead_letters"])
    settings = settings_for(kind, tmp_path, redis, kafka=broker.servers, **named, **chosen)
    async with serving(settings) as served:
        await reached(served)
        yield served


async def reached(served: Served) -> None:
    async with served.client() as client:

        async def well() -> bool:
            return not (await client.get("/health")).json()["reasons"]

        await eventually(well)


async def counted(served: Served, **expected: int) -> None:
    """Wait until these are the counts of the day, all of them."""
    seen: dict[str, int] = {}
    async with served.client() as client:

        async def as_expected() -> bool:
            seen.update((await client.get("/events")).json())
            return seen == expected

        try:
            await eventually(as_expected)
        except AssertionError:
            assert seen == expected


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
async def test_a_post_is_acknowledged_once_it_is_in_the_log_and_counted_from_there(
    kind: str, tmp_path: Path, redis_server: RedisServer, broker: Broker, named
) -> None:
    async with buffering(kind, tmp_path, redis_server, broker, named) as served, served.client() as client:
        one = await client.post("/event/a", json={"by": 3})
        assert (one.status_code, one.json()) == (
            202,
            {"eventName": "a", "countSeen": 0, "day": one.json()["day"], "ack": "kafka"},
        )
        many = await client.post("/events", content="a\nb\nb\n")
        assert many.status_code == 202
        assert many.json()["accepted"] == 3
        assert many.json()["ack"] == "kafka"
        await counted(served, a=4, b=2)
        assert (await client.post("/event/a")).json()["countSeen"] == 4
        await counted(served, a=5, b=2)
        assert (await client.post("/event/%2e")).status_code == 422
        assert (await client.post("/events", json=[{"event": "c"}, {"event": "/"}])).status_code == 422
        health = (await client.get("/health")).json()
        assert (health["ack"], "Kafka" in health["durability"]) == ("log", True)
        kafka = health["kafka"]
        assert (kafka["buffer"], kafka["records"], kafka["deadLetters"]) == (named["kafka_topic"], 3, 0)
        assert sum(part["position"] for part in kafka["partitions"]) == 3
        assert "tally_kafka_records_total 3.0" in (await client.get("/metrics")).text
    await counted_by_another(kind, tmp_path, redis_server, broker, named, a=5, b=2)


async def counted_by_another(kind: str, tmp_path: Path, redis: RedisServer, broker: Broker, named, **expected: int):
    """Who comes after it reads on from where the store stands, and counts nothing twice; memory has all to count."""
    settings = settings_for(kind, tmp_path, redis, kafka=broker.servers, **named)
    async with serving(settings) as served, served.client() as client:
        await reached(served)
        await counted(served, **expected)
        records = (await client.get("/health")).json()["kafka"]["records"]
        assert records == (3 if kind == "memory" else 0)


@pytest.mark.catches(
    "missing dedup in the log", "app/kafka/consumer.py", "            if key:\n", "            if False:\n"
)
async def test_a_key_travels_in_the_log_and_counts_once(tmp_path, redis_server, broker: Broker, named) -> None:
    async with buffering("sqlite", tmp_path, redis_server, broker, named) as served, served.client() as client:
        key = {"Idempotency-Key": "order-17"}
        for _ in range(3):
            assert (await client.post("/event/a", headers=key)).status_code == 202
        assert (await client.post("/events", json={"a": 2, "b": 1}, headers=key)).status_code == 202
        await counted(served, a=3, b=1)  # or else the next could be counted first, from another partition
        assert (await client.post("/events", json={"b": 7}, headers=key)).status_code == 202
        ((value, told),) = await letters(broker, named["kafka_dead_letters"], 1)
        assert told["tally.reason"] == b"mismatch"
        assert json.loads(value)["counts"] == {"b": 7}


async def test_who_hit_travels_in_the_log_too(tmp_path: Path, redis_server: RedisServer, broker: Broker, named) -> None:
    async with buffering("redis", tmp_path, redis_server, broker, named) as served, served.client() as client:
        await client.post("/event/a", json={"user": "Zoë", "by": 2})
        await client.post("/events", json=[{"event": "a", "user": "ann", "session": "s/1"}, {"event": "b"}])
        await client.post("/event/a", json={"user": "ann"}, headers={"Idempotency-Key": "k"})
        await counted(served, a=4, b=1)
        assert (await client.get("/event/a/audience")).json()["users"] == 2
        ranks = (await client.get("/leaderboard?event=a")).json()
        assert {row["user"]: row["count"] for row in ranks} == {"Zoë": 2, "ann": 2}


async def test_a_store_in_tags_takes_each_record_once_in_each(
    tmp_path: Path, redis_cluster: Cluster, redis_server: RedisServer, broker: Broker, named
) -> None:
    await broker.create(named["kafka_topic"], named["kafka_dead_letters"], partitions=1)
    settings = Settings(TALLY_STORE=redis_cluster.url, kafka=broker.servers, spool=str(tmp_path / "spool"), **named)
    async with serving(settings) as served, served.client() as client:
        await reached(served)
        names = {f"event {n}": n + 1 for n in range(20)}
        assert (await client.post("/events", json=names)).status_code == 202
        await counted(served, **names)
        store, source = served.app.state.store, f"kafka {named['kafka_topic']} 0"
        assert await store.get_offset(source) == 1
    # as after a crash between two tags, of which one had already taken the next batch, in another cut
    way = RedisTarget.from_url(redis_cluster.url)
    tag = RedisStore(way, StoreLimits(1000), zlib.crc32(b"event 0") % way.shards)
    now = Calendar(settings.timezone).slot(time.time())
    await tag.apply(source, 1, 3, [HitGroup(now, {"event 0": 2}, limited=False)])
    await tag.close()
    logged = [json.dumps({"counts": {"event 0": 1, "event 1": 1}}).encode()] * 4
    await produce(broker, named["kafka_topic"], *logged)
    async with serving(settings) as served:
        await counted(served, **(names | {"event 0": 5, "event 1": 6}))


@pytest.mark.catches(
    "answers of another batch",
    "app/kafka/consumer.py",
    "except ValueError:  # another",
    "except IndexError:  # another",
)
async def test_what_another_consumer_has_just_counted_in_another_shape_is_read_past(
    tmp_path: Path, redis_server: RedisServer, broker: Broker, named, caplog: pytest.LogCaptureFixture
) -> None:
    async with buffering("sqlite", tmp_path, redis_server, broker, named) as served, served.client() as client:
        store = served.app.state.store
        real = store.apply

        async def come_second(source: str, at: int, after: int, work: Commit) -> ApplyResult:
            if work:
                store.apply = real
                await real(source, at, after, [HitGroup(work[0].slot, {event: 1}) for event in "ab"])
            return await real(source, at, after, work)

        store.apply = come_second
        assert (await client.post("/events", json={"a": 1, "b": 1})).status_code == 202
        await counted(served, a=1, b=1)
        assert (await client.post("/event/c")).status_code == 202
        await counted(served, a=1, b=1, c=1)
    assert "reading from Kafka failed" not in caplog.text


@pytest.mark.catches(
    "every error is another consumer's",
    "app/kafka/consumer.py",
    "            if await self._store.get_offset(_source(place)) < next_offset:\n                raise\n",
    "",
)
async def test_an_error_that_nothing_explains_is_logged_and_tried_again(
    tmp_path: Path, redis_server: RedisServer, broker: Broker, named, caplog: pytest.LogCaptureFixture
) -> None:
    async with buffering("sqlite", tmp_path, redis_server, broker, named) as served, served.client() as client:
        store = served.app.state.store
        real = store.apply

        async def fail(source: str, at: int, after: int, work: Commit) -> ApplyResult:
            if not work:
                return await real(source, at, after, work)
            store.apply = real
            raise ValueError("nonsense")

        store.apply = fail
        assert (await client.post("/event/a")).status_code == 202
        await counted(served, a=1)
    assert "reading from Kafka failed" in caplog.text


async def test_without_kafka_a_post_is_refused_in_time(tmp_path: Path, redis_server: RedisServer) -> None:
    settings = settings_for("memory", tmp_path, redis_server, kafka=f"127.0.0.1:{free_port()}")
    async with serving(settings) as served, served.client() as client:
        begun = time.monotonic()
        answer = await client.post("/event/a")
        assert time.monotonic() - begun < 2.5
        assert (answer.status_code, answer.json()["counted"]) == (503, "no")
        health = await client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "down")


@pytest.mark.catches(
    "a stuck log that is written to", "app/kafka/consumer.py", "(stuck and not stuck.done()) or leader", "leader"
)
@pytest.mark.catches(
    "unknown called refused",
    "app/kafka/consumer.py",
    '            raise OutcomeUnknown("Kafka: no answer in time")',
    '            raise StoreUnavailable("Kafka: no answer in time")',
)
async def test_what_kafka_does_not_answer_in_time_is_unknown_and_counts_at_most_once(
    tmp_path: Path, redis_server: RedisServer, broker: Broker, named
) -> None:
    async with buffering("sqlite", tmp_path, redis_server, broker, named) as served, served.client() as client:
        assert (await client.post("/event/a")).status_code == 202
        broker.process.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        answers = await asyncio.gather(*(client.post("/event/a") for _ in range(5)))
        assert time.monotonic() - begun < 2.5
        assert {answer.json()["counted"] for answer in answers} == {"unknown"}
        begun = time.monotonic()
        answer = await client.post("/event/a")
        assert time.monotonic() - begun < 1
        assert (answer.status_code, answer.json()["counted"]) == (503, "no")
        broker.process.send_signal(signal.SIGCONT)
        await counted(served, a=6)  # the sender is the log's own, and tries on


def record(value: object = None, key: bytes | None = None, at: float = 1_800_000_000) -> SimpleNamespace:
    return SimpleNamespace(value=json.dumps(value).encode(), key=key, timestamp=int(at * 1000))


@pytest.mark.parametrize(
    ("ways", "of", "read"),
    [
        ({"event": "type"}, record({"type": "sale", "by": 9}), (1_800_000_000, {"sale": 1})),
        ({"event": "type", "by": "n"}, record({"type": "sale", "n": 3}), (1_800_000_000, {"sale": 3})),
        ({"event": "type", "by": "n"}, record({"type": "sale", "n": None}), (1_800_000_000, {"sale": 1})),
        ({"event": "order.state"}, record({"order": {"state": "paid"}}), (1_800_000_000, {"paid": 1})),
        ({"event": "@key"}, record("not read", key="e\u0301".encode()), (1_800_000_000, {"\u00e9": 1})),
        ({"event": "=visit"}, record("not read"), (1_800_000_000, {"visit": 1})),
        ({"event": "status"}, record({"status": 404}), (1_800_000_000, {"404": 1})),
        ({"event": "ok"}, record({"ok": True}), (1_800_000_000, {"true": 1})),
        ({"event": "=a", "user": "who", "session": "s"}, record({"who": "Zoë", "s": 7}), (1_800_000_000, {"a": 1})),
        ({"event": "=a", "time": "t"}, record({"t": "2026-11-23T10:00:00+02:00"}), (1_795_420_800, {"a": 1})),
        ({"event": "=a", "time": "t"}, record({"t": "2026-11-23T08:00:00"}), (1_795_420_800, {"a": 1})),
        ({"event": "=a", "time": "t"}, record({"t": 1_795_420_800_123}), (1_795_420_800.123, {"a": 1})),
        ({"event": "=a", "time": "t"}, record({"t": 1_795_420_800}), (1_795_420_800, {"a": 1})),
    ],
)
def test_a_foreign_record_is_read_where_the_settings_say(ways, of, read) -> None:
    assert read_foreign(Ways(**ways))(of)[:2] == read


@pytest.mark.parametrize(
    ("ways", "of"),
    [
        ({"event": "type"}, record({"kind": "sale"})),
        ({"event": "type"}, record({"type": ["sale"]})),
        ({"event": "type"}, record({"type": "a/b"})),
        ({"event": "type"}, record(["sale"])),
        ({"event": "type"}, SimpleNamespace(value=b"\xff{", key=None, timestamp=0)),
        ({"event": "type"}, SimpleNamespace(value=None, key=None, timestamp=0)),
        ({"event": "type"}, SimpleNamespace(value=b"[" * 100_000, key=None, timestamp=0)),
        ({"event": "=a", "by": "n"}, record({"n": 0})),
        ({"event": "=a", "by": "n"}, record({"n": 1.5})),
        ({"event": "=a", "by": "n"}, record({"n": True})),
        ({"event": "=a", "by": "n"}, record({"n": 10**30})),
        ({"event": "=a", "user": "who"}, record({"who": ""})),
        ({"event": "=a", "user": "who"}, record({"who": {"id": 1}})),
        ({"event": "=a", "time": "t"}, record({"t": "yesterday"})),
        ({"event": "=a", "time": "t"}, record({"t": None})),
        ({"event": "@key"}, record("none")),
    ],
)
def test_a_foreign_record_that_makes_no_sense_is_told_apart(ways, of) -> None:
    with pytest.raises(RecordRejected, match="malformed"):
        read_foreign(Ways(**ways))(of)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{}",
        b'{"counts":{"a":0}}',
        b'{"counts":{"a/b":1}}',
        b'{"counts":{"a":1},"more":1}',
        b'{"counts":{"a":1.5}}',
        b'{"counts":{"a":1},"visits":[["b",1,"u",null]]}',
        b'{"counts":{"a":1},"visits":[["a",2,"u",null]]}',
    ],
)
def test_what_somebody_else_writes_into_our_topic_is_not_believed(value: bytes) -> None:
    with pytest.raises(RecordRejected, match="malformed"):
        read_own(SimpleNamespace(value=value, key=None, timestamp=0))


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"kafka": "k:1", "kafka_inputs": "l:1/orders"}, "INPUTS: all topics are on one Kafka"),
        ({"kafka": "k:1", "kafka_topic": "a", "kafka_dead_letters": "a"}, "TOPIC and .* are two topics"),
        ({"kafka_inputs": "k:1/a?event=e k:1/a"}, "INPUTS: 'a' is no topic, or one that is used already"),
        ({"kafka_inputs": "k:1/tally.dead"}, "INPUTS: 'tally.dead' is no topic"),
        ({"kafka_inputs": "k:1/a/b"}, "INPUTS: 'a/b' is no topic"),
        ({"kafka_inputs": "k:1/a?user=u"}, "INPUTS: a: .*`event`"),
        ({"kafka_inputs": "k:1/a?event=e&name=n"}, "INPUTS: a: .*`name`"),
        ({"kafka_inputs": "k:1/a?event"}, "INPUTS: a: "),
        ({"kafka": "k:1", "kafka_options": "acks=0"}, "OPTIONS: acks is none of"),
        ({"kafka": "k:1", "kafka_options": "security_protocol=TLS"}, "OPTIONS: security_protocol is one of"),
        ({"kafka": "k:1", "kafka_options": "security_protocol=SASL_SSL"}, "OPTIONS: .* with a user name"),
        ({"kafka": "k:1", "kafka_options": "security_protocol=SSL&ssl_cafile=/none"}, "OPTIONS: .* cannot be used"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_a_sentence(chosen: dict[str, str], words: str) -> None:
    settings = Settings(TALLY_STORE="memory://", **chosen)
    with pytest.raises(StoreOpenError, match=f"TALLY_KAFKA_{words}"):
        connection(settings, topics(settings)[0])


@pytest.mark.catches(
    "a bad record that stops its partition",
    "app/kafka/consumer.py",
    "            except RecordRejected as error:\n",
    "            except KafkaError as error:\n",
)
@pytest.mark.catches(
    "the day of the consumer, not of the record",
    "app/kafka/consumer.py",
    "minute, slot = at // 60, calendar.moment(at)",
    "minute, slot = at // 60, calendar.moment(now)",
)
@pytest.mark.catches("a cap that is not held", "app/kafka/consumer.py", "self._reads[topic] is not read_own", "False")
async def test_bad_records_are_buried_with_their_reason_and_the_others_land_on_their_own_day(
    tmp_path: Path, redis_server: RedisServer, broker: Broker, named
) -> None:
    orders = f"orders.{named['kafka_group']}"
    await broker.create(orders, named["kafka_dead_letters"], partitions=1)
    now = datetime.now(UTC)
    yesterday, ancient, soon = now - timedelta(days=1), now - timedelta(days=30), now + timedelta(hours=1)
    records = [{"state": "paid"}, b"nonsense", {"state": "paid", "t": yesterday.isoformat()}, {"state": "sent"}]
    records += [{"state": "paid", "t": ancient.isoformat()}, {"state": "paid", "t": soon.timestamp()}]
    records += [{"state": "one more"}, {"state": "one more"}, {"state": "paid"}]
    records = [r if isinstance(r, bytes) else {"t": now.isoformat()} | r for r in records]
    await produce(broker, orders, *records, key=b"k")
    inputs = f"{broker.servers}/{orders}?event=state&time=t"
    settings = settings_for("sqlite", tmp_path, redis_server, kafka_inputs=inputs, events_max=2, days_kept=8, **named)
    async with serving(settings) as served, served.client() as client:
        assert (await client.post("/event/sent")).status_code == 200  # inputs alone leave POSTs as they are
        await counted(served, paid=2, sent=2)
        past = (await client.get(f"/history/{yesterday.date()}")).json()
        assert past["parts"][0]["counts"] == {"paid": 1}
        found = await letters(broker, named["kafka_dead_letters"], 5)
        assert sorted((told["tally.reason"].partition(b":")[0], told["tally.offset"]) for _, told in found) == [
            (b"full", b"6"), (b"full", b"7"), (b"future", b"5"), (b"malformed", b"1"), (b"old", b"4"),
        ]  # fmt: skip
        assert {told["tally.topic"].decode() for _, told in found} == {orders}
        assert b"nonsense" in [value for value, _ in found]
        metrics = (await client.get("/metrics")).text
        assert 'tally_kafka_dead_letters_total{reason="full"} 2.0' in metrics
        assert 'tally_kafka_position{partition="0",topic="' + orders + '"} 9.0' in metrics


async def test_a_hit_is_of_the_day_on_which_it_was_acknowledged(
    tmp_path: Path, redis_server: RedisServer, broker: Broker, named, clock: ChosenClock
) -> None:
    await broker.create(named["kafka_topic"], message_timestamp_after_max_ms=str(2 * 86_400_000))
    settings = settings_for("sqlite", tmp_path, redis_server, kafka=broker.servers, **named)
    midnight = Calendar(settings.timezone).next_day(time.time())
    clock.shift = midnight - time.time() - 3600
    async with serving(settings, clock) as served, served.client() as client:
        await reached(served)
        before = (await client.post("/event/a")).json()["day"]
        await counted(served, a=1)
        clock.shift += 7200
        after = (await client.post("/event/a", json={"by": 2})).json()["day"]
        assert before < after
        await counted(served, a=2)
        assert (await client.get(f"/history/{before}")).json()["parts"][0]["counts"] == {"a": 1}


@pytest.mark.catches(
    "a spool beside the log", "app/stores/offline.py", "source.startswith(PERMANENT_SOURCE_PREFIX)", "False"
)
async def test_with_the_store_away_the_log_goes_on_and_nothing_is_spooled(
    tmp_path: Path, own_redis: RedisServer, broker: Broker, named
) -> None:
    own_redis.start()
    async with buffering("redis", tmp_path, own_redis, broker, named) as served, served.client() as client:
        await client.post("/event/a")
        await counted(served, a=1)
        own_redis.client().save()
        await client.post("/event/b")
        await counted(served, a=1, b=1)
        own_redis.stop()
        for _ in range(3):
            assert (await client.post("/event/a")).status_code == 202
        health = (await client.get("/health")).json()
        assert health["status"] in {"ok", "degraded"}
        own_redis.start()  # as it was before b
        await counted(served, a=4, b=1)
        assert (await client.get("/health")).json()["spoolBytes"] == 0
        own_redis.stop()
        own_redis.start()  # and again, while nothing comes
        await counted(served, a=4, b=1)


async def test_an_answer_of_the_store_that_gets_lost_counts_nothing_twice(
    tmp_path: Path, redis_server: RedisServer, broker: Broker, named
) -> None:
    async with FaultProxy(redis_server.socket) as proxy:
        redis = SimpleNamespace(url=proxy.url)
        async with buffering("redis", tmp_path, redis, broker, named) as served, served.client() as client:
            for number in range(1, 4):
                lost = proxy.strike("cut after", holding=named["kafka_topic"].encode(), left=1)
                assert (await client.post("/event/a")).status_code == 202
                await eventually(lambda lost=lost: lost.struck)
                await counted(served, a=number)
            assert (await client.get("/health")).json()["spoolBytes"] == 0


@pytest.mark.catches(
    "Kafka's own positions",
    "app/kafka/consumer.py",
    "            elif self._at.get(place) != stands:\n                consumer.seek(place, stands)\n",
    "            elif self._at.get(place) != stands:\n",
)
async def test_a_position_that_kafka_keeps_is_not_believed(
    tmp_path: Path, redis_server: RedisServer, broker: Broker, named
) -> None:
    topic, group = named["kafka_topic"], named["kafka_group"]
    await broker.create(topic, named["kafka_dead_letters"], partitions=1)
    settings = settings_for("redis", tmp_path, redis_server, kafka=broker.servers, **named)
    for number, kept in enumerate((0, 0, 3)):  # as much as was counted, then less, then more
        await produce(broker, topic, {"counts": {"a": 1}})
        async with AIOKafkaConsumer(bootstrap_servers=broker.servers, group_id=group) as consumer:
            consumer.assign([TopicPartition(topic, 0)])
            await consumer.commit({TopicPartition(topic, 0): kept})
        async with serving(settings) as served:
            await counted(served, a=number + 1)


async def test_what_kafka_has_dropped_is_told_and_a_log_that_was_made_anew_is_not_read(
    tmp_path: Path, redis_server: RedisServer, broker: Broker, named
) -> None:
    topic = named["kafka_topic"]
    settings = settings_for("redis", tmp_path, redis_server, kafka=broker.servers, **named)
    async with buffering("redis", tmp_path, redis_server, broker, named) as served, served.client() as client:
        await client.post("/event/a")
        await counted(served, a=1)
    logged = json.dumps({"counts": {"a": 1}}).encode()
    await produce(broker, topic, *[logged] * 5, key=b"a")
    await broker.drop(topic, before=4)
    async with serving(settings) as served, served.client() as client:
        await counted(served, a=3)
        assert (await client.get("/health")).json()["kafka"]["missed"] == 3
    await broker.delete(topic)
    await broker.create(topic)
    async with serving(settings) as served, served.client() as client:

        async def told() -> bool:
            return "ends before what was counted" in str((await client.get("/health")).json()["reasons"])

        await eventually(told)


async def test_kafka_may_ask_for_tls_and_a_password(
    tmp_path: Path, redis_server: RedisServer, broker: Broker, named
) -> None:
    await broker.create(named["kafka_topic"])
    settings = settings_for(
        "memory", tmp_path, redis_server, kafka=broker.guarded, kafka_options=broker.options, **named
    )
    assert "password" not in repr(settings)
    async with serving(settings) as served, served.client() as client:
        await reached(served)
        assert (await client.post("/event/a")).status_code == 202
        await counted(served, a=1)
    stranger = settings.model_copy(update={"kafka_options": broker.options.replace("password=", "password=x")})
    async with serving(stranger) as served, served.client() as client:

        async def refused() -> bool:
            return "Kafka cannot be read" in str((await client.get("/health")).json()["reasons"])

        await eventually(refused)
        assert (await client.post("/event/a")).status_code == 503


def components() -> list[dict[str, object]]:
    """Real records that were written for something else: what the tools of this project are made of."""
    found = []
    for tool in ("ruff", "uv"):
        (path,) = [path for path in distribution(tool).files or [] if path.name.endswith(".cyclonedx.json")]
        found += json.loads(Path(path.locate()).read_text())["components"]
    return found


def test_a_topic_that_is_there_is_on_the_dashboard_by_settings_alone(process, broker: Broker, named) -> None:
    topic, records = f"parts.{named['kafka_group']}", components()
    asyncio.run(broker.create(topic, named["kafka_dead_letters"]))
    asyncio.run(produce(broker, topic, *records))
    app = process(
        TALLY_STORE="memory://",
        TALLY_KAFKA_INPUTS=f"{broker.servers}/{topic}?event=author&user=name",
        TALLY_KAFKA_GROUP=named["kafka_group"],
        TALLY_KAFKA_DEAD_LETTERS=named["kafka_dead_letters"],
    )
    expected = Counter(text for part in records if is_name(text := part.get("author", "")))
    assert len(records) > 500
    assert len(expected) > 100
    wait_until(lambda: app.get("/events") == expected, lambda: str(app.get("/health")))
    assert app.get("/health")["kafka"]["deadLetters"] == len(records) - expected.total() > 0
    ((author, _),) = expected.most_common(1)
    users = {part["name"] for part in records if part.get("author") == author}
    assert app.get(f"/event/{quote(author, safe='')}/audience")["users"] == len(users)
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"]).new_page()
        page.goto(app.url)
        expect(page.locator("main")).to_contain_text(author, timeout=20_000)
        expect(page.locator("main")).to_contain_text(str(expected.total()), timeout=20_000)


def is_name(text: object) -> bool:
    with suppress(InvalidName):
        return bool(event_name(str(text)))
    return False


def test_a_process_may_do_nothing_but_consume(process, redis_server: RedisServer, broker: Broker, named) -> None:
    asyncio.run(broker.create(named["kafka_topic"]))
    names = {f"TALLY_{name.upper()}": value for name, value in named.items()}
    consumer = process("-m", "app", "consume", TALLY_STORE=redis_server.url, TALLY_KAFKA=broker.servers, **names)
    assert "counts what is in Kafka" in consumer.log.read_text()
    logged = json.dumps({"counts": {"a": 2}}).encode()
    asyncio.run(produce(broker, named["kafka_topic"], logged))
    wait_until(lambda: consumer.get("/health")["kafka"]["records"] == 1)
    for path in ("/event/a", "/", "/events"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            consumer.get(path)
    assert consumer.terminate() == 0
