"""Responses that several routes share: fast JSON, CSV, and the form of a correction."""

import csv
import io
from typing import Any

import msgspec
from fastapi import Response
from typing_extensions import TypedDict

from app.corrections import CorrectionRecord
from app.domain.calendar import Calendar
from app.http.origins import Headers
from app.stores import rules

# Spreadsheets treat a cell that begins with one of these as a formula.
_FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")  # noqa: RUF001 # the full-width forms count, too

Numbers = TypedDict("Numbers", {"count": int, "total": int})
CorrectedRow = TypedDict(
    "CorrectedRow", {"at": str, "action": str, "eventName": str | None, "before": Numbers, "after": Numbers}
)


class FastJSONResponse(Response):
    """A JSON response, encoded by msgspec.

    It sets the attributes of Response without calling Response.__init__, whose handling of headers takes longer than
    counting a hit does.
    """

    def __init__(self, content: object, headers: Headers, status: int = 200) -> None:
        self.status_code, self.background = status, None
        self.body = msgspec.json.encode(content)
        length = b"%d" % len(self.body)
        self.raw_headers = [(b"content-length", length), (b"content-type", b"application/json"), *headers]


def csv_response(response: Response, head: list[str], rows: list[list[Any]]) -> Response:
    """Return CSV (RFC 4180) with the headers of `response`. All text is quoted, and no cell is treated as a formula."""
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_NONNUMERIC)  # some spreadsheets end an unquoted cell at a semicolon
    writer.writerow(head)
    writer.writerows([f"'{cell}" if str(cell).startswith(_FORMULA_STARTS) else cell for cell in row] for row in rows)
    return Response(out.getvalue(), headers=dict(response.headers), media_type="text/csv; charset=utf-8")


def correction_row(calendar: Calendar, record: CorrectionRecord) -> CorrectedRow:
    """Return a correction in the form of the API."""
    _, at, action, event, *values = record
    before, after = (Numbers(count=value.count, total=value.total) for value in values)
    return CorrectedRow(
        at=calendar.local(at).isoformat(), action=action, eventName=event or None, before=before, after=after
    )


def set_tally_partial(response: Response, visitors: int) -> None:
    """Set the Tally-Partial header if a bucket has so many visitors that not all of them are ranked."""
    most = rules.RANKED_VISITORS_MAX
    if visitors >= most:
        response.headers["Tally-Partial"] = f"only the first {most} ids per event and day are ranked"
