"""The README: its commands and programs are run as they are written, and its tables agree with the code."""

import http.client
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from app.http.permissions import ROUTE_PERMISSIONS
from tests.support.servers import ROOT, Process

README = (ROOT / "README.md").read_text()
# The file of each program, and how it is checked and run.
PROGRAMS = {
    "bash": ("count.sh", [["sh", "-eu", "count.sh"]]),
    "js": ("count.mjs", [["node", "count.mjs"]]),
    "python": ("count.py", [[sys.executable, "count.py"]]),
    "go": ("main.go", [["gofmt", "-d", "main.go"], ["go", "vet", "main.go"], ["go", "run", "main.go"]]),
}
GO_OFFLINE = {"GO111MODULE": "off", "GOTOOLCHAIN": "local", "GOPROXY": "off"}
# Routes that another row of the table includes.
INCLUDED = {"GET /embed/{name}/stream", *(route for route in ROUTE_PERMISSIONS if route.endswith("/{key}"))}
INCLUDED |= {"GET /get/{ns}/{key}/shield", "GET /stats", "GET /healthcheck"}
INCLUDED -= {"GET /hit/{ns}/{key}", "GET /get/{ns}/{key}"}


@pytest.fixture
def tally(process, tmp_path: Path) -> Process:
    return process(TALLY_STORE=f"sqlite:///{tmp_path}/tally.db")


def block(language: str, words: str = "") -> str:
    """Return the only code block in this language that contains some words."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    (found,) = [text for text in blocks if words in text]
    return found


def here(text: str, port: int) -> str:
    return re.sub(r"(127\.0\.0\.1|localhost):8000", f"127.0.0.1:{port}", text)


def run(tally: Process, words: str, directory: Path) -> str:
    script = here(block("sh", words), tally.port).replace("/var/log/nginx/", "")
    done = subprocess.run(["sh", "-euc", script], cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout


def test_the_first_curl_counts(tally: Process, tmp_path: Path) -> None:
    shown = block("sh", "event/signup").split("# ")[1].strip()
    assert run(tally, "event/signup", tmp_path) == shown.replace("2026-11-23", tally.get("/event/signup")["day"])


AUTHORS = [
    b"Ada", b"Team / Ops", b"ends with a space ", b"long " * 40, b"not UTF-8: \xff\xe9", b"tab\tand \x1b[31m",
    b"\xe2\x80\x8fright", "é".encode() * 200, "日本\u3000".encode(), b'"quoted" \\ "', b"{x}", b"[bot]", b"- dash",
]  # fmt: skip


def repository(path: Path, commits: int) -> Counter[str]:
    """Make a repository as other programs write them, which do not trim names. Return its commits per event name."""
    subprocess.run(["git", "init", "-q", "-b", "main", path], check=True)
    authors = [AUTHORS[i % len(AUTHORS)] for i in range(commits)]
    lines = [
        b"commit refs/heads/main\nauthor %b <a@example.com> %d +0000\ncommitter C <c@example.com> %d +0000\ndata 0\n"
        % (author, at, at)
        for at, author in enumerate(authors, 1_700_000_000)
    ]
    subprocess.run(["git", "fast-import", "--quiet"], cwd=path, input=b"\n".join(lines), check=True)
    return Counter(map(valid_name, authors))


def valid_name(line: bytes) -> str:
    """Return the event name that the README's commands should make from a line."""
    text = " ".join(line.decode(errors="ignore").split()).replace("/", ":")
    text = "".join(c for c in text if c.isprintable())
    return text[:128].strip()


@pytest.mark.fails_on_mutant("slashes are left", "README.md", "tr|/|:|; ", "")
@pytest.mark.fails_on_mutant("long names are left", "README.md", "$_ = substr $_, 0, 128; ", "")
@pytest.mark.fails_on_mutant("invisible characters are left", "README.md", r"s/\p{C}//g; ", "")
@pytest.mark.fails_on_mutant("spaces at the ends are left", "README.md", " s/^ | $//g;", "")
@pytest.mark.fails_on_mutant("names are plain lines", "README.md", """qq({"event": "$_"})""", "$_")
@pytest.mark.fails_on_mutant("quotes are left", "README.md", r"""s/(["\\])/\\$1/g; """, "")
@pytest.mark.fails_on_mutant("invalid UTF-8 is left", "README.md", "iconv -c -f UTF-8 -t UTF-8 |", "")
@pytest.mark.fails_on_mutant("all lines are one request", "README.md", "split -l 5000", "split -l 50000")
@pytest.mark.fails_on_mutant("broken lines are counted", "README.md", '$7 ~ "^/" {', "{")
def test_commits_and_requests_are_counted_whatever_the_names(tally: Process, tmp_path: Path) -> None:
    expected = repository(tmp_path, 10_100)
    paths = ["/", "/blog/first", "/blog/first?utm=x", "/search?q=a/b", "/%D9%81", "/" + "long/" * 40]
    line = b'203.0.113.7 - - [23/Nov/2026:10:00:00 +0000] "GET %b HTTP/1.1" 200 512 "-" "curl/8"\n'
    broken = b'203.0.113.7 - - [23/Nov/2026:10:00:00 +0000] "\x16\x03\x01\xff" 400 157 "-" "-"\n'
    asked = [paths[i % len(paths)] for i in range(12_000)]
    with (tmp_path / "access.log").open("wb") as log:
        for number, path in enumerate(asked):
            log.write(line % path.encode())
            if number % 1000 == 0:
                log.write(broken)
    expected += Counter(valid_name(path.split("?")[0].encode()) for path in asked)
    top = run(tally, "git log", tmp_path)
    assert '"rank":1' in top
    assert tally.get("/events") == expected


