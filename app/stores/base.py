"""The contract that every store keeps, and what the stores share."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from app.events import COUNT_MAX, OFFSET, PART, SKETCH, Batch, Bucket, Changes, Key, Kind, Moment, Posting
from app.stores import hyperloglog as sketch

KEY_KEPT_SECONDS = 86_400  # how long a retry with the same Idempotency-Key is recognised
VISITS_KEPT_SECONDS = 2 * 3600  # how long it is known who came in which minute
RANKED_MAX = 10_000  # users, or sessions, whose own counts a bucket keeps: those that came first
SOURCE_KEPT_SECONDS = 30 * 86_400  # how long a process's offset lives after its last use
FOR_GOOD = "kafka "  # begins the name of a source whose offset is never forgotten: a partition of Kafka

Ack = Literal["memory", "disk", "redis", "spooled", "log"]


class StoreError(Exception):
    """What can go wrong with a store; the message may be shown to a client."""


class StoreRefused(StoreError):
    """The store cannot be opened; the message says what to do."""


class StoreUnavailable(StoreError):
    """Certainly nothing was written."""


class OutcomeUnknown(StoreError):
    """The batch was applied once or not at all."""


class Overtaken(StoreError):
    """The day was changed by somebody else since this change was worked out; nothing was written."""


class Moved(StoreError):
    """The source stands at another offset; nothing was written."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"the store has this source at offset {offset}")
        self.offset = offset


