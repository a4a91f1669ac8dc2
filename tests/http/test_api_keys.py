"""API keys: where they come from, how they are sent and compared, and what each of them may do."""

import contextlib
import hmac
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import socketio

from app import cli
from app.http.errors import Problem
from app.http.origins import Origins
from app.http.permissions import Permissions
from app.http.rate_limits import RateLimits
from app.settings import Settings
from tests.http.api_keys import CLOSED, KEYS, bearer
from tests.http.problems import detail_of
from tests.support.servers import Process

LOW_LIMITS = {"read_limit": "20/hour", "write_limit": "20/hour"}


@pytest.mark.fails_on_mutant(
    "a wrong key costs nothing",
    "app/http/permissions.py",
    'self._rate_limits.consume(HTTPConnection(scope), "read" if permission in GRANTS["read"] else "write")',
    "pass",
)
@pytest.mark.parametrize("path", ["/event/a", "/reset", "/metrics"])
async def test_a_wrong_key_consumes_the_rate_limit(serve, path: str) -> None:
    """Over the limit of its address, a client gets 429 even for a right key, so that it cannot guess one."""
    method = "GET" if path == "/metrics" else "POST"
    async with serve(**CLOSED, **LOW_LIMITS) as tally, tally.client() as client:
        statuses = [
            (await client.request(method, path, headers={"Authorization": f"Bearer guess-{i:011}"})).status_code
            for i in range(25)
        ]
        assert statuses == [401] * 20 + [429] * 5
        assert (await client.request(method, path)).status_code == 401
        assert (await client.request(method, path, headers=bearer("admin"))).status_code == 429
        async with tally.client("127.0.0.2") as other:
            assert (await other.request(method, path, headers=bearer("admin"))).status_code == 200


