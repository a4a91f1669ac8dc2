"""Requests that offer an upgrade: they get the response of the same request without the offer."""

import asyncio
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import websockets
from hypothesis import given, settings
from hypothesis import strategies as st

from app.settings import Settings
from tests.server.test_fast_path import LAST, exchange, get, post, state
from tests.support.servers import Process, RunningApp, serving

UPGRADES = "app/server/upgrades.py"
WEBSOCKET = b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
OFFERS = {
    "of curl and of the JDK": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    "of another protocol": b"Connection: keep-alive, upgrade\r\nUpgrade: TLS/1.0\r\n",
    "in two headers": b"Connection: Upgrade\r\nConnection: keep-alive\r\nUpgrade: a\r\nUpgrade: b\r\n",
    "that is empty": b"Connection: Upgrade\r\nUpgrade: \r\n",
    "of WebSockets among others": b"Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n" + WEBSOCKET,
    "of WebSockets": b"Connection: Upgrade\r\nUpgrade: websocket\r\n" + WEBSOCKET,
}
CHUNKS = b'8\r\n{"by":5}\r\n0\r\n\r\n'
CHUNKED = b"Transfer-Encoding: chunked"
KEY = b"Idempotency-Key: 1"
REQUESTS = {
    "a hit": post(body=b'{"by":5}'),
    "a hit without a body": post(),
    "a hit in chunks": post(b"/event/a", b"", CHUNKED) + CHUNKS,
    "a hit with a key, and its retry": post(b"/event/a", b'{"by":2}', KEY) * 2,
    "a batch": post(b"/events", b"a\nb\nc"),
    "a batch in chunks": post(b"/events", b"", CHUNKED) + b"3\r\na\nb\r\n2\r\n\nc\r\n0\r\n\r\n",
    "a body that is a request": post(b"/event/a", b"GET /event/hidden HTTP/1.1\r\nHost: y\r\n\r\n"),
    "a body that is expected": post(b"/event/a", b'{"by":2}', b"Expect: 100-continue"),
    "a correction": post(b"/event/a", b'{"count":7}').replace(b"POST", b"PUT"),
    "another method": post(b"/event/a", b"xx").replace(b"POST", b"PATCH"),
    "a read with a body": post(b"/events", b"xx").replace(b"POST", b"GET"),
    "a large body": post(b"/events", b"a\n" * 5000),
    "a file": get(b"/static/app.css"),
}
# Requests after which the connection is closed.
LAST_REQUESTS = {
    "a read": LAST,
    "a hit": post(b"/event/a", b'{"by":5}', b"Connection: close"),
    "HTTP/1.0": post(b"/event/a", b'{"by":5}', version=b"1.0"),
    "a length and chunks": post(b"/event/a", b"x", CHUNKED),
}


def offering(request: bytes, offer: bytes) -> bytes:
    """Return a request, or several, with these headers."""
    return request.replace(b"Host: x\r\n", b"Host: x\r\n" + offer)


LOST = pytest.mark.fails_on_mutant("the body is lost", UPGRADES, " + data[stop.args[0] :]", "")


def tally(*, fast_path: bool) -> AbstractAsyncContextManager[RunningApp]:
    chosen = Settings(TALLY_STORE="memory://", write_limit="100000/second")
    return serving(chosen, fast_path=fast_path)


