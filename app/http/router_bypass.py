"""Requests without FastAPI's router and middleware: POST and GET of one event, and WebSockets.

Their overhead is larger than the rest of such a request, and would stay in memory for as long as a WebSocket is open.
"""

import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import cast

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app.http.errors import EXPECTED_ERRORS, ErrorHandler
from app.http.middleware import SECURITY_HEADERS, browser_headers
from app.http.origins import Origins
from app.http.parsing import parse_event_path
from app.http.permissions import Permissions

EVENT_ROUTE = "/event/{name}"
SOCKETIO_PATH = "/socket.io"
EventEndpoint = Callable[[Request, str], Awaitable[Response]]

_EVENT_PATH = re.compile("/event/[^/]+")
_SOCKETIO_PATH = re.compile(re.escape(f"{SOCKETIO_PATH}/"))

log = logging.getLogger("tally.http")


def event_endpoints(routes: Sequence[BaseRoute]) -> dict[str, EventEndpoint]:
    """Return the endpoints that count and read one event, by method. Each takes the request and the event name."""
    return {
        method: cast("EventEndpoint", route.endpoint)
        for route in routes
        if isinstance(route, APIRoute) and route.path == EVENT_ROUTE
        for method in (route.methods or set()) & {"GET", "POST"}
    }


class RouterBypass:
    """Calls the endpoints of EVENT_ROUTE, by method.

    The router has the same endpoints, for OpenAPI. A test checks that both return the same responses.
    """

    def __init__(
        self,
        endpoints: Mapping[str, EventEndpoint],
        permissions: Permissions,
        origins: Origins,
        error_response: ErrorHandler,
    ) -> None:
        self._endpoints, self._permissions = endpoints, permissions
        self._origins, self._error_response = origins, error_response

    def matches(self, scope: Scope) -> bool:
        """Return whether this is a request to one of the endpoints."""
        return (
            scope["type"] == "http"
            and scope["method"] in self._endpoints
            and bool(_EVENT_PATH.fullmatch(scope["path"]))
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, headers = Request(scope, receive), SECURITY_HEADERS
        try:
            headers = browser_headers(scope, self._origins)
            self._permissions.authorize(scope, f"{scope['method']} {EVENT_ROUTE}")
            event = parse_event_path(scope["raw_path"], method=scope["method"])
            response = await self._endpoints[scope["method"]](request, event)
        except Exception as error:  # Starlette's ServerErrorMiddleware does not see this request
            if not isinstance(error, EXPECTED_ERRORS):
                log.exception("%s failed", EVENT_ROUTE)
            response = self._error_response(request, error)
        response.raw_headers += headers
        await response(scope, receive, send)


class WebSocketBypass:
    """Calls the Socket.IO application for a WebSocket, with the checks of its mount.

    The router has the same mount, for clients that poll.
    """

    def __init__(
        self, socketio: ASGIApp, permissions: Permissions, origins: Origins, error_response: ErrorHandler
    ) -> None:
        self._socketio = permissions.authorize_mount(SOCKETIO_PATH, socketio)
        self._origins, self._error_response = origins, error_response

    def matches(self, scope: Scope) -> bool:
        """Return whether this is a WebSocket of Socket.IO."""
        return scope["type"] == "websocket" and bool(_SOCKETIO_PATH.match(scope["path"]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = SECURITY_HEADERS
        try:
            headers = browser_headers(scope, self._origins)
            await self._socketio(scope, receive, send)
        except Exception as error:  # Starlette's ServerErrorMiddleware does not see this connection
            if not isinstance(error, EXPECTED_ERRORS):
                raise  # uvicorn logs it, and closes the connection
            response = self._error_response(HTTPConnection(scope), error)
            response.raw_headers.extend(headers)
            await response(scope, receive, send)
