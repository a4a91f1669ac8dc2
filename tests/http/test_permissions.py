"""Who may ask for what: every route as every role, over HTTP and Socket.IO; keys, origins and hosts."""

import asyncio
import contextlib
import hmac
import itertools
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
import socketio
import websockets
from starlette.routing import Mount

from app.cli import print_greeting
from app.http.errors import Problem
from app.http.permissions import ROLES, Permissions
from app.http.rate_limits import RateLimits
from app.main import create_app
from app.settings import Settings
from tests.server.test_cli import run_tally
from tests.support.nginx import Proxy
from tests.support.redis_servers import RedisServer
from tests.support.servers import Process, Served, eventually, serving, settings_for

KEYS = {"read": "read-" + "r" * 16, "write": "write-" + "w" * 16, "admin": "admin-" + "a" * 16, "wrong": "x" * 20}
CLOSED = {f"{role}_keys": KEYS[role] for role in ("read", "write", "admin")}
MAY = {
    "anyone": {"none", "wrong", "read", "write", "admin"},
    "live": {"none", "wrong", "read", "write", "admin"},
    "read": {"read", "admin"},
    "badge": {"read", "admin"},
    "embed": {"read", "admin"},
    "write": {"write", "admin"},
    "admin": {"admin"},
}
SHOP, EVIL = "https://shop.example", "https://evil.example"
SOCKETS = "/socket.io/?EIO=4&transport="


def bearer(role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[role]}"} if role != "none" else {}


def routes(app: object) -> set[str]:
    """All that an app serves, in the words of the table."""
    mounts = {f"* {route.path}" for route in app.routes if isinstance(route, Mount)}
    others = [route for route in app.routes if not isinstance(route, Mount)]
    return mounts | {f"{method} {route.path_format}" for route in others for method in route.methods - {"HEAD"}}


@pytest.fixture
async def serve(tmp_path: Path, redis_server: RedisServer) -> AsyncIterator[Callable[..., "asyncio.Future[Served]"]]:
    @contextlib.asynccontextmanager
    async def served(**chosen: object) -> AsyncIterator[Served]:
        async with serving(settings_for("memory", tmp_path, redis_server, **{"admin_keys": "", **chosen})) as one:
            yield one

    return served


