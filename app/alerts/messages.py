"""The requests that tell a URL about a crossing: signed JSON, Slack, Discord and ntfy."""

import base64
import hashlib
import hmac
import re
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from app.domain.alerts import Alert, Delivery

SECRET_PREFIX = "whsec_"  # noqa: S105 # nosec B105 # it begins each secret of Standard Webhooks
_WINDOW_TEXTS = {"5m": "the last 5 minutes", "1h": "the last hour", "1d": "the last day"}
_SLACK_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_DISCORD_MARKUP = re.compile(r"([\\*_~|>`:#@\[\]()-])")


class Message(NamedTuple):
    """The body and the headers of a request."""

    body: bytes
    headers: dict[str, str]


def compose(alert: Alert, delivery: Delivery, now: float, *, is_test: bool = False) -> Message:
    """Return the message about a crossing in the format of the alert, or that of a test. `now` is a UTC second."""
    if alert.format == "json":
        return _signed_json(alert, delivery, int(now), "alert.test" if is_test else "alert.fired")
    text = f"Test: {describe(delivery)}" if is_test else describe(delivery)
    if alert.format == "ntfy":
        return Message(text.encode(), {"Content-Type": "text/plain; charset=utf-8", "Title": "Tally"})
    return Message(msgspec.json.encode(_chat_message(alert, text)), {"Content-Type": "application/json"})


def describe(delivery: Delivery) -> str:
    """Return one sentence about a crossing."""
    event, when = delivery.event, delivery.when
    if when.window:
        side = "above" if when.above else "below"
        return f"{event}: {delivery.value} in {_WINDOW_TEXTS[when.window]}, {side} {delivery.threshold}"
    if when.count:
        return f"{event}: the count of {delivery.date} has reached {delivery.threshold}"
    return f"{event}: the total has reached {delivery.threshold}"


def _signed_json(alert: Alert, delivery: Delivery, now: int, type_: str) -> Message:
    """Return JSON signed as in the Standard Webhooks specification."""
    data = {"alert": alert.id, "event": delivery.event, "when": delivery.when, "threshold": delivery.threshold}
    data |= {"value": delivery.value, **({"day": delivery.date} if delivery.date else {})}
    fired_at = datetime.fromtimestamp(delivery.fired_at, UTC).isoformat()
    body = msgspec.json.encode({"type": type_, "timestamp": fired_at, "data": data})
    headers = {"webhook-id": delivery.id, "webhook-timestamp": str(now)}
    headers["webhook-signature"] = sign(alert.secret, delivery.id, now, body)
    return Message(body, {"Content-Type": "application/json", **headers})


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the value of webhook-signature."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    digest = hmac.digest(key, b"%b.%d.%b" % (message_id.encode(), timestamp, body), hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"


def _chat_message(alert: Alert, text: str) -> dict[str, object]:
    """Return the JSON of Slack or Discord. The name of an event cannot mention anyone, or become markup."""
    if alert.format == "slack":
        return {"text": text.translate(_SLACK_ESCAPES), "mrkdwn": False}
    return {"content": _DISCORD_MARKUP.sub(r"\\\1", text), "allowed_mentions": {"parse": []}}
