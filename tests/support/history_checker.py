"""A checker of counter histories, in the manner of Jepsen's: what may a read have returned?

A history is what clients saw: adds that began and ended, and reads that began and ended. Of the adds,
- an acknowledged one counts from its beginning on in the upper bound, and from its end on in the lower;
- a refused one counts in neither;
- one whose outcome is unknown counts in the upper bound, from its beginning on.
A read is right when it lies between the lower bound at its beginning and the upper bound at its end.
"""

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, NamedTuple

Outcome = Literal["acknowledged", "refused", "unknown"]


@dataclass(eq=False)
class Add:
    """One hit as its client saw it; until it has ended its outcome is unknown."""

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


class Wrong(NamedTuple):
    """A read outside its bounds."""

    read: Read
    lower: int
    upper: int


@dataclass
class History:
    """Adds and reads in the order of a clock that only this history has."""

    adds: list[Add] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    _now: int = 0

    def tick(self) -> int:
        self._now += 1
        return self._now

    def begin(self, event: str, by: int = 1) -> Add:
        add = Add(event, by, self.tick())
        self.adds.append(add)
        return add

    def end(self, add: Add, outcome: Outcome) -> None:
        add.ended, add.outcome = self.tick(), outcome

    @contextmanager
    def reading(self, event: str) -> Iterator[list[int]]:
        """Put the value that was read into the list."""
        began, values = self.tick(), list[int]()
        yield values
        self.reads.append(Read(event, began, self.tick(), values[0]))

    def wrong_reads(self) -> list[Wrong]:
        bounds = {event: self._bounds(event) for event in {read.event for read in self.reads}}
        checked = [
            Wrong(read, lower.before(read.began), upper.before(read.ended))
            for read in self.reads
            for lower, upper in [bounds[read.event]]
        ]
        return [wrong for wrong in checked if not wrong.lower <= wrong.read.value <= wrong.upper]

    def _bounds(self, event: str) -> tuple["Sums", "Sums"]:
        adds = [add for add in self.adds if add.event == event]
        lower = [(a.ended, a.by) for a in adds if a.outcome == "acknowledged" and a.ended is not None]
        return Sums(lower), Sums([(a.began, a.by) for a in adds if a.outcome != "refused"])

    def total(self, outcome: Outcome) -> int:
        return sum(add.by for add in self.adds if add.outcome == outcome)


class Sums:
    """What was added before a moment, found without going through a long history for every read."""

    def __init__(self, added: list[tuple[int, int]]) -> None:
        added.sort()
        self._slots = [slot for slot, _ in added]
        self._sums = [0, *accumulate(by for _, by in added)]

    def before(self, slot: int) -> int:
        return self._sums[bisect_left(self._slots, slot)]
