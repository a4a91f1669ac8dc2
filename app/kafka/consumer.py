"""Count the records of Kafka partitions, each exactly once.

A partition is a source: the store moves its offset in the same step as the counts. Offsets are also committed to Kafka
for its monitoring tools, but never read from there.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError
from typing_extensions import TypedDict

from app.kafka.counter import RecordCounter
from app.kafka.producer import RETRY_INTERVAL_SECONDS, end, leader_connection, stop
from app.kafka.rereading import Rereading
from app.kafka.sources import current_source, letters_source, read_last_commit
from app.settings import Settings
from app.stores.base import CounterStore, OffsetMismatch, StoreError

SYNC_INTERVAL_SECONDS = 2.0  # between two comparisons of the offsets in the store with those in Kafka
FETCH_TIMEOUT_MS = 200
FETCH_RECORDS_MAX = 10_000
SMALL_FETCH_RECORDS = 1000  # after a smaller fetch, wait for more records: a commit of one costs as much as one of 100
SMALL_FETCH_PAUSE_SECONDS = 0.02

log = logging.getLogger("tally.kafka")

Partition = TypedDict("Partition", {"topic": str, "partition": int, "position": int, "lag": int})


class KafkaConsumer:
    """One consumer of the group that counts on this store.

    `on_synced` is called after each comparison of offsets, with true if all records of Tally's own topic are counted
    that it had when the argument was last true. `missed` records were dropped by Kafka before they were counted.
    """

    def __init__(
        self,
        settings: Settings,
        options: Mapping[str, Any],
        topics: Iterable[str],
        store: CounterStore,
        counter: RecordCounter,
        on_synced: Callable[[bool], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._options = options
        self._topics = tuple(topics)
        self._store = store
        self._counter = counter
        self._on_synced = on_synced
        self._assigned: frozenset[TopicPartition] = frozenset()
        self._offsets: dict[TopicPartition, int] = {}  # next to count, of the assigned partitions
        self._reached: dict[TopicPartition, int] = {}  # next to fetch, at the last comparison
        self._end_offsets: dict[TopicPartition, int] = {}
        self._goals: dict[TopicPartition, int] = {}  # end offsets of Tally's own topic some time ago
        self._sources: dict[TopicPartition, str] = {}
        self._rereadings: dict[TopicPartition, Rereading] = {}
        self._connections: dict[TopicPartition, object] = {}  # over which the log was last compared
        self._other_logs: dict[TopicPartition, str] = {}  # reasons why the log is not the one that was counted
        self._read_error = "Kafka has not been reached yet"
        self.missed = 0

    def start(self) -> None:
        """Start the task that counts."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop and leave the consumer group."""
        await end(self._task)

    @property
    def is_running(self) -> bool:
        """Whether the task that counts is alive."""
        return not self._task.done()

    def reasons(self) -> list[str]:
        """Return why records are not counted now, without I/O."""
        reasons = [
            f"topic {topic} partition {number} is not counted: {reason}. Its log was truncated or recreated:"
            " choose where to continue with `tally set-offset`"
            for (topic, number), reason in sorted(self._other_logs.items())
            if (topic, number) in self._assigned
        ]
        return reasons + ([self._read_error] if self._read_error else [])

    def partitions(self) -> list[Partition]:
        """Return the position and the lag, in records, of each assigned partition, without I/O."""
        return [
            Partition(
                topic=partition.topic,
                partition=partition.partition,
                position=offset,
                lag=max(0, self._end_offsets[partition] - max(offset, self._reached.get(partition, 0))),
            )
            for partition, offset in sorted(self._offsets.items())
        ]

    async def _run(self) -> None:
        """Consume; after any error, start again with a new client of aiokafka."""
        while True:
            consumer = AIOKafkaConsumer(
                *self._topics,
                group_id=self._settings.kafka_group,
                enable_auto_commit=False,
                auto_offset_reset="none",
                isolation_level="read_committed",
                session_timeout_ms=6000,
                heartbeat_interval_ms=2000,
                request_timeout_ms=10_000,
                **self._options,
            )
            try:
                await consumer.start()
                await self._consume(consumer)
            except Exception as error:  # every error is retried
                reason = f"Kafka cannot be read: {str(error) or type(error).__name__}"
                if not isinstance(error, (KafkaError, OSError)):
                    log.exception("reading from Kafka failed")
                elif reason != self._read_error:
                    log.warning("%s", reason)
                self._read_error = reason
            finally:
                self._offsets = {}
                await stop(consumer)
            await asyncio.sleep(RETRY_INTERVAL_SECONDS)

    async def _consume(self, consumer: AIOKafkaConsumer) -> None:
        synced_at = -math.inf
        while True:
            assigned = consumer.assignment()
            if assigned is not self._assigned:
                # After a rebalance aiokafka reads from Kafka's own offsets, even if the partitions are the same.
                self._assigned, self._offsets, synced_at = assigned, {}, -math.inf
            try:
                if time.monotonic() - synced_at >= SYNC_INTERVAL_SECONDS:
                    await self._sync_offsets(consumer)
                    synced_at = time.monotonic()
                fetched = await consumer.getmany(timeout_ms=FETCH_TIMEOUT_MS, max_records=FETCH_RECORDS_MAX)
                for partition, records in fetched.items():
                    await self._count_all(consumer, partition, records)
                if 0 < sum(map(len, fetched.values())) < SMALL_FETCH_RECORDS:
                    await asyncio.sleep(SMALL_FETCH_PAUSE_SECONDS)
            except NoOffsetForPartitionError:
                pass  # aiokafka looked for the group's offset before `seek`
            except OffsetOutOfRangeError:
                self._offsets, synced_at = {}, -math.inf
                await asyncio.sleep(RETRY_INTERVAL_SECONDS)
            except (StoreError, IllegalStateError) as error:  # IllegalStateError: a partition was just revoked
                self._offsets, synced_at = {}, -math.inf
                if not isinstance(error, OffsetMismatch):
                    await asyncio.sleep(RETRY_INTERVAL_SECONDS)

    async def _sync_offsets(self, consumer: AIOKafkaConsumer) -> None:
        """Continue from the store's offsets, which differ if it was set back or another consumer has counted."""
        first_offsets = await consumer.beginning_offsets(self._assigned)
        self._end_offsets = await consumer.end_offsets(self._assigned)
        self._read_error = ""
        for partition in self._assigned:
            await self._sync_offset(consumer, partition, first_offsets[partition])
        # aiokafka's position is past the markers of transactions, which are no records.
        self._reached = {partition: await consumer.position(partition) for partition in self._offsets}
        await self._on_synced(await self._has_reached_goals(consumer))
        with contextlib.suppress(KafkaError):  # these offsets only serve Kafka's monitoring tools
            await consumer.commit(dict(self._offsets))

    async def _sync_offset(self, consumer: AIOKafkaConsumer, partition: TopicPartition, first_offset: int) -> None:
        source = await current_source(self._store, *partition)
        if self._sources.get(partition) != source:
            self._sources[partition] = source
            self._other_logs.pop(partition, None)
        offset = await self._store.get_offset(source)
        if offset < first_offset:
            await self._skip_expired(partition, offset, first_offset)
            offset = first_offset
        if offset > (end_offset := self._end_offsets[partition]):
            self._set_aside(consumer, partition, f"it ends at offset {end_offset}, but was counted up to {offset}")
        elif partition in self._other_logs or self._offsets.get(partition) != offset:
            await self._continue_from(consumer, partition, offset, first_offset)

    async def _continue_from(
        self, consumer: AIOKafkaConsumer, partition: TopicPartition, offset: int, first_offset: int
    ) -> None:
        """Read a partition from this offset on, but its last commit again before that."""
        self._rereadings.pop(partition, None)
        source, begin = self._sources[partition], offset
        last = await read_last_commit(self._store, source, offset)
        if last and first_offset < last.end:
            is_sent = await self._store.get_offset(letters_source(source)) >= last.end or last.begin < first_offset
            self._rereadings[partition] = Rereading(last, has_unsent_letters=not is_sent)
            begin = last.end - 1 if is_sent else last.begin
        elif reason := self._other_logs.get(partition):  # it has grown past the offset, and cannot be compared
            self._set_aside(consumer, partition, reason)
            return
        self._connections[partition] = leader_connection(consumer, partition)
        consumer.seek(partition, begin)
        consumer.resume(partition)
        self._offsets[partition] = offset

    def _set_aside(self, consumer: AIOKafkaConsumer, partition: TopicPartition, reason: str) -> None:
        """Stop counting a partition, because its log is not the one that was counted before."""
        if partition not in self._other_logs:
            log.error("topic %s partition %s is not counted: %s", *partition, reason)
        self._other_logs[partition] = reason
        self._offsets.pop(partition, None)
        self._rereadings.pop(partition, None)
        consumer.seek(partition, self._end_offsets[partition])  # aiokafka needs a position, even for one that it pauses
        consumer.pause(partition)

    async def _has_reached_goals(self, consumer: AIOKafkaConsumer) -> bool:
        """Return whether all records of Tally's own topic are counted that it had when this was last true.

        Other consumers count some of its partitions.
        """
        for partition, goal in self._goals.items():
            counted = await self._store.get_offset(await current_source(self._store, *partition))
            if max(counted, self._reached.get(partition, 0)) < goal:
                return False
        numbers = consumer.partitions_for_topic(self._settings.kafka_topic) or ()
        self._goals = await consumer.end_offsets([TopicPartition(self._settings.kafka_topic, n) for n in numbers])
        return True

    async def _skip_expired(self, partition: TopicPartition, offset: int, first_offset: int) -> None:
        """Move the store's offset past records that Kafka has dropped. A partition at 0 was never counted."""
        if offset:
            last = first_offset - 1
            log.error("topic %s partition %s: records %s-%s expired before they were counted", *partition, offset, last)
            self.missed += first_offset - offset
        await self._store.apply(self._sources[partition], offset, first_offset, [])

    async def _count_all(
        self, consumer: AIOKafkaConsumer, partition: TopicPartition, records: list[ConsumerRecord]
    ) -> None:
        """Count fetched records, for as long as the partition is assigned to this consumer."""
        if partition not in self._offsets:
            return
        if leader_connection(consumer, partition) is not self._connections[partition]:
            raise OffsetMismatch(0)  # another broker, or a restarted one: compare its log
        if partition in self._rereadings:
            records = await self._reread(consumer, partition, records)
        offset = self._offsets.get(partition, math.inf)
        if records and records[0].offset > offset < (await consumer.beginning_offsets([partition]))[partition]:
            raise OffsetMismatch(0)  # Kafka has dropped the next records, which the following sync reports
        counted = 0
        while counted < len(records) and partition in self._offsets and consumer.assignment() is self._assigned:
            offset = self._offsets[partition]
            taken, new_offset = await self._counter.count(self._sources[partition], offset, records[counted:])
            self._offsets[partition] = new_offset
            self._end_offsets[partition] = max(self._end_offsets[partition], new_offset)
            counted += taken

    async def _reread(
        self, consumer: AIOKafkaConsumer, partition: TopicPartition, records: list[ConsumerRecord]
    ) -> list[ConsumerRecord]:
        """Take the records of the last commit and compare them. Return the records to count."""
        rereading = self._rereadings[partition]
        records = rereading.take(records)
        if not rereading.is_complete:
            return []
        if not rereading.is_same_log():
            offset = rereading.last.end - 1
            self._set_aside(consumer, partition, f"the record at offset {offset} is not the one that was counted")
            return []
        if rereading.has_unsent_letters:
            await self._counter.send_missing_letters(self._sources[partition], rereading.last, rereading.records)
        del self._rereadings[partition]
        self._other_logs.pop(partition, None)
        return records