@LOST
@pytest.mark.fails_on_mutant(
    "the parser is kept", UPGRADES, "                self.parser = httptools.HttpRequestParser(self)\n", ""
)
@pytest.mark.fails_on_mutant("any method may become a WebSocket", UPGRADES, "return is_get and", "return")
@pytest.mark.fails_on_mutant("a handshake may have a body", UPGRADES, "not has_body and ", "")
@pytest.mark.fails_on_mutant("one of several offers is accepted", UPGRADES, 'offers == [b"websocket"]', "offers")
@pytest.mark.fails_on_mutant(
    "the request is started twice",
    UPGRADES,
    "if not self.parser.should_upgrade() or self._should_upgrade():",
    "if True:",
)
@pytest.mark.parametrize("fast_path", [True, False], ids=["on the fast path", "on the ordinary path"])
async def test_an_offer_changes_nothing(fast_path: bool) -> None:
    async with tally(fast_path=fast_path) as offered, tally(fast_path=fast_path) as plain:
        for (of, offer), (what, request) in itertools.product(OFFERS.items(), REQUESTS.items()):
            if of == "of WebSockets" and what == "a file":
                continue  # this is a handshake
            expected = await exchange(plain, request + request + LAST)
            assert await exchange(offered, offering(request * 2, offer) + LAST) == expected, (of, what)
        for (of, offer), (what, request) in itertools.product(OFFERS.items(), LAST_REQUESTS.items()):
            if of != "of WebSockets" or what != "a read":
                assert await exchange(offered, offering(request, offer)) == await exchange(plain, request), (of, what)
        assert await state(offered) == await state(plain)


@pytest.mark.fails_on_mutant("the request is lost", UPGRADES, "self._head_without_offer() + ", "")
@pytest.mark.parametrize("what", ["a hit", "a hit in chunks", "a batch", "a hit with a key, and its retry"])
async def test_a_request_with_an_offer_may_arrive_byte_by_byte(what: str) -> None:
    async with tally(fast_path=True) as offered, tally(fast_path=True) as plain:
        expected = await exchange(plain, REQUESTS[what] + LAST)
        request = offering(REQUESTS[what], OFFERS["of curl and of the JDK"]) + LAST
        assert await exchange(offered, *(bytes([byte]) for byte in request)) == expected


@settings(max_examples=12, deadline=None)
@given(
    chosen=st.lists(
        st.tuples(st.sampled_from(sorted(REQUESTS)), st.sampled_from([b"", *OFFERS.values()])), min_size=1, max_size=8
    ).filter(lambda pairs: ("a file", OFFERS["of WebSockets"]) not in pairs),
    cuts=st.lists(st.integers(0, 3000), max_size=8),
)
def test_any_sequence_with_offers_gets_the_same_bytes(chosen: list[tuple[str, bytes]], cuts: list[int]) -> None:
    data = b"".join(offering(REQUESTS[what], offer) for what, offer in chosen) + LAST
    ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    pieces = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    async def compare() -> None:
        async with tally(fast_path=True) as offered, tally(fast_path=True) as plain:
            expected = await exchange(plain, b"".join(REQUESTS[what] for what, _ in chosen) + LAST)
            assert await exchange(offered, *pieces) == expected

    asyncio.run(compare())


async def test_a_websocket_handshake_is_still_accepted() -> None:
    async with tally(fast_path=True) as server:
        url = server.url.replace("http", "ws", 1) + "/socket.io/?EIO=4&transport=websocket"
        async with websockets.connect(url) as client:
            assert (await client.recv())[0] == "0"


@pytest.mark.fails_on_mutant(
    "a response is written into a WebSocket",
    "app/server/connection.py",
    "return not self.requests_in_flight() and super()._should_upgrade()",
    "return super()._should_upgrade()",
)
@pytest.mark.parametrize("what", ["a hit", "a batch"])
async def test_a_handshake_behind_an_unfinished_request_is_an_ordinary_request(what: str) -> None:
    async with tally(fast_path=True) as offered, tally(fast_path=True) as plain:
        expected = await exchange(plain, REQUESTS[what] + REQUESTS["a file"] + LAST)
        handshake = offering(REQUESTS["a file"], OFFERS["of WebSockets"])
        assert await exchange(offered, REQUESTS[what] + handshake + LAST) == expected