def problem(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.json()["status"] == status
    return answer.json()["detail"]


async def statuses(tally: Served, role: str) -> dict[str, int]:
    """What each route of the table answers this role. A route may stream without end, so its head must do."""
    seen = {}
    async with tally.client() as client:
        for route in sorted(routes(tally.app) & set(ROLES)):
            method, path = route.split(" ")
            path = path.replace("{day}", "2026-01-01").replace("/socket.io", SOCKETS + "polling")
            url = re.sub(r"\{\w+\}", "a", path)
            method = method.replace("*", "GET")
            async with client.stream(method, url, headers=bearer(role)) as answer:
                seen[route] = answer.status_code
    return seen


@pytest.mark.catches("the table is not asked", "app/main.py", "dependencies=[Depends(services.permissions.guard)],", "")
@pytest.mark.catches(
    "the shortcut asks nobody",
    "app/http/routes/count.py",
    "            self._access.admit(scope, f\"{scope['method']} {EVENT_ROUTE}\")\n",
    "",
)
@pytest.mark.catches(
    "any key will do",
    "app/http/permissions.py",
    "if role in self._closed - holds:",
    "if role in self._closed and not holds:",
)
async def test_each_route_answers_each_role_as_the_table_says(serve) -> None:
    async with serve(**CLOSED) as tally:
        for role in ("none", *KEYS):
            seen = await statuses(tally, role)
            for route, status in seen.items():
                if role in MAY[ROLES[route]]:
                    assert status not in {401, 403}, (role, route)
                else:
                    assert status == (401 if role in {"none", "wrong"} else 403), (role, route)
    assert len(seen) > 15


async def test_without_keys_all_but_administration_is_open(serve) -> None:
    async with serve() as tally:
        for role in ("none", *KEYS):
            for route, status in (await statuses(tally, role)).items():
                assert status != 401, (role, route)
                assert (status == 403) == (ROLES[route] == "admin"), (role, route)


async def test_without_an_admin_key_it_is_said_which_setting_lets_somebody_administer() -> None:
    for chosen in ({}, {"read_keys": KEYS["read"], "write_keys": KEYS["write"]}):
        settings = Settings(TALLY_STORE="memory://", **chosen)
        access = Permissions(settings, RateLimits(settings))
        for route in ("PUT /event/{name}", "POST /reset", "GET /export"):
            for headers in ([], [(b"authorization", f"Bearer {KEYS['write']}".encode())]):
                with pytest.raises(Problem) as refused:
                    access.admit({"type": "http", "headers": headers}, route)
                assert refused.value.status_code == 403
                assert "TALLY_ADMIN_KEYS" in refused.value.detail


async def test_every_route_is_in_the_table_and_one_that_is_not_is_refused(tmp_path: Path) -> None:
    app = create_app(Settings(TALLY_STORE="memory://", **CLOSED))
    assert routes(app) - set(ROLES) == set()
    app.add_api_route("/forgotten", lambda: "secret")
    app.mount("/lost", app.access.mounted("/lost", app))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://tally") as client:
        for path in ("/forgotten", "/lost/health"):
            assert "nothing says who" in problem(await client.get(path, headers=bearer("admin")), 403)


def test_who_may_change_what_was_counted_is_named_here_again() -> None:
    admin = {route for route, role in ROLES.items() if role == "admin"}
    assert admin == {
        "PUT /event/{name}", "DELETE /event/{name}", "POST /reset", "GET /export", "POST /import", "DELETE /user/{id}",
    }  # fmt: skip
    assert {route for route, role in ROLES.items() if role == "anyone"} == {
        "GET /", "GET /kiosk", "GET /health", "GET /docs", "GET /openapi.json", "* /static", "* /docs/assets",
    }  # fmt: skip


AUTHS = [None, {}, {"key": 5}, {"key": [KEYS["read"]]}, "key", ["\ud800"], {"key": "\ud800"}, {"token": KEYS["read"]}]
AUTHS += [{"key": KEYS["read"] + "x"}, *({"key": key} for key in KEYS.values())]
WATCHERS = [{"key": KEYS["read"]}, {"key": KEYS["admin"]}]


def assert_told(refusal: dict, auth: object) -> None:
    assert refusal["data"] == {"status": 403 if auth == {"key": KEYS["write"]} else 401}
    assert "key" in refusal["message"]


@pytest.mark.catches(
    "everybody may watch", "app/live/broadcaster.py", 'self._admit(auth, environ["asgi.scope"])', "pass"
)
async def test_a_page_that_may_not_read_gets_an_error_and_nothing_else(serve) -> None:
    async with serve(**CLOSED) as tally, tally.client() as client:
        for auth, namespace in itertools.product(AUTHS, ("/", "/live")):
            heard: list[tuple] = []
            page = socketio.AsyncClient(reconnection=False)
            for event in ("*", "connect_error"):
                page.on(event, lambda *told, heard=heard: heard.append(told), namespace=namespace)
            connecting = page.connect(tally.url, namespaces=[namespace], auth=auth, transports=["websocket"])
            if auth in WATCHERS:
                await connecting
                await client.post("/event/a", headers=bearer("write"))
                await eventually(lambda heard=heard: [told for told in heard if told[0] in {"update", "changes"}])
                await page.disconnect()
            else:
                with pytest.raises(socketio.exceptions.ConnectionError):
                    await connecting
                ((refusal,),) = heard
                assert_told(refusal, auth)


@pytest.mark.parametrize("namespace", ["", "/live,"])
async def test_a_page_that_polls_and_may_not_read_gets_an_error_and_nothing_else(serve, namespace: str) -> None:
    async with serve(**CLOSED) as tally, tally.client() as client:
        await client.post("/event/a", headers=bearer("write"))
        for auth in AUTHS:
            sid = json.loads((await client.get(SOCKETS + "polling")).text[1:])["sid"]
            session = f"{SOCKETS}polling&sid={sid}"
            await client.post(session, content=f"40{namespace}{json.dumps(auth) if auth else ''}")
            first, *more = (await client.get(session)).text.split("\x1e")
            if auth in WATCHERS:
                assert first.startswith(f"40{namespace}")
            else:
                assert first.startswith(f"44{namespace}")
                assert_told(json.loads(first.removeprefix(f"44{namespace}")), auth)
                assert not more


async def test_what_a_refusal_says(serve) -> None:
    async with serve(read_keys=CLOSED["read_keys"], write_keys=CLOSED["write_keys"]) as tally, tally.client() as client:
        for path in ("/event/a", "/events"):
            answer = await client.post(path, content=b"a")
            assert "Authorization: Bearer" in problem(answer, 401)
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert answer.json()["counted"] == "no"
            answer = await client.post(path, headers=bearer("wrong"))
            assert "not known" in problem(answer, 401)
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert "may not" in problem(await client.post(path, headers=bearer("read")), 403)
        assert (await client.get("/health")).status_code == 200


@pytest.mark.catches(
    "a wrong key is none", "app/http/permissions.py", '_HOLDS["admin"] if self._keys else self._closed', "self._closed"
)
async def test_a_key_that_is_not_known_is_refused_also_where_none_is_needed(serve) -> None:
    """Taken for nobody, a client with a key of yesterday would lose its Idempotency-Keys and count again."""
    async with serve(admin_keys=KEYS["admin"], countapi=True) as tally:
        for role in ("none", "admin", "wrong"):
            for route, status in (await statuses(tally, role)).items():
                looked_at = ROLES[route] not in {"anyone", "live"}
                assert (status == 401) == (looked_at and (role == "wrong" or (role, ROLES[route]) == ("none", "admin")))
        async with tally.client() as client:  # what a proxy's own password is shown by is no key
            assert (await client.post("/event/a", headers={"Authorization": "Basic eDp5"})).status_code == 200
        page = socketio.AsyncClient(reconnection=False)
        with pytest.raises(socketio.exceptions.ConnectionError):
            await page.connect(tally.url, auth={"key": KEYS["wrong"]}, transports=["websocket"])


GUESSED = {"read_limit": "20/hour", "write_limit": "20/hour"}


@pytest.mark.catches(
    "guesses cost nothing",
    "app/http/permissions.py",
    'self._limits.charge(HTTPConnection(scope), "read" if role in _HOLDS["read"] else "write")',
    "pass",
)
@pytest.mark.parametrize("path", ["/event/a", "/reset", "/metrics"])
async def test_guessing_keys_costs_what_asking_does(serve, path: str) -> None:
    """Beyond the limit of an address the right key is refused like a wrong one, and so cannot be told."""
    method = "GET" if path == "/metrics" else "POST"
    async with serve(**CLOSED, **GUESSED) as tally, tally.client() as client:
        tried = [
            (await client.request(method, path, headers={"Authorization": f"Bearer guess-{i:011}"})).status_code
            for i in range(25)
        ]
        assert tried == [401] * 20 + [429] * 5
        assert (await client.request(method, path)).status_code == 401
        assert (await client.request(method, path, headers=bearer("admin"))).status_code == 429
        async with tally.client("127.0.0.2") as other:
            assert (await other.request(method, path, headers=bearer("admin"))).status_code == 200


@pytest.mark.catches(
    "a page may guess for good",
    "app/http/permissions.py",
    'self._limits.charge(HTTPConnection(scope), "read", 0)',
    "pass",
)
async def test_guessing_keys_over_socketio_costs_the_same(serve) -> None:
    async with serve(**CLOSED, **GUESSED) as tally, tally.client() as client:

        async def connect(key: str) -> str:
            path = f"{SOCKETS}polling&sid={json.loads((await client.get(SOCKETS + 'polling')).text[1:])['sid']}"
            await client.post(path, content="40" + json.dumps({"key": key}))
            told = (await client.get(path)).text
            return told[:2] if told.startswith("40") else json.loads(told[2:])["data"]["status"]

        assert await connect(KEYS["read"]) == "40"
        assert [await connect(f"guess-{i:011}") for i in range(25)] == [401] * 20 + [429] * 5
        assert await connect(KEYS["read"]) == 429


@pytest.mark.catches(
    "strangers stay",
    "app/live/broadcaster.py",
    "            await socket.close(wait=False)\n",
    "            continue\n",
)
@pytest.mark.catches(
    "a WebSocket stays", "app/live/broadcaster.py", "            socket.queue.put_nowait(None)", "            pass"
)
@pytest.mark.catches(
    "pages are cut", "app/live/broadcaster.py", "sockets.keys() - {client.engine_id for client in self._clients.values()}",
    "set(sockets.keys())",
)  # fmt: skip
async def test_who_was_refused_or_never_asked_does_not_keep_its_connection(serve) -> None:
    async with serve(**CLOSED) as tally, tally.client() as client, contextlib.AsyncExitStack() as opened:
        url = tally.url.replace("http", "ws", 1) + SOCKETS + "websocket"
        silent, refused, admitted = [await opened.enter_async_context(websockets.connect(url)) for _ in range(3)]
        await refused.send('40{"key":"xxxxxxxxxxxxxxxxxxxx"}')
        await admitted.send(f'40{{"key":"{KEYS["read"]}"}}')
        assert [(await page.recv())[0] for page in (silent, refused, admitted)] == ["0"] * 3
        assert (await refused.recv()).startswith("44")
        assert (await admitted.recv()).startswith("40")
        polled = f"{SOCKETS}polling&sid={json.loads((await client.get(SOCKETS + 'polling')).text[1:])['sid']}"
        cut = tally.app.state.jobs.get_job("cut_strangers").func
        await cut()
        await client.post(polled, content="3")
        await cut()
        for page in (silent, refused):
            with pytest.raises(websockets.ConnectionClosed):
                while True:
                    await page.recv()
        assert problem(await client.post(polled, content="3"), 400) == "no such session"
        await client.post("/event/a", headers=bearer("write"))
        while not (await admitted.recv()).startswith('42["update"'):
            pass


@pytest.mark.catches(
    "keys are compared until they differ",
    "app/http/permissions.py",
    "if compare_digest(digest, given)",
    "if digest == given",
)
def test_a_key_is_compared_with_all_there_are_whole_and_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time it takes says neither how much of a key was right nor which one it was."""
    compared: list[tuple[bytes, bytes]] = []

    def watched(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr("app.http.permissions.compare_digest", watched)
    settings = Settings(TALLY_STORE="memory://", **CLOSED)
    access = Permissions(settings, RateLimits(settings))
    for key in (*KEYS.values(), KEYS["read"][:-1], "x"):
        compared.clear()
        scope = {"type": "http", "headers": [(b"authorization", f"Bearer {key}".encode())], "client": None}
        with contextlib.suppress(Problem):
            access.admit(scope, "GET /events")
        assert len(compared) == 3
        assert {len(digest) for pair in compared for digest in pair} == {16}
        assert not [pair for pair in compared if key.encode() in pair]


SECOND = "second-key-of-two"
FORMS = {
    f"Bearer {KEYS['read']}": 200,
    f"bearer  {KEYS['read']}": 200,
    f"Bearer {SECOND}": 200,
    f"Bearer {KEYS['read'].upper()}": 401,
    f"Bearer {KEYS['read'][:-1]}": 401,
    f"Bearer {KEYS['read']} {SECOND}": 401,
    f"Bearer {KEYS['read']},{SECOND}": 401,
    f"Basic {KEYS['read']}": 401,
    KEYS["read"]: 401,
    "Bearer": 401,
    "": 401,
    b"Bearer \xff\xfe": 401,
    "Bearer " + "x" * 8000: 401,
}


async def test_a_key_stands_in_one_header_and_two_may_be_valid(serve) -> None:
    async with serve(read_keys=f"{KEYS['read']}, {SECOND}") as tally, tally.client() as client:
        for header, status in FORMS.items():
            assert (await client.get("/events", headers={"Authorization": header})).status_code == status, header
        for query in ("key", "token", "access_token", "authorization"):
            assert (await client.get(f"/events?{query}={KEYS['read']}")).status_code == 401


async def test_a_key_in_two_lists_has_both_roles(serve) -> None:
    async with serve(read_keys=KEYS["read"], write_keys=KEYS["read"]) as tally, tally.client() as client:
        assert (await client.post("/event/a", headers=bearer("read"))).status_code == 200
        assert (await client.get("/event/a", headers=bearer("read"))).status_code == 200
        assert "TALLY_ADMIN_KEYS" not in (await client.get("/event/a", headers=bearer("read"))).text


async def test_badges_and_embeds_may_be_open_while_reading_is_not() -> None:
    def closed(**chosen: object) -> set[str]:
        return create_app(Settings(TALLY_STORE="memory://", **chosen)).access._closed

    assert closed() == {"admin"}
    assert closed(**CLOSED) == {"read", "badge", "embed", "write", "hit", "admin"}
    assert closed(read_keys=KEYS["read"], public_badges=True) == {"read", "embed", "admin"}
    assert closed(read_keys=KEYS["read"], embed_origins=SHOP) == {"read", "badge", "admin"}


@pytest.mark.catches(
    "what clients say is logged", "app/live/broadcaster.py", "engineio_logger=_packets", "engineio_logger=log"
)
async def test_a_key_is_neither_shown_nor_logged(serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    quiet = logging.getLogger("the client's own")
    async with serve(**CLOSED) as tally, tally.client() as client:
        said = [repr(tally.settings), str(tally.settings.model_dump())]
        for role, key in KEYS.items():
            for path in ("/events", "/openapi.json", "/health", "/metrics", "/nothing"):
                said.append((await client.get(path, headers=bearer(role))).text)  # noqa: PERF401 # one by one
            said.append((await client.post("/event/a", content=b"{", headers=bearer(role))).text)
            page = socketio.AsyncClient(reconnection=False, logger=quiet, engineio_logger=quiet)
            with contextlib.suppress(socketio.exceptions.ConnectionError):
                await page.connect(tally.url, auth={"key": key}, transports=["websocket"])
            await page.disconnect()
    said += [record.getMessage() for record in caplog.records if record.name != quiet.name]
    assert not [text for text in said if any(key in text for key in KEYS.values())]


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("TALLY_READ_KEYS", "too-short", "16 to 256"),
        ("TALLY_WRITE_KEYS", "long-enough-is-one,too-short", "16 to 256"),
        ("TALLY_ADMIN_KEYS", "schlüssel-mit-umlaut", "visible ASCII"),
        ("TALLY_ADMIN_KEYS_FILE", "/nothing/is/here", "No such file"),
        ("TALLY_ADMIN_KEYS_FILE", "/", "directory"),
        ("TALLY_ADMIN_KEYS_FILE", "/dev/null", "no key in"),
        ("TALLY_ALLOWED_ORIGINS", "https://shop.example/", "without a path"),
        ("TALLY_ALLOWED_ORIGINS", "shop.example", "https://example.com"),
        ("TALLY_EMBED_ORIGINS", "https://a;script-src *", "https://example.com"),
        ("TALLY_ALLOWED_HOSTS", "tally.example:8000", "without a port"),
        ("TALLY_PUBLIC_BY_MAX", "0", "greater than or equal to 1"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line_without_its_value(variable: str, value: str, words: str) -> None:
    ended = run_tally(**{"TALLY_STORE": "memory://", variable: value})
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"tally: {variable}")
    assert words in line
    assert "short" not in line
    assert "umlaut" not in line


def test_the_error_itself_does_not_hold_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLY_ADMIN_KEYS", "secret,also-much-too-secret")
    with pytest.raises(ValueError) as error:
        Settings()
    assert "secret" not in str(error.value)


def test_keys_come_from_a_file_or_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: Callable[..., Process]
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{KEYS['read']}\n{KEYS['admin']}\n")
    app = process(TALLY_STORE="memory://", TALLY_READ_KEYS_FILE=str(file))
    got = [httpx.get(f"{app.url}/events", headers=bearer(role)).status_code for role in ("read", "admin", "write")]
    assert got == [200, 200, 401]
    monkeypatch.setenv("TALLY_READ_KEYS_FILE", str(file))
    assert len(Settings().read_keys) == 2
    monkeypatch.setenv("TALLY_READ_KEYS", KEYS["write"])
    with pytest.raises(ValueError, match="TALLY_READ_KEYS_FILE: set one"):
        Settings()


@pytest.mark.parametrize(
    ("host", "chosen", "words"),
    [
        ("0.0.0.0", {}, "can count and read"),  # noqa: S104 # it is only said
        ("192.0.2.1", {"write_keys": KEYS["write"]}, "can read"),
        ("::", {"read_keys": KEYS["read"]}, "can count"),
        ("::", CLOSED, None),
        ("127.0.0.1", {}, None),
        ("localhost", {}, None),
        ("::1", {}, None),
    ],
)
def test_the_first_lines_warn_where_others_reach_what_is_open(
    capsys: pytest.CaptureFixture, host: str, chosen: dict, words: str | None
) -> None:
    print_greeting(Settings(TALLY_STORE="memory://", host=host, **chosen), "", consume=False)
    said = capsys.readouterr().out
    warnings = [line for line in said.splitlines() if line.startswith("Warning")]
    assert ("Authorization: Bearer" in said) == ("write_keys" in chosen)
    assert not [key for key in KEYS.values() if key in said]
    assert len(warnings) == (words is not None)
    assert not words or f"{words}." in warnings[0]


@pytest.mark.catches(
    "all have one space of keys", "app/http/routes/count.py", "{access.caller(request.scope)} {route}", "{route}"
)
async def test_an_idempotency_key_belongs_to_its_clients_key(serve) -> None:
    """Where all may write, who shows no key of ours shares the keys of the nameless."""
    async with serve(read_keys=KEYS["read"], admin_keys=KEYS["admin"]) as tally, tally.client() as client:

        async def count(role: str, path: str = "/event/a") -> tuple[int, bool]:
            body = {"a": 1} if path == "/events" else None
            answer = await client.post(path, json=body, headers={"Idempotency-Key": "k", **bearer(role)})
            return answer.json().get("count") or answer.json()["counts"]["a"], "Idempotent-Replayed" in answer.headers

        assert [await count("none"), await count("none")] == [(1, False), (1, True)]
        assert [await count("admin"), await count("admin"), await count("read")] == [(2, False), (2, True), (3, False)]
        assert [await count(role, "/events") for role in ("none", "admin", "admin")] == [
            (4, False), (5, False), (5, True),
        ]  # fmt: skip


async def test_who_has_no_key_to_write_counts_in_small_amounts(serve) -> None:
    chosen = {"read_keys": KEYS["read"], "admin_keys": KEYS["admin"], "public_by_max": 15}
    async with serve(**chosen) as tally, tally.client() as client:
        for role in ("none", "read"):
            sent = {"headers": bearer(role)}
            assert (await client.post("/event/a", json={"by": 15}, **sent)).status_code == 200
            detail = problem(await client.post("/event/a", json={"by": 16}, **sent), 422)
            assert detail == "by: at most 15 without a key to write (TALLY_PUBLIC_BY_MAX)"
            for body in (
                b'{"a":10,"b":16}',
                b'[{"event":"a"},{"event":"b","by":16}]',
                b'{"event":"a"}\n{"event":"b","by":17}',
            ):
                answer = await client.post("/events", content=body, **sent)
                assert problem(answer, 422).startswith("item 1: at most 15")
                assert answer.json()["counted"] == "no"
        assert (await client.post("/events", content=b"a\na\n" * 10)).status_code == 200
        assert (await client.post("/events", content=b"")).status_code == 200
        assert (await client.post("/event/a", json={"by": 1_000_000}, headers=bearer("admin"))).status_code == 200
        assert (await client.post("/events", json={"a": 1_000_000}, headers=bearer("admin"))).status_code == 200
        assert (await client.get("/events", headers=bearer("read"))).json() == {"a": 2_000_050}


ALLOWED = {"allowed_origins": f"{SHOP},http://localhost:5173"}
OWN = "http://{host}"
ANY_ORIGIN = pytest.mark.catches(
    "origins are not looked at", "app/http/permissions.py", "if role in _OWN_PAGES:", "if role is None:"
)
ANY_NAME = pytest.mark.catches(
    "names are not looked at", "app/http/permissions.py", "if not self._serves(", "if headers is None and self._serves("
)


@pytest.mark.parametrize(
    ("chosen", "origin", "writes"),
    [
        ({}, None, True),
        ({}, OWN, True),
        pytest.param({}, SHOP, False, marks=ANY_ORIGIN),
        ({}, "null", False),
        ({}, "https://{host}", False),
        ({}, "http://localhost", False),
        (ALLOWED, None, True),
        (ALLOWED, OWN, True),
        (ALLOWED, SHOP, True),
        (ALLOWED, "http://localhost:5173", True),
        (ALLOWED, "http://shop.example", False),
        (ALLOWED, "https://shop.example.evil.example", False),
        (ALLOWED, "https://shop.example:8443", False),
        (ALLOWED, EVIL, False),
        (ALLOWED, "null", False),
        ({"allowed_origins": "*"}, EVIL, True),
        ({"allowed_origins": "*"}, "null", True),
    ],
)
async def test_pages_of_foreign_origins(serve, chosen: dict, origin: str | None, writes: bool) -> None:
    """A page writes and watches where its origin may; the answers that it may read say so."""
    async with serve(**chosen) as tally, tally.client() as client:
        origin = origin and origin.format(host=tally.url.removeprefix("http://"))
        headers = {"Origin": origin} if origin else {}
        shared = writes and origin not in {None, tally.url}
        told = {"*": "*"}.get(chosen.get("allowed_origins"), origin)
        for method, path in (("POST", "/event/a"), ("POST", "/events"), ("GET", SOCKETS + "polling")):
            answer = await client.request(method, path, headers=headers)
            if writes:
                assert answer.status_code == 200, answer.text
            else:
                assert "TALLY_ALLOWED_ORIGINS" in problem(answer, 403)
        for path in ("/event/a", "/events?limit=0", "/nothing", "/static/app.css", "/health", "/openapi.json"):
            answer = await client.get(path, headers=headers)
            assert answer.status_code == {"/nothing": 404, "/events?limit=0": 422}.get(path, 200)
            if shared:
                assert answer.headers["Access-Control-Allow-Origin"] == told
                assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]
            elif told != "*":
                assert "Access-Control-Allow-Origin" not in answer.headers
            assert answer.headers.get("Vary") == ("Origin" if chosen == ALLOWED else None)
        asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        for path in ("/event/a", "/events", "/nothing"):
            answer = await client.options(path, headers=headers | asks)
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.status_code == (204 if writes else 403)
            if shared:
                assert answer.headers["Access-Control-Allow-Origin"] == told
                assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]
                assert "Idempotency-Key" in answer.headers["Access-Control-Allow-Headers"]
        await assert_websocket(tally, headers, 101 if writes else 403)


async def assert_websocket(tally: Served, headers: dict[str, str], status: int) -> None:
    url = tally.url.replace("http", "ws", 1) + SOCKETS + "websocket"
    try:
        async with websockets.connect(url, additional_headers=headers) as page:
            assert (await page.recv())[0] == "0"
        assert status == 101
    except websockets.exceptions.InvalidStatus as refused:
        assert refused.response.status_code == status
        assert refused.response.headers["Content-Type"] == "application/problem+json"
        assert refused.response.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_page_reads_whatever_it_is_answered(serve) -> None:
    """The headers that let it are on refusals, on what a limit or a key refuses, and on the way past the router."""
    async with serve(**ALLOWED, write_keys=KEYS["write"], write_limit="3/minute") as tally, tally.client() as client:
        sent = {"headers": {"Origin": SHOP, **bearer("write"), "Idempotency-Key": "k"}}
        answers = [await client.post("/event/a", **sent) for _ in range(2)]
        answers += [await client.post("/event/a%00", **sent)]
        answers += [await client.post(path, **sent) for path in ("/event/a", "/events", "/event/a")]
        answers += [await client.post(path, headers={"Origin": SHOP}) for path in ("/event/a", "/events")]
        answers += [await client.delete("/event/a", **sent)]
        assert [answer.status_code for answer in answers][:8] == [200, 200, 422, 200, 429, 429, 401, 401]
        for answer in answers:
            assert answer.headers["Access-Control-Allow-Origin"] == SHOP
            assert answer.headers["Vary"] == "Origin"
            exposed = answer.headers["Access-Control-Expose-Headers"].split(", ")
            assert {"Idempotent-Replayed", "Link", "Retry-After", "Tally-Stale"} <= set(exposed)


@pytest.mark.parametrize(
    ("chosen", "ours", "foreign"),
    [
        (
            {},
            ["127.0.0.1", "127.0.0.1:8000", "[::1]:8000", "10.1.2.3", "localhost", "LOCALHOST:80", "tally", ""],
            [
                "evil.example",
                "evil.example:8000",
                "127.0.0.1.evil.example",
                "localhost.",
                "1.2.3",
                "a.b[::1]",
                "[::1].x",
            ],
        ),
        (
            {"allowed_hosts": "tally.example,b.example"},
            ["tally.example", "TALLY.example:8443", "b.example", "127.0.0.1:8000", "localhost"],
            ["evil.example", "tally.example.evil.example", "x.tally.example"],
        ),
        ({"host": "192.0.2.1"}, ["tally.example", "127.0.0.1"], []),
        pytest.param(
            {"host": "192.0.2.1", "allowed_hosts": "tally.example"}, ["tally.example"], ["evil.example"], marks=ANY_NAME
        ),
        ({"allowed_hosts": "*"}, ["any.example"], []),
    ],
)
async def test_names_by_which_it_is_asked(serve, chosen: dict, ours: list[str], foreign: list[str]) -> None:
    """A name that its owner lets point here is refused: its pages would be of the same origin."""
    async with serve(**chosen) as tally, tally.client() as client:
        for host, known in [*((name, True) for name in ours), *((name, False) for name in foreign)]:
            headers = {"Host": host, "Origin": f"http://{host.lower()}"} if host else {"Host": host}
            for method, path in (
                ("POST", "/event/a"),
                ("POST", "/events"),
                ("GET", "/health"),
                ("GET", "/static/app.css"),
                ("OPTIONS", "/event/a"),
                ("GET", "/nothing"),
            ):
                answer = await client.request(method, path, headers=headers)
                assert (answer.status_code == 421) != known, host
                if not known:
                    assert "TALLY_ALLOWED_HOSTS" in problem(answer, 421)
            if host:
                await assert_host(tally, host, known)


async def assert_host(tally: Served, host: str, known: bool) -> None:
    """A WebSocket asked for by this name."""
    address, port = tally.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(address, int(port))
    head = f"GET {SOCKETS}websocket HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    writer.write(f"{head}Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
    assert (await reader.readline()).split()[1] == (b"101" if known else b"421")
    writer.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_behind_the_proxy_the_origin_is_the_one_that_a_browser_sees(process, tmp_path: Path, scheme: str) -> None:
    """TLS that ends at the proxy is told by X-Forwarded-Proto, which a node believes from a trusted proxy alone."""
    trusting = process(TALLY_STORE="memory://", TALLY_TRUSTED_PROXIES="127.0.0.1")
    proxy = Proxy(tmp_path, [trusting.port], {"X-Forwarded-Proto $scheme": f"X-Forwarded-Proto {scheme}"}).start()
    try:
        place = proxy.url.removeprefix("http://")
        for origin, status in ((f"http://{place}", 200), (f"https://{place}", 200), (EVIL, 403)):
            expected = 403 if origin != f"{scheme}://{place}" else status
            assert httpx.post(f"{proxy.url}/event/a", headers={"Origin": origin}).status_code == expected
            assert httpx.get(f"{proxy.url}{SOCKETS}polling", headers={"Origin": origin}).status_code == expected
    finally:
        proxy.stop()
    alone = process(TALLY_STORE="memory://")
    for said, status in (("http", 200), ("https", 200)):
        headers = {"Origin": alone.url, "X-Forwarded-Proto": said}
        assert httpx.post(f"{alone.url}/event/a", headers=headers).status_code == status
