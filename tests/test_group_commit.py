"""Group commit: exact values, bounds, failures and the drain, on a store whose commits a test can block."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from app import group_commit, pending_commit
from app.domain.buckets import ALL_EVENTS, TOTAL, Bucket
from app.domain.calendar import Calendar, Clock, TimeSlot
from app.domain.counting import BucketWrite, Commit, DayChange, Visit, weight
from app.group_commit import GroupCommitter, Overloaded
from app.metrics import Metrics
from app.stores.base import OutcomeUnknown, StoreLimits, StoreStatus, StoreUnavailable
from app.stores.memory import MemoryStore
from app.stores.results import ApplyResult, GroupResult, Value


class BlockingStore(MemoryStore):
    """A memory store that commits while its gate is set, and raises `failure` once."""

    def __init__(self) -> None:
        super().__init__(StoreLimits(3))
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: BaseException | None = None
        self.sources: list[tuple[str, int]] = []
        self.lost = 0

    async def record_data_loss(self, commits: int) -> None:
        self.lost += commits

    async def apply(self, source: str, expected_offset: int, new_offset: int, commit: Commit) -> ApplyResult:
        self.sources.append((source, expected_offset))
        await self.gate.wait()
        if self.failure:
            failure, self.failure = self.failure, None
            if isinstance(failure, OutcomeUnknown):
                await super().apply(source, expected_offset, new_offset, commit)
            raise failure
        return await super().apply(source, expected_offset, new_offset, commit)


@pytest.fixture
def store() -> BlockingStore:
    return BlockingStore()


@pytest.fixture
def published() -> list[dict[str, int]]:
    return []


@pytest.fixture
async def committer(store: BlockingStore, published: list[dict[str, int]]) -> AsyncIterator[GroupCommitter]:
    def publish(slot: TimeSlot, counts: dict[str, int], _generation: int) -> None:
        published.append(counts)

    committer = GroupCommitter(store, Clock(Calendar(ZoneInfo("UTC")), lambda: 1_795_435_200.0), publish, Metrics())
    committer.start()
    yield committer
    store.gate.set()
    await committer.close()


def count_of(outcome: group_commit.Outcome, event: str = "a") -> int:
    assert not outcome.result.rejected
    return outcome.result.values[event].count


async def test_each_waiter_gets_the_value_right_after_its_own_hit(
    committer: GroupCommitter, store: BlockingStore
) -> None:
    hits = [{"a": 1}, {"a": 5}, {"a": 2, "b": 1}, {"a": 1}, {"b": 1}]
    outcomes = await asyncio.gather(*(committer.submit(counts) for counts in hits))
    assert [count_of(r) for r in outcomes[:2]] == [1, 6]
    assert sorted(count_of(r) for r in outcomes[:4]) == [1, 6, 7, 9]
    assert [count_of(outcomes[2], "b"), count_of(outcomes[4], "b")] == [2, 1]
    (counts,) = await store.read([Bucket("day", 1_795_392_000)])
    assert counts == {"a": 9, "b": 2, ALL_EVENTS: 11}


async def test_hits_that_arrive_during_a_commit_share_the_next(
    committer: GroupCommitter, store: BlockingStore, published: list[dict[str, int]]
) -> None:
    store.gate.clear()
    first = asyncio.create_task(committer.submit({"a": 1}))
    await asyncio.sleep(0)
    while not store.sources:
        await asyncio.sleep(0)
    others = [asyncio.create_task(committer.submit({"a": 1})) for _ in range(100)]
    await asyncio.sleep(0)
    store.gate.set()
    assert [count_of(await task) for task in (first, *others)] == list(range(1, 102))
    assert len(store.sources) == 2
    assert published == [{"a": 1}, {"a": 101}]


async def test_a_rejected_group_does_not_affect_the_others(committer: GroupCommitter) -> None:
    await committer.submit({"a": 1, "b": 1, "c": 1})
    outcomes = await asyncio.gather(*(committer.submit(c) for c in ({"d": 1}, {"a": 1}, {"b": 1, "d": 1})))
    assert outcomes[0].result.reason == "full"
    assert count_of(outcomes[1]) == 2
    assert outcomes[2].result.reason == "full"


async def test_waiting_hits_are_limited(
    committer: GroupCommitter, store: BlockingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "WAITING_WEIGHT_MAX", 3)
    store.gate.clear()
    tasks = [asyncio.create_task(committer.submit({"a": 1})) for _ in range(10)]
    await asyncio.sleep(0)
    store.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(result, Overloaded) for result in results) == 7


@pytest.mark.fails_on_mutant(
    "an offset is used for two commits",
    "app/group_commit.py",
    "            self._use_new_source()  # an offset must never be used for two commits\n",
    "",
)
@pytest.mark.parametrize("failure", [StoreUnavailable("full"), OutcomeUnknown("cut"), RuntimeError("bug")])
async def test_a_failed_commit_is_reported_and_its_offset_is_not_used_again(
    committer: GroupCommitter, store: BlockingStore, failure: Exception
) -> None:
    store.failure = failure
    with pytest.raises(OutcomeUnknown if isinstance(failure, RuntimeError) else type(failure)):
        await committer.submit({"a": 1})
    was_counted = isinstance(failure, OutcomeUnknown)
    assert count_of(await committer.submit({"a": 10})) == 10 + was_counted
    assert len({source for source, _ in store.sources}) == 2


@pytest.mark.fails_on_mutant(
    "a loss is not recorded", "app/stores/rules.py", "if mismatch.offset < expected_offset == offset:", "if False:"
)
async def test_a_store_that_lost_a_commit_accepts_the_next_one_and_records_the_loss(
    committer: GroupCommitter, store: BlockingStore
) -> None:
    await committer.submit({"a": 1})
    store._sources.clear()  # the store has lost the offset of this process
    await committer.submit({"a": 1})
    assert count_of(await committer.submit({"a": 1})) == 3
    assert [offset for _, offset in store.sources] == [0, 1, 0, 2]
    assert store.lost == 1


async def test_a_client_that_disconnects_does_not_affect_the_others(
    committer: GroupCommitter, store: BlockingStore
) -> None:
    store.gate.clear()
    tasks = [asyncio.create_task(committer.submit({"a": 1})) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    store.gate.set()
    assert [count_of(await tasks[0]), count_of(await tasks[2])] == [1, 3]


@pytest.mark.fails_on_mutant(
    "waiting hits are dropped", "app/group_commit.py", "        await self._task\n", "        self._task.cancel()\n"
)
async def test_closing_commits_all_waiting_hits(committer: GroupCommitter, store: BlockingStore) -> None:
    store.gate.clear()
    tasks = [asyncio.create_task(committer.submit({"a": 1})) for _ in range(5)]
    await asyncio.sleep(0)
    store.gate.set()
    await committer.close()
    await asyncio.sleep(0)  # let the tasks resume, because their outcomes are set
    assert all(task.done() for task in tasks)
    assert [count_of(await task) for task in tasks] == [1, 2, 3, 4, 5]


async def test_a_commit_has_a_limited_number_of_events(
    committer: GroupCommitter, store: BlockingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending_commit, "COMMIT_WEIGHT_MAX", 4)
    outcomes = await asyncio.gather(*(committer.submit({"a": 1, "b": 1, "c": 1}) for _ in range(3)))
    assert [count_of(r) for r in outcomes] == [1, 2, 3]
    assert len(store.sources) == 3


@pytest.mark.fails_on_mutant(
    "an idle source is used again",
    "app/group_commit.py",
    "if now > self._source_used_at + SOURCE_IDLE_SECONDS:",
    "if False:",
)
async def test_a_source_is_replaced_after_a_day_without_a_commit(store: BlockingStore) -> None:
    seconds = [1_795_435_200.0]
    clock = Clock(Calendar(ZoneInfo("UTC")), lambda: seconds[0])
    committer = GroupCommitter(store, clock, lambda *_: None, Metrics())
    committer.start()
    for idle in (86_000, 86_000, 31 * 86_400, 0):
        seconds[0] += idle
        await committer.submit({"a": 1})
    await committer.close()
    sources, offsets = zip(*store.sources, strict=True)
    assert offsets == (0, 1, 0, 1)
    assert sources[0] == sources[1] != sources[2] == sources[3]


@pytest.mark.fails_on_mutant(
    "a cancelled change keeps its offset",
    "app/group_commit.py",
    "except BaseException as error:",
    "except Exception as error:",
)
async def test_a_cancelled_change_does_not_spoil_the_next_commit(
    committer: GroupCommitter, store: BlockingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store applies the change, but its request is cancelled before the result arrives."""
    applied = asyncio.Event()

    async def apply_change(self: MemoryStore, source: str, expected: int, new: int, change: DayChange) -> ApplyResult:
        await MemoryStore.apply_change(self, source, expected, new, change)
        applied.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def plan(slot: TimeSlot) -> tuple[DayChange, None]:
        return DayChange(slot, []), None

    monkeypatch.setattr(BlockingStore, "apply_change", apply_change)
    change = asyncio.create_task(committer.apply_change(plan))
    await applied.wait()
    change.cancel()
    await asyncio.wait([change])
    assert count_of(await committer.submit({"a": 1})) == 1
    assert count_of(await committer.submit({"a": 1})) == 2


