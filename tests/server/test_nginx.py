"""The nginx that docker-compose.yml puts in front of the nodes, with the shipped configuration and without a fleet."""

import asyncio
import re
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

import httpx
import pytest
import websockets

from tests.support.nginx import Proxy, client_from, problem_of
from tests.support.redis_servers import free_port
from tests.support.scenarios.clients import slow_clients
from tests.support.servers import ADMIN_KEY, AS_ADMIN, ROOT, Process, eventually

CONF = "deploy/nginx.conf"
POLL = "/socket.io/?EIO=4&transport=polling"


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Callable[..., Proxy]]:
    started: list[Proxy] = []

    def start(nodes: list[int], replaced: dict[str, str] | None = None) -> Proxy:
        started.append(Proxy(tmp_path, nodes, replaced))
        return started[-1].start()

    yield start
    for proxy in started:
        proxy.stop()


@pytest.fixture(scope="module")
def proxy_without_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy whose only node is not running."""
    proxy = Proxy(tmp_path_factory.mktemp("proxy"), [free_port()])
    yield proxy.start()
    proxy.stop()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A node that the tests of this module share."""
    node = Process(
        tmp_path_factory.mktemp("node"),
        TALLY_STORE="memory://",
        TALLY_ADMIN_KEYS=ADMIN_KEY,
        TALLY_TRUSTED_PROXIES="127.0.0.1",
    )
    yield node.start()
    node.kill()


@pytest.mark.fails_on_mutant("nginx redirects", CONF, "location = /event {", "location = /events/ {")
def test_nginx_redirects_nothing(proxy: Callable[..., Proxy], node: Process) -> None:
    url = proxy([node.port]).url
    for path in re.findall(r"location (?:= )?(/[\w./]*)", (ROOT / CONF).read_text()):
        for variant in {path, path.rstrip("/"), path.rstrip("/") + "/"}:
            response = httpx.post(url + variant)
            assert not 300 <= response.status_code < 400, variant
            if variant.startswith("/event"):
                assert (response.status_code, response.json()["counted"]) == (404, "no"), variant


@pytest.mark.fails_on_mutant(
    "the rules do not hold under a path", "docs/how-to/reverse-proxy.md", "rewrite ^/tally(/.*)$ $1;", "rewrite ^/x/ /;"
)
def test_the_rules_hold_under_a_path_with_the_line_of_the_guide(tmp_path: Path, proxy: Callable[..., Proxy]) -> None:
    (line,) = re.findall(r"^rewrite .*;$", (ROOT / "docs/how-to/reverse-proxy.md").read_text(), re.MULTILINE)
    node = Process(tmp_path, TALLY_STORE="memory://", TALLY_ROOT_PATH="/tally")
    try:
        url = proxy([node.start().port], {"listen 8080;": f"listen 8080; {line}"}).url
        assert httpx.get(f"{url}/tally/metrics").status_code == 403
        assert httpx.post(f"{url}/tally/event/a", content=b"x" * 16_385).status_code == 413
        for name in ("a", "50%25 + \u00fc%3F%23"):
            assert httpx.post(f"{url}/tally/event/{name}").json()["eventName"] == unquote(name)
        assert httpx.get(f"{url}/tally").headers["Location"].endswith("/tally/")
        assert httpx.get(f"{url}/tally/").text.startswith("<!doctype html>")
    finally:
        node.kill()


@pytest.mark.fails_on_mutant(
    "the other proxy counts as the client",
    "docs/how-to/reverse-proxy.md",
    "real_ip_header X-Forwarded-For",
    "real_ip_header X",
)
def test_another_proxy_in_front_passes_on_address_and_scheme(proxy: Callable[..., Proxy], node: Process) -> None:
    section = (ROOT / "docs/how-to/reverse-proxy.md").read_text().partition("## Behind another proxy\n")[2]
    (lines,) = re.findall(r"```nginx\n(.*?)```", section, re.DOTALL)
    old, new = re.findall(r"`(X-Forwarded-Proto \$\w+)`", section)
    lines = lines.replace("172.16.0.0/12", "127.0.0.1")
    url = proxy([node.port], {"listen 8080;": f"listen 8080;\n{lines}", old: new}).url
    headers = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https", "Origin": url.replace("http", "https")}
    response = httpx.get(url + POLL, headers=headers)
    assert response.status_code == 200
    assert "tally_node=203.0.113.9;" in response.headers["Set-Cookie"]


def test_no_hash_is_a_consistent_hash() -> None:
    """A consistent hash uses the name of a server, and behind Docker's DNS all nodes have the same name."""
    hashes = re.findall(r"^\s*hash (.*);", (ROOT / CONF).read_text(), re.MULTILINE)
    assert len(hashes) == 2
    assert not [words for words in hashes if "consistent" in words]


