"""The routes of CountAPI and Abacus that change counters, their shields, the stream of a total, and their status."""

import asyncio
import json
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from tests.http.api_keys import CLOSED, KEYS, bearer
from tests.support.redis_servers import RedisServer
from tests.support.servers import AS_ADMIN, SettableClock, serving, settings_for

CHANGES = "app/http/routes/countapi_changes.py"
FOREIGN = {"Origin": "https://shop.example"}
A = "/event/mysite.com:likes"


@pytest.fixture
def client_settings() -> dict[str, object]:
    return {"countapi": True}


@pytest.fixture
def get(client: httpx.AsyncClient) -> Callable[[str], Awaitable[tuple[int, object]]]:
    """Send a GET as the administrator, and return the status and the JSON."""

    async def send(path: str) -> tuple[int, object]:
        response = await client.get(path, headers=AS_ADMIN)
        return response.status_code, response.json()

    return send


@pytest.fixture
def post(client: httpx.AsyncClient) -> Callable[[str], Awaitable[tuple[int, object]]]:
    """Send a POST as the administrator, and return the status and the JSON."""

    async def send(path: str) -> tuple[int, object]:
        response = await client.post(path, headers=AS_ADMIN)
        return response.status_code, response.json()

    return send


async def test_countapi_changes_a_counter_by_get(client: httpx.AsyncClient, get) -> None:
    """The calls of countapi-js, and what its documentation promises for each."""
    created = {"namespace": "mysite.com", "key": "likes", "value": 42}
    assert await get("/create/mysite.com/likes?value=42") == (200, created)
    assert await get("/get/mysite.com/likes") == (200, {"value": 42})
    assert await get("/update/mysite.com/likes?amount=5") == (200, {"value": 47})
    assert await get("/update/mysite.com/likes?amount=-7") == (200, {"value": 40})
    assert await get("/set/mysite.com/likes?value=96") == (200, {"old_value": 40, "value": 96})
    assert await get("/create/test") == (200, {"namespace": "default", "key": "test", "value": 0})
    assert await get("/update/test?amount=1") == (200, {"value": 1})
    assert await get("/set/test?value=69") == (200, {"old_value": 1, "value": 69})
    missing = {"value": None, "error": "Key not found"}
    assert await get("/set/nonexisting?value=33") == (404, {"old_value": None, **missing})
    assert await get("/update/nonexisting?amount=1") == (404, missing)
    assert (await client.get("/set/test?value=1", headers=AS_ADMIN)).headers["x-path"] == "default/test"
    script = await client.get("/update/test?amount=1&callback=cb")
    assert script.text == '/**/cb({"code":200,"value":2});'


async def test_abacus_changes_a_counter_by_post(get, post) -> None:
    """The calls of Abacus' documentation, with an admin key of the server instead of one of the counter."""
    created = {"namespace": "mysite.com", "key": "likes", "value": 10}
    assert await post("/create/mysite.com/likes?initializer=10") == (201, created)
    status, problem = await post("/create/mysite.com/likes")
    assert (status, problem["code"], problem["counted"]) == (409, "counter-exists", "no")
    assert problem["error"] == problem["detail"]
    assert await post("/update/mysite.com/likes?value=-3") == (200, {"value": 7})
    assert await post("/update/mysite.com/likes?value=4") == (200, {"value": 11})
    assert await post("/set/mysite.com/likes?value=5") == (200, {"old_value": 11, "value": 5})
    assert await post("/reset/mysite.com/likes") == (200, {"old_value": 5, "value": 0})
    assert await get("/get/mysite.com/likes") == (200, {"value": 0})
    assert await post("/delete/mysite.com/likes") == (200, {"status": "ok", "message": "Deleted key: mysite.com:likes"})
    for path in ("/delete/a.b/likes", "/reset/a.b/likes", "/set/a.b/likes?value=1", "/update/a.b/likes?value=1"):
        status, body = await post(path)
        assert (status, body["error"]) == (404, "Key not found")
    assert (await get("/events"))[1] == {}


async def test_changes_keep_todays_count_right_and_are_in_the_history(client: httpx.AsyncClient, get, clock) -> None:
    def numbers(count: int, total: int) -> dict[str, object]:
        return {"eventName": "mysite.com:likes", "count": count, "total": total, "day": "2026-03-28"}

    for change, count, total in (
        ("create/mysite.com/likes?value=100", 0, 100),
        ("update/mysite.com/likes?amount=8", 8, 108),  # these are hits
        ("update/mysite.com/likes?amount=-3", 5, 105),
        ("update/mysite.com/likes?amount=-30", 0, 75),
        ("update/mysite.com/likes?amount=9", 9, 84),
        ("set/mysite.com/likes?value=4", 4, 4),
    ):
        assert (await get(f"/{change}"))[0] == 200
        assert (await get(A))[1] == numbers(count, total)
    status, problem = await get("/update/mysite.com/likes?amount=-5")
    assert (status, problem["detail"]) == (422, "amount: the total is 4, and must not fall below 0")
    assert (await get(A))[1] == numbers(4, 4)
    assert (await get(f"{A}/series?step=day&points=1"))[1]["points"][0]["count"] == 17
    clock.go_to("2026-03-29T12:00:00+00:00")
    corrections = (await get("/history/2026-03-28"))[1]["corrections"]
    assert [row["after"]["total"] for row in corrections] == [100, 105, 75, 4]


