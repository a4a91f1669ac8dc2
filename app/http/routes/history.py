"""GET /history and /history/{day}: past days, their parts and corrections."""

from collections import Counter
from collections.abc import Iterable
from datetime import date, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Response
from typing_extensions import TypedDict

from app.corrections import history
from app.domain.buckets import ALL_EVENTS, BEFORE_RESET, Bucket
from app.domain.calendar import day_start
from app.http.errors import Problem
from app.http.problem_kinds import INVALID_REQUEST, NOT_FOUND
from app.http.queries import CountQueries
from app.http.responses import CorrectedRow, correction_row, csv_response

Format = Literal["json", "csv"]
Day = Annotated[str, Path(pattern=r"^\d{4}-\d\d-\d\d$")]
DaySummary = TypedDict("DaySummary", {"day": str, "hits": int, "events": int, "parts": int})
DayPart = TypedDict("DayPart", {"until": str, "counts": dict[str, int]})
DayDetail = TypedDict("DayDetail", {"day": str, "parts": list[DayPart], "corrections": list[CorrectedRow]})

_CSV: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}}


def add_routes(router: APIRouter, queries: CountQueries, days_kept: int) -> None:
    """Add the routes that read past days, of which the store keeps `days_kept`."""

    @router.get("/history", response_model=list[DaySummary], responses=_CSV)
    async def read_days(response: Response, format: Format = "json") -> Any:  # noqa: A002 # the API's word
        """Return the past days that have hits, newest first. A day that was reset has more than one part."""
        rows = await _summarize_days(queries, days_kept)
        if format == "csv":
            return csv_response(response, ["day", "hits", "events", "parts"], [list(row.values()) for row in rows])
        return rows

    @router.get("/history/{day}", response_model=DayDetail, responses=_CSV)
    async def read_day(response: Response, day: Day, format: Format = "json") -> Any:  # noqa: A002 # the API's word
        """Return a past day's counts, with one more part for each reset, and the day's corrections."""
        start, end = _bounds_of_past_day(queries, day)
        async with queries.large_reads:
            parts = await _read_parts(queries, start, end)
        if format == "csv":
            rows = [[event, count, part["until"]] for part in parts for event, count in part["counts"].items()]
            return csv_response(response, ["event", "count", "until"], rows)
        corrections = [correction_row(queries.calendar, record) for record in await history(queries.store, start)]
        return DayDetail(day=day, parts=parts, corrections=corrections)


async def _summarize_days(queries: CountQueries, days_kept: int) -> list[DaySummary]:
    buckets = queries.buckets("day", days_kept)[-2::-1]
    sums = await queries.store.read(buckets, [ALL_EVENTS])
    hits = {bucket: n for bucket, counts in zip(buckets, sums, strict=True) if (n := counts.get(ALL_EVENTS))}
    sizes = await queries.store.sizes(list(hits))
    resets = Counter(bucket.start for bucket in await _reset_buckets(queries, [day.start for day in hits]))
    return [
        DaySummary(day=queries.calendar.slot(day.start).date, hits=n, events=size, parts=1 + resets[day.start])
        for (day, n), size in zip(hits.items(), sizes, strict=True)
    ]


def _bounds_of_past_day(queries: CountQueries, day: str) -> tuple[int, int]:
    """Return the UTC seconds at which the day and the next one start. Raises Problem (404, 422)."""
    try:
        first = date.fromisoformat(day)
    except ValueError:
        raise Problem(INVALID_REQUEST, "day: not a valid date; use YYYY-MM-DD") from None
    if not "1970-01-02" <= day < queries.clock.slot().date:
        raise Problem(NOT_FOUND, "this day is not over yet, or before 1970; GET /events has today's counts")
    start, end = (day_start(queries.calendar.zone, first + timedelta(days=n)) for n in (0, 1))
    return start, end


async def _read_parts(queries: CountQueries, start: int, end: int) -> list[DayPart]:
    """Return the counts up to each reset of a day, and those after the last one."""
    resets = sorted(await _reset_buckets(queries, [start]))
    found = [*await queries.store.read(resets), await queries.store.counts(start)]
    until = [*(int(bucket.dimension.removeprefix(BEFORE_RESET)) for bucket in resets), end]
    return [
        DayPart(
            until=queries.calendar.local(at).isoformat(),
            counts={event: n for event, n in sorted(counts.items()) if event},
        )
        for at, counts in zip(until, found, strict=True)
    ]


async def _reset_buckets(queries: CountQueries, days: list[int]) -> Iterable[Bucket]:
    buckets = await queries.store.list_buckets(days)
    return [bucket for bucket in buckets if bucket.dimension.startswith(BEFORE_RESET)]
