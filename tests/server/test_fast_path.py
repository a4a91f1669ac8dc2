"""The fast path: hits that bypass ASGI get the same responses as on the route, in order, and count the same."""

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.http.fast_path import FastPath
from app.server import connection
from app.settings import Settings
from app.stores.base import OutcomeUnknown, StoreUnavailable
from app.stores.memory import MemoryStore
from app.stores.results import ApplyResult
from tests.http.bad_values import AMOUNTS, BODIES, NAMES
from tests.support.failing_store import FailingStore
from tests.support.servers import Process, RunningApp, SettableClock, connected, eventually, serving

FAST_PATH, PROTOCOL, CONNECTION = "app/http/fast_path.py", "app/server/http_protocol.py", "app/server/connection.py"
KEY = "k" * 16
LAST = b"GET /event/last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def post(path: bytes = b"/event/a", body: bytes = b"", *lines: bytes, version: bytes = b"1.1") -> bytes:
    head = [b"POST " + path + b" HTTP/" + version, b"Host: x", *lines]
    if body:
        head.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*head, b"", b""]) + body


def get(path: bytes) -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n"


HIT, BATCH = post(), post(b"/events", b'{"a": 2, "b": 1}')
CHUNKED = post(b"/event/a", b"", b"Transfer-Encoding: chunked") + b'8\r\n{"by":2}\r\n0\r\n\r\n'
# Each sequence of requests on one connection. LAST follows, so that the connection ends.
SEQUENCES = {
    "a hit": HIT,
    "an encoded name": post(b"/event/caf%C3%A9%20%E2%98%95"),
    "a name in another form": post(b"/event/e%CC%81") + get(b"/event/%C3%A9"),
    "a quoted name": post(b"/event/%22%5C"),
    "128 characters": post(b"/event/" + b"x" * 128),
    "a query": post(b"/event/a?x=1"),
    "a fragment": post(b"/event/a#x"),
    "a second slash": post(b"/event//a") + post(b"/event/a/") + post(b"//event/a"),
    "an encoded slash": post(b"/event/a%2Fseries") + post(b"/event/a%2fb"),
    "an invalid escape": post(b"/event/a%zz") + post(b"/event/%"),
    "an absolute URL": post(b"http://x/event/a"),
    "a name in Latin 1": post(b"/event/\xe9"),
    "an amount": post(b"/event/a", b'{"by": 5}') + HIT,
    "white space": post(b"/event/a", b" \n"),
    "a user and a session": post(b"/event/a", b'{"user": "u/1", "session": "s", "by": 2}') + get(b"/event/a/audience"),
    "another user": post(b"/event/a", b'{"user": "u "}') + post(b"/event/a", b'{"user": "v"}'),
    "no such field": post(b"/event/a", b'{"amount": 1}'),
    "chunked": CHUNKED + HIT,
    "HTTP/1.0": post(version=b"1.0"),
    "HTTP/1.0 with keep-alive": post(b"/event/a", b"", b"Connection: keep-alive", version=b"1.0"),
    "Connection: close": post(b"/event/a", b"", b"Connection: close"),
    "Expect": post(b"/event/a", b'{"by": 2}', b"Expect: 100-continue") + HIT,
    "a key": post(b"/event/a", b"", b"Idempotency-Key: 1") * 2 + HIT,
    "two keys": post(b"/event/a", b"", b"Idempotency-Key: 1", b"Idempotency-Key: 2"),
    "two hosts": post(b"/event/a", b"", b"Host: evil.example"),
    "another host": post(b"/event/a", b"", b"host: evil.example") + HIT,
    "an own origin": post(b"/event/a", b"", b"Origin: http://x"),
    "an allowed origin": post(b"/event/a", b"", b"Origin: https://shop.example") + HIT,
    "another origin": HIT + post(b"/event/a", b"", b"Origin: https://evil.example") + HIT,
    "an unknown API key": HIT + post(b"/event/a", b"", b"Authorization: Bearer " + b"u" * 16) * 2 + HIT,
    "an API key": post(b"/event/a", b"", b"Authorization: Bearer " + KEY.encode()) + HIT,
    "two API keys": post(b"/event/a", b"", b"Authorization: x", b"Authorization: Bearer " + KEY.encode()),
    "a public amount": post(b"/event/a", b'{"by": 11}'),
    "an amount with a key": post(b"/event/a", b'{"by": 11}', b"Authorization: Bearer " + KEY.encode()),
    "a hit before a read": HIT + get(b"/event/a") + HIT + get(b"/events"),
    "a hit between batches": BATCH + HIT + BATCH + HIT + get(b"/events"),
    "a large body": post(b"/event/a", b" " * 16_385) + HIT,
    "the largest body": post(b"/event/a", b" " * 16_384) + HIT,
    "two lengths": post(b"/event/a", b"x", b"Content-Length: 2"),
    "a length and chunks": post(b"/event/a", b"x", b"Transfer-Encoding: chunked"),
    "a signed length": post(b"/event/a", b"", b"Content-Length: +1") + b"x",
    "a length with a space": post(b"/event/a", b"", b"Content-Length : 1") + b"x",
    "a length in hexadecimal": post(b"/event/a", b"", b"Content-Length: 0x1") + b"x",
    "a hidden request": post(b"/event/a", get(b"/event/hidden")) + HIT,
    "a folded header": b"POST /event/a HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
    "line feeds only": b"POST /event/a HTTP/1.1\nHost: x\n\n",
    "no host": b"POST /event/a HTTP/1.1\r\n\r\n",
    "a lower-case method": b"post /event/a HTTP/1.1\r\nHost: x\r\n\r\n",
    "other methods": get(b"/event/a") + HIT.replace(b"POST", b"PUT") + HIT.replace(b"POST", b"OPTIONS"),
    "many headers": post(b"/event/a", b"", *(b"A%d: b" % i for i in range(150))) + HIT,
    "too many headers": post(b"/event/a", b"", *(b"A%d: b" % i for i in range(201))),
    "40 hits": HIT * 40,
    "new names over the limit": b"".join(post(b"/event/n%d" % i) for i in range(30)) + HIT,
    **{f"a name: {what}": post(b"/event/" + name) for what, name in NAMES.items()},
    **{f"a body: {what}": post(b"/event/a", body) + HIT for what, body in BODIES.items() if len(body) < 200_000},
    **{f"an amount: {what}": post(b"/event/a", b'{"by":' + by + b"}") for what, by in AMOUNTS.items()},
}
OPTIONS = {
    "public_by_max": 10,
    "write_keys": (),
    "admin_keys": KEY,
    "allowed_hosts": "x",
    "allowed_origins": "https://shop.example",
    "events_max": 20,
    "write_limit": "10000/hour",
}


