"""The clients and scripts of the how-to pages count what they should, once, although a response is lost."""

import asyncio
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.examples import examples, run
from tests.support.servers import ADMIN_KEY, ROOT, Process

pytestmark = pytest.mark.anyio
NODE = shutil.which("node")
PYTHON_CALL = "count('sign up', by=3, user='u/1')"
# The language of each page's client, the program that runs it, and a call of its `count`.
CLIENTS = {
    "instrument-fastapi": ("python", (sys.executable,), f"asyncio.run({PYTHON_CALL})"),
    "instrument-django": ("python", (sys.executable,), PYTHON_CALL),
    "instrument-express": ("js", (NODE, "--input-type=module"), "await count('sign up', {by: 3, user: 'u/1'});"),
}


def page(name: str) -> str:
    return (ROOT / f"docs/how-to/{name}.md").read_text()


def on_port(script: str, port: int) -> str:
    """Return a script that uses this port instead of the one in the documents."""
    return re.sub(r"(127\.0\.0\.1|localhost):8000", f"127.0.0.1:{port}", script)


@asynccontextmanager
async def proxy_that_loses_a_response(app: Process) -> AsyncIterator[int]:
    """Yield the port of a proxy before an app. It closes the first connection instead of passing the response on."""
    lost = False

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal lost
        responses, requests = await asyncio.open_connection("127.0.0.1", app.port)
        forwarding = asyncio.create_task(forward(reader, requests))
        response = await responses.read(65_536)
        if lost:
            writer.write(response)
            await forward(responses, writer)
        lost = True
        forwarding.cancel()
        writer.close()
        requests.close()

    async def forward(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            target.write(data)
        target.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        assert lost


@pytest.fixture
def tally(process: Callable[..., Process], tmp_path: Path) -> Process:
    return process(TALLY_STORE=f"sqlite:///{tmp_path}/tally.db", TALLY_ADMIN_KEYS=ADMIN_KEY)


def without_key(name: str, old: str, new: str) -> object:
    """Return the parameter of a page, which fails if its client sends no idempotency key."""
    mutant = pytest.mark.fails_on_mutant("a hit has no key", f"docs/how-to/{name}.md", old, new)
    return pytest.param(name, marks=mutant, id=name)


@pytest.mark.parametrize(
    "name",
    [
        without_key("instrument-fastapi", "json=fields, headers=headers", "json=fields"),
        without_key("instrument-django", 'url, body, headers, method="POST"', 'url, body, method="POST"'),
        without_key("instrument-express", "headers, body: JSON", "body: JSON"),
    ],
)
async def test_a_client_counts_once_although_a_response_is_lost(tally: Process, name: str) -> None:
    language, program, call = CLIENTS[name]
    client = re.findall(rf"```{language}\n(.*?)```", page(name), re.DOTALL)[0]
    async with proxy_that_loses_a_response(tally) as port:
        running = await asyncio.create_subprocess_exec(*program, "-", stdin=subprocess.PIPE)
        await running.communicate(on_port(f"{client}\n{call}\n", port).encode())
        assert running.returncode == 0
    assert tally.get("/events") == {"sign up": 3}
    assert tally.get("/user/u/1")["counts"] == {"sign up": 3}


@pytest.mark.fails_on_mutant(
    "a lost response is not retried",
    "docs/how-to/instrument-shell.md",
    "--max-time 30 --retry 5 --retry-all",
    "--max-time 30 --retry 0 --retry-all",
)
async def test_the_shell_page_counts_once_although_a_response_is_lost(tally: Process, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    commit = ["-c", "user.name=Ada", "-c", "user.email=ada@example.com", "commit", "-qm", "x", "--allow-empty"]
    for command in (["init", "-q"], commit):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    script = "".join(example.script for example in examples(page("instrument-shell")))
    async with proxy_that_loses_a_response(tally) as port:
        await asyncio.to_thread(run, on_port(script, port), tmp_path, {})
    assert tally.get("/events") == {"Ada": 1, "backup:ok": 1, "bytes_saved": 4096, "deploy": 1}


@pytest.mark.fails_on_mutant(
    "a request has no key", "docs/how-to/count-from-logs.md", '-H "Idempotency-Key: $FILE_AND_QUESTION-$FILE" ', ""
)
@pytest.mark.fails_on_mutant(
    "questions share a key",
    "docs/how-to/count-from-logs.md",
    "send access.log-2026-11-22-status",
    "send access.log-2026-11-22-paths",
)
@pytest.mark.fails_on_mutant(
    "lines have no path", "docs/how-to/count-from-logs.md", """awk '$7 ~ "^/" { split""", "awk '{ split"
)
def test_a_log_that_is_counted_twice_counts_once(tally: Process, tmp_path: Path) -> None:
    paths = ["/", "/blog/first", "/blog/first?utm=x", "/a"] * 600
    line = '203.0.113.7 - - [22/Nov/2026:10:00:00 +0000] "GET {} HTTP/1.1" 200 512 "-" "curl/8"\n'
    broken = ["GET /with space HTTP/1.1", r"\x16\x03\x01\x02 \x00 \xFC/", "", "-"]
    lines = [f'203.0.113.7 - - [22/Nov/2026:10:00:00 +0000] "{request}" 400 157 "-" "-"\n' for request in broken]
    (tmp_path / "access.log.1").write_text("".join([*lines, *map(line.format, paths)]))
    script = "".join(example.script for example in examples(page("count-from-logs")))
    for _ in range(2):
        run(on_port(script, tally.port), tmp_path, {})
    counts = Counter(path.split("?")[0].replace("/", ":") for path in paths)
    assert tally.get("/events") == counts | {":with": 1, "status 200": len(paths), "status 400": len(broken)}


def test_totals_of_another_counter_are_set(tally: Process, tmp_path: Path) -> None:
    (tmp_path / "totals.tsv").write_text("downloads\t90210\n50 % off: ☃\t7\n")
    example, _ = examples(page("migrate"))
    for _ in range(2):
        run(example.script, tmp_path, {"TALLY": tally.url, "KEY": ADMIN_KEY})
    rows = tally.get("/leaderboard?window=total")
    assert {row["eventName"]: row["count"] for row in rows} == {"downloads": 90_210, "50 % off: ☃": 7}


@pytest.mark.fails_on_mutant("bots count", "docs/how-to/migrate.md", ' if row.get("Bot", "0") == "0"', "")
def test_the_totals_of_goatcounter_are_set(tally: Process, tmp_path: Path) -> None:
    columns = "2Path,Title,Event,UserAgent,Browser,System,Session,Bot,Referrer,Referrer scheme,Screen size,Location,"
    columns += "FirstVisit,Date"
    row = '{},"A ""title"", long",0,,Firefox 140,Linux ,1f-2e,{},,o,"0,0,1",,1,2026-11-01T20:03:00Z'
    visits = [("/", 0), ("/blog/first", 0), ("/blog/first", 0), ("/", 3), ('"/a,b ""c"""', 0), ("/über uns", 0)]
    (tmp_path / "goatcounter-export.csv").write_text("\n".join([columns, *(row.format(*visit) for visit in visits)]))
    totals, export = examples(page("migrate"))
    run(export.script + totals.script, tmp_path, {"TALLY": tally.url, "KEY": ADMIN_KEY})
    rows = tally.get("/leaderboard?window=total")
    expected = {":": 1, ":blog:first": 2, ':a,b "c"': 1, ":über uns": 1}
    assert {row["eventName"]: row["count"] for row in rows} == expected


def test_the_commands_about_api_keys_work(process: Callable[..., Process], tmp_path: Path) -> None:
    keys = {"TALLY_WRITE_KEYS": "a-key-that-may-count"}
    app = process(TALLY_STORE="memory://", TALLY_ALLOWED_ORIGINS="https://shop.example", **keys)
    count, preflight = (run(on_port(e.script, app.port), tmp_path, keys) for e in examples(page("api-keys")))
    assert '"count":1' in count
    assert "access-control-allow-origin: https://shop.example" in preflight
