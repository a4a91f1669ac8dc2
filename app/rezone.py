"""Move an export to another time zone: its days are rebuilt from its hours."""

from collections import Counter
from collections.abc import Iterator
from datetime import date, datetime
from typing import BinaryIO
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from app.domain.buckets import Bucket, is_event_bucket
from app.domain.calendar import Calendar, Clock, day_start
from app.export_import import ExportError, encode_counts, encode_end, encode_head, read_lines, read_zone


def rezone(file: BinaryIO, zone: ZoneInfo) -> Iterator[bytes]:
    """Yield the lines of an export with days in this time zone, from an export with days in another one.

    Minutes, hours and totals stay. The hits of a day are the sum of its hours. A day keeps its hits and its date if it
    has hits without an hour, or if it was corrected or reset. Its visitors keep the date, too, because hours have none.
    Raises ExportError if the file is invalid, or if a zone's offset is not a whole number of hours.
    """
    move = _Move(file, zone)
    lines = 1
    yield encode_head(zone.key)
    for bucket, counts in move.buckets():
        for line in encode_counts(bucket, counts):
            lines += 1
            yield line
    yield encode_end(lines)


class _Move:
    """The days of an export, by the date that they keep or get."""

    def __init__(self, file: BinaryIO, zone: ZoneInfo) -> None:
        self._file, self._zone = file, zone
        self._old_clock = Clock(Calendar(_find_zone(read_zone(file))), lambda: 0)
        self._kept: set[date] = set()
        self._without_hour = Counter[date]()
        self._rebuilt: dict[date, dict[str, int]] = {}
        for bucket, counts in self._read():
            if bucket.step == "hour":
                self._add_hour(bucket, counts)
                self._without_hour[self._old_date(bucket.start)] -= sum(counts.values())
            elif bucket.step == "day" and not bucket.dimension:
                self._without_hour[self._old_date(bucket.start)] += sum(counts.values())
            elif bucket.step == "day" and is_event_bucket(bucket):
                self._kept.add(self._old_date(bucket.start))
        self._kept |= {day for day, hits in self._without_hour.items() if hits}
        self._rebuilt = {day: counts for day, counts in self._rebuilt.items() if day not in self._kept}

    def buckets(self) -> Iterator[tuple[Bucket, dict[str, int]]]:
        """Yield each bucket of the new export, or a part of it."""
        rebuilt_after_totals = False
        for bucket, counts in self._read():
            if bucket.step != "total" and not rebuilt_after_totals:
                rebuilt_after_totals = True
                for day, sums in self._rebuilt.items():
                    yield Bucket("day", day_start(self._zone, day)), sums
            if bucket.step != "day":
                yield bucket, counts
            elif bucket.dimension or self._old_date(bucket.start) in self._kept:
                day = self._old_date(bucket.start)
                yield bucket._replace(start=day_start(self._zone, day)), counts

    def _read(self) -> Iterator[tuple[Bucket, dict[str, int]]]:
        self._file.seek(0)
        for line in read_lines(self._file, self._old_clock):
            yield line.bucket, line.counts

    def _add_hour(self, bucket: Bucket, counts: dict[str, int]) -> None:
        for zone in (self._zone, self._old_clock.calendar.zone):
            offset = datetime.fromtimestamp(bucket.start, zone).utcoffset()
            if offset is None or offset.total_seconds() % 3600:
                raise ExportError(f"the offset of {zone.key} is not a whole number of hours, so days cannot be rebuilt")
        sums = self._rebuilt.setdefault(datetime.fromtimestamp(bucket.start, self._zone).date(), {})
        for event, count in counts.items():
            sums[event] = sums.get(event, 0) + count

    def _old_date(self, start: int) -> date:
        return datetime.fromtimestamp(start, self._old_clock.calendar.zone).date()


def _find_zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ExportError(f"the time zone of the export, {name}, is unknown on this machine") from error
