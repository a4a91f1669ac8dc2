"""The domain: names, hits, batches, days and buckets. Pure: no I/O, and time is an argument."""

import bisect
import unicodedata
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple
from zoneinfo import ZoneInfo

import msgspec

NAME_MAX = 128  # characters
BY_MAX = 1_000_000
COUNT_MAX = 2**53 - 1  # the largest whole number that every JSON client reads exactly
EVERYTHING = ""  # all events together are counted under the one name that no event can have

_FORBIDDEN_CATEGORIES = {"Cc", "Cs", "Co", "Cn", "Zl", "Zp"}
_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

By = Annotated[int, msgspec.Meta(ge=1, le=BY_MAX)]
Step = Literal["minute", "hour", "day"]
Kind = Literal["user", "session"]


class Bucket(NamedTuple):
    """Where counts lie: a step, the UTC second at which it begins, and of what else than events they are.

    `of` is "user:<event>" or "session:<event>" for who hit it, "sketch:" before that for the registers of an
    estimate, or one of those below for what administrators changed on that day.
    """

    step: str
    start: int
    of: str = ""


TOTAL = Bucket("total", 0)  # since the beginning
OFFSET = "offset"  # what is to be added to a day's hits to get its counts
PART = "part:"  # and a number: the counts that a reset has ended
GENERATION = "generation"  # how often the day's counts were changed, under EVERYTHING
LOG = "log"  # how, each as JSON
SKETCH = "sketch:"
VISITS = ("user:", "session:")


class InvalidName(ValueError):
    """A text that is no name; the message says why and never repeats the text."""


def event_name(text: str) -> str:
    """The stored form (NFC) of an event's name, or InvalidName."""
    name = visitor_name(text)
    if "/" in name:
        raise InvalidName("a name has no '/'")
    return name


def visitor_name(text: str) -> str:
    """The stored form of a user's or session's id: like an event's name, but with '/' allowed."""
    # Far too long is not even normalised: that takes quadratic time for marks in the wrong order.
    name = unicodedata.normalize("NFC", text) if len(text) <= 4 * NAME_MAX else text
    if not 1 <= len(name) <= NAME_MAX:
        raise InvalidName(f"a name has 1 to {NAME_MAX} characters")
    if name in {".", ".."}:
        raise InvalidName("a name is not '.' or '..'")
    if name != name.strip():
        raise InvalidName("a name has no space at its beginning or end")
    # what Python calls printable has none of these; of the others, some are allowed
    if not name.isprintable() and any(
        unicodedata.category(c) in _FORBIDDEN_CATEGORIES or c in _BIDI_CONTROLS for c in name
    ):
        raise InvalidName("a name has no control, unassigned or private characters")
    return name


class Hit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One occurrence of an event, counted as `by`."""

    event: str
    by: By = 1
    user: str | None = None
    session: str | None = None


class Visit(NamedTuple):
    """Who hit an event."""

    event: str
    by: int
    user: str | None
    session: str | None


def fold(hits: Iterable[Hit]) -> dict[str, int]:
    """How much each event is counted by these hits."""
    counts: dict[str, int] = {}
    for hit in hits:
        counts[hit.event] = counts.get(hit.event, 0) + hit.by
    return counts


class Moment(NamedTuple):
    """An instant as it is counted: its date, and the UTC seconds at which its minute, hour and day begin."""

    date: str
    minute: int
    hour: int
    day: int

    @property
    def buckets(self) -> tuple[Bucket, Bucket, Bucket, Bucket]:
        return _buckets(self)

    @property
    def counted(self) -> tuple[Bucket, Bucket]:
        """The day's hits, and what is to be added to them."""
        return Bucket("day", self.day), Bucket("day", self.day, OFFSET)

    def marks(self, visit: Visit) -> Iterator[tuple[Bucket, str]]:
        """Where a visit is counted, with its event and among all of them, and under which id."""
        users, sessions = _visited(self, visit.event)
        if visit.user is not None:
            yield from ((bucket, visit.user) for bucket in users)
        if visit.session is not None:
            yield from ((bucket, visit.session) for bucket in sessions)


