"""The shortcut of a single hit past the router: whatever is asked, both ways give the same answer; and one write."""

import asyncio
import re
import socket
from pathlib import Path

import httpx
import pytest
from uvicorn.protocols.http.flow_control import FlowControl

from app import group_commit as recorder
from app.__main__ import LingeringTransport, SingleWriteCycle
from app.http.routes import count as ingest
from app.main import create_app
from app.stores.base import OutcomeUnknown, StoreUnavailable
from app.stores.memory import MemoryStore
from app.stores.results import ApplyResult
from tests.http.test_bad_input import AMOUNTS, BODIES, NAMES
from tests.support.redis_servers import RedisServer
from tests.support.servers import ChosenClock, settings_for

SEGMENTS = [*NAMES.values(), b"a", b"A%20b", b"%C3%A9", b"e%CC%81", b"%zz", b"a%2Fb", b"a/series", b"a?b=c", b"x" * 128]
HIT_BODIES = [b"", b" \n", b"{}", b'{"by":2}', *BODIES.values(), *(b'{"by":' + by + b"}" for by in AMOUNTS.values())]
KEYS = ["k", '"k"', "k", "", "a b", "x" * 256]


class FailingStore(MemoryStore):
    """A memory store that fails as it is told to."""

    failure: Exception | None = None

    async def apply(self, *arguments: object) -> ApplyResult:
        if self.failure:
            raise self.failure
        return await super().apply(*arguments)


async def answers(shortcut: str, clock: ChosenClock, monkeypatch: pytest.MonkeyPatch, settings: object) -> list[tuple]:
    """All that the table's requests are answered, one after the other, and what was counted of them."""
    monkeypatch.setattr(ingest, "_EVENT_PATH", re.compile(shortcut))
    monkeypatch.setattr("app.main.MemoryStore", FailingStore)
    monkeypatch.setattr(FailingStore, "failure", None)
    app = create_app(settings, clock)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    seen: list[tuple] = []
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://tally") as client,
    ):

        async def ask(segment: bytes, method: str = "POST", **request: object) -> None:
            url = client.base_url.copy_with(raw_path=b"/event/" + segment)
            answer = await client.request(method, url, **request)
            headers = {
                **answer.headers,
                "retry-after": "retry-after" in answer.headers,
            }  # how long is the time's affair
            seen.append((segment, request, answer.status_code, headers, answer.content))

        for segment in SEGMENTS:
            await ask(segment)
            await ask(segment, headers={"Idempotency-Key": "k"})
            await ask(segment, "GET")
        for body in HIT_BODIES:
            await ask(b"a", content=body)
        for key in KEYS:
            await ask(b"keyed", headers={"Idempotency-Key": key})
        await ask(b"keyed", headers=[("Idempotency-Key", "k"), ("Idempotency-Key", "k")])
        await ask(b"keyed", headers={"Idempotency-Key": "k"}, content=b'{"by":9}')
        for method in ("GET", "HEAD", "PUT", "OPTIONS"):
            await ask(b"a", method)
        await client.post("/events", json={f"name {i}": 1 for i in range(30)})
        await ask(b"one-too-many")
        for failure in (StoreUnavailable("away"), OutcomeUnknown("cut"), RuntimeError("a bug")):
            monkeypatch.setattr(FailingStore, "failure", failure)
            await ask(b"a")
        monkeypatch.setattr(FailingStore, "failure", None)
        with monkeypatch.context() as overloaded:
            overloaded.setattr(recorder, "WAITING_MAX", 0)
            await ask(b"a")
        with monkeypatch.context() as broken:
            broken.delattr(recorder.Recorder, "record")
            await ask(b"a")
        for method in ["POST", "GET"] * 200:
            await ask(b"over-the-limit", method)
        for path in ("/events", "/metrics"):
            text = (await client.get(path)).text
            seen.append(tuple(line for line in text.splitlines() if not re.search("created|seconds|live", line)))
    return seen