PLAN = "                change, result = await plan(slot)\n"


@pytest.mark.fails_on_mutant(
    "hits wait for a plan",
    "app/group_commit.py",
    PLAN,
    "                async with self._commit_lock:\n                    change, result = await plan(slot)\n",
)
async def test_hits_are_committed_while_a_change_is_planned(committer: GroupCommitter) -> None:
    planning, finish = asyncio.Event(), asyncio.Event()

    async def plan(slot: TimeSlot) -> tuple[DayChange, str]:
        planning.set()
        await finish.wait()
        return DayChange(slot, [BucketWrite("add", TOTAL, {"a": 10})]), "result"

    change = asyncio.create_task(committer.apply_change(plan))
    await planning.wait()
    try:
        outcome = await asyncio.wait_for(committer.submit({"a": 1}), 20)
    finally:
        finish.set()
    assert outcome.result.values == {"a": Value(1, 1)}
    assert await change == "result"
    assert (await committer.submit({"a": 1})).result.values == {"a": Value(2, 12)}


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(
            "midnight",
            marks=pytest.mark.fails_on_mutant(
                "a change of yesterday",
                "app/group_commit.py",
                "if (slot.day, status.outages) != (self._clock.slot().day,",
                "if (0, status.outages) != (0,",
            ),
        ),
        pytest.param(
            "outage",
            marks=pytest.mark.fails_on_mutant(
                "a change that was planned during an outage",
                "app/group_commit.py",
                "self._store.status().outages):",
                "status.outages):",
            ),
        ),
    ],
)
async def test_a_change_is_planned_again_if_its_counts_are_no_longer_those_of_the_store_or_of_today(
    store: BlockingStore, monkeypatch: pytest.MonkeyPatch, event: str
) -> None:
    now, outages, planned = 1_795_435_200.0, 0, list[TimeSlot]()
    monkeypatch.setattr(store, "status", lambda: StoreStatus("memory", outages=outages))
    committer = GroupCommitter(store, Clock(Calendar(ZoneInfo("UTC")), lambda: now), lambda *_: None, Metrics())

    async def plan(slot: TimeSlot) -> tuple[DayChange, int]:
        nonlocal now, outages
        planned.append(slot)
        if len(planned) == 1:
            now += 86_400 * (event == "midnight")
            outages += event == "outage"
        return DayChange(slot, []), len(planned)

    assert await committer.apply_change(plan) == 2
    assert planned[1].day - planned[0].day == 86_400 * (event == "midnight")


