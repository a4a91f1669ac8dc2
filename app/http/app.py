"""The FastAPI application: all routes, the bypass of its router, and the security middleware around everything."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from app import __version__
from app.alerts.service import AlertService
from app.backups import Backups
from app.domain.calendar import Clock
from app.goals import Goals
from app.group_commit import GroupCommitter
from app.http import openapi
from app.http.dependencies import ReadLimit, limit_writes
from app.http.errors import add_error_handlers
from app.http.fast_path import FastPath
from app.http.middleware import CompressionMiddleware, HeadMiddleware, SecurityMiddleware
from app.http.origins import Origins
from app.http.permissions import ROUTE_PERMISSIONS, Permissions
from app.http.queries import CountQueries
from app.http.rate_limits import RateLimits
from app.http.router_bypass import RouterBypass, WebSocketBypass, event_endpoints
from app.http.routes import (
    admin,
    alerts,
    badges,
    count,
    countapi,
    countapi_changes,
    countapi_stream,
    counts,
    export_import,
    goals,
    history,
    movers,
    notes,
    operations,
    pages,
    series,
    shares,
    stream,
    visitors,
)
from app.kafka.service import KafkaService
from app.live.broadcaster import Broadcaster
from app.live.peers import PeerSync
from app.live.socketio import SocketIoServer
from app.metrics import Metrics
from app.notes import Notes
from app.settings import Settings
from app.shares import Shares
from app.status import StatusMonitor
from app.stores.base import CounterStore

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


class TallyApp(FastAPI):
    """FastAPI with a bypass of its router for the requests that it matches, and with TALLY_ROOT_PATH."""

    _event_bypass: RouterBypass
    _websocket_bypass: WebSocketBypass
    fast_path: FastPath | None = None  # for a server that supports it; None if hits go to Kafka first

    def __init__(
        self, permissions: Permissions, origins: Origins, metrics: Metrics, lifespan: Lifespan, prefix: str
    ) -> None:
        """`prefix` is TALLY_ROOT_PATH. Starlette's root_path would not serve requests without it."""
        self.permissions, self.origins, self.prefix = permissions, origins, prefix
        super().__init__(
            title="Tally",
            version=__version__,
            lifespan=lifespan,
            servers=[{"url": "."}],  # relative to the URL of the document, so it is right behind any proxy
            dependencies=[Depends(permissions.authorize_request)],
            docs_url=None,  # FastAPI's page loads its files from other servers; /docs is in routes/pages.py
            redoc_url=None,
            redirect_slashes=False,  # clients drop the body of a redirected POST, or do not follow it
            telemetry={"tracing": False, "metrics": False, "logs": False},
        )
        self.error_response = add_error_handlers(self, metrics, prefix)

    def router_with(self, *dependencies: Callable[..., Any]) -> APIRouter:
        """Return a router that adds its routes to this application, authorized and with these dependencies.

        It shares the application's list of routes. FastAPI's include_router would match each request twice, which takes
        8 to 20 µs (FastAPI 0.165).
        """
        router = APIRouter(dependencies=[*self.router.dependencies, *map(Depends, dependencies)])
        router.routes = self.router.routes
        return router

    def build_bypasses(self, socketio: ASGIApp) -> None:
        """Make the bypasses for the routes that were added. Must be called before the first request."""
        rules = self.permissions, self.origins, self.error_response
        self._event_bypass = RouterBypass(event_endpoints(self.routes), *rules)
        self._websocket_bypass = WebSocketBypass(socketio, *rules)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope = self._without_prefix(scope)
        if self._event_bypass.matches(scope):
            await self._event_bypass(scope, receive, send)
        elif self._websocket_bypass.matches(scope):
            await self._websocket_bypass(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def _without_prefix(self, scope: Scope) -> Scope:
        """Remove the prefix from the path, so that no other code has to know it."""
        prefix = self.prefix
        if not prefix or not scope.get("raw_path", b"").startswith(b"%b/" % prefix.encode()):
            return scope
        return {**scope, "path": scope["path"][len(prefix) :], "raw_path": scope["raw_path"][len(prefix) :]}

    def redirect_prefix(self) -> None:
        """Redirect the prefix to the dashboard, whose relative links need the slash at its end.

        Raises ValueError if the prefix begins like a route, because paths would then be ambiguous.
        """
        if not self.prefix:
            return
        first = self.prefix.split("/")[1]
        if first in {route.split("/")[1] for route in ROUTE_PERMISSIONS}:
            raise ValueError(f"TALLY_ROOT_PATH: /{first} is the beginning of Tally's own paths; choose another one")
        self.add_route(self.prefix, lambda _: RedirectResponse(f"{self.prefix}/"))

    def build_middleware_stack(self) -> ASGIApp:
        """Put the security middleware around the handlers of all errors, so that every response gets its headers."""
        compressed = CompressionMiddleware(super().build_middleware_stack())
        return SecurityMiddleware(HeadMiddleware(compressed), self.origins, self.error_response)

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, which is made once."""
        if not self.openapi_schema:
            openapi.group_routes(self.routes)
            openapi.complete(super().openapi(), self.permissions)
        return super().openapi()


def include_routes(
    app: TallyApp,
    *,
    settings: Settings,
    rate_limits: RateLimits,
    store: CounterStore,
    clock: Clock,
    committer: GroupCommitter,
    kafka: KafkaService | None,
    broadcaster: Broadcaster,
    peers: PeerSync,
    metrics: Metrics,
    status_monitor: StatusMonitor,
    backups: Backups,
    note_service: Notes,
) -> None:
    """Add the routes that count, read and change counts. Hits go to Kafka if the settings name one as a buffer."""
    queries, read_limit = CountQueries(store, clock), ReadLimit(rate_limits, store)
    router, reads, writes = _routers(app, rate_limits, read_limit)
    buffer = kafka and kafka.buffer
    count.add_routes(router, buffer or committer, rate_limits, app.permissions)
    if not buffer:
        app.fast_path = FastPath(committer, app.permissions, app.origins, rate_limits, app.error_response, app.prefix)
    counts.add_routes(router, reads, queries, read_limit, app.prefix)
    _include_past(reads, queries, note_service, settings)
    badges.add_routes(reads, store, clock)
    stream.add_routes(reads, broadcaster)
    admin.add_routes(writes, committer, store, clock, settings.events_max)
    export_import.add_routes(writes, store, clock, backups)
    if settings.countapi:
        countapi.add_routes(router, store, committer, rate_limits, read_limit)
        countapi_changes.add_routes(writes, store, committer, clock, app.permissions, settings.events_max)
        countapi_stream.add_routes(reads, store, broadcaster)
        operations.add_abacus_status(router, reads, store, status_monitor)
    operations.add_metrics(router, reads, metrics, queries, rate_limits)
    operations.add_permissions(reads, app.permissions)
    operations.add_health(router, store, clock, peers, broadcaster, kafka, status_monitor, app.permissions)


def _include_past(reads: APIRouter, queries: CountQueries, note_service: Notes, settings: Settings) -> None:
    """Add the routes that read counts of earlier times."""
    series.add_routes(reads, queries)
    movers.add_routes(reads, queries, settings.hours_kept_days, settings.days_kept)
    visitors.add_routes(reads, queries)
    history.add_routes(reads, queries, note_service, settings.days_kept)


def include_records(
    app: TallyApp,
    *,
    settings: Settings,
    rate_limits: RateLimits,
    store: CounterStore,
    clock: Clock,
    broadcaster: Broadcaster,
    alert_service: AlertService,
    note_service: Notes,
    share_service: Shares,
) -> None:
    """Add the routes of what is stored in addition to counts: alerts, goals, notes and shares."""
    _, reads, writes = _routers(app, rate_limits, ReadLimit(rate_limits, store))
    alerts.add_routes(writes, alert_service, clock)
    goals.add_routes(reads, writes, Goals(store.records), store, clock)
    notes.add_routes(reads, writes, note_service, clock, app.permissions, rate_limits, settings.days_kept)
    shares.add_admin_routes(writes, share_service, clock, app.prefix)
    shares.add_public_routes(reads, share_service, store, clock, broadcaster)


def _routers(app: TallyApp, rate_limits: RateLimits, read_limit: ReadLimit) -> tuple[APIRouter, APIRouter, APIRouter]:
    """Return routers without a rate limit, with the read limit, and with the write limit."""
    reads = app.router_with(read_limit)
    reads.route_class = read_limit.route_class()
    return app.router_with(), reads, app.router_with(limit_writes(rate_limits))


def include_pages(app: TallyApp, socketio_server: SocketIoServer, embed_origins: Sequence[str]) -> None:
    """Add the pages, the static files and Socket.IO. Call it last, because these paths are prefixes."""
    pages.add_routes(app.router_with(), embed_origins)
    pages.mount_files(app, app.permissions, socketio_server.asgi)
    app.redirect_prefix()
    app.build_bypasses(socketio_server.asgi)
