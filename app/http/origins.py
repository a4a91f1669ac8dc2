"""The host names that Tally serves, the web origins that may use it, and the CORS headers."""

import json
import re
from collections.abc import Mapping
from functools import lru_cache

from fastapi import Response
from starlette.types import Scope

from app.http.errors import Problem
from app.http.problem_kinds import HOST_NOT_ALLOWED, ORIGIN_NOT_ALLOWED
from app.settings import Settings

Headers = list[tuple[bytes, bytes]]

_IP_ADDRESS = re.compile(r"\[[0-9a-f:.]+\]|\d+\.\d+\.\d+\.\d+")
_CREDENTIALS = (b"access-control-allow-credentials", b"true")
_EXPOSED = (b"access-control-expose-headers", b"Idempotent-Replayed, Link, Retry-After, Tally-Partial, Tally-Stale")
_PREFLIGHT = {"Access-Control-Allow-Methods": "GET, POST, PUT, DELETE", "Access-Control-Max-Age": "7200"}
_USED_HEADERS = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID"
_HEADER_NAMES = re.compile(rb"[\w!#$%&'*+.^`|~-]{1,64}(, ?[\w!#$%&'*+.^`|~-]{1,64}){0,63}")
_TRUST_PROXY = "a proxy in front must be in TALLY_TRUSTED_PROXIES and send X-Forwarded-Proto"
_HOST_BYTES_MAX = 300  # no host name is longer; 1000 of them are cached


class Origins:
    """The allowed hosts and origins of the settings.

    Starlette's TrustedHostMiddleware and CORSMiddleware are not used: their errors are plain text, the first one
    does not accept all IP addresses, and the router bypass does not run middleware.
    """

    def __init__(self, settings: Settings) -> None:
        self._hosts = settings.allowed_hosts
        named = (origin.encode() for origin in settings.allowed_origins if origin != "*")
        self._named_origins = set(map(_without_default_port, named))
        self._any_origin = "*" in settings.allowed_origins
        self._any_host = "*" in settings.allowed_hosts or not (settings.allowed_hosts or settings.loopback)
        self._is_allowed_host = lru_cache(maxsize=1000)(self._check_host)

    def check_host_and_cors(self, headers: Mapping[bytes, bytes]) -> Headers:
        """Check the Host of these request headers, and return the CORS headers of the response. Raises Problem (421).

        The check defends against DNS rebinding: a hostile page whose host name resolves to Tally's address would be of
        the same origin as Tally.
        """
        host = headers.get(b"host", b"")[:_HOST_BYTES_MAX]
        if not self._is_allowed_host(host):
            name = _quoted(_without_port(host))
            raise Problem(HOST_NOT_ALLOWED, f"the host {name} is not allowed; add it to TALLY_ALLOWED_HOSTS")
        vary = [(b"vary", b"Origin")] if self._named_origins else []
        if headers.get(b"origin") in self._named_origins:
            # A beacon with a JSON body is sent only if credentials are allowed. Tally has no cookies.
            return [(b"access-control-allow-origin", headers[b"origin"]), _CREDENTIALS, _EXPOSED, *vary]
        return [(b"access-control-allow-origin", b"*"), _EXPOSED, *vary] if self._any_origin else vary

    def preflight(self, scope: Scope, *, any_origin: bool) -> Response | None:
        """Return the response to a CORS preflight request, or None for any other request. Raises Problem (403).

        All request headers are allowed, because tracing tools add their own. `any_origin` allows all origins.
        """
        headers = dict(scope["headers"])
        is_options = scope["type"] == "http" and scope["method"] == "OPTIONS"
        if not is_options or b"access-control-request-method" not in headers:
            return None
        if not any_origin:
            self.check_origin(scope)
        requested = headers.get(b"access-control-request-headers", b"")
        names = requested.decode() if _HEADER_NAMES.fullmatch(requested) else _USED_HEADERS
        return Response(status_code=204, headers={**_PREFLIGHT, "Access-Control-Allow-Headers": names})

    def check_origin(self, scope: Scope) -> None:
        """Accept requests without an Origin, from Tally's own pages or from an allowed origin. Raises Problem (403)."""
        headers = dict(scope["headers"])
        origin = headers.get(b"origin")
        if origin is None or origin in self._named_origins or self._any_origin:
            return
        scheme = scope["scheme"].replace("ws", "http").encode()  # a trusted proxy may have set it
        own = _without_default_port(b"%b://%b" % (scheme, headers.get(b"host", b"").lower()))
        origin = _without_default_port(origin)
        if origin != own:
            name = _quoted(origin[:_HOST_BYTES_MAX].decode("latin-1"))
            differs_in_scheme = origin.partition(b"://")[2] == own.partition(b"://")[2]
            remedy = _TRUST_PROXY if differs_in_scheme else "add it to TALLY_ALLOWED_ORIGINS"
            raise Problem(ORIGIN_NOT_ALLOWED, f"the web origin {name} is not allowed; {remedy}")

    def _check_host(self, host: bytes) -> bool:
        """Allow IP addresses and names without a dot, because no public DNS name can look like one."""
        name = _without_port(host)
        return self._any_host or "." not in name or bool(_IP_ADDRESS.fullmatch(name)) or name in self._hosts


def _without_port(host: bytes) -> str:
    return re.sub(r":\d*$", "", host.decode("latin-1").lower())


def _quoted(text: str) -> str:
    """Return the text of a header for people, with escapes instead of characters that are not printable ASCII."""
    return json.dumps(text)


def _without_default_port(origin: bytes) -> bytes:
    """Return an origin as browsers send it. A proxy may send the scheme's default port in the Host header."""
    return origin.removesuffix(b":443" if origin.startswith(b"https:") else b":80")