@pytest.mark.fails_on_mutant(
    "a change is planned without limit", "app/group_commit.py", "for _ in range(PLANS_MAX):", "for _ in iter(int, 1):"
)
async def test_a_change_that_always_conflicts_fails_and_hits_go_on(
    committer: GroupCommitter, store: BlockingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = 0

    async def plan(slot: TimeSlot) -> tuple[DayChange, None]:
        nonlocal plans
        plans += 1
        await asyncio.sleep(0)
        assert plans <= 1000
        return DayChange(slot, [], expected_corrections=1), None

    with pytest.raises(StoreUnavailable, match="the day was changed at the same time"):
        await committer.apply_change(plan)
    assert plans == group_commit.PLANS_MAX
    assert count_of(await committer.submit({"a": 1})) == 1


@pytest.mark.fails_on_mutant(
    "a bug after a commit stops the committer",
    "app/group_commit.py",
    "await self._commit_safely(pending)",
    "await self._commit(pending)",
)
async def test_a_bug_around_a_commit_fails_its_waiters_and_nothing_else(
    committer: GroupCommitter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as broken:
        broken.delattr(pending_commit.PendingCommit, "resolve")
        waiting = [committer.submit(amounts) for amounts in ({"a": 1}, {"a": 1, "b": 1})]
        outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 20)
    assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown, OutcomeUnknown]
    assert "unexpected error around a commit" in caplog.text
    assert committer.is_running
    assert count_of(await committer.submit({"a": 1})) == 3


