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

from app.domain.calendar import Clock, TimeSlot
from app.domain.counting import VISITOR_WEIGHT, DayChange, IdempotencyKey, Visit, weight
from app.metrics import Metrics
from app.pending_commit import COMMIT_WEIGHT_MAX, FutureHit, HitWaiter, Outcome, PendingCommit, Request
from app.stores.base import CounterStore, OutcomeUnknown, StoreError, StoreUnavailable, WriteConflict
from app.stores.results import ApplyResult
from app.stores.rules import apply_despite_loss

WAITING_WEIGHT_MAX = 200_000  # about a second of work; further hits are rejected, because they would wait still longer
# Visits in a commit of their own: those of a large batch do not fit into one commit.
VISITS_PER_COMMIT = COMMIT_WEIGHT_MAX // (2 * VISITOR_WEIGHT)
PLANS_MAX = 10  # of an administrative change that conflicts with those of other nodes
# A store forgets the offset of a source after 30 days without a commit, which would look like a loss of data.
SOURCE_IDLE_SECONDS = 86_400

T = TypeVar("T")
W = TypeVar("W")

log = logging.getLogger("tally.group_commit")


class Overloaded(Exception):
    """Too much is waiting to be written. These hits were not counted."""


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
        self._pending: deque[PendingCommit] = deque()  # hits are added to the last one
        self._waiting_weight = 0
        self._arrived = asyncio.Event()
        self._commit_lock = asyncio.Lock()
        self._change_lock = asyncio.Lock()  # so that two changes of this node do not conflict
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._source_used_at = 0.0  # UTC second
        self._use_new_source()

    def start(self) -> None:
        """Start the task that commits. Call it once, in the event loop."""
        self._task = asyncio.create_task(self._run())

    @property
    def is_running(self) -> bool:
        """Whether hits are committed."""
        return self._task is not None and not self._task.done()

    async def close(self) -> None:
        """Commit all waiting hits, then stop."""
        self._closing = True
        self._arrived.set()
        if self._task:
            await self._task

    async def submit(
        self, amounts: Mapping[str, int], key: IdempotencyKey | None = None, visits: Sequence[Visit] = ()
    ) -> Outcome:
        """Count hits, all or none, and return when they are acknowledged or rejected.

        `amounts` is the amount to add by event name; `visits` are the users and sessions of these hits. With a `key`,
        a repetition is not counted and gets the first result. Raises Overloaded and StoreUnavailable (not counted),
        or OutcomeUnknown.

        If there are more visits than fit into a commit, they are written in further commits after the counts, and the
        hits of other clients go in between. If one of these fails, the outcome is unknown: the hits are counted, and
        some of their users and sessions are not.
        """
        if weight(amounts, visits) <= COMMIT_WEIGHT_MAX:
            return await self._submit(amounts, key, visits)
        hits = Request(amounts, key, ())
        outcome, ack = await self._submit_request(hits), None
        for i in range(0, len(visits) if outcome.result.is_counted else 0, VISITS_PER_COMMIT):
            part = Request({}, None, visits[i : i + VISITS_PER_COMMIT], hits.slot)
            try:
                ack = (await self._submit_request(part)).ack
            except (StoreUnavailable, Overloaded) as error:
                raise OutcomeUnknown(f"users and sessions of these hits are missing: {error}") from error
        return Outcome(outcome.result, outcome.date, ack or outcome.ack)

    async def _submit(self, amounts: Mapping[str, int], key: IdempotencyKey | None, visits: Sequence[Visit]) -> Outcome:
        if key or len(amounts) != 1:
            return await self._submit_request(Request(amounts, key, visits))
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        ((event, by),) = amounts.items()
        self.add_hit(event, by, visits, FutureHit(event, outcome))
        return await outcome

    async def _submit_request(self, request: Request) -> Outcome:
        self._pending_with_room(max(1, weight(request.amounts, request.visits))).add_request(request)
        return await request.outcome

    def add_hit(self, event: str, by: int, visits: Sequence[Visit], waiter: HitWaiter) -> None:
        """Count one unkeyed hit; `waiter` gets the result. Raises Overloaded (not counted)."""
        self._pending_with_room(weight((event,), visits)).add_hit(event, by, visits, waiter)

    def _pending_with_room(self, added: int) -> PendingCommit:
        """Return the commit to which hits of this weight are added. Raises Overloaded."""
        if self._waiting_weight >= WAITING_WEIGHT_MAX:
            raise Overloaded("overloaded: too many hits are waiting to be written; retry later")
        self._waiting_weight += added
        if not (self._pending and self._pending[-1].has_room(added)):
            self._pending.append(PendingCommit())
            self._arrived.set()
        return self._pending[-1]

    async def apply_change(self, plan: Callable[[TimeSlot], Awaitable[tuple[DayChange, T]]]) -> T:
        """Plan an administrative change and apply it between two commits; return the second result of `plan`.

        Hits are committed during the plan, which may take long. If another node changed the day, the day ended, or the
        store was unreachable meanwhile, it is planned again, up to PLANS_MAX times. Raises the errors of `plan`,
        StoreUnavailable (not changed), or OutcomeUnknown.
        """
        async with self._change_lock:
            for _ in range(PLANS_MAX):
                slot, status = self._clock.slot(), self._store.status()
                if status.stale_seconds is not None:
                    raise StoreUnavailable("the store is unreachable, so nothing was changed; try again later")
                change, result = await plan(slot)
                async with self._commit_lock:
                    if (slot.day, status.outages) != (self._clock.slot().day, self._store.status().outages):
                        continue
                    with contextlib.suppress(WriteConflict):
                        applied = await self._apply(self._store.apply_change, change)
                        self._publish_safely(slot, {}, applied)
                        return result
        raise StoreUnavailable("the day was changed at the same time, so this change was not made; try again")

    async def _run(self) -> None:
        while self._pending or not self._closing:
            await self._arrived.wait()
            if self._pending:
                pending = self._pending.popleft()
                self._waiting_weight -= pending.weight
                async with self._commit_lock:
                    await self._commit_safely(pending)
            if not self._pending and not self._closing:
                self._arrived.clear()

    async def _commit_safely(self, pending: PendingCommit) -> None:
        """Commit, and give every waiter an outcome even if there is a bug; later commits must go on."""
        try:
            await self._commit(pending)
        except (Exception, asyncio.CancelledError):  # a library may raise CancelledError by itself
            log.exception("unexpected error around a commit")
            pending.fail(OutcomeUnknown("unexpected error while writing; details are in the server log"))
            task = asyncio.current_task()
            if task and task.cancelling():  # by the end of the event loop, and not by an error in a library
                raise

    async def _commit(self, pending: PendingCommit) -> None:
        slot = self._clock.slot()  # every hit of a commit belongs to the day on which it is committed
        began = time.perf_counter()
        try:
            applied = await self._apply(self._store.apply, pending.build(slot))
        except StoreError as error:
            pending.fail(error)
            return
        self._metrics.commits.inc()
        self._metrics.batch_posts.observe(pending.waiters)
        self._metrics.commit_seconds.observe(time.perf_counter() - began)
        counts, accepted, hits = pending.resolve(applied, slot.date)
        self._metrics.accepted.inc(accepted)
        self._metrics.hits.inc(hits)
        if counts:  # a commit of visits may have no generation of this day
            self._publish_safely(slot, counts, applied)

    def _publish_safely(self, slot: TimeSlot, counts: dict[str, int], applied: ApplyResult) -> None:
        """Publish what was applied. An error is only logged."""
        try:
            self._publish(slot, counts, applied.generations.get(slot.day, 0))
        except Exception:  # the counts are stored, and later commits must go on
            log.exception("counts could not be published")

    async def _apply(self, apply: Callable[[str, int, int, W], Awaitable[ApplyResult]], work: W) -> ApplyResult:
        """Apply a commit or a change. Raises only StoreUnavailable, OutcomeUnknown or WriteConflict."""
        now = self._clock.at()
        if now > self._source_used_at + SOURCE_IDLE_SECONDS:
            self._use_new_source()
        source, offset = self._source, self._offset
        try:
            applied = await apply_despite_loss(
                lambda expected_offset: apply(source, expected_offset, offset + 1, work),
                self._store.record_data_loss,
                offset,
                offset + 1,
            )
        except BaseException as error:  # also if the request of a change was cancelled
            self._use_new_source()  # an offset must never be used for two commits
            if isinstance(error, (StoreUnavailable, OutcomeUnknown, WriteConflict)) or not isinstance(error, Exception):
                raise
            log.exception("unexpected error while writing")
            raise OutcomeUnknown("unexpected error while writing; details are in the server log") from error
        if applied is None:
            self._use_new_source()
            raise OutcomeUnknown(
                "the store has a higher offset than this process, a bug in Tally; the hits may be counted or not"
            )
        self._offset += 1
        self._source_used_at = now
        return applied

    def _use_new_source(self) -> None:
        self._source, self._offset = uuid.uuid4().hex, 0
        self._source_used_at = self._clock.at()
