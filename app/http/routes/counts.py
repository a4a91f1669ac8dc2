"""GET /event/{name}, /events and /leaderboard: counts, totals and rankings."""

import base64
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from typing_extensions import TypedDict

from app.domain.buckets import TOTAL, Step
from app.http.dependencies import ReadLimit
from app.http.errors import Problem
from app.http.openapi import response_headers
from app.http.parsing import EventInPath, event_in_query, reject_redirected_post
from app.http.problem_kinds import INVALID_REQUEST
from app.http.queries import FIRST, CountQueries, SortKey, first_sorted, slices
from app.http.responses import FastJSONResponse, set_tally_partial
from app.http.router_bypass import EVENT_ROUTE

_WINDOWS: dict[str, tuple[Step, int]] = {"1h": ("minute", 60), "7d": ("day", 7)}

EventValue = TypedDict("EventValue", {"eventName": str, "count": int, "total": int, "day": str})
Ranked = TypedDict("Ranked", {"rank": int, "eventName": str, "count": int})
RankedUser = TypedDict("RankedUser", {"rank": int, "user": str, "count": int})


def add_routes(
    router: APIRouter, reads: APIRouter, queries: CountQueries, read_limit: ReadLimit, root_path: str
) -> None:
    """Add the routes that read counts. Those of `reads` count as one read. Links begin with `root_path`."""
    _add_event(router, queries, read_limit)
    _add_listing(reads, queries, root_path)
    _add_leaderboard(reads, queries)


def _add_event(router: APIRouter, queries: CountQueries, read_limit: ReadLimit) -> None:
    """Add the route of one event's count.

    The fast path calls the endpoint without FastAPI's dependencies, so it consumes the read limit itself.
    """
    store, clock = queries.store, queries.clock

    @router.get(EVENT_ROUTE, response_model=EventValue)
    async def read_event(request: Request, event: EventInPath) -> Response:
        """Return today's count and the all-time total of an event; an unknown event has 0."""
        read_limit.consume(request)
        await reject_redirected_post(request)
        slot = clock.slot()
        counts = await store.read([*slot.day_buckets, TOTAL], [event])
        hits, correction, total = (found.get(event, 0) for found in counts)
        value = EventValue(eventName=event, count=hits + correction, total=total, day=slot.date)
        return FastJSONResponse(value, read_limit.stale_headers())


def _add_listing(router: APIRouter, queries: CountQueries, root_path: str) -> None:
    @router.get(
        "/events",
        response_model=dict[str, int],
        responses={200: response_headers("Link")},
        dependencies=[Depends(reject_redirected_post)],
    )
    async def read_events(
        response: Response,
        prefix: str = "",
        sort: Literal["name", "-count"] = "name",
        limit: Annotated[int | None, Query(ge=1)] = None,
        after: str | None = None,
    ) -> Response:
        """Return today's counts of all events. If `limit` shortens the result, the `Link` header has the next page."""
        begin = FIRST if after is None else _decode_cursor(after)
        async with queries.large_reads:
            counts = await queries.counts_today()
            keys = ((-n * (sort == "-count"), event) for event, n in counts.items() if event)
            page = await first_sorted(keys, None if limit is None else limit + 1, begin, prefix)
            if limit is not None and limit < len(page):
                page = page[:limit]
                query = {"prefix": prefix, "sort": sort, "limit": limit, "after": _encode_cursor(page[-1])}
                response.headers["Link"] = f'<{root_path}/events?{urlencode(query)}>; rel="next"'
            parts = [msgspec.json.encode({name: counts[name] for _, name in part})[1:-1] async for part in slices(page)]
        return Response(b"{%b}" % b",".join(parts), headers=dict(response.headers), media_type="application/json")


def _add_leaderboard(router: APIRouter, queries: CountQueries) -> None:
    @router.get(
        "/leaderboard",
        response_model=list[Ranked] | list[RankedUser],
        responses={200: response_headers("Tally-Partial")},
    )
    async def read_leaderboard(
        response: Response,
        limit: Annotated[int, Query(ge=1, le=1000)] = 10,
        window: Literal["today", "total", "1h", "7d"] = "today",
        event: str | None = None,
    ) -> Any:
        """Return the top events of today, of all time, of the last hour or of the last 7 days.

        With `event`, return the top users of that event. The header `Tally-Partial` is set if only the first 10,000
        users were ranked.
        """
        step, points = _WINDOWS.get(window, ("day", 1))
        buckets = [TOTAL] if window == "total" else queries.buckets(step, points)
        async with queries.large_reads:
            if event is None:
                counts = await (queries.counts_today() if window == "today" else queries.sum_buckets(buckets))
                return [Ranked(rank=r, eventName=name, count=n) for r, name, n in await queries.rank(counts, limit)]
            buckets = [bucket._replace(dimension=f"user:{event_in_query(event)}") for bucket in buckets]
            counts = await queries.sum_buckets(buckets)
            set_tally_partial(response, max(await queries.store.sizes(buckets)))
            return [RankedUser(rank=r, user=user, count=n) for r, user, n in await queries.rank(counts, limit)]


def _encode_cursor(key: SortKey) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode()


def _decode_cursor(cursor: str) -> SortKey:
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(cursor), type=tuple[int, str])
    except (ValueError, msgspec.DecodeError):
        raise Problem(
            INVALID_REQUEST, "after: invalid cursor; use the one in the Link header of the previous page"
        ) from None
