"""The consumer counts each record exactly once, whatever happens to it, to Kafka or to the store."""

import asyncio
import time
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from app.domain.calendar import Calendar, Clock
from app.domain.counting import Commit, HitGroup
from app.kafka.service import KafkaService
from app.kafka.sources import current_source, letters_source
from app.metrics import Metrics
from app.settings import Settings
from app.stores import create_store
from app.stores.base import OutcomeUnknown, StoreLimits, StoreUnavailable
from app.stores.memory import MemoryStore
from app.stores.redis import RedisStore
from app.stores.redis_url import RedisTarget
from app.stores.results import ApplyResult
from tests.kafka.conftest import MakeSettings, StartNode
from tests.kafka.waiting import wait_for_counts, wait_until_ready
from tests.support.fault_proxy import FaultProxy
from tests.support.kafka_broker import PARTITIONS, Broker
from tests.support.redis_servers import Cluster, RedisServer
from tests.support.servers import eventually, serving, settings_for

pytestmark = pytest.mark.timeout(180)  # the first test of a run may download Kafka


async def test_each_shard_counts_a_record_once(
    tmp_path: Path, redis_cluster: Cluster, broker: Broker, names: dict[str, str]
) -> None:
    topic = names["kafka_topic"]
    await broker.create_topics(topic, names["kafka_dead_letters"], partitions=1)
    settings = Settings(TALLY_STORE=redis_cluster.url, kafka=broker.servers, spool=str(tmp_path / "spool"), **names)
    async with serving(settings) as node, node.client() as client:
        await wait_until_ready(client)
        amounts = {f"event {number}": number + 1 for number in range(20)}
        assert (await client.post("/events", json=amounts)).status_code == 202
        await wait_for_counts(client, **amounts)
        assert await node.app.state.store.get_offset(f"kafka {topic} 0") == 1
    # A consumer crashed between two shards, one of which had applied a commit of two records.
    target = RedisTarget.from_url(redis_cluster.url)
    shard = RedisStore(target, StoreLimits(1000), zlib.crc32(b"event 0") % target.shards)
    now = Calendar(settings.timezone).slot(time.time())
    await shard.apply(f"kafka {topic} 0", 1, 3, [HitGroup(now, {"event 0": 2}, limited=False)])
    await shard.close()
    await broker.produce(topic, *[{"counts": {"event 0": 1, "event 1": 1}}] * 4)
    async with serving(settings) as node, node.client() as client:
        await wait_for_counts(client, **(amounts | {"event 0": 5, "event 1": 6}))


@pytest.mark.fails_on_mutant(
    "results of another commit",
    "app/kafka/counter.py",
    "except ValueError:  # the saved",
    "except IndexError:  # the saved",
)
async def test_the_consumer_continues_after_records_that_another_has_counted_in_other_groups(
    buffering_node: StartNode, caplog: pytest.LogCaptureFixture
) -> None:
    async with buffering_node() as (node, client):
        store = node.app.state.store
        apply = store.apply

        async def apply_second(
            source: str, expected_offset: int, new_offset: int, commit: Commit, note: str = ""
        ) -> ApplyResult:
            if commit:
                store.apply = apply
                groups = [HitGroup(commit[0].slot, {event: 1}) for event in "ab"]
                await apply(source, expected_offset, new_offset, groups)
            return await apply(source, expected_offset, new_offset, commit, note)

        store.apply = apply_second
        assert (await client.post("/events", json={"a": 1, "b": 1})).status_code == 202
        await wait_for_counts(client, a=1, b=1)
        assert (await client.post("/event/c")).status_code == 202
        await wait_for_counts(client, a=1, b=1, c=1)
    assert "reading from Kafka failed" not in caplog.text


