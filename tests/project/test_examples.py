"""The programs in examples/, and the curl command of the README, count once through a proxy that loses responses."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.examples import GO_OFFLINE
from tests.support.servers import ROOT, Process
from tests.support.unreliable_proxy import LOST, REDIRECTS, unreliable

# How each program is checked and run. CURL is the command of the README.
PROGRAMS = {
    "CURL": [["sh", "-eu", "CURL"]],
    "count.sh": [["sh", "-n", "count.sh"], ["sh", "count.sh"]],
    "count.mjs": [["node", "count.mjs"]],
    "count.py": [[sys.executable, "count.py"]],
    "count.go": [["gofmt", "-d", "count.go"], ["go", "vet", "count.go"], ["go", "run", "count.go"]],
}
CHECKS = {"-n", "-d", "vet"}
API_KEY = "a-key-that-may-count"


@pytest.fixture
def tally(process, tmp_path: Path) -> Process:
    return process(TALLY_STORE=f"sqlite:///{tmp_path}/tally.db")


def run_program(program: str, port: int, directory: Path, api_key: str = "") -> subprocess.CompletedProcess[str]:
    url = f"http://127.0.0.1:{port}"
    if program == "CURL":
        (command,) = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
        text = command.replace("http://127.0.0.1:8000", url)
    else:
        text = (ROOT / "examples" / program).read_text()
    (directory / program).write_text(text)
    environment = os.environ | GO_OFFLINE | {"TALLY_URL": url, "TALLY_KEY": api_key}
    for command in PROGRAMS[program]:
        done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
        if command[1] in CHECKS:
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return done


def without_key(program: str, old: str, new: str = "") -> object:
    """Return the parameter of a program, which fails if it sends no idempotency key."""
    file = "README.md" if program == "CURL" else f"examples/{program}"
    return pytest.param(program, marks=pytest.mark.fails_on_mutant("the key is not sent", file, old, new), id=program)


@pytest.mark.timeout(180)  # Go compiles its library first
@pytest.mark.parametrize(
    "program",
    [
        without_key("CURL", "-H 'Idempotency-Key: order-17' "),
        without_key("count.sh", '-H "Idempotency-Key: $2" '),
        without_key("count.mjs", ', "Idempotency-Key": key }', " }"),
        without_key("count.py", ', headers={"Idempotency-Key": key}'),
        without_key("count.go", 'request.Header.Set("Idempotency-Key", key)'),
    ],
)
def test_each_program_counts_once_although_it_retries(program: str, tally: Process, tmp_path: Path) -> None:
    with unreliable(tally, LOST, 503) as proxy:
        done = run_program(program, proxy.server_port, tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"""count["']?: ?3""", done.stdout), done.stdout
    assert proxy.posts == 3
    assert tally.get("/event/order") | {"day": ""} == {"eventName": "order", "count": 3, "total": 3, "day": ""}
    assert tally.get("/audience")["users"] == 1


def takes_for_counted(program: str, file: str, old: str, new: str) -> object:
    """Return the parameter of a program, which fails if it takes a redirected hit for counted."""
    mutant = pytest.mark.fails_on_mutant("a redirected hit is taken for counted", file, old, new)
    return pytest.param(program, marks=mutant, id=program)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "program",
    [
        takes_for_counted("CURL", "README.md", "curl -sSL", "curl -sS"),
        takes_for_counted("count.sh", "examples/count.sh", "-lt 300", "-lt 400"),
        takes_for_counted("count.mjs", "app/http/parsing.py", 'if "idempotency-key" in request.headers:', "if False:"),
        "count.py",
        takes_for_counted("count.go", "examples/count.go", 'method != "POST"', 'method == ""'),
    ],
)
def test_no_program_repeats_a_rejected_or_redirected_request(program: str, tally: Process, tmp_path: Path) -> None:
    for status in (422, *REDIRECTS):
        with unreliable(tally, status) as proxy:
            done = run_program(program, proxy.server_port, tmp_path)
        assert proxy.posts == 1
        assert program == "CURL" or done.returncode != 0, done.stdout
        output = done.stdout + done.stderr
        assert '"count"' not in output
        # count.sh follows no redirect, and prints the response of the proxy.
        assert status != 301 or program == "count.sh" or "redirect" in output.lower()
    assert tally.get("/event/order")["total"] == 0


@pytest.mark.timeout(180)
@pytest.mark.parametrize("program", sorted(PROGRAMS.keys() - {"CURL"}))
def test_each_program_sends_an_api_key(program: str, process, tmp_path: Path) -> None:
    tally = process(TALLY_STORE="memory://", TALLY_WRITE_KEYS=API_KEY)
    assert run_program(program, tally.port, tmp_path).returncode != 0
    assert run_program(program, tally.port, tmp_path, API_KEY).returncode == 0
    assert tally.get("/event/order")["total"] == 3
