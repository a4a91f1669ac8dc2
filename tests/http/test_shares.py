"""Shares: what an administrator can do with them, and what anyone with a link can see, on one node and on several."""

from pathlib import Path

import httpx
import pytest

from app import shares
from app.http.permissions import ROUTE_PERMISSIONS
from tests.http.api_keys import CLOSED, bearer
from tests.http.problems import detail_of
from tests.live.clients import reading, update
from tests.support.redis_servers import RedisServer
from tests.support.servers import AS_ADMIN, RunningApp, eventually, serving, settings_for

SHARE = {"title": "Launch", "events": ["sign up", "order"]}
UNKNOWN = "A" * 24


async def added(client: httpx.AsyncClient, headers: dict[str, str] = AS_ADMIN, **fields: object) -> dict[str, str]:
    response = await client.post("/shares", json={**SHARE, **fields}, headers=headers)
    assert response.status_code == 201, response.text
    return response.json()


async def test_a_share_is_added_listed_and_revoked(client: httpx.AsyncClient) -> None:
    await client.post("/events", json={"order": 2, "secret": 5})
    share = await added(client, events=["order", "sign up", "order"])
    token = share.pop("token")
    assert len(token) * 6 >= 128
    assert share.pop("path") == f"/share/{token}"
    assert share == {
        "id": share["id"],
        "title": "Launch",
        "events": ["order", "sign up"],
        "createdAt": share["createdAt"],
    }
    listed = await client.get("/shares", headers=AS_ADMIN)
    assert listed.json() == [share]
    assert token not in listed.text
    counts = await client.get(f"/share/{token}/counts")
    events = [{"eventName": "order", "count": 2, "total": 2}, {"eventName": "sign up", "count": 0, "total": 0}]
    assert counts.json() == {"title": "Launch", "day": "2026-03-28", "events": events}
    assert counts.headers["Referrer-Policy"] == "no-referrer"
    shown = await client.get(f"/share/{token}")
    assert (shown.status_code, shown.headers["Referrer-Policy"]) == (200, "no-referrer")
    assert "frame-ancestors 'none'" in shown.headers["Content-Security-Policy"]
    assert (await client.delete(f"/shares/{share['id']}", headers=AS_ADMIN)).json() == share
    assert (await client.delete(f"/shares/{share['id']}", headers=AS_ADMIN)).status_code == 404
    for path in ("", "/counts", "/stream"):
        revoked = await client.get(f"/share/{token}{path}", headers={"If-None-Match": shown.headers["ETag"]})
        assert "revoked" in detail_of(revoked, 404)
    assert (await client.get("/shares", headers=AS_ADMIN)).json() == []


