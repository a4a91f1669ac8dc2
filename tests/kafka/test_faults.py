"""Consumers and the broker are killed, and Redis is set back: in the end each record has been counted once.

Also a burst that is faster than the store. TALLY_TEST_KAFKA_RECORDS and TALLY_TEST_KAFKA_BURST_SECONDS set the sizes;
`make kafka` uses 500,000 and 20.
"""

import asyncio
import contextlib
import json
import os
import random
import resource
import signal
import time
import urllib.error
from collections import Counter
from pathlib import Path

import httpx
import pytest
from aiokafka import AIOKafkaProducer

from tests.support.fault_proxy import FaultProxy
from tests.support.kafka_broker import Broker
from tests.support.load import Connection
from tests.support.redis_servers import RedisServer
from tests.support.servers import Process, eventually
from tests.support.watchers import Watcher, watching

RECORDS = int(os.environ.get("TALLY_TEST_KAFKA_RECORDS", "20000"))
BURST_SECONDS = float(os.environ.get("TALLY_TEST_KAFKA_BURST_SECONDS", "4"))
BURST_HITS_PER_SECOND = 50_000
BATCH_HITS = 100
COMMIT_SECONDS = 0.03  # 2,000 commits per minute
PARTITIONS = 8
EVENT_NAMES = 50


class Writer:
    """Writes records until RECORDS are acknowledged: one half to Tally's own topic, the other to a foreign one.

    After half of the records it waits for `redis_saved`, so that Redis loses counts when it is set back.
    """

    def __init__(self, broker: Broker) -> None:
        self.acknowledged = 0
        self.counts: Counter[str] = Counter()
        self.redis_saved = asyncio.Event()
        self._broker = broker

    async def run(self) -> None:
        servers = self._broker.servers
        async with AIOKafkaProducer(bootstrap_servers=servers, enable_idempotence=True, acks="all") as producer:
            while self.acknowledged < RECORDS:
                if self.acknowledged >= RECORDS / 2:
                    await self.redis_saved.wait()
                number = min(1000, RECORDS - self.acknowledged)
                await asyncio.gather(*[await self._send(producer) for _ in range(number)])
                self.acknowledged += number

    def has_written(self, share: float) -> bool:
        return self.acknowledged >= share * RECORDS

    async def _send(self, producer: AIOKafkaProducer) -> asyncio.Future[object]:
        name = f"event {random.randrange(EVENT_NAMES)}"
        by = random.choice([1, 1, 1, 2, 7])
        self.counts[name] += by
        own = random.random() < 0.5
        value = {"counts": {name: by}} if own else {"what": name, "many": by}
        return await producer.send("own" if own else "theirs", json.dumps(value).encode(), key=name.encode())


