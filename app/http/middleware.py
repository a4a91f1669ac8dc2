"""What surrounds all routes: security headers, the host and CORS checks, compression, and HEAD requests."""

import asyncio
from collections.abc import Mapping

from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.countapi_paths import CHANGING_PATHS, COUNTAPI_PATHS
from app.http.errors import ErrorHandler, Problem
from app.http.origins import Headers, Origins
from app.http.problem_kinds import MALFORMED_REQUEST

SECURITY_HEADERS: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]
# Pages of any origin may use these paths, so they must be able to read errors, too.
_ANY_ORIGIN_PATHS = (*COUNTAPI_PATHS, "/badge/", "/static/tally-")
# A GET to these paths has an effect that a HEAD must not have: it changes a count, opens a session, or copies a store.
_GET_WITH_EFFECT = (*CHANGING_PATHS, "/socket.io/", "/backup")
_ANY_ORIGIN = [(b"access-control-allow-origin", b"*"), (b"cross-origin-resource-policy", b"cross-origin")]

_COMPRESSION = 2000, 5  # bytes from which a response is compressed, and the level: 250 kB of counts take 6 ms
# Exports and backups are streamed in small parts, which would be compressed one by one in the event loop. Pages and
# their files are compressed once: see static_files.
_STREAMED, _STATIC = ("application/x-ndjson", "application/vnd.sqlite3"), ("text/html", "text/css", "text/javascript")
_SEND = "tally.send"  # in the scope: sends a message as it is
_UNCOMPRESSED = (*DEFAULT_EXCLUDED_CONTENT_TYPES, *_STREAMED, *_STATIC)


def browser_headers(scope: Scope, origins: Origins) -> Headers:
    """Check the host and the framing, and return the security and CORS headers of the response.

    The middleware, the router bypass and the fast path all call this first. Raises Problem (400, 421).
    """
    headers = dict(scope["headers"])
    if headers.get(b"upgrade") and scope["type"] == "http":
        _reject_lost_body(headers)
    return SECURITY_HEADERS + origins.check_host_and_cors(headers)


def _reject_lost_body(headers: Mapping[bytes, bytes]) -> None:
    """Reject a body after an offer of an upgrade, because uvicorn's HTTP protocol drops it. Raises Problem (400).

    Tally's own protocol removes the offer, so only `uvicorn app.main:app` passes such a request on.
    """
    if headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers:
        detail = "this server drops the body of a request that offers an upgrade; send it without the header Upgrade"
        raise Problem(MALFORMED_REQUEST, detail, {"Connection": "close"})


class SecurityMiddleware:
    """Checks the host, responds to CORS preflights, and adds the security headers that a response does not set."""

    def __init__(self, app: ASGIApp, origins: Origins, error_response: ErrorHandler) -> None:
        self._app, self._origins, self._error_response = app, origins, error_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(SECURITY_HEADERS)

        async def send_with_headers(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                own = {name for name, _ in message["headers"]}
                added = [(n, v) for n, v in headers.items() if n not in own or n == b"vary"]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        app = self._app
        if scope["type"] != "lifespan":
            # Files are small, so ranges are not supported. Starlette's error for a bad one is not problem details.
            scope = {**scope, "headers": [header for header in scope["headers"] if header[0] != b"range"]}
            try:
                headers |= browser_headers(scope, self._origins)
                any_origin = scope["path"].startswith(_ANY_ORIGIN_PATHS)
                if any_origin:
                    headers = dict(_ANY_ORIGIN) | headers  # a named origin may send credentials
                app = self._origins.preflight(scope, any_origin=any_origin) or app
            except Problem as error:
                app = self._error_response(HTTPConnection(scope), error)
        await app(scope, receive, send_with_headers)


class CompressionMiddleware:
    """Compresses large responses, and passes on the messages of ASGI extensions, which Starlette's middleware drops."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._gzip = GZipMiddleware(self._run, *_COMPRESSION, exclude_content_types=_UNCOMPRESSED)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._gzip({**scope, _SEND: send}, receive, send)

    async def _run(self, scope: Scope, receive: Receive, send_compressed: Send) -> None:
        async def send_message(message: Message) -> None:
            await (send_compressed if message["type"].startswith("http.") else scope[_SEND])(message)

        await self._app(scope, receive, send_message)


class HeadMiddleware:
    """Responds to HEAD as to GET, but without a body: FastAPI's routes do not accept HEAD."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD" or scope["path"].startswith(_GET_WITH_EFFECT):
            await self._app(scope, receive, send)
            return
        head_sent = asyncio.Event()

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body"})
                head_sent.set()

        async def disconnect() -> Message:
            """Ends a response that is streamed."""
            await head_sent.wait()
            return {"type": "http.disconnect"}

        await self._app({**scope, "method": "GET"}, disconnect, send_head)
