"""Allowed hosts and web origins, CORS headers, and the origin behind a proxy."""

import itertools
import json
from pathlib import Path

import httpx
import pytest
import websockets

from app.settings import Settings
from tests.http.api_keys import KEYS, bearer
from tests.http.problems import detail_of
from tests.support.nginx import Proxy
from tests.support.servers import RunningApp, connected

ORIGINS = "app/http/origins.py"
SHOP, EVIL = "https://shop.example", "https://evil.example"
SOCKETS = "/socket.io/?EIO=4&transport="
ALLOWED = {"allowed_origins": f"{SHOP},http://localhost:5173"}
OWN, OWN_HTTPS = "http://{host}", "https://{host}"
BEHIND_PROXY = "a proxy in front must be in TALLY_TRUSTED_PROXIES and send X-Forwarded-Proto"
ANY_ORIGIN = pytest.mark.fails_on_mutant(
    "origins are not checked", "app/http/permissions.py", "if permission in _ORIGIN_CHECKED:", "if permission is None:"
)

NO_REASON = pytest.mark.fails_on_mutant(
    "the proxy is never the reason", "app/http/origins.py", "if differs_in_scheme else", "if not origin else"
)
ANY_HOST = pytest.mark.fails_on_mutant(
    "hosts are not checked",
    "app/http/origins.py",
    "if not self._is_allowed_host(",
    "if headers is None and self._is_allowed_host(",
)
ANY_WEBSOCKET_HOST = pytest.mark.fails_on_mutant(
    "the host of a WebSocket is not checked",
    "app/http/router_bypass.py",
    "            headers = browser_headers(scope, self._origins)\n            await self._socketio",
    "            await self._socketio",
)


