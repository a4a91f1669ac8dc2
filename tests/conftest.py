"""Fixtures for all tests: real Redis and Kafka servers, processes of the app, and a clock that tests set."""

import contextlib
import gc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from app.stores import redis_url
from tests.support.kafka_broker import Broker
from tests.support.redis_servers import Cluster, GuardedRedis, RedisServer, Sentinels
from tests.support.servers import Fleet, Process, SettableClock, compose_fleet

pytest_plugins = ["tests.support.browser"]
TESTS = Path(__file__).parent
# Directories of files that take long. At the end of a run, only short ones are left, which all processes share.
SLOW = {"browser", "fuzz", "kafka", "system"}
Servers = TypeVar("Servers", Cluster, Sentinels, GuardedRedis)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow files. Reject tests with the same id, because pytest-xdist would run only one of them."""
    items.sort(key=lambda item: item.path.relative_to(TESTS).parts[0] not in SLOW)
    if repeated := {name for name, times in Counter(item.nodeid for item in items).items() if times > 1}:
        raise pytest.UsageError(f"more than one test has the id {', '.join(sorted(repeated))}")


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


@pytest.fixture(autouse=True)
def leaks() -> Iterator[None]:
    """Collect garbage after a test that leaves files or sockets open, so that it fails, and not a later test."""
    before = open_files()
    yield
    if open_files() > before:
        gc.collect()


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
    """Yield a Redis for this test, not started yet. A restart keeps its data if it is configured to persist."""
    server = RedisServer(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    shared_redis.flush()
    return shared_redis


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for Redis as long as a busy machine needs."""
    for name in ("COMMAND_TIMEOUT_SECONDS", "CONNECT_TIMEOUT_SECONDS"):
        monkeypatch.setattr(redis_url, name, 30)


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(Cluster(tmp_path_factory.mktemp("cluster"))) as cluster:
        yield cluster


@pytest.fixture
def redis_cluster(shared_cluster: Cluster) -> Cluster:
    shared_cluster.flush()
    return shared_cluster


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Yield a cluster for this test, with a replica of each master."""
    with running(Cluster(tmp_path, replicas=1)) as cluster:
        yield cluster


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[Sentinels]:
    with running(Sentinels(tmp_path)) as sentinels:
        yield sentinels


@pytest.fixture
def guarded_redis(tmp_path: Path) -> Iterator[GuardedRedis]:
    with running(GuardedRedis(tmp_path)) as server:
        yield server


@contextlib.contextmanager
def running(servers: Servers) -> Iterator[Servers]:
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A Kafka broker for all tests of a process. A test that kills it starts it again."""
    broker = Broker(tmp_path_factory.mktemp("kafka"))
    try:
        yield broker.start()
    finally:
        broker.kill()


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(*command: str, **environment: str) -> Process:
        started.append(Process(tmp_path, *command, **environment))
        return started[-1].start()

    yield start
    for app in started:
        app.kill()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Yield a fleet for a module. Its limit is 30 hits per minute, so each test needs a client address of its own."""
    with compose_fleet(tmp_path_factory.mktemp, TALLY_WRITE_LIMIT="30/minute") as fleet:
        yield fleet
