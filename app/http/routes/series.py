"""GET /event/{name}/series and /series: counts by minute, hour or day."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Response
from typing_extensions import TypedDict

from app.domain.buckets import ALL_EVENTS, Step
from app.http.errors import Problem
from app.http.parsing import QUERY_EVENTS_MAX, EventInPath, event_in_query
from app.http.problem_kinds import INVALID_REQUEST
from app.http.queries import SLICE, CountQueries, slices
from app.http.responses import FastJSONResponse

POINTS_MAX = 1440  # the minutes of a day
COUNTS_MAX = 20_000  # counts in one response: events times points

Points = Annotated[int, Query(ge=1, le=POINTS_MAX)]
Point = TypedDict("Point", {"start": str, "count": int})
Series = TypedDict("Series", {"eventName": str | None, "step": Step, "points": list[Point]})


def add_routes(router: APIRouter, queries: CountQueries) -> None:
    """Add the routes that read counts over time."""

    @router.get("/event/{name}/series")
    async def read_event_series(event: EventInPath, step: Step = "minute", points: Points = 60) -> Series:
        """Return an event's counts by minute, hour or day, oldest first. The last point is still running."""
        return (await _read_series(queries, [event], step, points))[0]

    @router.get("/series", response_model=Series | list[Series])
    async def read_series(
        response: Response,
        event: Annotated[list[str] | None, Query(max_length=QUERY_EVENTS_MAX)] = None,
        step: Step = "minute",
        points: Points = 60,
    ) -> Response:
        """Return the series of all events together, or with `?event=a&event=b` a list with a series of each.

        A response has at most 20,000 counts: events times points.
        """
        events = [event_in_query(text) for text in event or ()] or [ALL_EVENTS]
        found = await _read_series(queries, events, step, points)
        return FastJSONResponse(found if event else found[0], response.raw_headers)


async def _read_series(queries: CountQueries, events: Sequence[str], step: Step, points: int) -> list[Series]:
    if len(events) * points > COUNTS_MAX:
        wanted = f"{len(events)} events of {points} points are {len(events) * points} counts"
        text = f"points: {wanted}, and one response has at most {COUNTS_MAX}: request fewer of either"
        raise Problem(INVALID_REQUEST, text)
    buckets = queries.buckets(step, points)
    found = await queries.store.read(buckets, events)
    starts = [queries.calendar.local(bucket.start).isoformat() for bucket in buckets]
    series = []
    async for part in slices(events, max(1, SLICE // points)):
        for event in part:
            counts = [Point(start=start, count=c.get(event, 0)) for start, c in zip(starts, found, strict=True)]
            series.append(Series(eventName=event or None, step=step, points=counts))
    return series
