"""HTTP out: counts, rankings, series, history and health."""

import base64
import csv
import heapq
import io
import math
from collections import Counter
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

import msgspec
from fastapi import Depends, FastAPI, Path, Query, Request, Response
from typing_extensions import TypedDict

from app.events import EVERYTHING, TOTAL, Bucket, Clock, InvalidName, Step, day_start, event_name
from app.ingest import path_name
from app.limits import Limits
from app.problems import Problem, documented
from app.stores.base import CounterStore

POINTS_MAX = 1440  # the minutes of a day
_WINDOWS: dict[str, tuple[Step, int]] = {"1h": ("minute", 60), "7d": ("day", 7)}
LINES_MAX = 100  # events in one answer of /series

Format = Literal["json", "csv"]
Day = Annotated[str, Path(pattern=r"^\d{4}-\d\d-\d\d$")]
PathEvent = Annotated[str, Depends(path_name)]
Points = Annotated[int, Query(ge=1, le=POINTS_MAX)]


EventValue = TypedDict("EventValue", {"eventName": str, "count": int, "total": int, "day": str})
Ranked = TypedDict("Ranked", {"rank": int, "eventName": str, "count": int})
Point = TypedDict("Point", {"start": str, "count": int})
Series = TypedDict("Series", {"eventName": str | None, "step": Step, "points": list[Point]})
DayRow = TypedDict("DayRow", {"day": str, "hits": int, "events": int, "parts": int})
Part = TypedDict("Part", {"until": str, "counts": dict[str, int]})
ClosedDay = TypedDict("ClosedDay", {"day": str, "parts": list[Part]})


