"""The one shape of every error: RFC 9457 problem details."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Literal

import msgspec
from fastapi import FastAPI, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.routing import Match

from app.group_commit import Overloaded
from app.metrics import Metrics
from app.stores.base import OutcomeUnknown, StoreUnavailable

Problem = HTTPException  # raised wherever a request is refused
REFUSALS = (HTTPException, RequestValidationError, StoreUnavailable, OutcomeUnknown, Overloaded)
Answer = Callable[[HTTPConnection, Exception], Awaitable[Response]]


class ProblemDetails(BaseModel):
    """What went wrong; `counted` says whether a POST may have been counted all the same."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    counted: Literal["no", "unknown"] | None = None


_HEADERS = {
    "Idempotent-Replayed": "`true` where this is the answer to an earlier request with the same key.",
    "Link": "Where the next page is.",
    "Retry-After": "When to ask again, in seconds.",
    "Tally-Partial": "Why this is not all.",
    "Tally-Stale": "For how many seconds Redis has been away: so old are these numbers.",
    "WWW-Authenticate": "How to show a key.",
}
_ALWAYS = {401: ["WWW-Authenticate"], 429: ["Retry-After"], 503: ["Retry-After"]}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These statuses for a route's OpenAPI."""
    content = {"application/problem+json": {"schema": ProblemDetails.model_json_schema()}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        | told(*_ALWAYS.get(status, []), always=True)
        for status in statuses
    }


def told(*headers: str, always: bool = False) -> dict[str, Any]:
    """These headers of an answer, likewise."""
    text = {"schema": {"type": "string"}, "required": always}
    return {"headers": {name: {"description": _HEADERS[name], **text} for name in headers}}


def install(app: FastAPI, metrics: Metrics) -> Answer:
    """Make this app answer refusals and errors in the one shape; returns what does it."""

    async def answer(request: HTTPConnection, error: Exception) -> Response:
        status, detail, headers = 500, "an unexpected error; the log has it", None
        if isinstance(error, HTTPException):
            status, detail, headers = error.status_code, str(error.detail), error.headers
            if status == 405:  # the router would tell the methods of one route, and a path has several
                found = [route for route in app.routes if route.matches(request.scope)[0] is not Match.NONE]
                headers = {"Allow": ", ".join(sorted(m for route in found for m in getattr(route, "methods", ())))}
        elif isinstance(error, RequestValidationError):  # said without the input, which may be no JSON at all
            status = 422
            detail = "; ".join(f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors())
        elif isinstance(error, (StoreUnavailable, OutcomeUnknown, Overloaded)):
            status, detail, headers = 503, str(error), {"Retry-After": "1"}
        problem = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
        # only these could have counted; a WebSocket has no method
        if request.scope.get("method") == "POST" or request.scope["path"].startswith("/hit/"):
            unknown = status == 500 or isinstance(error, OutcomeUnknown)
            problem["counted"] = "unknown" if unknown else "no"
            (metrics.unknown if unknown else metrics.refused).inc()
        return Response(msgspec.json.encode(problem), status, headers, media_type="application/problem+json")

    for kind in (*REFUSALS, Exception):
        app.add_exception_handler(kind, answer)
    return answer
