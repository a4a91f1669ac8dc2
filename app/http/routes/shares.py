"""Shared links: GET, POST and DELETE /shares for administrators, and the public /share/{token}."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from starlette.types import Receive, Scope, Send
from typing_extensions import TypedDict

from app.domain.buckets import TOTAL
from app.domain.calendar import Calendar, Clock
from app.domain.names import stored_event_name, visitor_id
from app.http.errors import Problem
from app.http.openapi import error_responses, json_body
from app.http.parsing import decode, read_body, valid_name
from app.http.problem_kinds import NOT_FOUND, SHARE_LIMIT
from app.http.routes.pages import STATIC, page_headers
from app.http.routes.stream import EventStream
from app.live.broadcaster import Broadcaster
from app.shares import SHARES_MAX, Share, Shares, TooManyShares
from app.stores.base import CounterStore

SHARE_BYTES_MAX = 64 * 1024
TITLE_LENGTH_MAX = 100
EVENTS_MAX = 50

ShareRow = TypedDict("ShareRow", {"id": str, "title": str, "events": list[str], "createdAt": str})
SharedEvent = TypedDict("SharedEvent", {"eventName": str, "count": int, "total": int})
SharedCounts = TypedDict("SharedCounts", {"title": str, "day": str, "events": list[SharedEvent]})


class NewShareRow(ShareRow):
    """A new share. `token` and `path`, the path of the link, are in no other response."""

    token: str
    path: str


class ShareFields(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /shares`."""

    title: Annotated[str, msgspec.Meta(max_length=TITLE_LENGTH_MAX)]
    events: Annotated[list[str], msgspec.Meta(min_length=1, max_length=EVENTS_MAX)]


_SCHEMA = msgspec.json.schema(ShareFields)["$defs"]["ShareFields"]
_BODY = json_body(_SCHEMA, {"title": "Launch", "events": ["signup", "order"]})
_PUBLIC: dict[str, Any] = {"responses": error_responses(429, 503)}


class ShareStream(EventStream):
    """An event stream of the events of a share, which also ends when the share is revoked."""

    def __init__(self, broadcaster: Broadcaster, shares: Shares, share: Share) -> None:
        super().__init__(broadcaster, share.events, last_id=None)
        self._shares, self._share = shares, share

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._shares.stream(self._share, self.ended):
            await super().__call__(scope, receive, send)


def add_admin_routes(router: APIRouter, shares: Shares, clock: Clock, root_path: str) -> None:
    """Add the routes that manage shares. Links begin with `root_path`."""
    calendar = clock.calendar

    @router.get("/shares")
    async def list_shares() -> list[ShareRow]:
        """Return all shares, oldest first."""
        return [_row(calendar, share) for share in await shares.list_all()]

    @router.post("/shares", status_code=201, openapi_extra=_BODY)
    async def add_share(request: Request) -> NewShareRow:
        """Add a link to the counts of these events, which works without an API key until it is revoked."""
        fields = decode(await read_body(request, SHARE_BYTES_MAX), ShareFields)
        title = valid_name(visitor_id, fields.title, "title")
        events = tuple(dict.fromkeys(valid_name(stored_event_name, event, "events") for event in fields.events))
        try:
            share, token = await shares.add(title, events)
        except TooManyShares:
            detail = f"there are {SHARES_MAX} shared links, the most allowed; revoke one"
            raise Problem(SHARE_LIMIT, detail, {"Retry-After": "3600"}) from None
        return NewShareRow(**_row(calendar, share), token=token, path=f"{root_path}/share/{token}")

    @router.delete("/shares/{id}")
    async def revoke_share(id: str) -> ShareRow:  # noqa: A002 # the API's word
        """Revoke a link. Its open pages stop within seconds."""
        if (share := await shares.revoke(id)) is None:
            raise Problem(NOT_FOUND, "there is no share with this id; GET /shares lists them")
        return _row(calendar, share)


def add_public_routes(
    reads: APIRouter, shares: Shares, store: CounterStore, clock: Clock, broadcaster: Broadcaster
) -> None:
    """Add the routes that need only the token of a share."""

    async def share_in_path(token: str) -> Share:
        """Return the share of a token. Raises Problem (404)."""
        if (share := shares.find(token)) is None:
            raise Problem(NOT_FOUND, "this link does not exist, or it was revoked; ask for a new one")
        return share

    shared = Annotated[Share, Depends(share_in_path)]

    page, headers = STATIC.page("share.html"), page_headers()

    @reads.get("/share/{token}", include_in_schema=False, dependencies=[Depends(share_in_path)])
    async def send_page(request: Request) -> Response:
        return page.respond(request, headers)

    @reads.get("/share/{token}/counts", **_PUBLIC)
    async def read_shared_counts(share: shared) -> SharedCounts:
        """Return today's counts and the totals of the events of a share."""
        slot = clock.slot()
        counts = await store.read([*slot.day_buckets, TOTAL], share.events)
        events = []
        for event in share.events:
            hits, correction, total = (found.get(event, 0) for found in counts)
            events.append(SharedEvent(eventName=event, count=hits + correction, total=total))
        return SharedCounts(title=share.title, day=slot.date, events=events)

    @reads.get("/share/{token}/stream", include_in_schema=False, response_class=EventStream, status_code=200)
    async def stream_shared_counts(share: shared) -> Response:
        return ShareStream(broadcaster, shares, share)


def _row(calendar: Calendar, share: Share) -> ShareRow:
    return ShareRow(
        id=share.id, title=share.title, events=list(share.events), createdAt=calendar.local(share.created).isoformat()
    )
