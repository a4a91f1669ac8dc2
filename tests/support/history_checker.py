"""A checker of counter histories, as in Jepsen: it computes the bounds of each read from the hits of all clients.

A history has adds and reads, with their beginnings and ends as clients observed them.
- An acknowledged add is in the upper bound from its beginning, and in the lower bound from its end.
- A rejected add is in neither bound.
- An add with an unknown outcome is in the upper bound from its beginning.
A read is right if it is at least the lower bound at its beginning and at most the upper bound at its end.
"""

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, NamedTuple

Outcome = Literal["acknowledged", "rejected", "unknown"]


@dataclass(eq=False)
class Add:
    """A hit as its client observed it. Its outcome is unknown until it ends."""

    event: str
    by: int
    began: int
    ended: int | None = None
    outcome: Outcome = "unknown"


class Read(NamedTuple):
    event: str
    began: int
    ended: int
    value: int


class WrongRead(NamedTuple):
    """A read outside its bounds."""

    read: Read
    lower: int
    upper: int


@dataclass
class History:
    """Adds and reads, ordered by a clock of this history."""

    adds: list[Add] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    _now: int = 0

    def tick(self) -> int:
        """Advance the clock, and return the new time."""
        self._now += 1
        return self._now

    def begin(self, event: str, by: int = 1) -> Add:
        """Record that a client sends a hit."""
        add = Add(event, by, self.tick())
        self.adds.append(add)
        return add

    def end(self, add: Add, outcome: Outcome) -> None:
        """Record the outcome of a hit."""
        add.ended, add.outcome = self.tick(), outcome

    @contextmanager
    def reading(self, event: str) -> Iterator[list[int]]:
        """Record a read of an event. The block appends the value to the yielded list."""
        began, values = self.tick(), list[int]()
        yield values
        self.reads.append(Read(event, began, self.tick(), values[0]))

    def wrong_reads(self) -> list[WrongRead]:
        """Return the reads outside their bounds."""
        bounds = {event: self._bounds(event) for event in {read.event for read in self.reads}}
        checked = [
            WrongRead(read, lower.before(read.began), upper.before(read.ended))
            for read in self.reads
            for lower, upper in [bounds[read.event]]
        ]
        return [wrong for wrong in checked if not wrong.lower <= wrong.read.value <= wrong.upper]

    def _bounds(self, event: str) -> tuple["Sums", "Sums"]:
        adds = [add for add in self.adds if add.event == event]
        lower = [(a.ended, a.by) for a in adds if a.outcome == "acknowledged" and a.ended is not None]
        return Sums(lower), Sums([(a.began, a.by) for a in adds if a.outcome != "rejected"])

    def total(self, outcome: Outcome) -> int:
        """Return the sum of all adds with an outcome."""
        return sum(add.by for add in self.adds if add.outcome == outcome)


class Sums:
    """Prefix sums of adds, so that a read does not have to go through a long history."""

    def __init__(self, adds: list[tuple[int, int]]) -> None:
        adds.sort()
        self._times = [time for time, _ in adds]
        self._sums = [0, *accumulate(by for _, by in adds)]

    def before(self, time: int) -> int:
        """Return the sum of the adds before a time."""
        return self._sums[bisect_left(self._times, time)]