@pytest.mark.fails_on_mutant(
    "a stray cancellation stops the committer",
    "app/group_commit.py",
    "        except (Exception, asyncio.CancelledError):",
    "        except Exception:",
)
async def test_a_cancellation_that_comes_out_of_the_store_does_not_stop_the_committer(
    committer: GroupCommitter, store: BlockingStore
) -> None:
    """A library may raise CancelledError although nobody has cancelled the committer."""
    store.failure = asyncio.CancelledError()
    waiting = committer.submit({"a": 1, "b": 1})
    (outcome,) = await asyncio.wait_for(asyncio.gather(waiting, return_exceptions=True), 20)
    assert isinstance(outcome, OutcomeUnknown)
    assert committer.is_running
    assert count_of(await asyncio.wait_for(committer.submit({"a": 1}), 20)) == 1
    (first, _), (second, offset) = store.sources
    assert second != first
    assert offset == 0


@pytest.mark.fails_on_mutant(
    "the committer survives its own cancellation, so that the event loop cannot end",
    "app/group_commit.py",
    "            if task and task.cancelling():",
    "            if False:",
)
async def test_a_cancelled_committer_gives_its_waiters_an_outcome_and_ends(store: BlockingStore) -> None:
    """The event loop cancels the task when it ends, and then waits for it."""
    committer = GroupCommitter(
        store, Clock(Calendar(ZoneInfo("UTC")), lambda: 1_795_435_200.0), lambda *_: None, Metrics()
    )
    others = asyncio.all_tasks()
    committer.start()
    (task,) = asyncio.all_tasks() - others
    store.gate.clear()
    waiting = asyncio.ensure_future(committer.submit({"a": 1, "b": 1}))
    while not store.sources:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(OutcomeUnknown):
        await asyncio.wait_for(waiting, 20)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not committer.is_running


@pytest.mark.fails_on_mutant(
    "an error of the live clients makes a change fail",
    "app/group_commit.py",
    "self._publish_safely(slot, {}, applied)",
    "self._publish(slot, {}, 0)",
)
async def test_an_error_while_publishing_affects_neither_hits_nor_changes(
    store: BlockingStore, caplog: pytest.LogCaptureFixture
) -> None:
    def publish(*_: object) -> None:
        raise ValueError("broken")

    async def plan(slot: TimeSlot) -> tuple[DayChange, str]:
        return DayChange(slot, []), "planned"

    committer = GroupCommitter(store, Clock(Calendar(ZoneInfo("UTC")), lambda: 1_795_435_200.0), publish, Metrics())
    committer.start()
    assert count_of(await committer.submit({"a": 1})) == 1
    assert await committer.apply_change(plan) == "planned"
    assert count_of(await committer.submit({"a": 1})) == 2
    assert caplog.text.count("counts could not be published") == 3
    await committer.close()


