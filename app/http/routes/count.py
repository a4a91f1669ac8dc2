"""POST /event/{name} and POST /events: count hits."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from fastapi import APIRouter, Request, Response
from typing_extensions import TypedDict

from app.domain.counting import AMOUNT_MAX, IdempotencyKey, Visit, weight
from app.domain.names import NAME_LENGTH_MAX
from app.http.batches import BATCH_BYTES_MAX, BATCH_ITEMS_MAX, parse_batch, sum_batch
from app.http.errors import accepted_or_raise
from app.http.openapi import KEY_HEADER, error_responses, response_headers
from app.http.origins import Headers
from app.http.parsing import (
    HIT_BYTES_MAX,
    BodyBudget,
    EventInPath,
    check_amounts,
    idempotency_key,
    parse_hit,
    read_body,
    reject_hit_in_query,
    visit_of,
)
from app.http.permissions import Permissions
from app.http.rate_limits import RateLimits
from app.http.responses import FastJSONResponse
from app.http.router_bypass import EVENT_ROUTE
from app.pending_commit import Outcome
from app.stores.results import Ack

# A batch costs one of the write limit for each 100 items or 32 KiB begun, whichever is more. Visitors make it heavier.
ITEMS_PER_COST = 100
BYTES_PER_COST = 32 * 1024

CountedHit = TypedDict("CountedHit", {"eventName": str, "count": int, "total": int, "day": str, "ack": Ack})
CountedBatch = TypedDict("CountedBatch", {"accepted": int, "counts": dict[str, int], "day": str, "ack": Ack})
# Hits in Kafka are not counted yet, so these have the last known counts.
BufferedHit = TypedDict("BufferedHit", {"eventName": str, "countSeen": int, "day": str, "ack": Ack})
BufferedBatch = TypedDict("BufferedBatch", {"accepted": int, "countsSeen": dict[str, int], "day": str, "ack": Ack})

_REPLAYED: Headers = [(b"idempotent-replayed", b"true")]

# FastAPI cannot document the request bodies, because msgspec reads them.
_BY = {"type": "integer", "minimum": 1, "maximum": AMOUNT_MAX, "default": 1}
_VISITOR = {"type": ["string", "null"], "maxLength": NAME_LENGTH_MAX}
_HIT_FIELDS = {"by": _BY, "user": _VISITOR, "session": _VISITOR}
_ITEM = {"type": "object", "properties": {"event": {"type": "string"}} | _HIT_FIELDS, "required": ["event"]}
_HIT = {"type": "object", "properties": _HIT_FIELDS, "additionalProperties": False}
_ITEMS = {"type": "array", "items": _ITEM | {"additionalProperties": False}, "maxItems": BATCH_ITEMS_MAX}
_BATCH = {"anyOf": [_ITEMS, {"type": "object", "additionalProperties": _BY}, _ITEM]}
_TEXT = {"type": "string"}


class HitReceiver(Protocol):
    """Accepts hits: the group receiver, or the buffer in Kafka."""

    async def submit(
        self, amounts: Mapping[str, int], key: IdempotencyKey | None = None, visits: Sequence[Visit] = ()
    ) -> Outcome:
        """Return the outcome of these hits, all of which are counted or none."""
        ...


def add_routes(router: APIRouter, receiver: HitReceiver, rate_limits: RateLimits, permissions: Permissions) -> None:
    """Add the routes that count hits."""
    _add_hit_route(router, receiver, rate_limits, permissions)
    _add_batch_route(router, receiver, rate_limits, permissions)


def _documentation(buffered: type, bodies: dict[str, tuple[dict[str, Any], object]]) -> dict[str, Any]:
    """Return the options of a route with these bodies: the schema and the example of each media type."""
    content = {media: {"schema": schema, "example": example} for media, (schema, example) in bodies.items()}
    accepted = {"model": buffered, "description": "Accepted: written to Kafka, not counted yet"}
    errors = error_responses(415) if "text/plain" in bodies else {}
    return {
        "responses": {200: response_headers("Idempotent-Replayed"), 202: accepted, **errors},
        "openapi_extra": {"requestBody": {"content": content}, "parameters": [KEY_HEADER]},
    }


def _add_hit_route(router: APIRouter, receiver: HitReceiver, rate_limits: RateLimits, permissions: Permissions) -> None:
    media_types: dict[str, tuple[dict[str, Any], object]] = {"application/json": (_HIT, {"by": 1})}

    @router.post(EVENT_ROUTE, response_model=CountedHit, **_documentation(BufferedHit, media_types))
    async def count_hit(request: Request, event: EventInPath) -> Response:
        """Count one hit, or `by` hits, of an event."""
        rate_limits.consume(request, "write")
        reject_hit_in_query(request)
        hit = parse_hit(await read_body(request, HIT_BYTES_MAX), permissions.amount_max(request.scope))
        amounts, visits = {event: hit.by}, visit_of(event, hit)
        key = await idempotency_key(request, permissions, f"/event/{event}", amounts, visits)
        outcome = await receiver.submit(amounts, key, visits)
        value = accepted_or_raise(outcome)[event]
        count, day, ack = value.count, outcome.date, outcome.ack
        if ack == "kafka":
            return FastJSONResponse(BufferedHit(eventName=event, countSeen=count, day=day, ack=ack), [], 202)
        counted: CountedHit = {"eventName": event, "count": count, "total": value.total, "day": day, "ack": ack}
        return FastJSONResponse(counted, _REPLAYED if outcome.result.replayed_on else [])


def _add_batch_route(
    router: APIRouter, receiver: HitReceiver, rate_limits: RateLimits, permissions: Permissions
) -> None:
    bodies = BodyBudget()
    media_types: dict[str, tuple[dict[str, Any], object]] = {
        "application/json": (_BATCH, {"signup": 1, "login": 2}),
        "application/x-ndjson": (_TEXT, '{"event": "signup"}\n{"event": "login", "by": 2}'),
        "text/plain": (_TEXT, "signup\nlogin"),
    }

    @router.post("/events", response_model=CountedBatch, **_documentation(BufferedBatch, media_types))
    async def count_batch(request: Request) -> Response:
        """Count up to 10,000 items in one request: all are counted or none.

        The body is a JSON array of items, a JSON object of event names and amounts, NDJSON, or plain text with one
        event name per line.
        """
        rate_limits.consume(request, "write")
        reject_hit_in_query(request)
        body = await read_body(request, BATCH_BYTES_MAX, bodies)
        cost_of_bytes = max(1, math.ceil(len(body) / BYTES_PER_COST))
        if cost_of_bytes > 1:  # before the body is parsed, because a batch that is rejected takes time, too
            rate_limits.consume(request, "write", cost_of_bytes, already_consumed=1)
        hits = parse_batch(body, request.headers.get("content-type", ""))
        check_amounts([hit.by for hit in hits], permissions.amount_max(request.scope), "item {}: by")
        amounts, visits = await sum_batch(hits)
        cost = math.ceil((len(hits) + weight((), visits)) / ITEMS_PER_COST)
        if cost > cost_of_bytes:
            rate_limits.consume(request, "write", cost, already_consumed=cost_of_bytes)
        key = await idempotency_key(request, permissions, "/events", amounts, visits)
        if key:
            # The same hits in another order are the same request, so that their results must have the same order.
            amounts = dict(sorted(amounts.items()))
        outcome = await receiver.submit(amounts, key, visits)
        counts = {event: value.count for event, value in accepted_or_raise(outcome).items()}
        accepted, day, ack = sum(amounts.values()), outcome.date, outcome.ack
        if ack == "kafka":
            return FastJSONResponse(BufferedBatch(accepted=accepted, countsSeen=counts, day=day, ack=ack), [], 202)
        counted = CountedBatch(accepted=accepted, counts=counts, day=day, ack=ack)
        return FastJSONResponse(counted, _REPLAYED if outcome.result.replayed_on else [])
