"""Count the records of Kafka partitions, each exactly once.

A partition is a source: the store moves its offset in the same step as the counts. Offsets are also committed to Kafka
for its monitoring tools, but never read from there.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError
from typing_extensions import TypedDict

from app.domain.calendar import Clock, TimeSlot
from app.domain.counting import Commit
from app.kafka.commits import build_commit, pair_results, rejection_reasons
from app.kafka.dead_letters import DeadLetterWriter, rejected_records
from app.kafka.decoding import Decoder, decode_buffered
from app.kafka.producer import RETRY_INTERVAL_SECONDS, end, stop
from app.metrics import Metrics
from app.settings import Settings
from app.stores.base import CounterStore, OffsetMismatch, StoreError
from app.stores.results import ApplyResult
from app.stores.rules import PERMANENT_SOURCE_PREFIX

SYNC_INTERVAL_SECONDS = 2.0  # between two comparisons of the offsets in the store with those in Kafka
FETCH_TIMEOUT_MS = 200
FETCH_RECORDS_MAX = 10_000
SMALL_FETCH_RECORDS = 1000  # after a smaller fetch, wait for more records: a commit of one costs as much as one of 100
SMALL_FETCH_PAUSE_SECONDS = 0.02

log = logging.getLogger("tally.kafka")

Partition = TypedDict("Partition", {"topic": str, "partition": int, "position": int, "lag": int})


class KafkaConsumer:
    """One consumer of the group that counts on this store.

    `publish` sends today's counts to clients, as for GroupCommitter. `on_synced` is called after each comparison of
    offsets, with true if all records of Tally's own topic are counted that it had when the argument was last true.
    `records` were counted or became dead letters; `missed` were dropped by Kafka before they were counted.
    """

    def __init__(
        self,
        settings: Settings,
        options: Mapping[str, Any],
        decoders: Mapping[str, Decoder],
        store: CounterStore,
        clock: Clock,
        publish: Callable[[TimeSlot, dict[str, int], int], None],
        on_synced: Callable[[bool], Awaitable[None]],
        dead_letters: DeadLetterWriter,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._options = options
        self._decoders = decoders
        self._store = store
        self._clock = clock
        self._publish = publish
        self._on_synced = on_synced
        self._dead_letters = dead_letters
        self._metrics = metrics
        self._assigned: frozenset[TopicPartition] = frozenset()
        self._offsets: dict[TopicPartition, int] = {}  # next to count, of the assigned partitions
        self._reached: dict[TopicPartition, int] = {}  # next to fetch, at the last comparison
        self._end_offsets: dict[TopicPartition, int] = {}
        self._goals: dict[TopicPartition, int] = {}  # end offsets of Tally's own topic some time ago
        self._recreated: set[TopicPartition] = set()
        self._read_error = "Kafka has not been reached yet"
        self.records = self.missed = 0

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
            f"topic {topic} partition {number} was recreated: it ends before the offset in the store; use a new topic"
            for topic, number in sorted(self._recreated)
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
                *self._decoders,
                group_id=self._settings.kafka_group,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
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
            except (StoreError, IllegalStateError) as error:  # IllegalStateError: a partition was just revoked
                self._offsets, synced_at = {}, -math.inf
                if not isinstance(error, OffsetMismatch):
                    await asyncio.sleep(RETRY_INTERVAL_SECONDS)

    async def _sync_offsets(self, consumer: AIOKafkaConsumer) -> None:
        """Continue from the store's offsets, which differ if it was set back or another consumer has counted."""
        first_offsets = await consumer.beginning_offsets(self._assigned)
        self._end_offsets = await consumer.end_offsets(self._assigned)
        self._read_error, self._recreated = "", set()
        for partition in self._assigned:
            offset = await self._store.get_offset(_source(partition))
            if offset < first_offsets[partition]:
                await self._skip_expired(partition, offset, first_offsets[partition])
                offset = first_offsets[partition]
            if offset > self._end_offsets[partition]:
                self._recreated.add(partition)
                self._offsets.pop(partition, None)
            elif self._offsets.get(partition) != offset:
                consumer.seek(partition, offset)
                self._offsets[partition] = offset
        # aiokafka's position is past the markers of transactions, which are no records.
        self._reached = {partition: await consumer.position(partition) for partition in self._offsets}
        await self._on_synced(await self._has_reached_goals(consumer))
        with contextlib.suppress(KafkaError):  # these offsets only serve Kafka's monitoring tools
            await consumer.commit(dict(self._offsets))

    async def _has_reached_goals(self, consumer: AIOKafkaConsumer) -> bool:
        """Return whether all records of Tally's own topic are counted that it had when this was last true.

        Other consumers count some of its partitions.
        """
        for partition, goal in self._goals.items():
            if max(await self._store.get_offset(_source(partition)), self._reached.get(partition, 0)) < goal:
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
        await self._store.apply(_source(partition), offset, first_offset, [])

    async def _count_all(
        self, consumer: AIOKafkaConsumer, partition: TopicPartition, records: list[ConsumerRecord]
    ) -> None:
        """Count fetched records, for as long as the partition is assigned to this consumer."""
        offset = self._offsets.get(partition, math.inf)
        if records[0].offset > offset < (await consumer.beginning_offsets([partition]))[partition]:
            raise OffsetMismatch(0)  # Kafka has dropped the next records, which the following sync reports
        counted = 0
        while counted < len(records) and partition in self._offsets and consumer.assignment() is self._assigned:
            counted += await self._count(partition, records[counted:])

    async def _count(self, partition: TopicPartition, records: list[ConsumerRecord]) -> int:
        """Count as many records as one commit may have. Returns their number."""
        decode = self._decoders[partition.topic]
        acknowledged, now = decode is decode_buffered, self._clock.at()
        commit, dead, taken = await build_commit(
            decode, acknowledged, records, now, self._clock.calendar, self._settings.days_kept
        )
        await self._dead_letters.send(dead)
        new_offset = records[taken - 1].offset + 1
        applied = await self._apply(_source(partition), self._offsets[partition], new_offset, commit)
        self.records += taken
        self._offsets[partition] = new_offset
        self._end_offsets[partition] = max(self._end_offsets[partition], new_offset)
        self._publish_counts(commit, applied)
        if reasons := rejection_reasons(commit, applied):
            await self._dead_letters.send(rejected_records(decode, records[:taken], reasons))
        return taken

    async def _apply(self, source: str, offset: int, new_offset: int, commit: Commit) -> ApplyResult:
        began = time.perf_counter()
        try:
            applied = await self._store.apply(source, offset, new_offset, commit)
        except ValueError:  # the saved results are of another consumer, which made other groups of these records
            if await self._store.get_offset(source) < new_offset:
                raise
            raise OffsetMismatch(new_offset) from None
        self._metrics.commit_seconds.observe(time.perf_counter() - began)
        self._metrics.commits.inc()
        return applied

    def _publish_counts(self, commit: Commit, applied: ApplyResult) -> None:
        today = self._clock.slot()
        counts: dict[str, int] = {}
        for group, result in pair_results(commit, applied):
            self._metrics.hits.inc(sum(group.amounts[event] for event in result.counted))
            if group.slot.day == today.day:
                counts |= {event: max(v.count, counts.get(event, 0)) for event, v in result.counted.items()}
        if counts:
            self._publish(today, counts, applied.generations.get(today.day, 0))


def _source(partition: TopicPartition) -> str:
    return f"{PERMANENT_SOURCE_PREFIX}{partition.topic} {partition.partition}"
