"""The shortcut of a single hit past the router: whatever is asked, both ways give the same answer; and one write."""

import asyncio
import re
import socket
from pathlib import Path

import httpx
import pytest
from conftest import ChosenClock, RedisServer, settings_for
from test_bad_input import AMOUNTS, BODIES, NAMES

from app import ingest, recorder
from app.__main__ import OneWriteTransport
from app.main import create_app
from app.stores.base import Applied, OutcomeUnknown, StoreUnavailable
from app.stores.memory import MemoryStore

SEGMENTS = [*NAMES.values(), b"a", b"A%20b", b"%C3%A9", b"e%CC%81", b"%zz", b"a%2Fb", b"a/series", b"a?b=c", b"x" * 128]
HIT_BODIES = [b"", b" \n", b"{}", b'{"by":2}', *BODIES.values(), *(b'{"by":' + by + b"}" for by in AMOUNTS.values())]
KEYS = ["k", '"k"', "k", "", "a b", "x" * 256]


class FailingStore(MemoryStore):
    """A memory store that fails as it is told to."""

    failure: Exception | None = None

    async def apply(self, *arguments: object) -> Applied:
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
    "other paths taken for a hit's", "app/ingest.py", "_EVENT_PATH.fullmatch(scope", "_EVENT_PATH.match(scope"
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


@pytest.mark.catches(
    "a head that waits for its body for ever", "app/__main__.py", "            self._loop.call_soon(self._flush)\n", ""
)
@pytest.mark.catches("a body lost", "app/__main__.py", "write(self._held + data)", "write(self._held)")
async def test_an_answer_is_one_write_and_nothing_is_held_back() -> None:
    class Noted(asyncio.Transport):
        def __init__(self) -> None:
            self.written: list[bytes] = []
            self.closed = False

        def write(self, data: bytes) -> None:
            self.written.append(data)

        def is_closing(self) -> bool:
            return self.closed

        def close(self) -> None:
            self.closed = True

    noted = Noted()
    transport = OneWriteTransport(noted, asyncio.get_running_loop())
    transport.write(b"HTTP/1.1 200 OK, ")
    transport.write(b"its body, ")
    transport.write(b"and more of it")
    assert noted.written == [b"HTTP/1.1 200 OK, its body, ", b"and more of it"]
    transport.write(b"HTTP/1.1 200 OK, of a stream")
    await asyncio.sleep(0)
    assert noted.written[2:] == [b"HTTP/1.1 200 OK, of a stream"]
    transport.write(b"HTTP/1.1 500")
    transport.close()
    await asyncio.sleep(0)
    assert noted.written[3:] == [b"HTTP/1.1 500"]
    assert transport.is_closing()
    transport.write(b"HTTP/1.1 too late")
    await asyncio.sleep(0)
    assert noted.written[4:] == []


@pytest.mark.catches(
    "closed, and kept for good", "app/__main__.py", "self._loop.call_later(LINGER_SECONDS", "(lambda *_: 0)(0"
)
async def test_a_closed_connection_whose_client_reads_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.__main__.LINGER_SECONDS", 0.05)
    lost = asyncio.Event()

    class Closing(asyncio.Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:
            wrapped = OneWriteTransport(transport, asyncio.get_running_loop())
            wrapped.write(b"x" * 20_000_000)
            wrapped.close()

        def connection_lost(self, _: Exception | None) -> None:
            lost.set()

    server = await asyncio.get_running_loop().create_server(Closing, "127.0.0.1", 0)
    async with server:
        with socket.create_connection(server.sockets[0].getsockname()):
            async with asyncio.timeout(20):
                await lost.wait()