@pytest.mark.parametrize(
    ("chosen", "origin", "writes"),
    [
        ({}, None, True),
        ({}, OWN, True),
        pytest.param({}, SHOP, False, marks=ANY_ORIGIN),
        ({}, "null", False),
        pytest.param({}, OWN_HTTPS, False, marks=NO_REASON),
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
async def test_requests_of_foreign_origins(serve_once, chosen: dict, origin: str | None, writes: bool) -> None:
    """A page of an allowed origin may write and read live counts, and its responses have the CORS headers."""
    tally = await serve_once(**chosen)
    async with tally.client() as client:
        host = tally.url.removeprefix("http://")
        origin = origin and origin.format(host=host)
        headers = {"Origin": origin} if origin else {}
        shared = writes and origin not in {None, tally.url}
        expected = {"*": "*"}.get(chosen.get("allowed_origins"), origin)
        for method, path in (("POST", "/event/a"), ("POST", "/events"), ("GET", SOCKETS + "polling")):
            response = await client.request(method, path, headers=headers)
            if writes:
                assert response.status_code == 200, response.text
            else:
                remedy = BEHIND_PROXY if origin == OWN_HTTPS.format(host=host) else "add it to TALLY_ALLOWED_ORIGINS"
                detail = f"the web origin {json.dumps(origin)} is not allowed; {remedy}"
                assert detail_of(response, 403) == detail
        for path in ("/event/a", "/events?limit=0", "/nothing", "/static/app.css", "/health", "/openapi.json"):
            response = await client.get(path, headers=headers)
            assert response.status_code == {"/nothing": 404, "/events?limit=0": 422}.get(path, 200)
            if shared:
                assert response.headers["Access-Control-Allow-Origin"] == expected
                assert "Retry-After" in response.headers["Access-Control-Expose-Headers"]
            elif expected != "*":
                assert "Access-Control-Allow-Origin" not in response.headers
            varies = ["Accept-Encoding"] * (path in {"/static/app.css", "/openapi.json"}) + ["Origin"] * (
                chosen == ALLOWED
            )
            assert response.headers.get("Vary", "") == ", ".join(varies)
        preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        for path in ("/event/a", "/events", "/nothing"):
            response = await client.options(path, headers=headers | preflight)
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.status_code == (204 if writes else 403)
            if shared:
                assert response.headers["Access-Control-Allow-Origin"] == expected
                assert response.headers["Access-Control-Allow-Headers"] == "authorization"
        await assert_websocket(tally, headers, 101 if writes else 403)


@pytest.mark.fails_on_mutant(
    "any origin may send credentials", ORIGINS, 'b"*"), _EXPOSED, *vary]', 'b"*"), _CREDENTIALS, _EXPOSED, *vary]'
)
@pytest.mark.fails_on_mutant("a named origin sends no credentials", ORIGINS, "_CREDENTIALS, _EXPOSED", "_EXPOSED")
@pytest.mark.fails_on_mutant(
    "a route for all pages has *",
    "app/http/middleware.py",
    "dict(_ANY_ORIGIN) | headers",
    "headers | dict(_ANY_ORIGIN)",
)
async def test_credentials_are_allowed_for_named_origins_only(serve_once) -> None:
    """A browser rejects a response to a request with credentials that does not name the origin and allow them."""
    paths = ("/event/a", "/events", "/hit/one/two", "/badge/a.svg", "/nothing", "/health")
    headers = {"Origin": SHOP, "Access-Control-Request-Method": "POST"}
    for chosen in (SHOP, "*", f"*,{SHOP}", f"{SHOP},{EVIL}"):
        tally = await serve_once(allowed_origins=chosen, countapi=True)
        async with tally.client() as client:
            for method, path in itertools.product(("POST", "GET", "OPTIONS"), paths):
                response = await client.request(method, path, headers=headers)
                named = SHOP in chosen
                assert response.headers["Access-Control-Allow-Origin"] == (SHOP if named else "*")
                assert response.headers.get("Access-Control-Allow-Credentials") == ("true" if named else None)
                assert response.headers.get_list("Vary") == (["Origin"] if named else [])
                other = await client.request(method, path, headers=headers | {"Origin": "https://other.example"})
                assert "Access-Control-Allow-Credentials" not in other.headers


TRACING = "authorization,baggage,cache-control,content-type,idempotency-key,sentry-trace,traceparent,x-requested-with"
INVALID_NAMES = ["", ",", "a b", "a,,b", "é", 'a"', "a:b", "x" * 65, ",".join(["a"] * 65)]


@pytest.mark.fails_on_mutant(
    "invalid names are echoed", ORIGINS, "if _HEADER_NAMES.fullmatch(requested)", "if requested"
)
@pytest.mark.parametrize("origin", [SHOP, "*"])
async def test_a_preflight_allows_the_headers_that_it_requests(serve_once, origin: str) -> None:
    tally = await serve_once(allowed_origins=origin, countapi=True)
    async with tally.client() as client:
        options = {"Origin": SHOP, "Access-Control-Request-Method": "POST"}
        for names in (TRACING, TRACING.replace(",", ", "), "x"):
            headers = options | {"Access-Control-Request-Headers": names}
            response = await client.options("/event/a", headers=headers)
            assert (response.status_code, response.headers["Access-Control-Allow-Headers"]) == (204, names)
        for names in INVALID_NAMES:
            headers = options | {"Access-Control-Request-Headers": names.encode()}
            response = await client.options("/event/a", headers=headers)
            assert response.headers["Access-Control-Allow-Headers"].startswith("Authorization, Content-Type")


async def test_a_preflight_of_any_origin_is_accepted_on_the_routes_for_all_pages(serve_once) -> None:
    tally = await serve_once(countapi=True)
    headers = {"Origin": EVIL, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "baggage"}
    async with tally.client() as client:
        for path in ("/hit/one/two", "/get/one/two", "/set/one/two", "/badge/a.svg", "/event/a", "/events"):
            response = await client.options(path, headers=headers)
            assert response.status_code == (403 if path.startswith("/event") else 204)
            if response.status_code == 204:
                assert response.headers["Access-Control-Allow-Origin"] == "*"
                assert response.headers["Access-Control-Allow-Headers"] == "baggage"


APPS = ["capacitor://localhost", "ionic://localhost", "tauri://localhost", "app://obsidian.md"]
APPS += ["chrome-extension://abcdefghijklmnopabcdefghijklmnop", "moz-extension://6b6b6b6b-1c1c-4d4d-8e8e-2f2f2f2f2f2f"]
APPS += ["safari-web-extension://6B6B6B6B-1C1C-4D4D-8E8E-2F2F2F2F2F2F"]


@pytest.mark.fails_on_mutant("only web origins are accepted", "app/settings.py", "|{_APP_ORIGIN}|", "|")
async def test_the_origins_of_apps_and_extensions_can_be_allowed(serve_once) -> None:
    tally = await serve_once(allowed_origins=",".join(APPS))
    async with tally.client() as client:
        for origin in APPS:
            response = await client.post("/event/a", headers={"Origin": origin})
            assert (response.status_code, response.headers["Access-Control-Allow-Origin"]) == (200, origin)
        for origin in ("capacitor://localhost.evil.example", "http://localhost", "capacitor://other", "null"):
            assert (await client.post("/event/a", headers={"Origin": origin})).status_code == 403


@pytest.mark.parametrize(
    "origin",
    ["HTTP://x", "https://Shop.example", "https://x/", "capacitor://", "//x", "capacitor://x/y", "a://b;c", "x"],
)
def test_an_invalid_origin_is_rejected_at_startup(origin: str) -> None:
    with pytest.raises(ValueError, match="each origin must be like"):
        Settings(allowed_origins=origin)


async def assert_websocket(tally: RunningApp, headers: dict[str, str], status: int) -> None:
    url = tally.url.replace("http", "ws", 1) + SOCKETS + "websocket"
    try:
        async with websockets.connect(url, additional_headers=headers) as page:
            assert (await page.recv())[0] == "0"
        assert status == 101
    except websockets.exceptions.InvalidStatus as rejected:
        assert rejected.response.status_code == status
        assert rejected.response.headers["Content-Type"] == "application/problem+json"
        assert rejected.response.headers["X-Content-Type-Options"] == "nosniff"


async def test_every_response_has_the_cors_headers(serve) -> None:
    """Errors have the CORS headers, too, and so have the responses of the fast path."""
    async with serve(**ALLOWED, write_keys=KEYS["write"], write_limit="3/minute") as tally, tally.client() as client:
        options = {"headers": {"Origin": SHOP, **bearer("write"), "Idempotency-Key": "k"}}
        responses = [await client.post("/event/a", **options) for _ in range(2)]
        responses += [await client.post("/event/a%00", **options)]
        responses += [await client.post(path, **options) for path in ("/event/a", "/events", "/event/a")]
        responses += [await client.post(path, headers={"Origin": SHOP}) for path in ("/event/a", "/events")]
        responses += [await client.delete("/event/a", **options)]
        assert [response.status_code for response in responses][:8] == [200, 200, 422, 200, 429, 429, 401, 401]
        for response in responses:
            assert response.headers["Access-Control-Allow-Origin"] == SHOP
            assert response.headers["Vary"] == "Origin"
            exposed = response.headers["Access-Control-Expose-Headers"].split(", ")
            assert {"Idempotent-Replayed", "Link", "Retry-After", "Tally-Stale"} <= set(exposed)


@pytest.mark.parametrize(
    ("chosen", "allowed", "foreign"),
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
            {"host": "192.0.2.1", "allowed_hosts": "tally.example"},
            ["tally.example"],
            ["evil.example"],
            marks=[ANY_HOST, ANY_WEBSOCKET_HOST],
        ),
        ({"allowed_hosts": "*"}, ["any.example"], []),
    ],
)
async def test_allowed_hosts(serve, chosen: dict, allowed: list[str], foreign: list[str]) -> None:
    """A foreign host name that resolves to Tally's address is rejected: its pages would be of the same origin."""
    async with serve(**chosen) as tally, tally.client() as client:
        for host, is_allowed in [*((name, True) for name in allowed), *((name, False) for name in foreign)]:
            headers = {"Host": host, "Origin": f"http://{host.lower()}"} if host else {"Host": host}
            for method, path in (
                ("POST", "/event/a"),
                ("POST", "/events"),
                ("GET", "/health"),
                ("GET", "/static/app.css"),
                ("OPTIONS", "/event/a"),
                ("GET", "/nothing"),
            ):
                response = await client.request(method, path, headers=headers)
                assert (response.status_code == 421) != is_allowed, host
                if not is_allowed:
                    name = json.dumps(host.lower().removesuffix(":8000"))
                    assert detail_of(response, 421) == f"the host {name} is not allowed; add it to TALLY_ALLOWED_HOSTS"
            if host:
                await assert_host(tally, host, is_allowed)


