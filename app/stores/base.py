"""The contract that every store keeps, and what the stores share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from app.events import COUNT_MAX, Batch, Bucket, Posting

SOURCE_KEPT_SECONDS = 30 * 86_400  # how long a process's offset lives after its last use

Ack = Literal["memory", "disk", "redis", "spooled"]


class StoreError(Exception):
    """What can go wrong with a store; the message may be shown to a client."""


class StoreRefused(StoreError):
    """The store cannot be opened; the message says what to do."""


class StoreUnavailable(StoreError):
    """Certainly nothing was written."""


class OutcomeUnknown(StoreError):
    """The batch was applied once or not at all."""


class Moved(StoreError):
    """The source stands at another offset; nothing was written."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"the store has this source at offset {offset}")
        self.offset = offset


class Value(NamedTuple):
    """An event's count of one day, and its total since it was first seen."""

    count: int  # type: ignore[assignment] # tuple.count is of no use here
    total: int


class Refused(NamedTuple):
    """Why a posting was not counted, and the first event that was in the way."""

    reason: Literal["full", "overflow"]
    event: str


Answer = dict[str, Value] | Refused


class Applied(NamedTuple):
    """One answer for each posting, in their order, and what the acknowledgement survives."""

    answers: list[Answer]
    ack: Ack


class CounterStore(ABC):
    """Buckets of counts: event -> count by minute, hour, day and in total; '' stands for all events together."""

    kind: str
    ack: Ack

    @abstractmethod
    async def open(self) -> None:
        """Connect, or raise StoreRefused."""

    async def close(self) -> None:  # noqa: B027 # memory has nothing to let go of
        """Let go of everything."""

    @abstractmethod
    async def apply(self, source: str, at: int, next: int, batch: Batch) -> Applied:  # noqa: A002 # the contract's word
        """Compare and set, in one atomic step.

        The source stands at `at` (an unknown one at 0): count the batch and store `next`. It stands
        at `next`: this is a retry, and the first answers are given again. Otherwise raise Moved.
        Raises StoreUnavailable or OutcomeUnknown. An offset is never used for two batches.
        """

    @abstractmethod
    async def read(self, buckets: Sequence[Bucket], events: Sequence[str] | None = None) -> list[dict[str, int]]:
        """Each bucket's counts, of these events or of all; what was never counted is not in it."""

    def stale_seconds(self) -> float | None:
        """How old the last known numbers are that reads answer with; None where reads are true."""
        return None


def settle(posting: Posting, value_of: Callable[[str], Value | None], names_left: float) -> Answer:
    """Decide on a posting: the values after it, or why it is refused.

    `value_of` gives an event's value, or None for a name never seen, of which `names_left` are let in.
    """
    answer: dict[str, Value] = {}
    for event, by in posting.counts.items():
        value = value_of(event)
        if value is None:
            names_left -= 1
            if names_left < 0:
                return Refused("full", event)
        count, total = value or (0, 0)
        if max(count, total) + by > COUNT_MAX:
            return Refused("overflow", event)
        answer[event] = Value(count + by, total + by)
    return answer


def read_answers(batch: Batch, rows: list[list[int | str]]) -> list[Answer]:
    """The answers as Redis and SQLite keep them: [reason, event], or [count, total, ...] in the events' order."""
    return [
        Refused(*row) if row and isinstance(row[0], str) else dict(zip(p.counts, map(Value, row[::2], row[1::2])))  # type: ignore[arg-type] # noqa: B905 # rows are written by the stores, event by event
        for p, row in zip(batch.postings, rows, strict=True)
    ]
