"""The rows of other counters as hits: a CSV with a header, GoatCounter's export, and lines with a name and a count."""

import re
from collections.abc import Callable, Sequence
from datetime import date, datetime
from typing import NamedTuple
from zoneinfo import ZoneInfo

from app.domain.counting import COUNT_MAX
from app.domain.names import NAME_LENGTH_MAX, InvalidName, event_name

FIRST_DAY = date(1970, 1, 2)  # it begins after the UTC second 0 in every time zone
# Column names of a CSV, without spaces and punctuation, in lower case.
_EVENT_COLUMNS = {"event", "eventname", "name", "key", "counter", "path", "page"}
_COUNT_COLUMNS = {"count", "counts", "value", "total", "hits", "views", "pageviews", "visits", "amount"}
_DATE_COLUMNS = {"date", "day", "time", "timestamp", "datetime"}
_GOATCOUNTER_COLUMNS = ("2Path", "Bot", "Date")


class Hits(NamedTuple):
    """Hits of an event on a local date, or of its total if the date is unknown."""

    event: str
    amount: int
    day: date | None = None
    is_bot: bool = False


Parse = Callable[[Sequence[str]], Hits]  # raises ValueError if the fields of a row are invalid


def event_of(text: str) -> str:
    """Return the event for a key, name or path: each `/` becomes `:`, and white space one space. Raises ValueError."""
    try:
        return event_name(" ".join(text.replace("/", ":").split()))
    except InvalidName as error:
        raise ValueError(f"the event name {error}") from None


def count_of(text: str) -> int:
    """Return a count. Raises ValueError."""
    digits = text.strip()
    if not re.fullmatch("[0-9]{1,16}", digits) or int(digits) > COUNT_MAX:
        raise ValueError(f"the count must be a whole number from 0 to {COUNT_MAX}")
    return int(digits)


def table_parser(header: Sequence[str], zone: ZoneInfo, today: date) -> Parse | None:
    """Return a parser for the rows of a CSV with this header, or None if it lacks an event or a count.

    With the column `namespace`, as in CountAPI, the event is `namespace:key`. Raises ValueError.
    """
    names = ["".join(filter(str.isalnum, name.casefold())) for name in header]
    event, count, day = (_column(names, known) for known in (_EVENT_COLUMNS, _COUNT_COLUMNS, _DATE_COLUMNS))
    namespace = _column(names, {"namespace"})
    if event is None or count is None:
        return None

    def parse(row: Sequence[str]) -> Hits:
        _check_size(row, header)
        prefix = "" if namespace is None else f"{row[namespace]}:"
        when = "" if day is None else row[day].strip()
        return Hits(event_of(prefix + row[event]), count_of(row[count]), _day(when, zone, today) if when else None)

    return parse


def goatcounter_parser(header: Sequence[str], zone: ZoneInfo, today: date) -> Parse | None:
    """Return a parser for the rows of GoatCounter's CSV export, version 2, or None if this is not its header."""
    if not set(_GOATCOUNTER_COLUMNS) <= set(header):
        return None
    path, bot, day = map(list(header).index, _GOATCOUNTER_COLUMNS)

    def parse(row: Sequence[str]) -> Hits:
        _check_size(row, header)
        visible = "".join(c for c in row[path] if c.isprintable())
        is_bot = row[bot] not in {"", "0"}
        return Hits(event_of(visible[:NAME_LENGTH_MAX]), 1, _day(row[day], zone, today), is_bot)

    return parse


def is_list(line: str) -> bool:
    """Return whether a line has a name and a count."""
    return all(_split(line.strip()))


def parse_list_line(row: Sequence[str]) -> Hits:
    """Return the hits of a line such as `example.com/visits 1234`. Raises ValueError."""
    name, count = _split(row[0])
    if not name or not count:
        raise ValueError("expected a name and a count")
    if len(name) > 1 and name[0] == name[-1] == '"':
        name = name[1:-1].replace('""', '"')
    return Hits(event_of(name), count_of(count))


def _split(line: str) -> tuple[str, str]:
    """Return the name and the count of a line, between which are `:`, `=` or white space; ("", count) without these."""
    before = line.rstrip("0123456789")
    name, count = before.rstrip(), line[len(before) :]
    if name.endswith((":", "=")):
        return name[:-1].rstrip(), count
    return (name if name != before else ""), count


def _column(names: Sequence[str], known: set[str]) -> int | None:
    """Return the index of the only known column. Raises ValueError if there are several."""
    found = [index for index, name in enumerate(names) if name in known]
    if len(found) > 1:
        columns = " and ".join(names[index] for index in found)
        raise ValueError(f"the columns {columns} have the same meaning; remove all but one")
    return found[0] if found else None


def _check_size(row: Sequence[str], header: Sequence[str]) -> None:
    if len(row) != len(header):
        raise ValueError(f"the row has {len(row)} columns, and the header {len(header)}")


def _day(text: str, zone: ZoneInfo, today: date) -> date:
    """Return the local date of an ISO 8601 date or time. A time without an offset is local. Raises ValueError."""
    try:
        at = datetime.fromisoformat(text)
        day = (at.astimezone(zone) if at.tzinfo else at).date()
    except (ValueError, OverflowError):
        raise ValueError("the date must be like 2026-11-23 or 2026-11-23T10:00:00Z") from None
    if not FIRST_DAY <= day <= today:
        raise ValueError(f"the date must be from {FIRST_DAY} to today, {today}")
    return day
