"""HTTP out: counts, rankings, series, history and health."""

import asyncio
import base64
import csv
import heapq
import io
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from itertools import chain, islice
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlencode

import msgspec
from fastapi import Depends, FastAPI, Path, Query, Request, Response
from typing_extensions import TypedDict

from app.corrections import CorrectionRecord, history
from app.domain.buckets import ALL_EVENTS, BEFORE_RESET, TOTAL, Bucket, Step, VisitorKind
from app.domain.calendar import Calendar, Clock, day_start
from app.domain.names import InvalidName, event_name
from app.http.errors import Problem, told
from app.http.permissions import Headers
from app.http.rate_limits import RateLimits
from app.http.routes.count import EVENT_ROUTE, EventRoute, FastJSONResponse, path_name, path_visitor
from app.stores.base import CounterStore
from app.stores.rules import RANKED_VISITORS_MAX

POINTS_MAX = 1440  # the minutes of a day
_WINDOWS: dict[str, tuple[Step, int]] = {"1h": ("minute", 60), "7d": ("day", 7)}
DAYS_MAX = 400  # over which visitors are told apart in one answer
ACTIVE_MINUTES = 5  # since its last hit, in which a session is active
LINES_MAX = 100  # events in one answer of /series
SLICE = 2000  # events looked at in one go, which takes about a millisecond
PAUSE_SECONDS = 0.001  # after it, at least: less is nothing to the event loop

T = TypeVar("T")

Format = Literal["json", "csv"]
Day = Annotated[str, Path(pattern=r"^\d{4}-\d\d-\d\d$")]
PathEvent = Annotated[str, Depends(path_name)]
PathVisitor = Annotated[str, Depends(path_visitor)]
Days = Annotated[int, Query(ge=1, le=DAYS_MAX)]
Points = Annotated[int, Query(ge=1, le=POINTS_MAX)]
Charge = Callable[[Request, Response], Awaitable[None]]  # a read, and say how old its answer is
Place = tuple[float, str]  # in an order: what sorts first, and the name
_FIRST, _LAST = (-math.inf, ""), (math.inf, "")

EventValue = TypedDict("EventValue", {"eventName": str, "count": int, "total": int, "day": str})
Ranked = TypedDict("Ranked", {"rank": int, "eventName": str, "count": int})
Point = TypedDict("Point", {"start": str, "count": int})
Series = TypedDict("Series", {"eventName": str | None, "step": Step, "points": list[Point]})
DayRow = TypedDict("DayRow", {"day": str, "hits": int, "events": int, "parts": int})
Part = TypedDict("Part", {"until": str, "counts": dict[str, int]})
Numbers = TypedDict("Numbers", {"count": int, "total": int})
CorrectedRow = TypedDict(
    "CorrectedRow", {"at": str, "action": str, "eventName": str | None, "before": Numbers, "after": Numbers}
)
ClosedDay = TypedDict("ClosedDay", {"day": str, "parts": list[Part], "corrections": list[CorrectedRow]})
RankedUser = TypedDict("RankedUser", {"rank": int, "user": str, "count": int})
UserCounts = TypedDict("UserCounts", {"user": str, "days": int, "counts": dict[str, int]})
SessionCounts = TypedDict("SessionCounts", {"session": str, "days": int, "counts": dict[str, int]})
Audience = TypedDict(
    "Audience", {"users": int, "sessions": int, "activeSessions": int, "days": int, "exact": bool, "error": float}
)


