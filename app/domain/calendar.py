"""Time zones, days and time slots: which buckets an instant belongs to."""

import bisect
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from importlib import resources
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


@lru_cache(maxsize=256)  # nearly every call is for the current minute
def _buckets(slot: TimeSlot) -> tuple[Bucket, Bucket, Bucket, Bucket]:
    return Bucket("minute", slot.minute), Bucket("hour", slot.hour), Bucket("day", slot.day), TOTAL


def is_same_zone(one: str, other: str) -> bool:
    """Return whether two names mean the same time zone: Asia/Calcutta is an alias of Asia/Kolkata."""
    if one == other:
        return True
    if ".." in {*one.split("/"), *other.split("/")}:  # an export may name any file
        return False
    zones = resources.files("tzdata.zoneinfo")
    try:
        first, second = (zones.joinpath(*name.split("/")).read_bytes() for name in (one, other))
    except (OSError, ValueError):  # the package does not have one of them, or it cannot be the name of a file
        return False
    return first == second


class Calendar:
    """The minutes, hours and days of a time zone, including days on which its clocks change."""

    def __init__(self, zone: ZoneInfo) -> None:
        self.zone = zone

    def local(self, at: float) -> datetime:
        """Return the local time at this UTC second."""
        return datetime.fromtimestamp(at, self.zone)

    def slot(self, at: float) -> TimeSlot:
        """Return the time slot that contains this UTC second."""
        return _slot(self.zone, int(at) // 60 * 60)

    def next_day(self, at: float) -> int:
        """Return the UTC second at which the next day begins after this UTC second."""
        return day_start(self.zone, self.local(at).date() + timedelta(days=1))

    def starts(self, step: Step, at: float, points: int) -> list[int]:
        """Return the start of each of the last `points` buckets, oldest first; the last one contains `at`."""
        starts: list[int] = [getattr(self.slot(at), step)]
        while len(starts) < points:
            starts.append(getattr(self.slot(starts[-1] - 1), step))
        return starts[::-1]


@lru_cache(maxsize=4096)  # called for every commit; no time zone changes its offset within a minute
def _slot(zone: ZoneInfo, minute: int) -> TimeSlot:
    local = datetime.fromtimestamp(minute, zone)
    return TimeSlot(local.date().isoformat(), minute, _hour_start(local), day_start(zone, local.date()))


def _hour_start(local: datetime) -> int:
    second, zone = int(local.timestamp()), local.tzinfo
    start = second - local.minute * 60 - local.second
    if datetime.fromtimestamp(start, zone).utcoffset() == local.utcoffset():
        return start
    # The zone's offset changed within this hour, so the hour starts at that change. If the clock is moved by half an
    # hour, the start of the full hour would be inside another bucket.
    seconds = range(start, second + 1)

    def has_new_offset(second: int) -> bool:
        return datetime.fromtimestamp(second, zone).utcoffset() == local.utcoffset()

    return seconds[bisect.bisect_left(seconds, True, key=has_new_offset)]


@lru_cache(maxsize=4096)
def day_start(zone: ZoneInfo, day: date) -> int:
    """Return the first UTC second of a local date. It is not always 00:00, because some zones skip midnight."""
    noon = int(datetime.combine(day, time(12), UTC).timestamp())
    minutes = range(noon - 36 * 3600, noon + 36 * 3600, 60)
    return minutes[bisect.bisect_left(minutes, day, key=lambda s: datetime.fromtimestamp(s, zone).date())]


class Clock:
    """The current time. Its day never goes back, even if the machine's clock does."""

    def __init__(self, calendar: Calendar, now: Callable[[], float]) -> None:
        """Use `now`, which returns the current UTC time in seconds."""
        self.calendar = calendar
        self._now = now
        self._earliest = 0

    def at(self) -> float:
        """Return the current UTC time in seconds, or the start of the latest day if the clock went back further."""
        at = max(self._now(), self._earliest)
        self._earliest = self.calendar.slot(at).day
        return at

    def slot(self) -> TimeSlot:
        """Return the current time slot."""
        return self.calendar.slot(self.at())
