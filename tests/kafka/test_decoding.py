"""Decoding of Kafka records: Tally's own, and foreign ones by a field mapping."""

import base64
import json
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from app.domain.counting import IdempotencyKey, Visit
from app.kafka.decoding import BufferedHits, FieldMapping, RecordRejected, decode_buffered, mapped_decoder


def make_record(value: object = None, key: bytes | None = None, at: float = 1_800_000_000) -> SimpleNamespace:
    return SimpleNamespace(value=json.dumps(value).encode(), key=key, timestamp=int(at * 1000))


@pytest.mark.parametrize(
    ("mapping", "record", "decoded"),
    [
        ({"event": "type"}, make_record({"type": "sale", "by": 9}), (1_800_000_000, {"sale": 1})),
        ({"event": "type", "by": "n"}, make_record({"type": "sale", "n": 3}), (1_800_000_000, {"sale": 3})),
        ({"event": "type", "by": "n"}, make_record({"type": "sale", "n": None}), (1_800_000_000, {"sale": 1})),
        ({"event": "order.state"}, make_record({"order": {"state": "paid"}}), (1_800_000_000, {"paid": 1})),
        ({"event": "@key"}, make_record("not read", key="e\u0301".encode()), (1_800_000_000, {"\u00e9": 1})),
        ({"event": "=visit"}, make_record("not read"), (1_800_000_000, {"visit": 1})),
        ({"event": "status"}, make_record({"status": 404}), (1_800_000_000, {"404": 1})),
        ({"event": "ok"}, make_record({"ok": True}), (1_800_000_000, {"true": 1})),
        (
            {"event": "=a", "user": "who", "session": "s"},
            make_record({"who": "Zoë", "s": 7}),
            (1_800_000_000, {"a": 1}),
        ),
        ({"event": "=a", "time": "t"}, make_record({"t": "2026-11-23T10:00:00+02:00"}), (1_795_420_800, {"a": 1})),
        ({"event": "=a", "time": "t"}, make_record({"t": "2026-11-23T08:00:00"}), (1_795_420_800, {"a": 1})),
        ({"event": "=a", "time": "t"}, make_record({"t": 1_795_420_800_123}), (1_795_420_800.123, {"a": 1})),
        ({"event": "=a", "time": "t"}, make_record({"t": 1_795_420_800}), (1_795_420_800, {"a": 1})),
    ],
)
def test_a_foreign_record_is_decoded_by_its_field_mapping(mapping, record, decoded) -> None:
    assert mapped_decoder(FieldMapping(**mapping))(record)[:2] == decoded


@pytest.mark.parametrize(
    ("mapping", "record"),
    [
        ({"event": "type"}, make_record({"kind": "sale"})),
        ({"event": "type"}, make_record({"type": ["sale"]})),
        ({"event": "type"}, make_record({"type": "a/b"})),
        ({"event": "type"}, make_record(["sale"])),
        ({"event": "type"}, SimpleNamespace(value=b"\xff{", key=None, timestamp=0)),
        ({"event": "type"}, SimpleNamespace(value=None, key=None, timestamp=0)),
        ({"event": "type"}, SimpleNamespace(value=b"[" * 100_000, key=None, timestamp=0)),
        ({"event": "=a", "by": "n"}, make_record({"n": 0})),
        ({"event": "=a", "by": "n"}, make_record({"n": 1.5})),
        ({"event": "=a", "by": "n"}, make_record({"n": True})),
        ({"event": "=a", "by": "n"}, make_record({"n": 10**30})),
        ({"event": "=a", "user": "who"}, make_record({"who": ""})),
        ({"event": "=a", "user": "who"}, make_record({"who": {"id": 1}})),
        ({"event": "=a", "time": "t"}, make_record({"t": "yesterday"})),
        ({"event": "=a", "time": "t"}, make_record({"t": None})),
        ({"event": "@key"}, make_record("none")),
    ],
)
def test_a_malformed_foreign_record_is_rejected(mapping, record) -> None:
    with pytest.raises(RecordRejected, match="malformed"):
        mapped_decoder(FieldMapping(**mapping))(record)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{}",
        b'{"counts":{"a":0}}',
        b'{"counts":{"a/b":1}}',
        b'{"counts":{"a":1},"more":1}',
        b'{"counts":{"a":1.5}}',
        b'{"counts":{"a":1},"visits":[["b",1,"u",null]]}',
        b'{"counts":{"a":1},"visits":[["a",2,"u",null]]}',
        pytest.param(
            b'{"counts":{"a":1},"visits":[' + b'["a",1,"u",null],' * 100_000 + b'["a",1,"u",null]]}',
            id="too many visits",
        ),
    ],
)
def test_a_malformed_record_in_tallys_own_topic_is_rejected(value: bytes) -> None:
    with pytest.raises(RecordRejected, match="malformed"):
        decode_buffered(SimpleNamespace(value=value, key=None, timestamp=0))


# Records that Tally wrote at commit 767a782, and what it decoded from them.
STORED = json.loads((Path(__file__).parent / "data/kafka-records.json").read_text())["records"]


@pytest.mark.parametrize("stored", STORED)
def test_a_record_of_an_older_tally_is_decoded_and_written_as_before(stored: dict[str, object]) -> None:
    value = base64.b64decode(stored["value"])
    decoded = decode_buffered(SimpleNamespace(value=value, key=None, timestamp=stored["timestamp"]))
    meaning = stored["meaning"]
    key = meaning["key"] and IdempotencyKey(*meaning["key"])
    visits = [list(visit) for visit in decoded.visits]
    assert (decoded.at, decoded.amounts, decoded.key, visits) == (
        meaning["at"],
        meaning["counts"],
        key,
        meaning["visits"],
    )
    post = BufferedHits(dict(decoded.amounts), decoded.key, tuple(decoded.visits))
    assert msgspec.json.encode(post) == value


@pytest.mark.fails_on_mutant(
    "old names are dead letters",
    "app/kafka/decoding.py",
    "_valid(stored_event_name, event,",
    "_valid(event_name, event,",
)
def test_names_that_an_earlier_version_acknowledged_are_counted() -> None:
    """Such a record may be in Tally's own topic during an update. Names in other topics have the rules of new hits."""
    post = BufferedHits(counts={"sign\u200bup": 2}, visits=[Visit("sign\u200bup", 2, "anna\u3164", None)])
    decoded = decode_buffered(SimpleNamespace(value=msgspec.json.encode(post), key=None, timestamp=0))
    assert (decoded.amounts, decoded.visits) == (post.counts, post.visits)
    with pytest.raises(RecordRejected, match="invisible"):
        mapped_decoder(FieldMapping(event="type"))(make_record({"type": "sign\u200bup"}))
