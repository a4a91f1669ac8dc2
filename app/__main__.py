"""`python -m app`: read the settings, refuse what cannot work, say where it listens, serve; or run a command."""

import argparse
import asyncio
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from fastapi import Response
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State

from app import cli as commands
from app.domain.calendar import Calendar, Clock
from app.kafka.consumer import DURABILITY
from app.main import create_app, create_store
from app.settings import Settings
from app.stores.base import StoreError, StoreOpenError

_COMMANDS = {
    "export": "write all data to a new file, as NDJSON",
    "import": "add such a file to the store, once however often this is repeated",
    "verify": "say whether the store has what such a file has, and nothing else",
}

HEAD_BYTES_MAX = 65_536  # give or take a piece; a proxy in front bounds it far below
HEADERS_MAX = 200
SEND_BYTES = 65_536  # of which Linux makes twice as many; it would keep megabytes for a page that does not read
DRAIN_TURNS = 60  # of 50 ms: longer than nginx keeps a connection to a node that it does not use
LINGER_SECONDS = 10.0  # for what is still to be sent when a connection is closed


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        asked, settings = _arguments(), Settings()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            if asked.command in _COMMANDS:
                clock = Clock(Calendar(settings.timezone), time.time)
                print(runner.run(commands.run(asked.command, asked.file, create_store(settings), clock)))  # noqa: T201
            else:
                runner.run(serve(settings, consume=bool(asked.command)))
    except ValidationError as error:
        problems = [f"TALLY_{str(p['loc'][0]).removeprefix('TALLY_').upper()}: {p['msg']}" for p in error.errors()]
        sys.exit("tally: " + "; ".join(problems))
    except (StoreError, OSError, ValueError) as error:  # redis-py says ValueError to a URL that is none
        sys.exit(f"tally: {error}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("tally", description="Serve the counter, count what is in Kafka, or carry data.")
    parsers = parser.add_subparsers(dest="command", metavar="consume | export | import | verify")
    parsers.add_parser("consume", help="count what is in Kafka, and serve /health and /metrics alone")
    for command, what in _COMMANDS.items():
        parsers.add_parser(command, help=what, description=what).add_argument("file", type=Path)
    return parser.parse_args()


async def serve(settings: Settings, consume: bool) -> None:
    if consume and (settings.store_kind != "redis" or not settings.kafka + settings.kafka_inputs):
        needs = "TALLY_KAFKA or TALLY_KAFKA_INPUTS, and a Redis that other nodes serve as TALLY_STORE"
        raise StoreOpenError(f"consume needs {needs}")
    app = create_app(settings)

    async def figures(scope: Scope, receive: Receive, send: Send) -> None:
        asked = scope.get("path") in {"/health", "/metrics"}
        await (app if asked else Response(status_code=404))(scope, receive, send)

    server = TallyServer(
        uvicorn.Config(
            figures if consume else app,
            host=settings.host,
            port=settings.port,
            http=SingleWriteProtocol,
            ws=SharedFrameProtocol,
            lifespan="off",  # ours is below, so that a refusal is one sentence and not a traceback
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=settings.trusted_proxies,
            timeout_keep_alive=75,  # longer than a proxy keeps its side, or that gets resets
            timeout_graceful_shutdown=5,  # a long poll would hold it up for half a minute
            ws_max_size=65_536,  # clients say next to nothing
            ws_per_message_deflate=False,  # it costs more than the messages do
        )
    )
    server.end_streams = app.state.live.end_streams
    # uvicorn raises the signal again once it has stopped; what is left to do then is the drain below.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    async with app.router.lifespan_context(app):
        greet(settings, DURABILITY if settings.kafka else app.state.store.durability, consume)
        gc.collect()
        gc.freeze()  # all that was imported stays: to walk through it again and again would hold hits up for 50 ms
        gc.set_threshold(10_000)  # hits come and go; of a thousand pages each walk through all takes 0.15 s
        sys.setswitchinterval(0.0005)  # SQLite's thread waits this long for its turn, some five times a commit
        await server.serve()


class TallyServer(uvicorn.Server):
    """uvicorn's own, but that streams end when it does, which it would cut, and that a proxy leaves no hit behind.

    It would close a connection that is kept alive while the proxy is sending the next request on it.
    """

    end_streams: Callable[[], None]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.end_streams()
        if self.config.proxy_headers:  # all goes on, but for new connections, until the proxy has closed its side
            for server in self.servers:
                server.close()
            self.server_state.default_headers.append((b"connection", b"close"))
            for _ in range(DRAIN_TURNS):
                if not any(isinstance(one, SingleWriteProtocol) for one in self.server_state.connections):
                    break
                await asyncio.sleep(0.05)
        await super().shutdown(sockets)


class SingleWriteProtocol(httptools_impl.HttpToolsProtocol):
    """uvicorn's own, but that an answer is one system call: each costs as much as counting a hit does.

    And a request's head has bounds: uvicorn would keep whatever comes.
    """

    _unread = 0  # bytes that came since there was a whole head, or more of a body

    def connection_made(self, transport: Any) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        super().connection_made(LingeringTransport(transport, self.loop))  # type: ignore[arg-type] # it is one in effect

    def data_received(self, data: bytes) -> None:
        self._unread += len(data)
        super().data_received(data)
        if self._unread > HEAD_BYTES_MAX or (self._unread and len(self.headers or ()) > HEADERS_MAX):
            self.send_400_response("The head of this request has no end.")

    def on_headers_complete(self) -> None:
        if len(self.headers) > HEADERS_MAX:
            raise ValueError("too many headers")  # which the parser makes a 400
        self._unread = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)


