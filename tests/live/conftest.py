"""The app on a real socket with a memory store, at noon of a chosen day."""

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest

from app.settings import Settings
from tests.support.servers import ADMIN_KEY, RunningApp, SettableClock, serving


def memory_settings(**chosen: object) -> Settings:
    return Settings(TALLY_STORE="memory://", admin_keys=ADMIN_KEY, write_limit="100000/second", **chosen)


@pytest.fixture
async def tally(clock: SettableClock) -> AsyncIterator[RunningApp]:
    clock.go_to("2026-05-01T12:00:00+00:00")
    async with serving(memory_settings(), clock) as served:
        yield served
        end_polls(served)


@pytest.fixture(scope="module")
async def shared_tally() -> AsyncIterator[RunningApp]:
    """One app for all tests of a module, which have to use events of their own."""
    async with serving(memory_settings()) as served:
        yield served
        end_polls(served)


@pytest.fixture
def tally_with_small_buffers() -> Callable[[], AbstractAsyncContextManager[RunningApp]]:
    """An app that sends every commit at once, to sockets that hold little."""
    return lambda: serving(memory_settings(live_interval_ms=0), buffer=32_768)


def end_polls(tally: RunningApp) -> None:
    """End the long polls that are still open: the server would wait a second for them."""
    for socket in tally.app.state.socketio.server.eio.sockets.values():
        with contextlib.suppress(Exception):
            socket.queue.put_nowait(None)
