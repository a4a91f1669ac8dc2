"""Names with invisible characters: rejected for new hits, but old ones can still be read, exported and deleted."""

import json
from urllib.parse import quote

import httpx
import pytest

from tests.http.problems import assert_problem
from tests.support.servers import AS_ADMIN

OLD, OLD_USER = "sign\u200bup", "anna\u3164"
PATH = f"/event/{quote(OLD)}"
STORED_RULE = pytest.mark.fails_on_mutant(
    "old names cannot be read", "app/http/parsing.py", 'method in {"POST", "PUT"}', "method"
)


async def test_a_name_with_an_invisible_character_is_rejected_on_every_route_that_counts(
    empty_app: httpx.AsyncClient,
) -> None:
    assert_problem(await empty_app.post(PATH), 422, "no")
    for field in ("user", "session"):
        assert_problem(await empty_app.post("/event/a", json={field: OLD_USER}), 422, "no")
        assert_problem(await empty_app.post("/events", json=[{"event": "a", field: OLD_USER}]), 422, "no")
    for body in (json.dumps([{"event": OLD}]), json.dumps({OLD: 1}), json.dumps({"event": OLD}), OLD):
        assert_problem(await empty_app.post("/events", content=body), 422, "no")
    assert_problem(await empty_app.put(PATH, json={"count": 1}, headers=AS_ADMIN), 422, None)


@STORED_RULE
@pytest.mark.fails_on_mutant(
    "old users cannot be read", "app/http/parsing.py", "valid_name(stored_visitor_id", "valid_name(visitor_id"
)
@pytest.mark.fails_on_mutant(
    "old names in queries", "app/http/parsing.py", "valid_name(stored_event_name", "valid_name(event_name"
)
@pytest.mark.fails_on_mutant("the bypass has one rule", "app/http/router_bypass.py", ', method=scope["method"])', ")")
async def test_an_old_name_can_be_imported_read_exported_and_deleted(client: httpx.AsyncClient) -> None:
    hit = {"by": 2, "user": "USER", "session": "SESSION"}
    (await client.post("/event/NAME", json=hit)).raise_for_status()
    new = (await client.get("/export", headers=AS_ADMIN)).text
    (await client.delete("/event/NAME", headers=AS_ADMIN)).raise_for_status()
    old = new.replace("NAME", OLD).replace("USER", OLD_USER).replace("SESSION", OLD_USER)
    assert (await client.post("/import", content=old, headers=AS_ADMIN)).status_code == 200
    reads = (
        *(f"{PATH}{part}" for part in ("", "/series", "/audience", "/shield.json")),
        f"/badge/{quote(OLD)}.svg",
        f"/series?event={quote(OLD)}",
        f"/leaderboard?event={quote(OLD)}",
        f"/user/{quote(OLD_USER)}",
        f"/session/{quote(OLD_USER)}",
    )
    for path in reads:
        assert (await client.get(path)).status_code == 200, path
    assert (await client.get(PATH)).json()["count"] == 2
    assert (await client.get("/events")).json() == {OLD: 2}
    assert (await client.get(f"/user/{quote(OLD_USER)}")).json()["counts"] == {OLD: 2}
    assert OLD in (await client.get("/export", headers=AS_ADMIN)).text
    assert (await client.delete(f"/user/{quote(OLD_USER)}", headers=AS_ADMIN)).status_code == 200
    assert (await client.delete(PATH, headers=AS_ADMIN)).status_code == 200
    assert (await client.get("/events")).json() == {}
