"""Bad input over every route, on a real socket: a 4xx problem that says why, never a 5xx, and the store unchanged."""

import gzip
import json
import re
import socket
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest
import websockets

from tests.support.redis_servers import RedisServer
from tests.support.servers import AS_ADMIN, Process, Served, eventually, serving, settings_for

NAMES = {
    "empty": b"",
    "129 characters": b"x" * 129,
    "10,000 characters": b"x" * 10_000,
    "NUL": b"%00",
    "CR LF": b"a%0d%0ab",
    "no UTF-8": b"%ff",
    "overlong UTF-8": b"%c0%af",
    "a surrogate": b"%ed%a0%80",
    "a dot": b"%2e",
    "two dots": b"%2e%2e",
    "a slash": b"a%2fb",
    "a bidi control": b"%e2%80%ae",
    "a line separator": b"a%e2%80%a8b",
    "a private character": b"%ee%80%80",
    "a space before": b"%20a",
}
AMOUNTS = {
    "NaN": b"NaN",
    "Infinity": b"Infinity",
    "1e400": b"1e400",
    "2^63": b"9223372036854775808",
    "5,000 digits": b"9" * 5000,
    "over": b"1000001",
    "zero": b"0",
    "negative": b"-1",
    "a fraction": b"1.5",
    "true": b"true",
    "null": b"null",
    "a string": b'"5"',
    "a list": b"[1]",
    "deep": b"[" * 100_000,
}
BODIES = {
    "invalid UTF-8": b'{"by": "\xff"}',
    "UTF-16": '{"event":"a"}'.encode("utf-16"),
    "truncated": b'{"by": 1',
    "unknown fields": b'{"event": "a", "x": 1}',
    "a user with a space": b'{"event":"a","user":"u "}',
    "a session that is a number": b'{"event":"a","session":7}',
    "a lone surrogate": b'{"event":"\\ud800"}',
    "deep objects": b'{"a":' * 100_000,
    "5 MiB": b"[" + b" " * 5 * 2**20 + b"]",
}


@pytest.fixture(scope="module", params=["sqlite", "redis"])
async def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer
) -> AsyncIterator[Served]:
    shared_redis.flush()
    directory = tmp_path_factory.mktemp("served")
    settings = settings_for(request.param, directory, shared_redis, countapi=True, write_limit="100000/second")
    async with serving(settings) as served, served.client() as client:
        await client.post("/event/known", json={"by": 7})
        yield served


@pytest.fixture
async def tally(served: Served) -> AsyncIterator[Served]:
    """One for all of them, which has the same counts after each."""
    yield served
    async with served.client() as client:
        assert (await client.get("/events")).json() == {"known": 7}
        assert (await client.get("/leaderboard?window=total")).json() == [{"rank": 1, "eventName": "known", "count": 7}]


def assert_refused(answer: httpx.Response, *, counted: str | None) -> None:
    assert 400 <= answer.status_code < 500, answer.text
    problem = answer.json()
    assert problem["status"] == answer.status_code
    assert problem["detail"]
    assert problem.get("counted") == counted


@pytest.mark.parametrize("name", NAMES)
async def test_a_bad_name(tally: Served, name: str) -> None:
    segment = NAMES[name]
    async with tally.client() as client:
        for path in (b"/event/" + segment, b"/event/" + segment + b"/series"):
            url = httpx.URL(tally.url).copy_with(raw_path=path)
            assert_refused(await client.get(url), counted=None)
            assert_refused(await client.post(url), counted="no")
        if segment not in {b"%ed%a0%80", b"%ff", b"%c0%af"}:  # in a query these are three U+FFFD, which is a name
            query = httpx.URL(tally.url).copy_with(raw_path=b"/series?event=known&event=" + segment)
            assert_refused(await client.get(query), counted=None)


@pytest.mark.parametrize("amount", AMOUNTS)
async def test_a_bad_amount(tally: Served, amount: str) -> None:
    by = AMOUNTS[amount]
    async with tally.client() as client:
        assert_refused(await client.post("/event/known", content=b'{"by": ' + by + b"}"), counted="no")
        for body in (b'{"known": ' + by + b"}", b'[{"event":"known"},{"event":"known","by":' + by + b"}]"):
            assert_refused(await client.post("/events", content=body), counted="no")
        ndjson = b'{"event":"known"}\n{"event":"known","by":' + by + b"}\n"
        answer = await client.post("/events", content=ndjson)
        assert_refused(answer, counted="no")
        assert "item 1" in answer.json()["detail"]


