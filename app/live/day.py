"""What is to be told of the running day: its counts, what has changed since when, and how the service is.

Whoever tells it, to whatever kind of page, remembers a place for each page and asks what came after it.
Counts are absolute, so a page that gets fewer messages than others still ends on the same numbers.
"""

import asyncio
import itertools
import math
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import NamedTuple

import msgspec

from app.domain.calendar import Clock, TimeSlot

PAGE_NAMES = 1000  # events in one message
LOG_MAX = 20_000  # changes that are remembered for pages that fall behind
SNAPSHOT_SECONDS = 1.0  # how old a snapshot may be, since what changed after it follows


class Message:
    """An event and its data as JSON, encoded once for all; who sends it keeps the whole frame here."""

    __slots__ = ("data", "event", "frame")

    def __init__(self, event: str, data: object) -> None:
        self.event = event
        self.data = msgspec.json.encode(data).decode()
        self.frame: dict[str, str] | None = None


class Place(NamedTuple):
    """How far a page has been told: the number of changes, of messages and of names, in this epoch and day."""

    change: int
    seq: int
    names: int
    epoch: str
    day: int

    @property
    def id_field(self) -> str:
        """In a stream of events; a client that comes again shows it as its Last-Event-ID."""
        return self.epoch and f"id: {self.epoch}-{self.day}:{self.change}\n"


class Delta(NamedTuple):
    """What is new since a place, for those who stand there; encoded when it is first asked for."""

    begin: Place
    end: Place
    updates: Callable[[], Sequence[Message]]  # for plain pages
    changes: Callable[[], Sequence[Message]]  # for dashboards


NO_CURSOR = Place(-1, -1, 0, "", -1)
_ID = re.compile(r"(\w{1,32})-(\d{1,12}):(-1|\d{1,16})", re.ASCII)


