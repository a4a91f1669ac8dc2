"""Bad input on every route: a 4xx problem with a reason, never a 5xx, and the counts stay the same."""

import asyncio
import gzip
import re
import socket
import zlib
from collections.abc import Callable
from itertools import product

import httpx
import pytest

from tests.http.bad_values import AMOUNTS, BODIES, NAMES
from tests.http.problems import assert_client_error
from tests.support.servers import ADMIN_KEY, AS_ADMIN, RunningApp, connected, eventually


@pytest.mark.parametrize("name", NAMES)
async def test_a_bad_name(tally: RunningApp, name: str) -> None:
    segment = NAMES[name]
    async with tally.client() as client:
        for path in (b"/event/" + segment, b"/event/" + segment + b"/series"):
            url = httpx.URL(tally.url).copy_with(raw_path=path)
            assert_client_error(await client.get(url), counted=None)
            assert_client_error(await client.post(url), counted="no")
        if segment not in {b"%ed%a0%80", b"%ff", b"%c0%af"}:  # in a query these become U+FFFD, which is valid
            query = httpx.URL(tally.url).copy_with(raw_path=b"/series?event=known&event=" + segment)
            assert_client_error(await client.get(query), counted=None)


@pytest.mark.parametrize("amount", AMOUNTS)
async def test_a_bad_amount(tally: RunningApp, amount: str) -> None:
    by = AMOUNTS[amount]
    async with tally.client() as client:
        assert_client_error(await client.post("/event/known", content=b'{"by": ' + by + b"}"), counted="no")
        for body in (b'{"known": ' + by + b"}", b'[{"event":"known"},{"event":"known","by":' + by + b"}]"):
            assert_client_error(await client.post("/events", content=body), counted="no")
        ndjson = b'{"event":"known"}\n{"event":"known","by":' + by + b"}\n"
        response = await client.post("/events", content=ndjson)
        assert_client_error(response, counted="no")
        assert "item 1" in response.json()["detail"]


@pytest.mark.parametrize("body", BODIES)
async def test_a_bad_body(tally: RunningApp, body: str) -> None:
    async with tally.client() as client:
        for path in ("/event/known", "/events"):
            assert_client_error(await client.post(path, content=BODIES[body]), counted="no")


@pytest.mark.fails_on_mutant(
    "an amount in the query is ignored", "app/http/parsing.py", "if field in request.query_params:", "if not field:"
)
async def test_a_hit_in_the_query_is_rejected(tally: RunningApp) -> None:
    """Otherwise POST /event/known?by=3 would count 1."""
    async with tally.client() as client:
        for path, problem in product(("/event/known", "/events"), ("by=3", "user=u", "utm=x&session=")):
            response = await client.post(f"{path}?{problem}", content=b'{"by":1}')
            assert_client_error(response, counted="no")
            assert response.json()["detail"].endswith(": must be in the body, not in the query")