@pytest.mark.parametrize(
    ("request_", "status", "counted"),
    [
        ({"method": "POST", "url": "/event/a", "content": b"x" * 16_385}, 413, "no"),
        ({"method": "POST", "url": "/events", "content": b"x" * (4 * 1024 * 1024 + 1)}, 413, "no"),
        ({"method": "POST", "url": "/event/a", "content": iter([b"x" * 9000] * 2)}, 413, "no"),  # in chunks
        ({"method": "POST", "url": POLL, "content": b"x" * 16_385}, 413, "no"),
        ({"method": "PUT", "url": "/event/a", "content": b"x" * 5_000_000}, 413, None),
        pytest.param(
            {"method": "PUT", "url": "/event/a", "content": b"x" * 20_000},
            413,
            None,
            marks=pytest.mark.fails_on_mutant(
                "the body of a PUT is not limited", CONF, "location ~ ^/(event|user)/", "location ~ ^/(hit|user)/"
            ),
        ),
        pytest.param(
            {"method": "PUT", "url": "/event/a", "content": iter([b"x" * 9000] * 3)},
            413,
            None,
            marks=pytest.mark.fails_on_mutant(
                "a PUT in chunks is not limited", CONF, "client_max_body_size 16k; # for a body in chunks", ""
            ),
        ),
        ({"method": "DELETE", "url": "/user/a", "content": b"x" * 20_000}, 413, None),
        ({"method": "GET", "url": "/events", "headers": {"X": "x" * 40_000}}, 431, None),
        ({"method": "GET", "url": "/events", "headers": [(f"x{i}", "y") for i in range(5000)]}, 431, None),
        ({"method": "GET", "url": "/event/" + "x" * 9000}, 414, None),
        ({"method": "GET", "url": "/events", "headers": {"Host": "a b"}}, 400, None),
        ({"method": "TRACE", "url": "/"}, 405, None),
        pytest.param(
            {"method": "GET", "url": "/metrics"},
            403,
            None,
            marks=pytest.mark.fails_on_mutant(
                "an error of nginx may be embedded in a frame", CONF, "; frame-ancestors 'none'\"", '"'
            ),
        ),
        ({"method": "GET", "url": "/a/..//metrics"}, 403, None),
        ({"method": "GET", "url": "/%6detrics"}, 403, None),
        ({"method": "GET", "url": "/.problem"}, 404, None),
        ({"method": "GET", "url": "/events"}, 502, None),
        ({"method": "POST", "url": "/event/a"}, 502, "unknown"),
        ({"method": "GET", "url": "/hit/a.b/visits"}, 502, "unknown"),
        ({"method": "GET", "url": "/update/a.b/visits?amount=1"}, 502, "unknown"),
        ({"method": "GET", "url": POLL}, 502, None),
    ],
    ids=lambda value: value.get("url", "")[:16] if isinstance(value, dict) else str(value),
)
def test_errors_of_the_proxy_are_problem_documents(
    proxy_without_node: Proxy, request_: dict, status: int, counted: str | None
) -> None:
    with httpx.Client(base_url=proxy_without_node.url) as http:
        response = http.request(**request_)
    assert response.status_code == status
    assert problem_of(response).get("counted") == counted
    assert response.headers["Server"] == "nginx"


def test_the_largest_bodies_reach_a_node(proxy_without_node: Proxy) -> None:
    with httpx.Client(base_url=proxy_without_node.url) as http:
        for method, path, size in (
            ("POST", "/event/a", 16_384),
            ("PUT", "/event/a", 16_384),
            ("DELETE", "/user/a", 16_384),
            ("POST", "/events", 4 * 1024 * 1024),
        ):
            assert http.request(method, path, content=b"x" * size).status_code == 502


@pytest.mark.fails_on_mutant("an import is limited like a batch", CONF, "client_max_body_size 0;", "")
def test_an_export_and_import_of_any_size_pass_through_the_proxy(proxy, process, node: Process) -> None:
    other_node = process(TALLY_STORE="memory://", TALLY_ADMIN_KEYS=ADMIN_KEY)
    filled, other = (
        httpx.Client(base_url=proxy([port]).url, headers=AS_ADMIN, timeout=60) for port in (node.port, other_node.port)
    )
    with filled, other:
        for i in range(6):
            names = [f"{i} {'x' * 110} {j}" for j in range(10_000)]
            assert filled.post("/events", json=dict.fromkeys(names, i + 1)).status_code == 200
        data = filled.get("/export").content
        assert len(data) > 20_000_000
        rejected = httpx.post(f"{other.base_url}/import", content=data, headers={"Authorization": "Bearer unknown"})
        assert rejected.status_code == 401
        assert other.post("/import", content=data).status_code == 200
        exported = other.get("/export").content
        assert sorted(exported.splitlines()[1:]) == sorted(data.splitlines()[1:])


