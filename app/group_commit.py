"""Group commit: every hit that arrives while a batch is being written goes into the next one.

No timer: an idle service commits at once, a busy one gathers by itself.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import msgspec

from app.domain.calendar import Clock, TimeSlot
from app.domain.counting import Commit, DayChange, HitGroup, IdempotencyKey, Visit
from app.metrics import Metrics
from app.stores.base import CounterStore, OutcomeUnknown, StoreError, StoreUnavailable, WriteConflict
from app.stores.results import Ack, ApplyResult, GroupResult, Value, reject
from app.stores.rules import apply_despite_loss

WAITING_MAX = 50_000  # events; more would only wait longer for the same disk
BATCH_EVENTS_MAX = 10_000  # events in a commit, so that one is never long

T = TypeVar("T")
W = TypeVar("W")

log = logging.getLogger("tally.recorder")


class Overloaded(Exception):
    """More hits wait than will be counted soon; this one was not taken."""

    def __init__(self) -> None:
        super().__init__("too many hits are waiting")


class Outcome(msgspec.Struct, frozen=True):
    """What became of the hits of one request: their result, the date of their day, and how durable they are."""

    result: GroupResult
    date: str
    ack: Ack


class _Waiter(msgspec.Struct):
    amounts: Mapping[str, int]
    key: IdempotencyKey | None
    visits: Sequence[Visit]
    outcome: asyncio.Future[Outcome]


class GroupCommitter:
    def __init__(
        self,
        store: CounterStore,
        clock: Clock,
        publish: Callable[[TimeSlot, dict[str, int], int], None],
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._clock = clock
        self._publish = publish
        self._waiting: deque[_Waiter] = deque()
        self._events = 0  # that wait
        self._arrived = asyncio.Event()
        self._lock = asyncio.Lock()  # to commit
        self._closing = False
        self._source, self._offset = uuid.uuid4().hex, 0

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Commit what waits, then stop."""
        self._closing = True
        self._arrived.set()
        await self._task

    async def submit(
        self, amounts: Mapping[str, int], key: IdempotencyKey | None = None, visits: Sequence[Visit] = ()
    ) -> Outcome:
        """Count these hits, all or none, once for a key, and wait until that is certain.

        Raises Overloaded, StoreUnavailable (not counted), or OutcomeUnknown.
        """
        if self._events >= WAITING_MAX:
            raise Overloaded
        waiter = _Waiter(amounts, key, visits, asyncio.get_running_loop().create_future())
        self._events += _size(waiter)
        self._waiting.append(waiter)
        self._arrived.set()
        return await waiter.outcome

    async def change(self, plan: Callable[[TimeSlot], Awaitable[tuple[DayChange, T]]]) -> T:
        """Plan an administrative change and apply it, between two commits; plan again if the day was changed meanwhile.

        Raises what `plan` raises, StoreUnavailable, or OutcomeUnknown.
        """
        async with self._lock:
            while True:
                if self._store.status().stale_seconds is not None:
                    raise StoreUnavailable("the store is unreachable, so its present counts are not known")
                change, result = await plan(self._clock.slot())
                with contextlib.suppress(WriteConflict):
                    applied = await self._apply(self._store.apply_change, change)
                    break
        self._publish(change.slot, {}, applied.generations.get(change.slot.day, 0))
        return result

    async def _run(self) -> None:
        while self._waiting or not self._closing:
            await self._arrived.wait()
            waiters = self._take()
            if waiters:
                async with self._lock:
                    await self._commit(waiters)
            if not self._waiting and not self._closing:
                self._arrived.clear()

    def _take(self) -> list[_Waiter]:
        """All that wait, or as many as a commit may have."""
        if self._events <= BATCH_EVENTS_MAX:
            all_waiting, self._waiting, self._events = list(self._waiting), deque(), 0
            return all_waiting
        waiters: list[_Waiter] = []
        events = 0
        while self._waiting and (not waiters or events + _size(self._waiting[0]) <= BATCH_EVENTS_MAX):
            waiters.append(self._waiting.popleft())
            events += _size(waiters[-1])
        self._events -= events
        return waiters

    async def _commit(self, waiters: list[_Waiter]) -> None:
        slot = self._clock.slot()
        commit, bare, others = _gather(slot, waiters)
        began = time.perf_counter()
        try:
            applied = await self._apply(self._store.apply, commit)
        except StoreError as error:
            for waiter in waiters:
                if not waiter.outcome.done():
                    waiter.outcome.set_exception(error)
            return
        self._metrics.commits.inc()
        self._metrics.batch_posts.observe(len(waiters))
        self._metrics.commit_seconds.observe(time.perf_counter() - began)
        counts: dict[str, int] = {}
        accepted = hits = 0
        for group, result in zip(commit, applied.groups, strict=True):
            if group.atomic:
                _resolve(others.popleft(), result, slot.date, applied.ack)
                accepted += not (result.rejected or result.replayed_on)
            else:
                _resolve_bare(bare, result, slot.date, applied.ack)
                accepted += sum(len(bare[event]) for event in result.values)
            for event, value in result.counted.items():
                hits += group.amounts[event]
                counts[event] = value.count
        self._metrics.accepted.inc(accepted)
        self._metrics.hits.inc(hits)
        try:
            self._publish(slot, counts, applied.generations.get(slot.day, 0))
        except Exception:  # the hits are counted and acknowledged, and the next ones must be as well
            log.exception("counts could not be published")

    async def _apply(self, apply: Callable[[str, int, int, W], Awaitable[ApplyResult]], work: W) -> ApplyResult:
        """Apply a commit or a change. Raises only StoreUnavailable, OutcomeUnknown or WriteConflict."""
        source, offset = self._source, self._offset
        try:
            applied = await apply_despite_loss(
                lambda expected_offset: apply(source, expected_offset, offset + 1, work),
                self._store.record_data_loss,
                offset,
                offset + 1,
            )
        except Exception as error:  # every waiter must get an answer, whatever went wrong
            self._source, self._offset = uuid.uuid4().hex, 0  # this offset is not used again
            if isinstance(error, (StoreUnavailable, OutcomeUnknown, WriteConflict)):
                raise
            log.exception("a commit failed")
            raise OutcomeUnknown("an unexpected error") from error
        if applied is None:
            self._source, self._offset = uuid.uuid4().hex, 0
            raise OutcomeUnknown("the store is ahead of this process")
        self._offset += 1
        return applied