class Reads:
    """What routes ask of the store, never holding up hits: what is long is done in slices."""

    def __init__(self, store: CounterStore, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.calendar = clock.calendar

    def buckets(self, step: Step, points: int) -> list[Bucket]:
        return [Bucket(step, start) for start in self.calendar.starts(step, self.clock.at(), points)]

    async def today(self) -> Mapping[str, int]:
        """All counts of the current day, and their sum under EVERYTHING."""
        return await self.store.counts(self.clock.slot().day)

    async def sums(self, buckets: Sequence[Bucket]) -> Mapping[str, int]:
        """The sum of these buckets for every event and EVERYTHING, or for every visitor."""
        first, *others = await self.store.read(buckets)
        if not others:
            return first
        sums = dict(first)
        for found in others:
            async for part in _slices(found.items()):
                for event, count in part:
                    sums[event] = sums.get(event, 0) + count
        return sums

    async def ranked(self, counts: Mapping[str, int], limit: int) -> list[tuple[int, str, int]]:
        """Rank, name and count of those with the largest counts."""
        best = await _best(((-count, name) for name, count in counts.items() if count and name), limit)
        return [(rank, name, counts[name]) for rank, (_, name) in enumerate(best, 1)]

    async def audience(self, event: str, days: int) -> Audience:
        """Who came to an event, or to any."""
        minutes, dates = self.buckets("minute", ACTIVE_MINUTES), self.buckets("day", days)
        asked = (("user", dates), ("session", dates), ("session", minutes))
        found = [
            await self.store.count_distinct([b._replace(dimension=f"{kind}:{event}") for b in of]) for kind, of in asked
        ]
        users, sessions, active = (distinct.number for distinct in found)
        error = max(distinct.error for distinct in found)
        return Audience(users=users, sessions=sessions, activeSessions=active, days=days, exact=not error, error=error)

    async def series(self, events: Sequence[str], step: Step, points: int) -> list[Series]:
        starts = self.calendar.starts(step, self.clock.at(), points)
        found = await self.store.read([Bucket(step, start) for start in starts], events)
        stamped = [(self.stamp(start), counts) for start, counts in zip(starts, found, strict=True)]
        return [
            Series(eventName=e or None, step=step, points=[Point(start=s, count=c.get(e, 0)) for s, c in stamped])
            for e in events
        ]

    def stamp(self, second: int) -> str:
        return datetime.fromtimestamp(second, self.calendar.zone).isoformat()


def add_routes(
    app: FastAPI, store: CounterStore, clock: Clock, limits: RateLimits, days_kept: int
) -> tuple[Charge, EventRoute]:
    def pay(request: Request) -> Headers:
        limits.charge(request, "read")
        stale = store.status().stale_seconds
        return [] if stale is None else [(b"tally-stale", b"%d" % round(stale))]

    async def charge(request: Request, response: Response) -> None:
        response.raw_headers += pay(request)

    @app.get(EVENT_ROUTE, response_model=EventValue)
    async def read_event(request: Request, event: PathEvent) -> Response:
        """One event's count of the current day, and its total; 0 for an unknown one."""
        headers, slot = pay(request), clock.slot()
        hits, offset, total = (counts.get(event, 0) for counts in await store.read([*slot.day_buckets, TOTAL], [event]))
        return FastJSONResponse(EventValue(eventName=event, count=hits + offset, total=total, day=slot.date), headers)

    reads = Reads(store, clock)
    every: dict[str, Any] = {"dependencies": [Depends(charge)]}
    _add_counts(app, reads, every)
    _add_series(app, reads, every)
    _add_audience(app, reads, every)
    _add_history(app, reads, every, days_kept)
    return charge, read_event


def _add_counts(app: FastAPI, reads: Reads, every: dict[str, Any]) -> None:
    @app.get("/events", response_model=dict[str, int], responses={200: told("Link")}, **every)
    async def read_events(
        response: Response,
        prefix: str = "",
        sort: Literal["name", "-count"] = "name",
        limit: Annotated[int | None, Query(ge=1)] = None,
        after: str | None = None,
    ) -> Response:
        """All counts of the current day. A limit that left some out answers with a Link to the next page."""
        past = _FIRST if after is None else _place(after)
        counts = await reads.today()
        places = ((-n * (sort == "-count"), event) for event, n in counts.items() if event)
        page = await _best(places, None if limit is None else limit + 1, past, prefix)
        if limit is not None and limit < len(page):
            page = page[:limit]
            query = {"prefix": prefix, "sort": sort, "limit": limit, "after": _cursor(page[-1])}
            response.headers["Link"] = f'</events?{urlencode(query)}>; rel="next"'
        body = [msgspec.json.encode({event: counts[event] for _, event in part})[1:-1] async for part in _slices(page)]
        return Response(b"{%b}" % b",".join(body), headers=dict(response.headers), media_type="application/json")

    @app.get(
        "/leaderboard", response_model=list[Ranked] | list[RankedUser], responses={200: told("Tally-Partial")}, **every
    )
    async def read_leaderboard(
        response: Response,
        limit: Annotated[int, Query(ge=1, le=1000)] = 10,
        window: Literal["today", "total", "1h", "7d"] = "today",
        event: str | None = None,
    ) -> Any:
        """The events with the largest counts: of the day, of all time, of the last 60 minutes, of the last 7 days.

        With ?event= its users; where only the first of them are ranked, the header Tally-Partial says so.
        """
        step, points = _WINDOWS.get(window, ("day", 1))
        buckets = [TOTAL] if window == "total" else reads.buckets(step, points)
        if event is None:
            counts = await (reads.today() if window == "today" else reads.sums(buckets))
            return [Ranked(rank=r, eventName=name, count=n) for r, name, n in await reads.ranked(counts, limit)]
        buckets = [bucket._replace(dimension=f"user:{_named(event)}") for bucket in buckets]
        counts = await reads.sums(buckets)
        _tell_partial(response, max(await reads.store.sizes(buckets)))
        return [RankedUser(rank=r, user=user, count=n) for r, user, n in await reads.ranked(counts, limit)]


def _add_audience(app: FastAPI, reads: Reads, every: dict[str, Any]) -> None:
    @app.get("/event/{name}/audience", **every)
    async def read_event_audience(event: PathEvent, days: Days = 1) -> Audience:
        """How many users and sessions came to an event in these days, and how many sessions in the last 5 minutes."""
        return await reads.audience(event, days)

    @app.get("/audience", **every)
    async def read_audience(days: Days = 1) -> Audience:
        """The same of all events together."""
        return await reads.audience(ALL_EVENTS, days)

    @app.get("/user/{id:path}", responses={200: told("Tally-Partial")}, **every)
    async def read_user(response: Response, visitor: PathVisitor, days: Days = 1) -> UserCounts:
        """What a user did in these days."""
        return UserCounts(user=visitor, days=days, counts=await visited("user", visitor, days, response))

    @app.get("/session/{id:path}", responses={200: told("Tally-Partial")}, **every)
    async def read_session(response: Response, visitor: PathVisitor, days: Days = 1) -> SessionCounts:
        """What a session did in these days."""
        return SessionCounts(session=visitor, days=days, counts=await visited("session", visitor, days, response))

    async def visited(kind: VisitorKind, visitor: str, days: int, response: Response) -> dict[str, int]:
        buckets = reads.buckets("day", days)
        everyone = [await reads.store.count_distinct([bucket._replace(dimension=f"{kind}:")]) for bucket in buckets]
        _tell_partial(response, max(distinct.number for distinct in everyone))
        counts: dict[str, int] = {}
        for found in await reads.store.visits(kind, visitor, [bucket.start for bucket in buckets]):
            for event, count in found.items():
                counts[event] = counts.get(event, 0) + count
        return dict(sorted(counts.items()))


def _add_series(app: FastAPI, reads: Reads, every: dict[str, Any]) -> None:
    @app.get("/event/{name}/series", **every)
    async def read_event_series(event: PathEvent, step: Step = "minute", points: Points = 60) -> Series:
        """One event's counts by minute, hour or day, oldest first; the last one is running."""
        return (await reads.series([event], step, points))[0]

    @app.get("/series", response_model=Series | list[Series], **every)
    async def read_series(
        response: Response,
        event: Annotated[list[str] | None, Query(max_length=LINES_MAX)] = None,
        step: Step = "minute",
        points: Points = 60,
    ) -> Response:
        """All events together; or, with ?event=a&event=b, a list of those."""
        found = await reads.series([_named(text) for text in event or ()] or [ALL_EVENTS], step, points)
        return FastJSONResponse(found if event else found[0], response.raw_headers)


def _add_history(app: FastAPI, reads: Reads, every: dict[str, Any], days_kept: int) -> None:
    listed = every | {"responses": {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}}}

    @app.get("/history", response_model=list[DayRow], **listed)
    async def read_days(response: Response, format: Format = "json") -> Any:  # noqa: A002 # the API's word
        """The closed days on which something was counted, newest first; a day that was reset has several parts."""
        buckets = reads.buckets("day", days_kept)[-2::-1]
        sums = await reads.store.read(buckets, [ALL_EVENTS])
        hits = {bucket: n for bucket, counts in zip(buckets, sums, strict=True) if (n := counts.get(ALL_EVENTS))}
        sizes = await reads.store.sizes(list(hits))
        resets = Counter(
            b.start
            for b in await reads.store.list_buckets([day.start for day in hits])
            if b.dimension.startswith(BEFORE_RESET)
        )
        rows = [
            DayRow(day=reads.calendar.slot(day.start).date, hits=n, events=size, parts=1 + resets[day.start])
            for (day, n), size in zip(hits.items(), sizes, strict=True)
        ]
        if format == "csv":
            return _csv(response, ["day", "hits", "events", "parts"], [list(row.values()) for row in rows])
        return rows

    @app.get("/history/{day}", response_model=ClosedDay, **listed)
    async def read_day(response: Response, day: Day, format: Format = "json") -> Any:  # noqa: A002 # the API's word
        """A closed day's counts, the parts that resets have ended, and how the day's numbers were corrected."""
        try:
            begun = date.fromisoformat(day)
        except ValueError:
            raise Problem(422, "day: not a date") from None
        if not "1970-01-02" <= day < reads.clock.slot().date:
            raise Problem(404, "no day that is over")
        start, end = (day_start(reads.calendar.zone, begun + timedelta(days=n)) for n in (0, 1))
        ended = sorted(
            bucket for bucket in await reads.store.list_buckets([start]) if bucket.dimension.startswith(BEFORE_RESET)
        )
        found = [*await reads.store.read(ended), await reads.store.counts(start)]
        until = [*(int(bucket.dimension.removeprefix(BEFORE_RESET)) for bucket in ended), end]
        parts = []
        for at, counts in zip(until, found, strict=True):
            events = {event: n for event, n in sorted(counts.items()) if event}
            parts.append(Part(until=reads.stamp(at), counts=events))
        if format == "csv":
            rows = [[*item, p["until"]] for p in parts for item in p["counts"].items()]
            return _csv(response, ["event", "count", "until"], rows)
        corrections = [corrected_row(reads.calendar, logged) for logged in await history(reads.store, start)]
        return ClosedDay(day=day, parts=parts, corrections=corrections)


