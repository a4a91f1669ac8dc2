"""The table of periodic jobs. Counts would be right if none ever ran: a day is a key, not a job."""

from datetime import datetime

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.interval import IntervalTrigger

from app.events import Calendar, Clock
from app.live import Live


class Midnight(BaseTrigger):  # type: ignore[misc] # APScheduler ships no types
    """Fires when the zone's next day begins; APScheduler's own triggers miss a midnight that the zone skips."""

    def __init__(self, calendar: Calendar) -> None:
        self._calendar = calendar

    def get_next_fire_time(self, _previous: datetime | None, now: datetime) -> datetime:
        return self._calendar.local(self._calendar.next_day(now.timestamp()))


def schedule(live: Live, clock: Clock, *, shared: bool) -> AsyncIOScheduler:
    """The jobs, not yet started. A `shared` store is looked at for what other nodes counted."""

    async def close_day() -> None:
        """From now on the day is history: pages are told, nothing is moved. Idempotent."""
        await live.turn(clock.moment())

    # A late job is still wanted, and one that was missed several times is wanted once.
    jobs = AsyncIOScheduler(timezone=clock.calendar.zone, job_defaults={"misfire_grace_time": None, "coalesce": True})
    jobs.add_job(close_day, Midnight(clock.calendar), id="close_day")
    jobs.add_job(close_day, IntervalTrigger(seconds=30), id="close_day, where it was missed")
    if shared:
        jobs.add_job(live.refresh, IntervalTrigger(seconds=1), id="refresh")
        jobs.add_job(live.tell_state, IntervalTrigger(seconds=1), id="tell_state")
    return jobs
