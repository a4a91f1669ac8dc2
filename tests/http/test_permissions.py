"""The permission of every route, for every role."""

import re
from pathlib import Path

import httpx
import pytest
import socketio
from starlette.routing import Mount

from app.http.errors import Problem
from app.http.origins import Origins
from app.http.permissions import ROUTE_PERMISSIONS, Permissions
from app.http.rate_limits import RateLimits
from app.main import create_app
from app.settings import Settings
from tests.http.api_keys import CLOSED, KEYS, bearer
from tests.http.problems import detail_of
from tests.support.servers import RunningApp

MAY = {
    "anyone": {"none", "wrong", "read", "write", "admin"},
    "live": {"none", "wrong", "read", "write", "admin"},
    "read": {"read", "admin"},
    "badge": {"read", "admin"},
    "embed": {"read", "admin"},
    "write": {"write", "admin"},
    "hit": {"write", "admin"},
    "admin": {"admin"},
}

SHOP, EVIL = "https://shop.example", "https://evil.example"
SOCKETS = "/socket.io/?EIO=4&transport="


def routes(app: object) -> set[str]:
    """Return all routes and mounts of an app in the form of ROUTE_PERMISSIONS."""
    mounts = {f"* {route.path}" for route in app.routes if isinstance(route, Mount)}
    others = [route for route in app.routes if not isinstance(route, Mount)]
    return mounts | {f"{method} {route.path_format}" for route in others for method in route.methods - {"HEAD"}}


async def statuses(tally: RunningApp, role: str) -> dict[str, int]:
    """Return the status of each route for this role. Only the head is read, because a stream has no end."""
    seen = {}
    async with tally.client() as client:
        for route in sorted(routes(tally.app) & set(ROUTE_PERMISSIONS)):
            method, path = route.split(" ")
            path = path.replace("{day}", "2026-01-01").replace("/socket.io", SOCKETS + "polling")
            url = re.sub(r"\{\w+\}", "abc", path)
            method = method.replace("*", "GET")
            async with client.stream(method, url, headers=bearer(role)) as response:
                seen[route] = response.status_code
    return seen


@pytest.mark.fails_on_mutant(
    "routes are not authorized", "app/http/app.py", "dependencies=[Depends(permissions.authorize_request)],", ""
)
@pytest.mark.fails_on_mutant(
    "the router bypass does not authorize",
    "app/http/router_bypass.py",
    "            self._permissions.authorize(scope, f\"{scope['method']} {EVENT_ROUTE}\")\n",
    "",
)
@pytest.mark.fails_on_mutant(
    "any known key is accepted",
    "app/http/permissions.py",
    "if permission in self.key_required - granted:",
    "if permission in self.key_required and not granted:",
)
async def test_each_route_responds_to_each_role_as_in_the_table(serve) -> None:
    async with serve(**CLOSED, countapi=True) as tally:
        for role in ("none", *KEYS):
            seen = await statuses(tally, role)
            for route, status in seen.items():
                if role in MAY[ROUTE_PERMISSIONS[route]]:
                    assert status not in {401, 403}, (role, route)
                else:
                    assert status == (401 if role in {"none", "wrong"} else 403), (role, route)
    assert len(seen) > 15


async def test_without_keys_everything_except_admin_routes_is_open(serve) -> None:
    async with serve(countapi=True) as tally:
        for role in ("none", *KEYS):
            for route, status in (await statuses(tally, role)).items():
                assert status != 401, (role, route)
                assert (status == 403) == (ROUTE_PERMISSIONS[route] == "admin"), (role, route)


async def test_without_an_admin_key_the_error_names_the_setting() -> None:
    for chosen in ({}, {"read_keys": KEYS["read"], "write_keys": KEYS["write"]}):
        settings = Settings(TALLY_STORE="memory://", **chosen)
        permissions = Permissions(settings, Origins(settings), RateLimits(settings))
        for route in ("PUT /event/{name}", "POST /reset", "GET /export"):
            for headers in ([], [(b"authorization", f"Bearer {KEYS['write']}".encode())]):
                with pytest.raises(Problem) as rejected:
                    permissions.authorize({"type": "http", "headers": headers}, route)
                assert rejected.value.status_code == 403
                assert "TALLY_ADMIN_KEYS" in rejected.value.detail


async def test_every_route_is_in_the_table_and_a_missing_one_is_rejected(tmp_path: Path) -> None:
    app = create_app(Settings(TALLY_STORE="memory://", countapi=True, **CLOSED))
    assert routes(app) - set(ROUTE_PERMISSIONS) == set()
    app.add_api_route("/forgotten", lambda: "secret")
    app.mount("/lost", app.permissions.authorize_mount("/lost", app))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://tally") as client:
        for path in ("/forgotten", "/lost/health"):
            assert "no access rule" in detail_of(await client.get(path, headers=bearer("admin")), 403)


