"""The permission that each route needs, and the API keys that grant it."""

import re
from hashlib import blake2b
from hmac import compare_digest
from typing import Literal

from fastapi import Request
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from app.domain.counting import AMOUNT_MAX
from app.http.errors import Problem
from app.http.origins import Origins
from app.http.problem_kinds import ADMIN_DISABLED, API_KEY_REQUIRED, ROLE_REQUIRED, UNKNOWN_API_KEY
from app.http.rate_limits import RateLimits
from app.settings import Settings

Permission = Literal["anyone", "read", "write", "hit", "admin", "badge", "embed", "live"]

# What the dashboard tells people who embed a counter elsewhere: see Permissions.open_access.
Open = Literal["count", "read", "badges", "frames", "scripts"]

# The permission that each route needs; a route that is missing here is rejected. `*` is a mount. "badge" and "embed"
# are reads that settings may open to everyone. For "live" only the origin is checked at the mount: Socket.IO clients
# send their API key when they join a namespace, see authorize_socketio.
ROUTE_PERMISSIONS: dict[str, Permission] = {
    "POST /event/{name}": "write",
    "POST /events": "write",
    "GET /event/{name}": "read",
    "GET /events": "read",
    "GET /leaderboard": "read",
    "GET /movers": "read",
    "GET /event/{name}/series": "read",
    "GET /series": "read",
    "GET /event/{name}/audience": "read",
    "GET /audience": "read",
    "GET /user/{id}": "read",
    "GET /session/{id}": "read",
    "GET /history": "read",
    "GET /history/{day}": "read",
    "GET /notes": "read",
    "POST /notes": "write",
    "DELETE /notes/{id}": "admin",
    "GET /stream": "read",
    "GET /metrics": "read",
    "GET /metrics/events": "read",
    "GET /permissions": "anyone",
    "PUT /event/{name}": "admin",
    "DELETE /event/{name}": "admin",
    "DELETE /user/{id}": "admin",
    "POST /reset": "admin",
    "GET /alerts": "admin",
    "POST /alerts": "admin",
    "GET /alerts/{id}": "admin",
    "PUT /alerts/{id}": "admin",
    "DELETE /alerts/{id}": "admin",
    "POST /alerts/{id}/test": "admin",
    "GET /goals": "read",
    "PUT /goals/{name}": "admin",
    "DELETE /goals/{name}": "admin",
    "GET /shares": "admin",
    "POST /shares": "admin",
    "DELETE /shares/{id}": "admin",
    "GET /export": "admin",
    "GET /backup": "admin",
    "POST /import": "admin",
    "GET /hit/{key}": "hit",
    "GET /hit/{ns}/{key}": "hit",
    "GET /get/{key}": "read",
    "GET /get/{ns}/{key}": "read",
    "GET /info/{key}": "read",
    "GET /info/{ns}/{key}": "read",
    "GET /hit/{ns}/{key}/shield": "hit",
    "GET /get/{ns}/{key}/shield": "badge",
    "GET /stream/{ns}/{key}": "read",
    "GET /create/{key}": "admin",
    "GET /create/{ns}/{key}": "admin",
    "POST /create/{ns}/{key}": "admin",
    "GET /set/{key}": "admin",
    "GET /set/{ns}/{key}": "admin",
    "POST /set/{ns}/{key}": "admin",
    "POST /reset/{ns}/{key}": "admin",
    "POST /delete/{ns}/{key}": "admin",
    # An amount other than 1 needs what PUT /event/{name} needs: see countapi_changes.
    "GET /update/{key}": "hit",
    "GET /update/{ns}/{key}": "hit",
    "POST /update/{ns}/{key}": "hit",
    "GET /stats": "read",
    "GET /healthcheck": "anyone",
    "GET /badge/{name}.svg": "badge",
    "GET /event/{name}/shield.json": "badge",
    "GET /embed/{name}": "embed",
    "GET /embed/{name}/stream": "embed",
    # The token in the path is the permission: see routes/shares.py.
    "GET /share/{token}": "anyone",
    "GET /share/{token}/counts": "anyone",
    "GET /share/{token}/stream": "anyone",
    "* /socket.io": "live",
    "GET /": "anyone",
    "GET /kiosk": "anyone",
    "GET /health": "anyone",
    "GET /health/live": "anyone",
    "GET /health/ready": "anyone",
    "GET /docs": "anyone",
    "GET /docs/errors": "anyone",
    "* /docs/assets": "anyone",
    "GET /openapi.json": "anyone",
    "* /static": "anyone",
}
# Pages of a foreign origin may not do these. "hit" is missing because CountAPI's counters are made for any page.
_ORIGIN_CHECKED: set[Permission] = {"write", "admin", "live"}

# The permissions that the API keys of each role grant.
GRANTS: dict[Permission, set[Permission]] = {"read": {"read", "badge", "embed"}, "write": {"write", "hit"}}
GRANTS["admin"] = GRANTS["read"] | GRANTS["write"] | {"admin"}

_BEARER = re.compile(rb"bearer +([!-~]{1,256})", re.IGNORECASE)


