"""GET /audience, /user/{id} and /session/{id}: unique users and sessions, and the counts of each."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from typing_extensions import TypedDict

from app.domain.buckets import ALL_EVENTS, VisitorKind
from app.http.openapi import response_headers
from app.http.parsing import EventInPath, VisitorInPath
from app.http.queries import CountQueries
from app.http.responses import set_tally_partial

DAYS_MAX = 400  # days over which one response counts unique visitors
ACTIVE_MINUTES = 5  # a session is active this long after its last hit

Days = Annotated[int, Query(ge=1, le=DAYS_MAX)]
UserCounts = TypedDict("UserCounts", {"user": str, "days": int, "counts": dict[str, int]})
SessionCounts = TypedDict("SessionCounts", {"session": str, "days": int, "counts": dict[str, int]})
Audience = TypedDict(
    "Audience", {"users": int, "sessions": int, "activeSessions": int, "days": int, "exact": bool, "error": float}
)


def add_routes(router: APIRouter, queries: CountQueries) -> None:
    """Add the routes that read about users and sessions."""

    @router.get("/event/{name}/audience")
    async def read_event_audience(event: EventInPath, days: Days = 1) -> Audience:
        """Return the unique users and sessions of an event in the last `days` days, and its active sessions.

        A session is active for 5 minutes after its last hit.
        """
        return await _read_audience(queries, event, days)

    @router.get("/audience")
    async def read_audience(days: Days = 1) -> Audience:
        """Return the unique users and sessions of all events together."""
        return await _read_audience(queries, ALL_EVENTS, days)

    @router.get("/user/{id:path}", responses={200: response_headers("Tally-Partial")})
    async def read_user(response: Response, visitor: VisitorInPath, days: Days = 1) -> UserCounts:
        """Return a user's counts by event over the last `days` days."""
        return UserCounts(user=visitor, days=days, counts=await _read_visits(queries, "user", visitor, days, response))

    @router.get("/session/{id:path}", responses={200: response_headers("Tally-Partial")})
    async def read_session(response: Response, visitor: VisitorInPath, days: Days = 1) -> SessionCounts:
        """Return a session's counts by event over the last `days` days."""
        counts = await _read_visits(queries, "session", visitor, days, response)
        return SessionCounts(session=visitor, days=days, counts=counts)


async def _read_audience(queries: CountQueries, event: str, days: int) -> Audience:
    minutes, dates = queries.buckets("minute", ACTIVE_MINUTES), queries.buckets("day", days)
    wanted = (("user", dates), ("session", dates), ("session", minutes))
    found = [
        await queries.store.count_distinct([bucket._replace(dimension=f"{kind}:{event}") for bucket in buckets])
        for kind, buckets in wanted
    ]
    users, sessions, active = (cardinality.number for cardinality in found)
    error = max(cardinality.error for cardinality in found)
    return Audience(users=users, sessions=sessions, activeSessions=active, days=days, exact=not error, error=error)


async def _read_visits(
    queries: CountQueries, kind: VisitorKind, visitor: str, days: int, response: Response
) -> dict[str, int]:
    buckets = queries.buckets("day", days)
    everyone = [await queries.store.count_distinct([bucket._replace(dimension=f"{kind}:")]) for bucket in buckets]
    set_tally_partial(response, max(cardinality.number for cardinality in everyone))
    counts: dict[str, int] = {}
    for found in await queries.store.visits(kind, visitor, [bucket.start for bucket in buckets]):
        for event, count in found.items():
            counts[event] = counts.get(event, 0) + count
    return dict(sorted(counts.items()))
