"""Alerts: which crossings of a threshold an alert fires for, and the deliveries that tell its URL about them.

Everything is derived from stored counts. An alert keeps the highest level for which it has fired, so a crossing that no
node noticed when it was counted fires at the next check.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Annotated, Literal, NamedTuple
from urllib.parse import urlsplit

import msgspec

from app.domain.counting import COUNT_MAX

ALERTS_MAX = 100  # each check reads the counts of all their events
DAYS_CHECKED = 8  # today and the days before, because hits that were spooled are counted on the day of their request

Threshold = Annotated[int, msgspec.Meta(ge=1, le=COUNT_MAX)]
Window = Literal["5m", "1h", "1d"]
Format = Literal["json", "slack", "discord", "ntfy"]
_FORMATS: Mapping[str, Format] = {"hooks.slack.com": "slack", "discord.com": "discord", "ntfy.sh": "ntfy"}  # by host
ALL_TIME = 0  # the key of the track of a condition that does not start again each day


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """When an alert fires. Exactly one number is set; `above` and `below` need a window, the others have none.

    `count` is today's count, `total` the all-time total, `every` each multiple in the total. The sum of the hits in the
    window is `above` or `below` a number.
    """

    count: Threshold | None = None
    total: Threshold | None = None
    every: Threshold | None = None
    above: Threshold | None = None
    below: Threshold | None = None
    window: Window | None = None

    def error(self) -> str:
        """Return what is wrong with this combination of fields, or ""."""
        names = [name for name in ("count", "total", "every", "above", "below") if getattr(self, name) is not None]
        if len(names) != 1:
            return "needs exactly one of count, total, every, above and below"
        if (self.window is not None) != (names[0] in {"above", "below"}):
            return "above and below need a window of 5m, 1h or 1d, and the others must not have one"
        return ""

    def level(self, number: int) -> int:
        """Return how many thresholds a number has reached."""
        if self.every:
            return max(0, number) // self.every
        if self.above:
            return int(number > self.above)
        if self.below:
            return int(number < self.below)
        return int(number >= (self.count or self.total or 0))

    def threshold(self, level: int) -> int:
        """Return the number that reaches a level."""
        return level * self.every if self.every else self.count or self.total or self.above or self.below or 0


class AlertFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an administrator sets. Without a secret, the present one is kept, or a new one is made.

    `format` is None if the URL chooses it.
    """

    event: str
    when: Condition
    url: str
    format: Format | None = None
    secret: str | None = None


class Track(msgspec.Struct, frozen=True, array_like=True):
    """The highest level that has fired, and how the alert was armed: "", or the change that took the count back."""

    level: int = 0
    arming: str = ""


class Alert(msgspec.Struct, frozen=True):
    """An alert as it is stored.

    `created` is a UTC second. `revision` grows with each change of the event or of the condition. `tracks` has one
    Track per day (UTC second) for `count`, else one under ALL_TIME. `changes` has the generations up to
    which administrative changes were considered, by day. Days before `since` are not checked.
    """

    id: str
    event: str
    when: Condition
    url: str
    format: Format
    secret: str
    created: int
    since: int
    revision: int = 0
    tracks: Mapping[int, Track] = {}
    changes: Mapping[int, int] = {}


class Change(NamedTuple):
    """An administrative change of an event: its day (UTC second), its generation, and both numbers before and after."""

    day: int
    generation: int
    before: Mapping[str, int]
    after: Mapping[str, int]


class Observation(NamedTuple):
    """What a store has of an event.

    `counts` and `generations` are by day. `changes` has the changes of the event that the alert has not considered,
    oldest first. `window` is the sum of the window, if it was read.
    """

    counts: Mapping[int, int]
    total: int
    generations: Mapping[int, int] = {}
    changes: Sequence[Change] = ()
    window: int | None = None


class Crossing(NamedTuple):
    """One crossing of an alert: its webhook-id, the threshold, the day (UTC second) of a `count`, and the number."""

    id: str
    threshold: int
    day: int
    value: int


class Delivery(msgspec.Struct, frozen=True):
    """A message about a crossing, until the URL has accepted it. Times are UTC seconds.

    `event` and `when` are those of the crossing. It is sent at `next_at` or later. `failed` is true if it was not
    accepted for a day; `error` is the reason of the last failure.
    """

    id: str
    event: str
    when: Condition
    threshold: int
    value: int
    fired_at: int
    next_at: float
    date: str = ""
    attempts: int = 0
    error: str = ""
    failed: bool = False