@pytest.mark.parametrize(
    "replaced",
    [
        {"rate=3000r/s": "rate=1r/m", "burst=3000": "burst=2"},
        {"limit_conn connections 500": "limit_conn connections 2"},
    ],
    ids=["requests", "connections"],
)
async def test_a_flood_from_one_address_is_limited_by_the_proxy(proxy, replaced: dict[str, str]) -> None:
    async with stub_nodes(1, answers=False) as (ports, received):
        front = proxy(ports, replaced | {"proxy_read_timeout 5s": "proxy_read_timeout 60s"})
        async with client_from(front, "127.0.4.1") as flood, client_from(front, "127.0.4.2") as other:
            pending = [asyncio.create_task(flood.post("/event/a")) for _ in range(2)]
            await eventually(lambda: len(received) == 2)
            pending.append(asyncio.create_task(other.post("/event/a")))
            await eventually(lambda: len(received) == 3)
            if "burst=3000" in replaced:
                pending.append(asyncio.create_task(flood.post("/event/a")))
                await eventually(lambda: len(received) == 4)
            rejected = await flood.post("/event/a")
            for request in pending:
                request.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
    assert rejected.status_code == 429
    assert rejected.headers["Retry-After"] == "1"
    assert problem_of(rejected)["counted"] == "no"


@pytest.mark.fails_on_mutant("a head may take a minute", CONF, "client_header_timeout 10s", "client_header_timeout 60s")
async def test_a_client_that_sends_half_a_request_is_disconnected(tmp_path: Path) -> None:
    assert (await slow_clients(tmp_path, connections=40, timeout="300ms")).violations == []


def test_a_head_that_arrives_byte_by_byte_has_a_time_limit(proxy) -> None:
    front = proxy([free_port()], {"client_header_timeout 10s": "client_header_timeout 300ms"})
    with socket.create_connection(("127.0.0.1", front.port), timeout=20) as connection, suppress(OSError):
        connection.sendall(b"POST /event/a HTTP/1.1\r\nX: ")
        connection.settimeout(0.05)
        for _ in range(400):
            connection.sendall(b"x")
            with suppress(TimeoutError):
                assert connection.recv(1000) == b""
                break
        else:
            pytest.fail("the connection was not closed")


