"""Routes in the shape of CountAPI, a service that is no more: a page of it works by changing the host name."""

import base64
import re
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import msgspec
from fastapi import Depends, FastAPI, Query, Request, Response
from typing_extensions import TypedDict

from app.domain.buckets import TOTAL
from app.domain.names import InvalidName, event_name
from app.group_commit import GroupCommitter
from app.http.errors import Problem, documented
from app.http.rate_limits import RateLimits
from app.http.routes.count import values
from app.http.routes.counts import Charge
from app.stores.base import CounterStore

_WORD = re.compile(r"[A-Za-z0-9_\-.]{3,64}")
_PAGE = re.compile(r"https?://([^/?#:]+)[^/?#]*([^?#]*)")
_GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")  # one transparent pixel

_ALSO: dict[str, Any] = {"text/javascript": {}, "image/gif": {}}  # for `callback` and `img`, whatever is answered

Callback = Annotated[str | None, Query(pattern=r"^[A-Za-z_$][A-Za-z0-9_$.]*$", max_length=128)]
Found = TypedDict("Found", {"value": int})
Missing = TypedDict("Missing", {"value": None})


class Info(Found):
    namespace: str
    key: str
    update_lowerbound: int
    update_upperbound: int
    enable_reset: bool


class Call(NamedTuple):
    """Which counter a request is about, and how it wants to be answered."""

    namespace: str
    key: str
    event: str
    callback: str | None
    image: bool

    def answer(self, body: Mapping[str, object], status: int = 200) -> Response:
        headers = {"X-Path": f"{self.namespace}/{self.key}", "Access-Control-Expose-Headers": "X-Path"}
        headers["Cache-Control"] = "no-store"
        if self.image:
            return Response(_GIF, headers=headers, media_type="image/gif")
        if self.callback:
            script = f"/**/{self.callback}({msgspec.json.encode({'code': status, **body}).decode()});"
            return Response(script, headers=headers, media_type="text/javascript")
        return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


def add_routes(app: FastAPI, store: CounterStore, recorder: GroupCommitter, limits: RateLimits, charge: Charge) -> None:
    async def read(call: Call, **about: object) -> Response:
        (totals,) = await store.read([TOTAL], [call.event])
        value = totals.get(call.event)
        return call.answer({**about, "value": value}) if value else call.answer({"value": None}, 404)

    for path, named in (("{key}", _in_default), ("{ns}/{key}", _in_namespace)):
        Called = Annotated[Call, Depends(named)]  # noqa: N806 # a type
        every: dict[str, Any] = {"responses": {200: {"content": _ALSO}, **documented(400)}}
        known: dict[str, Any] = {"responses": every["responses"] | {404: {"model": Missing, "description": "Unknown"}}}
        known["dependencies"] = [Depends(charge)]

        @app.get(f"/hit/{path}", response_model=Found, **every)
        async def count_hit(request: Request, call: Called) -> Response:
            """Count one hit of the event `namespace:key`; the value is its total."""
            limits.charge(request, "write")
            recorded = await recorder.submit({call.event: 1})
            return call.answer({"value": values(recorded)[call.event].total})

        @app.get(f"/get/{path}", response_model=Found, **known)
        async def read_value(call: Called) -> Response:
            """The total, or 404 where nothing was counted."""
            return await read(call)

        @app.get(f"/info/{path}", response_model=Info, **known)
        async def read_info(call: Called) -> Response:
            """The total and what may be done to it, or 404 where nothing was counted."""
            bounds = {"update_lowerbound": 0, "update_upperbound": 1, "enable_reset": False}
            return await read(call, namespace=call.namespace, key=call.key, **bounds)


async def _in_namespace(request: Request, ns: str, key: str, callback: Callback = None, img: str | None = None) -> Call:
    """A counter by its words, of which two stand for the page that asks, as far as its browser tells."""
    page = _PAGE.match(request.headers.get("referer") or request.headers.get("origin", ""))
    reserved = {":HOST:": page[1] if page else "", ":PATHNAME:": page[2] if page else ""}
    words = [
        re.sub(r"[^\w\-.]", "", reserved[word], flags=re.ASCII)[:64].rjust(3, ".") if word in reserved else word
        for word in (ns, key)
    ]
    if not all(map(_WORD.fullmatch, words)):
        raise Problem(400, f"a namespace and a key match {_WORD.pattern}")
    try:
        event = event_name(":".join(words))
    except InvalidName as error:
        raise Problem(400, str(error)) from None
    # on our own pages a script of ours could be made to call whatever somebody chose
    foreign = request.headers.get("sec-fetch-site") != "same-origin"
    return Call(words[0], words[1], event, callback if foreign else None, img is not None)


async def _in_default(request: Request, key: str, callback: Callback = None, img: str | None = None) -> Call:
    return await _in_namespace(request, "default", key, callback, img)
