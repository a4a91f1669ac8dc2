"""Any course of hits, batches, keyed retries, midnights, restarts, lost answers and pruning, against a model.

The model is what docs/exactly-once.md says in words: a dict of counts, and a dict of keys.
"""

import asyncio
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from conftest import RedisServer
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from app.events import EVERYTHING, TOTAL, Calendar, Key, Posting
from app.stores.base import KEY_KEPT_SECONDS, Caps, CounterStore, Moved, Refused, Replayed
from app.stores.memory import MemoryStore
from app.stores.redis import RedisStore, server
from app.stores.sqlite import SqliteStore

CALENDAR = Calendar(ZoneInfo("America/Havana"))
BEGIN = 1_772_900_000  # a day before Havana's clock skips a midnight
NAMES = 3
DAY_KEPT = 3 * 86_400
events = st.sampled_from(["a", "b", "c", "d"])
amounts = st.integers(1, 1_000_000)


class Machine(RuleBasedStateMachine):
    """One store, one source, and a clock that only goes where the rules send it."""

    durable = True

    def make(self) -> CounterStore:
        raise NotImplementedError  # each store's machine says how

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.store = self.make()
        self.run(self.store.open())
        self.now = BEGIN
        self.source, self.offset = uuid.uuid4().hex, 0
        self.counts: dict[tuple[str, int], Counter[str]] = {}
        self.keys: dict[str, tuple[str, int, object]] = {}

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.run(self.store.close())
            self.loop.close()

    def run(self, work):
        return self.loop.run_until_complete(work)

    def expect(self, posting: Posting) -> object:
        """The model's answer, and what it changes."""
        key, moment = posting.key, posting.moment
        if key and key.id in self.keys and self.keys[key.id][1] > moment.minute - KEY_KEPT_SECONDS:
            request, _, answer = self.keys[key.id]
            return answer if request == key.request else Refused("mismatch")
        totals = self.counts.setdefault(TOTAL, Counter())
        if len((totals.keys() | posting.counts.keys()) - {EVERYTHING}) > NAMES:
            return Refused("full")
        for bucket in moment.buckets:
            counts = self.counts.setdefault(bucket, Counter())
            counts.update(posting.counts)
            counts[EVERYTHING] += sum(posting.counts.values())
        day = self.counts["day", moment.day]
        answer = {event: (day[event], totals[event]) for event in posting.counts}
        if key:
            self.keys[key.id] = (key.request, moment.minute, Replayed(moment.date, answer))
        return answer

    def commit(self, *requests: tuple[dict[str, int], Key | None], retries: int = 0) -> None:
        moment = CALENDAR.moment(self.now)
        batch = [Posting(moment, counts, key) for counts, key in requests]
        expected = [self.expect(posting) for posting in batch]
        for _ in range(1 + retries):  # an answer that is lost is asked for again
            applied = self.run(self.store.apply(self.source, self.offset, self.offset + 1, batch))
            assert applied.answers == expected
        self.offset += 1

    @rule(event=events, by=amounts, retries=st.integers(0, 2))
    def hit(self, event: str, by: int, retries: int) -> None:
        self.commit(({event: by}, None), retries=retries)

    @rule(many=st.lists(st.dictionaries(events, amounts, max_size=3), max_size=4), retries=st.integers(0, 1))
    def batch(self, many: list[dict[str, int]], retries: int) -> None:
        self.commit(*((counts, None) for counts in many), retries=retries)

    @rule(event=events, by=st.integers(1, 2), key=st.sampled_from("xyz"), twice=st.booleans())
    def keyed(self, event: str, by: int, key: str, twice: bool) -> None:
        request = ({event: by}, Key(key, f"{event}{by}", "owner"))
        self.commit(*[request] * (1 + twice))

    @rule(seconds=st.sampled_from([1, 61, 3600, 20 * 3600, 86_400]))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def midnight(self) -> None:
        self.now = CALENDAR.next_day(self.now)

    @rule()
    def restart(self) -> None:
        if self.durable:
            self.run(self.store.close())
            self.store = self.make()
            self.run(self.store.open())

    @rule()
    def new_process(self) -> None:
        self.source, self.offset = uuid.uuid4().hex, 0

    @rule(off=st.sampled_from([-1, 1, 5]))
    def ask_at_a_wrong_offset(self, off: int) -> None:
        if self.offset + off >= 0 and off != -1:
            moment = CALENDAR.moment(self.now)
            with pytest.raises(Moved):
                self.run(
                    self.store.apply(self.source, self.offset + off, self.offset + off + 1, [Posting(moment, {"a": 1})])
                )

    @rule()
    def prune(self) -> None:
        moment = CALENDAR.moment(self.now)
        before = {"minute": moment.minute - 86_400, "hour": moment.minute - 86_400, "day": moment.day - DAY_KEPT}
        self.run(self.store.prune(before, moment))
        for step, start in [bucket for bucket in self.counts if bucket != TOTAL]:
            if start < before[step]:
                del self.counts[step, start]

    @invariant()
    def the_store_has_what_the_model_has(self) -> None:
        buckets = list(self.counts)
        if buckets:
            found = self.run(self.store.read(buckets))
            assert [{e: n for e, n in counts.items() if n} for counts in found] == [
                {e: n for e, n in self.counts[bucket].items() if n} for bucket in buckets
            ]


class OnMemory(Machine):
    durable = False

    def make(self) -> CounterStore:
        return MemoryStore(Caps(NAMES))


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp())
    yield path
    shutil.rmtree(path)


LIMITS = settings(max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))


def test_memory_is_the_model() -> None:
    run_state_machine_as_test(OnMemory, settings=LIMITS)


@pytest.mark.catches(
    "a key that is not remembered",
    "app/stores/sqlite.py",
    "            if posting.key:\n                self._remember",
    "            if False:\n                self._remember",
)
def test_sqlite_is_the_model(directory: Path) -> None:
    class OnSqlite(Machine):
        def make(self) -> CounterStore:
            if not hasattr(self, "path"):
                self.path = directory / uuid.uuid4().hex
            return SqliteStore(self.path, Caps(NAMES))

    run_state_machine_as_test(OnSqlite, settings=LIMITS)


@pytest.mark.catches(
    "a key that is not remembered", "app/stores/redis.lua", "    if key then remember", "    if false then remember"
)
def test_redis_is_the_model(redis_server: RedisServer) -> None:
    class OnRedis(Machine):
        def make(self) -> CounterStore:
            if not hasattr(self, "begun"):
                self.begun = True
                redis_server.flush()
            return RedisStore(server(redis_server.url), Caps(NAMES))

    run_state_machine_as_test(OnRedis, settings=LIMITS)
