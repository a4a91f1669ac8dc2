"""The clients and scripts of the how-to pages count what they should, once, although a response is lost."""

import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo

import pytest

from app.domain.calendar import Calendar, Clock
from app.export_import import check_file
from app.importing.files import open_source
from tests.support.examples import GO_OFFLINE, examples, run
from tests.support.servers import ADMIN_KEY, ROOT, Process, zone_at_noon
from tests.support.unreliable_proxy import LOST, REDIRECTS, unreliable

PYTHON_CALL = "count('sign up', by=3, user='u/1')"
# The language of each page's client, the program that runs it, its file, and a call that counts.
CLIENTS = {
    "instrument-fastapi": ("python", (sys.executable,), "tally.py", f"asyncio.run({PYTHON_CALL})"),
    "instrument-django": ("python", (sys.executable,), "tally.py", PYTHON_CALL),
    "instrument-express": ("js", ("node",), "tally.mjs", "await count('sign up', {by: 3, user: 'u/1'});"),
    "instrument-go": (
        "go",
        ("go", "run"),
        "tally.go",
        'func main() { send("sign up", Hit{By: 3, User: "u/1"}, rand.Text()) }',
    ),
}


def page(name: str) -> str:
    return (ROOT / f"docs/how-to/{name}.md").read_text()


def on_port(script: str, port: int) -> str:
    """Return a script that uses this port instead of the one in the documents."""
    return re.sub(r"(127\.0\.0\.1|localhost):8000", f"127.0.0.1:{port}", script)


def run_client(name: str, port: int, directory: Path) -> str:
    """Count a hit with the client of a page. Return what it logs."""
    language, program, file, call = CLIENTS[name]
    client = re.findall(rf"```{language}\n(.*?)```", page(name), re.DOTALL)[0].replace("package tally", "package main")
    (directory / file).write_text(on_port(f"{client}\n{call}\n", port))
    command, environment = [*program, file], os.environ | GO_OFFLINE
    done = subprocess.run(command, cwd=directory, env=environment, stderr=subprocess.PIPE, text=True, check=True)
    return done.stderr


@pytest.fixture
def tally(process: Callable[..., Process], tmp_path: Path) -> Process:
    return process(TALLY_STORE=f"sqlite:///{tmp_path}/tally.db", TALLY_ADMIN_KEYS=ADMIN_KEY)


def without_key(name: str, old: str, new: str) -> object:
    """Return the parameter of a page, which fails if its client sends no idempotency key."""
    mutant = pytest.mark.fails_on_mutant("a hit has no key", f"docs/how-to/{name}.md", old, new)
    return pytest.param(name, marks=mutant, id=name)


@pytest.mark.timeout(180)  # Go compiles its library first
@pytest.mark.parametrize(
    "name",
    [
        without_key("instrument-fastapi", "json=fields, headers=headers", "json=fields"),
        without_key("instrument-django", 'url, body, headers, method="POST"', 'url, body, method="POST"'),
        without_key("instrument-express", "headers, body: JSON", "body: JSON"),
        without_key("instrument-go", 'request.Header.Set("Idempotency-Key", key)', "_ = key"),
    ],
)
def test_a_client_counts_once_although_a_response_is_lost(tally: Process, name: str, tmp_path: Path) -> None:
    with unreliable(tally, LOST) as proxy:
        assert run_client(name, proxy.server_port, tmp_path) == ""
    assert proxy.posts == 2
    assert tally.get("/events") == {"sign up": 3}
    assert tally.get("/user/u/1")["counts"] == {"sign up": 3}


def logs(name: str, old: str, new: str = "str(") -> object:
    """Return the parameter of a page, which fails if its client does not log that Tally rejects a hit."""
    mutant = pytest.mark.fails_on_mutant("nothing is logged", f"docs/how-to/{name}.md", old, new)
    return pytest.param(name, marks=mutant, id=name)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "name",
    [
        logs("instrument-fastapi", "logging.warning("),
        logs("instrument-django", "logging.warning("),
        logs("instrument-express", "console.error(", "void ("),
        logs("instrument-go", 'log.Printf("hit', 'func(string, ...any) {}("hit'),
    ],
)
def test_a_client_logs_that_its_hit_was_redirected(tally: Process, name: str, tmp_path: Path) -> None:
    with unreliable(tally, 301) as proxy:
        log = run_client(name, proxy.server_port, tmp_path)
    assert proxy.posts == 1
    assert re.search("sign up.*(301|redirect|GET 422)", log), log
    assert tally.get("/events") == {}


