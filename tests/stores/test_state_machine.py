"""Any course of hits, visits, keyed retries, corrections, imports, midnights, restarts, lost answers and pruning.

Each store against a model, which is what docs/exactly-once.md says in words: dicts of counts, keys and corrections.
"""

import asyncio
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from app import corrections as changes
from app.corrections import CorrectionRecord
from app.domain.buckets import ALL_EVENTS, TOTAL, Bucket
from app.domain.calendar import Calendar, TimeSlot
from app.domain.counting import BucketWrite, Commit, DayChange, HitGroup, IdempotencyKey, Visit, visitor_buckets
from app.stores import redis as redis_store
from app.stores import redis_sharded as tags
from app.stores import rules
from app.stores.base import CounterStore, OffsetMismatch, StoreLimits
from app.stores.memory import MemoryStore
from app.stores.redis import RedisStore, server
from app.stores.redis_sharded import ShardedRedisStore
from app.stores.results import ApplyResult, GroupResult, Value, reject
from app.stores.rules import IDEMPOTENCY_TTL_SECONDS, VISITOR_MINUTES_TTL_SECONDS
from app.stores.sqlite import SqliteStore
from tests.support.redis_servers import Cluster, RedisServer

CALENDAR = Calendar(ZoneInfo("America/Havana"))
BEGIN = 1_772_900_000  # a day before Havana's clock skips a midnight
NAMES = 3
DAY_KEPT = 3 * 86_400
events = st.sampled_from(["a", "b", "c", "d"])
amounts = st.integers(1, 1_000_000)