def _size(waiter: _Waiter) -> int:
    """How much it adds to a commit, in events."""
    return len(waiter.amounts) + len(waiter.visits) or 1


def _gather(slot: TimeSlot, waiters: list[_Waiter]) -> tuple[Commit, dict[str, list[_Waiter]], deque[_Waiter]]:
    """Return a commit, and whose hits it has: one group for all bare hits (by event), then one per other request.

    A bare hit is a single one without an idempotency key.
    """
    sums: dict[str, int] = {}
    visits: list[Visit] = []
    bare: dict[str, list[_Waiter]] = {}
    others: deque[_Waiter] = deque()
    for waiter in waiters:
        if waiter.key or len(waiter.amounts) != 1:
            others.append(waiter)
            continue
        ((event, by),) = waiter.amounts.items()
        sums[event] = sums.get(event, 0) + by
        visits += waiter.visits
        bare.setdefault(event, []).append(waiter)
    groups = [HitGroup(slot, sums, None, True, visits, False)] if bare else []
    groups += [HitGroup(slot, waiter.amounts, waiter.key, True, waiter.visits) for waiter in others]
    return groups, bare, others


def _resolve_bare(bare: Mapping[str, list[_Waiter]], result: GroupResult, date: str, ack: Ack) -> None:
    """Give each waiter the values right after its own hit; the last one of an event has those of the result."""
    for event, waiters in bare.items():
        value, later = result.values.get(event), 0
        for waiter in reversed(waiters):
            if later and value:
                value = Value(value.count - later, value.total - later)
            _resolve(waiter, GroupResult({event: value}) if value else reject(result.rejected[event]), date, ack)
            later = waiter.amounts[event]


def _resolve(waiter: _Waiter, result: GroupResult, date: str, ack: Ack) -> None:
    if not waiter.outcome.done():  # it is done if the client has disconnected
        waiter.outcome.set_result(Outcome(result, result.replayed_on or date, ack))