def add_routes(app: FastAPI, store: CounterStore, clock: Clock, limits: Limits, days_kept: int) -> None:
    calendar = clock.calendar

    async def charge(request: Request, response: Response) -> None:
        limits.charge(request, "read")
        stale = store.condition().stale_seconds
        if stale is not None:
            response.headers["Tally-Stale"] = str(round(stale))

    every: dict[str, Any] = {"dependencies": [Depends(charge)], "responses": documented(422, 429, 503)}
    missing = every | {"responses": documented(404, 422, 429, 503)}

    @app.get("/event/{name}", **every)
    async def read_event(event: PathEvent) -> EventValue:
        """One event's count of the current day, and its total; 0 for an unknown one."""
        moment = clock.moment()
        day, total = await store.read([("day", moment.day), TOTAL], [event])
        return EventValue(eventName=event, count=day.get(event, 0), total=total.get(event, 0), day=moment.date)

    @app.get("/events", **every)
    async def read_events(
        response: Response,
        prefix: str = "",
        sort: Literal["name", "-count"] = "name",
        limit: Annotated[int | None, Query(ge=1)] = None,
        after: str | None = None,
    ) -> dict[str, int]:
        """All counts of the current day. A limit that left some out answers with a Link to the next page."""
        counts = await _counts(("day", clock.moment().day))
        past = (-math.inf, "") if after is None else _place(after)
        ordered = sorted((-n * (sort == "-count"), event) for event, n in counts.items() if event.startswith(prefix))
        places = [place for place in ordered if place > past]
        if limit is not None and limit < len(places):
            places = places[:limit]
            query = {"prefix": prefix, "sort": sort, "limit": limit, "after": _cursor(places[-1])}
            response.headers["Link"] = f'</events?{urlencode(query)}>; rel="next"'
        return {event: counts[event] for _, event in places}

    @app.get("/leaderboard", **every)
    async def read_leaderboard(
        limit: Annotated[int, Query(ge=1, le=1000)] = 10, window: Literal["today", "total", "1h", "7d"] = "today"
    ) -> list[Ranked]:
        """The events with the largest counts: of the day, of all time, of the last 60 minutes, of the last 7 days."""
        step, points = _WINDOWS.get(window, ("day", 1))
        counts = await _counts(*([TOTAL] if window == "total" else _buckets(step, points)))
        best = heapq.nsmallest(limit, counts.items(), key=lambda item: (-item[1], item[0]))
        return [Ranked(rank=i, eventName=event, count=count) for i, (event, count) in enumerate(best, 1)]

    @app.get("/event/{name}/series", **every)
    async def read_event_series(event: PathEvent, step: Step = "minute", points: Points = 60) -> Series:
        """One event's counts by minute, hour or day, oldest first; the last one is running."""
        return (await _series([event], step, points))[0]

    @app.get("/series", **every)
    async def read_series(
        event: Annotated[list[str] | None, Query(max_length=LINES_MAX)] = None,
        step: Step = "minute",
        points: Points = 60,
    ) -> Series | list[Series]:
        """All events together; or, with ?event=a&event=b, a list of those."""
        if not event:
            return (await _series([EVERYTHING], step, points))[0]
        try:
            return await _series([event_name(text) for text in event], step, points)
        except InvalidName as error:
            raise Problem(422, f"event: {error}") from None

    @app.get("/history", response_model=list[DayRow], **every)
    async def read_days(format: Format = "json") -> Any:  # noqa: A002 # the API's word
        """The closed days on which something was counted, newest first."""
        starts = _buckets("day", days_kept)[-2::-1]
        sums = await store.read(starts, [EVERYTHING])
        hits = {start: counts[EVERYTHING] for start, counts in zip(starts, sums, strict=True) if counts.get(EVERYTHING)}
        sizes = await store.sizes(list(hits))
        rows = [
            DayRow(day=calendar.moment(start).date, hits=n, events=size, parts=1)
            for ((_, start), n), size in zip(hits.items(), sizes, strict=True)
        ]
        return _csv(["day", "hits", "events", "parts"], [list(r.values()) for r in rows]) if format == "csv" else rows

    @app.get("/history/{day}", response_model=ClosedDay, **missing)
    async def read_day(day: Day, format: Format = "json") -> Any:  # noqa: A002 # the API's word
        """A closed day's counts."""
        try:
            begun = date.fromisoformat(day)
        except ValueError:
            raise Problem(422, "day: not a date") from None
        if not "1970-01-02" <= day < clock.moment().date:
            raise Problem(404, "no day that is over")
        end = day_start(calendar.zone, begun + timedelta(days=1))
        counts = dict(sorted((await _counts(("day", day_start(calendar.zone, begun)))).items()))
        if format == "csv":
            return _csv(["event", "count"], [list(item) for item in counts.items()])
        return ClosedDay(day=day, parts=[Part(until=_stamp(end), counts=counts)])

    def _buckets(step: Step, points: int) -> list[Bucket]:
        return [(step, start) for start in calendar.starts(step, clock.at(), points)]

    async def _counts(*buckets: Bucket) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for found in await store.read(buckets):
            counts.update(found)
        del counts[EVERYTHING]
        return dict(counts)

    async def _series(events: Sequence[str], step: Step, points: int) -> list[Series]:
        starts = calendar.starts(step, clock.at(), points)
        found = await store.read([(step, start) for start in starts], events)
        stamped = [(_stamp(start), counts) for start, counts in zip(starts, found, strict=True)]
        return [
            Series(eventName=e or None, step=step, points=[Point(start=s, count=c.get(e, 0)) for s, c in stamped])
            for e in events
        ]

    def _stamp(second: int) -> str:
        return datetime.fromtimestamp(second, calendar.zone).isoformat()


def _csv(head: list[str], rows: list[list[object]]) -> Response:
    """RFC 4180; a cell that a spreadsheet would take for a formula is told to be text."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(head)
    writer.writerows([f"'{cell}" if str(cell).startswith(tuple("=+-@\t\r")) else cell for cell in row] for row in rows)
    return Response(out.getvalue(), media_type="text/csv; charset=utf-8")


def _cursor(place: tuple[int, str]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode()


def _place(cursor: str) -> tuple[int, str]:
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(cursor), type=tuple[int, str])
    except (ValueError, msgspec.DecodeError):
        raise Problem(422, "after: not a cursor of this listing") from None
