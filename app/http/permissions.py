"""Who may ask for what: one table of roles, and the keys, origins and hosts that are looked at."""

import re
from functools import lru_cache
from hashlib import blake2b
from hmac import compare_digest
from typing import Any, Literal

from fastapi import Request, Response
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from app.domain.counting import AMOUNT_MAX
from app.http.errors import Problem, documented, told
from app.http.rate_limits import RateLimits
from app.settings import Settings

Role = Literal["anyone", "read", "write", "hit", "admin", "badge", "embed", "live"]
Headers = list[tuple[bytes, bytes]]

# What each route asks for; one that is missing here is refused. `*` is a mount. Badges and embeds are reads that
# settings may open. Of Socket.IO only the origin is looked at here: its clients show their keys when they connect.
ROLES: dict[str, Role] = {
    "POST /event/{name}": "write",
    "POST /events": "write",
    "GET /event/{name}": "read",
    "GET /events": "read",
    "GET /leaderboard": "read",
    "GET /event/{name}/series": "read",
    "GET /series": "read",
    "GET /event/{name}/audience": "read",
    "GET /audience": "read",
    "GET /user/{id}": "read",
    "GET /session/{id}": "read",
    "GET /history": "read",
    "GET /history/{day}": "read",
    "GET /stream": "read",
    "GET /metrics": "read",
    "PUT /event/{name}": "admin",
    "DELETE /event/{name}": "admin",
    "DELETE /user/{id}": "admin",
    "POST /reset": "admin",
    "GET /export": "admin",
    "POST /import": "admin",
    "GET /hit/{key}": "hit",
    "GET /hit/{ns}/{key}": "hit",
    "GET /get/{key}": "read",
    "GET /get/{ns}/{key}": "read",
    "GET /info/{key}": "read",
    "GET /info/{ns}/{key}": "read",
    "GET /badge/{name}.svg": "badge",
    "GET /event/{name}/shield.json": "badge",
    "GET /embed/{name}": "embed",
    "GET /embed/{name}/stream": "embed",
    "* /socket.io": "live",
    "GET /": "anyone",
    "GET /kiosk": "anyone",
    "GET /health": "anyone",
    "GET /docs": "anyone",
    "* /docs/assets": "anyone",
    "GET /openapi.json": "anyone",
    "* /static": "anyone",
}
_OWN_PAGES: set[Role] = {"write", "admin", "live"}  # not for pages of foreign origins, as CountAPI's hits are

_HOLDS: dict[Role, set[Role]] = {"read": {"read", "badge", "embed"}, "write": {"write", "hit"}}
_HOLDS["admin"] = _HOLDS["read"] | _HOLDS["write"] | {"admin"}
_BEARER = re.compile(rb"bearer +([!-~]{1,256})", re.IGNORECASE)
_ADDRESS = re.compile(r"\[[0-9a-f:.]+\]|\d+\.\d+\.\d+\.\d+")
_EXPOSED = (b"access-control-expose-headers", b"Idempotent-Replayed, Link, Retry-After, Tally-Partial, Tally-Stale")
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, Last-Event-ID",
    "Access-Control-Max-Age": "7200",
}