class Unreliable(ThreadingHTTPServer):
    """An HTTP proxy in front of Tally. It treats one request after the other as `faults` says."""

    def __init__(self, port: int, *faults: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tally_port, self.faults, self.requests = port, list(faults), 0


class _Handler(BaseHTTPRequestHandler):
    server: Unreliable

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests += 1
        fault = self.server.faults.pop(0) if self.server.faults else ""
        status, answer = (int(fault), b"{}") if fault.isdecimal() else self._forward(body)
        if fault == "response lost":
            return
        self.send_response(status)
        self.end_headers()
        self.wfile.write(answer)

    def _forward(self, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.tally_port)
        connection.request("POST", self.path, body, {**self.headers, "Connection": "close"})
        with connection.getresponse() as response:
            return response.status, response.read()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def unreliable(tally: Process, *faults: str) -> Iterator[Unreliable]:
    with Unreliable(tally.port, *faults) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def run_program(language: str, port: int, directory: Path) -> subprocess.CompletedProcess[str]:
    file, commands = PROGRAMS[language]
    (directory / file).write_text(here(block(language), port))
    for command in commands:
        done = subprocess.run(
            command, cwd=directory, env=os.environ | GO_OFFLINE, capture_output=True, text=True, check=False
        )
        if command[0] == "gofmt" or command[1] == "vet":
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return done


def without(text: str) -> pytest.MarkDecorator:
    return pytest.mark.fails_on_mutant("the key is not sent", "README.md", text, "")


@pytest.mark.timeout(180)  # Go compiles its library first
@pytest.mark.parametrize(
    "language",
    [
        pytest.param("bash", marks=without("-H 'Idempotency-Key: order-17' ")),
        pytest.param("js", marks=without('headers: { "Idempotency-Key": key }, ')),
        pytest.param("python", marks=without('    headers={"Idempotency-Key": "order-19"},\n')),
        pytest.param("go", marks=without('\t\trequest.Header.Set("Idempotency-Key", "order-20")\n')),
    ],
)
def test_each_program_counts_once_although_it_retries(language: str, tally: Process, tmp_path: Path) -> None:
    with unreliable(tally, "response lost", "503") as proxy:
        done = run_program(language, proxy.server_port, tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"""count["']?: ?3""", done.stdout), done.stdout
    assert proxy.requests == 3
    assert tally.get("/event/order") | {"day": ""} == {"eventName": "order", "count": 3, "total": 3, "day": ""}
    assert tally.get("/audience")["users"] == 1


@pytest.mark.timeout(180)
@pytest.mark.parametrize("language", PROGRAMS)
def test_no_program_repeats_a_rejected_request(language: str, tally: Process, tmp_path: Path) -> None:
    with unreliable(tally, "422") as proxy:
        run_program(language, proxy.server_port, tmp_path)
    assert proxy.requests == 1


def test_every_route_is_in_the_table() -> None:
    table = re.findall(r"`((?:GET|POST|PUT|DELETE) /[^`]*)`", README.split("## The API")[1].split("\n## ")[0])
    assert len(set(table)) == len(table)
    assert set(table) == {route for route in ROUTE_PERMISSIONS if not route.startswith("*")} - INCLUDED


def test_commands_of_make_and_docker_fit_their_files() -> None:
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make (\w+)`", README)) <= targets
    assert "$ make run" in README
    dockerfile = (ROOT / "Dockerfile").read_text()
    (port,) = re.findall(r"docker run -p 127\.0\.0\.1:8000:(\d+)", README)
    (volume,) = re.findall(r"-v tally:(\S+) tally", README)
    assert f"EXPOSE {port}" in dockerfile
    assert f"VOLUME {volume}" in dockerfile
    (service,) = re.findall(r"docker compose up --scale (\w+)=3", README)
    assert service in yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def test_the_evidence_is_what_the_measurements_wrote() -> None:
    """Each row of the first table is in docs/accuracy.md; each figure of the second is in docs/benchmarks.md."""
    faults, speed = README.split("## Evidence")[1].split("\n## ")[0].split("One server on one core")
    (accuracy,), (benchmarks,) = [list((ROOT / "docs").rglob(page)) for page in ("accuracy.md", "benchmarks.md")]
    measured = [[cell.strip() for cell in row.split("|")] for row in accuracy.read_text().splitlines()]
    rows = re.findall(r"^\|.* \| (\S+) \| (\d+) \| (\d+) \|$", faults, re.MULTILINE)
    assert len(rows) == 4
    for acknowledged, lost, twice in rows:
        (row,) = [row for row in measured if acknowledged in row[3:4]]
        assert [row[6], row[7]] == [lost, twice]
    figures = re.findall(r"\d[\d,]+,\d{3}|\d+\.\d\d(?=\N{MULTIPLICATION SIGN})", speed)
    assert len(figures) == 7
    assert not [figure for figure in figures if not re.search(rf"\b{figure}\b", benchmarks.read_text())]


def test_the_animation_is_small_and_moves() -> None:
    image = (ROOT / "docs/img/live.gif").read_bytes()
    assert len(image) < 1_500_000
    assert image.count(b"\x21\xf9\x04") > 30  # one graphic control extension per frame
    assert "docs/img/live.gif" in README
