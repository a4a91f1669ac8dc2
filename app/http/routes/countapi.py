"""GET /hit, /get and /info as in CountAPI, which has closed: pages that used it work again with Tally's host."""

import base64
import re
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from typing_extensions import TypedDict

from app.domain.buckets import TOTAL
from app.domain.names import event_name
from app.group_commit import GroupCommitter
from app.http.bots import is_unseen
from app.http.dependencies import ReadLimit
from app.http.errors import Problem, accepted_or_raise
from app.http.openapi import error_responses
from app.http.parsing import valid_name
from app.http.problem_kinds import MALFORMED_REQUEST
from app.http.rate_limits import RateLimits
from app.stores.base import CounterStore

_WORD = re.compile(r"[A-Za-z0-9_\-.]{3,64}")
_PAGE = re.compile(r"https?://([^/?#:]+)[^/?#]*([^?#]*)")
_GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")  # one transparent pixel

# Each route can also respond with JavaScript (parameter `callback`) or a GIF (`img`).
_MEDIA_TYPES: dict[str, Any] = {"text/javascript": {}, "image/gif": {}}

Callback = Annotated[str | None, Query(pattern=r"^[A-Za-z_$][A-Za-z0-9_$.]*$", max_length=128)]
Found = TypedDict("Found", {"value": int})
Missing = TypedDict("Missing", {"value": None})


class Info(Found):
    """A counter and its properties, which are the same for all counters."""

    namespace: str
    key: str
    update_lowerbound: int
    update_upperbound: int
    enable_reset: bool


class Call(NamedTuple):
    """The counter of a request, and the form of the response."""

    namespace: str
    key: str
    event: str
    callback: str | None
    image: bool

    def respond(self, body: Mapping[str, object], status: int = 200) -> Response:
        """Return the body as JSON, as a script that calls `callback`, or as an image without it."""
        headers = {"X-Path": f"{self.namespace}/{self.key}", "Access-Control-Expose-Headers": "X-Path"}
        headers["Cache-Control"] = "no-store"
        if self.image:
            return Response(_GIF, headers=headers, media_type="image/gif")
        if self.callback:
            script = f"/**/{self.callback}({msgspec.json.encode({'code': status, **body}).decode()});"
            return Response(script, headers=headers, media_type="text/javascript")
        return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


def add_routes(
    router: APIRouter, store: CounterStore, committer: GroupCommitter, rate_limits: RateLimits, read_limit: ReadLimit
) -> None:
    """Add the routes of CountAPI, each with and without a namespace."""

    async def total_of(event: str) -> int | None:
        (totals,) = await store.read([TOTAL], [event])
        return totals.get(event)

    async def hit(request: Request, event: str) -> int:
        """Count a hit, unless nobody sees the page that sends it, and return the total."""
        if is_unseen(request.headers):
            rate_limits.consume(request, "read")
            return await total_of(event) or 0
        rate_limits.consume(request, "write")
        return accepted_or_raise(await committer.submit({event: 1}))[event].total

    async def read(call: Call, **properties: object) -> Response:
        value = await total_of(call.event)
        return call.respond({**properties, "value": value}) if value else call.respond({"value": None}, 404)

    for path, parse in (("{key}", _parse_default), ("{ns}/{key}", _parse)):
        Called = Annotated[Call, Depends(parse)]  # noqa: N806 # a type
        responses: dict[int | str, dict[str, Any]] = {200: {"content": _MEDIA_TYPES}, **error_responses(400)}
        missing: dict[int | str, dict[str, Any]] = {404: {"model": Missing, "description": "Never counted"}}
        reading: dict[str, Any] = {"responses": responses | missing, "dependencies": [Depends(read_limit)]}

        @router.get(f"/hit/{path}", response_model=Found, responses=responses)
        async def count_hit(request: Request, call: Called) -> Response:
            """Count one hit of the event `namespace:key`, and return its total. Bots and prefetches are not counted."""
            return call.respond({"value": await hit(request, call.event)})

        @router.get(f"/get/{path}", response_model=Found, **reading)
        async def read_value(call: Called) -> Response:
            """Return the total, or 404 if the event was never counted."""
            return await read(call)

        @router.get(f"/info/{path}", response_model=Info, **reading)
        async def read_info(call: Called) -> Response:
            """Return the total and the properties of the counter, or 404 if the event was never counted."""
            bounds = {"update_lowerbound": 0, "update_upperbound": 1, "enable_reset": False}
            return await read(call, namespace=call.namespace, key=call.key, **bounds)


async def _parse(request: Request, ns: str, key: str, callback: Callback = None, img: str | None = None) -> Call:
    """Return the counter of a request. `:HOST:` and `:PATHNAME:` are replaced by those of the page that sent it."""
    page = _PAGE.match(request.headers.get("referer") or request.headers.get("origin", ""))
    reserved = {":HOST:": page[1] if page else "", ":PATHNAME:": page[2] if page else ""}
    words = [
        re.sub(r"[^\w\-.]", "", reserved[word], flags=re.ASCII)[:64].rjust(3, ".") if word in reserved else word
        for word in (ns, key)
    ]
    if not all(map(_WORD.fullmatch, words)):
        raise Problem(MALFORMED_REQUEST, "namespace and key: each must be 3 to 64 of the characters A-Z a-z 0-9 _ - .")
    event = valid_name(event_name, ":".join(words), "namespace:key", MALFORMED_REQUEST)
    # Tally's own pages get no script, because an attacker could choose the function that it calls there.
    foreign = request.headers.get("sec-fetch-site") != "same-origin"
    return Call(words[0], words[1], event, callback if foreign else None, img is not None)


async def _parse_default(request: Request, key: str, callback: Callback = None, img: str | None = None) -> Call:
    return await _parse(request, "default", key, callback, img)
