"""GET /hit, /get and /info as in CountAPI and Abacus: pages that used one of them work again with Tally's host."""

import base64
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, NamedTuple

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from typing_extensions import TypedDict

from app.domain.buckets import TOTAL
from app.domain.names import NAME_LENGTH_MAX, event_name
from app.group_commit import GroupCommitter
from app.http.bots import is_unseen
from app.http.dependencies import ReadLimit
from app.http.errors import Problem, accepted_or_raise
from app.http.openapi import error_responses
from app.http.parsing import valid_name
from app.http.problem_kinds import MALFORMED_REQUEST
from app.http.rate_limits import RateLimits
from app.http.routes.badges import SVG_POLICY, Label, Svg, draw
from app.stores.base import CounterStore

_WORD = re.compile(r"[A-Za-z0-9_\-.]{3,64}")
_PAGE = re.compile(r"https?://([^/?#:]+)[^/?#]*([^?#]*)")
_GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")  # one transparent pixel

# Each route can also respond with JavaScript (parameter `callback`) or a GIF (`img`).
_MEDIA_TYPES: dict[str, Any] = {"text/javascript": {}, "image/gif": {}}

Callback = Annotated[str | None, Query(pattern=r"^[A-Za-z_$][A-Za-z0-9_$.]*$", max_length=128)]
Background = Annotated[str, Query(pattern=r"^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$")]
Found = TypedDict("Found", {"value": int})
Missing = TypedDict("Missing", {"value": None, "error": str})
# The `responses` of a route.
Responses = dict[int | str, dict[str, Any]]

RESPONSES: Responses = {200: {"content": _MEDIA_TYPES}, **error_responses(400)}
MISSING: Responses = {404: {"model": Missing, "description": "There is no such counter"}}


class Info(Found):
    """A counter and its properties, which are the same for all counters. Abacus has those from `full_key` on."""

    namespace: str
    key: str
    update_lowerbound: int
    update_upperbound: int
    enable_reset: bool
    full_key: str
    is_genuine: bool
    expires_in: int
    expires_str: str
    exists: bool


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

    def missing(self, **properties: object) -> Response:
        """Return the response for a counter that does not exist."""
        return self.respond({**properties, "value": None, "error": "Key not found"}, 404)


async def read_total(store: CounterStore, event: str) -> int | None:
    """Return the total of an event, or None if it was never counted."""
    (totals,) = await store.read([TOTAL], [event])
    return totals.get(event)


async def parse_counter(request: Request, ns: str, key: str, callback: Callback = None, img: str | None = None) -> Call:
    """Return the counter of a request. `:HOST:` and `:PATHNAME:` are replaced by those of the page that sent it."""
    page = _PAGE.match(request.headers.get("referer") or request.headers.get("origin", ""))
    reserved = {":HOST:": page[1] if page else "", ":PATHNAME:": page[2] if page else ""}
    words = [
        re.sub(r"[^\w\-.]", "", reserved[word], flags=re.ASCII)[:64].rjust(3, ".") if word in reserved else word
        for word in (ns, key)
    ]
    if not all(map(_WORD.fullmatch, words)):
        raise Problem(MALFORMED_REQUEST, "namespace and key: each must be 3 to 64 of the characters A-Z a-z 0-9 _ - .")
    # Two words of 64 characters leave no room for the colon.
    separator = ":" if len(words[0]) + len(words[1]) < NAME_LENGTH_MAX else ""
    event = valid_name(event_name, separator.join(words), "namespace:key", MALFORMED_REQUEST)
    # Tally's own pages get no script, because an attacker could choose the function that it calls there.
    foreign = request.headers.get("sec-fetch-site") != "same-origin"
    return Call(words[0], words[1], event, callback if foreign else None, img is not None)


async def parse_default(request: Request, key: str, callback: Callback = None, img: str | None = None) -> Call:
    """Do the same for a counter of the namespace `default`."""
    return await parse_counter(request, "default", key, callback, img)


def add_routes(
    router: APIRouter, store: CounterStore, committer: GroupCommitter, rate_limits: RateLimits, read_limit: ReadLimit
) -> None:
    """Add the routes that count and read, each with and without a namespace, and those of shields."""

    async def hit(request: Request, event: str) -> int:
        """Count a hit, unless nobody sees the page that sends it, and return the total."""
        if is_unseen(request.headers):
            rate_limits.consume(request, "read")
            return await read_total(store, event) or 0
        rate_limits.consume(request, "write")
        return accepted_or_raise(await committer.submit({event: 1}))[event].total

    limited = [Depends(read_limit)]
    for path, parse in (("{key}", parse_default), ("{ns}/{key}", parse_counter)):
        Called = Annotated[Call, Depends(parse)]  # noqa: N806 # a type

        @router.get(f"/hit/{path}", response_model=Found, responses=RESPONSES)
        async def count_hit(request: Request, call: Called) -> Response:
            """Count one hit of the event `namespace:key`, and return its total. Bots and prefetches are not counted."""
            return call.respond({"value": await hit(request, call.event)})

        @router.get(f"/get/{path}", response_model=Found, responses=RESPONSES | MISSING, dependencies=limited)
        async def read_value(call: Called) -> Response:
            """Return the total, or 404 if there is no such counter."""
            value = await read_total(store, call.event)
            return call.missing() if value is None else call.respond({"value": value})

        @router.get(f"/info/{path}", response_model=Info, responses=RESPONSES | MISSING, dependencies=limited)
        async def read_counter(call: Called) -> Response:
            """Return the total and the properties of the counter, or 404 if there is no such counter."""
            value = await read_total(store, call.event)
            if value is None:
                return call.missing(exists=False)
            bounds = {"update_lowerbound": 0, "update_upperbound": 1, "enable_reset": False}
            expiry = {"is_genuine": True, "expires_in": -1, "expires_str": "never", "exists": True}
            named = {"namespace": call.namespace, "key": call.key, "full_key": call.event}
            return call.respond({**named, **bounds, **expiry, "value": value})

    _add_shields(router, store, limited, hit)


def _add_shields(
    router: APIRouter, store: CounterStore, limited: list[Any], hit: Callable[[Request, str], Awaitable[int]]
) -> None:
    Called = Annotated[Call, Depends(parse_counter)]  # noqa: N806 # a type
    Drawing = Annotated[Callable[[int], Svg], Depends(_shield)]  # noqa: N806 # a type

    @router.get("/hit/{ns}/{key}/shield", response_class=Svg, responses=error_responses(400))
    async def count_and_draw(request: Request, call: Called, drawing: Drawing) -> Response:
        """Count one hit, and return a badge with the total: one that counts when it is shown."""
        return drawing(await hit(request, call.event))

    @router.get("/get/{ns}/{key}/shield", response_class=Svg, responses=RESPONSES | MISSING, dependencies=limited)
    async def draw_value(call: Called, drawing: Drawing) -> Response:
        """Return a badge with the total."""
        value = await read_total(store, call.event)
        return call.missing() if value is None else drawing(value)


async def _shield(
    text: Label = "counter", bgcolor: Background = "007ec6", style: Annotated[str, Query(max_length=32)] = "flat"
) -> Callable[[int], Svg]:
    """Return a function that draws a number. Abacus' parameters for fonts and for the text's colour have no effect."""
    label = "" if style.lower().endswith("-simple") else text or ""

    def drawing(number: int) -> Svg:
        svg = draw(label, str(number), f"{text}: {number}", bgcolor.removeprefix("#"))
        return Svg(svg, headers=SVG_POLICY | {"Cache-Control": "no-store, no-cache, must-revalidate"})

    return drawing