@pytest.mark.fails_on_mutant(
    "the lost body is not noticed", "app/http/middleware.py", "        _reject_lost_body(headers)\n", "        pass\n"
)
@pytest.mark.fails_on_mutant("the connection is kept", "app/http/middleware.py", ', {"Connection": "close"})', ")")
async def test_the_protocol_of_uvicorn_counts_no_request_whose_body_it_drops() -> None:
    bodies = ("a hit", "a hit in chunks", "a batch", "a batch in chunks", "a body that is a request")
    ignored = {"of WebSockets", "that is empty"}  # uvicorn takes any method for a handshake, and ignores an empty offer
    offers = [offer for of, offer in OFFERS.items() if of not in ignored]
    async with serving(Settings(TALLY_STORE="memory://"), own_protocol=False) as server:
        for offer, what in itertools.product(offers, bodies):
            request = offering(REQUESTS[what], offer)
            received = await exchange(server, request)
            assert received.startswith(b"HTTP/1.1 400 "), (offer, what)
            assert b'"counted":"no"' in received, (offer, what)
            assert received.count(b"HTTP/1.1") == 1, (offer, what)
            await exchange(server, *request.partition(b"\r\n\r\n"))  # the connection may be reset
        assert (await state(server))["counts"] == {}
        async with server.client() as client:  # a request without a body loses nothing
            hit = await client.post("/event/a", headers={"Connection": "Upgrade", "Upgrade": "h2c"})
        assert hit.json()["count"] == 1


@pytest.mark.fails_on_mutant(
    "a tunnel keeps its connection", UPGRADES, 'if self.parser.get_method() == b"CONNECT":', "if False:"
)
async def test_a_tunnel_is_rejected_and_its_connection_is_closed() -> None:
    async with tally(fast_path=True) as server:
        received = await exchange(server, b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n" + post())
        assert received.startswith(b"HTTP/1.1 400 ")
        assert received.count(b"HTTP/1.1") == 1


JAVA = """
import java.net.URI;
import java.net.http.*;
import java.net.http.HttpRequest.BodyPublishers;

class Client {
  public static void main(String[] arguments) throws Exception {
    var client = HttpClient.newHttpClient();
    for (var path : new String[] {"/event/java", "/event/java", "/events"}) {
      var body = path.equals("/events") ? "a\\nb\\nc" : "{\\"by\\":5}";
      var chunks = BodyPublishers.fromPublisher(BodyPublishers.ofString(body));
      var request = HttpRequest.newBuilder(URI.create(arguments[0] + path)).POST(chunks).build();
      System.out.println(client.send(request, HttpResponse.BodyHandlers.ofString()).body());
    }
  }
}
"""


@LOST
@pytest.mark.skipif(not shutil.which("java"), reason="java is not installed")  # as the tests of Kafka
def test_the_http_client_of_java_counts_its_bodies(process: Callable[..., Process], tmp_path: Path) -> None:
    server = process(TALLY_STORE="memory://")
    (tmp_path / "Client.java").write_text(JAVA)
    output = subprocess.check_output(["java", tmp_path / "Client.java", server.url], text=True, timeout=100)
    first, second, batch = map(json.loads, output.splitlines())
    assert (first["count"], second["count"], batch["accepted"]) == (5, 10, 3)


@LOST
def test_curl_counts_its_bodies_when_it_offers_http_2(process: Callable[..., Process]) -> None:
    server = process(TALLY_STORE="memory://")
    curl = ["curl", "-sS", "--http2"]
    requests = ["-d", '{"by":5}', f"{server.url}/event/a", f"{server.url}/event/a"]
    output = subprocess.check_output([*curl, *requests], text=True, timeout=20)
    assert re.findall(r'"count":(\d+)', output) == ["5", "10"]
    batch = ["-H", "Transfer-Encoding: chunked", "-d", "[" + '{"event":"b"},' * 2 + '{"event":"c"}]']
    assert json.loads(subprocess.check_output([*curl, *batch, f"{server.url}/events"], timeout=20))["accepted"] == 3
