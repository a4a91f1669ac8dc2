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

from app.events import Batch, Changes, Clock, Key, Moment, Posting, Visit
from app.metrics import Metrics
from app.stores import base
from app.stores.base import Ack, Answer, Applied, CounterStore, OutcomeUnknown, StoreError, StoreUnavailable

WAITING_MAX = 50_000  # events; more would only wait longer for the same disk
BATCH_EVENTS_MAX = 10_000  # events in a commit, so that one is never long

T = TypeVar("T")

log = logging.getLogger("tally.recorder")


class Overloaded(Exception):
    """More hits wait than will be counted soon; this one was not taken."""

    def __init__(self) -> None:
        super().__init__("too many hits are waiting")


class Recorded(msgspec.Struct):
    """The values right after these hits (or why they were refused), their date, and what this survives."""

    answer: Answer
    date: str
    ack: Ack
    replayed: bool = False


class _Waiter(msgspec.Struct):
    counts: Mapping[str, int]
    key: Key | None
    visits: Sequence[Visit]
    recorded: asyncio.Future[Recorded]


class Recorder:
    def __init__(
        self,
        store: CounterStore,
        clock: Clock,
        publish: Callable[[Moment, dict[str, int], int], None],
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._clock = clock
        self._publish = publish
        self._waiting: deque[_Waiter] = deque()
        self._events = 0  # that wait
        self._arrived = asyncio.Event()
        self._turn = asyncio.Lock()  # to commit
        self._closing = False
        self._source, self._offset = uuid.uuid4().hex, 0

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Commit what waits, then stop."""
        self._closing = True
        self._arrived.set()
        await self._task

    async def record(self, counts: Mapping[str, int], key: Key | None = None, visits: Sequence[Visit] = ()) -> Recorded:
        """Count these hits, all or none, once for a key, and wait until that is certain.

        Raises Overloaded, StoreUnavailable (not counted), or OutcomeUnknown.
        """
        if self._events >= WAITING_MAX:
            raise Overloaded
        waiter = _Waiter(counts, key, visits, asyncio.get_running_loop().create_future())
        self._events += _size(waiter)
        self._waiting.append(waiter)
        self._arrived.set()
        return await waiter.recorded

    async def change(self, plan: Callable[[Moment], Awaitable[tuple[Changes, T]]]) -> T:
        """Do what this plans, between two commits. Raises what it does, StoreUnavailable, or OutcomeUnknown."""
        async with self._turn:
            while True:
                if self._store.condition().stale_seconds is not None:
                    raise StoreUnavailable("the store is away, and what it has is not known")
                changes, result = await plan(self._clock.moment())
                with contextlib.suppress(base.Overtaken):  # by another node
                    applied = await self._apply(changes)
                    break
        self._publish(changes.moment, {}, applied.generations.get(changes.moment.day, 0))
        return result

    async def _run(self) -> None:
        while self._waiting or not self._closing:
            await self._arrived.wait()
            waiters = self._take()
            if waiters:
                async with self._turn:
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
        moment = self._clock.moment()
        batch, bare, wholes = _gather(moment, waiters)
        begun = time.perf_counter()
        try:
            applied = await self._apply(batch)
        except StoreError as error:
            for waiter in waiters:
                if not waiter.recorded.done():
                    waiter.recorded.set_exception(error)
            return
        self._metrics.commits.inc()
        self._metrics.batch_posts.observe(len(waiters))
        self._metrics.commit_seconds.observe(time.perf_counter() - begun)
        changes: dict[str, int] = {}
        accepted = hits = 0
        for posting, answer in zip(batch, applied.answers, strict=True):
            if isinstance(answer, base.Apart):
                _resolve_bare(bare, answer, moment.date, applied.ack)
                accepted += sum(len(bare[event]) for event in answer.values)
            else:
                _resolve(wholes.popleft(), answer, moment.date, applied.ack)
                accepted += isinstance(answer, dict)
            for event, value in base.counted(answer).items():
                hits += posting.counts[event]
                changes[event] = value.count
        self._metrics.accepted.inc(accepted)
        self._metrics.hits.inc(hits)
        try:
            self._publish(moment, changes, applied.generations.get(moment.day, 0))
        except Exception:  # the hits are counted and answered; whatever a page does, the next ones must be, too
            log.exception("counted, but not shown live")

    async def _apply(self, work: Batch | Changes) -> Applied:
        """Raises nothing but StoreUnavailable, OutcomeUnknown or base.Overtaken, so that whoever waits is told."""
        at, store = self._offset, self._store
        try:
            applied = await base.insist(store, store.note_loss, self._source, at, at + 1, work)
        except Exception as error:  # whatever it is, whoever waits is told
            self._source, self._offset = uuid.uuid4().hex, 0  # this offset is not used again
            if isinstance(error, (StoreUnavailable, OutcomeUnknown, base.Overtaken)):
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
    return len(waiter.counts) + len(waiter.visits) or 1


def _gather(moment: Moment, waiters: list[_Waiter]) -> tuple[Batch, dict[str, list[_Waiter]], deque[_Waiter]]:
    """One posting for all bare hits, where there are any, then one for each other request; and whose they are."""
    sums: dict[str, int] = {}
    visits: list[Visit] = []
    bare: dict[str, list[_Waiter]] = {}
    wholes: deque[_Waiter] = deque()
    for waiter in waiters:
        if waiter.key or len(waiter.counts) != 1:
            wholes.append(waiter)
            continue
        ((event, by),) = waiter.counts.items()
        sums[event] = sums.get(event, 0) + by
        visits += waiter.visits
        bare.setdefault(event, []).append(waiter)
    postings = [Posting(moment, sums, None, True, visits, True)] if bare else []
    postings += [Posting(moment, waiter.counts, waiter.key, True, waiter.visits) for waiter in wholes]
    return postings, bare, wholes


def _resolve_bare(bare: Mapping[str, list[_Waiter]], answer: base.Apart, date: str, ack: Ack) -> None:
    """Give each the value right after its own hit, and the last one of an event the value after all of them."""
    values, refused = answer
    for event, waiters in bare.items():
        value, later = values.get(event), 0
        for waiter in reversed(waiters):
            if later and value:
                value = base.Value(value.count - later, value.total - later)
            _resolve(waiter, {event: value} if value else refused[event], date, ack)
            later = waiter.counts[event]


def _resolve(waiter: _Waiter, answer: Answer, date: str, ack: Ack) -> None:
    replayed = isinstance(answer, base.Replayed)
    if isinstance(answer, base.Replayed):
        date, answer = answer
    if not waiter.recorded.done():  # else its client went away
        waiter.recorded.set_result(Recorded(answer, date, ack, replayed))