@pytest.mark.parametrize("body", BODIES)
async def test_a_bad_body(tally: Served, body: str) -> None:
    async with tally.client() as client:
        for path in ("/event/known", "/events"):
            assert_refused(await client.post(path, content=BODIES[body]), counted="no")


async def test_a_client_that_goes_away_in_the_middle_of_its_body(
    tally: Served, caplog: pytest.LogCaptureFixture
) -> None:
    async with tally.client() as client:

        async def refused() -> str:
            return re.search(r'tally_posts_total{outcome="refused"} (\S+)', (await client.get("/metrics")).text)[1]

        async def one_more() -> bool:
            return float(await refused()) == before + 1

        before = float(await refused())
        host, port = tally.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(b"POST /event/known HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        await eventually(one_more)
    assert "Traceback" not in caplog.text


IMPORTS = {
    "nothing": b"",
    "no JSON": b"x",
    "an array": b"[]",
    "no end": b'{"tally":1,"export":"e","timezone":"UTC"}\n',
    "another format": b'{"tally":2,"export":"e","timezone":"UTC"}\n{"end":1}\n',
    "another zone": b'{"tally":1,"export":"e","timezone":"Mars/Base"}\n{"end":1}\n',
    "deep": b"[" * 100_000,
    "no UTF-8": b'{"tally":1,"export":"\xff","timezone":"UTC"}\n',
    "a line without an end": b'{"tally":1,"export":"' + b"e" * 5_000_000,
}
LINES = {
    "a wrong end": b'{"end":7}',
    "an unknown step": b'{"bucket":["year",0,""],"counts":{"a":1}}',
    "an unknown kind": b'{"bucket":["day",0,"x"],"counts":{"a":1}}',
    "before 1970": b'{"bucket":["day",-1,""],"counts":{"a":1}}',
    "far away": b'{"bucket":["day",99999999999999,""],"counts":{"a":1}}',
    "less than nothing": b'{"bucket":["total",0,""],"counts":{"a":-1}}',
    "more than JSON can say": b'{"bucket":["total",0,""],"counts":{"a":9007199254740992}}',
    "a name with a slash": b'{"bucket":["total",0,""],"counts":{"a/b":1}}',
    "the name of all": b'{"bucket":["total",0,""],"counts":{"":1}}',
    "a fraction": b'{"bucket":["total",0,""],"counts":{"a":1.5}}',
    "no estimate": b'{"bucket":["day",0,"sketch:user:a"],"counts":{"99999999":1}}',
    "a log that is none": b'{"bucket":["day",0,"log"],"counts":{"[":1}}',
    "a deep log": b'{"bucket":["day",0,"log"],"counts":{"' + b"[" * 100_000 + b'":1}}',
}
HEAD = b'{"tally":1,"export":"e","timezone":"UTC"}\n'
IMPORTS |= {name: HEAD + line + b'\n{"end":2}\n' for name, line in LINES.items()}


async def test_a_bad_import(tally: Served) -> None:
    async with tally.client() as client:
        for name, file in IMPORTS.items():
            assert_refused(await client.post("/import", content=file, headers=AS_ADMIN), counted="no")
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
READS += [f"/{verb}/{what}" for verb in ("hit", "get", "info") for what in (
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


async def test_bad_corrections_ids_and_questions(tally: Served) -> None:
    async with tally.client() as client:

        async def refused(method: str, path: bytes, content: bytes = b"") -> None:
            url = httpx.URL(tally.url).copy_with(raw_path=path)
            answer = await client.request(method, url, content=content, headers=AS_ADMIN)
            assert_refused(answer, counted="no" if path.startswith(b"/hit/") or method == "POST" else None)

        for body in NUMBERS:
            await refused("PUT", b"/event/known", body)
        for name in NAMES.values():
            for method, path in (("PUT", b"/event/"), ("DELETE", b"/event/"), ("GET", b"/embed/"), ("GET", b"/badge/")):
                await refused(method, path + name + b".svg" * (path == b"/badge/"), b'{"count":1}' * (method == "PUT"))
        for bad in BAD_IDS:
            for method, path in (("GET", b"/user/"), ("GET", b"/session/"), ("DELETE", b"/user/")):
                await refused(method, path + bad)
        for path in READS:
            await refused("GET", path.encode())
        for last_id in ("x", ":", "é", "-1:-1", "x" * 8000, f"{'9' * 5000}:{'9' * 5000}"):  # as if there were none
            headers = {"Last-Event-ID": last_id.encode()}
            async with client.stream("GET", "/stream?event=known", headers=headers) as answer:
                assert answer.status_code == 200


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
async def test_bodies_are_not_decompressed(tally: Served, compress: Callable[[bytes], bytes]) -> None:
    bomb = compress(b"[" + b" " * 10_000_000 + b"]")
    async with tally.client() as client:
        for path in ("/event/known", "/events", "/import"):
            headers = {"Content-Encoding": "gzip", **AS_ADMIN}
            assert_refused(await client.post(path, content=bomb, headers=headers), counted="no")


POLL = "/socket.io/?EIO=4&transport=polling"
WEBSOCKET = "/socket.io/?EIO=4&transport=websocket"
POSTS = {
    b"4",
    b"x",
    b"9",
    b"0",
    b"6",
    b"2probe",
    b"5",
    b"b!!!",
    b"d=",
    b"d=%",
    b"4\xff",
    b"\x1e\x1e",
    b"\x1e".join([b"3"] * 17),
}
POSTS |= {"४".encode(), b"1\x1e0", b"3" * 16_385}
IGNORED = {
    b"",
    b"42" + b"[" * 8000,
    b"41234567",
    b'451-["a",{"_placeholder":true,"num":0}]',
    b"40{",
    b"40/" + b"n" * 5000,
}
IGNORED |= {
    b'42["resync"]',
    b"43[]",
    b"42[NaN]",
    b'42["connect"]',
    b'42/live,7["resync",1]',
    b"41",
    "4²".encode(),
    b"44{}",
}
IGNORED |= {b'42/x\nERROR forged,["resync"]', b"40/x\nERROR forged,", b"41/x\nERROR forged,", b'42["ERROR forged"]'}
SESSIONS = ["", "&sid=", "&sid=x", "&sid=%0aERROR%20forged", "&sid=%ff", "&sid=a&sid=b", "&j=x"]


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is logged but what engineio says once of a kind, in its own words."""
    yield
    records = caplog.get_records("call")
    said = [record.getMessage() for record in records if record.name.startswith(("tally", "uvicorn"))]
    assert all("further occurrences" in text for text in said), said
    assert not [record for record in records if record.exc_info]
    assert not [record for record in records if "forged" in record.getMessage()]


@pytest.mark.catches(
    "what engineio cannot do with reaches it",
    "app/live/broadcaster.py",
    "receive = heard(scope, receive)",
    "heard(scope, receive)",
)
@pytest.mark.catches(
    "what clients say is logged",
    "app/live/broadcaster.py",
    "_packets.setLevel(logging.ERROR)",
    "_packets.setLevel(logging.INFO)",
)
async def test_bad_polls(tally: Served, quiet: None) -> None:
    async with tally.client() as client:

        async def session() -> str:
            return f"{POLL}&sid={json.loads((await client.get(POLL)).text[1:])['sid']}"

        for said in (*POSTS, *IGNORED):
            path = await session()
            assert (await client.post(path, content=said)).status_code in ({400, 413} if said in POSTS else {200}), said
            assert (await client.post(path, content=b"3")).status_code == 200  # and it goes on
        path = await session()
        assert (await client.post(path, content=b"1")).status_code == 200
        for method in ("POST", "GET"):
            assert_refused(await client.request(method, path, content=b"3"), counted="no" if method == "POST" else None)
        for wrong in SESSIONS[1:]:
            for method in ("GET", "POST", "OPTIONS", "DELETE", "PATCH"):
                answer = await client.request(method, POLL + wrong, content=b"3" if method == "POST" else b"")
                assert 400 <= answer.status_code < 500 or (method, wrong) in {("GET", "&sid="), ("OPTIONS", "&sid=")}
        for query in ("", "EIO=3&transport=polling", "transport=polling", "%ff=%ff", "EIO=4&transport=websocket"):
            assert (await client.get(f"/socket.io/?{query}")).status_code == 400


ENDING = ["", "x", "9", "0", "6", "4", "b!!!", "d=", "\u096a", "x" * 20_000, "4" + "x" * 20_000]


@pytest.mark.catches("an empty message is none", "app/live/inbound.py", 'if encoded_packet in {"", b""}:', "if False:")
async def test_bad_frames(tally: Served, quiet: None) -> None:
    """They end a page's connection or are ignored, and are nobody else's concern."""
    url = tally.url.replace("http", "ws", 1) + WEBSOCKET
    async with websockets.connect(url) as watcher, tally.client() as client:
        await watcher.recv()
        await watcher.send("40")
        await watcher.recv()
        for said in ENDING:
            async with websockets.connect(url) as page:
                await page.recv()
                await page.send(said)
                with pytest.raises(websockets.ConnectionClosed):
                    await page.recv()
        for ignored in (*(said.decode() for said in IGNORED if said), *IGNORED, "2", "2probe", "5", "3", b"\x00"):
            async with websockets.connect(url) as page:
                await page.recv()
                await page.send(ignored)
        await client.post("/event/known", json={"by": 1})
        told = ""
        while not told.startswith("42"):
            told = await watcher.recv()
        assert told == '42["update",{"eventName":"known","count":8}]'
        await client.put("/event/known", json={"count": 7, "total": 7}, headers=AS_ADMIN)


def raw(tally: Served | Process, *pieces: bytes) -> bytes:
    """The first line of what is answered to these bytes."""
    host, port = tally.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except OSError:  # it was cut before all was sent
            pass
        return connection.makefile("rb").readline()


UPGRADE = (
    "GET {} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: {}\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: {}\r\n\r\n"
)
UPGRADES = [(WEBSOCKET, "close", 13), (WEBSOCKET, "keep-alive", 13), (WEBSOCKET, "Upgrade", 12)]
UPGRADES += [
    (path, "Upgrade", 13) for path in (POLL, WEBSOCKET + "&sid=x", "/events", "/event/a", "/stream", "/static/x")
]
HIT = b"POST /event/known HTTP/1.1\r\nHost: x\r\n"
MALFORMED = [
    HIT + b"Content-Length: -1\r\n\r\n",
    HIT + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    HIT + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    HIT + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    HIT + b"X: a\x00b\r\n\r\n",
    HIT + b": a\r\n\r\n",
    b"G\x00T /events HTTP/1.1\r\n\r\n",
    b"GET /events HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01",
]


async def test_bad_upgrades_and_bytes_that_are_no_http(process: Callable[..., Process]) -> None:
    tally = process(TALLY_STORE="memory://")
    requests = [UPGRADE.format(*upgrade).encode() for upgrade in UPGRADES] + MALFORMED
    for request in requests:
        assert re.match(rb"HTTP/1.1 4\d\d ", raw(tally, request)), request
    assert b" 101 " in raw(tally, UPGRADE.format(WEBSOCKET, "close, Upgrade", 13).encode())
    said = {line for line in tally.log.read_text().splitlines() if line.startswith(("ERROR", "WARNING", "Traceback"))}
    assert {line.partition(":")[2].strip() for line in said} == {
        "Invalid HTTP request received.",
        "ASGI callable returned without completing handshake.",  # uvicorn says so of each WebSocket that is refused
    }
    assert tally.get("/events") == {}


@pytest.mark.catches(
    "a head without end", "app/server/http_protocol.py", "self._pending_bytes > HEAD_BYTES_MAX", "False"
)
@pytest.mark.catches(
    "headers without number", "app/server/http_protocol.py", "if len(self.headers) > HEADERS_MAX:", "if False:"
)
@pytest.mark.catches("and without end", "app/server/http_protocol.py", "len(self.headers or ()) > HEADERS_MAX", "False")
def test_a_head_has_bounds(process: Callable[..., Process]) -> None:
    tally = process(TALLY_STORE="memory://")
    before = memory_kb(tally)
    endless = b"x" * 65_536
    many = b"".join(b"a%d: b\r\n" % i for i in range(9000))
    chunks = HIT + b"Transfer-Encoding: chunked\r\n\r\n"
    for begin, more in (
        (HIT + b"X: ", endless),
        (HIT, many),
        (b"GET /", endless),
        (chunks + b"0\r\nX: ", endless),
        (chunks + b"0\r\n", many),
    ):
        assert raw(tally, begin, *[more] * 500).startswith(b"HTTP/1.1 400 "), begin
    assert memory_kb(tally) - before < 10_000
    few, too_many = (b"".join(b"a%d: b\r\n" % i for i in range(number)) for number in (150, 250))
    for fine in (b"X: " + b"x" * 40_000 + b"\r\n", few):
        assert raw(tally, HIT + fine + b"\r\n").startswith(b"HTTP/1.1 200 ")
    for end in (b"\r\n", b""):
        assert raw(tally, HIT + too_many + end).startswith(b"HTTP/1.1 400 ")
    pipelined = b"Content-Length: 16000\r\n\r\n" + b" " * 16_000
    assert raw(tally, *[HIT + pipelined] * 10).startswith(b"HTTP/1.1 200 ")


async def test_messages_are_not_decompressed(process: Callable[..., Process]) -> None:
    tally = process(TALLY_STORE="memory://")
    url = tally.url.replace("http", "ws", 1) + WEBSOCKET
    async with websockets.connect(url, compression="deflate") as page:
        assert "Sec-WebSocket-Extensions" not in page.response.headers


def memory_kb(app: Process) -> int:
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{app.pid}/status").read_text())[1])
