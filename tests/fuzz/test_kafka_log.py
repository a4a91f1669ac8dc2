"""The consumer counts each record of a random log once, whatever happens to it, to its store and to the log."""

import asyncio
import copy
import itertools
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from app.domain.buckets import ALL_EVENTS, TOTAL
from app.domain.calendar import Clock
from app.kafka import commits, consumer
from app.kafka.service import KafkaService
from app.kafka.sources import set_offset
from app.metrics import Metrics
from app.settings import Settings
from app.stores.results import ApplyResult
from tests.fuzz import TEST_SECONDS, run_episodes
from tests.fuzz.faults import LIMITS, LOCAL_FATES, Faults, UnreliableMemory
from tests.fuzz.nodes import CALENDAR
from tests.kafka.test_other_logs import recreate
from tests.support.kafka_broker import Broker
from tests.support.servers import eventually

pytestmark = pytest.mark.timeout(TEST_SECONDS)

STEPS = ["records"] * 4 + ["transaction", "aborted", "crash", "backup", "restore", "recreate"]
STEPS_PER_EPISODE = 10
EVENTS = ["a", "b", "c"]
KEYS = ["x", "y", "z"]


class CrashingStore(UnreliableMemory):
    """A store that survives the crashes of its consumer. At random, a commit that it has applied gets no response."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(LIMITS)
        self.faults = Faults(rng, LOCAL_FATES)
        self.crash_rate = 0.0
        self._rng = rng

    async def apply(self, *arguments: Any, **named: Any) -> ApplyResult:
        result: ApplyResult = await super().apply(*arguments, **named)
        if self._rng.random() < self.crash_rate:
            await asyncio.Event().wait()
        return result

    def backup(self) -> dict[str, Any]:
        return copy.deepcopy({name: value for name, value in vars(self).items() if name not in {"faults", "_rng"}})

    def restore(self, backup: dict[str, Any]) -> None:
        vars(self).update(copy.deepcopy(backup))


class Episode:
    """Steps that write to a log of one partition, or disturb its consumer. `counts` and `dead` are the right results.

    Each record has a key of its own in Kafka, by which its dead letter is recognised.
    """

    def __init__(self, broker: Broker, rng: random.Random) -> None:
        name = uuid.uuid4().hex
        self._broker, self._rng = broker, rng
        self._topic, self._letters = f"own.{name}", f"dead.{name}"
        topics = {"kafka_topic": self._topic, "kafka_dead_letters": self._letters, "kafka_group": name}
        self._settings = Settings(TALLY_STORE="memory://", kafka=broker.servers, **topics)
        self._store = CrashingStore(random.Random(rng.random()))
        self._backup = self._store.backup()
        self._counts: Counter[str] = Counter()
        self._dead: set[bytes] = set()
        self._requests: dict[str, str] = {}  # the first one of each idempotency key
        self._numbers = itertools.count()

    async def run(self) -> None:
        await self._broker.create_topics(self._topic, self._letters, partitions=1)
        servers = self._broker.servers
        async with (
            AIOKafkaProducer(bootstrap_servers=servers) as self._plain,
            AIOKafkaProducer(bootstrap_servers=servers, transactional_id=uuid.uuid4().hex) as self._transactional,
        ):
            self._start()
            try:
                for _ in range(STEPS_PER_EPISODE):
                    await self._step()
                await self._check()
            finally:
                await self._stop()

    def _start(self) -> None:
        clock = Clock(CALENDAR, time.time)
        self._service = KafkaService(self._settings, self._store, clock, lambda _: 0, lambda *_: None, Metrics())
        self._service.start()

    async def _step(self) -> None:
        self._store.faults.rate, self._store.crash_rate = self._rng.choice([(0, 0), (0.3, 0), (0.2, 0.3)])
        what = self._rng.choice(STEPS)
        if what == "records":
            await self._write(self._plain, self._records(self._rng.randint(1, 20)))
        elif what in {"transaction", "aborted"}:
            await self._transactional.begin_transaction()
            await self._write(self._transactional, self._records(self._rng.randint(1, 5), counted=what != "aborted"))
            end = self._transactional
            await (end.abort_transaction() if what == "aborted" else end.commit_transaction())
        elif what == "backup":
            self._backup = self._store.backup()
        elif what == "recreate":
            await self._recreate()
        else:
            await asyncio.sleep(self._rng.uniform(0, 0.3))
            await self._restart(self._backup if what == "restore" else None)

    async def _stop(self) -> None:
        """Cancel whatever the consumer does, but not its start, because aiokafka would leave a connection open."""
        await eventually(
            lambda: self._service.is_accepting() and "not been reached" not in str(self._service.reasons())
        )
        await self._service.close()

    async def _restart(self, backup: dict[str, Any] | None = None) -> None:
        """End the consumer like a crash, and start another one, with this store."""
        await self._stop()
        if backup:
            self._store.restore(backup)
        self._start()

    async def _recreate(self) -> None:
        """Delete the log and create another one, of which the operator chooses the offset."""
        await self._count_all()
        await self._stop()
        await recreate(self._broker, self._topic)
        await self._write(self._plain, self._records(self._rng.randint(0, 40)))
        self._start()
        await eventually(lambda: "choose where to continue" in str(self._service.reasons()))
        await set_offset(self._store, self._topic, 0, 0)
        self._backup = self._store.backup()

    def _records(self, number: int, *, counted: bool = True) -> list[tuple[bytes, bytes]]:
        """Return the keys and values of random records, and add them to the right results if they are to be counted."""
        records = []
        for _ in range(number):
            name = b"%d" % next(self._numbers)
            events = self._rng.sample(EVENTS, self._rng.choice([1, 1, 2]))
            amounts = {event: self._rng.randint(1, 9) for event in events}
            key, request = self._rng.choice(["", "", *KEYS]), self._rng.choice("12")
            value = {"counts": amounts} | ({"key": [key, request, "client"]} if key else {})
            is_malformed = self._rng.random() < 0.1
            records.append((name, b"nonsense" if is_malformed else json.dumps(value).encode()))
            if counted and is_malformed:
                self._dead.add(name)
            elif counted and not (key and key in self._requests):
                self._counts.update(amounts)
                self._requests[key] = request
            elif counted and self._requests[key] != request:
                self._dead.add(name)
        return records

    async def _write(self, producer: AIOKafkaProducer, records: Sequence[tuple[bytes, bytes]]) -> None:
        await asyncio.gather(*[await producer.send(self._topic, value, key=key) for key, value in records])

    async def _count_all(self) -> None:
        """End all faults, and wait until a last record is counted."""
        self._store.faults.rate = self._store.crash_rate = 0
        await self._restart()
        self._counts["last"] += 1
        await self._write(self._plain, [(b"last", b'{"counts": {"last": 1}}')])
        await eventually(lambda: self._store._buckets[TOTAL].get("last", 0) >= self._counts["last"])

    async def _check(self) -> None:
        await self._count_all()
        (totals,) = await self._store.read([TOTAL])
        totals.pop(ALL_EVENTS)
        assert totals == self._counts
        servers, found = self._broker.servers, set[bytes]()
        async with AIOKafkaConsumer(self._letters, bootstrap_servers=servers, auto_offset_reset="earliest") as letters:

            async def all_are_found() -> bool:
                for records in (await letters.getmany(timeout_ms=100)).values():
                    found.update(record.key for record in records)
                return found >= self._dead

            await eventually(all_are_found)
        assert found == self._dead


@pytest.fixture
def small_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a few records fill a fetch and several commits, and retry soon."""
    monkeypatch.setattr(consumer, "FETCH_RECORDS_MAX", 7)
    monkeypatch.setattr(commits, "COMMIT_WEIGHT_MAX", 5)
    monkeypatch.setattr(consumer, "SYNC_INTERVAL_SECONDS", 0.2)
    monkeypatch.setattr(consumer, "RETRY_INTERVAL_SECONDS", 0.02)


@pytest.mark.fails_on_mutant(
    "reading from Kafka's own offsets", "app/kafka/consumer.py", "        consumer.seek(partition, begin)\n", ""
)
@pytest.mark.fails_on_mutant(
    "aborted transactions are counted", "app/kafka/consumer.py", '"read_committed"', '"read_uncommitted"'
)
@pytest.mark.fails_on_mutant(
    "a commit whose response was lost is counted again",
    "app/kafka/consumer.py",
    "        offset = await self._store.get_offset(source)\n        if offset < first_offset:",
    "        offset = self._offsets.get(partition, 0)\n        if offset < first_offset:",
)
@pytest.mark.usefixtures("small_commits")
async def test_a_random_log(broker: Broker) -> None:
    await run_episodes(1, lambda rng: Episode(broker, rng).run())