@pytest.fixture
def hits_on_fast_path(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The URLs of all hits that took the fast path."""
    urls: list[bytes] = []
    count = FastPath.count

    def record(self: FastPath, head: object, url: bytes, *arguments: object) -> None:
        urls.append(url)
        count(self, head, url, *arguments)

    monkeypatch.setattr(FastPath, "count", record)
    return urls


async def exchange(server: RunningApp, *pieces: bytes) -> bytes:
    """Send each piece when the server has read the one before. Return everything that it sends until it closes."""
    async with connected(server.url) as (reader, writer):
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            writer.write(piece)
            for _ in range(3 if len(pieces) > 1 else 0):
                await asyncio.sleep(0)
        try:
            async with asyncio.timeout(20):
                received = await reader.read()
        except ConnectionResetError:
            received = b"reset"
    return re.sub(rb"(?im)^(date|retry-after): .*\r\n", b"", received)


@pytest.fixture
async def both(clock: SettableClock) -> AsyncIterator[list[RunningApp]]:
    """A server with the fast path, and one without."""
    clock.go_to("2026-03-28T12:00:00+00:00")
    options = Settings(TALLY_STORE="memory://", **OPTIONS)
    async with serving(options, clock) as fast, serving(options, clock, fast_path=False) as plain:
        yield [fast, plain]


async def state(server: RunningApp) -> dict[str, object]:
    """Return the counts, and the metrics of counted and rejected requests."""
    async with server.client() as client:
        metrics = (await client.get("/metrics", headers={"Host": "x"})).text
        counts = (await client.get("/events", headers={"Host": "x"})).json()
    return {"counts": counts, "metrics": re.findall(r"^tally_(?:posts|hits)_total.*", metrics, re.MULTILINE)}


@pytest.mark.fails_on_mutant("an encoded slash is a hit", FAST_PATH, "(?:(?!%2[fF])", "(?:")
@pytest.mark.fails_on_mutant("a hit has no CORS headers", FAST_PATH, "length + self._head.header_lines", "length")
@pytest.mark.fails_on_mutant("an error has no CORS headers", FAST_PATH, " + head.header_lines", "")
@pytest.mark.fails_on_mutant("keys are ignored", FAST_PATH, 'b"idempotency-key", ', "")
@pytest.mark.fails_on_mutant(
    "the last connection is kept", PROTOCOL, "            and parser.should_keep_alive()\n", ""
)
@pytest.mark.fails_on_mutant(
    "the head is checked once", PROTOCOL, "if self.headers != self._checked_headers:", "if not self._head:"
)
@pytest.mark.fails_on_mutant(
    "a body is kept", PROTOCOL, 'self._pending_bytes, self._body = 0, b""', "self._pending_bytes = 0"
)
@pytest.mark.fails_on_mutant(
    "a hit overtakes a read", PROTOCOL, "            and (self.cycle is None or self.cycle.response_complete)\n", ""
)
@pytest.mark.fails_on_mutant(
    "a read overtakes a hit",
    PROTOCOL,
    "        if self._waiters:\n            self.flow.pause",
    "        if False:\n            self.flow.pause",
)
@pytest.mark.fails_on_mutant(
    "a queued read is never started", PROTOCOL, "        elif self.pipeline:\n", "        elif False:\n"
)
async def test_the_fast_path_and_the_route_give_the_same_bytes(
    both: list[RunningApp], hits_on_fast_path: list[bytes]
) -> None:
    fast, plain = both
    for what, sequence in SEQUENCES.items():
        assert await exchange(fast, sequence + LAST) == await exchange(plain, sequence + LAST), what
    assert await state(fast) == await state(plain)
    assert len(hits_on_fast_path) > 150


@pytest.mark.parametrize("what", ["an amount", "a hit between batches", "an encoded name", "chunked", "a name: NUL"])
async def test_a_request_may_arrive_byte_by_byte(both: list[RunningApp], what: str) -> None:
    fast, plain = both
    pieces = [bytes([byte]) for byte in SEQUENCES[what] + LAST]
    expected = await exchange(plain, SEQUENCES[what] + LAST)
    assert await exchange(fast, *pieces) == expected
    assert (await state(fast))["counts"] == (await state(plain))["counts"]


async def test_failures_of_the_store_are_the_same(
    clock: SettableClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("app.stores.MemoryStore", FailingStore)
    options = Settings(TALLY_STORE="memory://", **OPTIONS)
    async with serving(options, clock) as fast, serving(options, clock, fast_path=False) as plain:
        for failure in (StoreUnavailable("unreachable"), OutcomeUnknown("cut"), RuntimeError("a bug")):
            monkeypatch.setattr(FailingStore, "failure", failure)
            assert await exchange(fast, HIT + HIT + LAST) == await exchange(plain, HIT + HIT + LAST)
        monkeypatch.setattr(FailingStore, "failure", None)
        monkeypatch.setattr("app.group_commit.WAITING_WEIGHT_MAX", 0)
        assert await exchange(fast, HIT + LAST) == await exchange(plain, HIT + LAST)
        monkeypatch.delattr("app.group_commit.GroupCommitter.add_hit")
        assert await exchange(fast, HIT + LAST) == await exchange(plain, HIT + LAST)
        assert await state(fast) == await state(plain)
    assert "AttributeError" in caplog.text


@pytest.mark.fails_on_mutant(
    "the rate limit is skipped", FAST_PATH, '            self._rate_limits.consume_for(head.address, "write")\n', ""
)
@pytest.mark.fails_on_mutant(
    "an error is remembered", PROTOCOL, "None if self._head.error else self.headers", "self.headers"
)
async def test_both_ways_share_one_rate_limit(clock: SettableClock) -> None:
    options = Settings(TALLY_STORE="memory://", write_limit="10/hour", admin_keys=KEY)
    async with serving(options, clock) as fast, serving(options, clock, fast_path=False) as plain:
        responses = [await exchange(server, (HIT + CHUNKED) * 6 + LAST) for server in (fast, plain)]
        assert responses[0] == responses[1]
        assert responses[0].count(b"HTTP/1.1 429 ") == 2
    wrong_key = post(b"/event/a", b"", b"Authorization: Bearer " + b"u" * 16)
    async with serving(options, clock) as fast, serving(options, clock, fast_path=False) as plain:
        responses = [await exchange(server, wrong_key * 12 + LAST) for server in (fast, plain)]
        assert responses[0] == responses[1]
        assert responses[0].count(b"HTTP/1.1 429 ") == 2


@settings(max_examples=12, deadline=None)
@given(
    chosen=st.lists(
        st.sampled_from([HIT, BATCH, CHUNKED, get(b"/event/a"), post(b"/event/b", b'{"by":2}'), post(b"/event/%zz")]),
        min_size=1,
        max_size=12,
    ),
    cuts=st.lists(st.integers(0, 3000), max_size=8),
)
def test_any_sequence_on_one_connection_gets_the_same_bytes(chosen: list[bytes], cuts: list[int]) -> None:
    data = b"".join(chosen) + LAST
    ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    pieces = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    async def compare() -> None:
        options = Settings(TALLY_STORE="memory://")
        async with serving(options) as fast, serving(options, fast_path=False) as plain:
            assert await exchange(fast, *pieces) == await exchange(plain, *pieces)

    asyncio.run(compare())


@pytest.mark.fails_on_mutant(
    "responses overtake each other", PROTOCOL, "if self._waiters[0] is not waiter:", "if False:"
)
@pytest.mark.fails_on_mutant(
    "early responses are lost", PROTOCOL, "        while self._early and", "        while False and"
)
async def test_300_hits_in_one_packet_get_300_responses_in_order(both: list[RunningApp]) -> None:
    fast, _ = both
    names = [b"abc"[i % 3 : i % 3 + 1] for i in range(300)]
    received = await exchange(fast, b"".join(post(b"/event/" + name) for name in names) + LAST)
    assert re.findall(rb'"eventName":"([abc])"', received) == names
    counts = [int(count) for count in re.findall(rb'"eventName":"a","count":(\d+)', received)]
    assert counts == list(range(1, 101))


STAYS_CONNECTED = pytest.mark.fails_on_mutant(
    "a client that does not read stays",
    CONNECTION,
    "self.transport.abort)\n\n    def resume",
    "lambda: None)\n\n    def resume",
)


class GatedStore(MemoryStore):
    """A memory store whose commits wait for `gate`."""

    gate: asyncio.Event

    async def apply(self, *arguments: object) -> ApplyResult:
        await self.gate.wait()
        return await super().apply(*arguments)


@pytest.fixture
async def gated(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningApp]:
    """A server whose commits wait until GatedStore.gate is set."""
    monkeypatch.setattr("app.stores.MemoryStore", GatedStore)
    monkeypatch.setattr(GatedStore, "gate", asyncio.Event(), raising=False)
    async with serving(Settings(TALLY_STORE="memory://", write_limit="100000/second")) as server:
        yield server
        GatedStore.gate.set()


@contextlib.contextmanager
def open_sockets(url: str, number: int, data: bytes = b"") -> Iterator[list[socket.socket]]:
    """So many sockets that have sent these data."""
    host, port = url.removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(number)]
        for raw in sockets:
            raw.sendall(data)
        yield sockets


@pytest.mark.fails_on_mutant(
    "a waiter keeps its connection",
    PROTOCOL,
    "        if not self._waiters or self.transport.is_closing():  # the client has disconnected\n",
    "        if False:\n",
)
async def test_hits_of_clients_that_disconnect_while_waiting_count_once(
    gated: RunningApp, hits_on_fast_path: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        hits_on_fast_path.clear()
        with open_sockets(gated.url, 50, HIT) as clients:
            await eventually(lambda: len(hits_on_fast_path) == 50)
            for client in clients:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset the connection
        await eventually(lambda: not gated.connections)
    GatedStore.gate.set()
    async with gated.client() as client:
        assert (await client.get("/event/a")).json()["count"] == 1000
    assert not caplog.records


@pytest.mark.fails_on_mutant(
    "any number of requests is in flight", CONNECTION, "self.requests_in_flight() >= IN_FLIGHT_MAX or ", ""
)
async def test_a_connection_has_a_limited_number_of_requests_in_flight(
    gated: RunningApp, hits_on_fast_path: list[bytes]
) -> None:
    with open_sockets(gated.url, 1, HIT * 400):
        await eventually(lambda: len(hits_on_fast_path) >= connection.IN_FLIGHT_MAX)
        async with gated.client() as client:  # by the time of its response, all that is read would be in flight
            await client.get("/health")
        assert len(hits_on_fast_path) <= connection.IN_FLIGHT_MAX + connection.PIECE_BYTES / len(HIT) + 1
        GatedStore.gate.set()
        await eventually(lambda: len(hits_on_fast_path) == 400)


@pytest.mark.parametrize("request_", [HIT, pytest.param(get(b"/events"), marks=STAYS_CONNECTED)], ids=["hits", "reads"])
async def test_a_client_that_never_reads_is_disconnected(request_: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SLOW_CLIENT_SECONDS", 0.2)
    options = Settings(TALLY_STORE="memory://", write_limit="1000000/second", read_limit="1000000/second")
    async with serving(options) as server:
        with open_sockets(server.url, 1, request_) as (raw,):
            raw.setblocking(False)
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                async with asyncio.timeout(20):
                    while True:
                        await asyncio.get_running_loop().sock_sendall(raw, request_ * 1000)


async def test_clients_that_never_read_cost_little_memory(tmp_path: Path) -> None:
    process = Process(tmp_path, TALLY_STORE="memory://", TALLY_WRITE_LIMIT="1000000/second").start()
    try:
        before = process.memory()
        with open_sockets(process.url, 20) as clients:
            for client in clients:
                client.setblocking(False)
            for _ in range(400):
                for client in clients:
                    with contextlib.suppress(BlockingIOError):
                        client.send(HIT * 2000)
                await asyncio.sleep(0.005)
            assert (process.memory() - before) / len(clients) < 300_000
    finally:
        process.kill()


async def test_after_sigterm_every_counted_hit_has_its_response(tmp_path: Path) -> None:
    process = Process(tmp_path, TALLY_STORE=f"sqlite:///{tmp_path}/tally.db", TALLY_WRITE_LIMIT="1000000/second")
    acknowledged = 0

    async def count() -> None:
        nonlocal acknowledged
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            async with connected(process.url) as (reader, writer):
                while True:
                    writer.write(HIT * 5)
                    for _ in range(5):
                        head = await reader.readuntil(b"\r\n\r\n")
                        await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))
                        acknowledged += head.startswith(b"HTTP/1.1 200 ")

    process.start()
    try:
        tasks = [asyncio.create_task(count()) for _ in range(20)]
        await eventually(lambda: acknowledged > 500)
        assert await asyncio.to_thread(process.terminate) == 0
        await asyncio.gather(*tasks)
        process.start()
        assert process.get("/event/a")["total"] == acknowledged
    finally:
        process.kill()
