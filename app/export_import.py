"""Export and import of a whole store as NDJSON: one line per bucket or part of it, each imported exactly once."""

import re
import uuid
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Annotated, BinaryIO, Literal, NamedTuple

import msgspec

from app.corrections import CorrectionRecord
from app.domain.buckets import (
    ALL_EVENTS,
    BEFORE_RESET,
    CORRECTION,
    CORRECTION_LOG,
    GENERATION,
    IMPORTED,
    SKETCH,
    TOTAL,
    VISITOR_DIMENSIONS,
    Bucket,
    is_event_bucket,
)
from app.domain.calendar import Calendar, Clock, is_same_zone
from app.domain.counting import COUNT_MAX, BucketWrite, DayChange
from app.domain.names import InvalidName, stored_event_name, stored_visitor_id
from app.stores import hyperloglog
from app.stores.base import CounterStore, OffsetMismatch

LINE_MEMBERS_MAX = 1000
LINE_BYTES_MAX = 4 * 1024 * 1024
TIME_MAX = 2**35  # UTC second in the year 3058; later times are rejected
# An estimate may differ from the exact number by this fraction of it, plus this many ids.
ESTIMATE_TOLERANCE = (5 * hyperloglog.ERROR, 3)


class ExportError(ValueError):
    """The file is not a complete export, cannot be imported into this store, or differs from it."""


class _Head(msgspec.Struct):
    tally: Literal[1]  # version of the format
    export: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    timezone: str


class _Line(msgspec.Struct):
    bucket: Bucket | None = None
    counts: dict[str, int] = {}
    end: int | None = None


class ExportLine(NamedTuple):
    """A line of an export: its number in the file, the id of the export, and counts of a bucket."""

    number: int
    export: str
    bucket: Bucket
    counts: dict[str, int]


async def export(store: CounterStore, clock: Clock) -> AsyncIterator[bytes]:
    """Yield the lines of an export. Hits that arrive meanwhile may be in some of them. Raises StoreError."""
    lines = 1
    yield encode_head(clock.calendar.zone.key)
    (totals,) = await store.read([TOTAL])
    for bucket in sorted(filter(_is_exported, await store.list_buckets()), key=_sort_key):
        (counts,) = [totals] if bucket == TOTAL else await store.read([bucket])
        if is_event_bucket(bucket):  # leave out their sum, and events that are newer than the totals
            counts = {event: n for event, n in counts.items() if event != ALL_EVENTS and event in totals}
        for line in encode_counts(bucket, counts):
            lines += 1
            yield line
    yield encode_end(lines)


def encode_head(zone: str, export_id: str = "") -> bytes:
    """Return the first line of an export whose days are those of this time zone. Its id is new unless it is given."""
    return _encode(_Head(1, export_id or uuid.uuid4().hex, zone))


def encode_counts(bucket: Bucket, counts: Mapping[str, int]) -> Iterator[bytes]:
    """Yield the lines of a bucket."""
    items = list(counts.items())
    for i in range(0, len(items), LINE_MEMBERS_MAX):
        yield _encode({"bucket": bucket, "counts": dict(items[i : i + LINE_MEMBERS_MAX])})


def encode_end(lines: int) -> bytes:
    """Return the last line of an export that has this many lines before it."""
    return _encode({"end": lines})


def read_zone(file: BinaryIO) -> str:
    """Return the time zone of an export. Raises ExportError."""
    try:
        return msgspec.json.decode(_next_line(file), type=_Head).timezone
    except msgspec.DecodeError as error:
        raise ExportError(f"line 1: {error}") from None


def read_lines(file: BinaryIO, clock: Clock) -> Iterator[ExportLine]:
    """Yield the lines of an export. Raises ExportError if a line is invalid or the time zone is not the clock's."""
    number, ended = 1, False
    try:
        head = msgspec.json.decode(_next_line(file), type=_Head)
        zone = str(clock.calendar.zone)
        if not is_same_zone(head.timezone, zone):
            raise ExportError(
                f"the export has the time zone {head.timezone} and this service {zone}: set"
                f" TALLY_TIMEZONE={head.timezone} for a new store, or change the export with `tally rezone`"
            )
        while not ended and (text := _next_line(file)):
            number += 1
            line = msgspec.json.decode(text, type=_Line)
            ended = line.end == number - 1
            if line.bucket:
                _check(line.bucket, line.counts, clock.calendar)
                yield ExportLine(number, head.export, line.bucket, line.counts)
            elif not ended:
                raise ExportError(f"line {number}: not a line of an export")
    except (msgspec.DecodeError, InvalidName, RecursionError, UnicodeDecodeError) as error:
        raise ExportError(f"line {number}: {error}") from None
    if not ended:
        raise ExportError(f"line {number}: the file is truncated")
    if file.read(1):
        raise ExportError(f"line {number}: there is more data after the end of the export")


