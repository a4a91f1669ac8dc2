"""GET /event/{name}/series and /series: counts by minute, hour or day."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Response
from typing_extensions import TypedDict

from app.domain.buckets import ALL_EVENTS, Step
from app.domain.calendar import Calendar, day_start
from app.http.errors import Problem
from app.http.parsing import QUERY_EVENTS_MAX, EventInPath, event_in_query
from app.http.problem_kinds import INVALID_REQUEST
from app.http.queries import SLICE, CountQueries, slices
from app.http.responses import FastJSONResponse

POINTS_MAX = 1440  # the minutes of a day
COUNTS_MAX = 20_000  # counts in one response: events times points

_FIRST_YEAR, _LAST_YEAR = 1971, 2999  # calendars need some days before and after

Until = Annotated[str | None, Query(max_length=40)]
Points = Annotated[int, Query(ge=1, le=POINTS_MAX)]
Point = TypedDict("Point", {"start": str, "count": int})
Series = TypedDict("Series", {"eventName": str | None, "step": Step, "points": list[Point]})


def add_routes(router: APIRouter, queries: CountQueries) -> None:
    """Add the routes that read counts over time."""

    @router.get("/event/{name}/series")
    async def read_event_series(
        event: EventInPath, step: Step = "minute", points: Points = 60, until: Until = None
    ) -> Series:
        """Return an event's counts by minute, hour or day, oldest first.

        The last point is still running, or contains the end of the day `until`, or the time `until`.
        """
        return (await _read_series(queries, [event], step, points, until))[0]

    @router.get("/series", response_model=Series | list[Series])
    async def read_series(
        response: Response,
        event: Annotated[list[str] | None, Query(max_length=QUERY_EVENTS_MAX)] = None,
        step: Step = "minute",
        points: Points = 60,
        until: Until = None,
    ) -> Response:
        """Return the series of all events together, or with `?event=a&event=b` a list with a series of each.

        A response has at most 20,000 counts: events times points.
        """
        events = [event_in_query(text) for text in event or ()] or [ALL_EVENTS]
        found = await _read_series(queries, events, step, points, until)
        return FastJSONResponse(found if event else found[0], response.raw_headers)


async def _read_series(
    queries: CountQueries, events: Sequence[str], step: Step, points: int, until: str | None
) -> list[Series]:
    if len(events) * points > COUNTS_MAX:
        wanted = f"{len(events)} events of {points} points are {len(events) * points} counts"
        text = f"points: {wanted}, and one response has at most {COUNTS_MAX}: request fewer of either"
        raise Problem(INVALID_REQUEST, text)
    buckets = queries.buckets(step, points, None if until is None else _second(queries.calendar, until))
    found = await queries.store.read(buckets, events)
    starts = [queries.calendar.local(bucket.start).isoformat() for bucket in buckets]
    series = []
    async for part in slices(events, max(1, SLICE // points)):
        for event in part:
            counts = [Point(start=start, count=c.get(event, 0)) for start, c in zip(starts, found, strict=True)]
            series.append(Series(eventName=event or None, step=step, points=counts))
    return series


def _second(calendar: Calendar, until: str) -> float:
    """Return the UTC second of a time with an offset, or the last one of a day. Raises Problem (422)."""
    try:
        at = datetime.fromisoformat(until)
    except ValueError:
        at = None
    is_day = len(until) == len("2026-11-19")
    if at is None or not _FIRST_YEAR <= at.year <= _LAST_YEAR or is_day != (at.tzinfo is None):
        detail = "until: not a day such as 2026-11-19, nor a time such as 2026-11-19T14:00:00Z, from 1971 to 2999"
        raise Problem(INVALID_REQUEST, detail)
    return at.timestamp() if at.tzinfo else day_start(calendar.zone, at.date() + timedelta(days=1)) - 1
