"""GET and POST /notes, and DELETE /notes/{id}: notes on the timeline."""

import math
import uuid
from datetime import datetime
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from typing_extensions import TypedDict

from app.domain.calendar import Calendar, Clock
from app.domain.names import NOTE_LENGTH_MAX, event_name, note_text
from app.http.errors import Problem, rejection
from app.http.openapi import KEY_HEADER, json_body, response_headers
from app.http.parsing import (
    HIT_BYTES_MAX,
    decode,
    event_in_query,
    idempotency_key_id,
    read_body,
    reject_redirected_post,
    valid_name,
)
from app.http.permissions import Permissions
from app.http.problem_kinds import INVALID_REQUEST, NOT_FOUND
from app.http.rate_limits import RateLimits
from app.http.responses import FastJSONResponse
from app.notes import Note, Notes

NOTE_COST = 10  # of the write limit, because all notes are read when one is added
AHEAD_SECONDS_MAX = 86_400  # a client's clock may be fast

NoteRow = TypedDict("NoteRow", {"id": str, "at": str, "text": str, "event": str | None})

_TIME = {"type": "string", "format": "date-time"}
_SCHEMA = {
    "type": "object",
    "required": ["text"],
    "additionalProperties": False,
    "properties": {
        "at": _TIME | {"type": ["string", "null"]},
        "text": {"type": "string", "minLength": 1, "maxLength": NOTE_LENGTH_MAX},
        "event": {"type": ["string", "null"]},
    },
}
_BODY = json_body(_SCHEMA, {"text": "v2.1 deployed"})


class NoteBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /notes`."""

    text: str
    at: str | None = None
    event: str | None = None


def add_routes(
    reads: APIRouter,
    writes: APIRouter,
    notes: Notes,
    clock: Clock,
    permissions: Permissions,
    rate_limits: RateLimits,
    days_kept: int,
) -> None:
    """Add the routes of notes, which are kept for `days_kept`."""

    @reads.get("/notes", response_model=list[NoteRow], dependencies=[Depends(reject_redirected_post)])
    async def list_notes(
        response: Response,
        start: Annotated[str | None, Query(alias="from", json_schema_extra=_TIME)] = None,
        end: Annotated[str | None, Query(alias="to", json_schema_extra=_TIME)] = None,
        event: str | None = None,
    ) -> Response:
        """Return the notes from a time until before another, oldest first: all, or those of an event and of all."""
        first = -math.inf if start is None else _second(start, "from")
        last = math.inf if end is None else _second(end, "to")
        found = await notes.list_between(first, last, None if event is None else event_in_query(event))
        return FastJSONResponse([_row(clock.calendar, note) for note in found], response.raw_headers)

    @writes.post(
        "/notes",
        status_code=201,
        responses={201: response_headers("Idempotent-Replayed")},
        openapi_extra={**_BODY, "parameters": [KEY_HEADER]},
    )
    async def add_note(request: Request, response: Response) -> NoteRow:
        """Add a note now, or at another time, to one event or to all."""
        rate_limits.consume(request, "write", NOTE_COST, already_consumed=1)
        body = decode(await read_body(request, HIT_BYTES_MAX), NoteBody)
        text = valid_name(note_text, body.text, "text")
        event = None if body.event is None else valid_name(event_name, body.event, "event")
        at = int(clock.at()) if body.at is None else _kept_second(body.at, clock.at(), days_kept)
        note = Note(idempotency_key_id(request, permissions, "/notes") or uuid.uuid4().hex, at, text, event)
        saved = await notes.add(note)
        if saved is not note:
            if (saved.text, saved.event) != (text, event) or (body.at is not None and saved.at != at):
                raise rejection("mismatch")
            response.headers["Idempotent-Replayed"] = "true"
        return _row(clock.calendar, saved)

    @writes.delete("/notes/{id}")
    async def delete_note(id: str) -> NoteRow:  # noqa: A002 # the API's word
        """Delete a note."""
        if note := await notes.delete(id):
            return _row(clock.calendar, note)
        raise Problem(NOT_FOUND, "there is no note with this id; GET /notes lists them")


def _second(text: str, field: str) -> int:
    """Return the UTC second of a time in ISO 8601. Raises Problem (422)."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        expected = "expected an ISO 8601 time with a UTC offset, such as 2026-11-23T08:15:00Z"
        raise Problem(INVALID_REQUEST, f"{field}: {expected}")
    return math.floor(time.timestamp())


def _kept_second(text: str, now: float, days_kept: int) -> int:
    """Return the UTC second of a new note. Raises Problem (422), also if it is in the future or would not be kept."""
    at = _second(text, "at")
    if at > now + AHEAD_SECONDS_MAX:
        raise Problem(INVALID_REQUEST, "at: must not be more than a day in the future")
    if at < now - (days_kept - 1) * 86_400:
        detail = f"at: must be within the last {days_kept} days, because older notes are deleted (TALLY_DAYS_KEPT)"
        raise Problem(INVALID_REQUEST, detail)
    return at


def _row(calendar: Calendar, note: Note) -> NoteRow:
    return NoteRow(id=note.id, at=calendar.local(note.at).isoformat(), text=note.text, event=note.event)
