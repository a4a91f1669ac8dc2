"""The Kafka service of a node: the buffer and the consumer, their start and stop, health and metrics."""

import logging
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from typing_extensions import TypedDict

from app.domain.calendar import Clock, TimeSlot
from app.kafka.buffer import HitBuffer
from app.kafka.config import client_options, parse_topics
from app.kafka.consumer import KafkaConsumer, Partition
from app.kafka.counter import RecordCounter
from app.kafka.dead_letters import DeadLetterWriter
from app.kafka.producer import KafkaWriter
from app.metrics import Metrics
from app.settings import Settings
from app.stores.base import CounterStore

KafkaHealth = TypedDict(
    "KafkaHealth",
    {"buffer": str | None, "records": int, "missed": int, "deadLetters": int, "partitions": list[Partition]},
)


class KafkaService:
    """The buffer and the consumer; every node has one. `buffer` is None if only TALLY_KAFKA_INPUTS is set.

    `count_of` returns the last known count of today of an event; `publish` sends counts to clients, as for
    GroupCommitter. Raises StoreOpenError if the settings are invalid.
    """

    def __init__(
        self,
        settings: Settings,
        store: CounterStore,
        clock: Clock,
        count_of: Callable[[str], int],
        publish: Callable[[TimeSlot, dict[str, int], int], None],
        metrics: Metrics,
    ) -> None:
        servers, decoders = parse_topics(settings)
        options = client_options(settings, servers)
        self._topic = settings.kafka_topic
        self._writer = KafkaWriter(options)
        self._dead_letters = DeadLetterWriter(self._writer, settings.kafka_dead_letters, clock)
        self.buffer: HitBuffer | None = None
        if settings.kafka:
            self.buffer = HitBuffer(settings, self._writer, store, clock, count_of, metrics)
        self._counter = RecordCounter(decoders, store, clock, publish, self._dead_letters, metrics, settings.days_kept)
        self._consumer = KafkaConsumer(settings, options, decoders, store, self._counter, self._on_synced)
        metrics.registry.register(self)

    def start(self) -> None:
        """Start to connect and to consume."""
        # aiokafka logs every failed attempt. Tally logs each outage once.
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
        self._writer.start()
        self._consumer.start()

    async def close(self) -> None:
        """Stop the consumer, then the writer, which the consumer's dead letters need."""
        await self._consumer.close()
        await self._writer.close()

    @property
    def is_running(self) -> bool:
        """Whether the tasks that connect and count are alive."""
        return self._writer.is_running and self._consumer.is_running

    def is_accepting(self) -> bool:
        """Return whether hits are accepted, without I/O. Without a buffer, the store decides."""
        return not self.buffer or self._writer.is_connected

    def reasons(self) -> list[str]:
        """Return why Kafka makes the service degraded, without I/O; empty if it does not."""
        reasons = self._consumer.reasons()
        return reasons if self.is_accepting() else ["Kafka is unreachable: hits are rejected", *reasons]

    def health(self) -> KafkaHealth:
        """Return the data for /health."""
        return KafkaHealth(
            buffer=self._topic if self.buffer else None,
            records=self._counter.records,
            missed=self._consumer.missed,
            deadLetters=self._dead_letters.counts.total(),
            partitions=self._consumer.partitions(),
        )

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics for Prometheus. Topic names come from the settings, so their labels are few."""
        records, missed = self._counter.records, self._consumer.missed
        yield CounterMetricFamily("tally_kafka_records", "Records counted or dead-lettered.", value=records)
        yield CounterMetricFamily("tally_kafka_missed", "Records that expired before they were counted.", value=missed)
        dead = CounterMetricFamily("tally_kafka_dead_letters", "Records that cannot be counted.", labels=["reason"])
        for reason, number in self._dead_letters.counts.items():
            dead.add_metric([reason], number)
        labels = ["topic", "partition"]
        positions = GaugeMetricFamily("tally_kafka_position", "Offset of the next record to count.", labels=labels)
        lags = GaugeMetricFamily("tally_kafka_lag", "Records that are not counted yet.", labels=labels)
        for partition in self._consumer.partitions():
            values = [partition["topic"], str(partition["partition"])]
            positions.add_metric(values, partition["position"])
            lags.add_metric(values, partition["lag"])
        yield from (dead, positions, lags)

    async def _on_synced(self, all_counted: bool) -> None:
        if self.buffer:
            await self.buffer.refresh_name_limit(all_counted)
