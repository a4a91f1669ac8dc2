"""Requests that are no valid HTTP or WebSocket upgrades, and oversized heads."""

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import websockets

from tests.support.servers import Process, RunningApp

POLL = "/socket.io/?EIO=4&transport=polling"
WEBSOCKET = "/socket.io/?EIO=4&transport=websocket"


def first_line(tally: RunningApp | Process, *pieces: bytes) -> bytes:
    """Send these bytes, and return the first line of the response."""
    host, port = tally.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except OSError:
            pass  # the server may close the connection before it has received everything
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


async def test_bad_upgrades_and_bytes_that_are_not_http(process: Callable[..., Process]) -> None:
    tally = process(TALLY_STORE="memory://")
    requests = [UPGRADE.format(*upgrade).encode() for upgrade in UPGRADES] + MALFORMED
    for request in requests:
        assert re.match(rb"HTTP/1.1 4\d\d ", first_line(tally, request)), request
    assert b" 101 " in first_line(tally, UPGRADE.format(WEBSOCKET, "close, Upgrade", 13).encode())
    logged = {line for line in tally.log.read_text().splitlines() if line.startswith(("ERROR", "WARNING", "Traceback"))}
    assert {line.partition(":")[2].strip() for line in logged} == {
        "Invalid HTTP request received.",
        "ASGI callable returned without completing handshake.",  # uvicorn logs this for each rejected WebSocket
    }
    assert tally.get("/events") == {}


@pytest.mark.fails_on_mutant(
    "the head of a request has no limit", "app/server/connection.py", "self._pending_bytes > HEAD_BYTES_MAX", "False"
)
@pytest.mark.fails_on_mutant(
    "the number of headers has no limit", "app/server/connection.py", "if len(self.headers) > HEADERS_MAX:", "if False:"
)
@pytest.mark.fails_on_mutant(
    "the headers of an unfinished head have no limit",
    "app/server/connection.py",
    "len(self.headers or ()) > HEADERS_MAX",
    "False",
)
def test_the_head_of_a_request_is_limited(process: Callable[..., Process]) -> None:
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
        assert first_line(tally, begin, *[more] * 500).startswith(b"HTTP/1.1 400 "), begin
    assert memory_kb(tally) - before < 10_000
    few, too_many = (b"".join(b"a%d: b\r\n" % i for i in range(number)) for number in (150, 250))
    for fine in (b"X: " + b"x" * 40_000 + b"\r\n", few):
        assert first_line(tally, HIT + fine + b"\r\n").startswith(b"HTTP/1.1 200 ")
    for end in (b"\r\n", b""):
        assert first_line(tally, HIT + too_many + end).startswith(b"HTTP/1.1 400 ")
    pipelined = b"Content-Length: 16000\r\n\r\n" + b" " * 16_000
    assert first_line(tally, *[HIT + pipelined] * 10).startswith(b"HTTP/1.1 200 ")


async def test_messages_are_not_decompressed(process: Callable[..., Process]) -> None:
    tally = process(TALLY_STORE="memory://")
    url = tally.url.replace("http", "ws", 1) + WEBSOCKET
    async with websockets.connect(url, compression="deflate") as socket_:
        assert "Sec-WebSocket-Extensions" not in socket_.response.headers


def memory_kb(app: Process) -> int:
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{app.pid}/status").read_text())[1])
