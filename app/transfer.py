"""All of a store as NDJSON, and back: lines of a bucket's counts, each of which is applied exactly once."""

import re
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import BinaryIO, Literal, NamedTuple

import msgspec

from app.changes import Logged
from app.events import (
    COUNT_MAX,
    EVERYTHING,
    GENERATION,
    LOG,
    OFFSET,
    PART,
    SKETCH,
    TOTAL,
    VISITS,
    Bucket,
    Changes,
    Clock,
    InvalidName,
    Write,
    event_name,
    visitor_name,
)
from app.stores import sketch
from app.stores.base import CounterStore, Moved, is_of_events

STEPS = ("minute", "hour", "day", "total")
LINE_MEMBERS = 1000
LINE_BYTES_MAX = 4 * 1024 * 1024
ESTIMATE_TOLERANCE = 0.02  # by which an estimate may differ from what it was made of
_OF = re.compile(
    rf"({OFFSET}|{GENERATION}|{LOG}|{PART}\d{{1,12}}|({SKETCH})?(user|session):(?P<visited>.*))?", re.DOTALL
)


class TransferError(ValueError):
    """A file that is no whole export, or that does not fit; the message says which line."""


class _Head(msgspec.Struct):
    tally: Literal[1]  # the format
    export: str
    timezone: str


class _Line(msgspec.Struct):
    bucket: Bucket | None = None
    counts: dict[str, int] = {}
    end: int | None = None


class Piece(NamedTuple):
    """A line of an export: its number, and what it has."""

    number: int
    export: str
    bucket: Bucket
    counts: dict[str, int]


async def export(store: CounterStore, clock: Clock) -> AsyncIterator[bytes]:
    """The lines of an export. Hits that come meanwhile may be in some of them."""
    lines = 1
    yield _json(_Head(1, uuid.uuid4().hex, str(clock.calendar.zone)))
    for bucket in sorted(filter(_lasts, await store.buckets()), key=_order):
        (counts,) = await store.read([bucket])
        if is_of_events(bucket):
            counts.pop(EVERYTHING, None)  # their sum
        items = list(counts.items())
        for i in range(0, len(items), LINE_MEMBERS):
            lines += 1
            yield _json({"bucket": bucket, "counts": dict(items[i : i + LINE_MEMBERS])})
    yield _json({"end": lines})


def pieces(file: BinaryIO, clock: Clock) -> Iterator[Piece]:
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
                _check(line.bucket, line.counts)
                yield Piece(number, head.export, line.bucket, line.counts)
            elif not ended:
                raise TransferError(f"line {number}: nothing that an export has")
    except (msgspec.DecodeError, InvalidName, RecursionError, UnicodeDecodeError) as error:
        raise TransferError(f"line {number}: {error}") from None
    if not ended:
        raise TransferError(f"line {number}: the export ends here before its end")


async def restore(store: CounterStore, clock: Clock, piece: Piece) -> None:
    """Add a line to the store, unless this file's was added before. Raises TransferError and StoreError."""
    bucket, at = piece.bucket, piece.number - 2  # after the head
    how: Literal["merge", "mark", "add"] = "mark" if bucket.of.startswith(VISITS) else "add"
    if bucket == TOTAL:
        (known,) = await store.read([TOTAL], [EVERYTHING])
        if known.get(EVERYTHING, 0) + sum(piece.counts.values()) > COUNT_MAX:
            raise TransferError(f"line {piece.number}: the totals would pass {COUNT_MAX}")
    write = Write("merge" if bucket.of.startswith(SKETCH) else how, bucket, piece.counts)
    try:
        await store.apply(f"import {piece.export}", at, at + 1, Changes(clock.moment(), [write]))
    except Moved as moved:
        if moved.offset < at:
            raise TransferError(f"line {piece.number}: earlier ones are not in the store any more") from None


class Comparison:
    """Whether a store has what an export says, and nothing else."""

    def __init__(self, store: CounterStore) -> None:
        self._store = store
        self._sizes: dict[Bucket, int] = {}

    async def differences(self, piece: Piece) -> list[str]:
        """How the store differs from a line of it."""
        bucket, counts = piece.bucket, piece.counts
        self._sizes[bucket] = self._sizes.get(bucket, 0) + len(counts)
        (found,) = await self._store.read([bucket], list(counts))
        if bucket.of.startswith(SKETCH):
            (found,) = await self._store.read([bucket])
        known = {name: n for name, n in counts.items() if n or not bucket.of}  # the rest is counted by its size
        wrong = {name: n for name, n in known.items() if found.get(name) != n}
        return [f"{_words(bucket)}: {name!r} is {found.get(name)}, not {n}" for name, n in wrong.items()]

    async def surplus(self) -> list[str]:
        """What the store has beyond all of the lines."""
        told = []
        for bucket in sorted(filter(_lasts, await self._store.buckets()), key=_order):
            size = self._sizes.get(bucket, 0)
            if bucket.of.startswith(VISITS):
                estimated = bucket._replace(of=SKETCH + bucket.of) in self._sizes
                found = await self._store.distinct([bucket])
                same = estimated or abs(found.number - size) <= size * ESTIMATE_TOLERANCE * bool(found.error)
                if not same:
                    told.append(f"{_words(bucket)}: {found.number} came, not {size}")
            elif not bucket.of and (await self._store.sizes([bucket]))[0] != size:
                told.append(f"{_words(bucket)}: there are other events")
        return told


def _check(bucket: Bucket, counts: dict[str, int]) -> None:
    of = _OF.fullmatch(bucket.of)
    if not of or bucket.step not in STEPS or not 0 <= bucket.start < 2**40:
        raise msgspec.DecodeError("no such bucket")
    if of["visited"] and event_name(of["visited"]) != of["visited"]:
        raise msgspec.DecodeError("an event is not in its stored form")
    for member, count in counts.items():
        if bucket.of.startswith(SKETCH):
            valid = member.isdecimal() and int(member) < sketch.REGISTERS and 0 < count <= sketch.MAX
        elif bucket.of in {GENERATION, LOG}:
            valid = 0 < count < COUNT_MAX
            if member:
                msgspec.json.decode(member, type=Logged)
        else:
            named = visitor_name if bucket.of.startswith(VISITS) else event_name
            valid = named(member) == member and (0 if not bucket.of else -COUNT_MAX) <= count <= COUNT_MAX
        if not valid:
            raise msgspec.DecodeError("no such count")


def _lasts(bucket: Bucket) -> bool:
    """Who came in which minute is forgotten soon, and does not travel."""
    return not (bucket.of and bucket.step == "minute")


def _order(bucket: Bucket) -> tuple[bool, bool, bool, Bucket]:
    """Totals first, since what has none is no event; generations last, so that pages see all that they stand for."""
    return bucket != TOTAL, bool(bucket.of), bucket.of == GENERATION, bucket


def _words(bucket: Bucket) -> str:
    return " ".join(map(str, bucket)).strip()


def _json(line: object) -> bytes:
    return msgspec.json.encode(line) + b"\n"