def _next_line(file: BinaryIO) -> bytes:
    return file.readline(LINE_BYTES_MAX).removeprefix(BOM_UTF8)


class Contents(NamedTuple):
    """How many lines with counts, events and hits an export has, and the starts of its days (UTC seconds)."""

    export: str
    lines: int
    events: int
    hits: int
    days: list[int]


def check_file(file: BinaryIO, clock: Clock) -> Contents:
    """Read every line, then rewind, so that nothing is imported from an invalid file. Raises ExportError."""
    export_id, lines, events, hits, days = "", 0, 0, 0, set[int]()
    for line in read_lines(file, clock):
        export_id, lines = line.export, lines + 1
        if line.bucket == TOTAL:
            events += len(line.counts)
            hits += sum(line.counts.values())
        elif line.bucket.step == "day" and not line.bucket.dimension:
            days.add(line.bucket.start)
    file.seek(0)
    return Contents(export_id, lines, events, hits, sorted(days))


async def lines_left(store: CounterStore, contents: Contents) -> int:
    """Return how many lines of an export are not in the store yet: 0 if it was imported before.

    Raises ExportError if the totals would become too large, and StoreError.
    """
    left = contents.lines - await store.get_offset(_source(contents.export))
    (totals,) = await store.read([TOTAL], [ALL_EVENTS])
    if left == contents.lines and totals.get(ALL_EVENTS, 0) + contents.hits > COUNT_MAX:
        raise ExportError(f"the sum of all events would exceed {COUNT_MAX}")
    return max(0, left)


def _source(export_id: str) -> str:
    return f"import {export_id}"


async def import_line(store: CounterStore, clock: Clock, line: ExportLine) -> None:
    """Add a line to the store, unless this line of this export was added before.

    Raises ExportError if it does not fit, or if the store has lost earlier lines; and StoreError.
    """
    bucket, offset = line.bucket, line.number - 2  # the head has number 1
    if is_event_bucket(bucket):
        (counts,) = await store.read([bucket], [ALL_EVENTS])
        if counts.get(ALL_EVENTS, 0) + sum(line.counts.values()) > COUNT_MAX:
            raise ExportError(f"line {line.number}: the sum of all events would exceed {COUNT_MAX}")
    write = BucketWrite(_operation(bucket), bucket, line.counts)
    # A late line does no harm, because the line is not added again when the import is repeated.
    change = DayChange(clock.slot(), [write], may_be_late=True)
    try:
        await store.apply_change(_source(line.export), offset, offset + 1, change)
    except OffsetMismatch as mismatch:
        if mismatch.offset < offset:
            text = "the store has lost earlier lines of this import: import into an empty store"
            raise ExportError(f"line {line.number}: {text}") from None


def _operation(bucket: Bucket) -> Literal["merge", "mark", "add"]:
    if bucket.dimension.startswith(SKETCH):
        return "merge"
    return "mark" if bucket.dimension.startswith(VISITOR_DIMENSIONS) else "add"


class Comparison:
    """Compares a store with an export: call `differences` for every line, then `extra_in_store`."""

    def __init__(self, store: CounterStore) -> None:
        self._store = store
        self._sizes: dict[Bucket, int] = {}

    async def differences(self, line: ExportLine) -> list[str]:
        """Return a sentence for each count of the line that differs in the store. Raises StoreError."""
        bucket, counts = line.bucket, line.counts
        self._sizes[bucket] = self._sizes.get(bucket, 0) + len(counts)
        is_sketch = bucket.dimension.startswith(SKETCH)
        (found,) = await self._store.read([bucket], None if is_sketch else list(counts))
        # A visitor without a count of its own is compared by the size of the bucket.
        expected = {name: n for name, n in counts.items() if n or not bucket.dimension}
        # A register may be larger than in the file, because the store also adds the ids that the file lists.
        wrong = [n for n in expected if (found.get(n, 0) < expected[n] if is_sketch else found.get(n) != expected[n])]
        return [
            f"{_describe(bucket)}: {name!r} is {found.get(name)} in the store, {expected[name]} in the file"
            for name in wrong
        ]

    async def extra_in_store(self) -> list[str]:
        """Return a sentence for each bucket that has more members in the store than in the file. Raises StoreError."""
        extra = []
        for bucket in sorted(filter(_is_exported, await self._store.list_buckets()), key=_sort_key):
            size = self._sizes.get(bucket, 0)
            if bucket.dimension.startswith(VISITOR_DIMENSIONS):
                in_sketch = bucket._replace(dimension=SKETCH + bucket.dimension) in self._sizes
                found = await self._store.count_distinct([bucket])
                fraction, ids = ESTIMATE_TOLERANCE if found.error else (0, 0)
                if not in_sketch and abs(found.number - size) > size * fraction + ids:
                    extra.append(f"{_describe(bucket)}: {found.number} visitors in the store, {size} in the file")
            elif (
                bucket.dimension != GENERATION
                and not bucket.dimension.startswith(SKETCH)
                and (await self._store.sizes([bucket]))[0] != size
            ):
                extra.append(f"{_describe(bucket)}: the store has members that the file lacks")
        return extra


