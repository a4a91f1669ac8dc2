"""The hits that one commit will write, collected as they arrive, with the waiters for their results."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from app.domain.calendar import TimeSlot
from app.domain.counting import Commit, HitGroup, IdempotencyKey, Visit, weight
from app.stores.results import Ack, ApplyResult, GroupResult, Reason, Value, reject

COMMIT_WEIGHT_MAX = 10_000  # keeps every commit shorter than about 50 ms

_NOT_DELIVERED = "a result could not be delivered"

log = logging.getLogger("tally.group_commit")


class Outcome(msgspec.Struct, frozen=True):
    """The result for the hits of one request, the date (ISO 8601) of their day, and how durable they are."""

    result: GroupResult
    date: str
    ack: Ack


class HitWaiter(Protocol):
    """Accepts the result of one unkeyed hit. Exactly one of its methods is called, once."""

    def counted(self, count: int, total: int, date: str, ack: Ack) -> None:
        """Accept the event's count and total right after the hit."""

    def rejected(self, reason: Reason, date: str, ack: Ack) -> None:
        """Accept the reason why the hit was not counted."""

    def failed(self, error: Exception) -> None:
        """Accept a StoreError: the commit was not written, or its outcome is unknown."""


class FutureHit:
    """A waiter that sets the result of a future: the Outcome of a hit of this event."""

    __slots__ = ("_event", "_future")

    def __init__(self, event: str, future: asyncio.Future[Outcome]) -> None:
        self._event, self._future = event, future

    def counted(self, count: int, total: int, date: str, ack: Ack) -> None:
        set_result(self._future, Outcome(GroupResult({self._event: Value(count, total)}), date, ack))

    def rejected(self, reason: Reason, date: str, ack: Ack) -> None:
        set_result(self._future, Outcome(reject(reason), date, ack))

    def failed(self, error: Exception) -> None:
        if not self._future.done():
            self._future.set_exception(error)


def set_result(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    """Set the result of a future unless the client has disconnected."""
    if not future.done():
        future.set_result(outcome)


def _future() -> asyncio.Future[Outcome]:
    return asyncio.get_running_loop().create_future()


class Request(msgspec.Struct):
    """Hits that are counted all or none, or only visits, of hits that an earlier commit counted."""

    amounts: Mapping[str, int]
    key: IdempotencyKey | None
    visits: Sequence[Visit]
    slot: TimeSlot | None = None  # that of the commit, unless it is set before
    outcome: asyncio.Future[Outcome] = msgspec.field(default_factory=_future)


class PendingCommit:
    """Collects hits until the commit is written, and then gives each waiter its result.

    Unkeyed single hits are added up by event, and are accepted or rejected one event at a time. They are the first hit
    group of the commit. Each request, which is a batch or has an idempotency key, is a group of its own.
    """

    def __init__(self) -> None:
        self.waiters = 0  # without requests that have only visits, because they are parts of another request
        self.weight = 0  # of all its hits, each of them weighed separately
        self._amounts: dict[str, int] = {}
        self._visits: list[Visit] = []
        self._hits: dict[str, list[tuple[HitWaiter, int]]] = {}
        self._requests: list[Request] = []

    def has_room(self, added: int) -> bool:
        """Return whether hits of this weight fit into this commit. Anything fits into an empty one."""
        return not self.weight or self.weight + added <= COMMIT_WEIGHT_MAX

    def add_hit(self, event: str, by: int, visits: Sequence[Visit], waiter: HitWaiter) -> None:
        """Add an unkeyed hit."""
        self._amounts[event] = self._amounts.get(event, 0) + by
        hits = self._hits.get(event)
        if hits is None:
            hits = self._hits[event] = []
        hits.append((waiter, by))
        self._visits += visits
        self.waiters += 1
        self.weight += weight((event,), visits)

    def add_request(self, request: Request) -> None:
        """Add a batch, or a hit with an idempotency key."""
        self._requests.append(request)
        self.waiters += bool(request.amounts)
        self.weight += max(1, weight(request.amounts, request.visits))

    def build(self, slot: TimeSlot) -> Commit:
        """Return the commit. Hits belong to the day on which they are committed, and visits to that of their hits."""
        groups = [HitGroup(slot, self._amounts, visits=self._visits, atomic=False)] if self._hits else []
        for request in self._requests:
            request.slot = request.slot or slot
            is_atomic = bool(request.amounts)
            group = HitGroup(request.slot, request.amounts, request.key, visits=request.visits, atomic=is_atomic)
            groups.append(group)
        return groups

    def resolve(self, applied: ApplyResult, date: str) -> tuple[dict[str, int], int, int]:
        """Give every waiter its result. Return the new counts by event, and the accepted requests and hits."""
        results = list(applied.groups)
        counts: dict[str, int] = {}
        accepted = hits = 0
        if self._hits:
            result = results.pop(0)
            accepted, hits = self._resolve_hits(result, date, applied.ack)
            counts = {event: value.count for event, value in result.values.items()}
        for request, result in zip(self._requests, results, strict=True):
            set_result(request.outcome, Outcome(result, result.replayed_on or date, applied.ack))
            accepted += result.is_counted and bool(request.amounts)
            for event, value in result.counted.items():
                hits += request.amounts[event]
                counts[event] = value.count
        return counts, accepted, hits

    def _resolve_hits(self, result: GroupResult, date: str, ack: Ack) -> tuple[int, int]:
        """Give each waiter the values right after its own hit. Return the number of accepted waiters and hits."""
        accepted = hits = 0
        for event in list(self._hits):
            value = result.values.get(event)
            reason = result.rejected[event] if value is None else None
            waiters = self._hits.pop(event)  # so that `fail` does not call them, too
            if value is None:
                for waiter, _ in waiters:
                    _call(waiter.rejected, reason, date, ack)
                continue
            # The last waiter of an event has the result's values.
            count, total = value.count - self._amounts[event], value.total - self._amounts[event]
            for waiter, by in waiters:
                count += by
                total += by
                try:  # not with `_call`, because this is the hot path
                    waiter.counted(count, total, date, ack)
                except Exception:  # the waiters after this one need their results, too
                    log.exception(_NOT_DELIVERED)
            accepted += len(waiters)
            hits += self._amounts[event]
        return accepted, hits

    def fail(self, error: Exception) -> None:
        """Give this error to every waiter that has no result yet."""
        for waiters in self._hits.values():
            for waiter, _ in waiters:
                _call(waiter.failed, error)
        for request in self._requests:
            if not request.outcome.done():
                request.outcome.set_exception(error)


def _call(method: Callable[..., None], *arguments: object) -> None:
    """Call a method of a waiter. Its errors are logged."""
    try:
        method(*arguments)
    except Exception:  # the other waiters need their results
        log.exception(_NOT_DELIVERED)
