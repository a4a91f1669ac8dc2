"""Each store equals a model after any sequence of hits, visits, retries, changes, imports, midnights and restarts."""

import asyncio
import shutil
import tempfile
import uuid
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from app import corrections
from app.check import check_store, mark_import
from app.domain.buckets import ALL_EVENTS, TOTAL, Bucket
from app.domain.calendar import Calendar, Clock, TimeSlot
from app.domain.counting import BucketWrite, Commit, DayChange, HitGroup, IdempotencyKey, Visit
from app.settings import Settings
from app.stores import rules
from app.stores.base import CounterStore, OffsetMismatch, StoreLimits
from app.stores.memory import MemoryStore
from app.stores.redis import RedisStore
from app.stores.redis_sharded import ShardedRedisStore
from app.stores.redis_url import RedisTarget
from app.stores.results import ApplyResult, GroupResult, Value
from app.stores.sqlite import SqliteStore
from tests.stores.store_model import StoreModel
from tests.support.redis_servers import Cluster, RedisServer

CALENDAR = Calendar(ZoneInfo("America/Havana"))
START = 1_772_900_000  # a day before Havana's clock skips a midnight
NAMES_MAX = 3
RANKED_MAX = 2
DAYS_KEPT_SECONDS = 3 * 86_400
KEPT = Settings(timezone=CALENDAR.zone, minutes_kept_hours=24, hours_kept_days=1)
events = st.sampled_from(["a", "b", "c", "d"])
amounts = st.integers(1, 1_000_000)
users = st.sampled_from(["ann", "bob", "a/b", "Zoë"])


