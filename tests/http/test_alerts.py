"""The routes of alerts: what is accepted, what is stored, and what fires after hits over HTTP."""

import json

import httpx
import pytest

from app.alerts import sender
from app.alerts.messages import sign
from tests.http.problems import detail_of
from tests.support.receiver import receiving
from tests.support.servers import AS_ADMIN, eventually

ALERT = {"event": "order", "when": {"total": 1000}, "url": "https://hooks.example/tally", "format": "json"}
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 # an example of the specification
allow_private = pytest.mark.parametrize("client", [{"alerts_allow_private": True}], indirect=True)


async def added(client: httpx.AsyncClient, **fields: object) -> dict[str, object]:
    response = await client.post("/alerts", json={**ALERT, **fields}, headers=AS_ADMIN)
    assert response.status_code == 201, response.text
    return response.json()


@pytest.mark.fails_on_mutant(
    "the host chooses no format", "app/domain/alerts.py", '_FORMATS.get(urlsplit(url).hostname or "", "json")', '"json"'
)
async def test_an_alert_is_added_read_changed_and_deleted(client: httpx.AsyncClient) -> None:
    response = await client.post("/alerts", json=ALERT, headers=AS_ADMIN)
    alert = response.json()
    assert (response.status_code, response.headers["location"]) == (201, f"alerts/{alert['id']}")
    assert alert.pop("secret").startswith("whsec_")
    assert alert == {**ALERT, "id": alert["id"], "createdAt": alert["createdAt"]}
    listed = alert | {"undelivered": 0, "pending": 0, "error": ""}
    assert (await client.get("/alerts", headers=AS_ADMIN)).json() == [listed]
    url = f"/alerts/{alert['id']}"
    assert (await client.get(url, headers=AS_ADMIN)).json() == listed | {"failed": []}
    changes = {"event": "café", "when": {"below": 1, "window": "1h"}, "url": "https://ntfy.example/a", "format": "ntfy"}
    assert (await client.put(url, json=changes, headers=AS_ADMIN)).json() == alert | changes
    changes |= {"url": "https://hooks.slack.com/services/a", "format": "slack"}
    without_format = {name: value for name, value in changes.items() if name != "format"}
    assert (await client.put(url, json=without_format, headers=AS_ADMIN)).json() == alert | changes
    assert (await client.delete(url, headers=AS_ADMIN)).json() == alert | changes
    for method in ("GET", "DELETE"):
        assert (await client.request(method, url, headers=AS_ADMIN)).status_code == 404
    assert (await client.put(url, json=changes, headers=AS_ADMIN)).status_code == 404
    assert (await client.get("/alerts", headers=AS_ADMIN)).json() == []


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"when": {}}, "when: needs exactly one of count, total, every, above and below"),
        ({"when": {"total": 0}}, "when: expected `int` >= 1"),
        ({"when": {"total": 2**53}}, "when: expected `int` <= 9007199254740991"),
        ({"when": {"above": 1}}, "when: above and below need a window of 5m, 1h or 1d, and the others must not"),
        ({"when": {"above": 1, "window": "2h"}}, "when: invalid enum value '2h'"),
        ({"event": "a/b"}, 'event: must not contain "/"'),
        ({"url": "ftp://example.com"}, "url: must begin with https:// or http://"),
        ({"url": "http://127.0.0.1/"}, "url: leads to a private address, which only TALLY_ALERTS_ALLOW_PRIVATE=true"),
        ({"format": "xml"}, "format: invalid enum value 'xml'"),
        ({"secret": "whsec_short"}, "secret: must be whsec_ and 24 to 64 bytes in Base64"),
        ({"secret": SECRET.removeprefix("whsec_")}, "secret: must be whsec_"),
        ({"other": 1}, "body: object contains unknown field `other`; the fields are event, when, url, format, secret"),
    ],
)  # fmt: skip
async def test_an_invalid_alert_is_rejected(client: httpx.AsyncClient, fields: dict[str, object], detail: str) -> None:
    response = await client.post("/alerts", json={**ALERT, **fields}, headers=AS_ADMIN)
    assert response.status_code == 422
    assert response.json()["detail"].lower().startswith(detail.lower())
    assert (await client.get("/alerts", headers=AS_ADMIN)).json() == []


