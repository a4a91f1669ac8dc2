"""The body of `POST /events`: its four forms, and the amounts and visits that it has together."""

import itertools
import json
import re

import msgspec

from app.domain.counting import AMOUNT_MAX, Hit, Visit, sum_hits
from app.domain.names import InvalidName, event_name
from app.http.errors import Problem
from app.http.parsing import decode, visit_of
from app.http.problem_kinds import INVALID_REQUEST, REQUEST_TOO_LARGE

BATCH_BYTES_MAX = 4 * 1024 * 1024
BATCH_ITEMS_MAX = 10_000

LINES_MAX = 4 * BATCH_ITEMS_MAX  # blank lines included

_TOO_MANY = f"a batch has at most {BATCH_ITEMS_MAX} items; split it"
_PAIR = re.compile(r'"(?:[^"\\]|\\.)*"\s*:')  # only for a valid map: the time is quadratic if a quote is not closed
_MAP_DECODER = msgspec.json.Decoder(dict[str, int])
_ITEM_DECODER = msgspec.json.Decoder(Hit)


def parse_batch(body: bytes) -> list[Hit]:
    """Return the hits of a batch. The body decides the form, not its content type. Raises Problem (413, 422).

    `[` begins an array of items. One object whose values are whole numbers is a map of event names to amounts. Other
    objects, one per line, are NDJSON. Anything else is one event name per line.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Problem(INVALID_REQUEST, "the body is not valid UTF-8") from None
    first = text.lstrip(" \t\r\n")[:1]
    if text.count("\n") > LINES_MAX:
        raise Problem(REQUEST_TOO_LARGE, _TOO_MANY)
    if first == "[":
        items = decode(text, list[Hit])
    elif first == "{":
        items = _parse_objects(text)
    else:
        items = [Hit(line) for line in _lines(text)[: BATCH_ITEMS_MAX + 1]]
    if len(items) > BATCH_ITEMS_MAX:
        raise Problem(REQUEST_TOO_LARGE, _TOO_MANY)
    return items


def sum_amounts(hits: list[Hit]) -> dict[str, int]:
    """Return the amount of each event. Raises Problem (422) with the index of the first hit with an invalid name.

    Each name is checked once, however many hits have it.
    """
    amounts: dict[str, int] = {}
    for text, by in sum_hits(hits).items():
        try:
            event = event_name(text)
        except InvalidName as error:
            index = next(i for i, hit in enumerate(hits) if hit.event == text)
            raise Problem(INVALID_REQUEST, f"item {index}: {error}") from None
        amounts[event] = amounts.get(event, 0) + by
    return amounts


def sum_visits(hits: list[Hit]) -> list[Visit]:
    """Return one visit for each event, user and session, with the sum of their amounts. Raises Problem (422)."""
    sums: dict[tuple[str, str | None, str | None], int] = {}
    for index, hit in enumerate(hits):
        if hit.user is not None or hit.session is not None:
            try:
                (visit,) = visit_of(event_name(hit.event), hit)
            except Problem as problem:
                raise Problem(INVALID_REQUEST, f"item {index}: {problem.detail}") from None
            visitor = visit.event, visit.user, visit.session
            sums[visitor] = sums.get(visitor, 0) + visit.by
    return [Visit(event, by, user, session) for (event, user, session), by in sums.items()]


def _parse_objects(text: str) -> list[Hit]:
    try:
        # It stops at the first value that is not a whole number, and makes no other object.
        amounts = _MAP_DECODER.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _parse_item_or_ndjson(text)
    colons = text.count(":")
    if colons > BATCH_ITEMS_MAX:
        pairs_found = sum(1 for _ in itertools.islice(_PAIR.finditer(text), BATCH_ITEMS_MAX + 1))
        if pairs_found > BATCH_ITEMS_MAX:
            raise Problem(REQUEST_TOO_LARGE, _TOO_MANY)
    # A name may occur twice, unless each colon belongs to a name of its own.
    pairs = list(amounts.items()) if colons == len(amounts) else json.loads(text, object_pairs_hook=list)
    for index, (_, by) in enumerate(pairs):
        if not 1 <= by <= AMOUNT_MAX:
            raise Problem(INVALID_REQUEST, f"item {index}: an amount is a whole number from 1 to {AMOUNT_MAX}")
    return [Hit(name, by) for name, by in pairs]


def _parse_item_or_ndjson(text: str) -> list[Hit]:
    try:
        return [_ITEM_DECODER.decode(text)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _parse_ndjson(text)


def _parse_ndjson(text: str) -> list[Hit]:
    hits: list[Hit] = []
    try:
        for line in _lines(text):
            hits.append(_ITEM_DECODER.decode(line))  # noqa: PERF401 # the length of `hits` is the index of an error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(INVALID_REQUEST, f"item {len(hits)}: {error}") from None
    return hits


def _lines(text: str) -> list[str]:
    return [line.removesuffix("\r") for line in text.split("\n") if line.strip()]
