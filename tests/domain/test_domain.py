"""The domain: names, days and buckets, property by property; no I/O."""

import itertools
import sys
import unicodedata
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import events
from app.domain.calendar import Calendar, Clock, day_start
from app.domain.counting import Hit, sum_hits
from app.domain.names import InvalidName, event_name

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "America/Santiago", "America/Havana", "Africa/Cairo"]
ZONES += ["Atlantic/Azores", "Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Kiritimati", "Pacific/Apia"]
zones = st.sampled_from(ZONES).map(ZoneInfo)
instants = st.integers(
    int(datetime(2010, 1, 1, tzinfo=UTC).timestamp()), int(datetime(2037, 1, 1, tzinfo=UTC).timestamp())
)


@pytest.mark.parametrize(
    "name",
    ["signup", "a b", "page.view:home", "ورود", "می‌خواهم", "👩‍💻", "é", "x" * 128, "...", "C++", "%2F", "<b>"],  # meant
)
def test_names_of_every_script_are_names(name: str) -> None:
    assert event_name(name) == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "a/b",
        " a",
        "a ",
        "x" * 129,
        "a\nb",
        "a\x00",
        "\u202eabc",
        "a\u2066b",
        "\ud800",
        "\ue000",
        "a\u2028b",
        "\u0378",
        "\xa0a",
    ],
)
def test_what_is_no_name_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(InvalidName, match="a name"):
        event_name(text)


def test_no_printable_character_is_forbidden() -> None:  # on which the check of a name relies, whatever Unicode adds
    printable = filter(str.isprintable, map(chr, range(sys.maxunicode + 1)))
    assert not [
        c for c in printable if unicodedata.category(c) in events._FORBIDDEN_CATEGORIES or c in events._BIDI_CONTROLS
    ]


def test_two_spellings_of_one_name_are_one_name() -> None:
    assert event_name("e\u0301") == event_name("\u00e9")


@given(st.text(max_size=140))
def test_a_name_is_stored_in_one_form(text: str) -> None:
    try:
        name = event_name(text)
    except InvalidName:
        return
    assert event_name(name) == name
    assert 1 <= len(name) <= 128


@given(st.lists(st.builds(Hit, st.sampled_from("abc"), st.integers(1, 9))))
def test_folding_keeps_the_sum(hits: list[Hit]) -> None:
    counts = sum_hits(hits)
    assert sum(counts.values()) == sum(hit.by for hit in hits)
    assert set(counts) == {hit.event for hit in hits}


@given(zones, instants)
def test_buckets_begin_on_the_zones_clock_and_contain_their_instant(zone: ZoneInfo, at: int) -> None:
    calendar = Calendar(zone)
    slot = calendar.slot(at)
    assert slot.day <= slot.hour <= slot.minute <= at < slot.minute + 60
    assert slot.date == calendar.local(at).date().isoformat()
    assert calendar.local(slot.day).date() == calendar.local(at).date()
    assert calendar.local(slot.day - 1).date() < calendar.local(at).date()
    for start in slot[1:]:  # a bucket's beginning is the beginning of its own bucket
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


def test_a_midnight_that_is_skipped_or_doubled_begins_one_day() -> None:
    havana = ZoneInfo("America/Havana")
    skipped = datetime.fromtimestamp(day_start(havana, date(2026, 3, 8)), havana)
    assert (skipped.hour, skipped.date()) == (1, date(2026, 3, 8))  # 00:00 does not exist there
    doubled = datetime.fromtimestamp(day_start(havana, date(2026, 11, 1)), havana)
    assert (doubled.hour, doubled.fold) == (0, 0)  # the first of two


@pytest.mark.parametrize("zone", ZONES)
def test_400_days_follow_each_other(zone: str) -> None:
    calendar = Calendar(ZoneInfo(zone))
    at, seen = day_start(calendar.zone, date(2026, 1, 1)), []
    for _ in range(400):
        seen.append(calendar.slot(at).date)
        at = calendar.next_day(at)
    assert seen == [(date(2026, 1, 1) + timedelta(days=i)).isoformat() for i in range(400)]


def test_the_day_never_goes_back_with_the_clock() -> None:
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
