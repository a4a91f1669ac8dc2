"""PUT and DELETE /event/{name}, POST /reset, DELETE /user/{id}: corrections by administrators."""

from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec
from fastapi import APIRouter, Request
from typing_extensions import TypedDict

from app import corrections
from app.domain.calendar import Clock, TimeSlot
from app.domain.counting import COUNT_MAX, DayChange
from app.group_commit import GroupCommitter
from app.http.errors import Problem, rejection
from app.http.openapi import error_responses, json_body
from app.http.parsing import HIT_BYTES_MAX, EventInPath, VisitorInPath, decode, read_body
from app.http.problem_kinds import COUNT_MOVED, INVALID_REQUEST
from app.http.responses import CorrectedRow, correction_row
from app.stores.base import CounterStore

Number = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]
# A function that plans a correction for a time slot at a UTC second.
Plan = Callable[[TimeSlot, int], Awaitable[tuple[DayChange, corrections.CorrectionRecord]]]
Correct = Callable[[Plan], Awaitable[CorrectedRow]]
Erased = TypedDict("Erased", {"user": str, "uniquesKeep": bool})

_NUMBER = {"type": ["integer", "null"], "minimum": 0, "maximum": COUNT_MAX}
_NUMBERS = {
    "type": "object",
    "properties": dict.fromkeys(("count", "total", "expectedCount", "expectedTotal"), _NUMBER),
    "additionalProperties": False,
}
_NUMBERS_BODY = json_body(_NUMBERS, {"count": 42})


class NumbersBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `PUT /event/{name}`: the new numbers, and those that they replace."""

    count: Number | None = None
    total: Number | None = None
    expected_count: Number | None = msgspec.field(default=None, name="expectedCount")
    expected_total: Number | None = msgspec.field(default=None, name="expectedTotal")


def plan_applier(committer: GroupCommitter, clock: Clock) -> Callable[[Plan], Awaitable[corrections.CorrectionRecord]]:
    """Return a function that applies a correction. It raises Problem (409, 429), and the errors of `apply_change`."""

    async def apply_plan(plan: Plan) -> corrections.CorrectionRecord:
        try:
            return await committer.apply_change(lambda slot: plan(slot, int(clock.at())))
        except corrections.ChangeRejected as error:
            raise rejection(error.reason) from None
        except corrections.CountMoved as error:
            raise Problem(COUNT_MOVED, f"{error}; nothing was changed. Read it and correct it again") from None

    return apply_plan


def add_routes(router: APIRouter, committer: GroupCommitter, store: CounterStore, clock: Clock, names_max: int) -> None:
    """Add the routes that correct, delete, reset and erase. The store accepts `names_max` event names."""
    apply_plan = plan_applier(committer, clock)

    async def correct(plan: Plan) -> CorrectedRow:
        return correction_row(clock.calendar, await apply_plan(plan))

    _add_event_routes(router, correct, store, names_max)

    @router.post("/reset")
    async def reset_counts() -> CorrectedRow:
        """Reset all of today's counts to 0. The counts so far stay in the day's history; totals are unchanged."""
        return await correct(lambda slot, at: corrections.reset(store, slot, at))

    @router.delete("/user/{id:path}")
    async def erase_user(visitor: VisitorInPath) -> Erased:
        """Erase a user. With Redis, estimates of unique users are not reduced; they contain no ids."""
        await committer.apply_change(lambda slot: corrections.erase(store, slot, visitor))
        return Erased(user=visitor, uniquesKeep=store.kind == "redis")


def _add_event_routes(router: APIRouter, correct: Correct, store: CounterStore, names_max: int) -> None:
    @router.put("/event/{name}", openapi_extra=_NUMBERS_BODY, responses=error_responses(409))
    async def correct_event(request: Request, event: EventInPath) -> CorrectedRow:
        """Set an event's count of today, its total, or both. The previous values stay in the day's history.

        With `expectedCount` or `expectedTotal`, nothing is changed if the event has another number by now.
        """
        body = decode(await read_body(request, HIT_BYTES_MAX), NumbersBody)
        if body.count is None and body.total is None:
            raise Problem(INVALID_REQUEST, 'body: a correction needs "count", "total" or both')
        values, expected = (body.count, body.total), (body.expected_count, body.expected_total)
        return await correct(lambda slot, at: corrections.correct(store, slot, at, event, *values, names_max, expected))

    @router.delete("/event/{name}")
    async def delete_event(event: EventInPath) -> CorrectedRow:
        """Delete an event and all its data: counts, total, series, history, users and sessions."""
        return await correct(lambda slot, at: corrections.delete(store, slot, at, event))