class CountingWaiter:
    """A waiter that records its calls, and raises in each of them if it is broken."""

    def __init__(self, *, broken: bool) -> None:
        self.calls: list[str] = []
        self._broken = broken

    def _record(self, call: str) -> None:
        self.calls.append(call)
        if self._broken:
            raise RuntimeError(call)

    def counted(self, *_: object) -> None:
        self._record("counted")

    def rejected(self, *_: object) -> None:
        self._record("rejected")

    def failed(self, *_: object) -> None:
        self._record("failed")


_ONE_WAITER = pytest.mark.fails_on_mutant(
    "an error of one waiter reaches the others",
    "app/pending_commit.py",
    "    except Exception:  # the other waiters need their results",
    "    except LookupError:",
)
_ONE_COUNTED_WAITER = pytest.mark.fails_on_mutant(
    "an error of one waiter reaches the others",
    "app/pending_commit.py",
    "                except Exception:",
    "                except LookupError:",
)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param("counted", marks=_ONE_COUNTED_WAITER),
        pytest.param("rejected", marks=_ONE_WAITER),
        pytest.param("failed", marks=_ONE_WAITER),
    ],
)
async def test_a_waiter_that_raises_affects_no_other(
    call: str, committer: GroupCommitter, store: BlockingStore
) -> None:
    if call == "rejected":
        await committer.submit({"x": 1, "y": 1, "z": 1})  # all three names that the store allows
    store.failure = StoreUnavailable("full") if call == "failed" else None
    waiters = [CountingWaiter(broken=broken) for broken in (False, True, False)]
    for waiter, event in zip(waiters, "aab", strict=True):
        committer.add_hit(event, 1, (), waiter)
    waiting = asyncio.gather(committer.submit({"a": 1, "b": 1}), return_exceptions=True)
    await asyncio.wait_for(waiting, 20)
    assert [waiter.calls for waiter in waiters] == [[call]] * 3
    assert committer.is_running


@pytest.mark.fails_on_mutant(
    "a waiter that has its result is failed as well",
    "app/pending_commit.py",
    "self._hits.pop(event)",
    "self._hits[event]",
)
async def test_a_waiter_that_has_its_result_does_not_get_an_error() -> None:
    """The store returns a result of the hits, and none of the request."""
    pending, waiter = pending_commit.PendingCommit(), CountingWaiter(broken=False)
    request = pending_commit.Request({"a": 1}, None, ())
    pending.add_hit("a", 1, (), waiter)
    pending.add_request(request)
    with pytest.raises(ValueError, match="shorter"):
        pending.resolve(ApplyResult([GroupResult({"a": Value(1, 1)})], "memory"), "2026-11-24")
    pending.fail(OutcomeUnknown("a bug"))
    assert waiter.calls == ["counted"]
    with pytest.raises(OutcomeUnknown):
        await request.outcome