@pytest.mark.fails_on_mutant(
    "reading from an offset in Kafka",
    "app/kafka/consumer.py",
    "offset = await self._store.get_offset(source)",
    "offset = await consumer.committed(partition) or 0",
)
@pytest.mark.timeout(300 + RECORDS // 500)
async def test_each_record_is_counted_once_while_consumers_kafka_and_redis_fail(
    tmp_path: Path, own_redis: RedisServer, broker: Broker
) -> None:
    for name in ("1", "2", "3"):
        (tmp_path / name).mkdir()
    own_redis.start()
    environment = {
        "TALLY_STORE": own_redis.url,
        "TALLY_KAFKA": broker.servers,
        "TALLY_KAFKA_TOPIC": "own",
        "TALLY_KAFKA_GROUP": "faults",
        "TALLY_KAFKA_INPUTS": f"{broker.servers}/theirs?event=what&by=many",
    }
    consumers = [Process(tmp_path / name, "-m", "app", "consume", **environment) for name in ("1", "2", "3")]
    writer = Writer(broker)
    try:
        await broker.create_topics("own", "theirs", partitions=PARTITIONS)
        await asyncio.gather(*(asyncio.to_thread(consumer.start) for consumer in consumers))
        writing = asyncio.create_task(writer.run())
        await cause_faults(broker, own_redis, consumers, writer)
        await writing
        counts: dict[str, int] = {}

        async def all_counted() -> bool:
            counts.update(counts_of_newest_day(own_redis))
            return counts == writer.counts

        try:
            await eventually(all_counted, seconds=60 + RECORDS / 1000)
        except AssertionError:
            assert counts == writer.counts
        # A consumer may respond with 503, because it is still connecting to Kafka.
        responses = [httpx.get(f"{consumer.url}/health").json() for consumer in consumers]
        assert not any(health["kafka"]["deadLetters"] for health in responses)
    finally:
        for consumer in consumers:
            consumer.kill()


async def cause_faults(broker: Broker, redis: RedisServer, consumers: list[Process], writer: Writer) -> None:
    """Kill each consumer once, then the broker, then Redis, which returns with older counts.

    One consumer is paused until its partitions are assigned to the others, and then continues as if they were not.
    """
    await eventually(lambda: total(redis) > 0, seconds=120)
    for number, consumer in enumerate(consumers):
        await eventually(lambda share=0.15 + number * 0.15: writer.has_written(share), seconds=120)
        await asyncio.to_thread(consumer.kill)
        if number == 0:
            redis.client().save()
            saved = total(redis)
            writer.redis_saved.set()
        await asyncio.to_thread(consumer.start)
    await eventually(lambda: writer.has_written(0.6), seconds=120)
    os.kill(consumers[0].pid, signal.SIGSTOP)
    await asyncio.to_thread(broker.kill)
    await asyncio.to_thread(broker.start)
    await eventually(lambda: writer.has_written(0.8), seconds=120)
    await eventually(lambda: total(redis) > saved, seconds=120)
    redis.stop()
    redis.start()
    running = consumers[1:]
    await eventually(
        lambda: writer.has_written(1) and sum(map(assigned_partitions, running)) == 2 * PARTITIONS, seconds=120
    )
    os.kill(consumers[0].pid, signal.SIGCONT)


def total(redis: RedisServer) -> int:
    return sum(counts_of_newest_day(redis).values())


def assigned_partitions(consumer: Process) -> int:
    with contextlib.suppress(urllib.error.HTTPError):  # the response is 503 while Kafka is unreachable
        return len(consumer.get("/health")["kafka"]["partitions"])
    return 0


@pytest.mark.timeout(120 + 4 * BURST_SECONDS)
async def test_the_buffer_acknowledges_a_burst_that_is_faster_than_the_store(
    tmp_path: Path, redis_server: RedisServer, broker: Broker
) -> None:
    await broker.create_topics("tally.events", "tally.dead", partitions=PARTITIONS)
    async with FaultProxy(redis_server.socket) as slow:
        slow.inject("slow", seconds=COMMIT_SECONDS)
        limits = {"TALLY_WRITE_LIMIT": "1000000/second", "TALLY_READ_LIMIT": "1000000/second"}
        app = Process(tmp_path, TALLY_STORE=slow.url, TALLY_KAFKA=broker.servers, **limits)
        try:
            await asyncio.to_thread(app.start)
            await eventually(lambda: is_ready(app))
            async with watching(app.url, live=1, plain=0) as (page,):
                burst = Burst(app)
                await burst.run(page)
                offered = BURST_SECONDS * BURST_HITS_PER_SECOND
                report = f"{burst.outcomes} of {offered:.0f}, {burst.shown} shown, {burst.megabytes} MB"
                print(report)  # noqa: T201 # the figures that `make kafka` is run for
                acknowledged = burst.outcomes["acknowledged"]
                assert acknowledged >= 0.95 * offered
                assert set(burst.outcomes) <= {"acknowledged", "refused"}
                assert len(set(burst.shown)) >= 4  # the page was updated during the burst
                await eventually(lambda: sum(page.counts.values()) >= acknowledged, seconds=60)
            assert sum(counts_of_newest_day(redis_server).values()) == acknowledged
            assert max(burst.megabytes) < 1.5 * burst.megabytes[1]
        finally:
            app.kill()


class Burst:
    """Sends batches at an even rate, and records their outcomes, the counts on a page, and the memory of the app."""

    def __init__(self, app: Process) -> None:
        self.outcomes: Counter[str] = Counter()
        self.shown: list[int] = []
        self.megabytes: list[int] = []
        self._app = app
        self._batches = iter(range(int(BURST_SECONDS * BURST_HITS_PER_SECOND / BATCH_HITS)))

    async def run(self, page: Watcher) -> None:
        began = time.monotonic()
        sampling = asyncio.create_task(self._sample(page))
        await asyncio.gather(*(self._send_batches(began) for _ in range(32)))
        sampling.cancel()

    async def _send_batches(self, began: float) -> None:
        connection = Connection(self._app.url)
        for number in self._batches:
            await asyncio.sleep(began + number * BATCH_HITS / BURST_HITS_PER_SECOND - time.monotonic())
            body = "\n".join(f"event {random.randrange(EVENT_NAMES)}" for _ in range(BATCH_HITS)).encode()
            response = await connection.request("POST", "/events", body)
            self.outcomes["acknowledged" if response.status == 202 else response.outcome] += BATCH_HITS
        connection.close()

    async def _sample(self, page: Watcher) -> None:
        while True:
            await asyncio.sleep(BURST_SECONDS / 8)
            self.shown.append(sum(page.counts.values()))
            pages = int(Path(f"/proc/{self._app.pid}/statm").read_text().split()[1])
            self.megabytes.append(pages * resource.getpagesize() // 1_000_000)


async def is_ready(app: Process) -> bool:
    return not (await asyncio.to_thread(app.get, "/health"))["reasons"]


def counts_of_newest_day(redis: RedisServer) -> dict[str, int]:
    """Return the counts of the newest day, from its Redis key."""
    with redis.client() as client:
        day = max(client.keys("tally:{0}:day:*"), default="")
        counts = client.hgetall(day) if day else {}
    return {name: int(count) for name, count in counts.items() if name}
