"""A broker of Kafka beside the load."""

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.kafka_broker import Broker  # the tests' own, which fetches Kafka

TOPIC = "records"
PARTITIONS = 8


@contextlib.contextmanager
def kafka(directory: Path) -> Iterator[str]:
    """Its servers, with the topics that a node asks for."""
    directory.mkdir()
    broker = Broker(directory)
    try:
        with ThreadPoolExecutor(1) as apart:  # from the loop that runs here
            apart.submit(broker.start).result()
            topics = broker.create_topics("tally.events", "tally.dead", TOPIC, partitions=PARTITIONS)
            apart.submit(asyncio.run, topics).result()
        yield broker.servers
    finally:
        broker.kill()