class StoreMachine(RuleBasedStateMachine):
    """One store, one source, and a clock that only the rules move."""

    is_durable = True
    is_exact = True
    names_max, ranked_max = NAMES_MAX, RANKED_MAX

    def make(self) -> CounterStore:
        raise NotImplementedError  # a subclass for each store

    @initialize()
    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.store = self.make()
        self.run(self.store.open())
        self.now = START
        self.source, self.offset = uuid.uuid4().hex, 0
        self.model = StoreModel(self.names_max, self.ranked_max, self.is_exact)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.run(self.store.close())
            self.loop.close()

    def run(self, work: Awaitable[Any]) -> Any:
        return self.loop.run_until_complete(work)

    @property
    def slot(self) -> TimeSlot:
        return CALENDAR.slot(self.now)

    def commit(
        self, *requests: tuple[dict[str, int], IdempotencyKey | None], retries: int = 0, visits: Sequence[Visit] = ()
    ) -> None:
        self.apply([HitGroup(self.slot, group, key, visits=visits) for group, key in requests], retries)

    def apply(self, commit: Commit, retries: int) -> None:
        expected = [self.model.count(group) for group in commit]
        for _ in range(1 + retries):  # a process that gets no response retries
            result: ApplyResult = self.run(self.store.apply(self.source, self.offset, self.offset + 1, commit))
            assert result.groups == expected
            if commit:
                assert result.generations.get(self.slot.day, 0) == self.model.generation(self.slot)
        self.offset += 1

    def apply_change(self, change: DayChange) -> None:
        no_groups: list[GroupResult] = []
        for _ in range(2):
            result = self.run(self.store.apply_change(self.source, self.offset, self.offset + 1, change))
            assert result.groups == no_groups
            assert result.generations.get(self.slot.day, 0) == self.model.generation(self.slot)
        self.offset += 1

    def apply_correction(self, plan: Awaitable[tuple[DayChange, Any]], after: Value) -> None:
        change, record = self.run(plan)
        assert (record.before, record.after) == (self.model.value(self.slot, record.event), after)
        self.model.history.setdefault(self.slot.day, []).append(record)
        self.apply_change(change)

    @rule(event=events, count=st.none() | st.integers(0, 99), total=st.none() | st.integers(0, 99))
    def correct(self, event: str, count: int | None, total: int | None) -> None:
        slot = self.slot
        before = self.model.value(slot, event)
        after = Value(before.count if count is None else count, before.total if total is None else total)
        plan = corrections.correct(self.store, slot, self.now, event, count, total, self.names_max)
        if not self.model.has_room_for(event):
            with pytest.raises(corrections.ChangeRejected, match="full"):
                self.run(plan)
            return
        self.apply_correction(plan, after)
        self.model.add(slot.day_buckets[1], {event: after.count - before.count})
        self.model.add(TOTAL, {event: after.total - before.total})

    @rule(event=events)
    def delete(self, event: str) -> None:
        self.apply_correction(corrections.delete(self.store, self.slot, self.now, event), Value(0, 0))
        self.model.delete(event)

    @rule()
    def reset(self) -> None:
        before = self.model.value(self.slot, ALL_EVENTS)
        self.apply_correction(corrections.reset(self.store, self.slot, self.now), Value(0, before.total))
        self.model.reset(self.slot, self.now)

    @rule(user=users)
    def erase(self, user: str) -> None:
        change, _ = self.run(corrections.erase(self.store, self.slot, user))
        self.apply_change(change)
        self.model.erase(user)

    @rule()
    def check(self) -> None:
        assert self.run(check_store(self.store, KEPT, self.now)) == []

    @rule(counts=st.dictionaries(events, st.integers(1, 99), max_size=3), step=st.sampled_from([0, 2, 3]))
    def import_counts(self, counts: dict[str, int], step: int) -> None:
        self.run(mark_import(self.store, Clock(CALENDAR, lambda: self.now)))
        for bucket in dict.fromkeys((TOTAL, self.slot.buckets[step])):  # every event has a total
            self.apply_change(DayChange(self.slot, [BucketWrite("add", bucket, counts)]))
            self.model.add(bucket, counts)

    @rule(event=events, visitors=st.dictionaries(users, st.integers(0, 3), max_size=3))
    def import_visitors(self, event: str, visitors: dict[str, int]) -> None:
        bucket = Bucket("day", self.slot.day, f"user:{event}")
        self.apply_change(DayChange(self.slot, [BucketWrite("mark", bucket, visitors)]))
        for visitor, by in visitors.items():
            self.model.count_visitor(bucket, visitor, by)

    @rule(event=events, by=st.integers(1, 5), user=st.none() | users, session=st.none() | users)
    def visit(self, event: str, by: int, user: str | None, session: str | None) -> None:
        self.commit(({event: by}, None), retries=1, visits=[Visit(event, by, user, session)])

    @rule(event=events, by=amounts, retries=st.integers(0, 2))
    def hit(self, event: str, by: int, retries: int) -> None:
        self.commit(({event: by}, None), retries=retries)

    @rule(groups=st.lists(st.dictionaries(events, amounts, max_size=3), max_size=4), retries=st.integers(0, 1))
    def batches(self, groups: list[dict[str, int]], retries: int) -> None:
        self.commit(*((group, None) for group in groups), retries=retries)

    @rule(
        simple=st.dictionaries(events, amounts, min_size=1),
        users=st.dictionaries(events, users, max_size=2),
        groups=st.lists(st.dictionaries(events, amounts, max_size=3), max_size=2),
        retries=st.integers(0, 1),
    )
    def simple_hits(
        self, simple: dict[str, int], users: dict[str, str], groups: list[dict[str, int]], retries: int
    ) -> None:
        visits = [Visit(event, 1, users[event], None) for event in simple if event in users]
        atomic_groups = [HitGroup(self.slot, group) for group in groups]
        self.apply([HitGroup(self.slot, simple, visits=visits, atomic=False), *atomic_groups], retries)

    @rule(event=events, by=st.integers(1, 2), key=st.sampled_from("xyz"), is_repeated=st.booleans())
    def keyed_hit(self, event: str, by: int, key: str, is_repeated: bool) -> None:
        request = ({event: by}, IdempotencyKey(key, f"{event}{by}", "client"))
        self.commit(*[request] * (1 + is_repeated))

    @rule(seconds=st.sampled_from([1, 61, 3600, 20 * 3600, 86_400]))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def midnight(self) -> None:
        self.now = CALENDAR.next_day(self.now)

    @rule()
    def restart(self) -> None:
        if self.is_durable:
            self.run(self.store.close())
            self.store = self.make()
            self.run(self.store.open())

    @rule()
    def new_process(self) -> None:
        self.source, self.offset = uuid.uuid4().hex, 0

    @rule(ahead=st.sampled_from([1, 5]))
    def apply_at_a_wrong_offset(self, ahead: int) -> None:
        offset = self.offset + ahead
        with pytest.raises(OffsetMismatch):
            self.run(self.store.apply(self.source, offset, offset + 1, [HitGroup(self.slot, {"a": 1})]))

    @rule()
    def prune(self) -> None:
        slot = self.slot
        cutoffs = {"minute": slot.minute - 86_400, "hour": slot.minute - 86_400, "day": slot.day - DAYS_KEPT_SECONDS}
        self.prune_store(cutoffs, slot)
        self.model.prune(cutoffs, slot)

    def prune_store(self, cutoffs: Mapping[str, int], slot: TimeSlot) -> None:
        self.run(self.store.prune(cutoffs, slot))

    @invariant()
    def the_store_has_the_counts_of_the_model(self) -> None:
        expected = {b: {e: n for e, n in c.items() if n} for b, c in self.model.counts.items() if any(c.values())}
        buckets = list(expected)
        if buckets:
            found = self.run(self.store.read(buckets))
            assert [{e: n for e, n in counts.items() if n} for counts in found] == list(expected.values())
        assert set(buckets) <= set(self.run(self.store.list_buckets()))

    @invariant()
    def the_store_has_the_visitors_and_corrections_of_the_model(self) -> None:
        for bucket, visitors in self.model.visitors.items():
            assert self.run(self.store.count_distinct([bucket])).number == len(visitors)
        for day, records in self.model.history.items():
            assert self.run(corrections.history(self.store, day)) == records


