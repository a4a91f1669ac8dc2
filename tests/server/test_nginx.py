"""What docker-compose.yml puts around the nodes: nginx on the shipped configuration, and Redis on its own."""

import asyncio
import json
import random
import re
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest
import redis
import socketio
import websockets
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.nginx import Proxy
from tests.support.redis_servers import USER, free_port, wait_until
from tests.support.scenarios.pages import slow_clients
from tests.support.servers import ADMIN_KEY, AS_ADMIN, ROOT, Fleet, Process, eventually

CONF = "deploy/nginx.conf"
POLL = "/socket.io/?EIO=4&transport=polling"


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Callable[..., Proxy]]:
    started: list[Proxy] = []

    def start(nodes: list[int], replaced: dict[str, str] | None = None) -> Proxy:
        started.append(Proxy(tmp_path, nodes, replaced))
        return started[-1].start()

    yield start
    for one in started:
        one.stop()


@pytest.fixture(scope="module")
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy whose node is not up."""
    alone = Proxy(tmp_path_factory.mktemp("lonely"), [free_port()])
    yield alone.start()
    alone.stop()


def client(proxy: Proxy, address: str = "127.0.0.1") -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(local_address=address)
    return httpx.AsyncClient(base_url=proxy.url, transport=transport, timeout=20)


def live_clients(node: Process) -> float:
    metrics = httpx.get(f"{node.url}/metrics").text
    return float(re.search(r"^tally_live_clients (\S+)", metrics, re.MULTILINE)[1])


def problem(answer: httpx.Response) -> dict[str, object]:
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-cache"
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "frame-ancestors 'none'" in policy
    assert "Strict-Transport-Security" not in answer.headers
    told = answer.json()
    assert (told["type"], told["status"]) == ("about:blank", answer.status_code)
    assert told["title"]
    assert told["detail"]
    return told


@pytest.mark.catches("polling goes from node to node", CONF, "hash $pick;", "")
@pytest.mark.catches("clients without cookies are forgotten", CONF, "'' $remote_addr;", "'' $request_id;")
@pytest.mark.catches("the page's origin is not the proxy's", CONF, "Host $http_host", "Host $host")
async def test_twenty_of_twenty_default_clients_connect_and_get_updates(fleet: Fleet) -> None:
    heard: list[list[dict]] = [[] for _ in range(20)]
    clients = [socketio.AsyncClient(reconnection=False) for _ in heard]
    for one, updates in zip(clients, heard, strict=True):
        one.on("update", updates.append)
        await one.connect(fleet.proxy.url, headers={"Origin": fleet.proxy.url})
    async with client(fleet.proxy, "127.0.1.1") as http:
        assert (await http.post("/event/seen")).json()["ack"] == "redis"
    await eventually(lambda: all({"eventName": "seen", "count": 1} in updates for updates in heard))
    assert {one.transport() for one in clients} == {"websocket"}
    for one in clients:
        await one.disconnect()


async def test_pages_which_begin_with_a_websocket_are_spread_over_the_nodes(fleet: Fleet) -> None:
    pages = [socketio.AsyncClient(reconnection=False) for _ in range(20)]
    for page in pages:
        await page.connect(fleet.proxy.url, transports=["websocket"])
    assert len([node for node in fleet.nodes if live_clients(node)]) > 1
    for page in pages:
        await page.disconnect()


@pytest.mark.catches("the cookie is not looked at", CONF, "default $cookie_tally_node;", "default $remote_addr;")
async def test_a_cookie_keeps_a_polling_client_at_its_node_when_its_address_changes(fleet: Fleet) -> None:
    async with client(fleet.proxy) as http:
        greeting = await http.get(POLL)
    sid = json.loads(greeting.text[1:])["sid"]
    cookie = greeting.headers["Set-Cookie"].partition(";")[0]
    for i in range(10):
        async with client(fleet.proxy, f"127.0.2.{i + 1}") as http:
            pong = await http.post(f"{POLL}&sid={sid}", content="3", headers={"Cookie": cookie})
            assert (pong.status_code, pong.text) == (200, "OK")


def test_no_hash_is_consistent() -> None:
    """That one goes by a server's name, and behind Docker's DNS all nodes have the same: it would be no hash at all."""
    hashes = re.findall(r"^\s*hash (.*);", (ROOT / CONF).read_text(), re.MULTILINE)
    assert len(hashes) == 2
    assert not [words for words in hashes if "consistent" in words]


@pytest.mark.catches("each node limits for itself", CONF, "hash $remote_addr;", "")
@pytest.mark.catches("a client says who it is", CONF, "For $remote_addr;", "For $http_x_forwarded_for;")
async def test_an_address_has_one_limit_in_all_the_fleet_whatever_it_says_of_itself(fleet: Fleet) -> None:
    async with client(fleet.proxy, "127.0.3.1") as http:
        answers = [
            await http.post("/event/limited", headers={name: f"203.0.113.{random.randrange(255)}"})
            for _ in range(20)
            for name in ("X-Forwarded-For", "X_Forwarded_For", "X-Real-IP")
        ]
    assert [answer.status_code for answer in answers] == [200] * 30 + [429] * 30
    assert problem(answers[-1])["detail"] == "more than 30 per 1 minute from one address"
    async with client(fleet.proxy, "127.0.3.2") as http:
        assert (await http.post("/event/limited")).json()["count"] == 31


@pytest.mark.parametrize(
    ("request_", "status", "counted"),
    [
        ({"method": "POST", "url": "/event/a", "content": b"x" * 16_385}, 413, "no"),
        ({"method": "POST", "url": "/events", "content": b"x" * (4 * 1024 * 1024 + 1)}, 413, "no"),
        ({"method": "POST", "url": "/event/a", "content": iter([b"x" * 9000] * 2)}, 413, "no"),  # in chunks
        ({"method": "POST", "url": POLL, "content": b"x" * 16_385}, 413, "no"),
        ({"method": "GET", "url": "/events", "headers": {"X": "x" * 40_000}}, 431, None),
        ({"method": "GET", "url": "/events", "headers": [(f"x{i}", "y") for i in range(5000)]}, 431, None),
        ({"method": "GET", "url": "/event/" + "x" * 9000}, 414, None),
        ({"method": "GET", "url": "/events", "headers": {"Host": "a b"}}, 400, None),
        ({"method": "TRACE", "url": "/"}, 405, None),
        pytest.param(
            {"method": "GET", "url": "/metrics"},
            403,
            None,
            marks=pytest.mark.catches("an error of nginx may be framed", CONF, "; frame-ancestors 'none'\"", '"'),
        ),
        ({"method": "GET", "url": "/a/..//metrics"}, 403, None),
        ({"method": "GET", "url": "/%6detrics"}, 403, None),
        ({"method": "GET", "url": "/.problem"}, 404, None),
        ({"method": "GET", "url": "/events"}, 502, None),
        ({"method": "POST", "url": "/event/a"}, 502, "unknown"),
        ({"method": "GET", "url": "/hit/a.b/visits"}, 502, "unknown"),
        ({"method": "GET", "url": POLL}, 502, None),
    ],
    ids=lambda value: value.get("url", "")[:16] if isinstance(value, dict) else str(value),
)
def test_the_proxy_itself_answers_in_the_one_shape_of_errors(
    lonely: Proxy, request_: dict, status: int, counted: str | None
) -> None:
    with httpx.Client(base_url=lonely.url) as http:
        answer = http.request(**request_)
    assert answer.status_code == status
    assert problem(answer).get("counted") == counted
    assert answer.headers["Server"] == "nginx"


def test_a_body_as_large_as_a_node_takes_gets_to_one(lonely: Proxy) -> None:
    with httpx.Client(base_url=lonely.url) as http:
        for path, size in (("/event/a", 16_384), ("/events", 4 * 1024 * 1024)):
            assert http.post(path, content=b"x" * size).status_code == 502


@pytest.mark.catches("an import is bound like a batch", CONF, "client_max_body_size 0;", "")
def test_all_data_go_through_the_proxy_and_back_however_much_that_is(proxy, process) -> None:
    nodes = [process(TALLY_STORE="memory://", TALLY_ADMIN_KEYS=ADMIN_KEY) for _ in range(2)]
    begun, other = (httpx.Client(base_url=proxy([node.port]).url, headers=AS_ADMIN, timeout=60) for node in nodes)
    with begun, other:
        for i in range(6):
            names = [f"{i} {'x' * 110} {j}" for j in range(10_000)]
            assert begun.post("/events", json=dict.fromkeys(names, i + 1)).status_code == 200
        data = begun.get("/export").content
        assert len(data) > 20_000_000
        refused = httpx.post(f"{other.base_url}/import", content=data, headers={"Authorization": "Bearer nobody's"})
        assert refused.status_code == 401
        assert other.post("/import", content=data).status_code == 200
        again = other.get("/export").content
        assert sorted(again.splitlines()[1:]) == sorted(data.splitlines()[1:])


@pytest.mark.parametrize(
    "replaced",
    [
        {"rate=3000r/s": "rate=1r/m", "burst=3000": "burst=2"},
        {"limit_conn connections 500": "limit_conn connections 2"},
    ],
    ids=["requests", "connections"],
)
async def test_a_flood_from_one_address_stops_at_the_proxy(proxy, replaced: dict[str, str]) -> None:
    async with stub_nodes(1, answers=False) as (ports, taken):
        front = proxy(ports, replaced | {"proxy_read_timeout 5s": "proxy_read_timeout 60s"})
        async with client(front, "127.0.4.1") as flood, client(front, "127.0.4.2") as other:
            waiting = [asyncio.create_task(flood.post("/event/a")) for _ in range(2)]
            await eventually(lambda: len(taken) == 2)
            waiting.append(asyncio.create_task(other.post("/event/a")))
            await eventually(lambda: len(taken) == 3)
            if "burst=3000" in replaced:
                waiting.append(asyncio.create_task(flood.post("/event/a")))
                await eventually(lambda: len(taken) == 4)
            refused = await flood.post("/event/a")
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
    assert refused.status_code == 429
    assert refused.headers["Retry-After"] == "1"
    assert problem(refused)["counted"] == "no"


@pytest.mark.catches("a head may take its time", CONF, "client_header_timeout 10s", "client_header_timeout 60s")
async def test_who_sends_half_a_request_and_no_more_is_cut(tmp_path: Path) -> None:
    assert (await slow_clients(tmp_path, connections=40, timeout="300ms")).broken == []


def test_a_head_has_to_be_whole_in_time_however_it_comes(proxy) -> None:
    front = proxy([free_port()], {"client_header_timeout 10s": "client_header_timeout 300ms"})
    with socket.create_connection(("127.0.0.1", front.port), timeout=20) as dripping, suppress(OSError):
        dripping.sendall(b"POST /event/a HTTP/1.1\r\nX: ")
        dripping.settimeout(0.05)
        for _ in range(400):
            dripping.sendall(b"x")
            with suppress(TimeoutError):
                assert dripping.recv(1000) == b""
                break
        else:
            pytest.fail("it may go on as long as it likes")


@asynccontextmanager
async def stub_nodes(number: int, *, answers: bool = True) -> AsyncIterator[tuple[list[int], list[bytes]]]:
    """Nodes that take a request and go away without an answer, or only wait; and the first lines of what they took."""
    taken: list[bytes] = []
    ended = asyncio.Event()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append((await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")[0])
        if not answers:
            await ended.wait()
        writer.close()

    servers = [await asyncio.start_server(take, "127.0.0.1", 0) for _ in range(number)]
    try:
        yield [server.sockets[0].getsockname()[1] for server in servers], taken
    finally:
        ended.set()
        for server in servers:
            server.close()


@pytest.mark.parametrize(
    "hit",
    [
        pytest.param(
            ("POST", "/event/a"),
            marks=pytest.mark.catches(
                "a POST is sent twice",
                CONF,
                "proxy_next_upstream error timeout;",
                "proxy_next_upstream error timeout non_idempotent;",
            ),
        ),
        pytest.param(
            ("GET", "/hit/mysite.com/visits"),
            marks=pytest.mark.catches("a GET that counts is sent twice", CONF, "proxy_next_upstream off;", "#"),
        ),
    ],
    ids=["POST", "GET"],
)
async def test_a_hit_that_a_node_took_and_did_not_answer_is_not_sent_to_another(proxy, hit: tuple[str, str]) -> None:
    async with stub_nodes(3) as (ports, taken):
        front = proxy(ports)
        async with client(front) as http:
            lost = await http.request(*hit)
            assert (lost.status_code, problem(lost)["counted"]) == (502, "unknown")
            assert len(taken) == 1
            assert (await http.get("/event/a")).status_code == 502
            assert len(taken) == 3  # the two others
            assert len(set(taken)) == 2


async def test_a_node_that_does_not_answer_in_time_is_a_504(proxy) -> None:
    async with stub_nodes(1, answers=False) as (ports, taken):
        front = proxy(ports, {"proxy_read_timeout 5s": "proxy_read_timeout 300ms"})
        async with client(front) as http:
            late = await http.post("/event/a")
    assert (late.status_code, problem(late)["counted"], len(taken)) == (504, "unknown", 1)


@pytest.mark.catches("a browser is not told", CONF, "on max-age=31536000;", "")
@pytest.mark.catches("pages may go on without TLS", CONF, "$hsts always; # where", "'' always; # where")
@pytest.mark.catches("Socket.IO may", CONF, "$hsts always; # of Socket.IO", "'' always;")
@pytest.mark.catches("an error says nothing of TLS", CONF, "$hsts always; # of an error", "'' always;")
@pytest.mark.catches("the node does not know of TLS", CONF, "X-Forwarded-Proto $scheme", "X-Forwarded-Proto http")
@pytest.mark.catches("TLS of 1999", "docs/operating.md", "ssl_protocols TLSv1.2 TLSv1.3;", "ssl_protocols TLSv1;")
@pytest.mark.catches(
    "no directive of nginx", "docs/operating.md", "ssl_session_cache shared", "ssl_sessions_cache shared"
)
async def test_tls_as_docs_operating_says(proxy, process, tmp_path: Path) -> None:
    section = (ROOT / "docs/operating.md").read_text().partition("## TLS\n")[2].partition("\n## ")[0]
    nginx, _, shell = re.findall(r"```\w+\n(.*?)```", section, re.DOTALL)
    (tmp_path / "tls").mkdir()
    subprocess.run(["sh", "-euc", shell], cwd=tmp_path, check=True, capture_output=True)
    node, port = process(TALLY_STORE="memory://", TALLY_TRUSTED_PROXIES="127.0.0.1"), free_port()
    lines = nginx.replace("8443", f"127.0.0.1:{port}").replace("/etc/nginx/", "")  # then beside its configuration
    front = proxy([node.port], {"listen 8080;": f"listen 8080;\n{lines}"})
    assert front.check() == 0
    trusting, place = ssl.create_default_context(cafile=tmp_path / "tls/fullchain.pem"), f"127.0.0.1:{port}"
    with httpx.Client(base_url=f"https://{place}", verify=trusting, timeout=20) as http:
        for method, path, origin, status in (
            ("POST", "/event/a", f"https://{place}", 200),
            ("POST", "/event/a", f"http://{place}", 403),
            ("GET", "/", None, 200),
            ("GET", "/nothing", None, 404),
            ("GET", POLL, f"https://{place}", 200),
            ("GET", POLL, f"http://{place}", 403),
            ("GET", "/metrics", None, 403),
            ("TRACE", "/", None, 405),
        ):
            answer = http.request(method, path, headers={"Origin": origin} if origin else {})
            assert (answer.status_code, path) == (status, path)
            assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
    url = f"wss://{place}/socket.io/?EIO=4&transport=websocket"
    async with websockets.connect(url, ssl=trusting, origin=f"https://{place}") as page:
        assert (await page.recv())[0] == "0"
    plain = httpx.get(front.url)
    assert plain.status_code == 200
    assert "Strict-Transport-Security" not in plain.headers


@pytest.mark.parametrize("end", [Process.kill, Process.terminate])
async def test_when_a_node_ends_the_others_go_on_and_nothing_is_counted_twice(
    fleet: Fleet, end: Callable[[Process], object]
) -> None:
    name, network = end.__name__, {"kill": 5, "terminate": 6}[end.__name__]
    answers: dict[str, int] = {}

    async def count(address: int) -> None:
        async with client(fleet.proxy, f"127.0.{network}.{address}") as http:
            for i in range(20):
                event = f"{name}:{address}:{i}"
                try:
                    answers[event] = (await http.post(f"/event/{event}")).status_code
                    assert (await http.get("/event/seen")).status_code == 200
                except httpx.RemoteProtocolError:  # the node died between the head and the body of its answer
                    answers.setdefault(event, 502)

    running = asyncio.gather(*(count(address) for address in range(1, 13)))
    await eventually(lambda: len(answers) > 60)
    await asyncio.to_thread(end, fleet.nodes[1])
    try:
        await running
        async with client(fleet.proxy, f"127.0.{network}.100") as http:
            counts = (await http.get(f"/events?prefix={name}:")).json()
        assert len(answers) == 240
        assert set(answers.values()) <= {200, 502}
        assert list(answers.values()).count(502) <= 12  # what was on its way to the dead node
        for event, status in answers.items():
            assert counts.get(event, 0) == 1 or (counts.get(event, 0), status) == (0, 502)
    finally:
        await asyncio.to_thread(fleet.nodes[1].start)


@pytest.mark.catches("Redis is open", "deploy/redis.conf", "user default off", "user default on nopass")
def test_redis_asks_for_a_password_and_lets_a_node_do_nothing_but_its_work(fleet: Fleet) -> None:
    wrong = {"username": USER, "password": f"{fleet.redis.password}?"}
    for who in ({}, wrong):
        stranger = redis.Redis(port=fleet.redis.port, retry=Retry(NoBackoff(), 0), **who)
        with stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
    with fleet.redis.client() as node:
        assert node.ping()
        for forbidden in ("FLUSHALL", "KEYS *", "CONFIG SET appendonly no", "SET other 1", "SHUTDOWN", "ACL LIST"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                node.execute_command(*forbidden.split())
    health = fleet.nodes[0].get("/health")
    assert (health["status"], health["durability"]) == ("ok", "a crash of Redis, but for the last 2 seconds")


@pytest.mark.catches(
    "Redis may not read its own file", "deploy/redis.conf", "user default off ~* &* +@all", "user default off"
)
def test_redis_has_all_counts_after_a_restart(fleet: Fleet) -> None:
    with httpx.Client(base_url=fleet.proxy.url, transport=httpx.HTTPTransport(local_address="127.0.7.1")) as http:
        http.post("/events", json={"kept": 5})
        fleet.redis.stop()
        assert http.post("/event/kept").json()["ack"] == "spooled"
        fleet.redis.start()
        wait_until(lambda: all(node.get("/health")["staleSeconds"] is None for node in fleet.nodes))
        assert [node.get("/event/kept")["count"] for node in fleet.nodes] == [6, 6, 6]
        assert [node.get("/health")["lostBatches"] for node in fleet.nodes] == [0, 0, 0]
