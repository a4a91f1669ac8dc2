"""Parse requests: names in paths and queries, bodies, and the Idempotency-Key."""

import asyncio
import json
import re
from codecs import BOM_UTF8
from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Annotated, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
from fastapi import Depends, Path, Request

from app.domain.counting import AMOUNT_MAX, Amount, Hit, IdempotencyKey, Visit
from app.domain.names import InvalidName, event_name, stored_event_name, stored_visitor_id, visitor_id
from app.group_commit import Overloaded
from app.http.errors import Problem
from app.http.permissions import Permissions
from app.http.problem_kinds import INVALID_REQUEST, MALFORMED_REQUEST, NOT_FOUND, REQUEST_TOO_LARGE, ProblemKind
from app.http.rate_limits import client_address

HIT_BYTES_MAX = 16 * 1024
BODIES_BYTES_MAX = 64 * 1024 * 1024  # of all batches that are being received
BODY_SECONDS = 60.0  # in which a body has to arrive
QUERY_EVENTS_MAX = 100  # events in the query of one request

T = TypeVar("T")

# A structured-field string (RFC 8941), or the same characters without quotes.
IDEMPOTENCY_KEY = re.compile(r'"([\x21\x23-\x7e]{1,255})"|([\x21\x23-\x7e][\x21-\x7e]{0,254})')


AMOUNT_EXPECTED = f"expected a whole number from 1 to {AMOUNT_MAX}"
JSON_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_JSON_REASONS = {UnicodeDecodeError: "not valid UTF-8", RecursionError: "JSON is nested too deeply"}
_TEXT, _NUMBER = "expected a string", "expected a whole number from 0 to 9007199254740991"
_EXPECTED = {"by": AMOUNT_EXPECTED, "event": _TEXT, "user": _TEXT, "session": _TEXT, "count": _NUMBER, "total": _NUMBER}
# The end of a message of msgspec, such as "Expected `int`, got `str` - at `$[3].by`".
_PLACE = re.compile(r" - at `\$(?:\[(\d+)\])?(?:\.(\w+))?[^`]*`$")


class HitBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /event/{name}`."""

    by: Amount = 1
    user: str | None = None
    session: str | None = None


DEFAULT_HIT = HitBody()


def valid_name(rule: Callable[[str], str], text: str, field: str, kind: ProblemKind = INVALID_REQUEST) -> str:
    """Return the stored form of a name. Raises Problem if the rule raises InvalidName; its detail names the field."""
    try:
        return rule(text)
    except InvalidName as error:
        raise Problem(kind, f"{field}: {error}") from None


def event_in_query(text: str) -> str:
    """Return the event that a query parameter names. Raises Problem (422)."""
    return valid_name(stored_event_name, text, "event")


def event_name_in_path(prefix: bytes, suffix: bytes = b"") -> Callable[[Request, str], Awaitable[str]]:
    """Return a dependency that reads the event from a path `/prefix/{name}suffix`."""

    async def parse(request: Request, name: Annotated[str, Path()]) -> str:  # noqa: ARG001 # it is for OpenAPI
        return parse_event_path(request.scope["raw_path"], prefix, suffix, method=request.method)

    return parse


def parse_event_path(raw_path: bytes, prefix: bytes = b"event", suffix: bytes = b"", *, method: str = "POST") -> str:
    """Return the event in a path `/prefix/{name}suffix`. Raises Problem (404, 422).

    The path is read in its raw form, because the decoded form has the same character for every invalid byte. Names
    that only earlier versions accepted can be read and deleted.
    """
    segments = raw_path.split(b"/")
    if segments[1] != prefix:  # an encoded slash made the router see another path
        raise Problem(NOT_FOUND, 'event: must not contain "/", not even as %2F')
    try:
        text = unquote_to_bytes(segments[2]).removesuffix(suffix).decode()
    except UnicodeDecodeError:
        raise Problem(INVALID_REQUEST, "event: must be percent-encoded UTF-8") from None
    return valid_name(event_name if method in {"POST", "PUT"} else stored_event_name, text, "event")


async def visitor_id_in_path(request: Request, id: Annotated[str, Path()]) -> str:  # noqa: A002, ARG001 # the API's word
    """Read a user or session id from a path: all of the rest, because an id may have a slash. Raises Problem (422)."""
    try:
        text = unquote_to_bytes(request.scope["raw_path"].split(b"/", 2)[2]).decode()
    except UnicodeDecodeError:
        raise Problem(INVALID_REQUEST, "id: must be percent-encoded UTF-8") from None
    return valid_name(stored_visitor_id, text, "id")


EventInPath = Annotated[str, Depends(event_name_in_path(b"event"))]
VisitorInPath = Annotated[str, Depends(visitor_id_in_path)]


class BodyBudget:
    """The bytes of all large bodies that are being received at once."""

    def __init__(self) -> None:
        self._used = 0

    def take(self, size: int) -> None:
        """Add to the bytes in use. Raises Overloaded if there are too many."""
        self._used += size
        if size > 0 and self._used > BODIES_BYTES_MAX:
            raise Overloaded("overloaded: too many large bodies are being received; retry later")


async def read_body(request: Request, bytes_max: int, budget: BodyBudget | None = None) -> bytes:
    """Return the body, which takes its size out of the budget until it is complete.

    Raises Problem: 413 as soon as it is over `bytes_max`, 400 if the client disconnects or takes longer than
    BODY_SECONDS. Raises Overloaded.
    """
    body, more = bytearray(), True
    budget = budget or BodyBudget()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    text = "the connection closed before the whole body arrived; send the request again"
                    raise Problem(MALFORMED_REQUEST, text)
                chunk = message.get("body", b"")
                body += chunk
                budget.take(len(chunk))
                if len(body) > bytes_max:
                    raise Problem(
                        REQUEST_TOO_LARGE, f"the body is too large: at most {bytes_max // 1024} KiB; send less"
                    )
                more = message.get("more_body", False)
        return bytes(body)
    except TimeoutError:
        text = f"the body did not arrive within {BODY_SECONDS:g} s; send the request again, or in smaller parts"
        raise Problem(MALFORMED_REQUEST, text) from None
    finally:
        budget.take(-len(body))


def decode(text: str | bytes, kind: type[T]) -> T:
    """Decode JSON of this kind. Raises Problem (422)."""
    if isinstance(text, bytes):
        text = text.removeprefix(BOM_UTF8)
    try:
        return msgspec.json.decode(text, type=kind)
    except JSON_ERRORS as error:
        raise invalid_json(error, getattr(kind, "__struct_fields__", Hit.__struct_fields__)) from None


def invalid_json(error: Exception, fields: Sequence[str], index: int | None = None) -> Problem:
    """Return the problem for an error of msgspec, with a detail such as `item 3: by: expected a whole number ...`.

    `fields` are the valid ones. `index` is the item, if the message does not have it.
    """
    place = _PLACE.search(str(error))
    item, field = place.groups() if place else (None, None)
    reason = _JSON_REASONS.get(type(error), str(error)[: place and place.start()])
    if "unknown field" in reason:
        reason = f"{reason}; the fields are {', '.join(fields)}"
    item = item or index
    subject = [*([] if item is None else [f"item {item}"]), *([field] if field else [])] or ["body"]
    reason = _EXPECTED.get(subject[-1], reason.replace("Expected", "expected", 1))
    return Problem(INVALID_REQUEST, ": ".join([*subject, reason]))


def parse_hit(body: bytes, amount_max: int) -> HitBody:
    """Return the hit in the body of `POST /event/{name}`. Raises Problem (422)."""
    hit = decode(body, HitBody) if body and body.removeprefix(BOM_UTF8).strip() else DEFAULT_HIT
    if hit.by > 1:
        check_amounts([hit.by], amount_max, "by")
    return hit


def reject_hit_in_query(request: Request) -> None:
    """Raise Problem (422) if a field of a hit is in the query, where it would be ignored as other parameters are."""
    for field in HitBody.__struct_fields__:
        if field in request.query_params:
            raise Problem(INVALID_REQUEST, f"{field}: must be in the body, not in the query")


def visit_of(event: str, hit: Hit | HitBody) -> tuple[Visit, ...]:
    """Return the visit of a hit, or nothing if it has neither user nor session. Raises Problem (422)."""
    if hit.user is None and hit.session is None:
        return ()
    return (Visit(event, hit.by, _visitor("user", hit.user), _visitor("session", hit.session)),)


def _visitor(field: str, text: str | None) -> str | None:
    return None if text is None else valid_name(visitor_id, text, field)


def check_amounts(amounts: Sequence[int], most: int, where: str) -> None:
    """Raise Problem (422) for the first amount over `most`. `where` begins the detail; `{}` in it is the index."""
    if most < max(amounts, default=0):
        index = next(i for i, by in enumerate(amounts) if by > most)
        limit = f"at most {most} without a write key (TALLY_PUBLIC_BY_MAX); send a write key for more"
        raise Problem(INVALID_REQUEST, f"{where.format(index)}: {limit}")


async def idempotency_key(
    request: Request, permissions: Permissions, route: str, amounts: Mapping[str, int], visits: Sequence[Visit]
) -> IdempotencyKey | None:
    """Return the request's Idempotency-Key, if it has one. Raises Problem (422).

    A key belongs to one client and one route, and identifies one request: the same amounts and visits in any order.
    """
    key_id = idempotency_key_id(request, permissions, route)
    if key_id is None:
        return None
    sorted_visits = sorted(visits, key=str)
    await asyncio.sleep(0)  # other tasks run, because a large batch takes some 20 ms before and 30 ms after this
    content = json.dumps([sorted(amounts.items()), sorted_visits])
    return IdempotencyKey(key_id, _hash(content), _hash(client_address(request)))


def idempotency_key_id(request: Request, permissions: Permissions, route: str) -> str | None:
    """Return the id of the request's Idempotency-Key for this client and route, if it has one. Raises Problem (422)."""
    texts = [value.decode("latin-1") for header, value in request.scope["headers"] if header == b"idempotency-key"]
    if not texts:
        return None
    match = IDEMPOTENCY_KEY.fullmatch(texts[0])
    if len(texts) > 1 or not match:
        raise Problem(INVALID_REQUEST, "send exactly one Idempotency-Key header, of 1 to 255 visible ASCII characters")
    return _hash(f"{permissions.client_id(request.scope)} {route} {match[1] or match[2]}")


async def reject_redirected_post(request: Request) -> None:
    """Raise Problem (422) for a GET with an Idempotency-Key.

    It was a POST: its client has followed a redirect (301, 302 or 303), and would take the count for that of its hit.
    It is a coroutine, because FastAPI would run a function in a thread.
    """
    if "idempotency-key" in request.headers:
        detail = "if you sent a POST, a redirect made a GET of it: send it to the address that it is redirected to"
        raise Problem(INVALID_REQUEST, f"a GET takes no Idempotency-Key; {detail}")


def _hash(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()
