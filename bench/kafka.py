"""How fast a node counts the records that wait in a Kafka topic, compared with a plain consumer."""

import asyncio
import json
import os
import signal
import sys
import time
import urllib.request
from collections import Counter

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from bench.broker import TOPIC
from bench.load import Figures, Meter, ResultMismatch
from bench.servers import ROOT, SERVER_CORE, Server

EVENT_NAMES = 50
RECORDS_PER_SECOND = 150_000  # the assumed rate, from which the number of records follows
PRODUCE_AT_ONCE = 5000


async def records(server: Server, seconds: float) -> Figures:
    """Measure how many records per second a node counts; a run takes about so many seconds.

    `plain_us` is the processor time, in µs per record, of a consumer that only counts in a dict. Raises ResultMismatch
    if the node's counts are wrong.
    """
    total = int(seconds * RECORDS_PER_SECOND)
    os.kill(server.process.pid, signal.SIGSTOP)
    await produce(server.kafka, total)
    plain_seconds = await asyncio.to_thread(_run_plain_consumer, server.kafka, total)
    os.kill(server.process.pid, signal.SIGCONT)
    while not (counted_before := counted_records(server)):
        await asyncio.sleep(0.01)
    meter, began = Meter(server), time.perf_counter()
    while (counted := counted_records(server)) < total:
        await asyncio.sleep(0.1)
    if sum(server.counts().values()) != total or counted != total:
        raise ResultMismatch(f"{total} records, of which {counted} were counted")
    rate = (total - counted_before) / (time.perf_counter() - began)
    return meter.read(total - counted_before) | {"records": rate, "plain_us": plain_seconds * 1e6}


def counted_records(server: Server) -> int:
    """Return how many records a node has counted, from its /health."""
    with urllib.request.urlopen(f"{server.url}/health", timeout=20) as response:
        return json.load(response)["kafka"]["records"]


async def produce(servers: str, total: int) -> None:
    """Write records with EVENT_NAMES different event names."""
    producer = AIOKafkaProducer(bootstrap_servers=servers, max_batch_size=256 * 1024)
    await producer.start()
    for begin in range(0, total, PRODUCE_AT_ONCE):
        numbers = range(begin, min(begin + PRODUCE_AT_ONCE, total))
        names = [f"event-{number % EVENT_NAMES + 1}".encode() for number in numbers]
        await asyncio.gather(*[await producer.send(TOPIC, b'{"event":"%s"}' % name, name) for name in names])
    await producer.stop()


def _run_plain_consumer(servers: str, total: int) -> float:
    """Run `plain_consumer` in its own process on the server's core, which is idle while the server is stopped."""
    code = f"import bench.kafka, asyncio; print(asyncio.run(bench.kafka.plain_consumer({servers!r}, {total})))"
    command = f'cd {ROOT} && taskset -c {SERVER_CORE} {sys.executable} -c "{code}"'
    return float(os.popen(command).read())  # noqa: S605 # no foreign input


async def plain_consumer(servers: str, total: int) -> float:
    """Count records in a dict, and return the processor seconds per record."""
    began = time.process_time()
    consumer = AIOKafkaConsumer(TOPIC, bootstrap_servers=servers, auto_offset_reset="earliest")
    await consumer.start()
    counts: Counter[bytes] = Counter()
    while counts.total() < total:
        for fetched in (await consumer.getmany(timeout_ms=200)).values():
            counts.update(record.key for record in fetched)
    await consumer.stop()
    return (time.process_time() - began) / total