@lru_cache(maxsize=256)  # those of this minute, mostly
def _buckets(moment: Moment) -> tuple[Bucket, Bucket, Bucket, Bucket]:
    return Bucket("minute", moment.minute), Bucket("hour", moment.hour), Bucket("day", moment.day), TOTAL


@lru_cache(maxsize=8192)  # many come to the same events
def _visited(moment: Moment, event: str) -> tuple[list[Bucket], list[Bucket]]:
    """Where the users of an event are counted, and its sessions."""
    minute, _, day, total = moment.buckets
    users = ((minute, event), (day, event), (total, event), (day, EVERYTHING))
    sessions = ((minute, event), (day, event), (minute, EVERYTHING), (day, EVERYTHING))
    return [b._replace(of=f"user:{of}") for b, of in users], [b._replace(of=f"session:{of}") for b, of in sessions]


class Key(NamedTuple):
    """An Idempotency-Key as hashes: of the key in its scope, of the request, and of the client that sent it."""

    id: str
    request: str
    owner: str


class Posting(msgspec.Struct, frozen=True):
    """Hits that are accepted or refused together: how much of each event, when, and under which key.

    Those that were acknowledged before the store saw them are past the caps. With `apart`, which has no key, each
    event is accepted or refused by itself.
    """

    moment: Moment
    counts: Mapping[str, int]
    key: Key | None = None
    capped: bool = True
    visits: Sequence[Visit] = ()
    apart: bool = False

    def only(self, events: Container[str]) -> "Posting":
        """What of it is of these events, past the caps."""
        counts = {event: by for event, by in self.counts.items() if event in events}
        visits = [visit for visit in self.visits if visit.event in events]
        return Posting(self.moment, counts, None, False, visits, self.apart)


class Write(NamedTuple):
    """What becomes of a bucket: its members are added to, marked as visitors, merged as a sketch, or taken out of it,
    and all of it is dropped. EVERYTHING follows by itself where the members are events.
    """

    how: Literal["add", "mark", "merge", "take", "drop"]
    bucket: Bucket
    counts: Mapping[str, int] = {}


class Changes(NamedTuple):
    """What is done at once, other than to count hits; where it was worked out after so many changes of that day, only
    if there were no others since.
    """

    moment: Moment
    writes: Sequence[Write]
    after: int | None = None


Batch = Sequence[Posting]  # what one commit counts


class Calendar:
    """Where minutes, hours and days begin on a zone's clock, also where that clock is put forward or back."""

    def __init__(self, zone: ZoneInfo) -> None:
        self.zone = zone

    def local(self, at: float) -> datetime:
        return datetime.fromtimestamp(at, self.zone)

    def moment(self, at: float) -> Moment:
        return _moment(self.zone, int(at) // 60 * 60)

    def next_day(self, at: float) -> int:
        """The UTC second at which the day after this instant's begins."""
        return day_start(self.zone, self.local(at).date() + timedelta(days=1))

    def starts(self, step: Step, at: float, points: int) -> list[int]:
        """The beginnings of the last `points` buckets, oldest first; the last one is running at `at`."""
        starts: list[int] = [getattr(self.moment(at), step)]
        while len(starts) < points:
            starts.append(getattr(self.moment(starts[-1] - 1), step))
        return starts[::-1]


@lru_cache(maxsize=4096)  # every commit asks, and no zone moves its clock within a minute
def _moment(zone: ZoneInfo, minute: int) -> Moment:
    local = datetime.fromtimestamp(minute, zone)
    return Moment(local.date().isoformat(), minute, _hour_start(local), day_start(zone, local.date()))


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
        self._earliest = self.calendar.moment(at).day
        return at

    def moment(self) -> Moment:
        return self.calendar.moment(self.at())
