"""The composition root: create_app(settings) builds the parts, one lifespan starts and stops them."""

import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path

from fastapi import Depends, FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import __version__, admin, badges, countapi, health, ingest, problems, query, stream
from app.events import Calendar, Clock
from app.feed import Feed
from app.limits import Limits
from app.live import Live
from app.metrics import Metrics
from app.nodes import Nodes
from app.recorder import Recorder
from app.schedule import schedule
from app.settings import Settings
from app.stores.base import Caps, CounterStore
from app.stores.memory import MemoryStore
from app.stores.redis import RedisStore, server
from app.stores.spool import SpooledStore
from app.stores.sqlite import SqliteStore
from app.stores.tags import TaggedStore

# inside the package in a wheel, beside it in a checkout and in the image
STATIC = next(path for parent in Path(__file__).parents if (path := parent / "static").is_dir())

_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
EMBED_ORIGINS = "'none'"  # whose pages may show a number in a frame
_TRUSTED_TYPES = "; require-trusted-types-for 'script'; trusted-types 'none'"
_DOCS_HEADERS, _HEADERS = (
    [
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache"),
        (b"content-security-policy", policy.encode()),
    ]
    for policy in (_CSP, _CSP + _TRUSTED_TYPES)
)
# What pages of any origin are made to use: also an error must reach them as it is.
_FOR_ANY_ORIGIN = ("/badge/", "/hit/", "/get/", "/info/", "/static/tally-")
_ANY_ORIGIN = [(b"access-control-allow-origin", b"*"), (b"cross-origin-resource-policy", b"cross-origin")]


def create_app(settings: Settings, now: Callable[[], float] = time.time) -> FastAPI:
    clock = Clock(Calendar(settings.timezone), now)
    store = create_store(settings)
    limits = Limits(settings)
    metrics = Metrics()
    feed = Feed(clock)
    live = Live(feed, metrics, settings.live_interval_ms / 1000)
    nodes = Nodes(store, feed, clock, metrics)
    recorder = Recorder(store, clock, nodes.publish, metrics)
    jobs = schedule(feed, live, nodes, store, clock, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await store.open()
            live.start()
            await nodes.start()
            recorder.start()
            jobs.start()
            yield
            jobs.shutdown()
            await recorder.close()
            await nodes.close()
            await live.close()
        finally:
            await store.close()

    app = _Tally(
        title="Tally",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # /docs is ours: FastAPI's loads its files from elsewhere
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.jobs, app.state.live, app.state.store = jobs, live, store
    refuse = problems.install(app, metrics)
    count_event = ingest.add_routes(app, recorder, limits)
    charge = query.add_routes(app, store, clock, limits, settings.days_kept)
    badges.add_routes(app, store, clock, charge)
    stream.add_routes(app, live, charge)
    admin.add_routes(app, recorder, store, clock, limits, settings.events_max)
    if settings.countapi:
        countapi.add_routes(app, store, recorder, limits, charge)
    health.add_routes(app, store, nodes, live, clock, limits, metrics)
    app.add_api_route("/", lambda: FileResponse(STATIC / "index.html"), include_in_schema=False)
    app.add_api_route("/docs", lambda: FileResponse(STATIC / "docs.html"), include_in_schema=False)
    framed = {
        "content-security-policy": _CSP.replace("ancestors 'none'", f"ancestors {EMBED_ORIGINS}") + _TRUSTED_TYPES
    }
    app.add_api_route(
        "/embed/{name}",
        lambda: FileResponse(STATIC / "embed.html", headers=framed),
        dependencies=[Depends(ingest.name_under(b"embed"))],
        include_in_schema=False,
    )
    app.mount("/socket.io", live.asgi)
    app.mount("/docs/assets", StaticFiles(directory=str(files("fastapi_swagger") / "resources")))
    app.mount("/static", StaticFiles(directory=STATIC))
    app.middleware_stack = _SecurityHeaders(app.build_middleware_stack())
    app.shortcut = ingest.Shortcut(count_event, refuse, _HEADERS)
    return app


def create_store(settings: Settings) -> CounterStore:
    caps = Caps(settings.events_max, settings.keys_max)
    if settings.store_kind == "redis":
        redis = server(settings.store)
        share = Caps(math.ceil(caps.names / redis.tags), math.ceil(caps.keys / redis.tags))
        tags = [RedisStore(redis, share, tag) for tag in range(redis.tags)]
        store = tags[0] if len(tags) == 1 else TaggedStore(tags)
        return SpooledStore(store, redis.identity, Path(settings.spool), settings.spool_max_mb * 1_000_000)
    if settings.store_kind == "sqlite":
        return SqliteStore(Path(settings.store.removeprefix("sqlite:///")), caps)
    return MemoryStore(caps)


class _Tally(FastAPI):
    """FastAPI, which is asked for all but single hits."""

    shortcut: ingest.Shortcut

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.shortcut.takes(scope):
            await self.shortcut(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class _SecurityHeaders:
    """On every answer: what a browser may do with it, where the route has not said so itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        headers = _DOCS_HEADERS if path.startswith("/docs") else _HEADERS
        if path.startswith(_FOR_ANY_ORIGIN):
            headers = [*headers, *_ANY_ORIGIN]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                said = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(header for header in headers if header[0] not in said)]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def __getattr__(name: str) -> FastAPI:
    """`uvicorn app.main:app`: the app is made when asked for, so that importing this module reads no environment."""
    if name == "app":
        return create_app(Settings())
    raise AttributeError(name)
