"""The composition root: create_app(settings) builds all parts, and one lifespan starts and stops them."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import Depends, FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import __version__
from app.domain.calendar import Calendar, Clock
from app.group_commit import GroupCommitter
from app.http import errors as problems
from app.http.errors import Answer, Problem
from app.http.permissions import Permissions
from app.http.rate_limits import RateLimits
from app.http.routes import admin, badges, countapi, operations, stream
from app.http.routes import count as ingest
from app.http.routes import counts as query
from app.kafka.consumer import Kafka
from app.live.broadcaster import Broadcaster
from app.live.day import LiveDay
from app.live.peers import PeerSync
from app.metrics import Metrics
from app.scheduler import Jobs
from app.settings import Settings
from app.stores import create_store
from app.stores.base import CounterStore

# In a wheel, it is inside the package; in a checkout and in the image, it is next to the package.
STATIC = next(path for parent in Path(__file__).parents if (path := parent / "static").is_dir())

_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]
# What a page may do; every other answer, nothing.
_PAGE = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'self'"
)
_TRUSTED_TYPES = "; require-trusted-types-for 'script'; trusted-types 'none'"
# What pages of any origin are made to use: also an error must reach them as it is.
_FOR_ANY_ORIGIN = ("/badge/", "/hit/", "/get/", "/info/", "/static/tally-")
_ANY_ORIGIN = [(b"access-control-allow-origin", b"*"), (b"cross-origin-resource-policy", b"cross-origin")]


class Services(NamedTuple):
    """The parts of one application. Each receives those that it uses as arguments."""

    settings: Settings
    clock: Clock
    store: CounterStore
    metrics: Metrics
    live_day: LiveDay
    broadcaster: Broadcaster
    peers: PeerSync
    committer: GroupCommitter
    kafka: Kafka | None
    jobs: Jobs
    rate_limits: RateLimits
    permissions: Permissions


def create_app(settings: Settings, now: Callable[[], float] = time.time) -> FastAPI:
    """Build the application; its lifespan opens and closes the store.

    `now` returns the present UTC time in seconds. Raises StoreOpenError if a URL in the settings is invalid.
    """
    services = _create_services(settings, now)
    app = TallyApp(
        title="Tally",
        version=__version__,
        lifespan=_lifespan(services),
        dependencies=[Depends(services.permissions.guard)],
        docs_url=None,  # FastAPI's page loads its files from another site
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.live, app.state.store, app.state.kafka = services.broadcaster, services.store, services.kafka
    app.state.jobs = services.jobs.scheduler
    _add_routes(app, services)
    return app


def _create_services(settings: Settings, now: Callable[[], float]) -> Services:
    clock = Clock(Calendar(settings.timezone), now)
    rate_limits = RateLimits(settings)
    permissions = Permissions(settings, rate_limits)
    store = create_store(settings)
    metrics = Metrics()
    live_day = LiveDay(clock)
    broadcaster = Broadcaster(live_day, metrics, settings.live_interval_ms / 1000, permissions.admit_page)
    peers = PeerSync(store, live_day, clock, metrics)
    committer = GroupCommitter(store, clock, peers.publish, metrics)
    uses_kafka = settings.kafka or settings.kafka_inputs
    kafka = Kafka(settings, store, clock, live_day, peers, metrics) if uses_kafka else None
    return Services(
        settings=settings,
        clock=clock,
        store=store,
        metrics=metrics,
        live_day=live_day,
        broadcaster=broadcaster,
        peers=peers,
        committer=committer,
        kafka=kafka,
        jobs=Jobs(live_day, broadcaster, peers, kafka, store, clock, settings),
        rate_limits=rate_limits,
        permissions=permissions,
    )


def _lifespan(services: Services) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Return the lifespan: each part starts after the parts that it uses, and stops before them."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        kafka, scheduler = services.kafka, services.jobs.scheduler
        try:
            await services.store.open()
            services.broadcaster.start()
            await services.peers.start()
            services.committer.start()
            if kafka:
                kafka.start()
            scheduler.start()
            yield
            scheduler.shutdown()
            if kafka:
                await kafka.close()
            await services.committer.close()
            await services.peers.close()
            await services.broadcaster.close()
        finally:
            await services.store.close()

    return lifespan


def _add_routes(app: "TallyApp", services: Services) -> None:
    settings, clock, store, metrics, _, broadcaster, peers, committer, kafka, _, rate_limits, permissions = services
    app.access = permissions
    refuse = problems.install(app, metrics)
    hits = kafka if kafka and settings.kafka else committer
    count_event = ingest.add_routes(app, hits, rate_limits, permissions)
    charge, read_event = query.add_routes(app, store, clock, rate_limits, settings.days_kept)
    badges.add_routes(app, store, clock, charge)
    stream.add_routes(app, broadcaster, charge)
    admin.add_routes(app, committer, store, clock, rate_limits, settings.events_max)
    if settings.countapi:
        countapi.add_routes(app, store, committer, rate_limits, charge)
    operations.add_routes(app, store, peers, broadcaster, kafka, clock, rate_limits, metrics)
    _add_pages(app, permissions, broadcaster, settings.embed_origins)
    app.middleware_stack = SecurityMiddleware(app.build_middleware_stack(), permissions, refuse)
    app.shortcut = ingest.FastPath({"POST": count_event, "GET": read_event}, permissions, refuse, _HEADERS)


def _add_pages(app: FastAPI, access: Permissions, live: Broadcaster, embed_origins: Sequence[str]) -> None:
    """Add everything for browsers apart from the API: pages, their files, and Socket.IO."""
    _add_page(app, "/", "index.html")
    _add_page(app, "/kiosk", "kiosk.html")
    _add_page(app, "/docs", "docs.html", scripts="")  # which are not ours
    named = [Depends(ingest.name_under(b"embed"))]
    framers = " ".join(embed_origins) or "'none'"
    _add_page(app, "/embed/{name}", "embed.html", framers, dependencies=named)
    mounts: dict[str, ASGIApp] = {
        "/socket.io": live.asgi,
        "/docs/assets": StaticFiles(directory=str(files("fastapi_swagger") / "resources")),
        "/static": StaticFiles(directory=STATIC),
    }
    for path, mounted in mounts.items():
        app.mount(path, access.mounted(path, mounted))


def _add_page(
    app: FastAPI, path: str, file: str, framers: str = "'none'", scripts: str = _TRUSTED_TYPES, **options: Any
) -> None:
    headers = {"content-security-policy": f"{_PAGE}; frame-ancestors {framers}{scripts}"}
    app.add_api_route(path, lambda: FileResponse(STATIC / file, headers=headers), include_in_schema=False, **options)


class TallyApp(FastAPI):
    """FastAPI, which is asked for all but single events."""

    shortcut: ingest.FastPath
    access: Permissions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.shortcut.takes(scope):
            await self.shortcut(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        return self.openapi_schema or self.access.describe(super().openapi())


class SecurityMiddleware:
    """Before any route: by which name it is asked. On every answer: what a browser may do with it, if not said yet."""

    def __init__(self, app: ASGIApp, access: Permissions, refuse: Answer) -> None:
        self._app, self._access, self._refuse = app, access, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        headers = dict(_HEADERS)

        async def send_with_headers(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                said = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *((n, v) for n, v in headers.items() if n not in said)]
            await send(message)

        app = self._app
        if scope["type"] != "lifespan":
            # files are small, and Starlette's word on a bad range is not in our shape
            scope = {**scope, "headers": [header for header in scope["headers"] if header[0] != b"range"]}
            try:
                headers |= self._access.enter(scope) + (_ANY_ORIGIN if path.startswith(_FOR_ANY_ORIGIN) else [])
                app = self._access.preflight(scope) or app
            except Problem as error:
                app = await self._refuse(HTTPConnection(scope), error)
        await app(scope, receive, send_with_headers)


def __getattr__(name: str) -> FastAPI:
    """Create `app` for `uvicorn app.main:app` on first use, so that importing this module reads no environment."""
    if name == "app":
        return create_app(Settings())
    raise AttributeError(name)
