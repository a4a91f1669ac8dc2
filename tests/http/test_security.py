"""Security headers, client addresses behind proxies, formulas in CSV, and bad messages between nodes."""

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from fastapi import Response

from app.http.responses import csv_response
from app.stores.memory import MemoryStore
from tests.http.api_keys import bearer
from tests.support.redis_servers import RedisServer
from tests.support.servers import AS_ADMIN, Process, SettableClock, eventually, serving, settings_for

POLL = "/socket.io/?EIO=4&transport=polling"
HTML_PAGES = ["/", "/kiosk", "/embed/a"]
PAGES = [*HTML_PAGES, "/docs", "/static/app.css", "/static/js/main.js", "/docs/assets/swagger-ui.css"]
READS = ["/event/a", "/events", "/leaderboard", "/series", "/event/a/series", "/audience", "/user/u", "/session/s"]
READS += ["/history", "/history?format=csv", "/metrics", "/health", "/openapi.json", "/badge/a.svg"]
READS += ["/event/a/shield.json", "/stream", "/embed/a/stream", "/get/abc", "/export", POLL]
PREFLIGHT = {"Origin": "http://{host}", "Access-Control-Request-Method": "POST"}

RESPONSES: list[tuple[int, str, str, dict]] = [
    (200, "GET", path, {"headers": AS_ADMIN}) for path in (*PAGES, *READS[:-4])
]
RESPONSES += [(200, "GET", path, {"headers": AS_ADMIN}) for path in ("/stream", "/embed/a/stream", "/export", POLL)]
RESPONSES += [
    (200, "POST", "/event/a", {}),
    (200, "POST", "/events", {"content": "a\nb"}),
    (200, "PUT", "/event/a", {"headers": AS_ADMIN, "json": {"count": 1}}),
    (204, "OPTIONS", "/event/a", {"headers": PREFLIGHT}),
    (400, "GET", "/socket.io/", {}),
    (400, "GET", "/hit/ab", {}),
    (401, "POST", "/reset", {}),
    (401, "POST", "/event/a", {"headers": bearer("wrong")}),
    (403, "POST", "/event/a", {"headers": {"Origin": "https://evil.example"}}),
    (404, "GET", "/nothing", {}),
    (404, "GET", "/static/nothing.js", {}),
    (404, "GET", "/docs/assets/nothing.js", {}),
    (404, "GET", "/get/nothing", {}),
    (405, "TRACE", "/events", {}),
    (405, "DELETE", "/static/app.css", {}),
    (413, "POST", "/event/a", {"content": b" " * 20_000}),
    (421, "GET", "/", {"headers": {"Host": "evil.example"}}),
    (422, "POST", "/event/a", {"content": b"{"}),
    (422, "GET", "/events?limit=0", {}),
    (429, "GET", "/event/b", {}),
    (500, "GET", "/events", {}),
]


