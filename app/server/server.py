"""The uvicorn server of `python -m app`: its limits and time-outs, and a graceful shutdown behind a proxy."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.flow_control import CLOSE_HEADER

from app.server.connection import UnreadResponses
from app.server.http_protocol import FastPath, FastPathProtocol
from app.server.websocket_protocol import SharedFrameProtocol

DRAIN_SECONDS = 3.0  # longer than nginx keeps an idle connection to a node
DRAIN_CHECK_SECONDS = 0.05
GRACEFUL_SHUTDOWN_SECONDS = 5  # a long poll would delay the exit by half a minute
WEBSOCKET_MESSAGE_BYTES_MAX = 65_536  # clients send only pings and short requests


class ProxyHeaders(ProxyHeadersMiddleware):
    """Sets the client and the scheme of a scope to those that a trusted proxy has sent.

    uvicorn's middleware ignores an X-Forwarded-Proto such as `HTTPS` or, from several proxies, `https, http`.
    """

    def __init__(self, app: Any, trusted_proxies: str) -> None:
        super().__init__(app, trusted_proxies)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        protos = [value for name, value in scope["headers"] if name == b"x-forwarded-proto"]
        if protos:
            first = protos[0].partition(b",")[0].strip().lower()  # the proxy that is next to the client
            others = [header for header in scope["headers"] if header[0] != b"x-forwarded-proto"]
            scope["headers"] = [*others, (b"x-forwarded-proto", first)]
        await super().__call__(scope, receive, send)


class TallyServer(uvicorn.Server):
    """uvicorn.Server that ends streams on shutdown and, behind a proxy, first waits for the proxy to disconnect.

    uvicorn would cut event streams off. It would also close an idle keep-alive connection while the proxy is sending
    the next request on it, and that hit would be lost.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        trusted_proxies: str,
        keep_alive_seconds: int,
        on_started: Callable[[], None],
        end_streams: Callable[[], None],
        fast_path: FastPath | None,
    ) -> None:
        """Configure the server. The caller runs the lifespan of `app`.

        `trusted_proxies` are the comma-separated addresses or networks whose X-Forwarded-For is used. `on_started`
        is called when the port is bound, and `end_streams` when the shutdown begins. `fast_path` has the rules of the
        requests that bypass `app`.
        """
        config = uvicorn.Config(
            ProxyHeaders(app, trusted_proxies) if trusted_proxies else app,
            host=host,
            port=port,
            http=http_protocol(fast_path, trusted_proxies),
            ws=SharedFrameProtocol,
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,  # ProxyHeaders does it
            timeout_keep_alive=keep_alive_seconds,
            timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
            ws_max_size=WEBSOCKET_MESSAGE_BYTES_MAX,
            ws_per_message_deflate=False,  # compressing a short message costs more than sending it
        )
        super().__init__(config)
        self._on_started, self._end_streams, self._is_proxied = on_started, end_streams, bool(trusted_proxies)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen. Raises OSError if the address cannot be used."""
        await super().startup(sockets or _listening_sockets(self.config.host, self.config.port))
        self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._end_streams()
        if self._is_proxied:
            await self._drain()
        await super().shutdown(sockets)

    async def _drain(self) -> None:
        """Accept no new connections; respond on the existing ones until the proxy has closed them.

        `servers`, `default_headers` and `connections` are private: uvicorn's shutdown has no hook between closing the
        listening sockets and closing the connections.
        """
        for server in self.servers:
            server.close()
        self.server_state.default_headers.append(CLOSE_HEADER)
        for _ in range(round(DRAIN_SECONDS / DRAIN_CHECK_SECONDS)):
            if not any(isinstance(connection, FastPathProtocol) for connection in self.server_state.connections):
                break
            await asyncio.sleep(DRAIN_CHECK_SECONDS)


def _listening_sockets(host: str, port: int) -> list[socket.socket]:
    """Return a socket for each address of the host; `::` is IPv6 and IPv4. Raises OSError.

    uvicorn would exit by itself if a port is in use.
    """
    has_ipv6 = socket.has_dualstack_ipv6()
    try:
        if host == "::" and has_ipv6:
            return [socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)]
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        addresses = {(family, address) for family, *_, address in found if family == socket.AF_INET or has_ipv6}
        return [socket.create_server(address, family=family) for family, address in addresses]
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise OSError(f"port {port} is in use: stop the other program, or set TALLY_PORT") from error


def http_protocol(fast_path: FastPath | None, trusted_proxies: str = "") -> type[asyncio.Protocol]:
    """Return the value for uvicorn's setting `http`."""
    protocol = partial(
        FastPathProtocol,
        unread=UnreadResponses(),
        fast_path=fast_path,
        use_proxy_headers=_proxy_headers(trusted_proxies),
    )
    return cast("type[asyncio.Protocol]", protocol)  # uvicorn only calls it


def _proxy_headers(trusted_proxies: str) -> Callable[[Any], None]:
    """Return a function that does to a scope what ProxyHeaders does, which the fast path bypasses."""

    async def end(*_: object) -> None:
        pass

    middleware = ProxyHeaders(end, trusted_proxies)

    def use_proxy_headers(scope: Any) -> None:
        with contextlib.suppress(StopIteration):  # the coroutine ends without waiting for anything
            middleware(scope, None, None).send(None)

    return use_proxy_headers if trusted_proxies else lambda _: None
