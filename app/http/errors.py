"""Error responses as RFC 9457 problem details: the status, detail and headers for each exception."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import msgspec
from fastapi import FastAPI, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.routing import Match

from app.corrections import CHANGES_PER_DAY_MAX
from app.group_commit import Overloaded
from app.http import problem_kinds as kinds
from app.http.countapi_paths import COUNTAPI_PATHS, COUNTING_PATHS
from app.http.problem_kinds import ProblemKind
from app.http.problem_page import problem_page
from app.kafka.producer import RequestTooLarge
from app.live.broadcaster import TooManyConnections
from app.metrics import Metrics
from app.pending_commit import Outcome
from app.stores.base import BackupFailed, BackupRunning, BackupUnsupported, OutcomeUnknown, StoreUnavailable
from app.stores.results import Value

Counted = Literal["no", "unknown"]
ErrorHandler = Callable[[HTTPConnection, Exception], Response]


class Problem(HTTPException):
    """A request that Tally rejects: a kind of problem, a `detail` for the client, and headers."""

    def __init__(self, kind: ProblemKind, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(kind.status, detail, headers)
        self.kind = kind


class ProblemDetails(BaseModel):
    """The body of an error response. `counted` tells whether the hits of a request may have been counted."""

    type: str
    code: str
    title: str
    status: int
    detail: str
    counted: Counted | None = None


class ErrorResponse(NamedTuple):
    """The response to an exception: its kind and headers, and whether the hits may have been counted."""

    kind: ProblemKind
    headers: Mapping[str, str] | None
    counted: Counted


_RETRY_SOON = {"Retry-After": "1"}

# The response to each exception of a lower package. The message of the exception becomes the detail.
ERROR_RESPONSES: dict[type[Exception], ErrorResponse] = {
    StoreUnavailable: ErrorResponse(kinds.STORE_UNAVAILABLE, _RETRY_SOON, "no"),
    OutcomeUnknown: ErrorResponse(kinds.OUTCOME_UNKNOWN, _RETRY_SOON, "unknown"),
    Overloaded: ErrorResponse(kinds.OVERLOADED, _RETRY_SOON, "no"),
    RequestTooLarge: ErrorResponse(kinds.REQUEST_TOO_LARGE, None, "no"),
    BackupFailed: ErrorResponse(kinds.BACKUP_FAILED, {"Retry-After": "60"}, "no"),
    BackupRunning: ErrorResponse(kinds.BACKUP_RUNNING, _RETRY_SOON, "no"),
    BackupUnsupported: ErrorResponse(kinds.NO_STORE_FILE, None, "no"),
    TooManyConnections: ErrorResponse(kinds.TOO_MANY_CONNECTIONS, {"Retry-After": "10"}, "no"),
}
EXPECTED_ERRORS = (HTTPException, RequestValidationError, *ERROR_RESPONSES)
# The kinds of the exceptions that Starlette and the live package raise, by status.
_HTTP_EXCEPTIONS = {
    kind.status: kind
    for kind in (kinds.MALFORMED_REQUEST, kinds.NOT_FOUND, kinds.METHOD_NOT_ALLOWED, kinds.REQUEST_TOO_LARGE)
}
_BUG = ErrorResponse(kinds.INTERNAL_ERROR, None, "unknown"), "internal error; details are in the server log"

# Routes that people open in a browser. Their errors are pages, as are those of addresses that no route has.
_PAGES = re.compile("/(kiosk|docs|docs/errors|(embed|share)/[^/]+)?")

# What a parameter with a pattern expects; the pattern itself is hard to read.
_PATTERNS = {
    "day": "not a valid date; use YYYY-MM-DD",
    "color": "not a colour; use a name such as green, or 3 or 6 hex digits",
    "label": "must not contain control, unassigned or private-use characters",
    "callback": "must be the name of a JavaScript function",
}

# Kind, detail and headers for each reason for which a store rejects hits or a correction.
REJECTION_RESPONSES: dict[str, tuple[ProblemKind, str, dict[str, str]]] = {
    "full": (
        kinds.EVENT_LIMIT,
        "event limit reached (TALLY_EVENTS_MAX): new event names are rejected, existing ones still count",
        {"Retry-After": "3600"},
    ),
    "overflow": (
        kinds.COUNT_OVERFLOW,
        "a count would exceed the largest one, 9007199254740991; nothing was changed",
        {},
    ),
    "mismatch": (
        kinds.IDEMPOTENCY_MISMATCH,
        "this Idempotency-Key was used with another body or event; use a new key for each new request",
        {},
    ),
    "keys": (
        kinds.IDEMPOTENCY_LIMIT,
        "idempotency key limit reached (TALLY_KEYS_MAX, or a tenth of it for one client): retry later, or send no key",
        {"Retry-After": "60"},
    ),
    "changes": (
        kinds.CHANGE_LIMIT,
        f"this day has {CHANGES_PER_DAY_MAX} corrections, deletions and resets; retry on the next day",
        {"Retry-After": "3600"},
    ),
}


def rejection(reason: str) -> Problem:
    """Return the problem for the reason of a rejection."""
    return Problem(*REJECTION_RESPONSES[reason])


def accepted_or_raise(outcome: Outcome) -> Mapping[str, Value]:
    """Return the values of accepted hits, by event. Raises Problem if the hits were rejected."""
    if reason := outcome.result.reason:
        raise rejection(reason)
    return outcome.result.values


def add_error_handlers(app: FastAPI, metrics: Metrics, root_path: str) -> ErrorHandler:
    """Make the app respond to all errors with problem details, with types under `root_path`. Returns the handler."""

    def error_response(request: HTTPConnection, error: Exception) -> Response:
        (kind, headers, counted), detail = _response_to(error)
        if _wants_page(request, error, kind):
            return problem_page(request, kind, detail, headers)
        if kind is kinds.METHOD_NOT_ALLOWED:
            headers = {"Allow": _allowed_methods(app, request) or "GET, HEAD"}  # no route of its own: a file
            detail = f"this route does not allow {request.scope['method']}; it allows {headers['Allow']}"
        problem: dict[str, Any] = {"type": root_path + kind.type, "code": kind.code, "title": kind.title}
        problem |= {"status": kind.status, "detail": detail}
        # Only these requests count hits. A WebSocket has no method.
        if request.scope.get("method") == "POST" or request.scope["path"].startswith(COUNTING_PATHS):
            problem["counted"] = counted
            (metrics.unknown if counted == "unknown" else metrics.refused).inc()
        if request.scope["path"].startswith(COUNTAPI_PATHS):
            problem["error"] = detail  # where clients of CountAPI and Abacus look for it
        return Response(msgspec.json.encode(problem), kind.status, headers, media_type="application/problem+json")

    # Starlette would run a handler that is not a coroutine in a thread.
    async def handle(request: HTTPConnection, error: Exception) -> Response:
        return error_response(request, error)

    for error_type in (*EXPECTED_ERRORS, Exception):
        app.add_exception_handler(error_type, handle)
    return error_response


def _wants_page(request: HTTPConnection, error: Exception, kind: ProblemKind) -> bool:
    """Return whether a browser has opened a page, or an address that no route has."""
    is_get = request.scope.get("method") in {"GET", "HEAD"}
    has_route = isinstance(error, Problem) or kind is not kinds.NOT_FOUND
    is_page = not has_route or _PAGES.fullmatch(request.scope["path"]) is not None
    return is_get and is_page and "text/html" in request.headers.get("accept", "")


def _response_to(error: Exception) -> tuple[ErrorResponse, str]:
    if isinstance(error, Problem):
        return ErrorResponse(error.kind, error.headers, "no"), error.detail
    if isinstance(error, HTTPException):
        kind = _HTTP_EXCEPTIONS.get(error.status_code, kinds.MALFORMED_REQUEST)
        # Starlette's own 404 has only the status phrase.
        detail = "there is no such route or file; see /docs" if error.status_code == 404 else str(error.detail)
        return ErrorResponse(kind, error.headers, "no"), detail
    if isinstance(error, RequestValidationError):
        # The input is left out of the detail, because it may not be valid JSON or UTF-8.
        details = [(".".join(map(str, e["loc"][1:])), e["type"], e["msg"]) for e in error.errors()]
        texts = [_PATTERNS.get(name, text) if "pattern" in type_ else text for name, type_, text in details]
        detail = "; ".join(f"{name}: {text}" for (name, *_), text in zip(details, texts, strict=True))
        return ErrorResponse(kinds.INVALID_REQUEST, None, "no"), detail
    for error_type, response in ERROR_RESPONSES.items():
        if isinstance(error, error_type):
            return response, str(error)
    return _BUG


def _allowed_methods(app: FastAPI, request: HTTPConnection) -> str:
    """Return the methods of all routes of a path; the router would list those of its first route only."""
    routes = [route for route in app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return ", ".join(sorted(method for route in routes for method in getattr(route, "methods", ())))