def format_of(url: str) -> Format:
    """Return the format that the host of a URL understands."""
    return _FORMATS.get(urlsplit(url).hostname or "", "json")


def arm(alert: Alert, observed: Observation, today: int) -> Alert:
    """Return the alert as a new one, which fires only for crossings from now on."""
    level = alert.when.level(_number(alert, observed, today))
    key = today if alert.when.count else ALL_TIME
    changes = {today: observed.generations.get(today, 0)}
    return msgspec.structs.replace(alert, since=today, tracks={key: Track(level)}, changes=changes)


def advance(alert: Alert, observed: Observation, crossings_max: int) -> tuple[Alert, list[Crossing]]:
    """Return the alert after what was observed, and its new crossings.

    If there are more than `crossings_max`, the others remain for the next call. The same alert is returned if nothing
    was crossed, and no change has armed it again.
    """
    progress = _Progress(alert, crossings_max)
    if alert.when.window:
        progress.follow_window(observed.window)
    elif all(progress.pass_change(change) for change in observed.changes):
        if alert.when.count:
            for day in [day for day in observed.counts if day >= alert.since]:
                progress.fire(day, observed.counts[day])
        else:
            progress.fire(ALL_TIME, observed.total)
    if progress.tracks == alert.tracks and progress.changes == alert.changes:
        return alert, []
    oldest = min(observed.counts, default=0)
    tracks = {key: track for key, track in progress.tracks.items() if key == ALL_TIME or key >= oldest}
    changes = {day: n for day, n in progress.changes.items() if day >= oldest}
    return msgspec.structs.replace(alert, tracks=tracks, changes=changes), progress.crossings


def _number(alert: Alert, observed: Observation, today: int) -> int:
    """Return the number that the condition compares."""
    if alert.when.window:
        return observed.window or 0
    return observed.counts.get(today, 0) if alert.when.count else observed.total


class _Progress:
    """The tracks of an alert while it is brought up to date, and its new crossings."""

    def __init__(self, alert: Alert, crossings_max: int) -> None:
        self._alert, self._crossings_max = alert, crossings_max
        self.tracks, self.changes = dict(alert.tracks), dict(alert.changes)
        self.crossings: list[Crossing] = []

    def fire(self, key: int, number: int) -> bool:
        """Fire up to the level of this number. Return whether there was room for all crossings."""
        track, wanted = self.tracks.get(key, Track()), self._alert.when.level(number)
        level = min(wanted, track.level + self._crossings_max - len(self.crossings))
        if level > track.level:
            self.crossings += [self._crossing(key, track.arming, n, number) for n in range(track.level + 1, level + 1)]
            self.tracks[key] = Track(level, track.arming)
        return level >= wanted

    def pass_change(self, change: Change) -> bool:
        """Fire for what was reached before a change, and arm the alert again if the change has taken that back."""
        field, key = ("count", change.day) if self._alert.when.count else ("total", ALL_TIME)
        if field in change.before:
            if not self.fire(key, change.before[field]):
                return False
            level = self._alert.when.level(change.after[field])
            if level < self.tracks.get(key, Track()).level:
                self.tracks[key] = Track(level, f"{change.day}.{change.generation}")
        self.changes[change.day] = change.generation
        return True

    def follow_window(self, sum_of_window: int | None) -> None:
        """Fire when the condition becomes true, and arm the alert again when it becomes false."""
        if sum_of_window is None:
            return
        track = self.tracks.get(ALL_TIME, Track())
        if self._alert.when.level(sum_of_window):
            self.fire(ALL_TIME, sum_of_window)
        elif track.level:
            self.tracks[ALL_TIME] = Track(0, str(int(track.arming or 0) + 1))

    def _crossing(self, key: int, arming: str, level: int, number: int) -> Crossing:
        alert = self._alert
        # The same crossing has the same id on every node, even if a failover of Redis has lost that it has fired.
        text = f"{alert.id} {alert.revision} {key} {arming} {level}"
        digest = blake2b(text.encode(), digest_size=16).hexdigest()
        return Crossing(f"msg_{digest}", alert.when.threshold(level), key, number)
