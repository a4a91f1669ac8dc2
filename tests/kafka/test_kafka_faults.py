"""Consumers killed, the broker killed, Redis set back: in the end each record was counted once.

And a burst that the store could not take. TALLY_TEST_KAFKA_RECORDS and TALLY_TEST_KAFKA_BURST_SECONDS choose how
many and how long; `make kafka` takes 500,000 and 20.
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
from collections.abc import Callable
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
BURST_HITS = 50_000  # a second, in batches of 100
COMMIT_SECONDS = 0.03  # 2,000 a minute
PARTITIONS = 8
NAMES = 50


class Writer:
    """Writes records, evenly, of which each is acknowledged; half of them as Tally's own."""

    def __init__(self, broker: Broker) -> None:
        self.acknowledged = 0
        self.counts: Counter[str] = Counter()
        self._broker = broker

    async def run(self) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self._broker.servers, enable_idempotence=True, acks="all")
        await producer.start()
        while self.acknowledged < RECORDS:
            some = min(1000, RECORDS - self.acknowledged)
            await asyncio.gather(*[await self._send(producer) for _ in range(some)])
            self.acknowledged += some
        await producer.stop()

    async def _send(self, producer: AIOKafkaProducer) -> asyncio.Future[object]:
        name = f"event {random.randrange(NAMES)}"
        by = random.choice([1, 1, 1, 2, 7])
        self.counts[name] += by
        own = random.random() < 0.5
        value = {"counts": {name: by}} if own else {"what": name, "many": by}
        return await producer.send("own" if own else "theirs", json.dumps(value).encode(), key=name.encode())


@pytest.mark.catches(
    "a position that Kafka keeps",
    "app/kafka/consumer.py",
    "stands = await self._store.get_offset(_source(place))",
    "stands = await consumer.committed(place) or 0",
)
@pytest.mark.timeout(300 + RECORDS // 500)
async def test_whatever_ends_and_comes_back_each_record_is_counted_once(
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
        await broker.create("own", "theirs", partitions=PARTITIONS)
        await asyncio.gather(*(asyncio.to_thread(consumer.start) for consumer in consumers))
        writing = asyncio.create_task(writer.run())
        await faults(broker, own_redis, consumers, lambda share: writer.acknowledged >= share * RECORDS)
        await writing
        seen: dict[str, int] = {}

        async def all_counted() -> bool:
            seen.update(day_of(own_redis))
            return seen == writer.counts

        try:
            await eventually(all_counted, seconds=60 + RECORDS / 1000)
        except AssertionError:
            assert seen == writer.counts
        healths = [httpx.get(f"{consumer.url}/health").json() for consumer in consumers]  # one may still look for Kafka
        assert not any(health["kafka"]["deadLetters"] for health in healths)
    finally:
        for consumer in consumers:
            consumer.kill()


async def faults(
    broker: Broker, redis: RedisServer, consumers: list[Process], written: Callable[[float], bool]
) -> None:
    """Three kills of a consumer, one of the broker, and one of Redis, which comes back as it was before.

    And one consumer sleeps for so long that its partitions are given to the others, and goes on as if they were not.
    """
    for number, consumer in enumerate(consumers):
        await eventually(lambda share=0.15 + number * 0.15: written(share), seconds=120)
        await asyncio.to_thread(consumer.kill)
        if number == 0:
            redis.client().save()
        await asyncio.to_thread(consumer.start)
    await eventually(lambda: written(0.6), seconds=120)
    os.kill(consumers[0].pid, signal.SIGSTOP)
    await asyncio.to_thread(broker.kill)
    await asyncio.to_thread(broker.start)
    await eventually(lambda: written(0.8), seconds=120)
    redis.stop()
    redis.start()
    awake = consumers[1:]
    await eventually(lambda: written(1) and sum(map(assigned, awake)) == 2 * PARTITIONS, seconds=120)
    os.kill(consumers[0].pid, signal.SIGCONT)


def assigned(consumer: Process) -> int:
    with contextlib.suppress(urllib.error.HTTPError):  # which it says while it cannot reach Kafka
        return len(consumer.get("/health")["kafka"]["partitions"])
    return 0


@pytest.mark.timeout(120 + 4 * BURST_SECONDS)
async def test_a_burst_is_taken_by_the_log_and_counted_when_the_store_can(
    tmp_path: Path, redis_server: RedisServer, broker: Broker
) -> None:
    await broker.create("tally.events", "tally.dead", partitions=PARTITIONS)
    async with FaultProxy(redis_server.socket) as slow:
        slow.strike("slow", seconds=COMMIT_SECONDS)
        limits = {"TALLY_WRITE_LIMIT": "1000000/second", "TALLY_READ_LIMIT": "1000000/second"}
        app = Process(tmp_path, TALLY_STORE=slow.url, TALLY_KAFKA=broker.servers, **limits)
        try:
            await asyncio.to_thread(app.start)
            await eventually(lambda: is_well(app))
            async with watching(app.url, live=1, plain=0) as (page,):
                burst = Burst(app)
                await burst.run(page)
                said = (
                    f"{burst.outcomes} of {BURST_SECONDS * BURST_HITS:.0f}, {burst.shown} shown, {burst.megabytes} MB"
                )
                print(said)  # noqa: T201 # what `make kafka` is asked for
                acknowledged = burst.outcomes["acknowledged"]
                assert acknowledged >= 0.95 * BURST_SECONDS * BURST_HITS
                assert set(burst.outcomes) <= {"acknowledged", "refused"}
                assert len(set(burst.shown)) >= 4  # the page moved meanwhile
                await eventually(lambda: sum(page.counts.values()) >= acknowledged, seconds=60)
            assert sum(day_of(redis_server).values()) == acknowledged
            assert max(burst.megabytes) < 1.5 * burst.megabytes[1]
        finally:
            app.kill()


class Burst:
    """Batches at an even pace, each once, and what became of their hits; and what was to be seen meanwhile."""

    def __init__(self, app: Process) -> None:
        self.outcomes: Counter[str] = Counter()
        self.shown: list[int] = []
        self.megabytes: list[int] = []
        self._app = app
        self._left = iter(range(int(BURST_SECONDS * BURST_HITS / 100)))

    async def run(self, page: Watcher) -> None:
        begun = time.monotonic()
        watching = asyncio.create_task(self._watch(page))
        await asyncio.gather(*(self._offer(begun) for _ in range(32)))
        watching.cancel()

    async def _offer(self, begun: float) -> None:
        connection = Connection(self._app.url)
        for number in self._left:
            await asyncio.sleep(begun + number * 100 / BURST_HITS - time.monotonic())
            body = "\n".join(f"event {random.randrange(NAMES)}" for _ in range(100)).encode()
            answer = await connection.ask("POST", "/events", body)
            self.outcomes["acknowledged" if answer.status == 202 else answer.outcome] += 100
        connection.close()

    async def _watch(self, page: Watcher) -> None:
        while True:
            await asyncio.sleep(BURST_SECONDS / 8)
            self.shown.append(sum(page.counts.values()))
            pages = int(Path(f"/proc/{self._app.pid}/statm").read_text().split()[1])
            self.megabytes.append(pages * resource.getpagesize() // 1_000_000)


async def is_well(app: Process) -> bool:
    return not (await asyncio.to_thread(app.get, "/health"))["reasons"]


def day_of(redis: RedisServer) -> dict[str, int]:
    """The newest day in it, as its keys have it."""
    with redis.client() as client:
        day = max(client.keys("tally:{0}:day:*"), default="")
        counts = client.hgetall(day) if day else {}
    return {name: int(count) for name, count in counts.items() if name}