@pytest.mark.fails_on_mutant(
    "a lost response is not retried",
    "docs/how-to/instrument-shell.md",
    "-m 5 --retry 30 --retry-max-time 30 --retry-all-errors -H",
    "-m 5 --retry 0 --retry-max-time 30 --retry-all-errors -H",
)
def test_the_shell_page_counts_once_although_a_response_is_lost(tally: Process, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    script = "".join(example.script for example in examples(page("instrument-shell")))
    with unreliable(tally, LOST) as proxy:
        run(on_port(script, proxy.server_port), tmp_path, {})
    assert tally.get("/events") == {"backup:ok": 1, "bytes_saved": 4096, "deploy": 1}


@pytest.mark.fails_on_mutant(
    "any response is a success", "docs/how-to/instrument-shell.md", "grep -q '\"ack\"'", "grep -q '.'"
)
def test_the_function_of_the_shell_page_fails_if_its_hit_was_not_counted(tally: Process) -> None:
    function = next(examples(page("instrument-shell"))).script.partition("count deploy")[0]
    for status in (422, *REDIRECTS):
        with unreliable(tally, status) as proxy:
            script = on_port(f"{function}count deploy", proxy.server_port)
            done = subprocess.run(["sh", "-euc", script], stderr=subprocess.PIPE, text=True, check=False)
        assert (done.returncode, done.stderr) == (1, "deploy was not counted\n")
    assert tally.get("/events") == {}


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


def test_the_counts_of_another_counter_are_imported(process: Callable[..., Process], tmp_path: Path) -> None:
    tally = process(TALLY_STORE="memory://", TALLY_ADMIN_KEYS=ADMIN_KEY, TALLY_COUNTAPI="true")
    variables = {"TALLY_KEY": ADMIN_KEY}
    upload, list_keys, _ = examples(page("migrate"))
    (tmp_path / "counts.csv").write_text("event,count,date\ndownloads,90210,2026-11-01\n50 % off: ☃,7,\nmy/key,5,\n")
    for _ in range(2):
        run(on_port(upload.script, tally.port), tmp_path, variables)
    (tmp_path / "keys.txt").write_text("my.site/visits\n")
    for _ in range(3):
        tally.get("/hit/my.site/visits")
    run(list_keys.script, tmp_path, {"ABACUS": tally.url})  # Tally has the same route as Abacus
    assert (tmp_path / "counts.txt").read_text() == "my.site/visits 3\n"
    rows = tally.get("/leaderboard?window=total")
    expected = {"downloads": 90_210, "50 % off: ☃": 7, "my:key": 5, "my.site:visits": 3}
    assert {row["eventName"]: row["count"] for row in rows} == expected


@pytest.mark.fails_on_mutant("days lose their date", "docs/how-to/correct-counts.md", 'day["start"][:10]', '""')
def test_the_commands_lower_a_past_day(process: Callable[..., Process], tmp_path: Path) -> None:
    zone, variables = zone_at_noon(), {"TALLY_KEY": ADMIN_KEY}
    tally = process(TALLY_STORE="memory://", TALLY_ADMIN_KEYS=ADMIN_KEY, TALLY_TIMEZONE=zone)
    yesterday = f"{datetime.now(ZoneInfo(zone)) - timedelta(days=1):%Y-%m-%d}"
    (tmp_path / "signup.csv").write_text(f"event,count,date\nsignup,17,{yesterday}\n")
    tally.post("/event/signup")
    save, lower = (on_port(example.script, tally.port) for example in examples(page("correct-counts")))
    _, upload = lower.split("&&\n")
    run(upload, tmp_path, variables)
    run(save, tmp_path, variables)
    saved = (tmp_path / "signup.csv").read_text()
    (tmp_path / "signup.csv").write_text(saved.replace("signup,17,", "signup,7,"))
    run(lower, tmp_path, variables)
    assert [part["counts"] for part in tally.get(f"/history/{yesterday}")["parts"]] == [{"signup": 7}]
    assert tally.get("/event/signup").items() >= {"count": 1, "total": 8}.items()


class GoatCounterApi(BaseHTTPRequestHandler):
    """Answers as GoatCounter 2.7 does, with two paths per page instead of 20."""

    PATHS = ("/", "/blog/first", "/a,b", "signup")

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        assert self.headers["Authorization"] == "Bearer a-token"
        if url.path == "/api/v0/paths":
            after = int(query["after"])
            paths = [{"id": i, "path": path, "title": "", "event": False} for i, path in enumerate(self.PATHS, 1)]
            body = {"paths": paths[after : after + 2], "more": after + 2 < len(paths)}
        else:
            assert url.path == "/api/v0/stats/hits"
            days = [{"day": f"2026-11-0{day}", "hourly": [0] * 24, "daily": day - 1} for day in (1, 2, 3)]
            ids = map(int, query["include_paths"].split(","))
            hits = [{"path_id": i, "path": self.PATHS[i - 1], "count": 3, "stats": days} for i in ids]
            body = {"hits": hits, "total": 3 * len(hits), "more": False}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.fails_on_mutant(
    "only the first page", "docs/how-to/migrate.md", "        after = ids[-1]\n", "        more = False\n"
)
def test_the_visits_of_goatcounter_are_read_from_its_api(tmp_path: Path) -> None:
    *_, script = examples(page("migrate"))
    with ThreadingHTTPServer(("127.0.0.1", 0), GoatCounterApi) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        run(script.script, tmp_path, {"GOATCOUNTER": url, "TOKEN": "a-token", "START": "2026-11-01"})
        server.shutdown()
        thread.join()
    with (tmp_path / "counts.csv").open("rb") as file:
        clock = Clock(Calendar(ZoneInfo("UTC")), lambda: 1_795_435_200.0)
        source = open_source(file, clock)
    with source.file:
        contents = check_file(source.file, clock)
    assert (contents.events, contents.hits, len(contents.days)) == (4, 12, 2)


def test_the_commands_with_a_write_key_work(process: Callable[..., Process], tmp_path: Path) -> None:
    key = "a-key-that-may-count"
    app = process(TALLY_STORE="memory://", TALLY_ALLOWED_ORIGINS="https://shop.example", TALLY_WRITE_KEYS=key)
    variables = {"TALLY_KEY": key, "CI_JOB_ID": "17"}
    count, preflight = (run(on_port(e.script, app.port), tmp_path, variables) for e in examples(page("api-keys")))
    assert '"count":1' in count
    assert "access-control-allow-origin: https://shop.example" in preflight
    (mark,) = examples(page("mark-a-deployment"))
    for _ in range(2):
        run(on_port(mark.script, app.port), tmp_path, variables)
    assert [note["text"] for note in app.get("/notes")] == ["v2 deployed"]


@pytest.mark.fails_on_mutant("a failed step ends nothing", "docs/how-to/backup.md", "tally sh -ec '", "tally sh -c '")
def test_changing_the_zone_in_a_container_twice_keeps_the_copy(process: Callable[..., Process], tmp_path: Path) -> None:
    ((flags, steps),) = re.findall(r"tally sh (-\w+) '\n(.*?)'\n", page("backup"), re.DOTALL)
    store = {"TALLY_STORE": f"sqlite:///{tmp_path}/tally.db"}
    zones = re.findall(r"TALLY_TIMEZONE=(\S+) tally (?:export|rezone)", page("backup"))[:2]
    tally = process(**store, TALLY_TIMEZONE=zones[0])
    tally.post("/event/signup", b'{"by": 488}')
    assert tally.terminate() == 0
    (tmp_path / "tally").write_text(f'#!/bin/sh\ncd {ROOT}\nexec {sys.executable} -m app "$@"\n')
    (tmp_path / "tally").chmod(0o700)
    environment = os.environ | store | {"TALLY_TIMEZONE": zones[1], "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["sh", flags, steps.replace("/data", str(tmp_path))]
    subprocess.run(command, env=environment, check=True)
    files = [tmp_path / "tally.db", tmp_path / "old/tally.db"]
    before = [file.read_bytes() for file in files]
    assert subprocess.run(command, env=environment, check=False).returncode != 0
    assert [file.read_bytes() for file in files] == before


@pytest.mark.fails_on_mutant("an old node is stopped, too", "docs/how-to/many-nodes.md", "    break\n", "")
def test_an_upgrade_removes_only_the_new_node_that_does_not_become_healthy() -> None:
    (upgrade,) = re.findall(r"```bash\n(git pull.*?)```", page("many-nodes"), re.DOTALL)
    docker = 'docker() { echo "$*" >&2; case "$*" in *"ps -q"*) echo old-1 old-2;; *--wait*) false;; esac; }'
    script = f"{docker}\ngit() {{ :; }}\nsleep() {{ :; }}\n{upgrade}"
    done = subprocess.run(["bash", "-uc", script], stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr.splitlines() == [
        "compose build app",
        "compose ps -q app",
        "compose up -d --no-deps --no-recreate --wait --scale app=4 app",
        "compose logs --tail 20 app",
        "compose up -d --no-deps --no-recreate --scale app=3 app",
    ]
