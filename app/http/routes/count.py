"""HTTP in: a request becomes hits, and its answer is what they made of the counters."""

import json
import logging
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
from fastapi import Depends, FastAPI, Path, Request, Response
from starlette.types import Receive, Scope, Send
from typing_extensions import TypedDict

from app.domain.counting import AMOUNT_MAX, Amount, Hit, IdempotencyKey, Visit, sum_hits
from app.domain.names import NAME_LENGTH_MAX, InvalidName, event_name, visitor_id
from app.group_commit import GroupCommitter, Outcome
from app.http.errors import REFUSALS, Answer, Problem, told
from app.http.permissions import Headers, Permissions
from app.http.rate_limits import RateLimits, client
from app.kafka.consumer import Kafka
from app.stores.results import Ack, Value

EVENT_ROUTE = "/event/{name}"
HIT_BYTES_MAX = 16 * 1024
BATCH_BYTES_MAX = 4 * 1024 * 1024
BATCH_ITEMS_MAX = 10_000
ITEMS_PER_COST = 100  # a batch costs one of the write limit for each 100 items begun

T = TypeVar("T")
EventRoute = Callable[[Request, str], Awaitable[Response]]
_ITEM_DECODER = msgspec.json.Decoder(Hit)
_EVENT_PATH = re.compile("/event/[^/]+")
_REPLAYED = (b"idempotent-replayed", b"true")
_KEY = re.compile(r'"([\x21\x23-\x7e]{1,255})"|([\x21\x23-\x7e][\x21-\x7e]{0,254})')

log = logging.getLogger("tally.ingest")


class HitBody(msgspec.Struct, forbid_unknown_fields=True):
    by: Amount = 1
    user: str | None = None
    session: str | None = None


_BARE = HitBody()

CountedHit = TypedDict("CountedHit", {"eventName": str, "count": int, "total": int, "day": str, "ack": Ack})
CountedBatch = TypedDict("CountedBatch", {"accepted": int, "counts": dict[str, int], "day": str, "ack": Ack})

# What is in the log is not counted yet, so it is answered with what was last known.
LoggedHit = TypedDict("LoggedHit", {"eventName": str, "countSeen": int, "day": str, "ack": Ack})
LoggedBatch = TypedDict("LoggedBatch", {"accepted": int, "countsSeen": dict[str, int], "day": str, "ack": Ack})

# The bodies are decoded by msgspec, so OpenAPI is told of them here.
_BY = {"type": "integer", "minimum": 1, "maximum": AMOUNT_MAX, "default": 1}
_WHO = {"type": ["string", "null"], "maxLength": NAME_LENGTH_MAX}
_VISIT = {"by": _BY, "user": _WHO, "session": _WHO}
_ITEM = {"type": "object", "properties": {"event": {"type": "string"}} | _VISIT, "required": ["event"]}
_HIT = {"type": "object", "properties": _VISIT, "additionalProperties": False}
_ITEMS = {"type": "array", "items": _ITEM | {"additionalProperties": False}, "maxItems": BATCH_ITEMS_MAX}
_BATCH = {"anyOf": [_ITEMS, {"type": "object", "additionalProperties": _BY}, _ITEM]}
_TEXT = {"type": "string"}


_KEYED = {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "pattern": f"^({_KEY.pattern})$"}}


def _documented(answer: type, schemas: dict[str, dict[str, Any]]) -> dict[str, Any]:
    body = {"content": {media: {"schema": schema} for media, schema in schemas.items()}}
    logged = {"model": answer, "description": "In Kafka"}
    return {
        "responses": {200: told("Idempotent-Replayed"), 202: logged},
        "openapi_extra": {"requestBody": body, "parameters": [_KEYED]},
    }


