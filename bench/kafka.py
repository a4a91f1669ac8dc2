"""Records that wait in a topic of Kafka, and who only counts them."""

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
from bench.load import Figures, Meter, WrongError
from bench.servers import ROOT, SERVER_CORE, Server

NAMES = 50
RECORDS_PER_SECOND = 150_000  # of what is measured, about


async def records(server: Server, seconds: float) -> Figures:
    """How many a node counts that wait for it, and how many a consumer that only counts them in a dict."""
    wanted = int(seconds * RECORDS_PER_SECOND)
    os.kill(server.process.pid, signal.SIGSTOP)
    await fill(server.kafka, wanted)
    plain = await asyncio.to_thread(_alone, server.kafka, wanted)
    os.kill(server.process.pid, signal.SIGCONT)
    while not (begun := counted(server)):
        await asyncio.sleep(0.01)
    meter, since = Meter(server), time.perf_counter()
    while (now := counted(server)) < wanted:
        await asyncio.sleep(0.1)
    if sum(server.counts().values()) != wanted or now != wanted:
        raise WrongError(f"{wanted} records, {now} of them counted")
    rate = (wanted - begun) / (time.perf_counter() - since)
    return meter.read(wanted - begun) | {"records": rate, "plain_us": plain * 1e6}


def counted(server: Server) -> int:
    with urllib.request.urlopen(f"{server.url}/health", timeout=20) as answer:
        return json.load(answer)["kafka"]["records"]


async def fill(servers: str, wanted: int) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=servers, max_batch_size=256 * 1024)
    await producer.start()
    for begin in range(0, wanted, 5000):
        names = [f"event-{number % NAMES + 1}" for number in range(begin, min(begin + 5000, wanted))]
        await asyncio.gather(*[await producer.send(TOPIC, b'{"event":"%s"}' % n.encode(), n.encode()) for n in names])
    await producer.stop()


def _alone(servers: str, wanted: int) -> float:
    """In a process of its own on the servers' core, which is free meanwhile."""
    code = f"import bench.kafka, asyncio; print(asyncio.run(bench.kafka.plain({servers!r}, {wanted})))"
    ended = os.popen(f'cd {ROOT} && taskset -c {SERVER_CORE} {sys.executable} -c "{code}"')  # noqa: S605 # its own words
    return float(ended.read())


async def plain(servers: str, wanted: int) -> float:
    """The processor seconds of a record that is counted in a dict, and nothing else."""
    begun = time.process_time()
    consumer = AIOKafkaConsumer(TOPIC, bootstrap_servers=servers, auto_offset_reset="earliest")
    await consumer.start()
    counts: Counter[bytes] = Counter()
    while counts.total() < wanted:
        for found in (await consumer.getmany(timeout_ms=200)).values():
            counts.update(record.key for record in found)
    await consumer.stop()
    return (time.process_time() - begun) / wanted
