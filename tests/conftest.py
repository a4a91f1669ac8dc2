"""What the tests stand on: a real Redis, every store, the app on a real socket, and a clock to choose."""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import httpx
import pytest
import redis
import uvicorn

from app.main import create_app
from app.settings import Settings

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class RedisServer:
    """A private redis-server on a unix socket, which a test may stop, freeze and start again."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._directory = directory
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        binary = shutil.which("redis-server")
        assert binary, "redis-server is not installed: apt-get install redis-server"
        command = [binary, "--port", "0", "--unixsocket", str(self.socket), "--save", "", *options]
        log = (self._directory / "redis.log").open("ab")
        with log:
            self.process = subprocess.Popen(command, cwd=self._directory, stdout=log, stderr=log)
        wait_until(self._answers, (self._directory / "redis.log").read_text)

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def flush(self) -> None:
        with self.client() as client:
            client.flushall()

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket), decode_responses=True)

    def _answers(self) -> bool:
        assert self.process
        assert self.process.poll() is None, "redis-server ended"
        with self.client() as client, contextlib.suppress(redis.ConnectionError):
            return bool(client.ping())
        return False


def wait_until(done: Callable[[], bool], explain: Callable[[], str] = str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"it did not come to that within {seconds} s: {explain()}"
        time.sleep(0.02)


async def eventually(check: Callable[[], object], seconds: float = 20) -> None:
    """Wait until an awaitable check holds; how long is the machine's affair."""
    deadline = time.monotonic() + seconds
    while True:
        result = check()
        if await result if asyncio.iscoroutine(result) else result:
            return
        assert time.monotonic() < deadline, "it did not come to that"
        await asyncio.sleep(0.02)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start("--appendonly", "no")
    yield server
    server.stop()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of this test alone, not started yet; what it was told to keep survives a stop."""
    server = RedisServer(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    shared_redis.flush()
    return shared_redis


@dataclass
class ChosenClock:
    """Real time, shifted: so that it runs, and a test can choose where."""

    shift: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.shift

    def go_to(self, instant: str) -> None:
        self.shift = datetime.fromisoformat(instant).timestamp() - time.time()


@pytest.fixture
def clock() -> ChosenClock:
    return ChosenClock()


@dataclass
class Served:
    """The app on a real socket, in this process."""

    url: str
    settings: Settings
    app: object
    stop: Callable[[], object] = field(repr=False, default=lambda: None)

    def client(self, address: str = "127.0.0.1") -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(local_address=address)
        return httpx.AsyncClient(base_url=self.url, transport=transport, timeout=20)


@contextlib.asynccontextmanager
async def serving(settings: Settings, clock: Callable[[], float] = time.time) -> AsyncIterator[Served]:
    app = create_app(settings, clock)
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, lifespan="on", log_level="warning", timeout_graceful_shutdown=1)
    )
    sockets = [socket.create_server(("127.0.0.1", 0))]
    running = asyncio.create_task(server._serve(sockets))
    await eventually(lambda: server.started or running.done())
    if running.done():
        running.result()
    try:
        yield Served(f"http://127.0.0.1:{sockets[0].getsockname()[1]}", settings, app)
    finally:
        server.should_exit = True
        await running


def settings_for(kind: str, tmp_path: Path, shared_redis: RedisServer, **chosen: object) -> Settings:
    """Settings for a kind of store, with everything it writes under tmp_path."""
    urls = {
        "memory": "memory://",
        "sqlite": f"sqlite:///{tmp_path}/tally.db",
        "redis": shared_redis.url,
        "away": f"redis://127.0.0.1:{free_port()}/0",
    }
    return Settings(TALLY_STORE=urls[kind], spool=str(tmp_path / "spool"), **chosen)


class Process:
    """`python -m app`, or another command line, as an operator runs it."""

    def __init__(self, directory: Path, *command: str, **environment: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = directory / "app.log"
        self._command = command or ("-m", "app")
        self._environment = {"TALLY_SPOOL": str(directory / "spool"), "TALLY_PORT": str(self.port)} | environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Process":
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("TALLY_", "REDIS_"))}
        command = [sys.executable, *(part.format(port=self.port) for part in self._command)]
        with self.log.open("ab") as log:
            environment = clean | self._environment
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
        wait_until(self._answers, self.log.read_text)
        return self

    def kill(self) -> None:
        self._end(subprocess.Popen.kill)

    def terminate(self) -> int:
        return self._end(subprocess.Popen.terminate)

    def _end(self, how: Callable[[subprocess.Popen[bytes]], None]) -> int:
        if self._process is None:
            return 0
        how(self._process)
        code = self._process.wait(timeout=20)
        self._process = None
        return code

    def get(self, path: str) -> object:
        with urllib.request.urlopen(self.url + path, timeout=20) as answer:
            return json.load(answer)

    def post(self, path: str, body: bytes = b"") -> object:
        with urllib.request.urlopen(self.url + path, data=body, timeout=20) as answer:
            return json.load(answer)

    def _answers(self) -> bool:
        assert self._process
        assert self._process.poll() is None, f"the app ended: {self.log.read_text()}"
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            return bool(self.get("/health"))
        return False


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(*command: str, **environment: str) -> Process:
        started.append(Process(tmp_path, *command, **environment))
        return started[-1].start()

    yield start
    for one in started:
        one.kill()
