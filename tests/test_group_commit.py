"""Group commit: exact values, bounds, failures and the drain, on a store whose commits a test can hold."""

import asyncio
from collections.abc import AsyncIterator
from zoneinfo import ZoneInfo

import pytest

from app import group_commit as recorder_module
from app.domain.buckets import ALL_EVENTS, Bucket
from app.domain.calendar import Calendar, Clock, TimeSlot
from app.domain.counting import Commit
from app.group_commit import GroupCommitter, Overloaded
from app.metrics import Metrics
from app.stores.base import OutcomeUnknown, StoreLimits, StoreUnavailable
from app.stores.memory import MemoryStore
from app.stores.results import ApplyResult


class HeldStore(MemoryStore):
    """A memory store that commits when it is let go, and fails when it is told to."""

    def __init__(self) -> None:
        super().__init__(StoreLimits(3))
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self.sources: list[tuple[str, int]] = []
        self.lost = 0

    async def record_data_loss(self, batches: int) -> None:
        self.lost += batches

    async def apply(self, source: str, at: int, next: int, batch: Commit) -> ApplyResult:  # noqa: A002 # the contract's word
        self.sources.append((source, at))
        await self.gate.wait()
        if self.failure:
            failure, self.failure = self.failure, None
            if isinstance(failure, OutcomeUnknown):
                await super().apply(source, at, next, batch)
            raise failure
        return await super().apply(source, at, next, batch)


@pytest.fixture
def store() -> HeldStore:
    return HeldStore()


@pytest.fixture
def published() -> list[dict[str, int]]:
    return []


@pytest.fixture
async def recorder(store: HeldStore, published: list[dict[str, int]]) -> AsyncIterator[GroupCommitter]:
    def publish(slot: TimeSlot, changes: dict[str, int], generation: int) -> None:
        published.append(changes)

    recorder = GroupCommitter(store, Clock(Calendar(ZoneInfo("UTC")), lambda: 1_795_435_200.0), publish, Metrics())
    recorder.start()
    yield recorder
    store.gate.set()
    await recorder.close()


def count_of(recorded: recorder_module.Outcome, event: str = "a") -> int:
    assert not isinstance(recorded.answer, Rejected)
    return recorded.answer[event].count


async def test_each_waiter_gets_the_value_right_after_its_own_hit(recorder: GroupCommitter, store: HeldStore) -> None:
    hits = [{"a": 1}, {"a": 5}, {"a": 2, "b": 1}, {"a": 1}, {"b": 1}]
    recorded = await asyncio.gather(*(recorder.submit(counts) for counts in hits))
    assert [count_of(r) for r in recorded[:2]] == [1, 6]
    assert sorted(count_of(r) for r in recorded[:4]) == [1, 6, 7, 9]
    assert [count_of(recorded[2], "b"), count_of(recorded[4], "b")] == [2, 1]
    (counts,) = await store.read([Bucket("day", 1_795_392_000)])
    assert counts == {"a": 9, "b": 2, ALL_EVENTS: 11}


async def test_hits_that_arrive_during_a_commit_share_the_next(
    recorder: GroupCommitter, store: HeldStore, published: list[dict[str, int]]
) -> None:
    store.gate.clear()
    first = asyncio.create_task(recorder.submit({"a": 1}))
    await asyncio.sleep(0)
    while not store.sources:
        await asyncio.sleep(0)
    others = [asyncio.create_task(recorder.submit({"a": 1})) for _ in range(100)]
    await asyncio.sleep(0)
    store.gate.set()
    assert [count_of(await task) for task in (first, *others)] == list(range(1, 102))
    assert len(store.sources) == 2
    assert published == [{"a": 1}, {"a": 101}]


async def test_one_refused_posting_does_not_take_others_with_it(recorder: GroupCommitter) -> None:
    await recorder.submit({"a": 1, "b": 1, "c": 1})
    recorded = await asyncio.gather(*(recorder.submit(c) for c in ({"d": 1}, {"a": 1}, {"b": 1, "d": 1})))
    assert isinstance(recorded[0].answer, Rejected)
    assert count_of(recorded[1]) == 2
    assert isinstance(recorded[2].answer, Rejected)


async def test_waiters_are_bounded(recorder: GroupCommitter, store: HeldStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "WAITING_MAX", 3)
    store.gate.clear()
    tasks = [asyncio.create_task(recorder.submit({"a": 1})) for _ in range(10)]
    await asyncio.sleep(0)
    store.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(result, Overloaded) for result in results) == 7


@pytest.mark.catches(
    "an offset used for two batches",
    "app/group_commit.py",
    "            self._source, self._offset = uuid.uuid4().hex, 0  # this offset is not used again\n",
    "",
)
@pytest.mark.parametrize("failure", [StoreUnavailable("full"), OutcomeUnknown("cut"), RuntimeError("bug")])
async def test_a_failed_commit_is_said_and_its_offset_is_not_used_again(
    recorder: GroupCommitter, store: HeldStore, failure: Exception
) -> None:
    store.failure = failure
    with pytest.raises(OutcomeUnknown if isinstance(failure, RuntimeError) else type(failure)):
        await recorder.submit({"a": 1})
    landed = isinstance(failure, OutcomeUnknown)
    assert count_of(await recorder.submit({"a": 10})) == 10 + landed
    assert len({source for source, _ in store.sources}) == 2


@pytest.mark.catches("a loss untold", "app/stores/base.py", "if moved.offset < at == stands:", "if False:")
async def test_a_store_that_went_back_takes_the_next_batch_and_the_loss_is_noted(
    recorder: GroupCommitter, store: HeldStore
) -> None:
    await recorder.submit({"a": 1})
    store._sources.clear()  # it forgot where this process stood
    await recorder.submit({"a": 1})
    assert count_of(await recorder.submit({"a": 1})) == 3
    assert [at for _, at in store.sources] == [0, 1, 0, 2]
    assert store.lost == 1


async def test_a_client_that_goes_away_takes_nobody_with_it(recorder: GroupCommitter, store: HeldStore) -> None:
    store.gate.clear()
    tasks = [asyncio.create_task(recorder.submit({"a": 1})) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    store.gate.set()
    assert [count_of(await tasks[0]), count_of(await tasks[2])] == [1, 3]


@pytest.mark.catches("no drain", "app/group_commit.py", "        await self._task\n", "        self._task.cancel()\n")
async def test_closing_commits_what_waits(recorder: GroupCommitter, store: HeldStore) -> None:
    store.gate.clear()
    tasks = [asyncio.create_task(recorder.submit({"a": 1})) for _ in range(5)]
    await asyncio.sleep(0)
    store.gate.set()
    await recorder.close()
    await asyncio.sleep(0)  # the tasks' own turn, now that their hits are answered
    assert all(task.done() for task in tasks)
    assert [count_of(await task) for task in tasks] == [1, 2, 3, 4, 5]


async def test_a_commit_has_a_bound_in_events(
    recorder: GroupCommitter, store: HeldStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "BATCH_EVENTS_MAX", 4)
    recorded = await asyncio.gather(*(recorder.submit({"a": 1, "b": 1, "c": 1}) for _ in range(3)))
    assert [count_of(r) for r in recorded] == [1, 2, 3]
    assert len(store.sources) == 3
