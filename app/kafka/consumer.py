"""Kafka in front of any store: POSTs wait in a topic of Tally's own, and the records of other topics are counted.

How far a partition is counted is kept in the store and moves with the counts, in one step. What Kafka keeps of it is
for monitoring alone, so that whatever happens to a consumer, to Kafka or to the store, each record counts once.
"""

import asyncio
import contextlib
import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError, MessageSizeTooLargeError
from aiokafka.partitioner import murmur2
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from typing_extensions import TypedDict

from app.domain.buckets import TOTAL
from app.domain.calendar import Clock, TimeSlot
from app.domain.counting import HitGroup, IdempotencyKey, Visit
from app.group_commit import COMMIT_EVENTS_MAX, Outcome, Overloaded
from app.http.errors import Problem
from app.kafka.decoding import BufferedPost, Read, RecordRejected, connection, read_own, topics
from app.live.day import LiveDay
from app.live.peers import PeerSync
from app.metrics import Metrics
from app.settings import Settings
from app.stores.base import CounterStore, OffsetMismatch, OutcomeUnknown, StoreError, StoreUnavailable
from app.stores.results import ApplyResult, GroupResult, Value, reject
from app.stores.rules import IDEMPOTENCY_TTL_SECONDS, PERMANENT_SOURCE_PREFIX

ANSWER_SECONDS = 2.0  # in which Kafka acknowledges, or a POST is told that it did not
RETRY_SECONDS = 0.5  # between two tries to reach Kafka, or a store that is away
CHECK_SECONDS = 2.0  # between two looks at where the store and the log stand
MESSAGE_BYTES_MAX = 8 * 1024 * 1024  # a request of 4 MiB, with all its names in quotes
WAITING_BYTES_MAX = 64 * 1024 * 1024  # on their way to Kafka
RECORDS_MAX = 10_000  # in a commit
GATHER_SECONDS = 0.02  # in which a few records become more, for a commit of one costs as much as one of a hundred
RECORDS_AT_ONCE = 1000  # read before others have their turn
LETTERS_AT_ONCE = 100
FUTURE_SECONDS = 300  # that a sender's clock may be fast; such a record counts as of now

DURABILITY = "whatever the topic's replicas in Kafka do, from which it is counted"

log = logging.getLogger("tally.kafka")

DeadLetter = tuple[ConsumerRecord, str]  # what cannot be counted, and why


