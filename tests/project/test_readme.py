"""The README: its commands are run as they are written, and its tables agree with the code."""

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml

from app.http.permissions import ROUTE_PERMISSIONS
from tests.support.servers import ROOT, Process

README = (ROOT / "README.md").read_text()
# Routes that another row of the table includes.
INCLUDED = {"GET /embed/{name}/stream", *(route for route in ROUTE_PERMISSIONS if route.endswith("/{key}"))}
INCLUDED |= {"GET /get/{ns}/{key}/shield", "GET /stats", "GET /healthcheck"}
INCLUDED |= {
    route for route in ROUTE_PERMISSIONS if route.split(" ")[1].startswith(("/notes", "/goals", "/alert", "/share"))
}
INCLUDED -= {"GET /hit/{ns}/{key}", "GET /get/{ns}/{key}", "GET /notes", "GET /goals", "GET /alerts", "GET /shares"}


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


def test_every_route_is_in_the_table() -> None:
    table = re.findall(r"`((?:GET|POST|PUT|DELETE) /[^`]*)`", README.split("## The API")[1].split("\n## ")[0])
    assert len(set(table)) == len(table)
    assert set(table) == {route for route in ROUTE_PERMISSIONS if not route.startswith("*")} - INCLUDED


def test_commands_of_make_and_docker_fit_their_files() -> None:
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make (\w+)`", README)) <= targets
    assert "$ make run" in README
    dockerfile = (ROOT / "Dockerfile").read_text()
    (port,) = re.findall(r"docker run --rm -p 127\.0\.0\.1:8000:(\d+)", README)
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
    rows = re.findall(r"^\|.* \| (\S+) \| (\S+) \| (\d+) \|$", faults, re.MULTILINE)
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
