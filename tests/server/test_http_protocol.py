"""The HTTP protocol of `python -m app`: one write per response, and connections that close in the end."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.utils import ClientDisconnected

from app.server.connection import ConnectionTransport
from app.server.http_protocol import FRAMED_CHUNKS_EXTENSION, SingleWriteCycle
from app.server.server import http_protocol
from tests.support.servers import ROOT, eventually

PROTOCOL = "app/server/http_protocol.py"


class RecordingTransport(asyncio.Transport):
    """Keeps every write, and notes when it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.writes.append(b"closed")


async def writes_of(
    cycle_class: type[httptools_impl.RequestResponseCycle],
    method: str,
    keep_alive: bool,
    headers: list[tuple[bytes, bytes]],
    *pieces: bytes,
) -> list[bytes]:
    """Return each write of a response with this body in pieces, the error if there was one, and the final state."""
    transport, complete = RecordingTransport(), asyncio.Event()
    cycle = cycle_class(
        scope={"method": method},
        transport=transport,
        flow=FlowControl(transport),
        logger=None,
        access_logger=None,
        access_log=False,
        default_headers=[(b"date", b"today")],
        message_event=complete,
        expect_100_continue=False,
        keep_alive=keep_alive,
        on_response=lambda: transport.writes.append(b"response complete"),
    )
    try:
        await cycle.send({"type": "http.response.start", "status": 200, "headers": headers})
        for i, piece in enumerate(pieces):
            await cycle.send({"type": "http.response.body", "body": piece, "more_body": i + 1 < len(pieces)})
    except RuntimeError as error:
        transport.writes.append(str(error).encode())
    return [*transport.writes, b"%d" % cycle.response_complete, b"%d" % complete.is_set()]


@pytest.mark.fails_on_mutant("the body is not written", PROTOCOL, "write(head + body)", "write(head)")
@pytest.mark.fails_on_mutant("the head is not written", PROTOCOL, "            await super().send(start)\n", "")
@pytest.mark.fails_on_mutant("invalid headers are written", PROTOCOL, "    invalid = any", "    invalid = not any")
@pytest.mark.fails_on_mutant("a wrong length is written", PROTOCOL, 'b"%d" % body_bytes)) != 1', 'b"4")) != 1')
@pytest.mark.fails_on_mutant("connections are not closed", PROTOCOL, "self.keep_alive and not", "not")
@pytest.mark.fails_on_mutant("HEAD gets a body", PROTOCOL, 'self.scope["method"] != "HEAD" and', "")
async def test_a_response_has_the_bytes_that_uvicorn_would_send_in_one_write() -> None:
    length = (b"content-length", b"4")
    for headers, pieces, one_write in (
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
            ours = await writes_of(SingleWriteCycle, method, keep_alive, headers, *pieces)
            uvicorns = await writes_of(httptools_impl.RequestResponseCycle, method, keep_alive, headers, *pieces)
            assert b"".join(ours) == b"".join(uvicorns), (method, keep_alive, headers)
            assert len(ours) == len(uvicorns) - (one_write and method == "POST" and keep_alive)


@pytest.mark.fails_on_mutant(
    "a closed connection is never aborted",
    "app/server/connection.py",
    "self._loop.call_later(LINGER_SECONDS",
    "(lambda *_: 0)(0",
)
async def test_a_closed_connection_whose_client_does_not_read_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.server.connection.LINGER_SECONDS", 0.05)
    lost = asyncio.Event()

    class Closing(asyncio.Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:
            lingering = ConnectionTransport(transport, asyncio.get_running_loop())
            lingering.write(b"x" * 20_000_000)
            lingering.close()

        def connection_lost(self, _: Exception | None) -> None:
            lost.set()

    server = await asyncio.get_running_loop().create_server(Closing, "127.0.0.1", 0)
    async with server:
        with socket.create_connection(server.sockets[0].getsockname()):
            async with asyncio.timeout(20):
                await lost.wait()


@pytest.mark.fails_on_mutant(
    "a chunk is written to a full buffer",
    PROTOCOL,
    "        if self.flow.write_paused:\n            return False\n",
    "",
)
@pytest.mark.fails_on_mutant(
    "a chunk is written after the end of the response",
    PROTOCOL,
    "if self.disconnected or self.response_complete or",
    "if self.disconnected or",
)
@pytest.mark.fails_on_mutant(
    "a chunk is written to a lost connection",
    PROTOCOL,
    "if self.disconnected or self.response_complete or self.transport.is_closing():",
    "if self.response_complete:",
)
async def test_a_framed_chunk_is_written_only_if_the_client_can_take_it() -> None:
    found: list[object] = []

    async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[..., Any]) -> None:
        headers = [(b"content-length", b"10")] if scope["path"] == "/length" else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"first ", "more_body": True})
        request: dict[str, Any] = {"type": FRAMED_CHUNKS_EXTENSION}
        await send(request)
        if send_framed := request["send_framed"]:
            found.append(send_framed(b"7\r\nframed \r\n"))
            send_framed.__self__.flow.pause_writing()
            found.append(send_framed(b"4\r\nfull\r\n"))
            send_framed.__self__.flow.resume_writing()
        if scope["path"] != "/lost":
            await send({"type": "http.response.body", "body": b"last"})
        while (await receive())["type"] != "http.disconnect":
            pass
        if send_framed:
            with pytest.raises(ClientDisconnected):
                send_framed(b"4\r\nlate\r\n")
        found.append("ended")

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=http_protocol(None), lifespan="off", log_level="warning"))
    running = asyncio.create_task(server._serve([listener]))
    await eventually(lambda: server.started)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
        assert (await client.get("/length")).text == "first last"
        assert (await client.get("/chunked")).text == "first framed last"
        async with client.stream("GET", "/lost") as response:
            assert await anext(response.aiter_text())
        await eventually(lambda: found == ["ended", *([True, False, "ended"] * 2)])
    server.should_exit = True
    await running


UVICORN_STATE = """
import inspect
from uvicorn import config, server
from uvicorn.protocols import utils
from uvicorn.protocols.http import flow_control, h11_impl, httptools_impl
from uvicorn.protocols.websockets import websockets_sansio_impl

def state():
    found = {}
    for module in (config, server, utils, flow_control, h11_impl, httptools_impl, websockets_sansio_impl):
        for name, value in vars(module).items():
            found[module.__name__, name] = value
            if inspect.isclass(value):
                found |= {(module.__name__, name, key): member for key, member in vars(value).items()}
    return {key: id(value) for key, value in found.items() if not key[-1].startswith("__")}

before = state()
import tests.conftest
assert state() == before, state().items() ^ before.items()
"""


@pytest.mark.fails_on_mutant(
    "uvicorn is changed for the process",
    PROTOCOL,
    "\n\n@lru_cache(maxsize=1000)",
    "\n\nhttptools_impl.RequestResponseCycle = SingleWriteCycle\n\n@lru_cache(maxsize=1000)",
)
def test_importing_conftest_does_not_change_uvicorn() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UVICORN_STATE], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