users = st.sampled_from(["ann", "bob", "a/b", "Zoë"])
RANKED = 2


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The computer may be as busy as it likes."""
    for module in redis_store, tags:
        monkeypatch.setattr(module, "ANSWER_SECONDS", 30)


class Machine(RuleBasedStateMachine):
    """One store, one source, and a clock that only goes where the rules send it."""

    durable = True
    exact = True
    names, ranked = NAMES, RANKED

    def make(self) -> CounterStore:
        raise NotImplementedError  # each store's machine says how

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.store = self.make()
        self.run(self.store.open())
        self.now = BEGIN
        self.source, self.offset = uuid.uuid4().hex, 0
        self.counts: dict[Bucket, Counter[str]] = {}
        self.seen: dict[Bucket, set[str]] = {}
        self.keys: dict[str, tuple[str, int, GroupResult]] = {}
        self.logs: dict[int, list[CorrectionRecord]] = {}

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.run(self.store.close())
            self.loop.close()

    def run(self, work):
        return self.loop.run_until_complete(work)

    def expect(self, group: HitGroup) -> GroupResult:
        """The model's answer, and what it changes."""
        key, slot = group.key, group.slot
        if not group.atomic:
            parts = {
                event: self.expect(msgspec.structs.replace(group.only([event]), atomic=True)) for event in group.amounts
            }
            values = {event: part.values[event] for event, part in parts.items() if part.values}
            return GroupResult(values, {event: part.reason for event, part in parts.items() if part.reason})
        if key and key.id in self.keys and self.keys[key.id][1] > slot.minute - IDEMPOTENCY_TTL_SECONDS:
            request, _, answer = self.keys[key.id]
            return answer if request == key.request else reject("mismatch")
        totals = self.counts.setdefault(TOTAL, Counter())
        new = group.amounts.keys() - totals.keys()
        if new and len((totals.keys() | new) - {ALL_EVENTS}) > self.names:  # what was restored is past the caps
            return reject("full")
        for bucket in slot.buckets:
            self.add(bucket, group.amounts)
        for visit in group.visits:
            for bucket, visitor in visitor_buckets(slot, visit):
                self.mark(bucket, visitor, visit.by)
        values = {event: self.value(slot, event) for event in group.amounts}
        if key:
            self.keys[key.id] = (key.request, slot.minute, GroupResult(values, {}, slot.date))
        return GroupResult(values)

    def add(self, bucket: Bucket, counts: Mapping[str, int]) -> None:
        self.counts.setdefault(bucket, Counter()).update({**counts, ALL_EVENTS: sum(counts.values())})

    def mark(self, bucket: Bucket, visitor: str, by: int) -> None:
        self.seen.setdefault(bucket, set()).add(visitor)
        ranked = self.counts.setdefault(bucket, Counter())
        if by and (visitor in ranked or len(ranked) < self.ranked):
            ranked[visitor] += by

    def value(self, slot: TimeSlot, event: str) -> Value:
        hits, offset = (self.counts.get(bucket, Counter()) for bucket in slot.day_buckets)
        return Value(hits[event] + offset[event], self.counts.get(TOTAL, Counter())[event])

    def generation(self) -> int:
        return len(self.logs.get(CALENDAR.slot(self.now).day, ()))

    def commit(
        self, *requests: tuple[dict[str, int], IdempotencyKey | None], retries: int = 0, visits: Sequence[Visit] = ()
    ) -> None:
        slot = CALENDAR.slot(self.now)
        batch = [HitGroup(slot, counts, key, visits=visits) for counts, key in requests]
        self.apply(batch, [self.expect(group) for group in batch], retries)

    def apply(self, commit: Commit, expected: list[GroupResult], retries: int) -> None:
        for _ in range(1 + retries):  # a client that gets no response retries
            result = self.run(self.store.apply(self.source, self.offset, self.offset + 1, commit))
            assert result.groups == expected
            if commit:
                self.check_generation(result)
        self.offset += 1

    def apply_change(self, change: DayChange) -> None:
        for _ in range(2):
            result = self.run(self.store.apply_change(self.source, self.offset, self.offset + 1, change))
            assert result.groups == []
            self.check_generation(result)
        self.offset += 1

    def check_generation(self, result: ApplyResult) -> None:
        assert result.generations.get(CALENDAR.slot(self.now).day, 0) == self.generation()

    def correct(self, planned: Awaitable[tuple[DayChange, CorrectionRecord]], after: Value) -> None:
        work, logged = self.run(planned)
        slot = CALENDAR.slot(self.now)
        assert logged[4:] == (self.value(slot, logged.event), after)
        self.logs.setdefault(slot.day, []).append(logged)
        self.apply_change(work)

    @rule(event=events, count=st.none() | st.integers(0, 99), total=st.none() | st.integers(0, 99))
    def put(self, event: str, count: int | None, total: int | None) -> None:
        slot = CALENDAR.slot(self.now)
        before = self.value(slot, event)
        after = Value(before.count if count is None else count, before.total if total is None else total)
        planned = changes.correct(self.store, slot, self.now, event, count, total, self.names)
        totals = self.counts.get(TOTAL, Counter()).keys()
        if event not in totals and len(totals - {ALL_EVENTS}) >= self.names:
            with pytest.raises(changes.ChangeRejected, match="full"):
                self.run(planned)
            return
        self.correct(planned, after)
        self.add(slot.day_buckets[1], {event: after.count - before.count})
        self.add(TOTAL, {event: after.total - before.total})

    @rule(event=events)
    def delete(self, event: str) -> None:
        self.correct(changes.delete(self.store, CALENDAR.slot(self.now), self.now, event), Value(0, 0))
        for bucket in list(self.counts):
            if bucket.dimension in {f"user:{event}", f"session:{event}"}:
                del self.counts[bucket], self.seen[bucket]
            elif event in self.counts[bucket] and ":" not in bucket.dimension.removeprefix("part:"):
                self.counts[bucket][ALL_EVENTS] -= self.counts[bucket].pop(event)

    @rule()
    def reset(self) -> None:
        slot = CALENDAR.slot(self.now)
        before = self.value(slot, ALL_EVENTS)
        self.correct(changes.reset(self.store, slot, self.now), Value(0, before.total))
        hits, offset = (self.counts.setdefault(bucket, Counter()) for bucket in slot.day_buckets)
        names = (hits.keys() | offset.keys()) - {ALL_EVENTS}
        self.add(Bucket("day", slot.day, f"part:{self.now}"), {name: hits[name] + offset[name] for name in names})
        self.counts[slot.day_buckets[1]] = Counter({name: -count for name, count in hits.items()})

    @rule(user=users)
    def erase(self, user: str) -> None:
        work, _ = self.run(changes.erase(self.store, CALENDAR.slot(self.now), user))
        self.apply_change(work)
        for bucket in self.counts:
            if bucket.dimension.startswith("user:"):
                self.counts[bucket].pop(user, None)
                if self.exact:
                    self.seen[bucket].discard(user)

    @rule(counts=st.dictionaries(events, st.integers(1, 99), max_size=3), step=st.sampled_from([0, 2, 3]))
    def restore(self, counts: dict[str, int], step: int) -> None:
        slot = CALENDAR.slot(self.now)
        for bucket in dict.fromkeys((TOTAL, slot.buckets[step])):  # what has no total is no event
            self.apply_change(DayChange(slot, [BucketWrite("add", bucket, counts)]))
            self.add(bucket, counts)

    @rule(event=events, ids=st.dictionaries(users, st.integers(0, 3), max_size=3))
    def restore_visits(self, event: str, ids: dict[str, int]) -> None:
        slot = CALENDAR.slot(self.now)
        bucket = Bucket("day", slot.day, f"user:{event}")
        self.apply_change(DayChange(slot, [BucketWrite("mark", bucket, ids)]))
        for visitor, by in ids.items():
            self.mark(bucket, visitor, by)

    @rule(event=events, by=st.integers(1, 5), user=st.none() | users, session=st.none() | users)
    def visit(self, event: str, by: int, user: str | None, session: str | None) -> None:
        self.commit(({event: by}, None), retries=1, visits=[Visit(event, by, user, session)])

    @rule(event=events, by=amounts, retries=st.integers(0, 2))
    def hit(self, event: str, by: int, retries: int) -> None:
        self.commit(({event: by}, None), retries=retries)

    @rule(many=st.lists(st.dictionaries(events, amounts, max_size=3), max_size=4), retries=st.integers(0, 1))
    def batch(self, many: list[dict[str, int]], retries: int) -> None:
        self.commit(*((counts, None) for counts in many), retries=retries)

    @rule(
        counts=st.dictionaries(events, amounts, min_size=1),
        users=st.dictionaries(events, users, max_size=2),
        many=st.lists(st.dictionaries(events, amounts, max_size=3), max_size=2),
        retries=st.integers(0, 1),
    )
    def bare(self, counts: dict[str, int], users: dict[str, str], many: list[dict[str, int]], retries: int) -> None:
        slot = CALENDAR.slot(self.now)
        visits = [Visit(event, 1, users[event], None) for event in counts if event in users]
        batch = [HitGroup(slot, counts, visits=visits, atomic=False), *(HitGroup(slot, counts) for counts in many)]
        self.apply(batch, [self.expect(group) for group in batch], retries)

    @rule(event=events, by=st.integers(1, 2), key=st.sampled_from("xyz"), twice=st.booleans())
    def keyed(self, event: str, by: int, key: str, twice: bool) -> None:
        request = ({event: by}, IdempotencyKey(key, f"{event}{by}", "owner"))
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
            slot = CALENDAR.slot(self.now)
            with pytest.raises(OffsetMismatch):
                self.run(
                    self.store.apply(self.source, self.offset + off, self.offset + off + 1, [HitGroup(slot, {"a": 1})])
                )

    @rule()
    def prune(self) -> None:
        slot = CALENDAR.slot(self.now)
        before = {"minute": slot.minute - 86_400, "hour": slot.minute - 86_400, "day": slot.day - DAY_KEPT}
        self.run(self.store.prune(before, slot))
        for bucket in [bucket for bucket in self.counts if bucket.step != "total"]:
            visits_end = (
                slot.minute - VISITOR_MINUTES_TTL_SECONDS if bucket.dimension and bucket.step == "minute" else 0
            )
            if bucket.start < max(before[bucket.step], visits_end):
                del self.counts[bucket]
                self.seen.pop(bucket, None)
        self.logs = {day: log for day, log in self.logs.items() if day >= before["day"]}

    @invariant()
    def the_store_has_what_the_model_has(self) -> None:
        wanted = {
            b: {e: n for e, n in counts.items() if n} for b, counts in self.counts.items() if any(counts.values())
        }
        buckets = list(wanted)
        if buckets:
            found = self.run(self.store.read(buckets))
            assert [{e: n for e, n in counts.items() if n} for counts in found] == list(wanted.values())
        assert set(buckets) <= set(self.run(self.store.list_buckets()))

    @invariant()
    def it_knows_how_many_came_and_what_was_corrected(self) -> None:
        for bucket, ids in self.seen.items():
            assert self.run(self.store.count_distinct([bucket])).number == len(ids)
        for day, log in self.logs.items():
            assert self.run(changes.history(self.store, day)) == log


