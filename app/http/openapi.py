"""The OpenAPI document: groups of routes, error responses, headers and API keys, which FastAPI does not add."""

from collections.abc import Sequence
from typing import Any

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from app.http.errors import ProblemDetails
from app.http.parsing import IDEMPOTENCY_KEY
from app.http.permissions import GRANTS, ROUTE_PERMISSIONS, Permissions
from app.http.problem_kinds import PROBLEM_KINDS

_HEADERS = {
    "Idempotent-Replayed": "`true` if this is the response to an earlier request with the same idempotency key.",
    "Link": "The URL of the next page.",
    "Retry-After": "When to retry, in seconds.",
    "Tally-Partial": "Set if the result is incomplete, with the reason.",
    "Tally-Stale": "The age of these numbers in seconds; set while Redis is unreachable.",
    "WWW-Authenticate": "The authentication scheme: Bearer.",
}
# FastAPI cannot document this header, because `parsing` reads it.
KEY_HEADER = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "pattern": f"^({IDEMPOTENCY_KEY.pattern})$"},
}
# The groups of routes in /docs, in their order: a description, and the modules of app/http/routes.
_GROUPS = {
    "Count": ("Hits, one at a time or in a batch.", "count"),
    "Read": ("Counts of today and earlier days, rankings and visitors.", "counts series movers visitors history"),
    "Live": ("Counts as they change.", "stream"),
    "Badges": ("A number for a README or another page.", "badges"),
    "Notes": ("Texts on the timeline, such as deployments.", "notes"),
    "Goals": ("The number that an event should reach.", "goals"),
    "Alerts": ("Messages about counts. They need an admin key.", "alerts"),
    "Shares": ("Links that show the counts of chosen events.", "shares"),
    "Change": ("Corrections, deletions and resets. They need an admin key.", "admin"),
    "Move data": ("Exports, imports and backups. They need an admin key.", "export_import"),
    "Operate": ("Health, metrics and permissions.", "operations"),
    "CountAPI": ("The routes of CountAPI and Abacus.", "countapi countapi_changes countapi_stream"),
}
_TAG_OF_MODULE = {module: name for name, (_, modules) in _GROUPS.items() for module in modules.split()}
_REQUIRED_HEADERS = {401: ["WWW-Authenticate"], 429: ["Retry-After"], 503: ["Retry-After"]}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route for these statuses, all of which are problem details."""
    content = {"application/problem+json": {"schema": ProblemDetails.model_json_schema()}}
    return {
        status: {"description": _description(status), "content": content}
        | response_headers(*_REQUIRED_HEADERS.get(status, []), required=True)
        for status in statuses
    }


def _description(status: int) -> str:
    return "; ".join(f"{kind.title} (`{kind.code}`)" for kind in PROBLEM_KINDS if kind.status == status)


def response_headers(*names: str, required: bool = False) -> dict[str, Any]:
    """Return the part of a route's `responses` that describes these headers."""
    schema = {"schema": {"type": "string"}, "required": required}
    return {"headers": {name: {"description": _HEADERS[name], **schema} for name in names}}


def json_body(schema: dict[str, Any], example: object) -> dict[str, Any]:
    """Return the `openapi_extra` of a route whose body is JSON, with the example that /docs offers to send."""
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


def group_routes(routes: Sequence[BaseRoute]) -> None:
    """Put each route into the group of its module."""
    for route in routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            route.tags = [_TAG_OF_MODULE[route.endpoint.__module__.rpartition(".")[2]]]


def complete(document: dict[str, Any], permissions: Permissions) -> dict[str, Any]:
    """Add the groups, the API keys and the error responses of every route to FastAPI's document."""
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    # FastAPI's own error schemas are removed, because errors are problem details here.
    for unused in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(unused, None)
    groups = set()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            operation["summary"] = operation["summary"].capitalize()
            groups |= set(operation["tags"])
            permission = ROUTE_PERMISSIONS.get(f"{method.upper()} {path}")
            statuses = [421, *[404] * ("{" in path), *[400, 413] * ("requestBody" in operation)]
            statuses += [401, 403, 422, 429, 503] * (permission != "anyone")
            own = operation["responses"]
            own.pop("422", None)
            operation["responses"] = {str(code): text for code, text in error_responses(*statuses).items()} | own
            if permission in GRANTS["read"]:
                own["200"]["headers"] = own["200"].get("headers", {}) | response_headers("Tally-Stale")["headers"]
            if permission in permissions.key_required:
                operation["security"] = [{"key": []}]
    document["tags"] = [{"name": name, "description": text} for name, (text, _) in _GROUPS.items() if name in groups]
    return document
