"""`tally import` as a process, which a test may kill."""

import os
import subprocess
import sys

from tests.support.servers import ROOT


def start_import(*words: str, store: str) -> subprocess.Popen[str]:
    """Start `tally import` with these arguments."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("TALLY_", "REDIS_"))}
    command = [sys.executable, "-m", "app", "import", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment | {"TALLY_STORE": store}, **pipes)


def run_import(*words: str, store: str) -> list[str]:
    """Run `tally import` until it ends, and return the lines that it prints."""
    process = start_import(*words, store=store)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return output.splitlines()