async def assert_host(tally: RunningApp, host: str, is_allowed: bool) -> None:
    """Check the response to a WebSocket handshake with this Host header."""
    head = f"GET {SOCKETS}websocket HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    head += "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    async with connected(tally.url) as (reader, writer):
        writer.write(head.encode())
        assert (await reader.readline()).split()[1] == (b"101" if is_allowed else b"421")


SAME_ORIGIN = [
    # The Host header, X-Forwarded-Proto, and the origin that a browser sends.
    ("tally.example", "https", "https://tally.example"),
    ("tally.example:443", "https", "https://tally.example"),
    ("tally.example:80", "http", "http://tally.example"),
    ("TALLY.example:443", "HTTPS", "https://tally.example"),
    ("tally.example", "https,http", "https://tally.example"),
    ("tally.example", "https, https, http", "https://tally.example"),
    ("tally.example", "Https , http", "https://tally.example"),
    ("tally.example:8443", "https", "https://tally.example:8443"),
    ("[2001:db8::1]:443", "https", "https://[2001:db8::1]"),
    ("tally.example", "wss", "https://tally.example"),
]
OTHER_ORIGIN = [
    ("tally.example:443", "http", "https://tally.example"),
    ("tally.example:443", "http", "http://tally.example"),
    ("tally.example:80", "https", "https://tally.example"),
    ("tally.example", "http,https", "https://tally.example"),
    ("tally.example", "gopher", "https://tally.example"),
    ("tally.example:4430", "https", "https://tally.example"),
]