class Permissions:
    def __init__(self, settings: Settings, limits: RateLimits) -> None:
        self._settings, self._limits = settings, limits
        self._keys: dict[bytes, set[Role]] = {}  # by their hashes, which are of one length
        for role, held in _HOLDS.items():
            for key in getattr(settings, f"{role}_keys"):
                self._keys.setdefault(_digest(key.get_secret_value().encode()), set()).update(held)
        opened: dict[Role, object] = {"badge": settings.public_badges, "embed": settings.embed_origins}
        read = {role for role in _HOLDS["read"] if settings.read_keys and not opened.get(role)}
        self._closed = {"admin", *read, *(_HOLDS["write"] if settings.write_keys else ())}
        self._looked_at = _HOLDS["admin"] if self._keys else self._closed  # a key that is shown must be known
        self._origins = {origin.encode() for origin in settings.allowed_origins}
        self._any_host = "*" in settings.allowed_hosts or not (settings.allowed_hosts or settings.loopback)
        self._serves = lru_cache(maxsize=1000)(self._is_ours)

    def enter(self, scope: Scope) -> Headers:
        """Refuse what is asked by a name that is not ours; else, what a browser is told beside the answer."""
        headers = dict(scope["headers"])
        if not self._serves(headers.get(b"host", b"")[:300]):  # no name is longer, and 1000 of them are remembered
            raise Problem(421, "this is not a name of this Tally (TALLY_ALLOWED_HOSTS)")
        if b"*" in self._origins:
            return [(b"access-control-allow-origin", b"*"), _EXPOSED]
        if headers.get(b"origin") in self._origins:
            return [(b"access-control-allow-origin", headers[b"origin"]), _EXPOSED, (b"vary", b"Origin")]
        return [(b"vary", b"Origin")] if self._origins else []

    def preflight(self, scope: Scope) -> Response | None:
        """The answer to a browser that asks for a page whether it may ask something."""
        asks = scope["type"] == "http" and scope["method"] == "OPTIONS"
        if not asks or b"access-control-request-method" not in dict(scope["headers"]):
            return None
        self._look_at_origin(scope)
        return Response(status_code=204, headers=_PREFLIGHT)

    def admit(self, scope: Scope, route: str) -> None:
        """Refuse who may not ask for this route."""
        role = ROLES.get(route)
        if role is None:
            raise Problem(403, "nothing says who may ask for this")
        if role in _OWN_PAGES:
            self._look_at_origin(scope)
        if role in self._looked_at:
            self._look_at_key(role, _bearer(scope), scope)

    async def guard(self, request: Request) -> None:
        """As a dependency of every route."""
        self.admit(request.scope, f"{request.method} {request.scope['route'].path_format}")

    def mounted(self, path: str, app: ASGIApp) -> ASGIApp:
        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            self.admit(scope, f"* {path}")
            await app(scope, receive, send)

        return guarded

    def admit_page(self, auth: object, scope: Scope) -> None:
        """Refuse a client of Socket.IO that may not read, by what it says when it connects."""
        if "read" in self._looked_at:
            key = auth.get("key") if isinstance(auth, dict) else None
            self._limits.charge(HTTPConnection(scope), "read", 0)  # who has guessed too often is told no more
            self._look_at_key("read", str(key).encode(errors="replace") if key else None, scope)

    def caller(self, scope: Scope) -> str:
        """Whose Idempotency-Keys these are."""
        return self._known(_bearer(scope)).hex() or "anonymous"

    def amount_max(self, scope: Scope) -> int:
        """The largest amount of a hit; who has a key to write is trusted with any."""
        most = self._settings.public_by_max
        return AMOUNT_MAX if most < AMOUNT_MAX and "write" in self._holds(_bearer(scope)) else most

    def describe(self, document: dict[str, Any]) -> dict[str, Any]:
        """OpenAPI's document, with what asks for a key, and how any route like this one may refuse."""
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for foreign in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(foreign, None)  # FastAPI's, which nothing here has
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                role = ROLES.get(f"{method.upper()} {path}")
                statuses = [421, *[404] * ("{" in path), *[400, 413] * ("requestBody" in operation)]
                statuses += [401, 403, 422, 429, 503] * (role != "anyone")
                own = operation["responses"]
                own.pop("422", None)  # likewise
                operation["responses"] = {str(status): text for status, text in documented(*statuses).items()} | own
                if role in _HOLDS["read"]:
                    own["200"]["headers"] = own["200"].get("headers", {}) | told("Tally-Stale")["headers"]
                if role in self._closed:
                    operation["security"] = [{"key": []}]
        return document

    def _is_ours(self, host: bytes) -> bool:
        """No public name can pose as an address, or as a name without a dot."""
        name = re.sub(r":\d*$", "", host.decode("latin-1").lower())
        return (
            self._any_host or "." not in name or bool(_ADDRESS.fullmatch(name)) or name in self._settings.allowed_hosts
        )

    def _look_at_origin(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        origin = headers.get(b"origin")
        if origin is None or origin in self._origins or b"*" in self._origins:
            return
        scheme = scope["scheme"].replace("ws", "http").encode()  # the client's, as far as a trusted proxy tells
        if origin != b"%b://%b" % (scheme, headers.get(b"host", b"").lower()):
            raise Problem(403, "pages of this origin may not do this (TALLY_ALLOWED_ORIGINS)")

    def _look_at_key(self, role: Role, key: bytes | None, scope: Scope) -> None:
        if role == "admin" and not self._settings.admin_keys:
            raise Problem(403, "nobody may do this as long as TALLY_ADMIN_KEYS is not set")
        holds = self._holds(key)
        if not holds and (key or role in self._closed):
            detail = "this key is not known" if key else "this needs a key, in Authorization: Bearer"
            if key:  # a guess costs what the request would
                self._limits.charge(HTTPConnection(scope), "read" if role in _HOLDS["read"] else "write")
            raise Problem(401, detail, {"WWW-Authenticate": "Bearer"})
        if role in self._closed - holds:
            raise Problem(403, "this key may not do this")

    def _holds(self, key: bytes | None) -> set[Role]:
        return self._keys.get(self._known(key), set())

    def _known(self, key: bytes | None) -> bytes:
        """The hash of this key if it is one of ours. It is compared with all, each in constant time."""
        given = _digest(key or b"")
        return max((digest for digest in self._keys if compare_digest(digest, given)), default=b"")


def _bearer(scope: Scope) -> bytes | None:
    match = _BEARER.fullmatch(dict(scope["headers"]).get(b"authorization", b""))
    return match and match[1]


def _digest(key: bytes) -> bytes:
    return blake2b(key, digest_size=16).digest()