@pytest.mark.fails_on_mutant(
    "every error is taken for another consumer's commit",
    "app/kafka/counter.py",
    "            if await self._store.get_offset(source) < made.end:\n                raise\n",
    "",
)
async def test_an_unexpected_error_is_logged_and_retried(
    buffering_node: StartNode, caplog: pytest.LogCaptureFixture
) -> None:
    async with buffering_node() as (node, client):
        store = node.app.state.store
        apply = store.apply

        async def fail(
            source: str, expected_offset: int, new_offset: int, commit: Commit, note: str = ""
        ) -> ApplyResult:
            if not commit:
                return await apply(source, expected_offset, new_offset, commit, note)
            store.apply = apply
            raise ValueError("unexpected")

        store.apply = fail
        assert (await client.post("/event/a")).status_code == 202
        await wait_for_counts(client, a=1)
    assert "reading from Kafka failed" in caplog.text


@pytest.mark.fails_on_mutant(
    "a bad record stops its partition",
    "app/kafka/commits.py",
    "        except RecordRejected as error:\n",
    "        except KeyError as error:\n",
)
@pytest.mark.fails_on_mutant(
    "a record counts on the day of its consumption",
    "app/kafka/commits.py",
    "self._minute, self._slot = at // 60, self._calendar.slot(at)",
    "self._minute, self._slot = at // 60, self._calendar.slot(self._now)",
)
@pytest.mark.fails_on_mutant(
    "no limit on event names",
    "app/kafka/counter.py",
    "decode, decode is decode_buffered, records",
    "decode, True, records",
)
async def test_bad_records_become_dead_letters_and_the_others_count_on_their_own_day(
    make_settings: MakeSettings, broker: Broker, names: dict[str, str]
) -> None:
    orders = f"orders.{names['kafka_group']}"
    await broker.create_topics(orders, names["kafka_dead_letters"], partitions=1)
    now = datetime.now(UTC)
    yesterday, ancient, soon = now - timedelta(days=1), now - timedelta(days=30), now + timedelta(hours=1)
    records = [{"state": "paid"}, b"nonsense", {"state": "paid", "t": yesterday.isoformat()}, {"state": "sent"}]
    records += [{"state": "paid", "t": ancient.isoformat()}, {"state": "paid", "t": soon.timestamp()}]
    records += [{"state": "one more"}, {"state": "one more"}, {"state": "paid"}]
    records = [r if isinstance(r, bytes) else {"t": now.isoformat()} | r for r in records]
    await broker.produce(orders, *records, key=b"k")
    inputs = f"{broker.servers}/{orders}?event=state&time=t"
    settings = make_settings(kafka="", kafka_inputs=inputs, events_max=2, days_kept=8)
    async with serving(settings) as node, node.client() as client:
        assert (await client.post("/event/sent")).status_code == 200  # without a buffer, POSTs are counted at once
        await wait_for_counts(client, paid=2, sent=2)
        past = (await client.get(f"/history/{yesterday.date()}")).json()
        assert past["parts"][0]["counts"] == {"paid": 1}
        letters = await broker.read(names["kafka_dead_letters"], 5)
        origins = [(headers["tally.reason"].partition(b":")[0], headers["tally.offset"]) for _, headers in letters]
        expected = [(b"full", b"6"), (b"full", b"7"), (b"future", b"5"), (b"malformed", b"1"), (b"old", b"4")]
        assert sorted(origins) == expected
        assert {headers["tally.topic"].decode() for _, headers in letters} == {orders}
        assert b"nonsense" in [value for value, _ in letters]
        metrics = (await client.get("/metrics")).text
        assert 'tally_kafka_dead_letters_total{reason="full"} 2.0' in metrics
        assert 'tally_kafka_position{partition="0",topic="' + orders + '"} 9.0' in metrics


async def test_a_lost_response_of_the_store_counts_nothing_twice(
    buffering_node: StartNode, redis_server: RedisServer, names: dict[str, str]
) -> None:
    async with (
        FaultProxy(redis_server.socket) as proxy,
        buffering_node("redis", redis=SimpleNamespace(url=proxy.url)) as (_, client),
    ):
        for number in range(1, 4):
            lost = proxy.inject("cut after", matching=names["kafka_topic"].encode(), remaining=1)
            assert (await client.post("/event/a")).status_code == 202
            await eventually(lambda lost=lost: lost.injected)
            await wait_for_counts(client, a=number)
        assert (await client.get("/health")).json()["spoolBytes"] == 0