class Log:
    """The way into Kafka: a record is acknowledged once all its replicas have it."""

    def __init__(self, connection: Mapping[str, Any]) -> None:
        self._connection = connection
        self._producer: AIOKafkaProducer | None = None
        self._broken: AIOKafkaProducer | None = None  # and so to be replaced
        self._bytes = 0  # on their way
        self._stuck: dict[TopicPartition, asyncio.Future[Any]] = {}  # what was not answered in time
        self.answers = False

    def start(self) -> None:
        self._keeping = asyncio.create_task(self._keep())

    async def close(self) -> None:
        self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)
        if self._producer:
            await _stop(self._producer)

    async def write(self, topic: str, key: bytes, value: bytes, at: float, headers: Sequence[Any] = ()) -> None:
        """Wait until it is acknowledged; raises StoreUnavailable where it certainly is not written, OutcomeUnknown."""
        weight = len(value) + 256  # of what is kept beside it
        if self._bytes + weight > WAITING_BYTES_MAX:
            raise Overloaded
        self._bytes += weight
        until = time.monotonic() + ANSWER_SECONDS
        try:
            producer, place, sent = await self._send(topic, key, value, at, headers)
            await asyncio.wait([sent], timeout=until - time.monotonic())
        finally:
            self._bytes -= weight
        if not sent.done():
            self._stuck[place] = sent  # and may still be written, once
            raise OutcomeUnknown("Kafka: no answer in time")
        if error := sent.exception():  # which leaves a gap in the numbers by which Kafka knows what comes twice
            self._broken = producer
            raise OutcomeUnknown(f"Kafka: {error}") from error

    async def _send(self, topic: str, key: bytes, *record: Any) -> tuple[AIOKafkaProducer, TopicPartition, Any]:
        """Hand it over, which is the last moment to say that it was not written: aiokafka would try on for ever."""
        producer = self._producer
        if not producer:
            raise StoreUnavailable("Kafka is away")
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                place = TopicPartition(topic, _partition(key, len(await producer.partitions_for(topic))))
                stuck, leader = self._stuck.get(place), producer.client.cluster.leader_for_partition(place)
                if (stuck and not stuck.done()) or leader in {None, -1} or not await producer.client.ready(leader):
                    raise StoreUnavailable("Kafka is away")
                value, at, headers = record
                return producer, place, await producer.send(topic, value, key, place.partition, int(at * 1000), headers)
        except MessageSizeTooLargeError:
            raise Problem(413, "the request is too large for the log") from None
        except (KafkaError, TimeoutError) as error:
            if isinstance(error, KafkaError):
                self._broken = producer
            raise StoreUnavailable(f"Kafka: {str(error) or 'no answer in time'}") from error

    async def _keep(self) -> None:
        """Connect, begin anew where that is broken, and look whether Kafka is there."""
        while True:
            try:
                if self._producer is self._broken:
                    await self._begin_anew()
                client = self._producer and self._producer.client
                reached = [await client.ready(broker.nodeId) for broker in client.cluster.brokers()] if client else []
                self.answers = any(reached) and all(sent.done() for sent in self._stuck.values())
            except Exception as error:  # noqa: BLE001 # whatever it is, it is tried again
                self.answers = False
                log.log(logging.DEBUG if isinstance(error, (KafkaError, OSError)) else logging.ERROR, "%r", error)
            await asyncio.sleep(RETRY_SECONDS)

    async def _begin_anew(self) -> None:
        broken, self._producer, self._broken = self._producer, None, None
        if broken:
            await _stop(broken)
        limits = {"max_batch_size": 256 * 1024, "max_request_size": MESSAGE_BYTES_MAX, "request_timeout_ms": 5000}
        producer = AIOKafkaProducer(enable_idempotence=True, acks="all", **limits, **self._connection)
        try:
            await producer.start()
            self._producer = producer
        finally:
            if not self._producer:
                await _stop(producer)


