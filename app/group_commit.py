"""Group commit: all hits that arrive while a commit is being written go into the next one.

There is no timer: an idle service commits each hit at once, a busy one commits many together.
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

WAITING_EVENTS_MAX = 50_000  # further hits are rejected, because they would only wait longer for the same disk
COMMIT_EVENTS_MAX = 10_000  # keeps every commit short

T = TypeVar("T")
W = TypeVar("W")

log = logging.getLogger("tally.group_commit")


class Overloaded(Exception):
    """Too much is waiting to be written. These hits were not counted."""


class Outcome(msgspec.Struct, frozen=True):
    """The result for the hits of one request, the date (ISO 8601) of their day, and how durable they are."""

    result: GroupResult
    date: str
    ack: Ack


class _Waiter(msgspec.Struct):
    amounts: Mapping[str, int]
    key: IdempotencyKey | None
    visits: Sequence[Visit]
    outcome: asyncio.Future[Outcome]


class GroupCommitter:
    """Collects hits into commits and writes them to the store, one commit at a time.

    After each commit it calls `publish` with the commit's time slot, the new counts by event, and the day's
    generation.
    """

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
        self._waiting_events = 0
        self._arrived = asyncio.Event()
        self._commit_lock = asyncio.Lock()
        self._closing = False
        self._use_new_source()

    def start(self) -> None:
        """Start the task that commits. Call it once, in the event loop."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Commit all waiting hits, then stop."""
        self._closing = True
        self._arrived.set()
        await self._task

    async def submit(
        self, amounts: Mapping[str, int], key: IdempotencyKey | None = None, visits: Sequence[Visit] = ()
    ) -> Outcome:
        """Count hits, all or none, and return when they are acknowledged or rejected.

        `amounts` is the amount to add by event name; `visits` are the users and sessions of these hits. With a `key`,
        a repetition is not counted and gets the first result. Raises Overloaded and StoreUnavailable (not counted),
        or OutcomeUnknown.
        """
        if self._waiting_events >= WAITING_EVENTS_MAX:
            raise Overloaded(f"overloaded: {WAITING_EVENTS_MAX} hits are waiting to be written; retry later")
        waiter = _Waiter(amounts, key, visits, asyncio.get_running_loop().create_future())
        self._waiting_events += _size(waiter)
        self._waiting.append(waiter)
        self._arrived.set()
        return await waiter.outcome

    async def apply_change(self, plan: Callable[[TimeSlot], Awaitable[tuple[DayChange, T]]]) -> T:
        """Plan an administrative change and apply it between two commits; return the second result of `plan`.

        If another node has changed the day since, it is planned again. Raises the errors of `plan`, StoreUnavailable,
        or OutcomeUnknown.
        """
        async with self._commit_lock:
            while True:
                if self._store.status().stale_seconds is not None:
                    raise StoreUnavailable("the store is unreachable, and a change needs its present counts")
                change, result = await plan(self._clock.slot())
                with contextlib.suppress(WriteConflict):
                    applied = await self._apply(self._store.apply_change, change)
                    break
        self._publish(change.slot, {}, applied.generations.get(change.slot.day, 0))
        return result

    async def _run(self) -> None:
        while self._waiting or not self._closing:
            await self._arrived.wait()
            waiters = self._take_waiters()
            if waiters:
                async with self._commit_lock:
                    await self._commit(waiters)
            if not self._waiting and not self._closing:
                self._arrived.clear()

    def _take_waiters(self) -> list[_Waiter]:
        """Remove and return all waiters, or as many as fit into a commit."""
        if self._waiting_events <= COMMIT_EVENTS_MAX:
            all_waiting, self._waiting, self._waiting_events = list(self._waiting), deque(), 0
            return all_waiting
        waiters: list[_Waiter] = []
        events = 0
        while self._waiting and (not waiters or events + _size(self._waiting[0]) <= COMMIT_EVENTS_MAX):
            waiters.append(self._waiting.popleft())
            events += _size(waiters[-1])
        self._waiting_events -= events
        return waiters

    async def _commit(self, waiters: list[_Waiter]) -> None:
        slot = self._clock.slot()  # every hit of a commit belongs to the day on which it is committed
        commit, unkeyed, others = _build_commit(slot, waiters)
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
        counts = self._resolve_waiters(slot, commit, applied, unkeyed, others)
        try:
            self._publish(slot, counts, applied.generations.get(slot.day, 0))
        except Exception:  # the hits are counted and acknowledged, and later commits must go on
            log.exception("counts could not be published")

    def _resolve_waiters(
        self,
        slot: TimeSlot,
        commit: Commit,
        applied: ApplyResult,
        unkeyed: Mapping[str, list[_Waiter]],
        others: deque[_Waiter],
    ) -> dict[str, int]:
        """Give every waiter its outcome, add to the metrics, and return the new counts by event."""
        counts: dict[str, int] = {}
        accepted = hits = 0
        for group, result in zip(commit, applied.groups, strict=True):
            if group.atomic:
                _resolve(others.popleft(), result, slot.date, applied.ack)
                accepted += result.is_counted
            else:
                _resolve_unkeyed(unkeyed, result, slot.date, applied.ack)
                accepted += sum(len(unkeyed[event]) for event in result.values)
            for event, value in result.counted.items():
                hits += group.amounts[event]
                counts[event] = value.count
        self._metrics.accepted.inc(accepted)
        self._metrics.hits.inc(hits)
        return counts

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
        except Exception as error:  # every waiter must get an outcome
            self._use_new_source()  # an offset must never be used for two commits
            if isinstance(error, (StoreUnavailable, OutcomeUnknown, WriteConflict)):
                raise
            log.exception("unexpected error while writing")
            raise OutcomeUnknown("unexpected error while writing") from error
        if applied is None:
            self._use_new_source()
            raise OutcomeUnknown("the store has a higher offset than this process")
        self._offset += 1
        return applied

    def _use_new_source(self) -> None:
        self._source, self._offset = uuid.uuid4().hex, 0


