"""GET /movers: the events whose hits changed most, compared with the same time of an earlier day or week."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from itertools import chain
from typing import Annotated, Literal, NamedTuple, NotRequired

import msgspec
from fastapi import APIRouter, Query, Response
from typing_extensions import TypedDict

from app.domain.buckets import ALL_EVENTS, Bucket
from app.http.queries import CountQueries, add_counts, first_sorted, slices

ROWS_MAX = 10_000  # in one response
_DAY_SECONDS = 86_400
_HOURS_MAX = 25  # of a day on which the clock is put back by an hour

Window = Literal["today", "7d"]
# The days of a window, and how many days ago the periods end with which it is compared.
_WINDOWS: dict[Window, tuple[int, Sequence[int]]] = {"today": (1, (1, 7)), "7d": (7, (7,))}

Mover = TypedDict("Mover", {"eventName": str, "count": int, "previous": int, "weekAgo": NotRequired[int | None]})
Movers = TypedDict("Movers", {"until": str, "events": list[Mover]})


class _Found(NamedTuple):
    """The movers of a window, as JSON, as of a minute."""

    minute: int
    until: str
    rows: Sequence[bytes]


def add_routes(router: APIRouter, queries: CountQueries, hours_kept_days: int, days_kept: int) -> None:
    """Add the route. The store keeps hours and days for so many days."""
    reader = _MoverReader(queries, hours_kept_days, days_kept)

    @router.get("/movers", response_model=Movers)
    async def read_movers(
        response: Response, window: Window = "today", limit: Annotated[int, Query(ge=1, le=ROWS_MAX)] = 10
    ) -> Response:
        """Return the events whose hits changed most, up to the last full hour.

        Today is compared with yesterday, and with a week ago, up to the same hour. The last 7 days are compared with
        the 7 days before. A time before the first hit, or that is no longer kept, is not compared.
        """
        found = await reader.read(window)
        body = b'{"until":%b,"events":[%b]}' % (msgspec.json.encode(found.until), b",".join(found.rows[:limit]))
        return Response(body, headers=dict(response.headers), media_type="application/json")


class _MoverReader:
    """Finds movers. They are kept until the minute is over, because every dashboard asks for the same."""

    def __init__(self, queries: CountQueries, hours_kept_days: int, days_kept: int) -> None:
        self._queries, self._store = queries, queries.store
        self._hours_kept_seconds, self._days_kept = hours_kept_days * _DAY_SECONDS, days_kept
        self._found: dict[Window, _Found] = {}
        self._lock = asyncio.Lock()

    async def read(self, window: Window) -> _Found:
        async with self._lock:
            found = self._found.get(window)
            if found is None or found.minute != self._queries.clock.slot().minute:
                async with self._queries.large_reads:
                    found = self._found[window] = await self._find(window)
            return found

    async def _find(self, window: Window) -> _Found:
        days, earlier = _WINDOWS[window]
        slot = self._queries.clock.slot()
        current = await self._current(days)
        previous, *others = [await self._earlier(days, ago) for ago in earlier]
        rows = [] if previous is None else [row async for row in _rank(current, previous, others)]
        return _Found(slot.minute, self._queries.calendar.local(slot.hour).isoformat(), rows)

    async def _first_day(self) -> int:
        """Return the start of the first day with hits that is kept, or of today."""
        buckets = self._queries.buckets("day", self._days_kept)
        sums = await self._store.read(buckets, [ALL_EVENTS])
        return next((bucket.start for bucket, found in zip(buckets, sums, strict=True) if found), buckets[-1].start)

    async def _current(self, days: int) -> Mapping[str, int]:
        """Return the hits of the last days until the running hour."""
        *full_days, today = self._queries.buckets("day", days)
        sums = await self._sum(full_days)
        running, hits = await self._store.read([*self._queries.buckets("hour", 1), today])
        await add_counts(sums, hits)
        await add_counts(sums, running, -1)
        return sums

    async def _earlier(self, days: int, ago: int) -> Mapping[str, int] | None:
        """Return the hits of a period that ends some days ago at this hour, or None if not all of it is known."""
        clock, calendar = self._queries.clock, self._queries.calendar
        *full_days, last = self._queries.buckets("day", days + ago)[:days]
        hour = calendar.local(clock.slot().hour).hour
        all_hours = calendar.starts("hour", calendar.next_day(last.start) - 1, _HOURS_MAX)
        hours = [at for at in all_hours if at >= last.start and calendar.local(at).hour < hour]
        buckets = [*full_days, *(Bucket("hour", at) for at in hours)]
        if not buckets or (hours and last.start < clock.at() - self._hours_kept_seconds):
            return None
        return await self._sum(buckets) if buckets[0].start >= await self._first_day() else None

    async def _sum(self, buckets: Sequence[Bucket]) -> dict[str, int]:
        sums: dict[str, int] = {}
        for bucket in buckets:  # one at a time, because each may be large
            (counts,) = await self._store.read([bucket])
            await add_counts(sums, counts)
        return sums


async def _rank(
    current: Mapping[str, int], previous: Mapping[str, int], others: Sequence[Mapping[str, int] | None]
) -> AsyncIterator[bytes]:
    """Yield a row for each event with hits in the current or in the previous period, the largest change first."""
    names = chain(current, (event for event in previous if event not in current))
    counts = ((event, current.get(event, 0), previous.get(event, 0)) for event in names if event)
    keys = ((-abs(count - before), event) for event, count, before in counts if count or before)
    async for part in slices(await first_sorted(keys, ROWS_MAX)):
        for _, event in part:
            row = Mover(eventName=event, count=current.get(event, 0), previous=previous.get(event, 0))
            for week_ago in others:
                row["weekAgo"] = None if week_ago is None else week_ago.get(event, 0)
            yield msgspec.json.encode(row)
