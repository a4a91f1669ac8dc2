"""Servers for the HTTP tests."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import httpx
import pytest

from tests.http.clients import asgi_client
from tests.support.redis_servers import RedisServer
from tests.support.servers import RunningApp, SettableClock, serving, settings_for


@pytest.fixture
def client_settings() -> dict[str, object]:
    """The settings of `client`, which a module may override."""
    return {"write_limit": "100000/second"}


@pytest.fixture
async def client(
    request: pytest.FixtureRequest,
    client_settings: dict[str, object],
    tmp_path: Path,
    redis_server: RedisServer,
    clock: SettableClock,
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application on SQLite, without a server. A parameter of the test is a dict of settings."""
    clock.go_to("2026-03-28T22:30:00+00:00")
    chosen = {**client_settings, **getattr(request, "param", {})}
    async with asgi_client(settings_for("sqlite", tmp_path, redis_server, **chosen), clock) as client:
        yield client


@pytest.fixture(scope="module")
async def shared_app(
    tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that all tests of a module share."""
    clock = SettableClock()
    clock.go_to("2026-03-28T22:30:00+00:00")
    settings = settings_for(
        "sqlite", tmp_path_factory.mktemp("shared"), shared_redis, countapi=True, write_limit="100000/second"
    )
    async with asgi_client(settings, clock) as client:
        yield client


@pytest.fixture
async def empty_app(shared_app: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application in which a test must not count anything."""
    yield shared_app
    assert (await shared_app.get("/events")).json() == {}


@pytest.fixture(scope="module")
async def serve_once(
    tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer
) -> AsyncIterator[Callable[..., Awaitable[RunningApp]]]:
    """Start a server on the memory store for each set of settings, once for all tests of a module."""
    servers: dict[str, RunningApp] = {}
    async with AsyncExitStack() as started:

        async def start(**chosen: object) -> RunningApp:
            key = repr(sorted(chosen.items()))
            if key not in servers:
                settings = settings_for("memory", tmp_path_factory.mktemp("server"), shared_redis, **chosen)
                servers[key] = await started.enter_async_context(serving(settings))
            return servers[key]

        yield start


@pytest.fixture
def serve(tmp_path: Path, redis_server: RedisServer) -> Callable[..., AbstractAsyncContextManager[RunningApp]]:
    """Start a server on the memory store with the given settings, and without an admin key unless one is given."""

    def start(**chosen: object) -> AbstractAsyncContextManager[RunningApp]:
        return serving(settings_for("memory", tmp_path, redis_server, **{"admin_keys": "", **chosen}))

    return start


@pytest.fixture(scope="module", params=["sqlite", "redis"])
async def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer
) -> AsyncIterator[RunningApp]:
    shared_redis.flush()
    directory = tmp_path_factory.mktemp("served")
    settings = settings_for(request.param, directory, shared_redis, countapi=True, write_limit="100000/second")
    async with serving(settings) as served, served.client() as client:
        await client.post("/event/known", json={"by": 7})
        yield served


@pytest.fixture
async def tally(served: RunningApp) -> AsyncIterator[RunningApp]:
    """A server that all tests of a module share. Each test must leave its counts as they were."""
    yield served
    async with served.client() as client:
        assert (await client.get("/events")).json() == {"known": 7}
        assert (await client.get("/leaderboard?window=total")).json() == [{"rank": 1, "eventName": "known", "count": 7}]


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Check that nothing is logged except the messages that engineio logs once of each kind."""
    yield
    records = caplog.get_records("call")
    messages = [record.getMessage() for record in records if record.name.startswith(("tally", "uvicorn"))]
    assert all("further occurrences" in message for message in messages), messages
    assert not [record for record in records if record.exc_info]
    assert not [record for record in records if "forged" in record.getMessage()]
