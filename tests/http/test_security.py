"""What strangers can do with what they send: headers on every answer, whose address counts, logs, spreadsheets."""

import csv
import io
import re
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from fastapi import Response

from app.http.routes.counts import _csv
from app.stores.memory import MemoryStore
from tests.http.test_permissions import bearer
from tests.server.test_cli import run_tally
from tests.support.redis_servers import RedisServer, free_port
from tests.support.servers import ADMIN_KEY, AS_ADMIN, ChosenClock, Process, eventually, serving, settings_for

POLL = "/socket.io/?EIO=4&transport=polling"
OUR_PAGES = ["/", "/kiosk", "/embed/a"]
PAGES = [*OUR_PAGES, "/docs", "/static/app.css", "/static/js/main.js", "/docs/assets/swagger-ui.css"]
READS = ["/event/a", "/events", "/leaderboard", "/series", "/event/a/series", "/audience", "/user/u", "/session/s"]
READS += ["/history", "/history?format=csv", "/metrics", "/health", "/openapi.json", "/badge/a.svg"]
READS += ["/event/a/shield.json", "/stream", "/embed/a/stream", "/get/abc", "/export", POLL]
PREFLIGHT = {"Origin": "http://{host}", "Access-Control-Request-Method": "POST"}
ANSWERS: list[tuple[int, str, str, dict]] = [
    (200, "GET", path, {"headers": AS_ADMIN}) for path in (*PAGES, *READS[:-4])
]
ANSWERS += [(200, "GET", path, {"headers": AS_ADMIN}) for path in ("/stream", "/embed/a/stream", "/export", POLL)]
ANSWERS += [
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


@pytest.mark.catches("a stranger's frame", "app/main.py", "{_PAGE}; frame-ancestors {framers}", "{_PAGE}")
@pytest.mark.catches("a stranger's frame of data", "app/main.py", "'none'; frame-ancestors 'none'\"", "'none'\"")
@pytest.mark.catches("types are guessed", "app/main.py", '    (b"x-content-type-options", b"nosniff"),\n', "")
@pytest.mark.catches(
    "only where all is well",
    "app/main.py",
    "build_middleware_stack(), permissions, refuse)",
    "router, permissions, refuse)",
)
@pytest.mark.catches("hits go past it", "app/http/routes/count.py", "        answer.raw_headers += headers\n", "")
async def test_every_answer_says_what_a_browser_may_do_with_it(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    settings = settings_for("memory", tmp_path, redis_server, countapi=True, read_limit="60/hour")
    async with serving(settings) as tally, tally.client() as client:
        place = tally.url.removeprefix("http://")
        await client.get("/hit/abc")
        for status, method, path, how in ANSWERS:
            if status == 429:
                while (await client.get("/event/a")).status_code != 429:
                    pass
            if status == 500:
                monkeypatch.setattr(MemoryStore, "counts", None)
            headers = {name: text.format(host=place) for name, text in how.get("headers", {}).items()}
            address = "127.0.0.2" if status == 500 else "127.0.0.1"
            async with (
                tally.client(address) as other,
                other.stream(method, path, **how | {"headers": headers}) as answer,
            ):
                assert answer.status_code == status, (method, path, answer.status_code)
                seen.add(path)
                said = answer.headers
                assert said["X-Content-Type-Options"] == "nosniff", path
                assert said["Referrer-Policy"] == "no-referrer", path
                assert said["Cache-Control"] in {"no-cache", "no-store", "max-age=5, must-revalidate"}, path
                policy = dict(part.strip().partition(" ")[::2] for part in said["Content-Security-Policy"].split(";"))
                assert policy["default-src"] == "'none'", path
                assert "sandbox" in policy or policy["frame-ancestors"] == "'none'", path
                assert "unsafe" not in said["Content-Security-Policy"], path
                if status == 200 and path in OUR_PAGES:
                    assert policy["trusted-types"] == "'none'", path
                elif path != "/docs":  # nothing but a page does anything in a browser
                    assert len(policy) == 2, path
                assert "X-Powered-By" not in said
    assert len(seen) > 30


def test_an_answer_does_not_say_what_it_was_made_with(process: Callable[..., Process]) -> None:
    tally = process(TALLY_STORE="memory://")
    for path in ("/", "/events", "/nothing", "/static/app.css"):
        assert "Server" not in httpx.get(tally.url + path).headers


FOR = "X-Forwarded-For"
OTHERS = ["X_Forwarded_For", "X-Real-IP", "Forwarded", "True-Client-IP", "CF-Connecting-IP"]
# whether the peer is a trusted proxy, what it says in each of three requests, and how many clients these are taken for
FORWARDED = [(False, name, "198.51.100.{n}", 1) for name in (FOR, *OTHERS)]
FORWARDED += [(True, name, "198.51.101.{n}", 1) for name in OTHERS]
FORWARDED += [
    (True, FOR, "198.51.102.{n}", 3),
    (True, FOR, "198.51.103.{n}, 198.51.103.9", 1),  # a client wrote the first, the proxy the last
    (True, FOR, "{n}, 198.51.104.9", 1),
    (True, FOR, "198.51.105.{n}, 127.0.8.250", 3),  # through two proxies, both trusted
    (True, FOR, "198.51.106.{n}, 198.51.106.9, 127.0.8.250", 1),
    (True, FOR, "2001:db8:1:2::{n}", 1),  # all the addresses of one client
    (True, FOR, "2001:db8:2:{n}::1", 3),
    (True, FOR, "198.51.107.9:1000{n}", 1),
]


@pytest.mark.catches(
    "anybody is believed", "app/server/server.py", "forwarded_allow_ips=trusted_proxies", 'forwarded_allow_ips="*"'
)
@pytest.mark.catches(
    "a client has many addresses", "app/http/rate_limits.py", "ipaddress.IPv6Network((ip, 64), strict=False)", "ip"
)
def test_whose_address_a_limit_counts_for(process: Callable[..., Process]) -> None:
    tally = process(TALLY_STORE="memory://", TALLY_WRITE_LIMIT="1/hour", TALLY_TRUSTED_PROXIES="127.0.8.0/24")
    for index, (trusted, name, said, clients) in enumerate(FORWARDED, 1):
        transport = httpx.HTTPTransport(local_address=f"127.0.{8 if trusted else 9}.{index}")
        with httpx.Client(base_url=tally.url, transport=transport) as client:
            answers = [client.post("/event/a", headers={name: said.format(n=n)}).status_code for n in (1, 2, 3)]
        assert answers == [200] * clients + [429] * (3 - clients), (trusted, name, said)


FORGED = b"a\r\nERROR forged\x1b[31m\x00"
IN_A_PATH = b"a%0d%0aERROR%20forged%1b[31m%00"
SENT = [b"POST /event/" + IN_A_PATH, b"GET /events?prefix=" + IN_A_PATH, b"GET /" + IN_A_PATH, b"GET /%ff" + IN_A_PATH]
SENT += [b"GET /static/" + IN_A_PATH, b"PUT /event/" + IN_A_PATH, b"GET /socket.io/?EIO=4&sid=" + IN_A_PATH]
SENT += [b"GET /hit/abc?callback=" + IN_A_PATH, b"GET /history/" + IN_A_PATH]
SAID = [b"Authorization: Bearer ", b"Origin: ", b"Idempotency-Key: ", b"Last-Event-ID: ", b"User-Agent: ", b"Referer: "]
SAID += [b"X-Forwarded-For: ", b"Cookie: "]
BODY = b'[{"event":"a\\r\\nERROR forged\\u001b","user":"\\r\\nERROR forged"}]'


@pytest.mark.catches(
    "what was asked is logged as it is",
    "app/http/routes/count.py",
    "            answer = await self._refuse(request, error)\n",
    "            log.warning('%s', scope['path'])\n            answer = await self._refuse(request, error)\n",
)
@pytest.mark.parametrize("command", [(), ("-m", "uvicorn", "app.main:app", "--port", "{port}")], ids=["own", "uvicorn"])
def test_nobody_writes_lines_into_the_log(process: Callable[..., Process], command: tuple[str, ...]) -> None:
    """uvicorn's own command logs each request; `python -m app` says nothing of what is refused."""
    tally = process(*command, TALLY_STORE="memory://", TALLY_COUNTAPI="true", TALLY_TRUSTED_PROXIES="127.0.0.1")
    before = tally.log.read_text()
    for sent in SENT:
        assert re.match(rb"HTTP/1.1 [24]\d\d ", answer_to(tally, sent + b" HTTP/1.1\r\nHost: a\r\n\r\n")), sent
    for header in SAID:
        for text in (b"\x1b[31mERROR forged", b"a\nERROR forged", b"a\rERROR forged", "ünï\u2028ERROR forged".encode()):
            head = b"POST /event/a HTTP/1.1\r\nHost: a\r\n" + header + text + b"\r\nContent-Length: 0\r\n\r\n"
            assert re.match(rb"HTTP/1.1 [24]\d\d ", answer_to(tally, head)), head
    for host in (FORGED, b"a\x1b[31m", b"a b"):
        answer_to(tally, b"GET /events HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
    length = b"Content-Length: %d\r\n\r\n" % len(BODY)
    assert b" 422 " in answer_to(tally, b"POST /events HTTP/1.1\r\nHost: a\r\n" + length + BODY)
    said = tally.log.read_text().removeprefix(before)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u2028]", said)
    lines = said.splitlines()
    assert not [line for line in lines if line.startswith("ERROR")]
    if command:
        assert [line for line in lines if "ERROR%20forged" in line]
    else:
        assert set(lines) <= {"WARNING:  Invalid HTTP request received."}


def answer_to(tally: Process, request: bytes) -> bytes:
    """The first line of what is answered to these bytes."""
    with socket.create_connection(("127.0.0.1", tally.port), timeout=20) as connection:
        connection.sendall(request)
        return connection.makefile("rb").readline()


STARTS = ["=", "+", "-", "@", "＝", "＋", "－", "＠"]  # noqa: RUF001 # as spreadsheets read them
HARMLESS = ["a;=1+1", 'a",=1+1', "a,=1+1", "'=1+1", "a=1", "1", "ورود", "👩‍💻"]


@pytest.mark.catches("formulas are passed on", "app/http/routes/counts.py", 'f"\'{cell}" if', "cell if")
@pytest.mark.catches("a semicolon ends a cell", "app/http/routes/counts.py", ", quoting=csv.QUOTE_NONNUMERIC", "")
async def test_no_name_is_a_formula_in_a_spreadsheet(
    tmp_path: Path, redis_server: RedisServer, clock: ChosenClock
) -> None:
    names = [f"{begin}{formula}" for begin in STARTS for formula in ("1+1", "cmd|' C calc'!A0", 'HYPERLINK("x","y")')]
    names += HARMLESS
    clock.go_to("2026-03-28T12:00:00+00:00")
    async with serving(settings_for("memory", tmp_path, redis_server), clock) as tally, tally.client() as client:
        assert (await client.post("/events", json=dict.fromkeys(names, 1))).status_code == 200
        clock.go_to("2026-03-29T12:00:00+00:00")
        answer = await client.get("/history/2026-03-28?format=csv")
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    head, *rows = csv.reader(io.StringIO(answer.text, newline=""))
    assert head == ["event", "count", "until"]
    assert sorted(row[0] for row in rows) == sorted(f"'{name}" if name[0] in STARTS else name for name in names)
    for line in answer.text.splitlines()[1:]:
        assert re.fullmatch(r'"(?:[^"]|"")*",1,"[^"]*"', line), line  # with all text in quotes no other cell begins
    for begin in "\t\r\n":  # which no name has; should a store have one, it is no formula either
        assert _csv(Response(), ["event"], [[f"{begin}=1+1"]]).body.decode() == f'"event"\r\n"\'{begin}=1+1"\r\n'


SAID_BY_A_NODE = [b"", b"\xff\xfe", b"x", b"[]", b"{}", b"[" * 100_000, b'{"node":1}', b"\x80\x04cos\nsystem\n."]
SAID_BY_A_NODE += [b'{"node":"n","epoch":null,"day":"x","counts":{"a":-1},"generation":[]}']


@pytest.mark.catches(
    "nonsense ends the hearing",
    "app/live/peers.py",
    "except Exception as error:  # noqa: BLE001 # whatever it was",
    "except StoreError as error:  # noqa: BLE001 # whatever it was",
)
async def test_nonsense_from_a_node_changes_nothing_on_the_others(tmp_path: Path, redis_server: RedisServer) -> None:
    settings = settings_for("redis", tmp_path, redis_server)
    async with serving(settings) as one, serving(settings) as other, one.client() as client, other.client() as reader:
        with redis_server.client() as compromised:
            await eventually(lambda: [n for _, n in compromised.pubsub_numsub(*compromised.pubsub_channels())] == [2])
            (channel,) = compromised.pubsub_channels()
            for said in SAID_BY_A_NODE:
                compromised.publish(channel, said)
        async with serving(settings):  # of which the others hear

            async def three() -> bool:
                told = [(await node.get("/health")).json() for node in (client, reader)]
                return [(health["nodes"], health["status"]) for health in told] == [(3, "ok")] * 2

            await eventually(three)
        await client.post("/event/a")
        assert (await reader.get("/events")).json() == {"a": 1}


SHARED = "between-us-alone"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        pytest.param(
            *("TALLY_STORE", "redis://tally:{}@127.0.0.1:x/0"),
            marks=pytest.mark.catches(
                "a URL is shown", "app/stores/redis_url.py", '"TALLY_STORE is not a valid Redis URL; ', 'url + "'
            ),
        ),
        ("TALLY_KAFKA_OPTIONS", "sasl_plain_password={}&x=1"),
    ],
)
def test_a_setting_that_is_refused_keeps_the_password_in_it(variable: str, value: str) -> None:
    ended = run_tally(**{"TALLY_STORE": "memory://", "TALLY_KAFKA": "127.0.0.1:1", variable: value.format(SHARED)})
    assert ended.returncode == 1
    assert ended.stderr.startswith("tally: ")
    assert SHARED not in ended.stdout + ended.stderr


def test_the_password_of_a_redis_is_neither_shown_nor_logged(process: Callable[..., Process]) -> None:
    tally = process(TALLY_STORE=f"redis://tally:{SHARED}@127.0.0.1:{free_port()}/0", TALLY_ADMIN_KEYS=ADMIN_KEY)
    with httpx.Client(base_url=tally.url, headers=AS_ADMIN) as client:
        said = [client.get(path).text for path in ("/health", "/metrics", "/events", "/openapi.json", "/export")]
        said += [client.post(path).text for path in ("/event/a", "/reset")]
    said.append(tally.log.read_text())
    assert "Redis is unreachable" in said[-1]
    assert not [text for text in said if SHARED in text]
