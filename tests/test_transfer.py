"""All data of one store in another: what arrives is the same, also after the import was killed half-way."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from conftest import AS_ADMIN, ROOT, ChosenClock, RedisServer, settings_for, wait_until

from app.main import create_app

EVENTS, USERS = 300, 40


def tally(*words: str, store: str, **popen: object) -> subprocess.Popen[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("TALLY_", "REDIS_"))}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, "-m", "app", *words]
    return subprocess.Popen(command, cwd=ROOT, env=clean | {"TALLY_STORE": store}, **pipes)


def run(*words: str, store: str) -> tuple[int, str]:
    process = tally(*words, store=store)
    said, _ = process.communicate(timeout=60)
    return process.returncode, said


@pytest.fixture
async def filled(tmp_path: Path, redis_server: RedisServer, clock: ChosenClock) -> str:
    """A SQLite store with something of everything."""
    settings = settings_for("sqlite", tmp_path, redis_server, write_limit="100000/second")
    clock.go_to("2026-03-27T12:00:00+00:00")
    app = create_app(settings, clock)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://tally", headers=AS_ADMIN) as client,
    ):
        for _ in range(3):
            items = [
                {"event": f"e{i}", "by": i + 1, "user": f"u{i % USERS}", "session": f"s{i}"} for i in range(EVENTS)
            ]
            await client.post("/events", json=items)
            await client.put("/event/e7", json={"count": 3, "total": 99})
            await client.post("/reset")
            await client.post("/events", json={"e1": 2, "e\u0301 ü": 1})
            clock.shift += 86_400
        await client.delete("/event/e9")
    return settings.store


@pytest.mark.catches(
    "an import adds what it has added",
    "app/transfer.py",
    'f"import {piece.export}", at, at + 1',
    "uuid.uuid4().hex, 0, 1",
)
async def test_an_import_that_is_killed_and_repeated_ends_the_same(
    filled: str, tmp_path: Path, redis_server: RedisServer
) -> None:
    file = str(tmp_path / "all.ndjson")
    assert run("export", file, store=filled)[0] == 0
    assert run("verify", file, store=filled) == (0, f"the store has what {file} has, and nothing else\n")
    killed = 0
    for delay in (0.05, 0.2):  # after the import's first line is there
        half = tally("import", file, store=redis_server.url)
        wait_until(lambda half=half: half.poll() is not None or begun(redis_server))
        time.sleep(delay)
        half.kill()
        half.communicate()
        killed += half.returncode != 0
    assert killed
    for _ in range(2):
        assert run("import", file, store=redis_server.url)[0] == 0
    assert run("verify", file, store=redis_server.url)[1] == f"the store has what {file} has, and nothing else\n"


async def test_estimates_stay_estimates_wherever_they_go(
    filled: str, tmp_path: Path, redis_server: RedisServer, clock: ChosenClock
) -> None:
    there, back = str(tmp_path / "there.ndjson"), str(tmp_path / "back.ndjson")
    home = f"sqlite:///{tmp_path}/home.db"
    for words, store in (
        (("export", there), filled),
        (("import", there), redis_server.url),
        (("export", back), redis_server.url),
        (("import", back), home),
        (("verify", there), home),
        (("verify", back), home),
    ):
        code, said = run(*words, store=store)
        assert code == 0, said
    app = create_app(settings_for("sqlite", tmp_path, redis_server).model_copy(update={"store": home}), clock)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://tally") as client,
    ):
        found = (await client.get("/audience?days=4")).json()
        assert (found["exact"], found["error"], abs(found["users"] - USERS) <= 1) == (False, 0.0081, True)


async def test_over_http_a_file_is_added_whole_and_once_or_not_at_all(
    filled: str, tmp_path: Path, redis_server: RedisServer, clock: ChosenClock
) -> None:
    file = tmp_path / "all.ndjson"
    assert run("export", str(file), store=filled)[0] == 0
    lines = file.read_bytes().splitlines(keepends=True)
    app = create_app(settings_for("memory", tmp_path, redis_server), clock)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://tally", headers=AS_ADMIN) as client,
    ):
        head = json.loads(lines[0])
        for bad in (
            lines[:-1],
            [*lines[:-1], lines[-1][:-3]],
            [json.dumps(head | {"timezone": "Asia/Kolkata"}).encode() + b"\n", *lines[1:]],
            [lines[0], b'{"bucket":["day",0,""],"counts":{"a":-1}}\n', b'{"end":2}\n'],
            [lines[0], b'{"bucket":["year",0,""],"counts":{"a":1}}\n', b'{"end":2}\n'],
            [lines[0], b'{"bucket":["day",0,"user:a/b"],"counts":{"a":1}}\n', b'{"end":2}\n'],
            [lines[0], b"{}\n", b'{"end":2}\n'],
            [b"\xff\n"],
            [],
        ):
            answer = await client.post("/import", content=b"".join(bad))
            assert answer.status_code == 422, bad[1:3]
            assert (await client.get("/leaderboard?window=total")).json() == []
        for _ in range(2):
            assert (await client.post("/import", content=b"".join(lines))).status_code == 200
        exported = (await client.get("/export")).content.splitlines()
        assert sorted(map(shape, exported[1:-1])) == sorted(map(shape, lines[1:-1]))


def begun(redis_server: RedisServer) -> bool:
    with redis_server.client() as client:
        return bool(client.keys("tally:{0}:source:import*"))


def shape(line: bytes) -> str:
    """A line, whatever the order of what is in it."""
    return json.dumps(json.loads(line), sort_keys=True)
