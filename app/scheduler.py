"""The table of periodic jobs. Counts would be right if none ever ran: a day is a key, not a job."""

import logging
from collections.abc import Awaitable, Callable
from datetime import datetime

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.interval import IntervalTrigger

from app.domain.calendar import Calendar, Clock
from app.http.routes import operations as health
from app.kafka.consumer import Kafka
from app.live.broadcaster import STUCK_SECONDS, Broadcaster
from app.live.day import LiveDay
from app.live.peers import PeerSync
from app.settings import Settings
from app.stores.base import CounterStore, StoreError

log = logging.getLogger("tally.schedule")


class Midnight(BaseTrigger):  # type: ignore[misc] # APScheduler ships no types
    """Fires when the zone's next day begins; APScheduler's own triggers miss a midnight that the zone skips."""

    def __init__(self, calendar: Calendar) -> None:
        self._calendar = calendar

    def get_next_fire_time(self, _previous: datetime | None, now: datetime) -> datetime:
        return self._calendar.local(self._calendar.next_day(now.timestamp()))


def schedule(
    feed: LiveDay,
    live: Broadcaster,
    nodes: PeerSync,
    kafka: Kafka | None,
    store: CounterStore,
    clock: Clock,
    settings: Settings,
) -> AsyncIOScheduler:
    """The jobs, not yet started."""
    kept = {"minute": settings.minutes_kept_hours * 3600, "hour": settings.hours_kept_days * 86_400}

    async def close_day() -> None:
        """From now on the day is history: pages are told, what is too old is forgotten; as often as you like."""
        slot = clock.slot()
        feed.turn(slot)
        before = {step: slot.minute - seconds for step, seconds in kept.items()}
        before["day"] = clock.calendar.starts("day", slot.day, settings.days_kept)[0]
        try:
            await store.prune(before, slot)
        except StoreError as error:
            log.warning("nothing was pruned this time: %s", error)

    async def tell_state() -> None:
        feed.tell_state(*health.state(store, nodes, live, kafka))

    # A late job is still wanted, and one that was missed several times is wanted once.
    jobs = AsyncIOScheduler(timezone=clock.calendar.zone, job_defaults={"misfire_grace_time": None, "coalesce": True})
    jobs.add_job(close_day, Midnight(clock.calendar), id="close_day")
    jobs.add_job(close_day, IntervalTrigger(seconds=30), id="close_day, where it was missed")
    jobs.add_job(tell_state, IntervalTrigger(seconds=1), id="tell_state")
    jobs.add_job(live.cut_strangers, IntervalTrigger(seconds=STUCK_SECONDS), id="cut_strangers")
    jobs.add_job(_tried(nodes.resync), IntervalTrigger(seconds=2), id="resync")
    if store.shared:
        jobs.add_job(_tried(store.recover_orphans), IntervalTrigger(seconds=10), id="adopt")
    return jobs


def _tried(job: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """The job, which the store may refuse this time."""

    async def tried() -> None:
        try:
            await job()
        except StoreError as error:
            log.warning("%s: not this time: %s", job.__name__, error)

    return tried
