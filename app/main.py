"""The composition root: create_app(settings) builds all parts, and one lifespan starts and stops them."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

from fastapi import FastAPI

from app.alerts.service import AlertService
from app.backups import Backups
from app.domain.calendar import Calendar, Clock, TimeSlot
from app.group_commit import GroupCommitter
from app.http.app import TallyApp, include_pages, include_records, include_routes
from app.http.origins import Origins
from app.http.permissions import Permissions
from app.http.rate_limits import RateLimits
from app.kafka.service import KafkaService
from app.live.broadcaster import Broadcaster
from app.live.day import LiveDay
from app.live.peers import PeerSync
from app.live.socketio import SocketIoServer
from app.metrics import Metrics
from app.nightly_check import NightlyCheck
from app.notes import Notes
from app.scheduler import Jobs
from app.settings import Settings
from app.shares import Shares
from app.status import StatusMonitor
from app.stores import create_store
from app.stores.base import CounterStore


class Services(NamedTuple):
    """The parts of one application. Each receives those that it uses as arguments."""

    settings: Settings
    clock: Clock
    store: CounterStore
    metrics: Metrics
    live_day: LiveDay
    broadcaster: Broadcaster
    socketio_server: SocketIoServer
    peers: PeerSync
    committer: GroupCommitter
    alerts: AlertService
    shares: Shares
    kafka: KafkaService | None
    backups: Backups
    status_monitor: StatusMonitor
    jobs: Jobs
    origins: Origins
    rate_limits: RateLimits
    permissions: Permissions


def create_app(settings: Settings, now: Callable[[], float] = time.time) -> TallyApp:
    """Build the application; its lifespan opens and closes the store.

    `now` returns the present UTC time in seconds. Raises StoreOpenError if a URL in the settings is invalid.
    """
    services = _create_services(settings, now)
    app = TallyApp(services.permissions, services.origins, services.metrics, _lifespan(services), settings.root_path)
    app.state.socketio = services.socketio_server
    app.state.broadcaster, app.state.store, app.state.kafka = services.broadcaster, services.store, services.kafka
    app.state.jobs = services.jobs.scheduler
    notes = Notes(services.store.records)
    include_routes(
        app,
        settings=settings,
        rate_limits=services.rate_limits,
        store=services.store,
        clock=services.clock,
        committer=services.committer,
        kafka=services.kafka,
        broadcaster=services.broadcaster,
        peers=services.peers,
        metrics=services.metrics,
        status_monitor=services.status_monitor,
        backups=services.backups,
        note_service=notes,
    )
    include_records(
        app,
        settings=settings,
        rate_limits=services.rate_limits,
        store=services.store,
        clock=services.clock,
        broadcaster=services.broadcaster,
        alert_service=services.alerts,
        note_service=notes,
        share_service=services.shares,
    )
    include_pages(app, services.socketio_server, settings.embed_origins)
    return app


def _create_services(settings: Settings, now: Callable[[], float]) -> Services:
    clock = Clock(Calendar(settings.timezone), now)
    origins, rate_limits = Origins(settings), RateLimits(settings)
    permissions = Permissions(settings, origins, rate_limits)
    store, metrics, live_day = create_store(settings), Metrics(), LiveDay(clock)
    broadcaster = Broadcaster(live_day, metrics, settings.live_interval_ms / 1000)
    socketio_server = SocketIoServer(broadcaster, permissions.authorize_socketio, permissions.limit_sessions)
    peers = PeerSync(store, live_day, clock, metrics)
    alerts = AlertService(store, clock, metrics, allow_private=settings.alerts_allow_private)

    def publish(slot: TimeSlot, counts: dict[str, int], generation: int) -> None:
        peers.publish(slot, counts, generation)
        alerts.watcher.notice(counts)

    committer = GroupCommitter(store, clock, publish, metrics)
    uses_kafka = settings.kafka or settings.kafka_inputs
    kafka = KafkaService(settings, store, clock, live_day.count_of, publish, metrics) if uses_kafka else None
    backups, shares = Backups(store, now, settings), Shares(store, clock)
    nightly_check = NightlyCheck(store, backups, live_day, peers, settings, now, metrics)
    status_monitor = StatusMonitor(store, committer, peers, broadcaster, kafka, backups, nightly_check)
    jobs = Jobs(
        live_day, status_monitor, socketio_server, peers, store, alerts, shares, backups, nightly_check, clock, settings
    )
    return Services(
        settings=settings,
        clock=clock,
        store=store,
        metrics=metrics,
        live_day=live_day,
        broadcaster=broadcaster,
        socketio_server=socketio_server,
        peers=peers,
        committer=committer,
        alerts=alerts,
        shares=shares,
        kafka=kafka,
        backups=backups,
        status_monitor=status_monitor,
        jobs=jobs,
        origins=origins,
        rate_limits=rate_limits,
        permissions=permissions,
    )


def _lifespan(services: Services) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Return the lifespan: each part starts after the parts that it uses, and stops before them."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_exception_handler(_log_lost_error)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(services.store.close)
            await services.store.open()
            services.backups.remove_incomplete()
            await services.shares.start()
            stack.push_async_callback(services.socketio_server.close)
            services.broadcaster.start()
            stack.push_async_callback(services.broadcaster.close)
            await services.peers.start()
            stack.push_async_callback(services.peers.close)
            services.alerts.start()
            stack.push_async_callback(services.alerts.close)
            services.committer.start()
            stack.push_async_callback(services.committer.close)
            if services.kafka:
                services.kafka.start()
                stack.push_async_callback(services.kafka.close)
            services.jobs.scheduler.start()
            stack.push_async_callback(services.jobs.close)
            yield

    return lifespan


def _log_lost_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error that no code has received, unless a connection timed out while its host name was looked up.

    uvloop 0.23 then leaves the look-up behind, and its late error is that of a connection which has failed already.
    """
    is_task = isinstance(context.get("future"), asyncio.Task)
    if is_task or not isinstance(context.get("exception"), socket.gaierror):
        loop.default_exception_handler(context)


def __getattr__(name: str) -> FastAPI:
    """Create `app` for `uvicorn app.main:app` on first use, so that importing this module reads no environment."""
    if name == "app":
        return create_app(Settings())
    raise AttributeError(name)
