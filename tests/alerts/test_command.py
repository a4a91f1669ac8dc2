"""`tally alerts` against a running server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from app.cli import main
from tests.support.receiver import receiving
from tests.support.redis_servers import RedisServer
from tests.support.servers import ADMIN_KEY, RunningApp, serving, settings_for

URL = "https://hooks.example/a"
Run = Callable[..., Awaitable[str]]


@pytest.fixture
async def tally(tmp_path: Path, redis_server: RedisServer) -> AsyncIterator[RunningApp]:
    async with serving(settings_for("memory", tmp_path, redis_server, alerts_allow_private=True)) as app:
        yield app


@pytest.fixture
def run(tally: RunningApp, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command in a thread, and returns its output or its error."""
    monkeypatch.setenv("TALLY_PORT", tally.url.rpartition(":")[2])
    monkeypatch.setenv("TALLY_ADMIN_KEYS", ADMIN_KEY)

    async def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["tally", "alerts", *arguments])
        try:
            await asyncio.to_thread(main)
        except SystemExit as error:
            return f"{error.code} {capsys.readouterr().err}"
        return capsys.readouterr().out

    return run


async def test_alerts_are_added_listed_and_deleted(run: Run) -> None:
    assert await run() == "There are no alerts.\n"
    added = await run("add", "order", "below=1/1h", URL, "--format", "slack")
    id_ = added.removeprefix("Added ").removesuffix(".\n")
    assert await run() == f"{id_}  order  below=1/1h  slack  {URL}\n"
    assert await run("delete", id_) == f"Deleted {id_}.\n"
    assert "JSON is signed with whsec_" in await run("add", "order", "total=1000", URL)


async def test_a_test_message_is_sent(run: Run) -> None:
    async with receiving() as receiver:
        added = await run("add", "order", "total=1000", receiver.url, "--format", "ntfy")
        id_ = added.removeprefix("Added ").removesuffix(".\n")
        assert await run("test", id_) == "The message was accepted.\n"
        assert [request.body for request in receiver.requests] == [b"Test: order: the total has reached 1000"]
        receiver.status = 404
        assert await run("test", id_) == "tally: the message was not accepted: the response was 404 "


async def test_an_error_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await run("delete", "none") == "tally: there is no alert with this id; GET /alerts lists them "
    assert "it must be such as total=1000" in await run("add", "order", "total=many", URL)
    assert "url: must begin with https://" in await run("add", "order", "total=1", "hooks")
    monkeypatch.setenv("TALLY_ADMIN_KEYS", "x" * 16)
    assert "unknown API key" in await run()
    monkeypatch.setenv("TALLY_ADMIN_KEYS", "")
    assert "set TALLY_ADMIN_KEYS" in await run()
    monkeypatch.setenv("TALLY_ADMIN_KEYS", ADMIN_KEY)
    monkeypatch.setenv("TALLY_PORT", "1")
    assert "is Tally running there?" in await run()
