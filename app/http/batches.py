"""The body of `POST /events`: its four forms, and the amounts and visits that it has together."""

import asyncio
import json
import re

import msgspec

from app.domain.counting import AMOUNT_MAX, Hit, Visit
from app.domain.names import event_name
from app.http.errors import Problem
from app.http.name_lists import lines_of, parse_names
from app.http.parsing import AMOUNT_EXPECTED, JSON_ERRORS, decode, invalid_json, valid_name, visit_of
from app.http.problem_kinds import INVALID_REQUEST, REQUEST_TOO_LARGE

BATCH_BYTES_MAX = 4 * 1024 * 1024
BATCH_ITEMS_MAX = 10_000

LINES_MAX = 4 * BATCH_ITEMS_MAX  # blank lines included
HITS_PER_TURN = 250  # checked before other tasks run; a hit whose names are hard to normalise takes some 50 µs

_TOO_MANY = f"the batch is too large: at most {BATCH_ITEMS_MAX} items; split it"
_MAP_DECODER = msgspec.json.Decoder(dict[str, int])
_ITEM_DECODER = msgspec.json.Decoder(Hit)
# The beginning of an array or a map with more than BATCH_ITEMS_MAX items, without the escapes in its strings. The
# decoders would build all of its items. The quantifiers are possessive, so that each character is read once.
_LONG_ARRAY = re.compile(rf'\s*+\[(?:[^"{{}}]*+\{{(?:[^"{{}}]*+"[^"]*+")*+[^"{{}}]*+\}}){{{BATCH_ITEMS_MAX + 1}}}+')
_LONG_MAP = re.compile(rf'\s*+\{{(?:\s*+"[^"]*+"\s*+:\s*+-?+\d++\s*+,){{{BATCH_ITEMS_MAX}}}+')


def parse_batch(body: bytes, content_type: str = "") -> list[Hit]:
    """Return the hits of a batch. The body decides the form, not its content type. Raises Problem (413, 415, 422).

    `[` begins an array of items. One object whose values are whole numbers is a map of event names to amounts. Other
    objects, one per line, are NDJSON. Anything else is one event name per line, if it may be a list of names.
    """
    try:
        text = body.decode().lstrip("\ufeff")
    except UnicodeDecodeError:
        raise Problem(INVALID_REQUEST, "body: not valid UTF-8") from None
    first = text.lstrip(" \t\r\n")[:1]
    if text.count("\n") > LINES_MAX:
        raise Problem(REQUEST_TOO_LARGE, _TOO_MANY)
    if first == "[":
        items = _parse_array(text)
    elif first == "{":
        items = _parse_objects(text)
    else:
        items = [Hit(name) for name in parse_names(text, content_type)[: BATCH_ITEMS_MAX + 1]]
    if len(items) > BATCH_ITEMS_MAX:
        raise Problem(REQUEST_TOO_LARGE, _TOO_MANY)
    return items


async def sum_batch(hits: list[Hit]) -> tuple[dict[str, int], list[Visit]]:
    """Return the amount of each event, and one visit for each event, user and session with the sum of their amounts.

    Other tasks run in between. Raises Problem (422) with the index of the first hit with an invalid name.
    """
    events: dict[str, str] = {}  # by their text in the hits, so that each is checked once
    amounts: dict[str, int] = {}
    visits: dict[tuple[str, str | None, str | None], int] = {}
    for start in range(0, len(hits), HITS_PER_TURN):
        if start:
            await asyncio.sleep(0)
        for hit in hits[start : start + HITS_PER_TURN]:
            event = events.get(hit.event)
            if event is None or hit.user is not None or hit.session is not None:
                try:
                    event = events[hit.event] = event or valid_name(event_name, hit.event, "event")
                    for visit in visit_of(event, hit):
                        visitor = event, visit.user, visit.session
                        visits[visitor] = visits.get(visitor, 0) + hit.by
                except Problem as problem:
                    index = next(i for i, other in enumerate(hits) if other is hit)
                    raise Problem(INVALID_REQUEST, f"item {index}: {problem.detail}") from None
            amounts[event] = amounts.get(event, 0) + hit.by
    return amounts, [Visit(event, by, user, session) for (event, user, session), by in visits.items()]


def _parse_array(text: str) -> list[Hit]:
    if text.count("{") > BATCH_ITEMS_MAX and _LONG_ARRAY.match(_without_escapes(text)):
        raise Problem(REQUEST_TOO_LARGE, _TOO_MANY)
    return decode(text, list[Hit])


def _parse_objects(text: str) -> list[Hit]:
    plain = _without_escapes(text)
    names = plain.count('"') // 2  # if it is a map
    if names > BATCH_ITEMS_MAX and _LONG_MAP.match(plain):
        raise Problem(REQUEST_TOO_LARGE, _TOO_MANY)
    try:
        # It stops at the first value that is not a whole number, and makes no other object.
        amounts = _MAP_DECODER.decode(text)
    except JSON_ERRORS:
        return _parse_item_or_ndjson(text)
    # A name may occur more than once.
    pairs = list(amounts.items()) if names == len(amounts) else json.loads(text, object_pairs_hook=list)
    for index, (_, by) in enumerate(pairs):
        if not 1 <= by <= AMOUNT_MAX:
            raise Problem(INVALID_REQUEST, f"item {index}: by: {AMOUNT_EXPECTED}")
    return [Hit(name, by) for name, by in pairs]


def _without_escapes(text: str) -> str:
    """Remove escaped backslashes and quotes from JSON, so that each quote begins or ends a string."""
    return text.replace("\\\\", "").replace('\\"', "")


def _parse_item_or_ndjson(text: str) -> list[Hit]:
    try:
        return [_ITEM_DECODER.decode(text)]
    except JSON_ERRORS:
        return _parse_ndjson(text)


def _parse_ndjson(text: str) -> list[Hit]:
    hits: list[Hit] = []
    try:
        for line in lines_of(text)[: BATCH_ITEMS_MAX + 1]:
            hits.append(_ITEM_DECODER.decode(line))  # noqa: PERF401 # the length of `hits` is the index of an error
    except JSON_ERRORS as error:
        raise invalid_json(error, Hit.__struct_fields__, len(hits)) from None
    return hits
