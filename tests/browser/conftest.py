"""Servers and browsers that the tests of a module share. Each test uses event names of its own."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from app.settings import Settings
from tests.browser.dashboard import ADMIN_KEY, USUAL_COUNTS
from tests.support.browser import FAILED
from tests.support.engines import Chromium, Engine, firefox, webkit
from tests.support.servers import Process, RunningApp, SettableClock, serving

ENGINES = ["chromium", "firefox", "webkit"]


@pytest.fixture(scope="module")
def tally(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server in memory, with an administrator's key and the usual counts."""
    limits = {"TALLY_WRITE_LIMIT": "100000/second", "TALLY_READ_LIMIT": "10000/second"}
    directory = tmp_path_factory.mktemp("tally")
    process = Process(directory, TALLY_STORE="memory://", TALLY_ADMIN_KEYS=ADMIN_KEY, **limits)
    process.start()
    process.post("/events", json.dumps(USUAL_COUNTS).encode())
    yield process
    process.kill()


@pytest.fixture(scope="module")
def tally_with_history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server on SQLite with two closed days, an administrator's key and the usual counts."""
    directory = tmp_path_factory.mktemp("history")
    store = f"sqlite:///{directory}/tally.db"
    # Playwright's event loop runs in this thread.
    with ThreadPoolExecutor() as pool:
        pool.submit(asyncio.run, count_two_days(store)).result()
    limits = {"TALLY_WRITE_LIMIT": "100000/second", "TALLY_READ_LIMIT": "10000/second"}
    process = Process(directory, TALLY_STORE=store, TALLY_ADMIN_KEYS=ADMIN_KEY, **limits)
    process.start()
    process.post("/events", json.dumps(USUAL_COUNTS).encode())
    yield process
    process.kill()


async def count_two_days(store: str) -> None:
    """Count on the two days before today, with a correction on the first and a reset on the second."""
    clock = SettableClock(-2 * 86_400)
    admin = {"Authorization": f"Bearer {ADMIN_KEY}"}
    async with serving(Settings(TALLY_STORE=store, admin_keys=ADMIN_KEY), clock) as tally, tally.client() as client:
        await client.post("/events", json={**USUAL_COUNTS, "gone": 9})
        (await client.put("/event/gone", json={"count": 7}, headers=admin)).raise_for_status()
        clock.shift = -86_400
        await client.post("/events", json=USUAL_COUNTS)
        (await client.post("/reset", headers=admin)).raise_for_status()
        await client.post("/events", json=USUAL_COUNTS)


@pytest.fixture
def portal() -> Iterator[BlockingPortal]:
    """A thread for apps of this process, because Playwright's event loop runs in the main thread."""
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture
def serve(portal: BlockingPortal) -> Iterator[Callable[..., RunningApp]]:
    with ExitStack() as stack:

        def start(clock: Callable[[], float] = time.time, **options: object) -> RunningApp:
            settings = Settings(TALLY_STORE="memory://", **options)
            return stack.enter_context(portal.wrap_async_context_manager(serving(settings, clock)))

        yield start


@pytest.fixture(scope="module", params=ENGINES)
def shared_engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    if request.param == "chromium":
        yield Chromium(request.getfixturevalue("browser"))
        return
    start = {"firefox": firefox, "webkit": webkit, "zoomed webkit": partial(webkit, zoom=2)}[request.param]
    with start(tmp_path_factory.mktemp(request.param)) as engine:
        yield engine


@pytest.fixture
def engine(shared_engine: Engine, request: pytest.FixtureRequest) -> Iterator[Engine]:
    shared_engine.open("about:blank")  # the page of an earlier test may still call its server
    shared_engine.errors.clear()
    yield shared_engine
    if request.node.stash[FAILED]:
        artifacts = request.config.rootpath / "test-artifacts"
        artifacts.mkdir(exist_ok=True)
        shared_engine.screenshot().save(artifacts / f"{request.node.name}.png")