@pytest.mark.fails_on_mutant(
    "pages in foreign frames", "app/http/routes/pages.py", "; frame-ancestors {frame_ancestors}", ""
)
@pytest.mark.fails_on_mutant(
    "data in foreign frames", "app/http/middleware.py", "'none'; frame-ancestors 'none'\"", "'none'\""
)
@pytest.mark.fails_on_mutant(
    "types are guessed", "app/http/middleware.py", '    (b"x-content-type-options", b"nosniff"),\n', ""
)
@pytest.mark.fails_on_mutant(
    "errors have no security headers",
    "app/http/app.py",
    "SecurityMiddleware(HeadMiddleware(compressed),",
    "SecurityMiddleware(self.router,",
)
@pytest.mark.fails_on_mutant(
    "the bypass has no security headers", "app/http/router_bypass.py", "        response.raw_headers += headers\n", ""
)
async def test_every_response_has_all_security_headers(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    settings = settings_for("memory", tmp_path, redis_server, countapi=True, read_limit="60/hour")
    async with serving(settings) as tally, tally.client() as client:
        host = tally.url.removeprefix("http://")
        await client.get("/hit/abc")
        for status, method, path, options in RESPONSES:
            if status == 429:
                while (await client.get("/event/a")).status_code != 429:
                    pass
            if status == 500:
                monkeypatch.setattr(MemoryStore, "counts", None)
            headers = {name: text.format(host=host) for name, text in options.get("headers", {}).items()}
            address = "127.0.0.2" if status == 500 else "127.0.0.1"
            async with (
                tally.client(address) as other,
                other.stream(method, path, **options | {"headers": headers}) as response,
            ):
                assert response.status_code == status, (method, path, response.status_code)
                seen.add(path)
                sent = response.headers
                assert sent["X-Content-Type-Options"] == "nosniff", path
                assert sent["Referrer-Policy"] == "no-referrer", path
                assert sent["Cache-Control"] in {"no-cache", "no-store", "max-age=5, must-revalidate"}, path
                policy = dict(part.strip().partition(" ")[::2] for part in sent["Content-Security-Policy"].split(";"))
                assert policy["default-src"] == "'none'", path
                frame_ancestors = "'self'" if path == "/embed/a" else "'none'"
                assert "sandbox" in policy or policy["frame-ancestors"] == frame_ancestors, path
                assert "unsafe" not in sent["Content-Security-Policy"], path
                if status == 200 and path in HTML_PAGES:
                    assert policy["trusted-types"] == "'none'", path
                elif path != "/docs":
                    assert len(policy) == 2, path
                assert "X-Powered-By" not in sent
    assert len(seen) > 30


def test_no_response_names_the_server_software(process: Callable[..., Process]) -> None:
    tally = process(TALLY_STORE="memory://")
    for path in ("/", "/events", "/nothing", "/static/app.css"):
        assert "Server" not in httpx.get(tally.url + path).headers


FOR = "X-Forwarded-For"
OTHERS = ["X_Forwarded_For", "X-Real-IP", "Forwarded", "True-Client-IP", "CF-Connecting-IP"]

# Whether the peer is a trusted proxy, a header and its value in each of three requests, and the number of clients.
FORWARDED = [(False, name, "198.51.100.{n}", 1) for name in (FOR, *OTHERS)]
FORWARDED += [(True, name, "198.51.101.{n}", 1) for name in OTHERS]
FORWARDED += [
    (True, FOR, "198.51.102.{n}", 3),
    (True, FOR, "198.51.103.{n}, 198.51.103.9", 1),  # the client sent the first, the proxy added the last
    (True, FOR, "{n}, 198.51.104.9", 1),
    (True, FOR, "198.51.105.{n}, 127.0.8.250", 3),  # through two proxies, both trusted
    (True, FOR, "198.51.106.{n}, 198.51.106.9, 127.0.8.250", 1),
    (True, FOR, "2001:db8:1:2::{n}", 1),  # all the addresses of one client
    (True, FOR, "2001:db8:2:{n}::1", 3),
    (True, FOR, "198.51.107.9:1000{n}", 1),
]


@pytest.mark.fails_on_mutant("any peer is trusted", "app/server/server.py", "(end, trusted_proxies)", '(end, "*")')
@pytest.mark.fails_on_mutant(
    "a client has many addresses", "app/http/rate_limits.py", "ipaddress.IPv6Network((ip, 64), strict=False)", "ip"
)
def test_the_rate_limit_uses_the_address_from_a_trusted_proxy(process: Callable[..., Process]) -> None:
    tally = process(TALLY_STORE="memory://", TALLY_WRITE_LIMIT="1/hour", TALLY_TRUSTED_PROXIES="127.0.8.0/24")
    for index, (trusted, name, value, clients) in enumerate(FORWARDED, 1):
        transport = httpx.HTTPTransport(local_address=f"127.0.{8 if trusted else 9}.{index}")
        with httpx.Client(base_url=tally.url, transport=transport) as client:
            statuses = [client.post("/event/a", headers={name: value.format(n=n)}).status_code for n in (1, 2, 3)]
        assert statuses == [200] * clients + [429] * (3 - clients), (trusted, name, value)


STARTS = ["=", "+", "-", "@", "＝", "＋", "－", "＠"]  # noqa: RUF001 # full-width forms count, too
HARMLESS = ["a;=1+1", 'a",=1+1', "a,=1+1", "'=1+1", "a=1", "1", "ورود", "👩‍💻"]


@pytest.mark.fails_on_mutant("formulas are not escaped", "app/http/responses.py", 'f"\'{cell}" if', "cell if")
@pytest.mark.fails_on_mutant("a semicolon ends a cell", "app/http/responses.py", ", quoting=csv.QUOTE_NONNUMERIC", "")
async def test_no_name_is_a_formula_in_a_spreadsheet(
    tmp_path: Path, redis_server: RedisServer, clock: SettableClock
) -> None:
    names = [f"{begin}{formula}" for begin in STARTS for formula in ("1+1", "cmd|' C calc'!A0", 'HYPERLINK("x","y")')]
    names += HARMLESS
    clock.go_to("2026-03-28T12:00:00+00:00")
    async with serving(settings_for("memory", tmp_path, redis_server), clock) as tally, tally.client() as client:
        assert (await client.post("/events", json=dict.fromkeys(names, 1))).status_code == 200
        clock.go_to("2026-03-29T12:00:00+00:00")
        response = await client.get("/history/2026-03-28?format=csv")
    assert response.headers["Content-Type"] == "text/csv; charset=utf-8"
    head, *rows = csv.reader(io.StringIO(response.text, newline=""))
    assert head == ["event", "count", "until", "notes"]
    assert sorted(row[0] for row in rows) == sorted(f"'{name}" if name[0] in STARTS else name for name in names)
    for line in response.text.splitlines()[1:]:
        assert re.fullmatch(r'"(?:[^"]|"")*",1,"[^"]*",""', line), line
    # No valid name begins with these, but a store may hold any text.
    for begin in "\t\r\n":
        assert (
            csv_response(Response(), ["event"], [[f"{begin}=1+1"]]).body.decode() == f'"event"\r\n"\'{begin}=1+1"\r\n'
        )


INVALID_MESSAGES = [b"", b"\xff\xfe", b"x", b"[]", b"{}", b"[" * 100_000, b'{"node":1}', b"\x80\x04cos\nsystem\n."]
INVALID_MESSAGES += [b'{"node":"n","epoch":null,"day":"x","counts":{"a":-1},"generation":[]}']


@pytest.mark.fails_on_mutant(
    "an invalid message ends the subscription",
    "app/live/peers.py",
    "except Exception as error:  # noqa: BLE001 # later messages have to be received",
    "except StoreError as error:  # noqa: BLE001 # later messages have to be received",
)
async def test_invalid_messages_of_a_node_change_nothing_on_the_others(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    settings = settings_for("redis", tmp_path, redis_server)
    async with serving(settings) as one, serving(settings) as other, one.client() as client, other.client() as reader:
        with redis_server.client() as compromised:
            await eventually(lambda: [n for _, n in compromised.pubsub_numsub(*compromised.pubsub_channels())] == [2])
            (channel,) = compromised.pubsub_channels()
            for message in INVALID_MESSAGES:
                compromised.publish(channel, message)
        async with serving(settings):

            async def all_see_three_nodes() -> bool:
                states = [(await node.get("/health")).json() for node in (client, reader)]
                return [(health["nodes"], health["status"]) for health in states] == [(3, "ok")] * 2

            await eventually(all_see_three_nodes)
        await client.post("/event/a")
        assert (await reader.get("/events")).json() == {"a": 1}