class SingleWriteCycle(httptools_impl.RequestResponseCycle):
    """Holds the head of an answer until its body comes, as ASGI wants it. If that is all of it, both are one write."""

    _start: Any = None

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        start, self._start = self._start, None
        if start:
            body, whole = message.get("body", b""), self.keep_alive and not message.get("more_body")
            plain = whole and self.scope["method"] != "HEAD" and not (self.disconnected or self.flow.write_paused)
            head = plain and _head(start["status"], len(body), *self.default_headers, *start["headers"])
            if head:
                self.response_started = self.response_complete = True
                self.message_event.set()
                self.transport.write(head + body)
                self.on_response()
                return
            await super().send(start)
        await super().send(message)


httptools_impl.RequestResponseCycle = SingleWriteCycle  # type: ignore[misc] # uvicorn does not ask which one it is to use


@lru_cache(maxsize=1000)  # to look at each header takes longer than counting does
def _head(status: int, length: int, *headers: tuple[bytes, bytes]) -> bytes:
    """The head of an answer with a body of this length; nothing where uvicorn has to look at it."""
    names = [name for name, _ in headers]
    bad_name, bad_value = httptools_impl.HEADER_RE.search, httptools_impl.HEADER_VALUE_RE.search
    wrong = any(bad_name(name) or bad_value(value) for name, value in headers)
    if wrong or b"connection" in names or headers.count((b"content-length", b"%d" % length)) != 1:
        return b""
    return httptools_impl.STATUS_LINE[status] + b"".join(b"%b: %b\r\n" % header for header in headers) + b"\r\n"


class LingeringTransport:
    """uvloop's own, but that a closed connection is given up in the end: who reads nothing would keep it for good."""

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._own, self._loop = transport, loop
        self.write, self.is_closing = transport.write, transport.is_closing  # asked for each answer

    def close(self) -> None:
        self._own.close()
        self._loop.call_later(LINGER_SECONDS, self._own.abort)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


class SharedFrameProtocol(WebSocketsSansIOProtocol):
    """uvicorn's own, but that a message which many pages get is made a frame once: that costs as much as sending it."""

    async def send(self, message: Any) -> None:
        await self.writable.wait()
        if message.get("text") is None or self.conn.state is not State.OPEN or self.disconnected:
            await super().send(message)
            return
        if "frame" not in message:
            message["frame"] = Frame(Opcode.TEXT, message["text"].encode()).serialize(mask=False)
        self.transport.write(message["frame"])


def greet(settings: Settings, durability: str, consume: bool) -> None:
    address = f"http://{settings.host}:{settings.port}"
    if consume:
        print(f"Tally counts what is in Kafka. Its figures: {address}/health and /metrics", flush=True)  # noqa: T201
        return
    print(f"Tally is at {address}, its API at {address}/docs")  # noqa: T201 # this is what a terminal is for
    print(f"Counts live in {settings.store_kind}; an acknowledged hit survives {durability}.")  # noqa: T201
    open_to_all = [may for may, keys in (("count", settings.write_keys), ("read", settings.read_keys)) if not keys]
    if open_to_all and not settings.loopback:
        told = f"whoever reaches this address may {' and '.join(open_to_all)}"
        print(f"Warning: {told}; TALLY_WRITE_KEYS and TALLY_READ_KEYS say who may.")  # noqa: T201
    key = " -H 'Authorization: Bearer <one of TALLY_WRITE_KEYS>'" if settings.write_keys else ""
    print(f"Count something:  curl -X POST{key} {address}/event/hello", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
