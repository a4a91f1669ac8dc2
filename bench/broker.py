"""A Kafka broker for the benchmarks."""

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.kafka_broker import Broker

TOPIC = "records"
PARTITIONS = 8


@contextlib.contextmanager
def kafka(directory: Path) -> Iterator[str]:
    """Yield the servers (host:port) of a running broker that has all topics of a benchmark."""
    directory.mkdir()
    broker = Broker(directory)
    try:
        # The caller runs in an event loop, and starting a broker needs another one.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(broker.start).result()
            topics = broker.create_topics("tally.events", "tally.dead", TOPIC, partitions=PARTITIONS)
            thread.submit(asyncio.run, topics).result()
        yield broker.servers
    finally:
        broker.kill()