class OnMemory(Machine):
    durable = False

    def make(self) -> CounterStore:
        return MemoryStore(StoreLimits(NAMES))


@pytest.fixture(autouse=True)
def few_are_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "RANKED_VISITORS_MAX", RANKED)


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp())
    yield path
    shutil.rmtree(path)


LIMITS = settings(max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))


def test_memory_is_the_model() -> None:
    run_state_machine_as_test(OnMemory, settings=LIMITS)


@pytest.mark.catches(
    "a key that is not remembered", "app/stores/sqlite_writer.py", "if group.key and result.is_counted:", "if False:"
)
def test_sqlite_is_the_model(directory: Path) -> None:
    class OnSqlite(Machine):
        def make(self) -> CounterStore:
            if not hasattr(self, "path"):
                self.path = directory / uuid.uuid4().hex
            return SqliteStore(self.path, StoreLimits(NAMES))

    run_state_machine_as_test(OnSqlite, settings=LIMITS)


@pytest.mark.catches(
    "a key that is not remembered", "app/stores/lua/count.lua", "    if key then remember", "    if false then remember"
)
def test_redis_is_the_model(redis_server: RedisServer) -> None:
    class OnRedis(Machine):
        exact = False

        def make(self) -> CounterStore:
            if not hasattr(self, "begun"):
                self.begun = True
                redis_server.flush()
            return RedisStore(server(redis_server.url), StoreLimits(NAMES))

    run_state_machine_as_test(OnRedis, settings=LIMITS)


def test_a_cluster_is_the_model(redis_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    class OnCluster(Machine):
        exact = False
        names, ranked = 100, 100  # for each tag has a share of both caps

        def make(self) -> CounterStore:
            if not hasattr(self, "begun"):
                self.begun = True
                redis_cluster.flush()
            way = server(redis_cluster.url.replace("tags=16", "tags=3"))
            return ShardedRedisStore([RedisStore(way, StoreLimits(self.names), tag) for tag in range(way.tags)])

    monkeypatch.setattr(rules, "RANKED_VISITORS_MAX", OnCluster.ranked)
    run_state_machine_as_test(OnCluster, settings=settings(LIMITS, max_examples=15, phases=[Phase.generate]))
