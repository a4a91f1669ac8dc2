"""Detect the format of a file to import, and convert files of other counters to an export of Tally."""

import csv
import tempfile
from codecs import BOM_UTF8
from collections.abc import Iterator
from datetime import date
from hashlib import blake2b
from typing import BinaryIO, Literal, NamedTuple
from zoneinfo import ZoneInfo

from app.domain.buckets import TOTAL, Bucket
from app.domain.calendar import Clock, day_start
from app.domain.counting import COUNT_MAX
from app.export_import import LINE_BYTES_MAX, ExportError, encode_counts, encode_end, encode_head
from app.importing.rows import Hits, Parse, goatcounter_parser, is_list, parse_list_line, table_parser

BAD_LINES_MAX = 20  # that an error names

Format = Literal["tally", "goatcounter", "csv", "list"]

_UNKNOWN_FORMAT = (
    "line 1: unknown format; expected an export of Tally or GoatCounter, a CSV whose header has an event and a count,"
    " or lines with a name and a count"
)
_NO_HITS = {
    "goatcounter": "the export has no hits: GoatCounter exports them only if it stores individual pageviews",
    "csv": "the file has no counts",
    "list": "the file has no counts",
}


class Source(NamedTuple):
    """A file to import as an export of Tally, its original format, and the number of hits of bots that are left out."""

    file: BinaryIO
    format: Format
    bots: int = 0


def open_source(file: BinaryIO, clock: Clock, *, with_bots: bool = False) -> Source:
    """Return the file itself if it is an export of Tally; otherwise convert it to a temporary one.

    The same counts always become the same export, so that importing them again adds nothing. Raises ExportError.
    """
    first = file.readline(LINE_BYTES_MAX).removeprefix(BOM_UTF8)
    file.seek(0)
    if first.lstrip().startswith(b"{"):
        return Source(file, "tally")
    name, delimiter, parse = _detect(first, clock)
    counts = _Counts(clock.calendar.zone)
    bots = _sum_rows(_records(file, delimiter), parse, counts, with_bots=with_bots)
    if not counts.totals:
        raise ExportError(_NO_HITS[name])
    return Source(_write_export(counts), name, bots)


def _detect(first: bytes, clock: Clock) -> tuple[Format, str, Parse]:
    """Return the format of a file with this first line, the delimiter of its columns ("" if it has none), and a parser.

    Raises ExportError.
    """
    zone, today = clock.calendar.zone, date.fromisoformat(clock.slot().date)
    try:
        text = first.decode().strip()
        for delimiter in ",;\t":
            header = next(csv.reader([text], delimiter=delimiter), [])
            if parse := goatcounter_parser(header, zone, today):
                return "goatcounter", delimiter, parse
            if parse := table_parser(header, zone, today):
                return "csv", delimiter, parse
    except UnicodeDecodeError:
        raise ExportError("line 1: the file is not UTF-8 text; if it is compressed, unpack it first") from None
    except (csv.Error, ValueError) as error:
        raise ExportError(f"line 1: {error}") from None
    if is_list(text):
        return "list", "", parse_list_line
    raise ExportError(_UNKNOWN_FORMAT)


def _records(file: BinaryIO, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the first line and the fields of each record that is not empty. Raises ExportError."""
    if not delimiter:
        yield from ((number, [line.strip()]) for number, line in enumerate(_lines(file), 1) if line.strip())
        return
    reader = csv.reader(_lines(file), delimiter=delimiter, strict=True)
    number = 1
    try:
        for fields in reader:
            if number > 1 and fields:  # the first record is the header
                yield number, fields
            number = reader.line_num + 1
    except csv.Error as error:
        raise ExportError(f"line {number}: {error}") from None


def _lines(file: BinaryIO) -> Iterator[str]:
    number = 1
    while line := file.readline(LINE_BYTES_MAX):
        if len(line) == LINE_BYTES_MAX:
            raise ExportError(f"line {number}: a line must be shorter than {LINE_BYTES_MAX} bytes")
        try:
            yield line.removeprefix(BOM_UTF8 if number == 1 else b"").decode()
        except UnicodeDecodeError:
            raise ExportError(f"line {number}: not UTF-8 text") from None
        number += 1


class _Counts:
    """The sums of a file by event, and by day and event."""

    def __init__(self, zone: ZoneInfo) -> None:
        self.zone = zone
        self.totals: dict[str, int] = {}
        self.days: dict[date, dict[str, int]] = {}
        self._sum = 0

    def add(self, hits: Hits) -> None:
        """Add hits. Raises ValueError if the sum of all events would be too large."""
        if self._sum + hits.amount > COUNT_MAX:
            raise ValueError(f"the sum of all counts exceeds {COUNT_MAX}")
        self._sum += hits.amount
        by_event = [self.totals] if hits.day is None else [self.totals, self.days.setdefault(hits.day, {})]
        for counts in by_event:
            counts[hits.event] = counts.get(hits.event, 0) + hits.amount


def _sum_rows(records: Iterator[tuple[int, list[str]]], parse: Parse, counts: _Counts, *, with_bots: bool) -> int:
    """Add the rows to `counts`; return the hits of bots that are left out. Raises ExportError with the bad lines."""
    bots, bad = 0, list[str]()
    for number, fields in records:
        try:
            hits = parse(fields)
            if hits.is_bot and not with_bots:
                bots += hits.amount
            elif hits.amount:
                counts.add(hits)
        except ValueError as error:
            bad.append(f"line {number}: {error}")
            if len(bad) == BAD_LINES_MAX:
                break
    if bad:
        raise ExportError("; ".join(bad))
    return bots


def _write_export(counts: _Counts) -> BinaryIO:
    """Write an export of Tally to a temporary file. Its id is the hash of its counts."""
    buckets = [(TOTAL, counts.totals)]
    buckets += [(Bucket("day", day_start(counts.zone, day)), of_day) for day, of_day in sorted(counts.days.items())]
    lines = [line for bucket, found in buckets for line in encode_counts(bucket, dict(sorted(found.items())))]
    digest = blake2b(digest_size=16)
    for line in lines:
        digest.update(line)
    file = tempfile.TemporaryFile()  # noqa: SIM115 # the caller closes it
    file.writelines([encode_head(counts.zone.key, digest.hexdigest()), *lines, encode_end(len(lines) + 1)])
    file.seek(0)
    return file
