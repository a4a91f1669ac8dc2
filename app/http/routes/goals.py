"""GET /goals, and PUT and DELETE /goals/{name}: the number that an event should reach, and how far it is."""

from collections.abc import Mapping
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Request
from typing_extensions import TypedDict

from app.domain.buckets import TOTAL
from app.domain.calendar import Clock, TimeSlot
from app.domain.counting import COUNT_MAX
from app.goals import GOALS_MAX, Goal, Goals, TooManyGoals
from app.http.errors import Problem
from app.http.openapi import json_body
from app.http.parsing import HIT_BYTES_MAX, decode, event_name_in_path, read_body
from app.http.problem_kinds import GOAL_LIMIT, INVALID_REQUEST, NOT_FOUND
from app.stores.base import CounterStore

GoalEvent = Annotated[str, Depends(event_name_in_path(b"goals"))]
GoalRow = TypedDict("GoalRow", {"eventName": str, "goal": dict[str, int], "count": int, "total": int, "day": str})

_NUMBER = {"type": "integer", "minimum": 1, "maximum": COUNT_MAX}
_SCHEMA = {
    "type": "object",
    "properties": {"count": _NUMBER, "total": _NUMBER},
    "additionalProperties": False,
    "minProperties": 1,
    "maxProperties": 1,
}
_BODY = json_body(_SCHEMA, {"count": 100})


def add_routes(reads: APIRouter, writes: APIRouter, goals: Goals, store: CounterStore, clock: Clock) -> None:
    """Add the routes of goals."""

    @reads.get("/goals")
    async def list_goals() -> list[GoalRow]:
        """Return all goals by event, with the present numbers."""
        return await _rows(store, clock.slot(), await goals.read())

    @writes.put("/goals/{name}", openapi_extra=_BODY)
    async def set_goal(request: Request, event: GoalEvent) -> GoalRow:
        """Set the goal of an event: the count of each day, or the total. It replaces the present goal."""
        goal = decode(await read_body(request, HIT_BYTES_MAX), Goal)
        if error := goal.error():
            raise Problem(INVALID_REQUEST, f"body: {error}")
        try:
            await goals.set(event, goal)
        except TooManyGoals:
            detail = f"there are {GOALS_MAX} goals, the most allowed; delete one"
            raise Problem(GOAL_LIMIT, detail, {"Retry-After": "3600"}) from None
        return (await _rows(store, clock.slot(), {event: goal}))[0]

    @writes.delete("/goals/{name}")
    async def delete_goal(event: GoalEvent) -> GoalRow:
        """Delete the goal of an event."""
        goal = await goals.delete(event)
        if goal is None:
            raise Problem(NOT_FOUND, "this event has no goal; GET /goals lists them")
        return (await _rows(store, clock.slot(), {event: goal}))[0]


async def _rows(store: CounterStore, slot: TimeSlot, goals: Mapping[str, Goal]) -> list[GoalRow]:
    """Return goals with the present count and total of their events."""
    if not goals:
        return []
    hits, corrections, totals = await store.read([*slot.day_buckets, TOTAL], list(goals))
    return [
        GoalRow(
            eventName=event,
            goal=msgspec.to_builtins(goal),
            count=hits.get(event, 0) + corrections.get(event, 0),
            total=totals.get(event, 0),
            day=slot.date,
        )
        for event, goal in goals.items()
    ]
