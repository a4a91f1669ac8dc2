"""What a record of Kafka says: in Tally's own topic, and in those of others as the settings have it."""

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec
from aiokafka import ConsumerRecord
from aiokafka.helpers import create_ssl_context

from app.domain.counting import AMOUNT_MAX, IdempotencyKey, Visit
from app.domain.names import InvalidName, event_name, visitor_id
from app.settings import SERVERS, TOPIC, Settings
from app.stores.base import StoreOpenError

PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
TLS = ("ssl_cafile", "ssl_certfile", "ssl_keyfile")
OPTIONS = ("security_protocol", "sasl_mechanism", "sasl_plain_username", "sasl_plain_password", *TLS)


class RecordRejected(ValueError):
    """A record that cannot be counted; the message begins with a word for the kind of reason."""


class DecodedRecord(NamedTuple):
    """What a record says: when, in UTC seconds, how much of which events, and by whom."""

    at: float
    counts: Mapping[str, int]
    key: IdempotencyKey | None = None
    visits: Sequence[Visit] = ()


Read = Callable[[ConsumerRecord], DecodedRecord]


class BufferedPost(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """An acknowledged POST, as it waits in Tally's own topic."""

    counts: dict[str, Annotated[int, msgspec.Meta(ge=1, le=10_000 * AMOUNT_MAX)]]
    key: IdempotencyKey | None = None
    visits: tuple[Visit, ...] = ()


class Ways(msgspec.Struct, forbid_unknown_fields=True):
    """Where a foreign record has what is counted: in a field, `a.b` in another, in its `@key`, or it is `=this`."""

    event: str
    by: str = ""
    user: str = ""
    session: str = ""
    time: str = ""


OURS = {"event": "event", "by": "by", "user": "user", "session": "session"}  # as in the items of POST /events

_decode_waiting = msgspec.json.Decoder(BufferedPost).decode


def read_own(record: ConsumerRecord) -> DecodedRecord:
    post = _json(_decode_waiting, record)
    counts = {_name(event, event_name): by for event, by in post.counts.items()}
    visits = [_visit(*visit) for visit in post.visits]
    if any(visit.event not in counts or not 1 <= visit.by <= counts[visit.event] for visit in visits):
        raise RecordRejected("malformed: a visit is of none of its hits")
    return DecodedRecord(record.timestamp / 1000, counts, post.key, visits)


def read_foreign(ways: Ways) -> Read:
    texts = ways.event, ways.by, ways.user, ways.session, ways.time
    event_of, by_of, user_of, session_of, time_of = map(_way, texts)
    bare = all(text[:1] in {"@", "=", ""} for text in texts)
    visited = ways.user or ways.session

    def read(record: ConsumerRecord) -> DecodedRecord:
        fields = None if bare else _json(msgspec.json.decode, record)
        by = by_of(record, fields)
        if by is not None and (type(by) is not int or not 1 <= by <= AMOUNT_MAX):
            raise RecordRejected(f"malformed: its amount is no whole number from 1 to {AMOUNT_MAX}")
        event = _name(_text(event_of(record, fields)), event_name)
        at = _seconds(time_of(record, fields)) if ways.time else record.timestamp / 1000
        visits: tuple[Visit, ...] = ()
        if visited and (who := (user_of(record, fields), session_of(record, fields))) != (None, None):
            visits = (_visit(event, by or 1, *(None if one is None else _text(one) for one in who)),)
        return DecodedRecord(at, {event: by or 1}, None, visits)

    return read


def _way(way: str) -> Callable[[ConsumerRecord, Any], Any]:
    if way == "@key":
        return lambda record, _: record.key and record.key.decode(errors="replace")
    if way[:1] in {"", "="}:
        return lambda _, __: way[1:] or None
    names = way.split(".")

    def walk(_: ConsumerRecord, fields: Any) -> Any:
        for name in names:
            fields = fields.get(name) if isinstance(fields, dict) else None
        return fields

    return walk


def _visit(event: str, by: int, user: str | None, session: str | None) -> Visit:
    return Visit(event, by, *(None if one is None else _name(one, visitor_id) for one in (user, session)))


def _text(value: object) -> str:
    if not isinstance(value, (str, int)):
        raise RecordRejected("malformed: its event, or who it is of, is neither a text nor a whole number")
    return value if isinstance(value, str) else str(value).lower()


def _json(decode: Callable[[bytes], Any], record: ConsumerRecord) -> Any:
    try:
        return decode(record.value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordRejected(f"malformed: {error}") from None


def _name(text: str, stored: Callable[[str], str]) -> str:
    try:
        return stored(text)
    except InvalidName as error:
        raise RecordRejected(f"malformed: {error}") from None


def _seconds(value: object) -> float:
    """A time as its sender wrote it: ISO 8601, where UTC is meant unless it says otherwise, or seconds, or ms."""
    with contextlib.suppress(ValueError, OverflowError):
        if isinstance(value, str):
            at = datetime.fromisoformat(value)
            return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, (int, float)):
            return float(value) / (1000 if value > 1e11 else 1)
    raise RecordRejected("malformed: its time is none")


def topics(settings: Settings) -> tuple[str, dict[str, Read]]:
    """Kafka's servers, and how each topic is read; raises StoreRefused where the settings make no sense."""
    servers = settings.kafka
    reads: dict[str, Read] = {settings.kafka_topic: read_own} if servers else {}
    if settings.kafka_dead_letters in reads:
        raise StoreOpenError("TALLY_KAFKA_TOPIC and TALLY_KAFKA_DEAD_LETTERS are two topics")
    for text in settings.kafka_inputs.split():
        place, _, query = text.partition("?")
        there, _, topic = place.partition("/")
        servers = servers or there
        if there != servers or not re.fullmatch(SERVERS, there):
            raise StoreOpenError("TALLY_KAFKA_INPUTS: all topics are on one Kafka, written as in TALLY_KAFKA")
        if not re.fullmatch(TOPIC, topic) or topic in {*reads, settings.kafka_dead_letters}:
            raise StoreOpenError(f"TALLY_KAFKA_INPUTS: {topic!r} is no topic, or one that is used already")
        try:
            ways = dict(parse_qsl(query, strict_parsing=True)) if query else OURS
            reads[topic] = read_foreign(msgspec.convert(ways, Ways))
        except (ValueError, msgspec.ValidationError) as error:
            raise StoreOpenError(f"TALLY_KAFKA_INPUTS: {topic}: {error}") from None
    return servers, reads


def connection(settings: Settings, servers: str) -> dict[str, Any]:
    """What every client of this Kafka is told; raises StoreRefused."""
    options: dict[str, Any] = dict(parse_qsl(settings.kafka_options))
    if unknown := options.keys() - OPTIONS:
        raise StoreOpenError(f"TALLY_KAFKA_OPTIONS: {unknown.pop()} is none of {', '.join(OPTIONS)}")
    protocol, mechanism = options.get("security_protocol", "PLAINTEXT"), options.get("sasl_mechanism", "PLAIN")
    nobody = protocol.startswith("SASL_") and not options.get("sasl_plain_username")
    if protocol not in PROTOCOLS or mechanism not in MECHANISMS or nobody:
        what = f"{', '.join(PROTOCOLS)}, and SASL is one of {', '.join(MECHANISMS)}, with a user name"
        raise StoreOpenError(f"TALLY_KAFKA_OPTIONS: security_protocol is one of {what}")
    tls = {name.removeprefix("ssl_"): options.pop(name, None) for name in TLS}
    try:
        context = create_ssl_context(**tls) if protocol.endswith("SSL") else None
    except OSError as error:
        raise StoreOpenError(f"TALLY_KAFKA_OPTIONS: a file of ssl_… cannot be used: {error}") from None
    known = {"bootstrap_servers": servers, "client_id": "tally", "ssl_context": context}
    return {**known, "metadata_max_age_ms": 30_000, **options}  # new partitions are seen so soon