class LiveDay:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._slot = clock.slot()
        self._names: list[str] = []  # of the day
        self._index: dict[str, int] = {}
        self._counts: list[int] = []
        self._gone: set[str] = set()  # what the store has lost of it
        self._log: list[int] = []  # indices, in the order of their changes
        self._base = 0  # the number of the log's first change
        self._ticks: list[Delta] = []  # of days that ended before they were told
        self._pages: tuple[float, Place, list[Message]] = (0.0, NO_CURSOR, [])
        self.generation = 0  # of the day's counts
        self.told = Place(0, 0, 0, secrets.token_hex(4), self._slot.day)
        self.state = Message("state", {"status": "ok", "reasons": []})
        self.changed = asyncio.Event()  # there is something to tell

    @property
    def day(self) -> int:
        """The UTC second at which the shown day begins."""
        return self._slot.day

    def merge(self, day: int, counts: Mapping[str, int]) -> None:
        """Show what is larger than known, unless that day is over, or has not begun here."""
        if day != self._slot.day:
            return
        indices, shown = self._index, self._counts
        for event, count in counts.items():
            index = indices.get(event, len(shown))
            if index == len(shown):
                indices[event] = index
                self._names.append(event)
                shown.append(0)
            if count > shown[index]:
                shown[index] = count
                self._log.append(index)
        self.changed.set()

    def turn(self, slot: TimeSlot) -> None:
        """Begin a new day, once: counts restart at 0 on every page."""
        if slot.day > self._slot.day:
            self._collect()  # what the old day still has to say
            self._slot, self._gone, self.generation = slot, set(), 0
            self._begin_anew({}, self.told.epoch, [self._reset()], [self._reset()])

    def shown(self) -> dict[str, int]:
        """The counts of the day, as they are shown."""
        return dict(zip(self._names, self._counts, strict=True))

    def hits(self) -> int:
        """The sum of them."""
        return sum(self._counts)

    def seen(self, event: str) -> int:
        """An event's count of the day, as it is shown."""
        return self._counts[self._index[event]] if event in self._index else 0

    def replace(self, slot: TimeSlot, counts: Mapping[str, int], before: Mapping[str, int], generation: int) -> None:
        """Show these counts where they are smaller than what was shown before they were read: the store lost some.

        In another generation they are smaller because an administrator wants it so, and what was shown means nothing.
        """
        self.turn(slot)
        shown, same = self.shown(), generation == self.generation
        lost = {event for event, known in before.items() if event in shown and counts.get(event, 0) < known}
        if same and not lost:
            self.merge(slot.day, counts)
            return
        self._collect()
        kept = {event: count for event, count in shown.items() if same and event not in lost}
        now = {event: max(counts.get(event, 0), kept.get(event, 0)) for event in {**shown, **counts}}
        self._gone |= {event for event, count in now.items() if not count}
        changed = [_update(event, count) for event, count in now.items() if count != shown.get(event)]
        now, self.generation = {event: count for event, count in now.items() if count}, generation
        anew = [self._reset(), *itertools.starmap(_update, now.items())]
        updates = anew if len(anew) <= len(changed) else changed
        self._begin_anew(now, secrets.token_hex(4), updates, [])

    def tell_state(self, status: str, reasons: Sequence[str]) -> None:
        """Tell the dashboards how the service is, when that has changed."""
        state = Message("state", {"status": status, "reasons": reasons})
        if state.data != self.state.data:
            self.state = state
            self.changed.set()

    def collect(self) -> list[Delta]:
        """What is new since this was last asked, in order."""
        self._collect()
        ticks, self._ticks = self._ticks, []
        return ticks

    def place(self, last_id: str) -> Place:
        """Where a page stands that was told this id last; before everything, where that cannot be known."""
        match = _ID.fullmatch(last_id)
        if not match:
            return NO_CURSOR
        known = match[1] == self.told.epoch and int(match[3]) <= self.told.change
        return Place(int(match[3]) if known else -1, -1, 0, match[1], int(match[2]))

    def missed_updates(self, place: Place, events: Collection[str] = ()) -> tuple[Iterator[Message], Place]:
        """What a plain page that is not in step has to be told, of these or all events, and where it stands then."""
        names, counts, index = self._names, self._counts, self._index  # a new day has others
        changed, forgotten = self._since(place)
        if forgotten:
            told = events or [*self._gone, *names[: self.told.names]]
        else:
            told = [names[i] for i in changed if not events or names[i] in events]
        updates = (_update(event, counts[index[event]] if event in index else 0) for event in told)
        return itertools.chain(self._reset_since(place), updates), self.told

    def missed_changes(self, place: Place) -> tuple[Iterator[Message], Place]:
        """The same for a dashboard."""
        changed, forgotten = self._since(place)
        if forgotten or (place.epoch, place.day) != (self.told.epoch, self.told.day):
            stands, pages = self._snapshot()
            return itertools.chain(self._reset_since(place), pages), stands
        messages = _changes(self._names, self._counts, changed, place, until=self.told.seq)
        return iter(messages), self.told

    def _since(self, place: Place) -> tuple[list[int], bool]:
        """What has changed, and whether some of that is forgotten."""
        log = self._log[max(0, place.change - self._base) : self.told.change - self._base]
        return list(dict.fromkeys(log)), place.change < self._base

    def _reset_since(self, place: Place) -> list[Message]:
        return [] if place.day in {self.told.day, NO_CURSOR.day} else [self._reset()]

    def _reset(self) -> Message:
        return Message("reset", {"day": self._slot.date})

    def _begin_anew(
        self, counts: Mapping[str, int], epoch: str, updates: list[Message], changes: list[Message]
    ) -> None:
        """With these counts; every page is told so, and whoever falls behind here has to be told everything."""
        begin = self.told
        self._names, self._counts = list(counts), list(counts.values())
        self._index = {event: index for index, event in enumerate(counts)}
        self._base, self._log = begin.change + 1, []
        self.told = Place(self._base, begin.seq + 1, len(counts), epoch, self._slot.day)
        changes = [*changes, *self._snapshot()[1]]
        self._ticks.append(Delta(begin, self.told, lambda: updates, lambda: changes))
        self.changed.set()

    def _collect(self) -> None:
        """Make a tick of what has changed since the last one."""
        begin, names, counts = self.told, self._names, self._counts
        changed = list(dict.fromkeys(self._log[begin.change - self._base :]))
        if not changed:
            return
        self.told = begin._replace(
            change=self._base + len(self._log),
            seq=begin.seq + math.ceil(len(changed) / PAGE_NAMES),  # whoever listens
            names=len(self._names),
        )
        updates = cache(lambda: [_update(names[i], counts[i]) for i in changed])
        self._ticks.append(Delta(begin, self.told, updates, cache(lambda: _changes(names, counts, changed, begin))))
        if len(self._log) > LOG_MAX:
            self._log = self._log[-LOG_MAX // 2 :]
            self._base = self.told.change - len(self._log)

    def _snapshot(self) -> tuple[Place, list[Message]]:
        """All of the day as told, in pages, and their place; built once for all who ask within a second."""
        made, place, pages = self._pages
        told, current = self.told, (place.epoch, place.day) == (self.told.epoch, self.told.day)
        if place == told or (current and place.change >= self._base and time.monotonic() - made < SNAPSHOT_SECONDS):
            return place, pages
        head = {
            "epoch": told.epoch,
            "seq": told.seq,
            "day": self._slot.date,
            "generation": self.generation,
            "resetsAt": datetime.fromtimestamp(self._clock.calendar.next_day(self._slot.day), UTC).isoformat(),
            "size": told.names,
        }
        names, counts = self._names[: told.names], self._counts[: told.names]
        parts = [slice(i, i + PAGE_NAMES) for i in range(0, max(1, told.names), PAGE_NAMES)]
        bodies = ({"offset": part.start, "names": names[part], "counts": counts[part]} for part in parts)
        pages = [Message("snapshot", head | body) for body in bodies]
        self._pages = (time.monotonic(), told, pages)
        return told, pages


def _update(event: str, count: int) -> Message:
    return Message("update", {"eventName": event, "count": count})


def _changes(
    names: Sequence[str], counts: Sequence[int], changed: Iterable[int], begin: Place, until: int | None = None
) -> list[Message]:
    """In messages of a bounded size; a new name comes with or before its count, since both are in order."""
    indices, messages = sorted(changed), []
    for seq, i in enumerate(range(0, len(indices), PAGE_NAMES), begin.seq + 1):
        page = indices[i : i + PAGE_NAMES]
        body: dict[str, object] = {"seq": seq, "changes": [[index, counts[index]] for index in page]}
        body["names"] = names[max(page[0], begin.names) : page[-1] + 1]
        if until is not None and i + PAGE_NAMES >= len(indices):
            body |= {"seq": until, "since": seq}
        messages.append(Message("changes", body))
    return messages