@pytest.mark.fails_on_mutant(
    "a batch with many visitors is one commit",
    "app/group_commit.py",
    "        if weight(amounts, visits) <= COMMIT_WEIGHT_MAX:\n",
    "        if True:\n",
)
async def test_the_visits_of_a_large_batch_are_written_in_several_commits(
    committer: GroupCommitter, store: BlockingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each commit is bounded, a hit of another client goes in between, and no visit is lost."""
    commits: list[Commit] = []
    apply = BlockingStore.apply

    async def record(self: BlockingStore, source: str, expected: int, new: int, commit: Commit) -> ApplyResult:
        commits.append(commit)
        if len(commits) == 1:
            other.append(asyncio.create_task(committer.submit({"b": 1})))
        return await apply(self, source, expected, new, commit)

    other: list[asyncio.Task[pending_commit.Outcome]] = []
    monkeypatch.setattr(BlockingStore, "apply", record)
    visits = [Visit("a", 1, f"u{i}", f"s{i}") for i in range(2000)]
    assert count_of(await committer.submit({"a": 2000}, visits=visits)) == 2000
    (waiting,) = other
    assert waiting.done()
    weights = [sum(weight(group.amounts, group.visits) for group in commit) for commit in commits]
    assert len(weights) > 6
    assert max(weights) <= pending_commit.COMMIT_WEIGHT_MAX
    assert [visit for commit in commits for group in commit for visit in group.visits] == visits


@pytest.mark.fails_on_mutant(
    "visits belong to the day on which they are written",
    "app/group_commit.py",
    "visits[i : i + VISITS_PER_COMMIT], hits.slot)",
    "visits[i : i + VISITS_PER_COMMIT])",
)
@pytest.mark.parametrize("amounts", [{"a": 2000}, {"a": 1999, "b": 1}])
async def test_the_visits_of_a_large_batch_belong_to_the_day_of_its_hits(
    store: BlockingStore, monkeypatch: pytest.MonkeyPatch, amounts: dict[str, int]
) -> None:
    """Midnight is between the commit with the counts and those with the visits."""
    apply = BlockingStore.apply
    seconds = [1_795_435_200.0]
    days = [Bucket("day", 1_795_392_000, "user:"), Bucket("day", 1_795_392_000 + 86_400, "user:")]

    async def pass_midnight(self: BlockingStore, *arguments: Any) -> ApplyResult:
        applied = await apply(self, *arguments)
        seconds[0] = 1_795_392_000 + 86_400.0
        return applied

    monkeypatch.setattr(BlockingStore, "apply", pass_midnight)
    committer = GroupCommitter(store, Clock(Calendar(ZoneInfo("UTC")), lambda: seconds[0]), lambda *_: None, Metrics())
    committer.start()
    await committer.submit(amounts, visits=[Visit("a", 1, f"u{i}", None) for i in range(2000)])
    await committer.close()
    assert await store.sizes(days) == [2000, 0]


@pytest.mark.fails_on_mutant(
    "commits of visits count as accepted requests",
    "app/pending_commit.py",
    "accepted += result.is_counted and bool(request.amounts)",
    "accepted += result.is_counted",
)
@pytest.mark.fails_on_mutant(
    "commits of visits count as requests of a commit",
    "app/pending_commit.py",
    "self.waiters += bool(request.amounts)",
    "self.waiters += 1",
)
async def test_the_metrics_count_a_large_batch_as_one_request(store: BlockingStore) -> None:
    metrics, clock = Metrics(), Clock(Calendar(ZoneInfo("UTC")), lambda: 1_795_435_200.0)
    committer = GroupCommitter(store, clock, lambda *_: None, metrics)
    committer.start()
    await committer.submit({"a": 2000}, visits=[Visit("a", 1, f"u{i}", None) for i in range(2000)])
    await committer.close()
    assert len(store.sources) > 3
    assert metrics.registry.get_sample_value("tally_posts_total", {"outcome": "accepted"}) == 1
    assert metrics.registry.get_sample_value("tally_batch_posts_sum") == 1


async def test_a_failure_between_the_commits_of_a_batch_is_unknown(
    committer: GroupCommitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = BlockingStore.apply

    async def fail_at_second(self: BlockingStore, *arguments: Any) -> ApplyResult:
        if self.sources:
            raise StoreUnavailable("full")
        return await apply(self, *arguments)

    monkeypatch.setattr(group_commit, "COMMIT_WEIGHT_MAX", 10)
    monkeypatch.setattr(BlockingStore, "apply", fail_at_second)
    with pytest.raises(OutcomeUnknown, match="users and sessions of these hits are missing: full"):
        await committer.submit({"a": 1}, visits=[Visit("a", 1, "u", None)])