def _size(waiter: _Waiter) -> int:
    """Return how many events it adds to a commit."""
    return len(waiter.amounts) + len(waiter.visits) or 1


def _build_commit(slot: TimeSlot, waiters: list[_Waiter]) -> tuple[Commit, dict[str, list[_Waiter]], deque[_Waiter]]:
    """Return a commit, the waiters of its unkeyed single hits by event, and the other waiters.

    All unkeyed single hits share the first group; each other waiter has a group of its own, in the same order.
    """
    sums: dict[str, int] = {}
    visits: list[Visit] = []
    unkeyed: dict[str, list[_Waiter]] = {}
    others: deque[_Waiter] = deque()
    for waiter in waiters:
        if waiter.key or len(waiter.amounts) != 1:
            others.append(waiter)
            continue
        ((event, by),) = waiter.amounts.items()
        sums[event] = sums.get(event, 0) + by
        visits += waiter.visits
        unkeyed.setdefault(event, []).append(waiter)
    groups = [HitGroup(slot, sums, visits=visits, atomic=False)] if unkeyed else []
    groups += [HitGroup(slot, waiter.amounts, waiter.key, visits=waiter.visits) for waiter in others]
    return groups, unkeyed, others


def _resolve_unkeyed(unkeyed: Mapping[str, list[_Waiter]], result: GroupResult, date: str, ack: Ack) -> None:
    """Give each waiter the values right after its own hit; the last waiter of an event has the result's values."""
    for event, waiters in unkeyed.items():
        value, later = result.values.get(event), 0
        for waiter in reversed(waiters):
            if later and value:
                value = Value(value.count - later, value.total - later)
            _resolve(waiter, GroupResult({event: value}) if value else reject(result.rejected[event]), date, ack)
            later = waiter.amounts[event]


def _resolve(waiter: _Waiter, result: GroupResult, date: str, ack: Ack) -> None:
    if not waiter.outcome.done():  # it is done if the client has disconnected
        waiter.outcome.set_result(Outcome(result, result.replayed_on or date, ack))