@lru_cache(maxsize=65_536)  # the same names come again and again
def _partition(key: bytes, partitions: int) -> int:
    """Where every client of Kafka puts this key."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


async def _stop(client: AIOKafkaProducer | AIOKafkaConsumer) -> None:
    """In a task of its own, for its cancellations come out of it; where Kafka is away it would wait for ever."""
    await asyncio.wait([asyncio.create_task(client.stop())], timeout=ANSWER_SECONDS)


Partition = TypedDict("Partition", {"topic": str, "partition": int, "position": int, "lag": int})
KafkaHealth = TypedDict(
    "KafkaHealth",
    {"buffer": str | None, "records": int, "missed": int, "deadLetters": int, "partitions": list[Partition]},
)


class Kafka:
    """A node's part in it: it writes POSTs into the log, where settings ask for that, and is one of those who count."""

    def __init__(
        self, settings: Settings, store: CounterStore, clock: Clock, feed: LiveDay, nodes: PeerSync, metrics: Metrics
    ) -> None:
        servers, self._reads = topics(settings)
        self._connection = connection(settings, servers)
        self._settings = settings
        self.buffers = bool(settings.kafka)  # POSTs, and else they are counted at once
        self._store = store
        self._clock = clock
        self._feed = feed
        self._nodes = nodes
        self._metrics = metrics
        self._log = Log(self._connection)
        self._at: dict[TopicPartition, int] = {}  # where the store stands, of the partitions that are ours
        self._ends: dict[TopicPartition, int] = {}
        self._ahead: set[TopicPartition] = set()
        self._assigned: frozenset[TopicPartition] = frozenset()
        self._unreachable = "Kafka was not reached yet"
        self._records = self._missed = 0
        self._room = settings.events_max  # for new names
        self._new: set[str] = set()  # names that this node let into the log since it was empty
        self._keys, self._keys_until = Counter[str](), 0.0  # of each client's
        self._buried: Counter[str] = Counter()  # by the kind of reason
        metrics.registry.register(self)

    def start(self) -> None:
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it says at each try what is said once here
        self._log.start()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._log.close()

    async def submit(
        self, amounts: Mapping[str, int], key: IdempotencyKey | None = None, visits: Sequence[Visit] = ()
    ) -> Outcome:
        """What a recorder does, but that these hits are in the log then, and the values the last known without them."""
        at = self._clock.at()
        date = self._clock.calendar.slot(at).date
        if reason := await self._full(amounts) or self._many(key, at):
            return Outcome(reject(reason), date, "kafka")
        seen = GroupResult({event: Value(self._feed.seen(event), 0) for event in amounts})
        name = next(iter(amounts)).encode() if len(amounts) == 1 else secrets.token_bytes(8)
        waiting = msgspec.json.encode(BufferedPost(dict(amounts), key, tuple(visits)))
        await self._log.write(self._settings.kafka_topic, name, waiting, at)
        self._metrics.accepted.inc()
        return Outcome(seen, date, "kafka")

    async def _full(self, counts: Mapping[str, int]) -> Literal["full"] | None:
        """Whether there is no room for a new name, as far as this node knows what lies in the log."""
        new = [event for event in counts if event not in self._new and not self._feed.seen(event)]
        if len(self._new) + len(new) > self._room:
            (known,) = await self._store.read([TOTAL], new)
            if len(known) < len(new):
                return "full"
        self._new.update(new)
        return None

    def _many(self, key: IdempotencyKey | None, at: float) -> Literal["keys"] | None:
        """Whether there is no room for another key: of a client, or of all, in about a day."""
        if at > self._keys_until:
            self._keys, self._keys_until = Counter(), at + IDEMPOTENCY_TTL_SECONDS
        if key:
            keys_max = self._settings.keys_max
            if self._keys[""] >= keys_max or self._keys[key.client] >= max(1, keys_max // 10):
                return "keys"
            self._keys.update((key.client, ""))
        return None

    def accepts(self) -> bool:
        return not self.buffers or self._log.answers

    def reasons(self) -> list[str]:
        reasons = [f"the log of {topic} {n} ends before what was counted of it" for topic, n in sorted(self._ahead)]
        reasons += [self._unreachable] if self._unreachable else []
        return reasons if self.accepts() else ["Kafka is away, hits are refused", *reasons]

    def health(self) -> KafkaHealth:
        return KafkaHealth(
            buffer=self._settings.kafka_topic if self.buffers else None,
            records=self._records,
            missed=self._missed,
            deadLetters=self._buried.total(),
            partitions=[
                Partition(topic=place.topic, partition=place.partition, position=at, lag=max(0, self._ends[place] - at))
                for place, at in sorted(self._at.items())
            ],
        )

    def collect(self) -> Iterator[Metric]:
        """For Prometheus. Topics are named in settings, so that their labels are few."""
        yield CounterMetricFamily("tally_kafka_records", "Records counted, or buried.", value=self._records)
        yield CounterMetricFamily("tally_kafka_missed", "Records that Kafka dropped uncounted.", value=self._missed)
        dead = CounterMetricFamily("tally_kafka_dead_letters", "Records that cannot be counted.", labels=["reason"])
        for kind, number in self._buried.items():
            dead.add_metric([kind], number)
        labels = ["topic", "partition"]
        positions = GaugeMetricFamily("tally_kafka_position", "Counted up to here.", labels=labels)
        lags = GaugeMetricFamily("tally_kafka_lag", "Records not counted yet.", labels=labels)
        for part in self.health()["partitions"]:
            place = [part["topic"], str(part["partition"])]
            positions.add_metric(place, part["position"])
            lags.add_metric(place, part["lag"])
        yield from (dead, positions, lags)

    async def _run(self) -> None:
        reading = {"enable_auto_commit": False, "auto_offset_reset": "earliest", "isolation_level": "read_committed"}
        times = {"session_timeout_ms": 6000, "heartbeat_interval_ms": 2000, "request_timeout_ms": 10_000}
        options = {"group_id": self._settings.kafka_group, **reading, **times, **self._connection}
        while True:
            consumer = AIOKafkaConsumer(*self._reads, **options)
            try:
                await consumer.start()
                await self._consume(consumer)
            except Exception as error:  # whatever it is, it is tried again
                reason = f"Kafka cannot be read: {str(error) or type(error).__name__}"
                if not isinstance(error, (KafkaError, OSError)):
                    log.exception("reading from Kafka failed")
                elif reason != self._unreachable:
                    log.warning("%s", reason)
                self._unreachable = reason
            finally:
                self._at = {}
                await _stop(consumer)
            await asyncio.sleep(RETRY_SECONDS)

    async def _consume(self, consumer: AIOKafkaConsumer) -> None:
        checked = -math.inf
        while True:
            assigned = consumer.assignment()
            if assigned is not self._assigned:  # of the same partitions, perhaps, but what Kafka keeps holds in it
                self._assigned, self._at, checked = assigned, {}, -math.inf
            try:
                if time.monotonic() - checked >= CHECK_SECONDS:
                    await self._find(consumer, assigned)
                    checked = time.monotonic()
                found = await consumer.getmany(timeout_ms=200, max_records=RECORDS_MAX)
                for place, records in found.items():
                    at, counted = self._at.get(place, math.inf), 0
                    if records[0].offset > at < (await consumer.beginning_offsets([place]))[place]:
                        raise OffsetMismatch(0)  # Kafka has dropped what comes next, which is to be told
                    while counted < len(records) and place in self._at and consumer.assignment() is assigned:
                        counted += await self._count(place, records[counted:])
                if 0 < sum(map(len, found.values())) < RECORDS_AT_ONCE:
                    await asyncio.sleep(GATHER_SECONDS)
            except (StoreError, IllegalStateError) as error:  # the latter where a partition has just been taken away
                self._at, checked = {}, -math.inf
                if not isinstance(error, OffsetMismatch):
                    await asyncio.sleep(RETRY_SECONDS)

    async def _find(self, consumer: AIOKafkaConsumer, assigned: frozenset[TopicPartition]) -> None:
        """Read on from where the store stands, which may be elsewhere by now: it was set back, or another counted."""
        begins, self._ends = await consumer.beginning_offsets(assigned), await consumer.end_offsets(assigned)
        self._unreachable, self._ahead = "", set()
        for place in assigned:
            stands = await self._store.get_offset(_source(place))
            if stands < (begin := begins[place]):
                if stands:
                    log.error("%s %s: Kafka has dropped %s to %s uncounted", *place, stands, begin - 1)
                    self._missed += begin - stands
                await self._store.apply(_source(place), stands, begin, [])
                stands = begin
            if stands > self._ends[place]:
                self._ahead.add(place)
                self._at.pop(place, None)
            elif self._at.get(place) != stands:
                consumer.seek(place, stands)
                self._at[place] = stands
        self._room = self._settings.events_max - (await self._store.sizes([TOTAL]))[0]
        if self._ends == self._at:
            self._new.clear()
        with contextlib.suppress(KafkaError):  # it is for who looks at Kafka alone
            await consumer.commit(dict(self._at))

    async def _count(self, place: TopicPartition, records: list[ConsumerRecord]) -> int:
        """Count as many of them as a commit may have."""
        batch, dead, taken = await self._gather(place.topic, records)
        await self._bury(dead)
        next_offset = records[taken - 1].offset + 1
        begun = time.perf_counter()
        try:
            applied = await self._store.apply(_source(place), self._at[place], next_offset, batch)
        except ValueError:  # another consumer has counted up to there, as postings of another shape
            if await self._store.get_offset(_source(place)) < next_offset:
                raise
            raise OffsetMismatch(next_offset) from None
        self._metrics.commit_seconds.observe(time.perf_counter() - begun)
        self._metrics.commits.inc()
        self._records += taken
        self._at[place], self._ends[place] = next_offset, max(self._ends[place], next_offset)
        refused = self._show(batch, applied)
        await self._bury(_letters(self._reads[place.topic], records[:taken], refused) if refused else [])
        return taken

    async def _gather(self, topic: str, records: list[ConsumerRecord]) -> tuple[list[HitGroup], list[DeadLetter], int]:
        """What to count, what to bury, and how many records that are. Hits without a key are summed."""
        read, limited = self._reads[topic], self._reads[topic] is not read_own
        now, calendar = self._clock.at(), self._clock.calendar
        oldest = calendar.slot(now).day - (self._settings.days_kept - 1) * 86_400
        sums: dict[TimeSlot, dict[str, int]] = {}
        came: dict[TimeSlot, list[Visit]] = {}
        keyed: list[HitGroup] = []
        dead: list[DeadLetter] = []
        minute, events, taken = -1.0, 0, 0
        for taken, record in enumerate(records, 1):
            if taken % RECORDS_AT_ONCE == 0:
                await asyncio.sleep(0)
            try:
                at, counts, key, visits = read(record)
                _check(at, oldest, now + FUTURE_SECONDS)
            except RecordRejected as error:
                dead.append((record, str(error)))
                continue
            if (at := min(at, now)) // 60 != minute:
                minute, slot = at // 60, calendar.slot(at)
                summed = sums.setdefault(slot, {})
            if key:
                keyed.append(HitGroup(slot, counts, key, limited, visits))
                events += len(counts)
            else:
                for event, by in counts.items():
                    events += event not in summed
                    summed[event] = summed.get(event, 0) + by
                came.setdefault(slot, []).extend(visits)
            events += len(visits)
            if events >= COMMIT_EVENTS_MAX:
                break
        bare = [HitGroup(slot, summed, None, limited, came[slot], False) for slot, summed in sums.items() if summed]
        return bare + keyed, dead, taken

    def _show(self, batch: Sequence[HitGroup], applied: ApplyResult) -> dict[IdempotencyKey | str, str]:
        """Tell the pages what was counted; returns what the store has refused, and why."""
        today = self._clock.slot()
        changes: dict[str, int] = {}
        refused: dict[IdempotencyKey | str, str] = {}
        # A retry returns the results of whoever applied these records first, perhaps as groups of another shape.
        for group, result in zip(batch, applied.groups, strict=False):
            if result.reason and group.key:
                refused[group.key] = result.reason
            elif not group.atomic:
                refused.update(result.rejected.items())
            self._metrics.hits.inc(sum(group.amounts[event] for event in result.counted))
            if group.slot.day == today.day:
                changes |= {event: max(v.count, changes.get(event, 0)) for event, v in result.counted.items()}
        if changes:
            self._nodes.publish(today, changes, applied.generations.get(today.day, 0))
        return refused

    async def _bury(self, dead: Sequence[DeadLetter]) -> None:
        """Write dead letters. Where that fails they are still in their topic, at a place that the log names."""
        self._buried.update(reason.partition(":")[0] for _, reason in dead)
        for begin in range(0, len(dead), LETTERS_AT_ONCE):
            writes = (self._write_dead(*letter) for letter in dead[begin : begin + LETTERS_AT_ONCE])
            if failures := [e for e in await asyncio.gather(*writes, return_exceptions=True) if e]:
                topic, partition, offset, *_ = dead[begin][0]
                place = f"from offset {offset} of {topic} {partition} on"
                log.error("%s dead letters could not be written, %s: %s", len(dead) - begin, place, failures[0])
                return

    async def _write_dead(self, record: ConsumerRecord, reason: str) -> None:
        told = {"reason": reason, "topic": record.topic, "partition": record.partition, "offset": record.offset}
        headers = [*record.headers, *((f"tally.{name}", str(text).encode()) for name, text in told.items())]
        topic, now = self._settings.kafka_dead_letters, self._clock.at()
        await self._log.write(topic, record.key or b"", record.value or b"", now, headers)


def _check(at: float, oldest: float, latest: float) -> None:
    if not oldest <= at <= latest:
        raise RecordRejected("old: its day is not kept" if at < oldest else "future: its time is to come")


def _source(place: TopicPartition) -> str:
    return f"{PERMANENT_SOURCE_PREFIX}{place.topic} {place.partition}"


def _letters(
    read: Read, records: list[ConsumerRecord], refused: Mapping[IdempotencyKey | str, str]
) -> list[DeadLetter]:
    """The records that hold what the store has refused; those that cannot be read are buried already."""
    letters = []
    for record in records:
        with contextlib.suppress(RecordRejected):
            _, counts, key, _ = read(record)
            letters += [(record, refused[name]) for name in ([key] if key else counts) if name in refused][:1]
    return letters