@pytest.mark.catches(
    "other paths taken for a hit's",
    "app/http/routes/count.py",
    "_EVENT_PATH.fullmatch(scope",
    "_EVENT_PATH.match(scope",
)
@pytest.mark.catches("no headers on the shortcut", "app/main.py", "refuse, _HEADERS)", "refuse, [])")
async def test_both_ways_to_a_hit_give_the_same_answers(
    tmp_path: Path, redis_server: RedisServer, clock: ChosenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(
        "memory", tmp_path, redis_server, write_limit="250/hour", read_limit="100/hour", events_max=40
    )
    clock.go_to("2026-03-28T12:00:00+00:00")
    short = await answers(ingest._EVENT_PATH.pattern, clock, monkeypatch, settings)
    clock.go_to("2026-03-28T12:00:00+00:00")
    routed = await answers("no path", clock, monkeypatch, settings)
    for one, other in zip(short, routed, strict=True):
        assert one == other
    assert {seen[2] for seen in short[:-2]} == {200, 401, 404, 405, 413, 422, 429, 500, 503}
    assert all(seen[3]["x-content-type-options"] == "nosniff" for seen in short[:-2])


class Noted(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.writes.append(b"closed")


async def written(
    kind: type[SingleWriteCycle], method: str, keep_alive: bool, headers: list[tuple[bytes, bytes]], *pieces: bytes
) -> list[bytes]:
    """Each write of an answer in these pieces, and what is wrong with it."""
    noted = Noted()
    default, ended = [(b"date", b"today")], asyncio.Event()
    about = (None, None, False, default, ended, False, keep_alive, lambda: noted.writes.append(b"answered"))
    cycle = kind({"method": method}, noted, FlowControl(noted), *about)
    try:
        await cycle.send({"type": "http.response.start", "status": 200, "headers": headers})
        for i, piece in enumerate(pieces):
            await cycle.send({"type": "http.response.body", "body": piece, "more_body": i + 1 < len(pieces)})
    except RuntimeError as error:
        noted.writes.append(str(error).encode())
    return [*noted.writes, b"%d" % cycle.response_complete, b"%d" % ended.is_set()]


@pytest.mark.catches("a body lost", "app/__main__.py", "write(head + body)", "write(head)")
@pytest.mark.catches("a head lost", "app/__main__.py", "            await super().send(start)\n", "")
@pytest.mark.catches("headers that nobody has looked at", "app/__main__.py", "    wrong = any", "    wrong = not any")
@pytest.mark.catches("an answer that says it is longer", "app/__main__.py", 'b"%d" % length)) != 1', 'b"4")) != 1')
@pytest.mark.catches("connections that are not closed", "app/__main__.py", "self.keep_alive and not", "not")
@pytest.mark.catches("a body for HEAD", "app/__main__.py", 'self.scope["method"] != "HEAD" and', "")
async def test_an_answer_is_what_uvicorn_would_send_in_one_write() -> None:
    length = (b"content-length", b"4")
    for headers, pieces, whole in (
        ([length, (b"a", b"b")], [b"body"], True),
        ([(b"a", b"b"), (b"a", b"c"), length], [b"body"], True),
        ([length], [b"bo", b"dy"], False),
        ([length], [b"bodies"], False),
        ([(b"a", b"b")], [b"body"], False),
        ([(b"connection", b"close"), length], [b"body"], False),
        ([length, (b"a", b"b\r\nc: d")], [b"body"], False),
        ([length, (b"a: b\r\nc", b"d"), (b"a", b"b")], [b"body"], False),
    ):
        for method, keep_alive in (("POST", True), ("HEAD", True), ("POST", False)):
            ours = await written(SingleWriteCycle, method, keep_alive, headers, *pieces)
            theirs = await written(SingleWriteCycle.__base__, method, keep_alive, headers, *pieces)
            assert b"".join(ours) == b"".join(theirs), (method, keep_alive, headers)
            assert len(ours) == len(theirs) - (whole and method == "POST" and keep_alive)


@pytest.mark.catches(
    "closed, and kept for good", "app/__main__.py", "self._loop.call_later(LINGER_SECONDS", "(lambda *_: 0)(0"
)
async def test_a_closed_connection_whose_client_reads_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.__main__.LINGER_SECONDS", 0.05)
    lost = asyncio.Event()

    class Closing(asyncio.Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:
            wrapped = LingeringTransport(transport, asyncio.get_running_loop())
            wrapped.write(b"x" * 20_000_000)
            wrapped.close()

        def connection_lost(self, _: Exception | None) -> None:
            lost.set()

    server = await asyncio.get_running_loop().create_server(Closing, "127.0.0.1", 0)
    async with server:
        with socket.create_connection(server.sockets[0].getsockname()):
            async with asyncio.timeout(20):
                await lost.wait()
