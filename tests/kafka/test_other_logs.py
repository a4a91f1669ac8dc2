"""A log that goes back, or a topic that is recreated, is never counted twice and never skipped silently."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.kafka.sources import current_source, set_offset
from app.stores.base import StoreLimits, StoreOpenError
from app.stores.memory import MemoryStore
from tests.kafka.conftest import MakeSettings
from tests.kafka.waiting import wait_for_counts, wait_for_reason, wait_until_ready
from tests.support.kafka_broker import Broker
from tests.support.redis_servers import wait_until
from tests.support.servers import Process, eventually, serving

pytestmark = pytest.mark.timeout(180)  # the first test of a run may download Kafka

A = {"counts": {"a": 1}}
B = {"counts": {"b": 1}}


async def recreate(broker: Broker, topic: str, *values: object) -> None:
    """Delete a topic and create it again, with other records."""
    await broker.delete_topic(topic)

    async def is_created() -> bool:
        try:
            await broker.create_topics(topic, partitions=1)
        except AssertionError:  # Kafka is still deleting it
            return False
        return True

    await eventually(is_created)
    await broker.produce(topic, *values, key=b"k")


@pytest.mark.fails_on_mutant(
    "a log that has grown past the offset is read on",
    "app/kafka/rereading.py",
    "return not found or record_digest(self.records[-1]) == self.last.digest",
    "return True",
)
@pytest.mark.parametrize(("kind", "running"), [("sqlite", True), ("redis", False)])
async def test_a_recreated_topic_is_reported_until_the_operator_chooses_an_offset(
    make_settings: MakeSettings, broker: Broker, names: dict[str, str], kind: str, running: bool
) -> None:
    topic = names["kafka_topic"]
    await broker.create_topics(topic, names["kafka_dead_letters"], partitions=1)
    await broker.produce(topic, *[A] * 5, key=b"k")
    async with serving(make_settings(kind)) as node, node.client() as client:
        await wait_for_counts(client, a=5)
        if running:
            await recreate(broker, topic, *[B] * 3)
            await wait_for_reason(client, "it ends at offset 3, but was counted up to 5")
            await broker.produce(topic, *[B] * 6, key=b"k")
            await wait_for_reason(client, "the record at offset 4 is not the one that was counted")
            await wait_for_counts(client, a=5)
    if not running:
        await recreate(broker, topic, *[B] * 9)
    async with serving(make_settings(kind)) as node, node.client() as client:
        await wait_for_reason(client, "the record at offset 4 is not the one that was counted")
        await wait_for_counts(client, a=5)
        await set_offset(node.app.state.store, topic, 0, 0)
        await wait_until_ready(client)
        await wait_for_counts(client, a=5, b=9)
        await broker.produce(topic, B, key=b"k")
        await wait_for_counts(client, a=5, b=10)
    async with serving(make_settings(kind)) as node, node.client() as client:
        await wait_until_ready(client)
        await wait_for_counts(client, a=5, b=10)


@pytest.mark.fails_on_mutant(
    "a source that was used is used again", "app/kafka/sources.py", "    while await store", "    if await store"
)
async def test_an_offset_can_be_chosen_again_but_only_for_a_partition_that_was_counted() -> None:
    store = MemoryStore(StoreLimits(10))
    with pytest.raises(StoreOpenError, match="has counted no record of topic t partition 1"):
        await set_offset(store, "t", 1, 0)
    await store.apply("kafka t 0", 0, 1000, [])
    await store.apply("kafka t 0 1", 0, 900, [])  # an earlier command was interrupted
    for offset, source in ((990, "kafka t 0 2"), (0, "kafka t 0 3"), (5, "kafka t 0 3"), (0, "kafka t 0 4")):
        await set_offset(store, "t", 0, offset)
        assert await current_source(store, "t", 0) == source
        assert await store.get_offset(source) == offset


@pytest.mark.fails_on_mutant(
    "a log is read on over a new connection",
    "app/kafka/consumer.py",
    "if leader_connection(consumer, partition) is not self._connections[partition]:",
    "if False:",
)
def test_a_broker_that_returns_with_an_older_copy_of_its_log_is_noticed(
    process: Callable[..., Process], tmp_path: Path
) -> None:
    (tmp_path / "broker").mkdir()
    broker = Broker(tmp_path / "broker")
    environment = {"TALLY_STORE": f"sqlite:///{tmp_path}/tally.db", "TALLY_KAFKA_INPUTS": f"{broker.servers}/t?event=e"}

    def produce(number: int, event: str) -> None:
        asyncio.run(broker.produce("t", *[{"e": event}] * number, key=b"k"))

    try:
        broker.start()
        asyncio.run(broker.create_topics("t", partitions=1))
        produce(5, "a")
        app = process(**environment)
        wait_until(lambda: app.get("/events") == {"a": 5})
        broker.stop()
        shutil.copytree(broker.data, tmp_path / "copy")
        broker.start()
        produce(4, "a")
        wait_until(lambda: app.get("/events") == {"a": 9})
        # The old copy returns, and has grown past the counted offset before the node reads from it again.
        os.kill(app.pid, signal.SIGSTOP)
        broker.stop()
        shutil.rmtree(broker.data)
        (tmp_path / "copy").rename(broker.data)
        broker.start()
        produce(7, "b")
        os.kill(app.pid, signal.SIGCONT)
        wait_until(lambda: "the record at offset 8 is not the one that was counted" in str(app.get("/health")))
        assert app.get("/events") == {"a": 9}
        app.terminate()
        command = [sys.executable, "-m", "app", "set-offset", "t", "0", "5"]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
        assert done.stdout == "Topic t partition 0 is counted from offset 5 on; before, it was 9\n"
        app.start()
        wait_until(lambda: app.get("/events") == {"a": 9, "b": 7})
    finally:
        broker.kill()