@pytest.fixture(autouse=True)
def store_limits(monkeypatch: pytest.MonkeyPatch, patience: None) -> None:
    """Rank few visitors."""
    monkeypatch.setattr(rules, "RANKED_VISITORS_MAX", RANKED_MAX)


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp())
    yield path
    shutil.rmtree(path)


LIMITS = settings(max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))


def test_memory_equals_the_model() -> None:
    class OnMemory(StoreMachine):
        is_durable = False

        def make(self) -> CounterStore:
            return MemoryStore(StoreLimits(NAMES_MAX))

    run_state_machine_as_test(OnMemory, settings=LIMITS)


@pytest.mark.fails_on_mutant(
    "idempotency keys are not saved", "app/stores/sqlite_writer.py", "if group.key and result.is_counted:", "if False:"
)
def test_sqlite_equals_the_model(directory: Path) -> None:
    class OnSqlite(StoreMachine):
        def make(self) -> CounterStore:
            if not hasattr(self, "path"):
                self.path = directory / uuid.uuid4().hex
            return SqliteStore(self.path, StoreLimits(NAMES_MAX))

    run_state_machine_as_test(OnSqlite, settings=LIMITS)


@pytest.mark.fails_on_mutant(
    "idempotency keys are not saved",
    "app/stores/lua/count.lua",
    "if key then\n      save_idempotency",
    "if false then save_idempotency",
)
def test_redis_equals_the_model(redis_server: RedisServer) -> None:
    class OnRedis(StoreMachine):
        is_exact = False

        def make(self) -> CounterStore:
            if not hasattr(self, "is_flushed"):
                self.is_flushed = True
                redis_server.flush()
            return RedisStore(RedisTarget.from_url(redis_server.url), StoreLimits(NAMES_MAX))

    run_state_machine_as_test(OnRedis, settings=LIMITS)


def test_a_cluster_equals_the_model(redis_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    class OnCluster(StoreMachine):
        is_exact = False
        names_max, ranked_max = 100, 100  # each shard has a part of both limits

        def make(self) -> CounterStore:
            if not hasattr(self, "is_flushed"):
                self.is_flushed = True
                redis_cluster.flush()
            target = RedisTarget.from_url(redis_cluster.url.replace("shards=16", "shards=3"))
            limits = StoreLimits(self.names_max)
            return ShardedRedisStore([RedisStore(target, limits, shard) for shard in range(target.shards)])

    monkeypatch.setattr(rules, "RANKED_VISITORS_MAX", OnCluster.ranked_max)
    run_state_machine_as_test(OnCluster, settings=settings(LIMITS, max_examples=15, phases=[Phase.generate]))