async def test_hits_that_arrive_during_a_change_are_kept(client: httpx.AsyncClient) -> None:
    await client.get("/create/mysite.com/likes?value=50", headers=AS_ADMIN)
    hits = [client.get("/hit/mysite.com/likes") for _ in range(40)]
    downs = [client.get("/update/mysite.com/likes?amount=-1", headers=AS_ADMIN) for _ in range(10)]
    responses = await asyncio.gather(
        *(call for pair in zip(hits[:10], downs, strict=True) for call in pair), *hits[10:]
    )
    assert {response.status_code for response in responses} == {200}
    assert (await client.get("/get/mysite.com/likes")).json() == {"value": 80}


WITHOUT_PERMISSION = [
    ("GET", "/create/mysite.com/other?value=1"),
    ("POST", "/create/mysite.com/other"),
    ("GET", "/set/mysite.com/likes?value=1"),
    ("POST", "/set/mysite.com/likes?value=1"),
    ("GET", "/update/mysite.com/likes?amount=2"),
    ("GET", "/update/mysite.com/likes?amount=-1"),
    ("POST", "/update/mysite.com/likes?value=-1"),
    ("POST", "/reset/mysite.com/likes"),
    ("POST", "/delete/mysite.com/likes"),
]


@pytest.mark.fails_on_mutant(
    "anyone may subtract",
    CHANGES,
    '                permissions.authorize(request.scope, "PUT /event/{name}")\n',
    "                pass\n",
)
@pytest.mark.parametrize(
    ("client", "role"), [({"admin_keys": KEYS["admin"]}, "none"), (CLOSED, "write")], indirect=["client"]
)
async def test_a_change_needs_the_permission_of_put_and_pages_can_read_why(
    client: httpx.AsyncClient, role: str
) -> None:
    key, admin = bearer(role), bearer("admin")
    await client.get("/hit/mysite.com/likes", headers=key)
    for method, path in WITHOUT_PERMISSION:
        response = await client.request(method, path, headers=FOREIGN | key)
        assert response.status_code in {401, 403}, path
        assert response.headers["access-control-allow-origin"] == "*"
        problem = response.json()
        assert problem["error"] == problem["detail"]
        preflight = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": "authorization"}
        assert (await client.options(path, headers=FOREIGN | preflight)).status_code == 204
    # The administrator's key is rejected on pages of other origins, as with PUT.
    denied = await client.get("/set/mysite.com/likes?value=1", headers=FOREIGN | admin)
    assert denied.json()["code"] == "origin-not-allowed"
    assert (await client.get("/update/mysite.com/likes?amount=1", headers=FOREIGN | key)).json() == {"value": 2}
    assert (await client.get("/get/mysite.com/likes", headers=admin)).json() == {"value": 2}


@pytest.mark.fails_on_mutant("HEAD changes a counter", "app/http/middleware.py", "(*CHANGING_PATHS,", '("/hit/",')
async def test_a_head_changes_nothing(client: httpx.AsyncClient) -> None:
    await client.get("/hit/mysite.com/likes")
    for path in ("update/mysite.com/likes?amount=1", "set/mysite.com/likes?value=7", "create/mysite.com/new?value=1"):
        assert (await client.head(f"/{path}", headers=AS_ADMIN)).status_code == 405
    assert (await client.get("/get/mysite.com/likes")).json() == {"value": 1}
    assert (await client.get("/get/mysite.com/new")).status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/create/mysite.com/likes?value=-1",
        "/create/mysite.com/likes?value=x",
        "/create/mysite.com/likes?value=9007199254740992",
        "/create/mysite.com/likes?update_upperbound=10",
        "/create/mysite.com/likes?enable_reset=1",
        "/create/a/likes",
        "/set/mysite.com/likes",
        "/set/mysite.com/likes?value=1.5",
        "/update/mysite.com/likes",
        "/update/mysite.com/likes?amount=0",
        "/update/mysite.com/likes?amount=1000001",
        "/update/mysite.com/likes?amount=-9007199254740992",
        "/hit/mysite.com/likes/shield?bgcolor=purple",
        "/hit/mysite.com/likes/shield?text=%00",
        "/stream/a/likes",
    ],
)
async def test_bad_input_is_a_problem_and_changes_nothing(empty_app: httpx.AsyncClient, path: str) -> None:
    response = await empty_app.get(path, headers=AS_ADMIN)
    problem = response.json()
    assert response.status_code in {400, 422}
    assert problem["error"] == problem["detail"]
    assert response.headers["access-control-allow-origin"] == "*"


