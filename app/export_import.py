"""All of a store as NDJSON, and back: lines of a bucket's counts, each of which is applied exactly once."""

import re
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, BinaryIO, Literal, NamedTuple

import msgspec

from app.corrections import Logged
from app.domain.buckets import (
    ALL_EVENTS,
    BEFORE_RESET,
    CORRECTION,
    CORRECTION_LOG,
    GENERATION,
    SKETCH,
    TOTAL,
    VISITOR_DIMENSIONS,
    Bucket,
    is_event_bucket,
)
from app.domain.calendar import Calendar, Clock
from app.domain.counting import COUNT_MAX, BucketWrite, DayChange
from app.domain.names import InvalidName, event_name, visitor_id
from app.stores import hyperloglog
from app.stores.base import CounterStore, OffsetMismatch

STEPS = ("minute", "hour", "day", "total")
LINE_MEMBERS = 1000
LINE_BYTES_MAX = 4 * 1024 * 1024
LATEST = 2**35  # the UTC second after which nothing is believed, in the year 3058
ESTIMATE_TOLERANCE = (
    5 * hyperloglog.ERROR,
    3,
)  # by which an estimate may differ from what it was made of: a share, and ids
_OF_DAY = re.compile(rf"{CORRECTION}|{GENERATION}|{CORRECTION_LOG}|{BEFORE_RESET}\d{{1,10}}")
_OF_VISITS = re.compile(rf"({SKETCH})?(user|session):(?P<event>.*)", re.DOTALL)
_REGISTER = re.compile(r"0|[1-9][0-9]{0,4}")


class TransferError(ValueError):
    """A file that is no whole export, or that does not fit; the message says which line."""


class _Head(msgspec.Struct):
    tally: Literal[1]  # the format
    export: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    timezone: str


class _Line(msgspec.Struct):
    bucket: Bucket | None = None
    counts: dict[str, int] = {}
    end: int | None = None


class ExportLine(NamedTuple):
    """A line of an export: its number, and what it has."""

    number: int
    export: str
    bucket: Bucket
    counts: dict[str, int]


async def export(store: CounterStore, clock: Clock) -> AsyncIterator[bytes]:
    """The lines of an export. Hits that come meanwhile may be in some of them."""
    lines = 1
    yield _json(_Head(1, uuid.uuid4().hex, str(clock.calendar.zone)))
    (totals,) = await store.read([TOTAL])
    for bucket in sorted(filter(_lasts, await store.list_buckets()), key=_order):
        (counts,) = [totals] if bucket == TOTAL else await store.read([bucket])
        if is_event_bucket(bucket):  # without their sum, and what has only come since
            counts = {event: n for event, n in counts.items() if event != ALL_EVENTS and event in totals}
        items = list(counts.items())
        for i in range(0, len(items), LINE_MEMBERS):
            lines += 1
            yield _json({"bucket": bucket, "counts": dict(items[i : i + LINE_MEMBERS])})
    yield _json({"end": lines})


def pieces(file: BinaryIO, clock: Clock) -> Iterator[ExportLine]:
    """What an export has, line by line; raises TransferError where it is none, or of another zone's days."""
    number, ended = 1, False
    try:
        head = msgspec.json.decode(file.readline(LINE_BYTES_MAX), type=_Head)
        if head.timezone != str(clock.calendar.zone):
            raise TransferError(f"these days are those of {head.timezone}: set TALLY_TIMEZONE to that")
        while not ended and (text := file.readline(LINE_BYTES_MAX)):
            number += 1
            line = msgspec.json.decode(text, type=_Line)
            ended = line.end == number - 1
            if line.bucket:
                _check(line.bucket, line.counts, clock.calendar)
                yield ExportLine(number, head.export, line.bucket, line.counts)
            elif not ended:
                raise TransferError(f"line {number}: nothing that an export has")
    except (msgspec.DecodeError, InvalidName, RecursionError, UnicodeDecodeError) as error:
        raise TransferError(f"line {number}: {error}") from None
    if not ended or file.read(1):
        raise TransferError(f"line {number}: the export ends here {'and goes on' if ended else 'before its end'}")


async def restore(store: CounterStore, clock: Clock, piece: ExportLine) -> None:
    """Add a line to the store, unless this file's was added before. Raises TransferError and StoreError."""
    bucket, at = piece.bucket, piece.number - 2  # after the head
    how: Literal["merge", "mark", "add"] = "mark" if bucket.dimension.startswith(VISITOR_DIMENSIONS) else "add"
    if is_event_bucket(bucket):
        (known,) = await store.read([bucket], [ALL_EVENTS])
        if known.get(ALL_EVENTS, 0) + sum(piece.counts.values()) > COUNT_MAX:
            raise TransferError(f"line {piece.number}: the sum of all events would pass {COUNT_MAX}")
    write = BucketWrite("merge" if bucket.dimension.startswith(SKETCH) else how, bucket, piece.counts)
    try:
        await store.apply_change(f"import {piece.export}", at, at + 1, DayChange(clock.slot(), [write]))
    except OffsetMismatch as moved:
        if moved.offset < at:
            raise TransferError(f"line {piece.number}: earlier ones are not in the store any more") from None