async def test_a_client_that_disconnects_during_its_body(tally: RunningApp, caplog: pytest.LogCaptureFixture) -> None:
    async with tally.client() as client:

        async def rejected() -> str:
            return re.search(r'tally_posts_total{outcome="refused"} (\S+)', (await client.get("/metrics")).text)[1]

        async def one_more() -> bool:
            return float(await rejected()) == before + 1

        before = float(await rejected())
        host, port = tally.url.removeprefix("http://").split(":")
        # A hit that ends early never reaches the fast path, so only the batch is counted as rejected.
        for path in (b"/event/known", b"/events"):
            with socket.create_connection((host, int(port))) as raw:
                raw.sendall(b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        await eventually(one_more)
    assert "Traceback" not in caplog.text


@pytest.mark.fails_on_mutant(
    "a body that never ends", "app/http/parsing.py", "asyncio.timeout(BODY_SECONDS)", "asyncio.timeout(None)"
)
@pytest.mark.fails_on_mutant(
    "an import that never ends",
    "app/http/routes/export_import.py",
    "asyncio.timeout(PAUSE_SECONDS_MAX)",
    "asyncio.timeout(None)",
)
@pytest.mark.fails_on_mutant(
    "a POST of Socket.IO that never ends",
    "app/live/inbound.py",
    "asyncio.timeout(POST_SECONDS)",
    "asyncio.timeout(None)",
)
async def test_a_body_that_does_not_end_is_rejected(tally: RunningApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take its bytes out of the budget of all large bodies for ever."""
    monkeypatch.setattr("app.http.parsing.BODY_SECONDS", 0.1)
    monkeypatch.setattr("app.http.routes.export_import.PAUSE_SECONDS_MAX", 0.1)
    monkeypatch.setattr("app.live.inbound.POST_SECONDS", 0.1)
    polling = "/socket.io/?EIO=4&transport=polling"
    async with tally.client() as client:
        session = (await client.get(polling)).text.split('"sid":"')[1].split('"')[0]
    paths = {"/events": "POST", "/event/known": "PUT", "/import": "POST", f"{polling}&sid={session}": "POST"}
    for path, method in paths.items():
        async with connected(tally.url) as (reader, writer):
            head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN_KEY}\r\n"
            writer.write(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            async with asyncio.timeout(20):
                response = await reader.readuntil(b"}")
            assert b" 400 " in response, path
            assert b"arrive" in response, path


IMPORTS = {
    "nothing": b"",
    "not JSON": b"x",
    "an array": b"[]",
    "no end": b'{"tally":1,"export":"e","timezone":"UTC"}\n',
    "another format": b'{"tally":2,"export":"e","timezone":"UTC"}\n{"end":1}\n',
    "another zone": b'{"tally":1,"export":"e","timezone":"Mars/Base"}\n{"end":1}\n',
    "deep": b"[" * 100_000,
    "not UTF-8": b'{"tally":1,"export":"\xff","timezone":"UTC"}\n',
    "a line without an end": b'{"tally":1,"export":"' + b"e" * 5_000_000,
}

LINES = {
    "a wrong end": b'{"end":7}',
    "an unknown step": b'{"bucket":["year",0,""],"counts":{"a":1}}',
    "an unknown kind": b'{"bucket":["day",0,"x"],"counts":{"a":1}}',
    "before 1970": b'{"bucket":["day",-1,""],"counts":{"a":1}}',
    "far in the future": b'{"bucket":["day",99999999999999,""],"counts":{"a":1}}',
    "a negative total": b'{"bucket":["total",0,""],"counts":{"a":-1}}',
    "over 2^53 - 1": b'{"bucket":["total",0,""],"counts":{"a":9007199254740992}}',
    "a name with a slash": b'{"bucket":["total",0,""],"counts":{"a/b":1}}',
    "the member of all events": b'{"bucket":["total",0,""],"counts":{"":1}}',
    "a fraction": b'{"bucket":["total",0,""],"counts":{"a":1.5}}',
    "a register out of range": b'{"bucket":["day",0,"sketch:user:a"],"counts":{"99999999":1}}',
    "an invalid correction": b'{"bucket":["day",0,"log"],"counts":{"[":1}}',
    "a deeply nested correction": b'{"bucket":["day",0,"log"],"counts":{"' + b"[" * 100_000 + b'":1}}',
}

HEAD = b'{"tally":1,"export":"e","timezone":"UTC"}\n'
IMPORTS |= {name: HEAD + line + b'\n{"end":2}\n' for name, line in LINES.items()}


async def test_a_bad_import(tally: RunningApp) -> None:
    async with tally.client() as client:
        for name, file in IMPORTS.items():
            assert_client_error(await client.post("/import", content=file, headers=AS_ADMIN), counted="no")
            assert (await client.get("/events")).json() == {"known": 7}, name


NUMBERS = [b"", b"{}", b"[]", b'{"count":null}', b'{"count":-1}', b'{"total":9007199254740992}', b'{"x":1}', b"\xff"]
NUMBERS += [b'{"count":' + by + b"}" for by in AMOUNTS.values() if by not in {b"0", b"1000001", b"null"}]
BAD_IDS = [b"", b"%00", b"%ff", b"%20a", b"%2e%2e", b"x" * 129, b"%e2%80%ae"]
READS = ["/history/2026-02-30", "/history/0000-00-00", "/history/2026-01-01?format=xml", "/history?format=%00"]
READS += ["/audience?days=0", "/audience?days=401", "/audience?days=1e3", "/event/a/audience?days=x"]
READS += ["/leaderboard?event=%00", "/leaderboard?event=a/b", "/leaderboard?event=" + "x" * 129]
READS += [f"/{route}?{query}" for route in ("badge/a.svg", "event/a/shield.json") for query in (
    "color=javascript:alert(1)", "color=%23fff", "label=%00", "label=%0a", "label=" + "x" * 129, "value=x",
)]  # fmt: skip
READS += ["/stream?event=", "/stream?event=a%2fb", "/stream?" + "event=a&" * 101, "/stream?event=" + "x" * 129]
READS += [f"/{route}/{path}" for route in ("hit", "get", "info") for path in (
    "ab", "a%00b", "abc/" + "x" * 65, "a%2e/b", "abc/def?callback=alert(1)", "abc?callback=" + "x" * 129,
)]  # fmt: skip
READS += [
    "/embed/%00",
    "/embed/%ff/stream",
    "/badge/%ff.svg",
    "/badge/.svg",
    "/event//series",
    "/kiosk/x",
    "/static/%00",
]
READS += ["/static/..%2f..%2fpyproject.toml", "/static/%2e%2e/%2e%2e/app/main.py", "/docs/assets/..%2f__init__.py"]


async def test_bad_corrections_ids_and_queries(tally: RunningApp) -> None:
    async with tally.client() as client:

        async def assert_rejected(method: str, path: bytes, content: bytes = b"") -> None:
            url = httpx.URL(tally.url).copy_with(raw_path=path)
            response = await client.request(method, url, content=content, headers=AS_ADMIN)
            assert_client_error(response, counted="no" if path.startswith(b"/hit/") or method == "POST" else None)

        for body in NUMBERS:
            await assert_rejected("PUT", b"/event/known", body)
        for name in NAMES.values():
            for method, path in (("PUT", b"/event/"), ("DELETE", b"/event/"), ("GET", b"/embed/"), ("GET", b"/badge/")):
                await assert_rejected(
                    method, path + name + b".svg" * (path == b"/badge/"), b'{"count":1}' * (method == "PUT")
                )
        for bad in BAD_IDS:
            for method, path in (("GET", b"/user/"), ("GET", b"/session/"), ("DELETE", b"/user/")):
                await assert_rejected(method, path + bad)
        for path in READS:
            await assert_rejected("GET", path.encode())
        # Invalid cursors are ignored.
        for last_id in ("x", ":", "é", "-1:-1", "x" * 8000, f"{'9' * 5000}:{'9' * 5000}"):
            headers = {"Last-Event-ID": last_id.encode()}
            async with client.stream("GET", "/stream?event=known", headers=headers) as response:
                assert response.status_code == 200


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
async def test_bodies_are_not_decompressed(tally: RunningApp, compress: Callable[[bytes], bytes]) -> None:
    bomb = compress(b"[" + b" " * 10_000_000 + b"]")
    async with tally.client() as client:
        for path in ("/event/known", "/events", "/import"):
            headers = {"Content-Encoding": "gzip", **AS_ADMIN}
            assert_client_error(await client.post(path, content=bomb, headers=headers), counted="no")