async def test_a_prefetch_of_an_update_is_not_counted_and_a_program_with_a_key_is(client: httpx.AsyncClient) -> None:
    await client.get("/hit/mysite.com/likes")
    prefetched = await client.get("/update/mysite.com/likes?amount=1", headers={"Sec-Purpose": "prefetch"})
    assert prefetched.json() == {"value": 1}
    program = AS_ADMIN | {"User-Agent": "mybot/1.0"}
    assert (await client.get("/update/mysite.com/likes?amount=3", headers=program)).json() == {"value": 4}
    assert (await client.get("/hit/mysite.com/likes", headers=program)).json() == {"value": 5}


async def test_a_namespace_and_a_key_may_both_have_64_characters(client: httpx.AsyncClient) -> None:
    long, shorter = "x" * 64, "x" * 63
    for path, event in ((f"{long}/{long}", "x" * 128), (f"{long}/{shorter}", f"{long}:{shorter}")):
        assert (await client.get(f"/hit/{path}")).json() == {"value": 1}
        assert (await client.get(f"/get/{path}")).json() == {"value": 1}
        assert (await client.get(f"/event/{event}")).json()["total"] == 1


async def test_a_shield_counts_when_it_is_shown(client: httpx.AsyncClient) -> None:
    for value in (1, 2):
        shield = await client.get("/hit/mysite.com/visits/shield?text=views&bgcolor=%23e05d44&style=plastic")
        assert shield.headers["content-type"] == "image/svg+xml"
        assert shield.headers["cache-control"] == "no-store, no-cache, must-revalidate"  # GitHub's proxy caches else
        assert shield.headers["content-security-policy"] == "default-src 'none'; sandbox"
        assert ET.fromstring(shield.text)[0].text == f"views: {value}"  # noqa: S314 # Tally made it
        assert 'fill="#e05d44"' in shield.text
    await client.get("/hit/mysite.com/visits/shield", headers={"User-Agent": "Twitterbot/1.0"})
    assert "counter: 2" in (await client.get("/get/mysite.com/visits/shield")).text
    assert ">counter</text>" not in (await client.get("/get/mysite.com/visits/shield?style=flat-simple")).text
    missing = await client.get("/get/mysite.com/nothing/shield")
    assert (missing.status_code, missing.json()["error"]) == (404, "Key not found")


async def test_status_routes_have_the_fields_of_abacus_and_countapi(client: httpx.AsyncClient) -> None:
    health = (await client.get("/healthcheck")).json()
    assert (health["status"], health["uptime"][-1]) == ("ok", "s")
    await client.get("/hit/mysite.com/visits")
    stats = (await client.get("/stats", headers=FOREIGN)).json()
    assert (stats["total_keys"], stats["keys_created"], stats["version"]) == (1, 1, "0.1.0")
    info = (await client.get("/info/mysite.com/visits")).json()
    assert {key: info[key] for key in ("value", "full_key", "is_genuine", "exists")} == {
        "value": 1, "full_key": "mysite.com:visits", "is_genuine": True, "exists": True,
    }  # fmt: skip
    assert (await client.get("/info/mysite.com/nothing")).json()["exists"] is False


async def values(lines: AsyncIterator[str]) -> AsyncIterator[int]:
    """Yield the values of a stream. It must have no event names, which would keep `onmessage` from being called."""
    async for line in lines:
        assert not line or line.startswith((":", "data: "))
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))["value"]


@pytest.mark.fails_on_mutant(
    "a correction of the total is not sent",
    "app/http/routes/countapi_stream.py",
    "                total = await read_total(self._store, self._event)\n",
    "                total = await read_total(self._store, self._event)\n"
    "                total = max(total or 0, sent or 0) or None\n",
)
@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
async def test_a_stream_sends_the_total_first_and_after_each_change(
    kind: str, tmp_path: Path, redis_server: RedisServer, clock: SettableClock
) -> None:
    async with (
        serving(settings_for(kind, tmp_path, redis_server, countapi=True), clock) as tally,
        tally.client() as client,
    ):
        await client.get("/create/mysite.com/likes?value=41", headers=AS_ADMIN)
        async with client.stream("GET", "/stream/mysite.com/likes", headers=FOREIGN) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert stream.headers["access-control-allow-origin"] == "*"
            received = values(stream.aiter_lines())
            assert await anext(received) == 41
            for change, total in (
                ("hit/mysite.com/likes", 42),
                ("set/mysite.com/likes?value=7", 7),  # today's count changes, too
                ("set/mysite.com/likes?value=90", 90),
                ("update/mysite.com/likes?amount=-1", 89),
            ):
                assert (await client.get(f"/{change}", headers=AS_ADMIN)).status_code == 200
                assert await asyncio.wait_for(anext(received), 20) == total
            clock.shift += 86_400
            await client.get("/hit/mysite.com/likes")
            assert await asyncio.wait_for(anext(received), 20) == 90
            await client.post("/delete/mysite.com/likes", headers=AS_ADMIN)
            assert await asyncio.wait_for(anext(received), 20) == 0
        async with client.stream("GET", "/stream/mysite.com/new") as stream:
            received = values(stream.aiter_lines())
            await client.get("/hit/mysite.com/new")
            assert await asyncio.wait_for(anext(received), 20) == 1
