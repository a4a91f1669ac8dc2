"""The uvicorn server of `python -m app`: its limits and time-outs, and a graceful shutdown behind a proxy."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.flow_control import CLOSE_HEADER

from app.server.http_protocol import FastPath, FastPathProtocol
from app.server.websocket_protocol import SharedFrameProtocol

DRAIN_SECONDS = 3.0  # longer than nginx keeps an idle connection to a node
DRAIN_CHECK_SECONDS = 0.05
KEEP_ALIVE_SECONDS = 75  # longer than a proxy keeps an idle connection, which otherwise fails on a closed one
GRACEFUL_SHUTDOWN_SECONDS = 5  # a long poll would delay the exit by half a minute
WEBSOCKET_MESSAGE_BYTES_MAX = 65_536  # clients send only pings and short requests


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
        end_streams: Callable[[], None],
        fast_path: FastPath | None,
    ) -> None:
        """Configure the server. The caller runs the lifespan of `app`.

        `trusted_proxies` are the comma-separated addresses or networks whose X-Forwarded-For is used. `end_streams`
        is called when the shutdown begins. `fast_path` has the rules of the requests that bypass `app`.
        """
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            http=http_protocol(fast_path, trusted_proxies),
            ws=SharedFrameProtocol,
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=bool(trusted_proxies),
            forwarded_allow_ips=trusted_proxies,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
            ws_max_size=WEBSOCKET_MESSAGE_BYTES_MAX,
            ws_per_message_deflate=False,  # compressing a short message costs more than sending it
        )
        super().__init__(config)
        self._end_streams = end_streams

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._end_streams()
        if self.config.proxy_headers:
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


def http_protocol(fast_path: FastPath | None, trusted_proxies: str = "") -> type[asyncio.Protocol]:
    """Return the value for uvicorn's setting `http`."""
    protocol = partial(FastPathProtocol, fast_path=fast_path, use_proxy_headers=_proxy_headers(trusted_proxies))
    return cast("type[asyncio.Protocol]", protocol)  # uvicorn only calls it


def _proxy_headers(trusted_proxies: str) -> Callable[[Any], None]:
    """Return a function that does to a scope what uvicorn's middleware does, which the fast path bypasses."""

    async def end(*_: object) -> None:
        pass

    middleware = ProxyHeadersMiddleware(end, trusted_proxies)

    def use_proxy_headers(scope: Any) -> None:
        with contextlib.suppress(StopIteration):  # the coroutine ends without waiting for anything
            middleware(scope, None, None).send(None)  # type: ignore[arg-type] # `end` uses neither

    return use_proxy_headers if trusted_proxies else lambda _: None
