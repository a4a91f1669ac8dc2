"""GET /history and /history/{day}: past days, their parts and corrections."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Response
from typing_extensions import TypedDict

from app.corrections import history
from app.domain.buckets import ALL_EVENTS, BEFORE_RESET, Bucket
from app.domain.calendar import Calendar, day_start
from app.http.errors import Problem
from app.http.problem_kinds import INVALID_REQUEST, NOT_FOUND
from app.http.queries import CountQueries
from app.http.responses import CorrectedRow, correction_row, csv_response
from app.notes import Note, Notes
from app.stores.base import StoreUnavailable

Format = Literal["json", "csv"]
Day = Annotated[str, Path(pattern=r"^\d{4}-\d\d-\d\d$")]
DaySummary = TypedDict("DaySummary", {"day": str, "hits": int, "events": int, "parts": int})
DayPart = TypedDict("DayPart", {"until": str, "counts": dict[str, int]})
DayDetail = TypedDict("DayDetail", {"day": str, "parts": list[DayPart], "corrections": list[CorrectedRow]})

_CSV: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}}


def add_routes(router: APIRouter, queries: CountQueries, notes: Notes, days_kept: int) -> None:
    """Add the routes that read past days, of which the store keeps `days_kept`."""

    @router.get("/history", response_model=list[DaySummary], responses=_CSV)
    async def list_days(response: Response, format: Format = "json") -> Any:  # noqa: A002 # the API's word
        """Return the past days that have hits, newest first. A day that was reset has more than one part."""
        rows = await _summarize_days(queries, days_kept)
        if format == "csv":
            texts = _note_texts(queries.calendar, await _known_notes(notes), by_day=True)
            cells = [[*row.values(), texts.get(row["day"], "")] for row in rows]
            return csv_response(response, ["day", "hits", "events", "parts", "notes"], cells)
        return rows

    @router.get("/history/{day}", response_model=DayDetail, responses=_CSV)
    async def read_day(response: Response, day: Day, format: Format = "json") -> Any:  # noqa: A002 # the API's word
        """Return a past day's counts, with one more part for each reset, and the day's corrections."""
        start, end = _bounds_of_past_day(queries, day)
        async with queries.large_reads:
            parts = await _read_parts(queries, start, end)
        if format == "csv":
            rows = _csv_rows(queries.calendar, parts, await _known_notes(notes, start, end))
            return csv_response(response, ["event", "count", "until", "notes"], rows)
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


def _csv_rows(calendar: Calendar, parts: Iterable[DayPart], notes: Sequence[Note]) -> list[list[Any]]:
    """Return a row for each event of each part. Notes of all events have a row without an event and a count."""
    rows: list[list[Any]] = []
    began = -math.inf
    for part in parts:
        end = datetime.fromisoformat(part["until"]).timestamp()
        texts = _note_texts(calendar, [note for note in notes if began <= note.at < end], by_day=False)
        counts = part["counts"] | {event: 0 for event in texts if event not in part["counts"]}
        rows += [[event, n if event else "", part["until"], texts.get(event, "")] for event, n in counts.items()]
        began = end
    return rows


async def _known_notes(notes: Notes, start: float = -math.inf, end: float = math.inf) -> list[Note]:
    """Return no notes while the store is unreachable, because the last known counts can still be read."""
    try:
        return await notes.list_between(start, end)
    except StoreUnavailable:
        return []


def _note_texts(calendar: Calendar, notes: Iterable[Note], *, by_day: bool) -> dict[str, str]:
    """Return the notes of each day, or of each event, in one line."""
    texts: defaultdict[str, list[str]] = defaultdict(list)
    for note in notes:
        time, event = calendar.local(note.at), note.event or ""
        text = f"{event}: {note.text}" if by_day and event else note.text
        texts[f"{time:%Y-%m-%d}" if by_day else event].append(f"{time:%H:%M} {text}")
    return {key: "; ".join(lines) for key, lines in texts.items()}


async def _reset_buckets(queries: CountQueries, days: list[int]) -> Iterable[Bucket]:
    buckets = await queries.store.list_buckets(days)
    return [bucket for bucket in buckets if bucket.dimension.startswith(BEFORE_RESET)]
