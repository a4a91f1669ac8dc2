"""The README's commands, run as they are written, against an app as an operator runs it."""

import random
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.support.servers import ROOT, Process

BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.fixture
def tally(process, tmp_path: Path) -> Process:
    return process(TALLY_STORE=f"sqlite:///{tmp_path}/tally.db")


def run(tally: Process, words: str, directory: Path) -> str:
    (block,) = (block for block in BLOCKS if words in block)
    script = re.sub(r"(127\.0\.0\.1|localhost):8000", f"127.0.0.1:{tally.port}", block)
    done = subprocess.run(["sh", "-euc", script], cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout


def leaderboard(tally: Process) -> dict[str, int]:
    return {row["eventName"]: row["count"] for row in tally.get("/leaderboard?limit=1000")}


def test_the_first_curl_counts(tally: Process, tmp_path: Path) -> None:
    assert '"eventName":"signup","count":1,"total":1' in run(tally, "event/signup", tmp_path)


def test_git_log_makes_a_leaderboard_equal_to_sort_uniq(tally: Process) -> None:
    run(tally, "git log", ROOT)
    log = subprocess.run(["git", "log", "--format=%an"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert leaderboard(tally) == dict(Counter(filter(None, log.stdout.splitlines())))


def test_an_access_log_makes_a_leaderboard_equal_to_sort_uniq(tally: Process, tmp_path: Path) -> None:
    paths = ["/", "/blog/first", "/blog/first?utm=x", "/search?q=a/b", "/%D9%81", "/" + "long/" * 40]
    asked = random.choices(paths, weights=[9, 5, 3, 3, 2, 1], k=2500)
    line = '203.0.113.7 - - [23/Nov/2026:10:00:00 +0000] "GET {} HTTP/1.1" 200 512 "-" "curl/8"\n'
    (tmp_path / "access.log").write_text("".join(map(line.format, asked)))
    run(tally, "access.log", tmp_path)
    expected = Counter(path.split("?")[0].replace("/", ":")[:128] for path in asked)
    assert leaderboard(tally) == dict(expected)
