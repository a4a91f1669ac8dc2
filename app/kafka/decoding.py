"""Kafka records as hits: those of Tally's own topic, and those of other topics by a field mapping."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple

import msgspec
from aiokafka import ConsumerRecord

from app.domain.counting import AMOUNT_MAX, IdempotencyKey, Visit
from app.domain.names import InvalidName, event_name, stored_event_name, stored_visitor_id, visitor_id

MILLISECONDS_MIN = 1e11  # a larger number is a time in milliseconds; as seconds it would be in the year 5138
VISITS_MAX = 100_000  # of a record; a request has at most 10,000


class RecordRejected(ValueError):
    """A record that cannot be counted. The message begins with the kind of reason and a colon."""


class DecodedRecord(NamedTuple):
    """The hits of a record; `at` is their time in UTC seconds."""

    at: float
    amounts: Mapping[str, int]
    key: IdempotencyKey | None = None
    visits: Sequence[Visit] = ()


Decoder = Callable[[ConsumerRecord], DecodedRecord]


class BufferedHits(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """The value of a record in Tally's own topic: the hits of one acknowledged request."""

    counts: dict[str, Annotated[int, msgspec.Meta(ge=1, le=10_000 * AMOUNT_MAX)]]
    key: IdempotencyKey | None = None
    visits: Annotated[tuple[Visit, ...], msgspec.Meta(max_length=VISITS_MAX)] = ()


class FieldMapping(msgspec.Struct, forbid_unknown_fields=True):
    """The path in a foreign record of each field of a hit; see `field_getter`."""

    event: str
    by: str = ""
    user: str = ""
    session: str = ""
    time: str = ""


# The fields of an item of POST /events.
DEFAULT_MAPPING = {"event": "event", "by": "by", "user": "user", "session": "session"}

_decode_post = msgspec.json.Decoder(BufferedHits).decode


def decode_buffered(record: ConsumerRecord) -> DecodedRecord:
    """Decode a record of Tally's own topic. Raises RecordRejected, because others may write to the topic too."""
    post = _decode_json(_decode_post, record)
    # An earlier version may have acknowledged these names.
    amounts = {_valid(stored_event_name, event, "event"): by for event, by in post.counts.items()}
    visits = [_valid_visit(stored_visitor_id, *visit) for visit in post.visits]
    if any(visit.event not in amounts or not 1 <= visit.by <= amounts[visit.event] for visit in visits):
        raise RecordRejected("malformed: a visit does not belong to any hit")
    return DecodedRecord(record.timestamp / 1000, amounts, post.key, visits)


def mapped_decoder(mapping: FieldMapping) -> Decoder:
    """Return a decoder for the records of an existing topic. It raises RecordRejected."""
    paths = mapping.event, mapping.by, mapping.user, mapping.session, mapping.time
    get_event, get_amount, get_user, get_session, get_time = map(field_getter, paths)
    needs_fields = any(path[:1] not in {"@", "=", ""} for path in paths)
    has_visitors = mapping.user or mapping.session

    def decode(record: ConsumerRecord) -> DecodedRecord:
        fields = _decode_json(msgspec.json.decode, record) if needs_fields else None
        amount = get_amount(record, fields)
        if amount is not None and (type(amount) is not int or not 1 <= amount <= AMOUNT_MAX):
            raise RecordRejected(f"malformed: by: expected a whole number from 1 to {AMOUNT_MAX}")
        event = _valid(event_name, _text(get_event(record, fields)), "event")
        at = _parse_time(get_time(record, fields)) if mapping.time else record.timestamp / 1000
        visits: tuple[Visit, ...] = ()
        if has_visitors and (ids := (get_user(record, fields), get_session(record, fields))) != (None, None):
            visits = (
                _valid_visit(visitor_id, event, amount or 1, *(None if id_ is None else _text(id_) for id_ in ids)),
            )
        return DecodedRecord(at, {event: amount or 1}, None, visits)

    return decode


def field_getter(path: str) -> Callable[[ConsumerRecord, Any], Any]:
    """Return a function of a record and its decoded value that gets one part of it, or None if the part is missing.

    The path `@key` is the record's key, `=text` is the constant text, `a.b` is the field b of the field a.
    """
    if path == "@key":
        return lambda record, _: record.key and record.key.decode(errors="replace")
    if path[:1] in {"", "="}:
        return lambda _, __: path[1:] or None
    names = path.split(".")

    def get_field(_: ConsumerRecord, fields: Any) -> Any:
        for name in names:
            fields = fields.get(name) if isinstance(fields, dict) else None
        return fields

    return get_field


def _valid_visit(rule: Callable[[str], str], event: str, by: int, user: str | None, session: str | None) -> Visit:
    ids = (None if id_ is None else _valid(rule, id_, field) for field, id_ in (("user", user), ("session", session)))
    return Visit(event, by, *ids)


def _text(value: object) -> str:
    """Return a string as it is, and a whole number or a boolean as in JSON."""
    if not isinstance(value, (str, int)):
        raise RecordRejected("malformed: an event, user or session must be a string, a whole number or a boolean")
    return value if isinstance(value, str) else str(value).lower()


def _decode_json(decode: Callable[[bytes], Any], record: ConsumerRecord) -> Any:
    try:
        return decode(record.value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordRejected(f"malformed: {error}") from None


def _valid(rule: Callable[[str], str], text: str, field: str) -> str:
    try:
        return rule(text)
    except InvalidName as error:
        raise RecordRejected(f"malformed: {field}: {error}") from None


def _parse_time(value: object) -> float:
    """Return UTC seconds. ISO 8601 without an offset is UTC; a number is seconds or milliseconds since 1970."""
    with contextlib.suppress(ValueError, OverflowError):
        if isinstance(value, str):
            at = datetime.fromisoformat(value)
            return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, (int, float)):
            return float(value) / (1000 if value > MILLISECONDS_MIN else 1)
    raise RecordRejected("malformed: a time must be ISO 8601, or seconds or milliseconds since 1970")
