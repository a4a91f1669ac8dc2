"""Group commit: every hit that arrives while a batch is being written goes into the next one.

No timer: an idle service commits at once, a busy one gathers by itself.
"""

import asyncio
import bisect
import itertools
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from app.events import Batch, Clock, Moment, Posting
from app.stores.base import Ack, Answer, Applied, CounterStore, Moved, OutcomeUnknown, Refused, StoreError, Value

WAITERS_MAX = 10_000  # about a second of work; more would only wait longer for the same disk
BATCH_EVENTS_MAX = 10_000  # events in a commit, so that one is never long

log = logging.getLogger("tally.recorder")


class Overloaded(Exception):
    """More hits wait than will be counted soon; this one was not taken."""


class Recorded(NamedTuple):
    """The values right after these hits (or why they were refused), their date, and what this survives."""

    answer: Answer
    date: str
    ack: Ack


class _Waiter(NamedTuple):
    counts: Mapping[str, int]
    recorded: asyncio.Future[Recorded]


class Recorder:
    def __init__(
        self, store: CounterStore, clock: Clock, publish: Callable[[Moment, dict[str, int]], Awaitable[None]]
    ) -> None:
        self._store = store
        self._clock = clock
        self._publish = publish
        self._waiting: list[_Waiter] = []
        self._arrived = asyncio.Event()
        self._closing = False
        self._source, self._offset = uuid.uuid4().hex, 0

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Commit what waits, then stop."""
        self._closing = True
        self._arrived.set()
        await self._task

    async def record(self, counts: Mapping[str, int]) -> Recorded:
        """Count these hits, all or none, and wait until that is certain.

        Raises Overloaded, StoreUnavailable (not counted), or OutcomeUnknown.
        """
        if len(self._waiting) >= WAITERS_MAX:
            raise Overloaded
        waiter = _Waiter(counts, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._arrived.set()
        return await waiter.recorded

    async def _run(self) -> None:
        while self._waiting or not self._closing:
            await self._arrived.wait()
            waiters = self._take()
            if waiters:
                await self._commit(waiters)
            if not self._waiting and not self._closing:
                self._arrived.clear()

    def _take(self) -> list[_Waiter]:
        events = list(itertools.accumulate(len(waiter.counts) for waiter in self._waiting))
        taken = max(1, bisect.bisect_right(events, BATCH_EVENTS_MAX))
        waiters, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return waiters

    async def _commit(self, waiters: list[_Waiter]) -> None:
        moment = self._clock.moment()
        batch, sharers = _gather(moment, waiters)
        try:
            applied = await self._apply(batch)
        except Exception as error:
            # whatever it was, nobody is left waiting, and this offset is not used again
            self._source, self._offset = uuid.uuid4().hex, 0
            if not isinstance(error, StoreError):
                log.exception("a commit failed")
                error = OutcomeUnknown("an unexpected error")
            for waiter in waiters:
                if not waiter.recorded.done():
                    waiter.recorded.set_exception(error)
            return
        changes: dict[str, int] = {}
        for answer, sharing in zip(applied.answers, sharers, strict=True):
            _resolve(answer, sharing, moment.date, applied.ack)
            if not isinstance(answer, Refused):
                changes.update({event: value.count for event, value in answer.items()})
        try:
            await self._publish(moment, changes)
        except Exception:
            log.exception("counted, but not shown live")

    async def _apply(self, batch: Batch) -> Applied:
        try:
            applied = await self._store.apply(self._source, self._offset, self._offset + 1, batch)
        except Moved:  # the store went back: what it lost is lost, but this batch is not in it
            log.warning("the store has lost earlier batches of this process")
            self._source, self._offset = uuid.uuid4().hex, 0
            applied = await self._store.apply(self._source, 0, 1, batch)
        self._offset += 1
        return applied


def _gather(moment: Moment, waiters: list[_Waiter]) -> tuple[Batch, list[list[_Waiter]]]:
    """A posting for each request of several events, and one for all the bare hits of each event."""
    sums: dict[str, int] = {}
    bare: dict[str, list[_Waiter]] = {}
    wholes = []
    for waiter in waiters:
        if len(waiter.counts) == 1:
            ((event, by),) = waiter.counts.items()
            sums[event] = sums.get(event, 0) + by
            bare.setdefault(event, []).append(waiter)
        else:
            wholes.append(waiter)
    postings = [Posting(moment, {event: by}) for event, by in sums.items()]
    postings += [Posting(moment, waiter.counts) for waiter in wholes]
    return Batch(tuple(postings)), [*bare.values(), *([waiter] for waiter in wholes)]


def _resolve(answer: Answer, sharers: list[_Waiter], date: str, ack: Ack) -> None:
    """Give each of those who share a posting the value right after its own hit, the last one the posting's."""
    for waiter in reversed(sharers):
        if not waiter.recorded.done():  # else its client went away
            waiter.recorded.set_result(Recorded(answer, date, ack))
        if len(sharers) > 1 and not isinstance(answer, Refused):
            answer = {event: Value(*(n - waiter.counts[event] for n in value)) for event, value in answer.items()}
