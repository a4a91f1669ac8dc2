"""Export and import: a store copied into another one is the same, also if the import was killed half-way."""

import io
import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from zoneinfo import ZoneInfo

import httpx
import pytest

from app import export_import
from app.domain.buckets import TOTAL
from app.domain.calendar import Calendar, Clock
from app.domain.counting import HitGroup
from app.main import create_app
from app.stores import rules
from app.stores.base import StoreLimits
from app.stores.memory import MemoryStore
from app.stores.results import GroupResult, Value
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.servers import AS_ADMIN, ROOT, SettableClock, settings_for

EVENTS, USERS = 300, 40
RANKED = 25  # users of a bucket that have a count of their own
CLOCK = Clock(Calendar(ZoneInfo("UTC")), lambda: 1_795_435_200.0)
NOON = CLOCK.slot()


def start(*words: str, store: str) -> subprocess.Popen[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("TALLY_", "REDIS_"))}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, "-m", "app", *words]
    return subprocess.Popen(command, cwd=ROOT, env=clean | {"TALLY_STORE": store}, **pipes)


def run(*words: str, store: str) -> tuple[int, str]:
    process = start(*words, store=store)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


@pytest.fixture
async def filled(
    tmp_path: Path, redis_server: RedisServer, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The URL of a SQLite store with buckets of every kind."""
    monkeypatch.setattr(rules, "RANKED_VISITORS_MAX", RANKED)
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


@pytest.mark.fails_on_mutant(
    "a repeated import adds its lines again",
    "app/export_import.py",
    "_source(line.export), offset, offset + 1",
    "uuid.uuid4().hex, 0, 1",
)
async def test_an_import_that_is_killed_and_repeated_ends_the_same(
    filled: str, tmp_path: Path, redis_server: RedisServer
) -> None:
    file = str(tmp_path / "all.ndjson")
    assert run("export", file, store=filled)[0] == 0
    assert run("verify", file, store=filled) == (0, f"OK: the store matches {file}\n")
    killed = 0
    for delay in (0.05, 0.2):  # seconds after the first line was imported
        half = start("import", file, store=redis_server.url)
        wait_until(lambda half=half: half.poll() is not None or import_has_begun(redis_server))
        time.sleep(delay)
        half.kill()
        half.communicate()
        killed += half.returncode != 0
    assert killed
    for _ in range(2):
        assert run("import", file, store=redis_server.url)[0] == 0
    assert run("verify", file, store=redis_server.url)[1] == f"OK: the store matches {file}\n"


async def test_estimated_visitors_survive_an_export_and_two_imports(
    filled: str, tmp_path: Path, redis_server: RedisServer, clock: SettableClock
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
        code, output = run(*words, store=store)
        assert code == 0, output
    app = create_app(settings_for("sqlite", tmp_path, redis_server).model_copy(update={"store": home}), clock)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://tally") as client,
    ):
        found = (await client.get("/audience?days=4")).json()
        assert (found["exact"], found["error"], abs(found["users"] - USERS) <= 1) == (False, 0.0081, True)


async def test_import_over_http_adds_a_valid_file_once_and_an_invalid_one_not_at_all(
    filled: str, tmp_path: Path, redis_server: RedisServer, clock: SettableClock
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
            response = await client.post("/import", content=b"".join(bad))
            assert response.status_code == 422, bad[1:3]
            assert (await client.get("/leaderboard?window=total")).json() == []
        for _ in range(2):
            assert (await client.post("/import", content=b"".join(lines))).status_code == 200
        exported = (await client.get("/export")).content.splitlines()
        assert sorted(map(shape, exported[1:-1])) == sorted(map(shape, lines[1:-1]))


INVALID_LINES = [  # as bytes, or as a bucket with its counts
    (["total", 60, ""], {"a": 1}),
    (["day", NOON.day + 60, ""], {"a": 1}),
    (["day", 2**60, ""], {"a": 1}),
    (["minute", NOON.minute, "user:a"], {"ann": 1}),
    (["hour", NOON.hour, "offset"], {"a": 1}),
    (["day", NOON.day, "anything"], {"a": 1}),
    (["day", NOON.day, "part:99999999999"], {"a": 1}),
    (["day", NOON.day, "user: a"], {"ann": 1}),
    (["day", NOON.day, "user:a"], {"ann": -1}),
    (["day", NOON.day, "user:a"], {"": 1}),
    (["day", NOON.day, "sketch:user:a"], {"007": 1}),
    (["day", NOON.day, "sketch:user:a"], {"٣": 1}),
    (["day", NOON.day, "sketch:user:a"], {"9" * 5000: 1}),
    (["day", NOON.day, "sketch:user:a"], {"16384": 1}),
    (["day", NOON.day, "sketch:user:a"], {"1": 52}),
    (["day", NOON.day, "generation"], {"a": 1}),
    (["day", NOON.day, "generation"], {"": 0}),
    (["day", NOON.day, "log"], {"": 1}),
    (["day", NOON.day, "log"], {"{}": 1}),
    (["day", NOON.day, "log"], {'[1,1000000000000000,"reset","",[0,0],[0,0]]': 1}),
    (["day", NOON.day, "log"], {'[1,1,"reset","a/b",[0,0],[0,0]]': 1}),
    (["day", NOON.day, "log"], {'[1,1,"reset","",[0,99999999999999999999999],[0,0]]': 1}),
    (["day", NOON.day, "log"], {' [1,1,"reset","",[0,0],[0,0]]': 1}),
    (["total", 0, ""], {"": 1}),
    (["total", 0, ""], {"e\u0301": 1}),
    (["total", 0, ""], {"a": 2**53}),
    (["total", 0, ""], {"a": 1.5}),
    b'{"end":7}',
    b'{"bucket":["total",0,""],"counts":{"a":1}',
    b'{"bucket":["total",0,""],"counts":{"%b":1}}' % (b"a" * export_import.LINE_BYTES_MAX),
    b"",
    b"[" * 100_000,
    b"\xff",
]


@pytest.mark.fails_on_mutant(
    "a bucket may start at any second",
    "app/export_import.py",
    "calendar.starts(bucket.step, bucket.start, 1)[0]",
    "bucket.start",
)
def test_an_invalid_line_is_named_by_its_number() -> None:
    for bad in INVALID_LINES:
        line = bad if isinstance(bad, bytes) else json.dumps({"bucket": bad[0], "counts": bad[1]}).encode()
        good = json.dumps({"bucket": ["total", 0, ""], "counts": {"a": 1}}).encode()
        file = io.BytesIO(b"\n".join([head(), good, line, b'{"end":3}', b""]))
        with pytest.raises(export_import.ExportError, match=r"^line 3: "):
            print(bad, list(export_import.read_lines(file, CLOCK)))  # noqa: T201 # shows the line that was accepted


@pytest.mark.parametrize(
    "tail", [b"", b'{"end":1}\n' + b"{}", b'{"end":1}\n\n', b'{"end":0}\n', b'{"end":1}\n{"end":1}\n']
)
def test_a_file_that_is_truncated_or_too_long_is_invalid(tail: bytes) -> None:
    with pytest.raises(export_import.ExportError, match=r"^line \d: "):
        list(export_import.read_lines(io.BytesIO(head() + b"\n" + tail), CLOCK))
    assert list(export_import.read_lines(io.BytesIO(head() + b'\n{"end":1}\n'), CLOCK)) == []


@pytest.mark.parametrize("wrong", [{"tally": 2}, {"export": "x"}, {"export": "a" * 10**6}, {"timezone": 1}])
def test_an_invalid_head_is_named_as_line_1(wrong: dict[str, object]) -> None:
    with pytest.raises(export_import.ExportError, match=r"^line 1: "):
        list(export_import.read_lines(io.BytesIO(head(**wrong) + b'\n{"end":1}\n'), CLOCK))


def test_an_export_of_another_time_zone_can_be_changed() -> None:
    with pytest.raises(export_import.ExportError, match=r"Paris and .* UTC: set .*=Europe/Paris .*`tally rezone`$"):
        list(export_import.read_lines(io.BytesIO(head(timezone="Europe/Paris") + b"\n"), CLOCK))


@pytest.mark.fails_on_mutant(
    "an event without a total is exported",
    "app/export_import.py",
    "if event != ALL_EVENTS and event in totals}",
    "if event != ALL_EVENTS}",
)
async def test_hits_during_an_export_leave_it_consistent() -> None:
    store, copy, file = MemoryStore(StoreLimits(100)), MemoryStore(StoreLimits(100)), io.BytesIO()
    await store.apply("s", 0, 1, [HitGroup(NOON, {"a": 5, "b": 1})])
    offset = 1
    async for line in export_import.export(store, CLOCK):
        file.write(line)
        await store.apply("s", offset, offset + 1, [HitGroup(NOON, {"a": 1, f"new {offset}": 1})])
        offset += 1
    file.seek(0)
    for line in export_import.read_lines(file, CLOCK):
        await export_import.import_line(copy, CLOCK, line)
    (totals,) = await copy.read([TOTAL])
    for bucket in await copy.list_buckets():
        (counts,) = await copy.read([bucket])
        assert counts.keys() <= totals.keys()
    applied = await copy.apply("s", 0, 1, [HitGroup(NOON, {"new 2": 1})])
    assert applied.groups == [GroupResult({"new 2": Value(1, 1)})]


async def test_an_import_adds_to_existing_counts_while_hits_arrive(clock: SettableClock) -> None:
    store, target, file = MemoryStore(StoreLimits(100)), MemoryStore(StoreLimits(1)), io.BytesIO()
    await store.apply("s", 0, 1, [HitGroup(NOON, {"a": 5, "b": 1})])
    await target.apply("s", 0, 1, [HitGroup(NOON, {"a": 100})])
    async for line in export_import.export(store, CLOCK):
        file.write(line)
    for _ in range(2):
        file.seek(0)
        for line in export_import.read_lines(file, CLOCK):
            await export_import.import_line(target, CLOCK, line)
            await target.apply(uuid.uuid4().hex, 0, 1, [HitGroup(NOON, {"a": 1})])
    hits = 2 * 4  # minute, hour, day and total
    assert await target.read(NOON.buckets) == [{"a": 105 + hits, "b": 1, "": 106 + hits}] * 4


def head(**replaced: object) -> bytes:
    return json.dumps({"tally": 1, "export": "0" * 32, "timezone": "UTC"} | replaced).encode()


def import_has_begun(redis_server: RedisServer) -> bool:
    with redis_server.client() as client:
        return bool(client.keys("tally:{0}:source:import*"))


def shape(line: bytes) -> str:
    """Return a line in a form that does not depend on the order of its members."""
    return json.dumps(json.loads(line), sort_keys=True)


@pytest.mark.fails_on_mutant(
    "days are not rebuilt", "app/rezone.py", "items() if day not in self._kept", "items() if not day"
)
@pytest.mark.fails_on_mutant(
    "corrected days are rebuilt", "app/rezone.py", "self._old_date(bucket.start) in self._kept:", "not bucket:"
)
@pytest.mark.fails_on_mutant(
    "a day without all hours is rebuilt",
    "app/rezone.py",
    "for day, hits in self._without_hour.items() if hits",
    "for day, hits in ()",
)
def test_rezone_rebuilds_days_from_hours(tmp_path: Path) -> None:
    """In Berlin, the hits after 23:00 UTC belong to the next day. A corrected day keeps its hits."""
    berlin, day, hour = ZoneInfo("Europe/Berlin"), 86_400, 3600
    first = 20_000 * day  # 2024-10-04, when Berlin is two hours ahead
    lines: list[dict[str, object]] = [
        {"tally": 1, "export": "e" * 32, "timezone": "UTC"},
        {"bucket": ["total", 0, ""], "counts": {"a": 111}},
        {"bucket": ["hour", first, ""], "counts": {"a": 1}},
        {"bucket": ["hour", first + 23 * hour, ""], "counts": {"a": 10}},
        {"bucket": ["hour", first + 2 * day + 23 * hour, ""], "counts": {"a": 100}},
        {"bucket": ["day", first - day, ""], "counts": {"a": 7}},
        {"bucket": ["day", first, ""], "counts": {"a": 11}},
        {"bucket": ["day", first + 2 * day, ""], "counts": {"a": 100}},
        {"bucket": ["day", first + 4 * day, ""], "counts": {"a": 5}},
        {"bucket": ["day", first + 2 * day, "offset"], "counts": {"a": -1}},
        {"bucket": ["day", first, "user:a"], "counts": {"u": 1}},
    ]
    lines.append({"end": len(lines)})
    old, new = tmp_path / "old.ndjson", tmp_path / "new.ndjson"
    old.write_text("".join(json.dumps(line) + "\n" for line in lines))
    environment = os.environ | {"TALLY_TIMEZONE": "Europe/Berlin"}
    command = [sys.executable, "-m", "app", "rezone", str(old), str(new)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"Wrote {new} with the days of Europe/Berlin. Import it into a new store.\n"
    clock = Clock(Calendar(berlin), lambda: 0)
    with new.open("rb") as file:
        found = {tuple(line.bucket): line.counts for line in export_import.read_lines(file, clock)}
    start = first - 2 * hour
    assert {bucket[1:]: counts for bucket, counts in found.items() if bucket[0] == "day"} == {
        (start - day, ""): {"a": 7},  # its hours have been deleted
        (start + day, ""): {"a": 10},
        (start + 2 * day, ""): {"a": 100},  # corrected
        (start + 2 * day, "offset"): {"a": -1},
        (start + 4 * day, ""): {"a": 5},  # imported without hours
        (start + 3 * day, ""): {"a": 100},
        (start, "user:a"): {"u": 1},
        (start, ""): {"a": 1},  # begins before the first hit
    }
    assert found["total", 0, ""] == {"a": 111}
    assert found["hour", first, ""] == {"a": 1}


@pytest.mark.fails_on_mutant(
    "an unknown zone is a bug", "app/rezone.py", "except (ZoneInfoNotFoundError, ValueError)", "except ValueError"
)
def test_rezone_refuses_an_export_with_an_unknown_zone(tmp_path: Path) -> None:
    old, new = tmp_path / "old.ndjson", tmp_path / "new.ndjson"
    head = {"tally": 1, "export": "e" * 32, "timezone": "Mars/Base"}
    old.write_text(json.dumps(head) + "\n" + json.dumps({"end": 1}) + "\n")
    command = [sys.executable, "-m", "app", "rezone", str(old), str(new)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "tally: the time zone of the export, Mars/Base, is unknown on this machine\n",
    )
    assert not new.exists()