@asynccontextmanager
async def stub_nodes(number: int, *, answers: bool = True) -> AsyncIterator[tuple[list[int], list[bytes]]]:
    """Nodes that close the connection instead of responding, or only wait; and the request lines that they received.

    Yields the ports of the nodes, and the list of request lines.
    """
    received: list[bytes] = []
    stopped = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append((await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")[0])
        if not answers:
            await stopped.wait()
        writer.close()

    servers = [await asyncio.start_server(handle, "127.0.0.1", 0) for _ in range(number)]
    try:
        yield [server.sockets[0].getsockname()[1] for server in servers], received
    finally:
        stopped.set()
        for server in servers:
            server.close()


@pytest.mark.parametrize(
    "hit",
    [
        pytest.param(
            ("POST", "/event/a"),
            marks=[
                pytest.mark.fails_on_mutant(
                    "a POST is sent twice",
                    CONF,
                    "proxy_next_upstream error timeout;",
                    "proxy_next_upstream error timeout non_idempotent;",
                ),
                pytest.mark.fails_on_mutant("what was sent is sent again", CONF, "'~^0(, 0)* /", "'~ /"),
            ],
        ),
        pytest.param(
            ("GET", "/hit/mysite.com/visits"),
            marks=pytest.mark.fails_on_mutant(
                "a GET that counts is sent twice", CONF, "proxy_next_upstream off; # nginx would", "# nginx would"
            ),
        ),
        pytest.param(
            ("GET", "/set/mysite.com/visits?value=1"),
            marks=pytest.mark.fails_on_mutant("a GET that sets is sent twice", CONF, "|create|set)/", "|create)/"),
        ),
        pytest.param(
            ("PUT", "/event/a"),
            marks=pytest.mark.fails_on_mutant("a PUT is sent twice", CONF, "^(PUT|DELETE)$", "^(DELETE)$"),
        ),
        pytest.param(
            ("DELETE", "/user/a"),
            marks=pytest.mark.fails_on_mutant("a DELETE is sent twice", CONF, "^(PUT|DELETE)$", "^(PUT)$"),
        ),
    ],
    ids=["POST", "GET", "set", "PUT", "DELETE"],
)
async def test_a_write_that_a_node_received_is_not_sent_to_another_node(proxy, hit: tuple[str, str]) -> None:
    async with stub_nodes(3) as (ports, received):
        front = proxy(ports)
        async with client_from(front) as http:
            lost = await http.request(*hit)
            counted = "unknown" if hit[0] == "POST" or hit[1].startswith("/hit/") else None
            assert (lost.status_code, problem_of(lost).get("counted")) == (502, counted)
            assert len(received) == 1
            assert (await http.get("/event/a")).status_code == 502
            assert len(received) == 3  # the two other nodes
            assert len(set(received)) == 2


@pytest.mark.fails_on_mutant("what was not sent fails", CONF, "error_page 502 = @again;", "error_page 502 /.problem;")
@pytest.mark.parametrize(("method", "path"), [("PUT", "/event/a"), ("GET", "/hit/mysite.com/visits")])
async def test_a_write_that_no_node_received_is_sent_once_more(proxy, node: Process, method: str, path: str) -> None:
    front = proxy([free_port(), node.port])
    for i in range(12):  # nginx would send about half of these addresses to the node that does not run
        async with client_from(front, f"127.0.9.{i + 1}") as http:
            assert (await http.request(method, path)).status_code in {401, 404}


async def test_a_node_that_does_not_respond_in_time_is_a_504(proxy) -> None:
    async with stub_nodes(1, answers=False) as (ports, received):
        front = proxy(ports, {"proxy_read_timeout 5s": "proxy_read_timeout 300ms"})
        async with client_from(front) as http:
            late = await http.post("/event/a")
    assert (late.status_code, problem_of(late)["counted"], len(received)) == (504, "unknown", 1)


@pytest.mark.fails_on_mutant("a page has no HSTS header", CONF, "on max-age=31536000;", "")
@pytest.mark.fails_on_mutant(
    "the dashboard has no HSTS header", CONF, "$hsts always; # a location with", "'' always; # a location with"
)
@pytest.mark.fails_on_mutant(
    "Socket.IO has no HSTS header", CONF, "$hsts always; # repeated for Socket.IO", "'' always;"
)
@pytest.mark.fails_on_mutant("an error has no HSTS header", CONF, "$hsts always; # repeated for errors", "'' always;")
@pytest.mark.fails_on_mutant(
    "the node does not know the scheme", CONF, "X-Forwarded-Proto $scheme", "X-Forwarded-Proto http"
)
@pytest.mark.fails_on_mutant(
    "TLS 1.0 is allowed", "docs/how-to/reverse-proxy.md", "ssl_protocols TLSv1.2 TLSv1.3;", "ssl_protocols TLSv1;"
)
@pytest.mark.fails_on_mutant(
    "an unknown directive", "docs/how-to/reverse-proxy.md", "ssl_session_cache shared", "ssl_sessions_cache shared"
)
async def test_the_tls_setup_of_the_documentation_works(proxy, node: Process, tmp_path: Path) -> None:
    section = (ROOT / "docs/how-to/reverse-proxy.md").read_text().partition("## TLS\n")[2].partition("\n## ")[0]
    nginx, shell, _ = re.findall(r"```\w+\n(.*?)```", section, re.DOTALL)
    subprocess.run(["sh", "-euc", shell], cwd=tmp_path, check=True, capture_output=True)
    port = free_port()
    lines = nginx.replace("8443", f"127.0.0.1:{port}").replace(
        "/etc/nginx/", ""
    )  # nginx finds the files next to its configuration
    front = proxy([node.port], {"listen 8080;": f"listen 8080;\n{lines}"})
    assert front.check() == 0
    context, host = ssl.create_default_context(cafile=tmp_path / "tls/fullchain.pem"), f"127.0.0.1:{port}"
    with httpx.Client(base_url=f"https://{host}", verify=context, timeout=20) as http:
        for method, path, origin, status in (
            ("POST", "/event/a", f"https://{host}", 200),
            ("POST", "/event/a", f"http://{host}", 403),
            ("GET", "/", None, 200),
            ("GET", "/nothing", None, 404),
            ("GET", POLL, f"https://{host}", 200),
            ("GET", POLL, f"http://{host}", 403),
            ("GET", "/metrics", None, 403),
            ("TRACE", "/", None, 405),
        ):
            response = http.request(method, path, headers={"Origin": origin} if origin else {})
            assert (response.status_code, path) == (status, path)
            assert response.headers["Strict-Transport-Security"] == "max-age=31536000"
    url = f"wss://{host}/socket.io/?EIO=4&transport=websocket"
    async with websockets.connect(url, ssl=context, origin=f"https://{host}") as page:
        assert (await page.recv())[0] == "0"
    plain = httpx.get(front.url)
    assert plain.status_code == 200
    assert "Strict-Transport-Security" not in plain.headers