@pytest.mark.fails_on_mutant(
    "reading from Kafka's own offsets", "app/kafka/consumer.py", "        consumer.seek(partition, begin)\n", ""
)
async def test_offsets_in_kafka_are_ignored(make_settings: MakeSettings, broker: Broker, names: dict[str, str]) -> None:
    topic, group = names["kafka_topic"], names["kafka_group"]
    await broker.create_topics(topic, names["kafka_dead_letters"], partitions=1)
    # Kafka's offset is equal to the store's, then lower, then higher.
    for counted, kafka_offset in enumerate((0, 0, 3)):
        await broker.produce(topic, {"counts": {"a": 1}})
        async with AIOKafkaConsumer(bootstrap_servers=broker.servers, group_id=group) as consumer:
            consumer.assign([TopicPartition(topic, 0)])
            await consumer.commit({TopicPartition(topic, 0): kafka_offset})
        async with serving(make_settings("redis")) as node, node.client() as client:
            await wait_for_counts(client, a=counted + 1)


async def test_expired_records_are_reported(
    make_settings: MakeSettings, buffering_node: StartNode, broker: Broker, names: dict[str, str]
) -> None:
    topic = names["kafka_topic"]
    async with buffering_node("redis") as (_, client):
        await client.post("/event/a")
        await wait_for_counts(client, a=1)
    await broker.produce(topic, *[{"counts": {"a": 1}}] * 5, key=b"a")
    await broker.delete_records(topic, before=4)
    async with serving(make_settings("redis")) as node, node.client() as client:
        await wait_for_counts(client, a=3)
        assert (await client.get("/health")).json()["kafka"]["missed"] == 3


@pytest.mark.fails_on_mutant(
    "the lag includes the markers of transactions",
    "app/kafka/consumer.py",
    "- max(offset, self._reached.get(partition, 0))",
    "- offset",
)
@pytest.mark.fails_on_mutant(
    "names that were never counted stay for ever after a transaction",
    "app/kafka/consumer.py",
    "max(counted, self._reached.get(partition, 0)) < goal",
    "counted < goal",
)
async def test_the_marker_of_a_transaction_is_no_record_that_waits(
    buffering_node: StartNode, broker: Broker, names: dict[str, str]
) -> None:
    async with buffering_node(events_max=2) as (_, client):
        key = {"Idempotency-Key": "k"}
        assert (await client.post("/events", json={"a": 1}, headers=key)).status_code == 202
        await wait_for_counts(client, a=1)
        # The key was used for a, so b becomes a dead letter and leaves its place to c.
        assert (await client.post("/events", json={"b": 1}, headers=key)).status_code == 202
        await broker.read(names["kafka_dead_letters"], 1)
        await broker.produce_in_transaction(names["kafka_topic"], {"counts": {"a": 1}})
        await wait_for_counts(client, a=1 + PARTITIONS)

        async def has_no_lag() -> bool:
            return not any(p["lag"] for p in (await client.get("/health")).json()["kafka"]["partitions"])

        async def has_room() -> bool:
            return (await client.post("/event/c")).status_code == 202

        await eventually(has_room)
        await eventually(has_no_lag)


class SwallowingService(KafkaService):
    """Swallows the first cancellation of the task that counts, as asyncio.wait_for of Python 3.11 may do."""

    waiting = swallowed = False

    async def _on_synced(self, all_counted: bool) -> None:
        if not self.swallowed:
            self.waiting = True
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.swallowed = True


@pytest.mark.fails_on_mutant(
    "closing relies on one cancellation",
    "app/kafka/producer.py",
    "    while not task.done():",
    "    if not task.done():",
)
async def test_closing_ends_a_consumer_that_swallows_a_cancellation(
    make_settings: MakeSettings, broker: Broker, names: dict[str, str]
) -> None:
    await broker.create_topics(names["kafka_topic"])
    settings = make_settings("memory")
    store, clock = MemoryStore(StoreLimits(10)), Clock(Calendar(settings.timezone), time.time)
    service = SwallowingService(settings, store, clock, lambda _: 0, lambda *_: None, Metrics())
    service.start()
    await eventually(lambda: service.waiting)
    assert service.is_running
    await service.close()
    assert service.swallowed
    assert not service.is_running


