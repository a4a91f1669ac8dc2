"""GET and POST /alerts, GET, PUT and DELETE /alerts/{id}, and POST /alerts/{id}/test: alerts, for administrators."""

import asyncio
import base64
import binascii
from collections.abc import Sequence
from typing import TypeVar

import msgspec
from fastapi import APIRouter, Request, Response
from typing_extensions import TypedDict

from app.alerts.messages import SECRET_PREFIX
from app.alerts.service import AlertService, TooManyAlerts
from app.alerts.transport import URL_LENGTH_MAX, url_error
from app.domain.alerts import ALERTS_MAX, Alert, AlertFields, Delivery, Format
from app.domain.calendar import Calendar, Clock
from app.domain.counting import COUNT_MAX
from app.domain.names import event_name
from app.http.errors import Problem
from app.http.openapi import json_body
from app.http.parsing import HIT_BYTES_MAX, decode, read_body, valid_name
from app.http.problem_kinds import ALERT_LIMIT, INVALID_REQUEST, NOT_FOUND

T = TypeVar("T", Alert, str)

SECRET_BYTES = range(24, 65)  # the lengths that Standard Webhooks allows

AlertRow = TypedDict(
    "AlertRow", {"id": str, "event": str, "when": dict[str, int | str], "url": str, "format": Format, "createdAt": str}
)
FailedRow = TypedDict(
    "FailedRow", {"id": str, "firedAt": str, "threshold": int, "value": int, "attempts": int, "error": str}
)
TestResult = TypedDict("TestResult", {"accepted": bool, "error": str})


class NewAlert(AlertRow):
    """A new alert. `secret` is in no other response."""

    secret: str


class ListedAlert(AlertRow):
    """An alert with the number of its deliveries not accepted so far, that of those that wait, and the last error."""

    undelivered: int
    pending: int
    error: str


class AlertDetail(ListedAlert):
    """An alert with its deliveries that failed permanently."""

    failed: list[FailedRow]


_NUMBER = {"type": "integer", "minimum": 1, "maximum": COUNT_MAX}
_WHEN = dict.fromkeys(("count", "total", "every", "above", "below"), _NUMBER)
_SCHEMA = {
    "type": "object",
    "required": ["event", "when", "url"],
    "additionalProperties": False,
    "properties": {
        "event": {"type": "string"},
        "when": {
            "type": "object",
            "additionalProperties": False,
            "properties": {**_WHEN, "window": {"type": "string", "enum": ["5m", "1h", "1d"]}},
        },
        "url": {"type": "string", "format": "uri", "maxLength": URL_LENGTH_MAX},
        "format": {"type": "string", "enum": ["json", "slack", "discord", "ntfy"]},
        "secret": {"type": ["string", "null"]},
    },
}
_BODY = json_body(_SCHEMA, {"event": "signup", "when": {"total": 1000}, "url": "https://example.com/hook"})


def add_routes(router: APIRouter, alerts: AlertService, clock: Clock) -> None:
    """Add the routes of alerts."""
    calendar = clock.calendar

    @router.get("/alerts")
    async def list_alerts() -> list[ListedAlert]:
        """Return all alerts, oldest first."""
        listed = await alerts.list_all()
        deliveries = await asyncio.gather(*(alerts.deliveries(alert.id) for alert in listed))
        return [_listed(calendar, *pair) for pair in zip(listed, deliveries, strict=True)]

    @router.post("/alerts", status_code=201, openapi_extra=_BODY)
    async def add_alert(request: Request, response: Response) -> NewAlert:
        """Add an alert. It fires for crossings from now on."""
        fields = await _parse(request, allow_private=alerts.allow_private)
        try:
            alert = await alerts.add(fields)
        except TooManyAlerts:
            raise _too_many() from None
        response.headers["Location"] = f"alerts/{alert.id}"
        return NewAlert(**_row(calendar, alert), secret=alert.secret)

    @router.get("/alerts/{id}")
    async def read_alert(id: str) -> AlertDetail:  # noqa: A002 # the API's word
        """Return an alert, and its deliveries that were not accepted."""
        alert, deliveries = _found(await alerts.get(id)), await alerts.deliveries(id)
        failed = [_failed_row(calendar, delivery) for delivery in deliveries if delivery.failed]
        return AlertDetail(**_listed(calendar, alert, deliveries), failed=failed)

    @router.put("/alerts/{id}", openapi_extra=_BODY)
    async def replace_alert(request: Request, id: str) -> AlertRow:  # noqa: A002 # the API's word
        """Change an alert. With another event or condition, it fires for crossings from now on."""
        fields = await _parse(request, allow_private=alerts.allow_private)
        return _row(calendar, _found(await alerts.replace(id, fields)))

    @router.delete("/alerts/{id}")
    async def delete_alert(id: str) -> AlertRow:  # noqa: A002 # the API's word
        """Delete an alert, with its deliveries."""
        return _row(calendar, _found(await alerts.delete(id)))

    @router.post("/alerts/{id}/test")
    async def test_alert(id: str) -> TestResult:  # noqa: A002 # the API's word
        """Send an example of an alert's message once, marked as a test, and return whether its URL has accepted it."""
        error = _found(await alerts.send_test(id))
        return TestResult(accepted=not error, error=error)


async def _parse(request: Request, *, allow_private: bool) -> AlertFields:
    """Return the alert in a body. Raises Problem (413, 422)."""
    fields = decode(await read_body(request, HIT_BYTES_MAX), AlertFields)
    secret = fields.secret
    errors = {
        "when": fields.when.error(),
        "url": url_error(fields.url, allow_private=allow_private),
        "secret": "" if secret is None or _is_valid_secret(secret) else "must be whsec_ and 24 to 64 bytes in Base64",
    }
    for field, error in errors.items():
        if error:
            raise Problem(INVALID_REQUEST, f"{field}: {error}")
    return msgspec.structs.replace(fields, event=valid_name(event_name, fields.event, "event"))


def _too_many() -> Problem:
    detail = f"there are {ALERTS_MAX} alerts, the most allowed; delete one"
    return Problem(ALERT_LIMIT, detail, {"Retry-After": "3600"})


def _row(calendar: Calendar, alert: Alert) -> AlertRow:
    return AlertRow(
        id=alert.id,
        event=alert.event,
        when=msgspec.to_builtins(alert.when),
        url=alert.url,
        format=alert.format,
        createdAt=calendar.local(alert.created).isoformat(),
    )


def _listed(calendar: Calendar, alert: Alert, deliveries: Sequence[Delivery]) -> ListedAlert:
    return ListedAlert(
        **_row(calendar, alert),
        undelivered=len(deliveries),
        pending=sum(not delivery.failed for delivery in deliveries),
        error=next((delivery.error for delivery in deliveries[::-1] if delivery.error), ""),
    )


def _failed_row(calendar: Calendar, delivery: Delivery) -> FailedRow:
    return FailedRow(
        id=delivery.id,
        firedAt=calendar.local(delivery.fired_at).isoformat(),
        threshold=delivery.threshold,
        value=delivery.value,
        attempts=delivery.attempts,
        error=delivery.error,
    )


def _found(found: T | None) -> T:
    if found is None:
        raise Problem(NOT_FOUND, "there is no alert with this id; GET /alerts lists them")
    return found


def _is_valid_secret(secret: str) -> bool:
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return False
    return secret.startswith(SECRET_PREFIX) and len(key) in SECRET_BYTES
