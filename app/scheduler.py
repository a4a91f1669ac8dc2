"""The periodic jobs. Counts are correct even if none of them runs, because a day is a key and not a job."""

import logging
from collections.abc import Awaitable, Callable
from datetime import datetime

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.interval import IntervalTrigger

from app.domain.calendar import Calendar, Clock
from app.kafka.consumer import Kafka
from app.live.broadcaster import STUCK_SECONDS, Broadcaster
from app.live.day import LiveDay
from app.live.peers import PeerSync
from app.settings import Settings
from app.status import service_status
from app.stores.base import CounterStore, StoreError

log = logging.getLogger("tally.scheduler")


class Midnight(BaseTrigger):  # type: ignore[misc] # APScheduler ships no types
    """Fires when the time zone's next day begins. APScheduler's triggers miss a midnight that the zone skips."""

    def __init__(self, calendar: Calendar) -> None:
        self._calendar = calendar

    def get_next_fire_time(self, _previous: datetime | None, now: datetime) -> datetime:
        return self._calendar.local(self._calendar.next_day(now.timestamp()))


def create_scheduler(
    live_day: LiveDay,
    broadcaster: Broadcaster,
    peers: PeerSync,
    kafka: Kafka | None,
    store: CounterStore,
    clock: Clock,
    settings: Settings,
) -> AsyncIOScheduler:
    """Return a scheduler with all jobs, not yet started."""
    retention_seconds = {"minute": settings.minutes_kept_hours * 3600, "hour": settings.hours_kept_days * 86_400}

    async def close_day() -> None:
        """Close the day: announce the new one to clients and apply retention. Idempotent."""
        slot = clock.slot()
        live_day.turn(slot)
        cutoffs = {step: slot.minute - seconds for step, seconds in retention_seconds.items()}
        cutoffs["day"] = clock.calendar.starts("day", slot.day, settings.days_kept)[0]
        try:
            await store.prune(cutoffs, slot)
        except StoreError as error:
            log.warning("retention was skipped and will be retried: %s", error)

    async def publish_status() -> None:
        live_day.tell_state(*service_status(store, peers, broadcaster, kafka))

    # A job that is late or was missed still runs, once.
    jobs = AsyncIOScheduler(timezone=clock.calendar.zone, job_defaults={"misfire_grace_time": None, "coalesce": True})
    jobs.add_job(close_day, Midnight(clock.calendar), id="close_day")
    jobs.add_job(close_day, IntervalTrigger(seconds=30), id="close_day, if it was missed")
    jobs.add_job(publish_status, IntervalTrigger(seconds=1), id="publish_status")
    jobs.add_job(broadcaster.cut_strangers, IntervalTrigger(seconds=STUCK_SECONDS), id="cut_strangers")
    jobs.add_job(_log_store_errors(peers.resync), IntervalTrigger(seconds=2), id="resync")
    if store.shared:
        recover_orphans = _log_store_errors(store.recover_orphans)
        jobs.add_job(recover_orphans, IntervalTrigger(seconds=10), id="recover_orphans")
    return jobs


def _log_store_errors(job: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """Return the job with store errors logged instead of raised; it runs again soon."""

    async def run() -> None:
        try:
            await job()
        except StoreError as error:
            log.warning("%s was skipped and will be retried: %s", job.__name__, error)

    return run