@pytest.mark.fails_on_mutant(
    "Kafka records are spooled as well",
    "app/stores/offline.py",
    "source.startswith(PERMANENT_SOURCE_PREFIX)",
    "source.startswith('never')",
)
async def test_a_commit_of_a_partition_is_never_spooled(tmp_path: Path, own_redis: RedisServer) -> None:
    own_redis.start()
    settings = settings_for("redis", tmp_path, own_redis)
    store, slot = create_store(settings), Calendar(settings.timezone).slot(time.time())
    await store.open()
    own_redis.stop()
    with pytest.raises((StoreUnavailable, OutcomeUnknown)):
        await store.apply("kafka topic 0", 0, 1, [HitGroup(slot, {"a": 1})])
    assert store.status().spool_bytes == 0
    await store.close()


@pytest.mark.fails_on_mutant(
    "dead letters are lost by a crash",
    "app/kafka/consumer.py",
    "        if rereading.has_unsent_letters:\n",
    "        if False:\n",
)
@pytest.mark.fails_on_mutant(
    "dead letters are written again after each start",
    "app/kafka/counter.py",
    "            await self._store.apply(letters, await self._store.get_offset(letters), made.end, [])\n",
    "            pass\n",
)
@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_dead_letters_survive_a_crash_after_the_commit_and_are_written_once(
    make_settings: MakeSettings, broker: Broker, names: dict[str, str], kind: str
) -> None:
    topic = f"orders.{names['kafka_group']}"
    await broker.create_topics(topic, names["kafka_dead_letters"], partitions=1)
    settings = make_settings(kind, kafka="", kafka_inputs=f"{broker.servers}/{topic}?event=e", events_max=1)
    async with serving(settings) as node, node.client() as client:
        await client.post("/event/a")
        store = node.app.state.store
        apply, applied = store.apply, asyncio.Event()

        async def never_respond(*arguments: object) -> None:
            await apply(*arguments)
            if arguments[3]:
                applied.set()
                await asyncio.Event().wait()

        store.apply = never_respond
        await broker.produce(topic, *({"e": event} for event in "abac"), key=b"k")
        await asyncio.wait_for(applied.wait(), 30)
    async with serving(settings) as node:
        await broker.read(names["kafka_dead_letters"], 2)
        store = node.app.state.store
        letters = letters_source(await current_source(store, topic, 0))
        await eventually(lambda: store.get_offset(letters))  # the store knows that they are written
    async with serving(settings) as node, node.client() as client:
        await broker.produce(topic, {"e": "a"}, key=b"k")
        await wait_for_counts(client, a=4)
    await broker.produce(names["kafka_dead_letters"], b"last")
    written = await broker.read(names["kafka_dead_letters"], 3)
    assert [headers.get("tally.offset") for _, headers in written] == [b"1", b"3", None]


async def test_dead_letters_survive_a_lost_response_of_the_store(
    make_settings: MakeSettings, broker: Broker, names: dict[str, str], redis_server: RedisServer
) -> None:
    topic = f"orders.{names['kafka_group']}"
    await broker.create_topics(topic, names["kafka_dead_letters"], partitions=1)
    async with FaultProxy(redis_server.socket) as proxy:
        inputs = f"{broker.servers}/{topic}?event=e"
        redis = SimpleNamespace(url=proxy.url)
        settings = make_settings("redis", redis=redis, kafka="", kafka_inputs=inputs, events_max=1)
        async with serving(settings) as node, node.client() as client:
            await client.post("/event/a")
            await wait_until_ready(client)
            lost = proxy.inject("cut after", matching=b'["b"', remaining=1)
            await broker.produce(topic, {"e": "b"}, {"e": "a"}, key=b"k")
            await wait_for_counts(client, a=2)
            ((value, headers),) = await broker.read(names["kafka_dead_letters"], 1)
            assert (value, headers["tally.reason"], lost.injected) == (b'{"e": "b"}', b"full", 1)