def corrected_row(calendar: Calendar, logged: CorrectionRecord) -> CorrectedRow:
    _, at, action, event, *values = logged
    before, after = (Numbers(count=value.count, total=value.total) for value in values)
    return CorrectedRow(
        at=calendar.local(at).isoformat(), action=action, eventName=event or None, before=before, after=after
    )


def _named(text: str) -> str:
    """An event that a query names."""
    try:
        return event_name(text)
    except InvalidName as error:
        raise Problem(422, f"event: {error}") from None


def _tell_partial(response: Response, visitors: int) -> None:
    if visitors >= RANKED_VISITORS_MAX:
        response.headers["Tally-Partial"] = f"of an event and day only the first {RANKED_VISITORS_MAX} ids are ranked"


async def _slices(items: Iterable[T]) -> AsyncIterator[list[T]]:
    """These, some at a time; in between, for as long as each took, the time is for hits."""
    left = iter(items)
    part = list(islice(left, SLICE))
    while part:
        begun = time.perf_counter()
        yield part
        if part := list(islice(left, SLICE)):
            await asyncio.sleep(max(PAUSE_SECONDS, time.perf_counter() - begun))


async def _best(places: Iterable[Place], limit: int | None, past: Place = _FIRST, prefix: str = "") -> list[Place]:
    """The first so many places after `past`, in order, of names that begin so."""
    runs: list[list[Place]] = []
    end = _LAST
    async for part in _slices(places):
        runs.append(sorted(place for place in part if past < place < end and place[1].startswith(prefix)))
        if limit is not None:
            best = sorted(chain(*runs))[:limit]
            runs = [best]
            end = best[-1] if len(best) == limit else _LAST
    return [place async for part in _slices(heapq.merge(*runs)) for place in part]


def _csv(response: Response, head: list[str], rows: list[list[Any]]) -> Response:
    """RFC 4180, with all text quoted; a cell that a spreadsheet would take for a formula is told to be text."""
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_NONNUMERIC)  # some spreadsheets end a cell at a semicolon
    writer.writerow(head)
    begins = tuple("=+-@\t\r\n＝＋－＠")  # noqa: RUF001 # a formula, as spreadsheets read it
    writer.writerows([f"'{cell}" if str(cell).startswith(begins) else cell for cell in row] for row in rows)
    return Response(out.getvalue(), headers=dict(response.headers), media_type="text/csv; charset=utf-8")


def _cursor(place: Place) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode()


def _place(cursor: str) -> Place:
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(cursor), type=tuple[int, str])
    except (ValueError, msgspec.DecodeError):
        raise Problem(422, "after: not a cursor of this listing") from None