class _Dimension(NamedTuple):
    """Which dimensions a pattern matches, in which steps they exist, and which counts their members may have."""

    pattern: re.Pattern[str]
    steps: tuple[str, ...]
    is_valid: Callable[[str, int], bool]


def _is_count(member: str, count: int) -> bool:
    return stored_event_name(member) == member and 0 <= count <= COUNT_MAX


def _is_correction(member: str, count: int) -> bool:
    return stored_event_name(member) == member and abs(count) <= COUNT_MAX


def _is_visitor(member: str, count: int) -> bool:
    return stored_visitor_id(member) == member and 0 <= count <= COUNT_MAX


def _is_register(member: str, count: int) -> bool:
    number = re.fullmatch(r"0|[1-9][0-9]{0,4}", member)
    return bool(number) and int(member) < hyperloglog.REGISTERS and 0 < count <= hyperloglog.MAX


def _is_generation(member: str, count: int) -> bool:
    return member == ALL_EVENTS and 0 < count < COUNT_MAX


def _is_correction_record(member: str, count: int) -> bool:
    """Return whether Tally could have written this record. Encoding it again detects any other form of it."""
    record = msgspec.json.decode(member, type=CorrectionRecord)
    before, after = record.before, record.after
    numbers = record.generation, before.count, before.total, after.count, after.total
    in_range = 0 <= record.at < TIME_MAX and all(abs(n) <= COUNT_MAX for n in numbers)
    named = record.event == ALL_EVENTS or stored_event_name(record.event) == record.event
    return in_range and named and msgspec.json.encode(record).decode() == member and 0 < count < COUNT_MAX


_DIMENSIONS = [
    _Dimension(re.compile(""), ("minute", "hour", "day", "total"), _is_count),
    _Dimension(re.compile(rf"{CORRECTION}|{BEFORE_RESET}\d{{1,10}}"), ("day",), _is_correction),
    _Dimension(re.compile(GENERATION), ("day",), _is_generation),
    _Dimension(re.compile(rf"{IMPORTED}[0-9a-f]{{32}}"), ("total",), _is_count),
    _Dimension(re.compile(CORRECTION_LOG), ("day",), _is_correction_record),
    _Dimension(re.compile(r"(user|session):(?P<event>.*)", re.DOTALL), ("day", "total"), _is_visitor),
    _Dimension(re.compile(rf"{SKETCH}(user|session):(?P<event>.*)", re.DOTALL), ("day", "total"), _is_register),
]


def _check(bucket: Bucket, counts: dict[str, int], calendar: Calendar) -> None:
    """Raise DecodeError or InvalidName if Tally would not have exported these counts of this bucket."""
    for dimension in _DIMENSIONS:
        if match := dimension.pattern.fullmatch(bucket.dimension):
            break
    else:
        raise msgspec.DecodeError("invalid bucket")
    in_range = bucket.step in dimension.steps and 0 <= bucket.start < TIME_MAX
    if not in_range or bucket.start != _start_of_step(bucket, calendar):
        raise msgspec.DecodeError("invalid bucket")
    event = match.groupdict().get("event")
    if event and stored_event_name(event) != event:
        raise msgspec.DecodeError("the event name is not in Unicode form NFC")
    if not all(dimension.is_valid(member, count) for member, count in counts.items()):
        raise msgspec.DecodeError("invalid count")


def _start_of_step(bucket: Bucket, calendar: Calendar) -> int:
    if bucket.step == TOTAL.step:
        return TOTAL.start
    return calendar.starts(bucket.step, bucket.start, 1)[0]  # type: ignore[arg-type] # the step was checked before


def _is_exported(bucket: Bucket) -> bool:
    """Return false for the visitors of a minute, which expire after two hours."""
    return not (bucket.dimension and bucket.step == "minute")


def _sort_key(bucket: Bucket) -> tuple[bool, bool, bool, Bucket]:
    """Sort totals first and generations last.

    An event without a total does not exist. Dashboards reload when a generation changes, so all else must be there.
    """
    return bucket != TOTAL, bool(bucket.dimension), bucket.dimension == GENERATION, bucket


def _describe(bucket: Bucket) -> str:
    return " ".join(map(str, bucket)).strip()


def _encode(line: object) -> bytes:
    return msgspec.json.encode(line) + b"\n"
