"""Write to Kafka: each record is acknowledged, rejected, or its outcome is unknown."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.client import ConnectionGroup
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from aiokafka.partitioner import murmur2

from app.group_commit import Overloaded
from app.stores.base import OutcomeUnknown, StoreUnavailable

ACK_TIMEOUT_SECONDS = 2.0  # until the outcome of a record that Kafka has not acknowledged is unknown
RETRY_INTERVAL_SECONDS = 0.5  # between two attempts to reach Kafka, or an unreachable store
CANCEL_TIMEOUT_SECONDS = 3.0  # until a task that does not end is cancelled again; `stop` takes up to 2
MESSAGE_BYTES_MAX = 8 * 1024 * 1024  # twice the largest body, because JSON adds quotes to names
PENDING_BYTES_MAX = 64 * 1024 * 1024  # of records that Kafka has not acknowledged yet
RECORD_OVERHEAD_BYTES = 256  # of memory that a pending record takes in addition to its value
BATCH_BYTES_MAX = 256 * 1024  # of records that aiokafka sends to a partition at once
REQUEST_TIMEOUT_MS = 5000

log = logging.getLogger("tally.kafka")


class RequestTooLarge(Exception):
    """The record is larger than MESSAGE_BYTES_MAX. Nothing was written."""

    def __init__(self) -> None:
        size = MESSAGE_BYTES_MAX // (1024 * 1024)
        super().__init__(f"the request exceeds Kafka's message size limit ({size} MiB): split the batch")


class KafkaWriter:
    """Writes records, each of which is acknowledged when all in-sync replicas of its partition have it.

    `is_connected` is true while Kafka is reachable and no acknowledgement is overdue.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._producer: AIOKafkaProducer | None = None
        self._failed_producer: AIOKafkaProducer | None = None
        self._pending_bytes = 0
        self._unacknowledged: dict[TopicPartition, asyncio.Future[Any]] = {}
        self.is_connected = False

    @property
    def is_running(self) -> bool:
        """Whether the task that connects is alive."""
        return not self._reconnecting.done()

    def start(self) -> None:
        """Start the task that connects, and reconnects after a failure."""
        self._reconnecting = asyncio.create_task(self._reconnect_loop())

    async def close(self) -> None:
        """Stop. This takes a few seconds if Kafka does not respond."""
        await end(self._reconnecting)
        if self._producer:
            await stop(self._producer)

    async def write(self, topic: str, key: bytes, value: bytes, at: float, headers: Sequence[Any] = ()) -> None:
        """Write a record with the time `at` (UTC seconds), and wait until it is acknowledged.

        Raises Overloaded, RequestTooLarge or StoreUnavailable if it was not written, OutcomeUnknown if it was written
        once or not at all.
        """
        size = len(value) + RECORD_OVERHEAD_BYTES
        if self._pending_bytes + size > PENDING_BYTES_MAX:
            raise Overloaded("overloaded: 64 MiB of records are waiting for Kafka; retry later")
        self._pending_bytes += size
        deadline = time.monotonic() + ACK_TIMEOUT_SECONDS
        try:
            producer, partition, sent = await self._send(topic, key, value, at, headers)
            await asyncio.wait([sent], timeout=deadline - time.monotonic())
        finally:
            self._pending_bytes -= size
        if not sent.done():
            # aiokafka keeps trying, so the record may still be written, once.
            self._unacknowledged[partition] = sent
            raise OutcomeUnknown("Kafka did not acknowledge the hits in time; they may be counted or not")
        if error := sent.exception():
            # The lost record leaves a gap in the sequence numbers by which Kafka recognises duplicates.
            self._failed_producer = producer
            raise OutcomeUnknown(f"Kafka: {error}") from error

    async def _send(
        self, topic: str, key: bytes, value: bytes, at: float, headers: Sequence[Any]
    ) -> tuple[AIOKafkaProducer, TopicPartition, asyncio.Future[Any]]:
        """Hand a record to aiokafka. It retries for ever, so an error before that proves that nothing was written."""
        producer = self._producer
        if not producer:
            raise StoreUnavailable("Kafka is unreachable; nothing was counted, retry later")
        try:
            async with asyncio.timeout(ACK_TIMEOUT_SECONDS):
                number = _partition_number(key, len(await producer.partitions_for(topic)))
                partition = TopicPartition(topic, number)
                stuck = self._unacknowledged.get(partition)
                if (stuck and not stuck.done()) or not await _is_leader_reachable(producer, partition):
                    raise StoreUnavailable("Kafka is unreachable; nothing was counted, retry later")
                return producer, partition, await producer.send(topic, value, key, number, int(at * 1000), headers)
        except MessageSizeTooLargeError:
            raise RequestTooLarge from None
        except (KafkaError, TimeoutError) as error:
            if isinstance(error, KafkaError):
                self._failed_producer = producer
            raise StoreUnavailable(f"Kafka: {str(error) or 'no response in time'}") from error

    async def _reconnect_loop(self) -> None:
        """Connect, replace a producer that has failed, and keep `is_connected` up to date."""
        while True:
            try:
                if self._producer is self._failed_producer:
                    await self._restart_producer()
                reachable = self._producer is not None and await _is_any_broker_reachable(self._producer)
                self.is_connected = reachable and all(sent.done() for sent in self._unacknowledged.values())
            except Exception as error:  # noqa: BLE001 # every error is retried
                self.is_connected = False
                log.log(logging.DEBUG if isinstance(error, (KafkaError, OSError)) else logging.ERROR, "%r", error)
            await asyncio.sleep(RETRY_INTERVAL_SECONDS)

    async def _restart_producer(self) -> None:
        failed, self._producer, self._failed_producer = self._producer, None, None
        if failed:
            await stop(failed)
        producer = AIOKafkaProducer(
            enable_idempotence=True,
            acks="all",
            max_batch_size=BATCH_BYTES_MAX,
            max_request_size=MESSAGE_BYTES_MAX,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            **self._options,
        )
        try:
            await producer.start()
            self._producer = producer
        finally:
            if not self._producer:
                await stop(producer)