@pytest.mark.fails_on_mutant(
    "keys are not compared in constant time",
    "app/http/permissions.py",
    "if compare_digest(digest, given)",
    "if digest == given",
)
def test_a_key_is_compared_with_all_keys_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time must not depend on how much of a key is right, nor on which key it is."""
    compared: list[tuple[bytes, bytes]] = []

    def recording(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr("app.http.permissions.compare_digest", recording)
    settings = Settings(TALLY_STORE="memory://", **CLOSED)
    permissions = Permissions(settings, Origins(settings), RateLimits(settings))
    for key in (*KEYS.values(), KEYS["read"][:-1], "x"):
        compared.clear()
        scope = {"type": "http", "headers": [(b"authorization", f"Bearer {key}".encode())], "client": None}
        with contextlib.suppress(Problem):
            permissions.authorize(scope, "GET /events")
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


async def test_a_key_is_sent_in_one_header_and_two_keys_may_be_valid(serve) -> None:
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


@pytest.mark.fails_on_mutant(
    "packets are logged", "app/live/socketio.py", "engineio_logger=_packets", "engineio_logger=log"
)
async def test_a_key_is_neither_shown_nor_logged(serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client_log = logging.getLogger("the client's own")
    async with serve(**CLOSED) as tally, tally.client() as client:
        texts = [repr(tally.settings), str(tally.settings.model_dump())]
        for role, key in KEYS.items():
            for path in ("/events", "/openapi.json", "/health", "/metrics", "/nothing"):
                texts.append((await client.get(path, headers=bearer(role))).text)  # noqa: PERF401 # one by one
            texts.append((await client.post("/event/a", content=b"{", headers=bearer(role))).text)
            socket = socketio.AsyncClient(reconnection=False, logger=client_log, engineio_logger=client_log)
            with contextlib.suppress(socketio.exceptions.ConnectionError):
                await socket.connect(tally.url, auth={"key": key}, transports=["websocket"])
            await socket.disconnect()
    texts += [record.getMessage() for record in caplog.records if record.name != client_log.name]
    assert not [text for text in texts if any(key in text for key in KEYS.values())]


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("TALLY_READ_KEYS", "too-short", "16 to 256"),
        ("TALLY_WRITE_KEYS", "long-enough-is-one,too-short", "16 to 256"),
        ("TALLY_ADMIN_KEYS", "schlüssel-mit-umlaut", "visible ASCII"),
        ("TALLY_ADMIN_KEYS_FILE", "/nothing/is/here", "No such file"),
        ("TALLY_ADMIN_KEYS_FILE", "/", "directory"),
        ("TALLY_ADMIN_KEYS_FILE", "/dev/null", "no key"),
        ("TALLY_ALLOWED_ORIGINS", "https://shop.example/", "without a path"),
        ("TALLY_ALLOWED_ORIGINS", "shop.example", "https://example.com"),
        ("TALLY_EMBED_ORIGINS", "https://a;script-src *", "https://example.com"),
        ("TALLY_ALLOWED_HOSTS", "tally.example:8000", "without a port"),
        ("TALLY_PUBLIC_BY_MAX", "0", "greater than or equal to 1"),
    ],
)
def test_an_invalid_setting_is_reported_in_one_line_without_its_value(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["tally"])
    monkeypatch.setattr(cli, "serve", None)
    monkeypatch.setenv("TALLY_STORE", "memory://")
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    (line,) = str(ended.value.code).splitlines()
    assert line.startswith(f"tally: {variable}")
    assert words in line
    assert "short" not in line
    assert "umlaut" not in line


def test_a_validation_error_does_not_contain_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
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
    statuses = [httpx.get(f"{app.url}/events", headers=bearer(role)).status_code for role in ("read", "admin", "write")]
    assert statuses == [200, 200, 401]
    monkeypatch.setenv("TALLY_READ_KEYS_FILE", str(file))
    assert len(Settings().read_keys) == 2
    monkeypatch.setenv("TALLY_READ_KEYS", KEYS["write"])
    with pytest.raises(ValueError, match="TALLY_READ_KEYS_FILE: set one"):
        Settings()


@pytest.mark.parametrize(
    ("host", "chosen", "words"),
    [
        ("0.0.0.0", {}, "can count and read"),  # noqa: S104 # no server is started
        ("192.0.2.1", {"write_keys": KEYS["write"]}, "can read"),
        ("::", {"read_keys": KEYS["read"]}, "can count"),
        ("::", CLOSED, None),
        ("127.0.0.1", {}, None),
        ("localhost", {}, None),
        ("::1", {}, None),
    ],
)
def test_startup_warns_about_open_roles_on_a_public_address(
    capsys: pytest.CaptureFixture, host: str, chosen: dict, words: str | None
) -> None:
    cli.print_greeting(Settings(TALLY_STORE="memory://", host=host, **chosen), "", consume=False)
    output = capsys.readouterr().out
    warnings = [line for line in output.splitlines() if line.startswith("Warning")]
    assert ("Authorization: Bearer" in output) == ("write_keys" in chosen)
    assert not [key for key in KEYS.values() if key in output]
    assert len(warnings) == (words is not None)
    assert not words or f"{words}." in warnings[0]


@pytest.mark.fails_on_mutant(
    "idempotency keys are shared by all clients",
    "app/http/parsing.py",
    "{permissions.client_id(request.scope)} {route}",
    "{route}",
)
async def test_an_idempotency_key_belongs_to_an_api_key(serve) -> None:
    """If writes need no key, all clients without a known API key share their idempotency keys."""
    async with serve(read_keys=KEYS["read"], admin_keys=KEYS["admin"]) as tally, tally.client() as client:

        async def count(role: str, path: str = "/event/a") -> tuple[int, bool]:
            body = {"a": 1} if path == "/events" else None
            response = await client.post(path, json=body, headers={"Idempotency-Key": "k", **bearer(role)})
            counted = response.json().get("count") or response.json()["counts"]["a"]
            return counted, "Idempotent-Replayed" in response.headers

        assert [await count("none"), await count("none")] == [(1, False), (1, True)]
        assert [await count("admin"), await count("admin"), await count("read")] == [(2, False), (2, True), (3, False)]
        assert [await count(role, "/events") for role in ("none", "admin", "admin")] == [
            (4, False), (5, False), (5, True),
        ]  # fmt: skip


async def test_without_a_write_key_only_small_amounts_are_accepted(serve) -> None:
    chosen = {"read_keys": KEYS["read"], "admin_keys": KEYS["admin"], "public_by_max": 15}
    async with serve(**chosen) as tally, tally.client() as client:
        for role in ("none", "read"):
            options = {"headers": bearer(role)}
            assert (await client.post("/event/a", json={"by": 15}, **options)).status_code == 200
            detail = detail_of(await client.post("/event/a", json={"by": 16}, **options), 422)
            assert detail == "by: at most 15 without a write key (TALLY_PUBLIC_BY_MAX); send a write key for more"
            for body in (
                b'{"a":10,"b":16}',
                b'[{"event":"a"},{"event":"b","by":16}]',
                b'{"event":"a"}\n{"event":"b","by":17}',
            ):
                response = await client.post("/events", content=body, **options)
                assert detail_of(response, 422).startswith("item 1: by: at most 15")
                assert response.json()["counted"] == "no"
        assert (await client.post("/events", content=b"a\na\n" * 10)).status_code == 200
        assert (await client.post("/events", content=b"")).status_code == 200
        assert (await client.post("/event/a", json={"by": 1_000_000}, headers=bearer("admin"))).status_code == 200
        assert (await client.post("/events", json={"a": 1_000_000}, headers=bearer("admin"))).status_code == 200
        assert (await client.get("/events", headers=bearer("read"))).json() == {"a": 2_000_050}
