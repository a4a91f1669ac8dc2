"""The servers to measure. Each measurement starts a new one, on the first core."""

import contextlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import redis

from bench.broker import kafka

ROOT = Path(__file__).parent.parent
SERVER_CORE = 0
LOAD_CORE = 1
REDIS_CORE = 2 if (os.cpu_count() or 1) > 2 else LOAD_CORE

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
UNLIMITED = "1000000000/second"  # evaluated, but never reached
TALLY = {
    "TALLY_WRITE_LIMIT": UNLIMITED,
    "TALLY_READ_LIMIT": UNLIMITED,
    "TALLY_EVENTS_MAX": "1000000",
    "TALLY_KEYS_MAX": "100000000",
}
UVICORN = ["-m", "uvicorn", "--port", "{port}", "--no-access-log", "--log-level", "warning"]

# The commands of the programs. A server is named by its program and its store, such as `tally sqlite`.
COMMANDS = {
    "tally": [sys.executable, "-m", "app"],
    "kafka": [sys.executable, "-m", "app"],  # Tally with Kafka in front of its store
    "express": ["node", "bench/peers/express/server.js"],
    "naive": [sys.executable, *UVICORN, "bench.peers.naive:app"],
    "bare": [sys.executable, *UVICORN, "--lifespan", "off", "--no-server-header", "bench.peers.bare:app"],
    "floor": [sys.executable, "-m", "bench.peers.floor"],
    "webdis": ["webdis", "{directory}/webdis.json"],
}


def installed(name: str) -> bool:
    program = name.partition(" ")[0]
    return shutil.which("java" if program == "kafka" else COMMANDS[program][0]) is not None


@dataclass
class Redis:
    """A redis-server that does not write to disk."""

    process: subprocess.Popen[bytes]
    port: int
    client: redis.Redis = field(init=False)

    def __post_init__(self) -> None:
        self.client = redis.Redis(port=self.port, decode_responses=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def cpu_seconds(self) -> float:
        cpu = self.client.info("cpu")
        return cpu["used_cpu_user"] + cpu["used_cpu_sys"]

    def used_memory(self) -> int:
        return self.client.info("memory")["used_memory"]


@dataclass
class Server:
    """A running server: Tally or a peer."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    directory: Path
    redis: Redis | None
    kafka: str = ""

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * PAGE

    def counts(self) -> dict[str, int]:
        if self.name.startswith("webdis") and self.redis:
            names = self.redis.client.keys()
            return dict(zip(names, map(int, self.redis.client.mget(names)), strict=True)) if names else {}
        with urllib.request.urlopen(f"{self.url}/events", timeout=120) as response:
            return json.load(response)

    def is_healthy(self) -> bool:
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(f"{self.url}/health") as response:
            return json.load(response)["status"] == "ok"
        return False

    def settled_counts(self) -> dict[str, int]:
        """Return the counts once they no longer change, because a stopped load leaves requests in flight."""
        before, counts = None, self.counts()
        while counts != before:
            time.sleep(2.5 if self.kafka else 0.1)  # Tally counts hits in Kafka after it acknowledges them
            before, counts = counts, self.counts()
        return counts


@contextlib.contextmanager
def serving(name: str, **environment: str) -> Iterator[Server]:
    """Run a server such as `tally sqlite` or `express redis`."""
    program, _, kind = name.partition(" ")
    data = ROOT / "data"  # /tmp may be in memory, and this is on a real disk
    data.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=data)))
        store = stack.enter_context(redis_server(directory)) if kind == "redis" or program == "webdis" else None
        brokers = ""
        if program == "kafka":
            brokers = stack.enter_context(kafka(directory / "kafka"))
            environment |= {"TALLY_KAFKA": brokers, "TALLY_KAFKA_INPUTS": f"{brokers}/records"}
        port = free_port()
        variables = _environment(program, kind, port, directory, store) | environment
        command = [part.format(port=port, directory=directory) for part in COMMANDS[program]]
        process = stack.enter_context(_running(command, directory / "log", SERVER_CORE, variables))
        server = Server(name, process, port, directory, store, brokers)
        _wait_until_ready(server)
        while brokers and not server.is_healthy():
            time.sleep(0.05)
        yield server


def _environment(program: str, kind: str, port: int, directory: Path, store: Redis | None) -> dict[str, str]:
    url = store.url if store else ""
    if program in {"tally", "kafka"}:
        stores = {"memory": "memory://", "sqlite": f"sqlite:///{directory}/tally.db", "redis": url}
        own = {"TALLY_STORE": stores[kind], "TALLY_PORT": str(port), "TALLY_SPOOL": str(directory / "spool")}
        return TALLY | own
    if program == "webdis" and store:
        settings = {"http_host": "127.0.0.1", "http_port": port, "redis_host": "127.0.0.1", "redis_port": store.port}
        settings |= {"threads": 1, "verbosity": 0, "logfile": str(directory / "webdis.log")}
        (directory / "webdis.json").write_text(json.dumps(settings))
    return {"PORT": str(port), "NODE_ENV": "production"} | ({"REDIS_URL": url} if url else {})


@contextlib.contextmanager
def redis_server(directory: Path) -> Iterator[Redis]:
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with _running(command, directory / "redis.log", REDIS_CORE, {}) as process:
        store = Redis(process, port)
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(redis.ConnectionError):
                store.client.ping()
                break
            if time.monotonic() > deadline:
                raise RuntimeError("redis-server does not respond")
            time.sleep(0.02)
        yield store


@contextlib.contextmanager
def _running(
    command: list[str], log: Path, core: int, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("TALLY_", "REDIS_"))}
    with log.open("wb") as output:
        pinned = ["taskset", "-c", str(core), *command]
        process = subprocess.Popen(pinned, cwd=ROOT, stdout=output, stderr=output, env=clean | environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + 30
    while server.process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, ConnectionError), socket.create_connection(server.address):
            server.counts()
            return
        time.sleep(0.05)
    raise RuntimeError(f"{server.name} does not respond: {(server.directory / 'log').read_text()[-2000:]}")


def core_seconds() -> float:
    """Return the seconds that all programs together have used the servers' core."""
    line = re.search(rf"^cpu{SERVER_CORE} (\d+) (\d+) (\d+)", Path("/proc/stat").read_text(), re.MULTILINE)
    return sum(map(int, line.groups())) / TICKS if line else 0.0


def free_port() -> int:
    """Return a free port below the range of outgoing connections, so that none takes it before the server does."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
