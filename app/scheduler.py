"""The periodic jobs. Counts are correct even if none of them runs, because a day is a key and not a job."""

import asyncio
import functools
import logging
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import cast

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.interval import IntervalTrigger

from app.alerts.service import AlertService
from app.backups import Backups
from app.domain.calendar import Calendar, Clock, TimeSlot
from app.live.broadcaster import SLOW_CLIENT_TIMEOUT_SECONDS
from app.live.day import LiveDay
from app.live.peers import PeerSync
from app.live.socketio import SocketIoServer
from app.nightly_check import NightlyCheck
from app.notes import Notes
from app.settings import Settings
from app.shares import Shares
from app.status import StatusMonitor
from app.stores.base import CounterStore, StoreError

CANCEL_TRIES = 10  # a second apart, at a shutdown

log = logging.getLogger("tally.scheduler")


class Midnight(BaseTrigger):  # type: ignore[misc] # APScheduler ships no types
    """Fires so many seconds after the time zone's next day begins.

    APScheduler's triggers miss a midnight that the zone skips.
    """

    def __init__(self, calendar: Calendar, delay_seconds: float = 0) -> None:
        self._calendar, self._delay_seconds = calendar, delay_seconds

    def get_next_fire_time(self, _previous: datetime | None, now: datetime) -> datetime:
        midnight = self._calendar.next_day(now.timestamp() - self._delay_seconds)
        return self._calendar.local(midnight + self._delay_seconds)


class Jobs:
    """The periodic jobs of a node, in an APScheduler `scheduler` that the caller starts. `close` ends it."""

    def __init__(
        self,
        live_day: LiveDay,
        status_monitor: StatusMonitor,
        socketio_server: SocketIoServer,
        peers: PeerSync,
        store: CounterStore,
        alerts: AlertService,
        shares: Shares,
        backups: Backups,
        nightly_check: NightlyCheck,
        clock: Clock,
        settings: Settings,
    ) -> None:
        self._live_day, self._status_monitor, self._peers = live_day, status_monitor, peers
        self._socketio_server, self._store, self._clock = socketio_server, store, clock
        self._alerts, self._shares, self._backups, self._nightly_check = alerts, shares, backups, nightly_check
        self._notes = Notes(store.records)
        self._retention_seconds = {
            "minute": settings.minutes_kept_hours * 3600,
            "hour": settings.hours_kept_days * 86_400,
        }
        self._days_kept = settings.days_kept
        self._makes_backups = settings.backup_every > 0
        self._running = set[asyncio.Task[None]]()
        # A job that is late or was missed still runs, once.
        defaults = {"misfire_grace_time": None, "coalesce": True}
        self.scheduler = AsyncIOScheduler(timezone=clock.calendar.zone, job_defaults=defaults)
        self._add_jobs()

    def _add_jobs(self) -> None:
        add = self._add_job
        add(self.close_day, Midnight(self._clock.calendar), id="close_day")
        add(self.close_day, IntervalTrigger(seconds=30), id="close_day_retry")
        add(self.publish_status, IntervalTrigger(seconds=1), id="publish_status")
        unjoined_timeout = IntervalTrigger(seconds=SLOW_CLIENT_TIMEOUT_SECONDS)
        add(self._socketio_server.close_unjoined, unjoined_timeout, id="close_unjoined")
        add(self._peers.resync, IntervalTrigger(seconds=2), id="resync")
        add(self._alerts.check_alerts, IntervalTrigger(seconds=5), id="check_alerts")
        delay = random.uniform(3, 4) * 3600  # noqa: S311 # so that not all services of a machine check at the same time
        add(self._nightly_check.run, Midnight(self._clock.calendar, delay), id="nightly_check")
        if self._makes_backups:
            add(
                self._backups.back_up_if_due, IntervalTrigger(seconds=60), id="back_up", next_run_time=datetime.now(UTC)
            )
        if self._store.shared:
            add(self._store.recover_orphans, IntervalTrigger(seconds=10), id="recover_orphans")
            add(self._shares.refresh, IntervalTrigger(seconds=2), id="refresh_shares")

    def _add_job(self, job: Callable[[], Awaitable[object]], trigger: BaseTrigger, **options: object) -> None:
        """Add a job that logs a store error as a warning, and that `close` can cancel without an error in the log."""

        @functools.wraps(job)
        async def run() -> None:
            task = cast("asyncio.Task[None]", asyncio.current_task())
            self._running.add(task)
            try:
                await job()
            except StoreError as error:
                log.warning("%s was skipped and will be retried: %s", job.__name__, error)
            except asyncio.CancelledError:
                log.debug("%s was cancelled", job.__name__)
            finally:
                self._running.discard(task)

        self.scheduler.add_job(run, trigger, **options)

    async def close(self) -> None:
        """Start no more jobs, cancel those that run, and return when they have ended, or after CANCEL_TRIES."""
        self.scheduler.pause()
        await asyncio.sleep(0)  # a job that was just submitted begins, and is among the running ones
        for _ in range(CANCEL_TRIES):  # redis-py may treat a cancellation as a failure of its own, so it is repeated
            if not self._running:
                break
            for task in self._running:
                task.cancel()
            await asyncio.wait(self._running, timeout=1)
        self.scheduler.shutdown()

    async def close_day(self) -> None:
        """Announce a new day to clients if one has begun, and apply retention. Idempotent."""
        slot = self._clock.slot()
        self._live_day.start_day(slot)
        try:
            slot = await self._retention_slot(slot)
            cutoffs = {step: slot.minute - seconds for step, seconds in self._retention_seconds.items()}
            cutoffs["day"] = self._clock.calendar.starts("day", slot.day, self._days_kept)[0]
            await self._store.prune(cutoffs, slot)
            await self._notes.prune(cutoffs["day"])
        except StoreError as error:
            log.warning("retention was skipped and will be retried: %s", error)

    async def _retention_slot(self, now: TimeSlot) -> TimeSlot:
        """Return the slot from which the age of hits is counted. Raises StoreError.

        It is at most one day ahead of the second newest day with hits, because a clock that is fast must not delete
        history, and neither must one hit under such a clock.
        """
        days = await self._store.newest_days()
        if not days:
            return now
        calendar = self._clock.calendar
        return calendar.slot(min(now.minute, calendar.next_day(calendar.next_day(days[-1])) - 60))

    async def publish_status(self) -> None:
        """Send the overall status to dashboards if it has changed."""
        self._status_monitor.record_jobs_ran()
        current = self._status_monitor.current()
        self._live_day.set_status(current.status, current.reasons)