def add_routes(app: FastAPI, recorder: GroupCommitter | Kafka, limits: RateLimits, access: Permissions) -> EventRoute:
    @app.post(EVENT_ROUTE, response_model=CountedHit, **_documented(LoggedHit, {"application/json": _HIT}))
    async def count_event(request: Request, event: Annotated[str, Depends(path_name)]) -> Response:
        """Count one hit."""
        limits.charge(request, "write")
        body = await read_body(request, HIT_BYTES_MAX)
        hit = decode(body, HitBody) if body.strip() else _BARE
        if hit.by > 1:
            _bound([hit.by], access.amount_max(request.scope), "by")
        counts, visits = {event: hit.by}, _visit(event, hit)
        key = _key(request, access, f"/event/{event}", counts, visits)
        recorded = await recorder.submit(counts, key, visits)
        value = values(recorded)[event]
        count, day, ack = value.count, recorded.date, recorded.ack
        if ack == "kafka":
            return FastJSONResponse(LoggedHit(eventName=event, countSeen=count, day=day, ack=ack), [], 202)
        counted: CountedHit = {"eventName": event, "count": count, "total": value.total, "day": day, "ack": ack}
        return FastJSONResponse(counted, [_REPLAYED] if recorded.result.replayed_on else [])

    @app.post(
        "/events",
        response_model=CountedBatch,
        **_documented(LoggedBatch, {"application/json": _BATCH, "application/x-ndjson": _TEXT, "text/plain": _TEXT}),
    )
    async def count_events(request: Request) -> Response:
        """Count many hits, all or none: an array of items, a map of names to amounts, NDJSON, or a name a line."""
        limits.charge(request, "write")
        hits = parse_batch(await read_body(request, BATCH_BYTES_MAX))
        if len(hits) > ITEMS_PER_COST:
            limits.charge(request, "write", cost=math.ceil(len(hits) / ITEMS_PER_COST), paid=1)
        _bound([hit.by for hit in hits], access.amount_max(request.scope), "item {}")
        amounts, visits = fold_names(hits), fold_visits(hits)
        key = _key(request, access, "/events", amounts, visits)
        if key:  # which is of the same hits in any order, and so is its answer
            amounts = dict(sorted(amounts.items()))
        recorded = await recorder.submit(amounts, key, visits)
        counts = {event: value.count for event, value in values(recorded).items()}
        accepted = sum(amounts.values())
        if recorded.ack == "kafka":
            logged = LoggedBatch(accepted=accepted, countsSeen=counts, day=recorded.date, ack="kafka")
            return FastJSONResponse(logged, [], 202)
        counted = CountedBatch(accepted=accepted, counts=counts, day=recorded.date, ack=recorded.ack)
        return FastJSONResponse(counted, [_REPLAYED] if recorded.result.replayed_on else [])

    return count_event