class Permissions:
    """The API keys and the open permissions of the settings.

    `key_required` has the permissions that need an API key. Once any key is configured, a key that a client sends
    must be known even where none is required. Otherwise a client with an expired key would become anonymous, lose its
    idempotency keys, and count twice.
    """

    def __init__(self, settings: Settings, origins: Origins, rate_limits: RateLimits) -> None:
        self._settings, self._origins, self._rate_limits = settings, origins, rate_limits
        # Keys are stored as hashes, which all have the same length.
        self._grants: dict[bytes, set[Permission]] = {}
        for role, granted in GRANTS.items():
            for key in getattr(settings, f"{role}_keys"):
                self._grants.setdefault(_digest(key.get_secret_value().encode()), set()).update(granted)
        opened: dict[Permission, object] = {"badge": settings.public_badges, "embed": settings.embed_origins}
        read = {name for name in GRANTS["read"] if settings.read_keys and not opened.get(name)}
        self.key_required = {"admin", *read, *(GRANTS["write"] if settings.write_keys else ())}
        self._key_checked = GRANTS["admin"] if self._grants else self.key_required

    def open_access(self) -> list[Open]:
        """Return what needs no API key, and what pages of any other origin may use."""
        is_open: dict[Open, object] = {
            "count": "write" not in self.key_required,
            "read": "read" not in self.key_required,
            "badges": "badge" not in self.key_required,
            "frames": self._settings.embed_origins,
            "scripts": self._settings.allowed_origins,
        }
        return [name for name in is_open if is_open[name]]

    def authorize(self, scope: Scope, route: str) -> None:
        """Check that a request may use a route of ROUTE_PERMISSIONS. Raises Problem (401, 403, 429)."""
        permission = ROUTE_PERMISSIONS.get(route)
        if permission is None:
            raise Problem(ROLE_REQUIRED, "this route has no access rule, which is a bug in Tally; please report it")
        if permission in _ORIGIN_CHECKED:
            self._origins.check_origin(scope)
        if permission in self._key_checked:
            self._check_key(permission, _bearer(scope), scope)

    async def authorize_request(self, request: Request) -> None:
        """Authorize a request to the route that FastAPI has chosen; a dependency of all routes. Raises Problem."""
        self.authorize(request.scope, f"{request.method} {request.scope['route'].path_format}")

    def authorize_mount(self, path: str, app: ASGIApp) -> ASGIApp:
        """Return an application that authorizes each request before it calls the one mounted at this path."""

        async def authorized_app(scope: Scope, receive: Receive, send: Send) -> None:
            self.authorize(scope, f"* {path}")
            await app(scope, receive, send)

        return authorized_app

    def authorize_socketio(self, auth: object, scope: Scope) -> None:
        """Check the API key in the `auth` object of a Socket.IO client that joins. Raises Problem (401, 403, 429)."""
        if "read" in self._key_checked:
            key = auth.get("key") if isinstance(auth, dict) else None
            # After too many wrong keys, even the right one is rejected, so that keys cannot be guessed.
            self._rate_limits.consume(HTTPConnection(scope), "read", 0)
            self._check_key("read", str(key).encode(errors="replace") if key else None, scope)

    def limit_sessions(self, scope: Scope) -> None:
        """Count the begin of a Socket.IO session as one read. Raises Problem (429)."""
        self._rate_limits.consume(HTTPConnection(scope), "read")

    def granted(self, scope: Scope) -> set[Permission]:
        """Return what a client may do with its API key, or without one. An unknown key grants nothing."""
        key = _bearer(scope)
        granted = self._grants_of(key)
        return granted if key and self._grants and not granted else granted | (GRANTS["admin"] - self.key_required)

    def client_id(self, scope: Scope) -> str:
        """Return the client to which an idempotency key belongs: the hash of its API key, or "anonymous"."""
        return self._known_digest(_bearer(scope)).hex() or "anonymous"

    def amount_max(self, scope: Scope) -> int:
        """Return the largest amount of a hit that this client may send. A write key allows any amount."""
        most = self._settings.public_by_max
        return AMOUNT_MAX if most < AMOUNT_MAX and "write" in self._grants_of(_bearer(scope)) else most

    def _check_key(self, permission: Permission, key: bytes | None, scope: Scope) -> None:
        if permission == "admin" and not self._settings.admin_keys:
            raise Problem(ADMIN_DISABLED, "admin routes are disabled; set TALLY_ADMIN_KEYS and restart Tally")
        granted = self._grants_of(key)
        if not granted and (key or permission in self.key_required):
            kind, detail = API_KEY_REQUIRED, "API key required; send the header Authorization: Bearer <key>"
            if key:
                kind, detail = (
                    UNKNOWN_API_KEY,
                    "unknown API key; it may have been replaced or mistyped: send a current one",
                )
                # A wrong key costs as much as the request, so that keys cannot be guessed quickly.
                self._rate_limits.consume(HTTPConnection(scope), "read" if permission in GRANTS["read"] else "write")
            raise Problem(kind, detail, {"WWW-Authenticate": "Bearer"})
        if permission in self.key_required - granted:
            role = next(role for role, granted in GRANTS.items() if permission in granted)
            raise Problem(
                ROLE_REQUIRED, f"this API key does not have the {role} role; use one of TALLY_{role.upper()}_KEYS"
            )

    def _grants_of(self, key: bytes | None) -> set[Permission]:
        return self._grants.get(self._known_digest(key), set())

    def _known_digest(self, key: bytes | None) -> bytes:
        """Return the hash of this key if it is configured. It is compared with all keys, each in constant time."""
        given = _digest(key or b"")
        return max((digest for digest in self._grants if compare_digest(digest, given)), default=b"")


def _bearer(scope: Scope) -> bytes | None:
    match = _BEARER.fullmatch(dict(scope["headers"]).get(b"authorization", b""))
    return match and match[1]


def _digest(key: bytes) -> bytes:
    return blake2b(key, digest_size=16).digest()