class Value(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An event's count of one day, and its total since it was first seen."""

    count: int
    total: int


class Refused(NamedTuple):
    """Why a posting was not counted: a cap, a count at its end, or its Idempotency-Key."""

    reason: Literal["full", "overflow", "mismatch", "keys"]


class Replayed(NamedTuple):
    """The first answer to a key, given again; nothing was counted now."""

    date: str
    values: dict[str, Value]


class Remembered(NamedTuple):
    """What a store keeps of a key: the request's hash, when it was used, its answer, and the client's hash."""

    request: str
    minute: int
    answer: Replayed
    owner: str


class Caps(NamedTuple):
    """How many names, and how many live keys, a store takes; of the keys a tenth from one client."""

    names: int
    keys: int = 1_000_000


class Apart(NamedTuple):
    """The answer to a posting whose events were decided apart: the values of some, and why others are refused."""

    values: dict[str, Value]
    refused: dict[str, Refused]


Answer = dict[str, Value] | Refused | Replayed | Apart


class Applied(NamedTuple):
    """One answer for each posting, in their order, and what the acknowledgement survives.

    The values are those of the days' generations, which are 0 unless said here.
    """

    answers: list[Answer]
    ack: Ack
    generations: Mapping[int, int] = {}


class Distinct(NamedTuple):
    """How many there are, and the standard error of an estimate, as a share; 0 where they were counted."""

    number: int
    error: float


class Condition(NamedTuple):
    """How a store is now: what an acknowledgement is worth, what waits, and what an operator should know."""

    ack: Ack
    accepts: bool = True
    reasons: tuple[str, ...] = ()
    stale_seconds: float | None = None  # the age of the last known numbers that reads get; None where they are true
    spool_bytes: int = 0  # what waits on this node to be applied
    lost_batches: int = 0  # acknowledged, and then lost by the store


class CounterStore(ABC):
    """Buckets of counts: event -> count by minute, hour, day and in total; '' stands for all events together."""

    kind: str
    ack: Ack
    survives: str  # what a hit in it survives, in words
    shared = False  # whether other nodes write to it

    @abstractmethod
    async def open(self) -> None:
        """Connect, or raise StoreRefused."""

    async def close(self) -> None:  # noqa: B027 # memory has nothing to let go of
        """Let go of everything."""

    @abstractmethod
    async def apply(self, source: str, at: int, next: int, work: Batch | Changes) -> Applied:
        """Compare and set, in one atomic step.

        The source stands at `at` (an unknown one at 0): do the work and store `next`. It stands
        at `next`: this is a retry, and the first answers are given again. Otherwise raise Moved.
        Raises StoreUnavailable, OutcomeUnknown or Overtaken. An offset is never used for two batches.
        """

    async def stands(self, source: str) -> int:
        """The offset of a source, which is left where it is; where it differs between tags, the lowest."""
        try:
            await self.apply(source, -1, -1, [])  # where no source ever stands
        except Moved as moved:
            return moved.offset
        raise AssertionError

    @abstractmethod
    async def read(
        self, buckets: Sequence[Bucket], members: Sequence[str] | None = None
    ) -> Sequence[Mapping[str, int]]:
        """Each bucket's counts, of these events (or users...) or of all; what was never counted is not in it.

        An id beyond the first RANKED_MAX of a bucket has the count 0. Changes are in all of them or in none.
        """

    @abstractmethod
    async def sizes(self, buckets: Sequence[Bucket]) -> list[int]:
        """How many events each bucket has."""

    @abstractmethod
    async def buckets(self, days: Sequence[int] | None = None) -> list[Bucket]:
        """All there are, or those of these days as a whole."""

    @abstractmethod
    async def prune(self, before: Mapping[str, int], moment: Moment) -> None:
        """Forget the buckets of a step that begin before these UTC seconds, and what has expired by now."""

    async def counts(self, day: int, events: Sequence[str] | None = None) -> Mapping[str, int]:
        """A day's hits as they were corrected, of these events or of all; where that gives 0, there is none."""
        found, offset = await self.read([Bucket("day", day), Bucket("day", day, OFFSET)], events)
        if not offset:
            return found
        return {e: n for e in {**found, **offset} if (n := found.get(e, 0) + offset.get(e, 0))}

    async def distinct(self, buckets: Sequence[Bucket]) -> Distinct:
        """How many different users, or sessions, these buckets have together."""
        sketches = await self.read([bucket._replace(of=SKETCH + bucket.of) for bucket in buckets])
        if len(buckets) == 1 and not any(sketches):
            return Distinct((await self.sizes(buckets))[0], 0.0)
        ids = set[str]()
        for bucket in buckets:  # one at a time, for each may be large
            ids.update(*await self.read([bucket]))
        if not any(sketches):
            return Distinct(len(ids), 0.0)
        return Distinct(sketch.estimate(*sketches, sketch.of(ids)), sketch.ERROR)

    async def visits(self, kind: Kind, visitor: str, days: Sequence[int]) -> list[dict[str, int]]:
        """What a user, or a session, did on these days, as far as the buckets know: counts by event."""
        begin = f"{kind}:"
        wanted = [bucket for bucket in await self.buckets(days) if bucket.of.startswith(begin)]
        counts: dict[int, dict[str, int]] = {day: {} for day in days}
        for bucket, found in zip(wanted, await self.read(wanted, [visitor]), strict=True):
            if found.get(visitor) and bucket.of != begin:
                counts[bucket.start][bucket.of.removeprefix(begin)] = found[visitor]
        return list(counts.values())

    def condition(self) -> Condition:
        """How it is; asking costs nothing."""
        return Condition(self.ack)

    async def epoch(self) -> str:
        """A text that changes when numbers may have gone back: the store lost something, or is another one."""
        return ""

    async def note_loss(self, batches: int) -> None:  # noqa: B027 # most stores lose nothing unnoticed
        """A source was found to stand that many batches back: begin a new epoch, for all nodes."""

    async def adopt(self) -> None:  # noqa: B027 # most leave nothing behind
        """Apply what dead processes have left to be applied."""

    async def tell(self, news: str) -> None:
        """Send this to every node on this store, this one included; it may get lost."""
        raise NotImplementedError  # only shared stores are asked

    def hear(self, patience: float) -> AsyncIterator[str]:
        """What nodes tell, until nothing came for so many seconds or the connection broke: then StoreUnavailable."""
        raise NotImplementedError  # only shared stores are asked


def is_of_events(bucket: Bucket) -> bool:
    """Whether its members are events, and EVERYTHING their sum."""
    return bucket.of in {"", OFFSET} or bucket.of.startswith(PART)


def visits_of(event: str) -> set[str]:
    """What else is kept of an event."""
    return {f"{begin}{kind}:{event}" for begin in ("", SKETCH) for kind in ("user", "session")}


def before_for_visits(before: Mapping[str, int], moment: Moment) -> dict[str, int]:
    """What `prune` was told, for buckets of anything but events."""
    return {**before, "minute": max(before.get("minute", 0), moment.minute - VISITS_KEPT_SECONDS)}


async def insist(
    store: CounterStore,
    note_loss: Callable[[int], Awaitable[None]],
    source: str,
    at: int,
    next: int,
    work: Batch | Changes,
) -> Applied | None:
    """Apply also where the store has lost what came before; None where it was applied long ago."""
    stands = at
    while True:
        try:
            return await store.apply(source, stands, next, work)
        except StoreUnavailable as error:
            if stands == at:
                raise
            raise OutcomeUnknown(str(error)) from error  # some tag of a cluster may have taken it before
        except Moved as moved:
            if moved.offset >= next:
                return None
            if moved.offset < at == stands:
                await note_loss(at - moved.offset)
            stands = moved.offset  # a batch is known by its `next`: whoever sends it again finds it there


def settle(
    posting: Posting, value_of: Callable[[str], tuple[int, int] | None], names_left: float
) -> dict[str, Value] | Refused | Apart:
    """Decide on a posting: the values after it, or why it is refused.

    `value_of` gives an event's count and total, or None for a name never seen, of which `names_left` are let in.
    """
    values: dict[str, Value] = {}
    refused: dict[str, Refused] = {}
    for event, by in posting.counts.items():
        value = value_of(event)
        count, total = value or (0, 0)
        if value is None and names_left < 1:
            refused[event] = Refused("full")
        elif count + by > COUNT_MAX or total + by > COUNT_MAX:
            refused[event] = Refused("overflow")
        else:
            values[event] = Value(count + by, total + by)
            names_left -= value is None
    return Apart(values, refused) if posting.apart else next(iter(refused.values()), values)


def counted(answer: Answer) -> dict[str, Value]:
    """The values of what this answer says was counted now."""
    if isinstance(answer, Apart):
        return answer.values
    return answer if isinstance(answer, dict) else {}


def recall(key: Key, minute: int, found: Remembered | None, keys: int, owned: int, caps: Caps | None) -> Answer | None:
    """Decide on a posting's key: the answer it already has, why it is refused, or None where it is to be counted.

    `found` is what the store keeps under it; `keys` are live, `owned` of them by this client; no caps, no bound.
    """
    if found and found.minute > minute - KEY_KEPT_SECONDS:
        return found.answer if found.request == key.request else Refused("mismatch")
    if caps and (keys >= caps.keys or owned >= max(1, caps.keys // 10)):
        return Refused("keys")
    return None


# An answer as Redis and SQLite keep it: [count, total, ...] in the order of the posting's events, with reason and 0
# for one that was refused apart; ["replayed", date, count, total, ...]; or [reason].
Row = list[int | str]


def to_text(work: Batch | Changes, applied: Applied) -> str:
    """What is kept beside an offset: as JSON the generations, then a row for each answer."""
    rows = map(to_row, () if isinstance(work, Changes) else work, applied.answers)
    return msgspec.json.encode([applied.generations, *rows]).decode()


def from_text(work: Batch | Changes, text: str, ack: Ack) -> Applied:
    generations, *rows = msgspec.json.decode(text)
    answers = list(map(from_row, () if isinstance(work, Changes) else work, rows))
    return Applied(answers, ack, {int(day): n for day, n in generations.items()})


def to_row(posting: Posting, answer: Answer) -> Row:
    if isinstance(answer, Replayed):
        return ["replayed", answer.date, *to_row(posting, answer.values)]
    if isinstance(answer, Refused):
        return [answer.reason]
    if isinstance(answer, Apart) and answer.refused:
        pairs: dict[str, tuple[int | str, int]] = {e: (value.count, value.total) for e, value in answer.values.items()}
        pairs |= {event: (refused.reason, 0) for event, refused in answer.refused.items()}
        return [part for event in posting.counts for part in pairs[event]]
    return [n for value in counted(answer).values() for n in (value.count, value.total)]


def from_row(posting: Posting, row: Row) -> Answer:
    if not posting.apart and row and isinstance(row[0], str):
        if row[0] == "replayed":
            return Replayed(str(row[1]), from_row(posting, row[2:]))  # type: ignore[arg-type] # to_row wrote it
        return Refused(row[0])  # type: ignore[arg-type] # likewise
    parts = iter(row)
    values = dict(zip(posting.counts, map(Value, parts, parts), strict=True))  # type: ignore[arg-type] # likewise
    if not posting.apart:
        return values
    reasons = zip(posting.counts, row[::2], strict=True)
    refused = {event: Refused(reason) for event, reason in reasons if isinstance(reason, str)}  # type: ignore[arg-type] # likewise
    for event in refused:
        del values[event]
    return Apart(values, refused)