class Comparison:
    """Whether a store has what an export says, and nothing else."""

    def __init__(self, store: CounterStore) -> None:
        self._store = store
        self._sizes: dict[Bucket, int] = {}

    async def differences(self, piece: ExportLine) -> list[str]:
        """How the store differs from a line of it."""
        bucket, counts = piece.bucket, piece.counts
        self._sizes[bucket] = self._sizes.get(bucket, 0) + len(counts)
        estimated = bucket.dimension.startswith(SKETCH)
        (found,) = await self._store.read([bucket], None if estimated else list(counts))
        known = {name: n for name, n in counts.items() if n or not bucket.dimension}  # the rest is counted by its size
        # the registers of a sketch may be of ids, too, that the file has beside it
        wrong = [n for n in known if (found.get(n, 0) < known[n] if estimated else found.get(n) != known[n])]
        return [f"{_words(bucket)}: {name!r} is {found.get(name)}, not {known[name]}" for name in wrong]

    async def surplus(self) -> list[str]:
        """What the store has beyond all of the lines."""
        told = []
        for bucket in sorted(filter(_lasts, await self._store.list_buckets()), key=_order):
            size = self._sizes.get(bucket, 0)
            if bucket.dimension.startswith(VISITOR_DIMENSIONS):
                estimated = bucket._replace(dimension=SKETCH + bucket.dimension) in self._sizes
                found = await self._store.count_distinct([bucket])
                share, ids = ESTIMATE_TOLERANCE if found.error else (0, 0)
                if not estimated and abs(found.number - size) > size * share + ids:
                    told.append(f"{_words(bucket)}: {found.number} came, not {size}")
            elif (
                bucket.dimension != GENERATION
                and not bucket.dimension.startswith(SKETCH)
                and (await self._store.sizes([bucket]))[0] != size
            ):
                told.append(f"{_words(bucket)}: there is more")
        return told


def _check(bucket: Bucket, counts: dict[str, int], calendar: Calendar) -> None:
    step, start, dimension = bucket
    visits = _OF_VISITS.fullmatch(dimension)
    steps = STEPS if not dimension else ("day", "total") if visits else ("day",) if _OF_DAY.fullmatch(dimension) else ()
    begins = step in steps and 0 <= start < LATEST
    if not begins or start != (0 if step == "total" else getattr(calendar.slot(start), step)):
        raise msgspec.DecodeError("no such bucket")
    if visits and visits["event"] and event_name(visits["event"]) != visits["event"]:
        raise msgspec.DecodeError("an event is not in its stored form")
    for member, count in counts.items():
        if not _is_valid(dimension, member, count):
            raise msgspec.DecodeError("no such count")


def _is_valid(dimension: str, member: str, count: int) -> bool:
    if dimension.startswith(SKETCH):
        return (
            bool(_REGISTER.fullmatch(member)) and int(member) < hyperloglog.REGISTERS and 0 < count <= hyperloglog.MAX
        )
    if dimension == GENERATION:
        return not member and 0 < count < COUNT_MAX
    if dimension == CORRECTION_LOG:
        return _is_logged(msgspec.json.decode(member, type=Logged), member) and 0 < count < COUNT_MAX
    least = -COUNT_MAX if dimension == CORRECTION or dimension.startswith(BEFORE_RESET) else 0
    return (visitor_id if dimension.startswith(VISITOR_DIMENSIONS) else event_name)(
        member
    ) == member and least <= count <= COUNT_MAX


def _is_logged(logged: Logged, text: str) -> bool:
    """Whether Tally would have written this; only what is looked at first can be written in a form of its own."""
    before, after = logged.before, logged.after
    numbers = logged.generation, before.count, before.total, after.count, after.total
    right = 0 <= logged.at < LATEST and all(abs(n) <= COUNT_MAX for n in numbers)
    named = not logged.event or event_name(logged.event) == logged.event
    return right and named and msgspec.json.encode(logged).decode() == text


def _lasts(bucket: Bucket) -> bool:
    """Who came in which minute is forgotten soon, and does not travel."""
    return not (bucket.dimension and bucket.step == "minute")


def _order(bucket: Bucket) -> tuple[bool, bool, bool, Bucket]:
    """Totals first, since what has none is no event; generations last, so that pages see all that they stand for."""
    return bucket != TOTAL, bool(bucket.dimension), bucket.dimension == GENERATION, bucket


def _words(bucket: Bucket) -> str:
    return " ".join(map(str, bucket)).strip()


def _json(line: object) -> bytes:
    return msgspec.json.encode(line) + b"\n"
