"""Time zones, days and time slots: which buckets an instant belongs to."""

import bisect
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from app.domain.buckets import CORRECTION, TOTAL, Bucket, Step


class TimeSlot(NamedTuple):
    """The date of an instant, and the UTC seconds at which its minute, hour and day begin."""

    date: str
    minute: int
    hour: int
    day: int

    @property
    def buckets(self) -> tuple[Bucket, Bucket, Bucket, Bucket]:
        """The minute, hour, day and total bucket that a hit adds to."""
        return _buckets(self)

    @property
    def day_buckets(self) -> tuple[Bucket, Bucket]:
        """The day's hits and its correction; a count is the sum of both."""
        return Bucket("day", self.day), Bucket("day", self.day, CORRECTION)


@lru_cache(maxsize=256)  # nearly every call asks for the current minute
def _buckets(slot: TimeSlot) -> tuple[Bucket, Bucket, Bucket, Bucket]:
    return Bucket("minute", slot.minute), Bucket("hour", slot.hour), Bucket("day", slot.day), TOTAL


class Calendar:
    """Where minutes, hours and days begin on a zone's clock, also where that clock is put forward or back."""

    def __init__(self, zone: ZoneInfo) -> None:
        self.zone = zone

    def local(self, at: float) -> datetime:
        return datetime.fromtimestamp(at, self.zone)

    def slot(self, at: float) -> TimeSlot:
        return _slot(self.zone, int(at) // 60 * 60)

    def next_day(self, at: float) -> int:
        """The UTC second at which the day after this instant's begins."""
        return day_start(self.zone, self.local(at).date() + timedelta(days=1))

    def starts(self, step: Step, at: float, points: int) -> list[int]:
        """The beginnings of the last `points` buckets, oldest first; the last one is running at `at`."""
        starts: list[int] = [getattr(self.slot(at), step)]
        while len(starts) < points:
            starts.append(getattr(self.slot(starts[-1] - 1), step))
        return starts[::-1]


@lru_cache(maxsize=4096)  # every commit asks, and no zone moves its clock within a minute
def _slot(zone: ZoneInfo, minute: int) -> TimeSlot:
    local = datetime.fromtimestamp(minute, zone)
    return TimeSlot(local.date().isoformat(), minute, _hour_start(local), day_start(zone, local.date()))


def _hour_start(local: datetime) -> int:
    second, zone = int(local.timestamp()), local.tzinfo
    start = second - local.minute * 60 - local.second
    if datetime.fromtimestamp(start, zone).utcoffset() == local.utcoffset():
        return start
    # The clock was moved within this hour, which so begins with the move: where it moves by
    # half an hour, the full hour's beginning would lie inside another bucket.
    moved = range(start, second + 1)

    def has_moved(second: int) -> bool:
        return datetime.fromtimestamp(second, zone).utcoffset() == local.utcoffset()

    return moved[bisect.bisect_left(moved, True, key=has_moved)]


@lru_cache(maxsize=4096)
def day_start(zone: ZoneInfo, day: date) -> int:
    """The first UTC second that bears this date: not always 00:00, since some zones skip their midnight."""
    noon = int(datetime.combine(day, time(12), UTC).timestamp())
    minutes = range(noon - 36 * 3600, noon + 36 * 3600, 60)
    return minutes[bisect.bisect_left(minutes, day, key=lambda s: datetime.fromtimestamp(s, zone).date())]


class Clock:
    """The current moment. Its day never goes back, even when the machine's clock does."""

    def __init__(self, calendar: Calendar, now: Callable[[], float]) -> None:
        self.calendar = calendar
        self._now = now
        self._earliest = 0

    def at(self) -> float:
        at = max(self._now(), self._earliest)
        self._earliest = self.calendar.slot(at).day
        return at

    def slot(self) -> TimeSlot:
        return self.calendar.slot(self.at())
