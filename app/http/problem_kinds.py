"""The kinds of error responses: a stable code, a status, a title and a description for each.

The page /docs/errors is made from this table. Tests compare docs/reference/errors.md and deploy/nginx.conf with it.
"""

from typing import NamedTuple


class ProblemKind(NamedTuple):
    """A kind of error response. Clients compare `code`; `description` is for people."""

    code: str
    status: int
    title: str
    description: str

    @property
    def type(self) -> str:
        """The URI reference that identifies the kind in problem details (RFC 9457)."""
        return f"/docs/errors#{self.code}"


MALFORMED_REQUEST = ProblemKind(
    "malformed-request", 400, "Malformed request", "The request is not valid HTTP, or it ended before its body did."
)
API_KEY_REQUIRED = ProblemKind(
    "api-key-required", 401, "API key required", "Send the header `Authorization: Bearer <key>`."
)
UNKNOWN_API_KEY = ProblemKind("unknown-api-key", 401, "Unknown API key", "It may have been replaced or mistyped.")
ROLE_REQUIRED = ProblemKind("role-required", 403, "API key without the required role", "Its role does not allow this.")
ADMIN_DISABLED = ProblemKind(
    "admin-disabled", 403, "Admin routes are disabled", "Set `TALLY_ADMIN_KEYS` on the server and restart it."
)
ORIGIN_NOT_ALLOWED = ProblemKind(
    "origin-not-allowed", 403, "Web origin not allowed", "Add the page's origin to `TALLY_ALLOWED_ORIGINS`."
)
NOT_FOUND = ProblemKind(
    "not-found",
    404,
    "Not found",
    "The server has no such route, file, alert, goal, note, shared link, or finished day.",
)
METHOD_NOT_ALLOWED = ProblemKind(
    "method-not-allowed", 405, "Method not allowed", "The header `Allow` lists the methods of this route."
)
COUNT_MOVED = ProblemKind(
    "count-moved", 409, "Count moved", "The event no longer has the expected number. Read it and correct it again."
)
COUNTER_EXISTS = ProblemKind(
    "counter-exists", 409, "Counter exists", "`/create` only makes a new counter; `/set` changes an existing one."
)
NO_STORE_FILE = ProblemKind(
    "no-store-file", 409, "Store without a file", "Only SQLite has a file. Save the counts with `GET /export`."
)
BACKUP_RUNNING = ProblemKind(
    "backup-running", 409, "Backup running", "One backup is made or downloaded at a time. Retry when it has finished."
)
REQUEST_TOO_LARGE = ProblemKind(
    "request-too-large", 413, "Request too large", "A hit may have 16 KiB, a batch 4 MiB and 10,000 items."
)
UNSUPPORTED_MEDIA_TYPE = ProblemKind(
    "unsupported-media-type",
    415,
    "Unsupported media type",
    "Send a batch as JSON, as NDJSON, or as text with one event name per line.",
)
HOST_NOT_ALLOWED = ProblemKind(
    "host-not-allowed", 421, "Host name not allowed", "Add the host name to `TALLY_ALLOWED_HOSTS`."
)
INVALID_REQUEST = ProblemKind(
    "invalid-request", 422, "Invalid request", "A parameter, header or field is invalid; the detail names it."
)
COUNT_OVERFLOW = ProblemKind(
    "count-overflow", 422, "Count overflow", "The largest count and total is 2^53 - 1 = 9007199254740991."
)
IDEMPOTENCY_MISMATCH = ProblemKind(
    "idempotency-mismatch", 422, "Idempotency key used before", "Use a new key for each new request."
)
RATE_LIMIT = ProblemKind(
    "rate-limit",
    429,
    "Rate limit exceeded",
    "Wait `Retry-After` seconds. The limits are `TALLY_WRITE_LIMIT` and `TALLY_READ_LIMIT`.",
)
EVENT_LIMIT = ProblemKind(
    "event-limit",
    429,
    "Event limit reached",
    "New event names are rejected (`TALLY_EVENTS_MAX`). Existing events still count.",
)
CHANGE_LIMIT = ProblemKind(
    "change-limit", 429, "Change limit reached", "A day has at most 10,000 corrections, deletions and resets."
)
ALERT_LIMIT = ProblemKind("alert-limit", 429, "Alert limit reached", "Delete alerts that are no longer needed.")
GOAL_LIMIT = ProblemKind("goal-limit", 429, "Goal limit reached", "Delete goals that are no longer needed.")
SHARE_LIMIT = ProblemKind("share-limit", 429, "Share limit reached", "Revoke links that are no longer needed.")
INTERNAL_ERROR = ProblemKind("internal-error", 500, "Internal error", "A bug in Tally. Details are in the server log.")
IDEMPOTENCY_LIMIT = ProblemKind(
    "idempotency-limit",
    503,
    "Idempotency key limit reached",
    "`TALLY_KEYS_MAX` keys are in use, or a tenth of them by one client. A key expires after 24 hours.",
)
OVERLOADED = ProblemKind(
    "overloaded", 503, "Overloaded", "Too many hits are waiting to be written, or are being received. Retry later."
)
TOO_MANY_CONNECTIONS = ProblemKind(
    "too-many-connections", 503, "Too many live connections", "This node has reached its limit. Retry later."
)
STORE_UNAVAILABLE = ProblemKind(
    "store-unavailable", 503, "Store unavailable", "The store or Kafka cannot be reached. Nothing was counted."
)
BACKUP_FAILED = ProblemKind(
    "backup-failed", 503, "Backup failed", "The copy could not be written, for example because the disk is full."
)
OUTCOME_UNKNOWN = ProblemKind(
    "outcome-unknown",
    503,
    "Outcome unknown",
    "The hits were counted once or not at all. A retry is safe with an `Idempotency-Key`.",
)

# The proxy of docker-compose.yml sends these when a request does not reach a node.
NOT_SERVED = ProblemKind("not-served", 403, "Not served by the proxy", "Send the request to a node, not to the proxy.")
URL_TOO_LONG = ProblemKind("url-too-long", 414, "URL too long", "The proxy accepts request lines of up to 8 KiB.")
HEADERS_TOO_LARGE = ProblemKind(
    "headers-too-large", 431, "Request headers too large", "The proxy accepts up to 32 KiB, with 8 KiB for a header."
)
NO_NODE = ProblemKind(
    "no-node", 502, "No node available", "No node answered. The hits may have been counted; see `counted`."
)
NODE_TIMEOUT = ProblemKind("node-timeout", 504, "No response in time", "The hits may have been counted.")

PROBLEM_KINDS = tuple(value for value in globals().values() if isinstance(value, ProblemKind))
