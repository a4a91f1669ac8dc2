"""The OpenAPI document: error responses, response headers and API keys, which FastAPI does not add."""

from typing import Any

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


def complete(document: dict[str, Any], permissions: Permissions) -> dict[str, Any]:
    """Add the API keys and the error responses of every route to FastAPI's document."""
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    # FastAPI's own error schemas are removed, because errors are problem details here.
    for unused in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(unused, None)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
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
    return document
