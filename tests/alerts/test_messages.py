"""The formats of alerts, with event names that could be markup or mention someone."""

import json

import msgspec
import pytest

from app.alerts.messages import Message, compose, sign
from app.domain.alerts import Alert, Condition, Delivery, Format

MESSAGES = "app/alerts/messages.py"
NOW = 1_795_435_200
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 # an example of the specification


def composed(format_: Format, event: str = "order", *, is_test: bool = False, **when: object) -> Message:
    condition = msgspec.convert(when or {"total": 1000}, Condition)
    alert = Alert("one", event, condition, "https://example.com", format_, SECRET, NOW, 0)
    return compose(
        alert, Delivery("msg_1", event, condition, 1000, 1003, NOW, NOW, "2026-11-23"), NOW + 1, is_test=is_test
    )


@pytest.mark.fails_on_mutant(
    "another signature", "app/alerts/messages.py", 'b"%b.%d.%b" % (message_id.encode(), timestamp, body)', "body"
)
def test_the_signature_is_that_of_standard_webhooks() -> None:
    """An example of the specification's own libraries."""
    signature = sign(SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_json_is_signed_with_the_time_of_the_attempt() -> None:
    body, headers = composed("json")
    assert headers == {
        "Content-Type": "application/json",
        "webhook-id": "msg_1",
        "webhook-timestamp": str(NOW + 1),
        "webhook-signature": sign(SECRET, "msg_1", NOW + 1, body),
    }
    data = {"alert": "one", "event": "order", "when": {"total": 1000}, "threshold": 1000, "value": 1003}
    assert json.loads(body) == {
        "type": "alert.fired",
        "timestamp": "2026-11-23T12:00:00+00:00",
        "data": {**data, "day": "2026-11-23"},
    }


@pytest.mark.fails_on_mutant("a test looks real", MESSAGES, 'f"Test: {describe(delivery)}"', "describe(delivery)")
@pytest.mark.fails_on_mutant("a test has the type of an alert", MESSAGES, '"alert.test" if', '"alert.fired" if')
def test_a_test_is_marked_in_each_format() -> None:
    assert json.loads(composed("json", is_test=True).body)["type"] == "alert.test"
    text = "Test: order: the total has reached 1000"
    assert composed("ntfy", is_test=True).body.decode() == text
    assert json.loads(composed("slack", is_test=True).body)["text"] == text
    assert json.loads(composed("discord", is_test=True).body)["content"] == text.replace(":", r"\:")


@pytest.mark.fails_on_mutant(
    "Slack mentions everyone", "app/alerts/messages.py", "text.translate(_SLACK_ESCAPES)", "text"
)
def test_slack_gets_escaped_text() -> None:
    body, _ = composed("slack", "<!channel> & co")
    assert json.loads(body) == {"text": "&lt;!channel&gt; &amp; co: the total has reached 1000", "mrkdwn": False}


@pytest.mark.fails_on_mutant(
    "Discord mentions everyone", "app/alerts/messages.py", ', "allowed_mentions": {"parse": []}', ""
)
def test_discord_gets_text_without_markup_and_mentions_nobody() -> None:
    body, _ = composed("discord", "**@everyone**")
    text = r"\*\*\@everyone\*\*\: the total has reached 1000"
    assert json.loads(body) == {"content": text, "allowed_mentions": {"parse": []}}


@pytest.mark.parametrize(
    ("when", "text"),
    [
        ({"total": 1000}, "é: the total has reached 1000"),
        ({"every": 500}, "é: the total has reached 1000"),
        ({"count": 1000}, "é: the count of 2026-11-23 has reached 1000"),
        ({"above": 1000, "window": "5m"}, "é: 1003 in the last 5 minutes, above 1000"),
        ({"below": 1000, "window": "1h"}, "é: 1003 in the last hour, below 1000"),
    ],
)
def test_ntfy_gets_one_sentence(when: dict[str, object], text: str) -> None:
    body, headers = composed("ntfy", "é", **when)
    assert (body.decode(), headers["Content-Type"]) == (text, "text/plain; charset=utf-8")