async def end(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end. If a library swallows the cancellation, cancel the task again."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=CANCEL_TIMEOUT_SECONDS)


async def stop(client: AIOKafkaProducer | AIOKafkaConsumer) -> None:
    """Stop a client of aiokafka, but do not wait for an unreachable Kafka.

    This needs a task of its own, because aiokafka lets the cancellation of its own tasks escape.
    """
    await asyncio.wait([asyncio.create_task(client.stop())], timeout=ACK_TIMEOUT_SECONDS)


@lru_cache(maxsize=65_536)  # the same names recur
def _partition_number(key: bytes, partitions: int) -> int:
    """Return the partition into which all Kafka clients write this key."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


# aiokafka has no public way to ask whether a record can be sent now: `send` accepts it, and retries for ever. Nor
# does it report that records come from another broker. These three functions are the only users of its internals, which
# is why pyproject.toml has an upper bound for its version.


async def _is_leader_reachable(producer: AIOKafkaProducer, partition: TopicPartition) -> bool:
    """Return whether there is a connection to the broker that accepts the records of a partition."""
    leader = producer.client.cluster.leader_for_partition(partition)
    return leader not in {None, -1} and bool(await producer.client.ready(leader))


async def _is_any_broker_reachable(producer: AIOKafkaProducer) -> bool:
    """Return whether there is a connection to any broker, after an attempt to connect to each."""
    client = producer.client
    return any([await client.ready(broker.nodeId) for broker in client.cluster.brokers()])


def leader_connection(consumer: AIOKafkaConsumer, partition: TopicPartition) -> object:
    """Return the connection over which the records of a partition come, or None.

    It is another one after a broker was restarted, or another broker became the leader, whose log may be shorter.
    """
    client = consumer._client  # noqa: SLF001
    leader = client.cluster.leader_for_partition(partition)
    return client._conns.get((leader, ConnectionGroup.DEFAULT))  # noqa: SLF001