@pytest.mark.fails_on_mutant(
    "only one spelling of the scheme counts", "app/server/server.py", '.partition(b",")[0].strip().lower()', ""
)
@pytest.mark.fails_on_mutant(
    "the default port is another origin",
    "app/http/origins.py",
    'own = _without_default_port(b"%b://%b" % (scheme, headers.get(b"host", b"").lower()))',
    'own = b"%b://%b" % (scheme, headers.get(b"host", b"").lower())',
)
def test_every_spelling_of_the_same_origin_is_the_own_origin(process) -> None:
    tally = process(TALLY_STORE="memory://", TALLY_TRUSTED_PROXIES="127.0.0.1", TALLY_ALLOWED_HOSTS="tally.example")
    for host, proto, origin in SAME_ORIGIN + OTHER_ORIGIN:
        headers = {"Host": host, "X-Forwarded-Proto": proto, "Origin": origin}
        status = 200 if (host, proto, origin) in SAME_ORIGIN else 403
        for method, path in (("POST", "/event/a"), ("POST", "/events"), ("GET", f"{SOCKETS}polling")):
            response = httpx.request(method, tally.url + path, headers=headers, content=b"")
            assert response.status_code == status or (path == "/events" and status == 200), headers
        assert tally.get("/health")["status"] == "ok"


def test_a_proxy_may_send_the_scheme_in_several_headers(process) -> None:
    tally = process(TALLY_STORE="memory://", TALLY_TRUSTED_PROXIES="127.0.0.1")
    headers = [("Host", "tally"), ("Origin", "https://tally")]
    headers += [("X-Forwarded-Proto", "https"), ("X-Forwarded-Proto", "http")]
    for path in ("/event/a", "/event/a?x=1"):
        assert httpx.post(tally.url + path, headers=headers).status_code == 200


async def test_an_allowed_origin_may_be_written_with_its_default_port(serve) -> None:
    async with serve(allowed_origins=f"{SHOP}:443") as tally, tally.client() as client:
        assert (await client.post("/event/a", headers={"Origin": SHOP})).status_code == 200


def test_behind_a_proxy_the_origin_is_the_one_that_the_browser_uses(process, tmp_path: Path) -> None:
    """A proxy that ends TLS sends X-Forwarded-Proto, which a node uses only if it trusts the proxy."""
    trusting = process(TALLY_STORE="memory://", TALLY_TRUSTED_PROXIES="127.0.0.1")
    for scheme in ("http", "https"):
        directory = tmp_path / scheme
        directory.mkdir()
        sent = {"X-Forwarded-Proto $scheme": f"X-Forwarded-Proto {scheme}"}
        proxy = Proxy(directory, [trusting.port], sent).start()
        try:
            host = proxy.url.removeprefix("http://")
            for origin in (f"http://{host}", f"https://{host}", EVIL):
                status = 200 if origin == f"{scheme}://{host}" else 403
                assert httpx.post(f"{proxy.url}/event/a", headers={"Origin": origin}).status_code == status
                assert httpx.get(f"{proxy.url}{SOCKETS}polling", headers={"Origin": origin}).status_code == status
        finally:
            proxy.stop()
    direct = process(TALLY_STORE="memory://")
    for scheme in ("http", "https"):
        headers = {"Origin": direct.url, "X-Forwarded-Proto": scheme}
        assert httpx.post(f"{direct.url}/event/a", headers=headers).status_code == 200
