"""The routes of goals: what is accepted and stored, and the numbers next to it."""

import httpx
import pytest

from tests.support.servers import AS_ADMIN


async def test_a_goal_is_set_replaced_and_deleted(client: httpx.AsyncClient) -> None:
    assert (await client.get("/goals")).json() == []
    await client.post("/event/café", json={"by": 3})
    await client.put("/event/café", json={"total": 10}, headers=AS_ADMIN)
    row = {"eventName": "café", "goal": {"count": 5}, "count": 3, "total": 10, "day": "2026-03-28"}
    assert (await client.put("/goals/café", json={"count": 5}, headers=AS_ADMIN)).json() == row
    await client.put("/goals/b", json={"count": 1}, headers=AS_ADMIN)
    row["goal"] = {"total": 5}
    assert (await client.put("/goals/café", json={"total": 5}, headers=AS_ADMIN)).json() == row
    assert [goal["eventName"] for goal in (await client.get("/goals")).json()] == ["b", "café"]
    assert (await client.delete("/goals/café", headers=AS_ADMIN)).json() == row
    assert (await client.delete("/goals/café", headers=AS_ADMIN)).status_code == 404
    assert [goal["eventName"] for goal in (await client.get("/goals")).json()] == ["b"]


@pytest.mark.parametrize(
    ("name", "body", "detail"),
    [
        ("a", {}, "body: needs exactly one of count and total"),
        ("a", {"count": 1, "total": 1}, "body: needs exactly one of count and total"),
        ("a", {"count": 0}, "body: needs exactly one of count and total, which is at least 1"),
        ("a", {"total": 2**53}, "total: expected a whole number"),
        ("a", {"every": 1}, "body: object contains unknown field `every`; the fields are count, total"),
        ("%20a", {"count": 1}, "event: must not"),
    ],
)
async def test_an_invalid_goal_is_rejected(
    client: httpx.AsyncClient, name: str, body: dict[str, int], detail: str
) -> None:
    response = await client.put(f"/goals/{name}", json=body, headers=AS_ADMIN)
    assert response.status_code == 422
    assert response.json()["detail"].lower().startswith(detail)
    assert (await client.get("/goals")).json() == []


async def test_the_number_of_goals_is_limited(client: httpx.AsyncClient) -> None:
    for i in range(100):
        assert (await client.put(f"/goals/{i}", json={"count": 1}, headers=AS_ADMIN)).is_success
    response = await client.put("/goals/other", json={"count": 1}, headers=AS_ADMIN)
    assert (response.status_code, response.json()["code"]) == (429, "goal-limit")
    assert (await client.put("/goals/7", json={"count": 2}, headers=AS_ADMIN)).is_success


async def test_a_change_of_a_goal_needs_an_admin_key(client: httpx.AsyncClient) -> None:
    for method in ("PUT", "DELETE"):
        assert (await client.request(method, "/goals/a", json={"count": 1})).status_code == 401
