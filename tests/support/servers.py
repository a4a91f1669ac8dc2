"""The app in this process, as a process of its own, or as in docker-compose.yml; and a clock that tests set."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx
import uvicorn

from app.main import create_app
from app.server.server import http_protocol
from app.server.websocket_protocol import SharedFrameProtocol
from app.settings import Settings
from tests.support.nginx import Proxy
from tests.support.redis_servers import ComposeRedis, RedisServer, free_port, wait_until

ROOT = Path(__file__).parents[2]
ADMIN_KEY = "the-key-of-an-administrator"
AS_ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


async def eventually(check: Callable[[], object], seconds: float = 20) -> None:
    """Wait until a check, which may be async, returns true. Fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        result = check()
        if await result if asyncio.iscoroutine(result) else result:
            return
        assert time.monotonic() < deadline, f"the condition was not met within {seconds} s"
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def connected(
    url: str, local_addr: tuple[str, int] | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A raw connection to a server. It is closed at the end, also if the test fails."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), local_addr=local_addr)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@dataclass
class SettableClock:
    """A clock that runs like the real one, with a shift in seconds that a test sets."""

    shift: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.shift

    def go_to(self, instant: str) -> None:
        """Set the clock to an ISO 8601 time."""
        self.shift = datetime.fromisoformat(instant).timestamp() - time.time()


def zone_at_noon() -> str:
    """Return a time zone in which the day does not end during a test."""
    return f"Etc/GMT{datetime.now(UTC).hour - 12:+d}"


@dataclass
class RunningApp:
    """The app on a real socket of this process."""

    url: str
    settings: Settings
    app: object
    connections: set[object] = field(repr=False, default_factory=set)
    stop: Callable[[], object] = field(repr=False, default=lambda: None)

    def client(self, address: str = "127.0.0.1") -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(local_address=address)
        return httpx.AsyncClient(base_url=self.url, transport=transport, timeout=20)


@contextlib.asynccontextmanager
async def serving(
    settings: Settings,
    clock: Callable[[], float] = time.time,
    buffer: int = 0,
    *,
    fast_path: bool = True,
    own_protocol: bool = True,
) -> AsyncIterator[RunningApp]:
    """Run the app on a free port. A small send buffer (in bytes) makes a client that does not read noticeable soon.

    Without `own_protocol` the HTTP protocol is uvicorn's, as with `uvicorn app.main:app`.
    """
    app = create_app(settings, clock)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=http_protocol(app.fast_path if fast_path else None) if own_protocol else "httptools",
            ws=SharedFrameProtocol,
            lifespan="on",
            log_level="warning",
            timeout_graceful_shutdown=1,
        )
    )
    sockets = [socket.create_server(("127.0.0.1", 0))]
    # asyncio sets this only for sockets that were created with IPPROTO_TCP. Without it, a response of several writes
    # waits 40 ms for the client's delayed ACK.
    sockets[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if buffer:
        sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    ended = asyncio.Event()
    server.main_loop = ended.wait  # uvicorn's own polls ten times per second, which makes tests slow to end
    running = asyncio.create_task(server._serve(sockets))
    await eventually(lambda: server.started or running.done())
    if running.done():
        running.result()
    try:
        yield RunningApp(
            f"http://127.0.0.1:{sockets[0].getsockname()[1]}", settings, app, server.server_state.connections
        )
    finally:
        ended.set()
        await running


def settings_for(kind: str, tmp_path: Path, shared_redis: RedisServer, **options: object) -> Settings:
    """Return settings for a kind of store, which writes only to tmp_path. `offline` is an unreachable Redis."""
    urls = {
        "memory": "memory://",
        "sqlite": f"sqlite:///{tmp_path}/tally.db",
        "redis": shared_redis.url,
        "offline": f"redis://127.0.0.1:{free_port()}/0",
    }
    return Settings(TALLY_STORE=urls[kind], spool=str(tmp_path / "spool"), **{"admin_keys": ADMIN_KEY, **options})


class Process:
    """A process of `python -m app` or of another command line."""

    def __init__(self, directory: Path, *command: str, **environment: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = directory / "app.log"
        self._command = command or ("-m", "app")
        self._environment = {"TALLY_SPOOL": str(directory / "spool"), "TALLY_PORT": str(self.port)} | environment
        self._environment["PYTHONPATH"] = str(ROOT / "tests/support/forbidden_imports")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Process":
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("TALLY_", "REDIS_"))}
        command = [sys.executable, *(part.format(port=self.port) for part in self._command)]
        with self.log.open("ab") as log:
            environment = clean | self._environment
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
        wait_until(self._responds, self.log.read_text)
        return self

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def memory(self) -> int:
        """Return the bytes of memory that the process uses."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return 1024 * int(status.split("VmRSS:")[1].split()[0])

    def kill(self) -> None:
        self._end(subprocess.Popen.kill)

    def terminate(self) -> int:
        return self._end(subprocess.Popen.terminate)

    def _end(self, end: Callable[[subprocess.Popen[bytes]], None]) -> int:
        if self._process is None:
            return 0
        end(self._process)
        code = self._process.wait(timeout=20)
        self._process = None
        return code

    def get(self, path: str) -> object:
        with urllib.request.urlopen(self.url + path, timeout=20) as response:
            return json.load(response)

    def post(self, path: str, body: bytes = b"") -> object:
        with urllib.request.urlopen(self.url + path, data=body, timeout=20) as response:
            return json.load(response)

    def _responds(self) -> bool:
        assert self._process
        assert self._process.poll() is None, f"the app ended: {self.log.read_text()}"
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            return bool(self.get("/health"))
        return False


def run_tally(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m app` with these arguments and variables until it ends."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("TALLY_", "REDIS_"))}
    command = [sys.executable, "-m", "app", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=clean | environment, capture_output=True, text=True, timeout=50, check=False
    )


@dataclass
class Fleet:
    """The processes of `docker compose up --scale app=3`: nginx, three nodes and their Redis."""

    proxy: Proxy
    nodes: list[Process]
    redis: ComposeRedis


@contextlib.contextmanager
def compose_fleet(directory: Callable[[str], Path], *redis_options: str, **environment: str) -> Iterator[Fleet]:
    """Run three nodes behind nginx, with Redis configured as in docker-compose.yml."""
    with contextlib.ExitStack() as started:
        server = ComposeRedis(directory("redis"))
        started.callback(server.stop)
        server.start(*redis_options)
        shared = {
            "TALLY_STORE": server.url,
            "TALLY_SPOOL": str(directory("spool")),
            "TALLY_TRUSTED_PROXIES": "127.0.0.0/30",  # a network, as in docker-compose.yml
        }
        nodes = [Process(directory("node"), **(shared | environment)) for _ in range(3)]
        for node in nodes:
            started.callback(node.kill)
        with ThreadPoolExecutor() as pool:
            list(pool.map(Process.start, nodes))
        proxy = Proxy(directory("nginx"), [node.port for node in nodes])
        started.callback(proxy.stop)
        yield Fleet(proxy.start(), nodes, server)