class FastPath:
    """To the routes of one event, by method, past the router: FastAPI's own way costs more than all the rest of a hit.

    The router has the same routes, for the documentation; a test holds the two ways to the same answers.
    """

    def __init__(self, routes: dict[str, EventRoute], access: Permissions, refuse: Answer, headers: Headers) -> None:
        self._routes, self._access, self._refuse = routes, access, refuse
        self._headers = headers  # that every answer has

    def takes(self, scope: Scope) -> bool:
        return (
            scope["type"] == "http" and scope["method"] in self._routes and bool(_EVENT_PATH.fullmatch(scope["path"]))
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, headers = Request(scope, receive), self._headers
        try:
            headers = headers + self._access.enter(scope)
            self._access.admit(scope, f"{scope['method']} {EVENT_ROUTE}")
            answer = await self._routes[scope["method"]](request, _raw_name(scope["raw_path"]))
        except Exception as error:  # whatever it is, its client gets it in the one shape of errors
            if not isinstance(error, REFUSALS):
                log.exception("%s failed", EVENT_ROUTE)
            answer = await self._refuse(request, error)
        answer.raw_headers += headers
        await answer(scope, receive, send)


def name_under(root: bytes, suffix: bytes = b"") -> Callable[[Request, str], Awaitable[str]]:
    """What reads the event in a path under this root."""

    async def name_there(request: Request, name: Annotated[str, Path()]) -> str:  # noqa: ARG001 # for the documentation
        return _raw_name(request.scope["raw_path"], root, suffix)

    return name_there


path_name = name_under(b"event")


async def path_visitor(request: Request, id: Annotated[str, Path()]) -> str:  # noqa: A002, ARG001 # likewise
    """A user or session in a path; the rest of it, for such an id may have a slash."""
    try:
        return visitor_id(unquote_to_bytes(request.scope["raw_path"].split(b"/", 2)[2]).decode())
    except (UnicodeDecodeError, InvalidName) as error:
        raise Problem(422, str(error) if isinstance(error, InvalidName) else "an id is UTF-8") from None


def _raw_name(path: bytes, root: bytes = b"event", suffix: bytes = b"") -> str:
    """The event in a path, from its raw bytes: the decoded path shows every bad byte as the same character."""
    segments = path.split(b"/")
    if segments[1] != root:  # an encoded slash made the router see another path
        raise Problem(404, "Not Found")
    try:
        return event_name(unquote_to_bytes(segments[2]).removesuffix(suffix).decode())
    except UnicodeDecodeError:
        raise Problem(422, "a name is UTF-8") from None
    except InvalidName as error:
        raise Problem(422, str(error)) from None


def parse_batch(body: bytes) -> list[Hit]:
    """The hits of a batch, told apart by the body alone."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Problem(422, "the body is not UTF-8") from None
    first = text.lstrip(" \t\r\n")[:1]
    if first == "[":
        items = decode(text, list[Hit])
    elif first == "{":
        items = _objects(text)
    else:
        items = [Hit(line) for line in _lines(text)[: BATCH_ITEMS_MAX + 1]]
    if len(items) > BATCH_ITEMS_MAX:
        raise Problem(413, f"a batch has at most {BATCH_ITEMS_MAX} items")
    return items


def fold_names(hits: list[Hit]) -> dict[str, int]:
    """How much each event is counted. A name is looked at once, however often it comes; the first bad one is told."""
    amounts: dict[str, int] = {}
    for text, by in sum_hits(hits).items():
        try:
            event = event_name(text)
        except InvalidName as error:
            index = next(i for i, hit in enumerate(hits) if hit.event == text)
            raise Problem(422, f"item {index}: {error}") from None
        amounts[event] = amounts.get(event, 0) + by
    return amounts


def fold_visits(hits: list[Hit]) -> list[Visit]:
    """Who hit these, each with each event once; the first bad user or session is told."""
    sums: dict[tuple[str, str | None, str | None], int] = {}
    for index, hit in enumerate(hits):
        if hit.user is not None or hit.session is not None:
            try:
                ((event, by, *who),) = _visit(event_name(hit.event), hit)
            except Problem as problem:
                raise Problem(422, f"item {index}: {problem.detail}") from None
            sums[event, who[0], who[1]] = sums.get((event, who[0], who[1]), 0) + by
    return [Visit(event, by, user, session) for (event, user, session), by in sums.items()]


def _visit(event: str, hit: Hit | HitBody) -> tuple[Visit, ...]:
    """By whom, if that is said."""
    if hit.user is None and hit.session is None:
        return ()
    return (Visit(event, hit.by, _visitor("user", hit.user), _visitor("session", hit.session)),)


def _visitor(what: str, text: str | None) -> str | None:
    try:
        return None if text is None else visitor_id(text)
    except InvalidName as error:
        raise Problem(422, f"{what}: {error}") from None


def _objects(text: str) -> list[Hit]:
    try:
        pairs: list[tuple[str, Any]] = json.loads(text, object_pairs_hook=list)  # a name twice counts twice
    except (ValueError, RecursionError):
        return _ndjson(text)
    if not all(type(by) is int for _, by in pairs):
        return [decode(text, Hit, 0)]
    for index, (_, by) in enumerate(pairs):
        if not 1 <= by <= AMOUNT_MAX:
            raise Problem(422, f"item {index}: an amount is 1 to {AMOUNT_MAX}")
    return [Hit(name, by) for name, by in pairs]


def _ndjson(text: str) -> list[Hit]:
    hits: list[Hit] = []
    try:
        for line in _lines(text):
            hits.append(_ITEM_DECODER.decode(line))  # noqa: PERF401 # so that an error knows how many came before
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(422, f"item {len(hits)}: {error}") from None
    return hits


def _lines(text: str) -> list[str]:
    return [line.removesuffix("\r") for line in text.split("\n") if line.strip()]


def decode(text: str | bytes, kind: type[T], index: int | None = None) -> T:
    """JSON of this kind; an array's error names the item itself, as $[index]."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(422, f"{error}" if index is None else f"item {index}: {error}") from None


def _bound(amounts: list[int], most: int, where: str) -> None:
    """Refuse the first amount that is larger than this client may have it."""
    if most < max(amounts, default=0):
        index = next(i for i, by in enumerate(amounts) if by > most)
        raise Problem(422, f"{where.format(index)}: at most {most} without a key to write (TALLY_PUBLIC_BY_MAX)")


def _key(
    request: Request, access: Permissions, route: str, amounts: dict[str, int], visits: Sequence[Visit]
) -> IdempotencyKey | None:
    """The request's Idempotency-Key, which belongs to its client's key and route; also as a quoted string."""
    texts = [value.decode("latin-1") for header, value in request.scope["headers"] if header == b"idempotency-key"]
    if not texts:
        return None
    match = _KEY.fullmatch(texts[0])
    if len(texts) > 1 or not match:
        raise Problem(422, "an Idempotency-Key is one header of 1 to 255 visible ASCII characters")
    same = json.dumps([sorted(amounts.items()), sorted(visits, key=str)])
    owner = f"{access.caller(request.scope)} {route}"
    return IdempotencyKey(_hash(f"{owner} {match[1] or match[2]}"), _hash(same), _hash(client(request)))


def _hash(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()


async def read_body(request: Request, bytes_max: int) -> bytes:
    body, more = bytearray(), True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Problem(400, "the body ended early")
        body += message.get("body", b"")
        if len(body) > bytes_max:
            raise Problem(413, f"a body has at most {bytes_max} bytes")
        more = message.get("more_body", False)
    return bytes(body)


def values(outcome: Outcome) -> Mapping[str, Value]:
    """Return the values of accepted hits. Raises a problem for rejected ones."""
    if outcome.result.reason:
        raise Problem(*REFUSED[outcome.result.reason])
    return outcome.result.values


REFUSED: dict[str, tuple[int, str, dict[str, str]]] = {
    "full": (429, "there is room for known names alone (TALLY_EVENTS_MAX)", {"Retry-After": "3600"}),
    "overflow": (422, "a count cannot pass 9007199254740991", {}),
    "mismatch": (422, "this Idempotency-Key was used for another request", {}),
    "keys": (503, "there is no room for another Idempotency-Key (TALLY_KEYS_MAX)", {"Retry-After": "60"}),
}


class FastJSONResponse(Response):
    """What is told; Response's own way to these few headers costs more than the encoding."""

    def __init__(self, content: object, headers: Headers, status: int = 200) -> None:
        self.status_code, self.background = status, None
        self.body = msgspec.json.encode(content)
        length = b"%d" % len(self.body)
        self.raw_headers = [(b"content-length", length), (b"content-type", b"application/json"), *headers]
