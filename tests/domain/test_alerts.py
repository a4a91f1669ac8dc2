"""Alerts as pure functions: each crossing fires once, with an id of its own, whatever is observed in between."""

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.alerts import Alert, Change, Condition, Observation, advance, arm

TODAY, YESTERDAY = 1_795_435_200 - 43_200, 1_795_435_200 - 43_200 - 86_400


NOTHING = Observation({}, 0)


def new_alert(observed: Observation = NOTHING, /, **when: object) -> Alert:
    alert = Alert("id", "order", msgspec.convert(when, Condition), "https://example.com", "json", "", TODAY, 0)
    return arm(alert, observed, TODAY)


def seen(total: int = 0, count: int | None = None, *changes: Change, window: int | None = None) -> Observation:
    counts = {YESTERDAY: 0, TODAY: total if count is None else count}
    return Observation(counts, total, {change.day: change.generation for change in changes}, changes, window)


def correction(generation: int, before: int, after: int) -> Change:
    """Return a change of the count and the total of today."""
    values = [{"count": number, "total": number} for number in (before, after)]
    return Change(TODAY, generation, *values)


@pytest.mark.fails_on_mutant(
    "it fires twice", "app/domain/alerts.py", "self.tracks[key] = Track(level, track.arming)", "pass"
)
@pytest.mark.fails_on_mutant(
    "only the last multiple fires", "app/domain/alerts.py", "range(track.level + 1, level + 1)", "[level]"
)
@settings(deadline=None)
@given(st.lists(st.integers(0, 3000)), st.integers(50, 500), st.integers(0, 2000), st.integers(1, 5))
def test_each_multiple_fires_once_with_an_id_of_its_own(steps: list[int], every: int, first: int, most: int) -> None:
    alert, ids, thresholds = new_alert(seen(first), every=every), list[str](), list[int]()
    totals = list(itertools.accumulate(steps, initial=first))
    for total in totals:
        crossings = None
        while crossings is None or crossings:
            alert, crossings = advance(alert, seen(total), most)
            assert len(crossings) <= most
            ids += [crossing.id for crossing in crossings]
            thresholds += [crossing.threshold for crossing in crossings]
    assert thresholds == list(range((first // every + 1) * every, totals[-1] + 1, every))
    assert len(set(ids)) == len(ids)


def test_a_total_that_was_reached_before_does_not_fire() -> None:
    alert = new_alert(seen(1000), total=1000)
    assert advance(alert, seen(1001), 9) == (alert, [])


def test_a_lost_state_fires_again_with_the_same_id() -> None:
    alert = new_alert(total=1000)
    (first,), (second,) = advance(alert, seen(1000), 9)[1], advance(alert, seen(1007), 9)[1]
    assert first.id == second.id
    other = msgspec.structs.replace(alert, revision=1)
    assert advance(other, seen(1000), 9)[1][0].id != first.id


def test_counts_that_go_back_without_a_change_do_not_arm_an_alert_again() -> None:
    alert, crossings = advance(new_alert(total=1000), seen(1000), 9)
    assert len(crossings) == 1
    alert, _ = advance(alert, seen(990), 9)  # a failover has lost hits
    assert advance(alert, seen(1000), 9) == (alert, [])


@pytest.mark.fails_on_mutant(
    "a correction does not arm it again",
    "app/domain/alerts.py",
    "if level < self.tracks.get(key, Track()).level:",
    "if False:",
)
@pytest.mark.parametrize("field", ["count", "total"])
def test_a_correction_below_the_threshold_arms_an_alert_again(field: str) -> None:
    alert, (first,) = advance(new_alert(**{field: 1000}), seen(1200), 9)
    alert, crossings = advance(alert, seen(500, 500, correction(1, 1200, 500)), 9)
    assert not crossings
    alert, (second,) = advance(alert, seen(1000), 9)
    assert (second.threshold, second.id != first.id) == (1000, True)


def test_a_correction_that_stays_above_the_threshold_does_not_arm_it_again() -> None:
    alert, _ = advance(new_alert(total=1000), seen(1200), 9)
    alert, crossings = advance(alert, seen(1100, 1100, correction(1, 1200, 1100)), 9)
    assert (crossings, advance(alert, seen(1300), 9)[1]) == ([], [])


@pytest.mark.fails_on_mutant(
    "a crossing before a correction is forgotten",
    "app/domain/alerts.py",
    "if not self.fire(key, change.before[field]):",
    "if False:",
)
def test_a_crossing_that_a_correction_took_back_before_it_was_noticed_fires() -> None:
    changes = correction(1, 1200, 5), correction(2, 1300, 7)
    alert, crossings = advance(new_alert(total=1000), seen(1001, 1001, *changes), 9)
    assert len({crossing.id for crossing in crossings}) == len(crossings) == 3
    assert alert.changes == {TODAY: 2}


def test_a_change_waits_until_there_is_room_for_the_crossings_before_it() -> None:
    alert, crossings = advance(new_alert(every=100), seen(350, 350, correction(1, 300, 50)), 2)
    assert ([crossing.threshold for crossing in crossings], alert.changes) == ([100, 200], {TODAY: 0})
    alert, crossings = advance(alert, seen(350, 350, correction(1, 300, 50)), 9)
    assert ([crossing.threshold for crossing in crossings], alert.changes) == ([300, 100, 200, 300], {TODAY: 1})


@pytest.mark.fails_on_mutant(
    "the end of yesterday is forgotten",
    "app/domain/alerts.py",
    "for day in [day for day in observed.counts if day >= alert.since]:",
    "for day in [max(observed.counts)]:",
)
def test_a_count_fires_each_day_also_for_a_day_that_has_ended() -> None:
    alert = msgspec.structs.replace(new_alert(count=10), since=YESTERDAY)
    alert, crossings = advance(alert, Observation({YESTERDAY: 10, TODAY: 3}, 13), 9)
    assert [crossing.day for crossing in crossings] == [YESTERDAY]
    alert, crossings = advance(alert, Observation({YESTERDAY: 15, TODAY: 10}, 25), 9)
    assert [crossing.day for crossing in crossings] == [TODAY]
    alert, _ = advance(alert, Observation({TODAY: 10, TODAY + 86_400: 10}, 35), 9)
    assert list(alert.tracks) == [TODAY, TODAY + 86_400]


def test_a_day_before_the_alert_was_added_does_not_fire() -> None:
    assert advance(new_alert(count=10), Observation({YESTERDAY: 10, TODAY: 3}, 13), 9)[1] == []


@pytest.mark.parametrize(("when", "holds", "over"), [({"above": 10}, 11, 10), ({"below": 1}, 0, 1)])
def test_a_window_fires_when_it_becomes_true_and_again_after_it_was_false(
    when: dict[str, int], holds: int, over: int
) -> None:
    alert, ids = new_alert(seen(window=over), window="1h", **when), list[str]()
    for number in (holds, holds, None, over, over, holds):
        alert, crossings = advance(alert, seen(window=number), 9)
        ids += [crossing.id for crossing in crossings]
    assert len(ids) == len(set(ids)) == 2
    # An alert that is added while its condition is true waits until it was false.
    assert advance(new_alert(seen(window=holds), window="1h", **when), seen(window=holds), 9)[1] == []


@pytest.mark.parametrize(
    "when", [{}, {"count": 1, "total": 1}, {"above": 1}, {"below": 1}, {"total": 1, "window": "1h"}, {"window": "1h"}]
)
def test_a_condition_has_one_number_and_a_window_only_if_it_needs_one(when: dict[str, object]) -> None:
    assert msgspec.convert(when, Condition).error()
