"""Time slots, series and days of time zones, as properties that hold at every instant."""

import itertools
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.calendar import Calendar, Clock, day_start, is_same_zone

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "America/Santiago", "America/Havana", "Africa/Cairo"]
ZONES += ["Atlantic/Azores", "Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Kiritimati", "Pacific/Apia"]
zones = st.sampled_from(ZONES).map(ZoneInfo)
instants = st.integers(
    int(datetime(2010, 1, 1, tzinfo=UTC).timestamp()), int(datetime(2037, 1, 1, tzinfo=UTC).timestamp())
)


@given(zones, instants)
def test_time_slots_start_on_local_time_and_contain_their_instant(zone: ZoneInfo, at: int) -> None:
    calendar = Calendar(zone)
    slot = calendar.slot(at)
    assert slot.day <= slot.hour <= slot.minute <= at < slot.minute + 60
    assert slot.date == calendar.local(at).date().isoformat()
    assert calendar.local(slot.day).date() == calendar.local(at).date()
    assert calendar.local(slot.day - 1).date() < calendar.local(at).date()
    for start in slot[1:]:  # the start of a bucket is also the start of the bucket that contains it
        assert start in calendar.slot(start)[1:]
    assert calendar.slot(slot.hour).hour == slot.hour
    assert calendar.slot(slot.day).hour == slot.day


@given(zones, instants, st.sampled_from(["minute", "hour", "day"]))
def test_a_series_of_buckets_has_no_gap_and_no_overlap(zone: ZoneInfo, at: int, step: str) -> None:
    calendar = Calendar(zone)
    starts = calendar.starts(step, at, 40)
    assert starts[-1] == getattr(calendar.slot(at), step)
    assert len(set(starts)) == 40
    for earlier, later in itertools.pairwise(starts):
        assert earlier < later
        assert getattr(calendar.slot(later - 1), step) == earlier


def test_a_skipped_or_doubled_midnight_starts_one_day() -> None:
    havana = ZoneInfo("America/Havana")
    skipped = datetime.fromtimestamp(day_start(havana, date(2026, 3, 8)), havana)
    assert (skipped.hour, skipped.date()) == (1, date(2026, 3, 8))  # 00:00 does not exist there
    doubled = datetime.fromtimestamp(day_start(havana, date(2026, 11, 1)), havana)
    assert (doubled.hour, doubled.fold) == (0, 0)  # the first of two


@pytest.mark.parametrize("zone", ZONES)
def test_400_days_have_consecutive_dates(zone: str) -> None:
    calendar = Calendar(ZoneInfo(zone))
    at, dates = day_start(calendar.zone, date(2026, 1, 1)), []
    for _ in range(400):
        dates.append(calendar.slot(at).date)
        at = calendar.next_day(at)
    assert dates == [(date(2026, 1, 1) + timedelta(days=i)).isoformat() for i in range(400)]


def test_the_day_does_not_go_back_with_the_clock() -> None:
    now = datetime(2026, 5, 2, 0, 0, 30, tzinfo=UTC).timestamp()
    clock = Clock(Calendar(ZoneInfo("UTC")), lambda: now)
    assert clock.slot().date == "2026-05-02"
    now -= 7200
    assert clock.slot().date == "2026-05-02"
    assert clock.slot().minute == clock.slot().day
    now += 86_400
    assert clock.slot().date == "2026-05-02"
    now += 7200
    assert clock.slot().date == "2026-05-03"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Etc/UTC", "UTC", True),
        ("US/Eastern", "America/New_York", True),
        ("Europe/Berlin", "Europe/Paris", False),
        ("UTC", "No/Such zone", False),
        ("UTC", "", False),
        ("UTC", "../zoneinfo/UTC\0", False),
        ("UTC", "../zoneinfo/Etc/UTC", False),
    ],
)
def test_an_alias_is_the_same_time_zone(one: str, other: str, same: bool) -> None:
    assert is_same_zone(one, other) == is_same_zone(other, one) == same