def test_the_admin_routes_and_the_open_routes_are_listed_here_again() -> None:
    admin = {route for route, permission in ROUTE_PERMISSIONS.items() if permission == "admin"}
    assert admin == {
        "PUT /event/{name}", "DELETE /event/{name}", "POST /reset", "GET /export", "POST /import", "DELETE /user/{id}",
        "GET /create/{key}", "GET /create/{ns}/{key}", "POST /create/{ns}/{key}", "GET /set/{key}",
        "GET /set/{ns}/{key}", "POST /set/{ns}/{key}", "POST /reset/{ns}/{key}", "POST /delete/{ns}/{key}",
        "GET /backup",
        "GET /alerts", "POST /alerts", "GET /alerts/{id}", "PUT /alerts/{id}", "DELETE /alerts/{id}",
        "POST /alerts/{id}/test",
        "PUT /goals/{name}", "DELETE /goals/{name}",
        "DELETE /notes/{id}",
        "GET /shares", "POST /shares", "DELETE /shares/{id}",
    }  # fmt: skip
    assert {route for route, permission in ROUTE_PERMISSIONS.items() if permission == "anyone"} == {
        "GET /", "GET /kiosk", "GET /health", "GET /health/live", "GET /health/ready", "GET /docs", "GET /docs/errors",
        "GET /openapi.json", "* /static", "* /docs/assets", "GET /healthcheck", "GET /permissions",
        "GET /share/{token}", "GET /share/{token}/counts", "GET /share/{token}/stream",
    }  # fmt: skip


async def test_bodies_and_headers_of_401_and_403(serve) -> None:
    async with serve(read_keys=CLOSED["read_keys"], write_keys=CLOSED["write_keys"]) as tally, tally.client() as client:
        for path in ("/event/a", "/events"):
            response = await client.post(path, content=b"a")
            assert "Authorization: Bearer" in detail_of(response, 401)
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert response.json()["counted"] == "no"
            response = await client.post(path, headers=bearer("wrong"))
            assert "unknown API key" in detail_of(response, 401)
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert "does not have the write role" in detail_of(await client.post(path, headers=bearer("read")), 403)
        assert (await client.get("/health")).status_code == 200


@pytest.mark.fails_on_mutant(
    "an unknown key is taken for none",
    "app/http/permissions.py",
    'GRANTS["admin"] if self._grants else self.key_required',
    "self.key_required",
)
async def test_an_unknown_key_is_rejected_even_where_none_is_required(serve) -> None:
    """If it were taken for anonymous, a client with an expired key would lose its idempotency keys and count twice."""
    async with serve(admin_keys=KEYS["admin"], countapi=True) as tally:
        for role in ("none", "admin", "wrong"):
            for route, status in (await statuses(tally, role)).items():
                permission = ROUTE_PERMISSIONS[route]
                is_checked = permission not in {"anyone", "live"}
                assert (status == 401) == (is_checked and (role == "wrong" or (role, permission) == ("none", "admin")))
        async with tally.client() as client:
            # Basic credentials are those of a proxy, and no API key.
            assert (await client.post("/event/a", headers={"Authorization": "Basic eDp5"})).status_code == 200
        page = socketio.AsyncClient(reconnection=False)
        with pytest.raises(socketio.exceptions.ConnectionError):
            await page.connect(tally.url, auth={"key": KEYS["wrong"]}, transports=["websocket"])


@pytest.mark.fails_on_mutant(
    "an unknown key may do what is open",
    "app/http/permissions.py",
    "granted if key and self._grants and not granted",
    "granted if False",
)
async def test_permissions_tells_what_a_key_may_do(serve) -> None:
    async def permitted(tally: RunningApp) -> dict[str, str]:
        async with tally.client() as client:
            found = {role: (await client.get("/permissions", headers=bearer(role))).json() for role in ("none", *KEYS)}
        return {role: " ".join(name for name, granted in may.items() if granted) for role, may in found.items()}

    everything = "read write admin"
    async with serve(**CLOSED) as tally:
        assert await permitted(tally) == {
            "none": "",
            "wrong": "",
            "read": "read",
            "write": "write",
            "admin": everything,
        }
    async with serve(admin_keys=KEYS["admin"], write_keys=KEYS["write"]) as tally:
        may = {"none": "read", "wrong": "", "read": "", "write": "read write", "admin": everything}
        assert await permitted(tally) == may
    async with serve() as tally:
        assert set((await permitted(tally)).values()) == {"read write"}


async def test_badges_and_embeds_may_be_open_when_other_reads_are_not() -> None:
    def required(**chosen: object) -> set[str]:
        return create_app(Settings(TALLY_STORE="memory://", **chosen)).permissions.key_required

    assert required() == {"admin"}
    assert required(**CLOSED) == {"read", "badge", "embed", "write", "hit", "admin"}
    assert required(read_keys=KEYS["read"], public_badges=True) == {"read", "embed", "admin"}
    assert required(read_keys=KEYS["read"], embed_origins=SHOP) == {"read", "badge", "admin"}