async def test_the_number_of_alerts_is_limited(client: httpx.AsyncClient) -> None:
    for _ in range(100):
        await added(client)
    response = await client.post("/alerts", json=ALERT, headers=AS_ADMIN)
    assert (response.status_code, response.json()["code"]) == (429, "alert-limit")


async def test_alerts_need_an_admin_key(client: httpx.AsyncClient) -> None:
    for method, url in (
        ("GET", "/alerts"),
        ("POST", "/alerts"),
        ("PUT", "/alerts/a"),
        ("DELETE", "/alerts/a"),
        ("POST", "/alerts/a/test"),
    ):
        assert (await client.request(method, url)).status_code == 401


@allow_private
async def test_a_hit_that_reaches_the_threshold_is_sent_soon(client: httpx.AsyncClient) -> None:
    async with receiving() as receiver:
        alert = await added(client, url=receiver.url, when={"total": 3}, secret=SECRET)
        await client.post("/event/order", json={"by": 2})
        await client.post("/event/order", json={"by": 2})
        await eventually(lambda: receiver.requests)
        data = json.loads(receiver.requests[0].body)["data"]
        assert data == {"alert": alert["id"], "event": "order", "when": {"total": 3}, "threshold": 3, "value": 4}
        receiver.status = 500
        failing = await added(client, url=receiver.url, when={"every": 2})
        await client.post("/events", json={"order": 2})
        await eventually(lambda: len(receiver.requests) == 2)

        async def is_pending() -> bool:
            found = (await client.get(f"/alerts/{failing['id']}", headers=AS_ADMIN)).json()
            return (found["pending"], found["error"]) == (1, "the response was 500")

        await eventually(is_pending)
        listed = (await client.get("/alerts", headers=AS_ADMIN)).json()
        sent = {row["id"]: (row["undelivered"], row["pending"], row["error"]) for row in listed}
        assert sent == {alert["id"]: (0, 0, ""), failing["id"]: (1, 1, "the response was 500")}


@pytest.mark.fails_on_mutant(
    "a test is late", "app/alerts/sender.py", "asyncio.timeout(TEST_SECONDS), self._tests", "self._tests"
)
@pytest.mark.fails_on_mutant(
    "an example that has not crossed", "app/alerts/service.py", " + bool(when.above) - bool(when.below)", ""
)
@allow_private
async def test_a_test_is_sent_once_and_its_outcome_returned(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiving() as receiver:
        alert = await added(client, url=receiver.url, when={"below": 5, "window": "1h"}, secret=SECRET)
        url = f"/alerts/{alert['id']}/test"
        assert (await client.post(url, headers=AS_ADMIN)).json() == {"accepted": True, "error": ""}
        (request,) = receiver.requests
        message = json.loads(request.body)
        assert (message["type"], message["data"]["value"]) == ("alert.test", 4)
        headers = request.headers
        signature = sign(SECRET, headers["webhook-id"], int(headers["webhook-timestamp"]), request.body)
        assert headers["webhook-signature"] == signature
        receiver.status = 500
        failed = {"accepted": False, "error": "the response was 500"}
        assert (await client.post(url, headers=AS_ADMIN)).json() == failed
        receiver.silent = True
        monkeypatch.setattr(sender, "TEST_SECONDS", 0.1)
        assert (await client.post(url, headers=AS_ADMIN)).json()["error"] == "no response within 0.1 s"
        assert len({*receiver.ids}) == 3
        (listed,) = (await client.get("/alerts", headers=AS_ADMIN)).json()
        assert (listed["undelivered"], listed["error"]) == (0, "")
        assert "no alert" in detail_of(await client.post("/alerts/none/test", headers=AS_ADMIN), 404)