async def test_the_token_is_not_stored_and_links_survive_a_restart(tmp_path: Path, redis_server: RedisServer) -> None:
    settings = settings_for("sqlite", tmp_path, redis_server)
    async with serving(settings) as tally, tally.client() as client:
        token = (await added(client))["token"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
    async with serving(settings) as tally, tally.client() as client:
        assert (await client.get(f"/share/{token}/counts")).status_code == 200


INVALID: list[tuple[dict[str, object], str]] = [
    ({"title": ""}, "title: must have 1 to"),
    ({"title": "x" * 101}, "title: expected `str` of length <= 100"),
    ({"title": "a\nb"}, "title: must not contain control"),
    ({"events": []}, "events: expected `array` of length >= 1"),
    ({"events": ["a"] * 51}, "events: expected `array` of length <= 50"),
    ({"events": ["a/b"]}, 'events: must not contain "/"'),
    ({"events": [1]}, "events: expected `str`, got `int`"),
    ({"other": 1}, "body: Object contains unknown field `other`; the fields are title, events"),
]


async def test_an_invalid_share_is_rejected(client: httpx.AsyncClient) -> None:
    for fields, detail in INVALID:
        response = await client.post("/shares", json={**SHARE, **fields}, headers=AS_ADMIN)
        assert detail_of(response, 422).startswith(detail)
    assert (await client.get("/shares", headers=AS_ADMIN)).json() == []


@pytest.mark.fails_on_mutant("shares are not limited", "app/shares.py", ">= SHARES_MAX:", ">= SHARES_MAX + 1:")
async def test_the_number_of_shares_is_limited(client: httpx.AsyncClient) -> None:
    longest = [f"{i:03}" + "é" * 125 for i in range(50)]
    await added(client, events=longest, title="😀" * 100)
    for _ in range(99):
        await added(client)
    response = await client.post("/shares", json=SHARE, headers=AS_ADMIN)
    assert (detail_of(response, 429)[:14], response.json()["code"]) == ("there are 100 ", "share-limit")


@pytest.mark.fails_on_mutant(
    "ids show how much is counted",
    "app/http/routes/shares.py",
    "share.events, last_id=None",
    'share.events, last_id=""',
)
@pytest.mark.fails_on_mutant(
    "ids of later events", "app/live/clients.py", "chunks(self._events, self._has_ids)", "chunks(self._events, True)"
)
async def test_a_link_shows_only_its_events_without_a_key(serve) -> None:
    async with serve(**CLOSED, read_limit="50/hour") as tally, tally.client() as client:
        share = await added(client, bearer("admin"))
        await client.post("/events", json={"order": 3, "secret": 5}, headers=bearer("write"))
        async with reading(tally.url, f"/share/{share['token']}/stream") as reader:
            await eventually(lambda: reader.counts == {"sign up": 0, "order": 3})
            for event in ("secret", "sign%20up"):
                await client.post(f"/event/{event}", headers=bearer("write"))
            await eventually(lambda: reader.received[2:] == [update("sign up", 1)])
            assert reader.last_id == ""
        counts = await client.get(f"/share/{share['token']}/counts")
        assert "secret" not in counts.text
        for token in (UNKNOWN, share["id"], "", "%ff", share["token"][:-1]):
            assert (await client.get(f"/share/{token}/counts")).status_code == 404
            assert (await client.get(f"/share/{token}")).status_code == 404
        assert (await client.get("/events")).status_code == 401
        while (response := await client.get(f"/share/{UNKNOWN}/counts")).status_code == 404:
            pass
        assert "TALLY_READ_LIMIT" in detail_of(response, 429)
        for path in ("", "/counts", "/stream"):
            assert (await client.get(f"/share/{share['token']}{path}")).status_code == 429


def test_every_route_of_a_link_needs_only_the_link() -> None:
    found = {permission for route, permission in ROUTE_PERMISSIONS.items() if " /share/" in route}
    assert found == {"anyone"}


async def test_streams_of_links_leave_room_for_others(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "STREAMS_MAX", 1)
    async with serve(**CLOSED) as tally, tally.client() as client:
        path = f"/share/{(await added(client, bearer('admin')))['token']}/stream"
        async with reading(tally.url, path), client.stream("GET", path) as rejected:
            assert (rejected.status_code, rejected.headers["content-type"]) == (503, "application/problem+json")
        await eventually(lambda: not tally.app.state.broadcaster.clients)
        async with reading(tally.url, path) as reader:
            await eventually(lambda: len(reader.received) == 2)


async def ends(tally: RunningApp) -> None:
    await eventually(lambda: not tally.app.state.broadcaster.clients)


@pytest.mark.fails_on_mutant(
    "open streams go on", "app/shares.py", "                ended.set()\n", "                pass\n"
)
@pytest.mark.fails_on_mutant(
    "other nodes do not notice", "app/scheduler.py", "add(self._shares.refresh, ", "add(self.publish_status, "
)
async def test_all_nodes_have_the_same_links_and_end_the_streams_of_a_revoked_one(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    def settings(name: str) -> object:
        return settings_for("redis", tmp_path / name, own_redis)

    own_redis.start()
    async with serving(settings("a")) as a, serving(settings("b")) as b, a.client() as client, b.client() as other:
        share = await added(client)
        path = f"/share/{share['token']}"

        async def is_known() -> bool:
            return (await other.get(f"{path}/counts")).status_code == 200

        await eventually(is_known)
        async with reading(a.url, f"{path}/stream") as near, reading(b.url, f"{path}/stream") as far:
            await other.post("/event/order")
            await eventually(lambda: near.counts.get("order") == far.counts.get("order") == 1)
            assert (await client.delete(f"/shares/{share['id']}", headers=AS_ADMIN)).status_code == 200
            await ends(a)
            await ends(b)
        for node in (client, other):
            assert (await node.get(f"{path}/counts")).status_code == 404
        kept = f"/share/{(await added(client))['token']}/counts"
        own_redis.stop()
        await eventually(lambda: a.app.state.store.stale_seconds() is not None)
        shown = await client.get(kept)
        assert (shown.status_code, shown.json()["events"][1]["count"]) == (200, 1)
        assert "Tally-Stale" in shown.headers
        async with serving(settings("c")) as c, c.client() as fresh:
            assert (await fresh.get(kept)).json()["code"] == "store-unavailable"
