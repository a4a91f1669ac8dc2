"""The routes of notes: what is accepted, what is stored, retries, and how long they are kept."""

from datetime import UTC, datetime

import httpx
import pytest

from tests.http.problems import assert_problem
from tests.support.servers import AS_ADMIN, SettableClock, eventually

NOW = "2026-03-28T22:30:00+00:00"
KEY = {"Idempotency-Key": "deploy-17"}


async def added(client: httpx.AsyncClient, **fields: object) -> dict[str, object]:
    response = await client.post("/notes", json=fields)
    assert response.status_code == 201, response.text
    return response.json()


async def listed(client: httpx.AsyncClient, **query: str) -> list[str]:
    return [note["text"] for note in (await client.get("/notes", params=query)).json()]


async def test_a_note_is_added_listed_and_deleted(client: httpx.AsyncClient) -> None:
    note = await added(client, text="v2 deployed")
    assert note == {"id": note["id"], "at": NOW, "text": "v2 deployed", "event": None}
    earlier = await added(client, text="<b>ورود</b> 👩‍💻", at="2026-03-28T10:00:00.9+02:00", event="cafe\u0301")
    assert earlier == {**earlier, "at": "2026-03-28T08:00:00+00:00", "event": "café"}
    assert (await client.get("/notes")).json() == [earlier, note]
    assert await listed(client, event="signup") == ["v2 deployed"]
    assert await listed(client, event="café", to=NOW) == [earlier["text"]]
    assert await listed(client, **{"from": "2026-03-28T08:00:01Z"}) == ["v2 deployed"]
    url = f"/notes/{note['id']}"
    assert (await client.delete(url)).status_code == 401
    assert (await client.delete(url, headers=AS_ADMIN)).json() == note
    assert_problem(await client.delete(url, headers=AS_ADMIN), 404, None)
    assert (await client.get("/notes")).json() == [earlier]
    assert (await client.get("/events")).json() == {}


@pytest.mark.fails_on_mutant(
    "a retry adds a note", "app/http/routes/notes.py", 'idempotency_key_id(request, permissions, "/notes") or ', ""
)
@pytest.mark.fails_on_mutant("a key is used twice", "app/http/routes/notes.py", 'raise rejection("mismatch")', "pass")
async def test_a_retry_adds_one_note(client: httpx.AsyncClient, clock: SettableClock) -> None:
    first = await client.post("/notes", json={"text": "v2"}, headers=KEY)
    assert "Idempotent-Replayed" not in first.headers
    clock.go_to("2026-03-29T09:00:00+00:00")
    again = await client.post("/notes", json={"text": "v2"}, headers=KEY)
    assert (again.status_code, again.json(), again.headers["Idempotent-Replayed"]) == (201, first.json(), "true")
    for other in ({"text": "v3"}, {"text": "v2", "event": "a"}, {"text": "v2", "at": "2026-03-29T01:00:00Z"}):
        assert_problem(await client.post("/notes", json=other, headers=KEY), 422, "no")
    assert_problem(await client.post("/notes", json={"text": "v2"}, headers={"Idempotency-Key": "a b"}), 422, "no")
    assert await listed(client) == ["v2"]


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({}, "body: object missing required field `text`"),
        ({"text": ""}, "text: must have 1 to 200 characters, not 0"),
        ({"text": "x" * 201}, "text: must have 1 to 200 characters, not 201"),
        ({"text": "a\nb"}, "text: must not contain control,"),
        ({"text": "a\u202eb"}, "text: must not contain control,"),
        ({"text": "a\u200bb"}, "text: must not contain invisible characters"),
        ({"text": 7}, "text: expected `str`"),
        ({"text": "a", "event": "a/b"}, 'event: must not contain "/"'),
        ({"text": "a", "at": "yesterday"}, "at: expected an ISO 8601 time with a UTC offset"),
        ({"text": "a", "at": "2026-03-28T10:00:00"}, "at: expected an ISO 8601 time with a UTC offset"),
        ({"text": "a", "at": "0001-01-01T00:00:00+23:59"}, "at: must be within the last 400 days"),
        ({"text": "a", "at": "9999-12-31T23:59:59-23:59"}, "at: must not be more than a day in the future"),
        ({"text": "a", "x": 1}, "body: object contains unknown field `x`; the fields are text, at, event"),
    ],
)  # fmt: skip
async def test_an_invalid_note_is_rejected(client: httpx.AsyncClient, fields: dict[str, object], detail: str) -> None:
    response = await client.post("/notes", json=fields)
    assert_problem(response, 422, "no")
    assert response.json()["detail"].lower().startswith(detail.lower())
    assert await listed(client) == []


async def test_an_invalid_query_is_rejected(client: httpx.AsyncClient) -> None:
    for query in ("from=1", "to=2026-02-30T00:00:00Z", "to=", "event=a/b", "event="):
        assert_problem(await client.get(f"/notes?{query}"), 422, None)


@pytest.mark.parametrize("client", [{"write_limit": "20/minute"}], indirect=True)
async def test_a_note_costs_as_much_as_ten_hits(client: httpx.AsyncClient) -> None:
    assert [(await client.post("/notes", json={"text": "a"})).status_code for _ in range(3)] == [201, 201, 429]


@pytest.mark.parametrize("client", [{"days_kept": 8, "hours_kept_days": 2}], indirect=True)
@pytest.mark.fails_on_mutant("old notes stay", "app/scheduler.py", 'await self._notes.prune(cutoffs["day"])', "pass")
async def test_old_notes_are_deleted_with_old_days(client: httpx.AsyncClient, clock: SettableClock) -> None:
    for day in range(21, 29):
        await client.post("/notes", json={"text": str(day), "at": f"2026-03-{day}T23:00:00Z"})
    assert (await client.post("/notes", json={"text": "a", "at": "2026-03-20T23:00:00Z"})).status_code == 422
    clock.go_to("2026-03-30T00:00:01+00:00")
    jobs = client._transport.app.state.jobs
    jobs.get_job("close_day").modify(next_run_time=datetime.now(UTC))

    async def first_is_deleted() -> bool:
        return await listed(client) == [str(day) for day in range(23, 29)]

    await eventually(first_is_deleted)
