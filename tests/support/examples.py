"""The examples in a document: commands in `sh` blocks, each with its expected output in the block after it."""

import itertools
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OUTPUTS = {"json", "text"}
GO_OFFLINE = {"GO111MODULE": "off", "GOTOOLCHAIN": "local", "GOPROXY": "off"}  # Go downloads nothing


class Example(NamedTuple):
    """A shell script and what it prints: JSON, some lines of text, or "" if the document does not show it."""

    script: str
    output: str
    kind: str


def examples(text: str) -> Iterator[Example]:
    """Yield the examples of a document, in order."""
    blocks = [*_BLOCK.findall(text), ("", "")]
    for (language, script), (kind, output) in itertools.pairwise(blocks):
        if language == "sh":
            yield Example(script, output, kind) if kind in _OUTPUTS else Example(script, "", "")


def run(script: str, directory: Path, variables: Mapping[str, str]) -> str:
    """Run a script and return what it prints. A stream (`curl -N`) is stopped after its first update."""
    environment = os.environ | variables
    command = ["sh", "-euc", script.replace("curl ", "curl -sS --fail-with-body ")]
    if "curl -N" in script:
        return _first_update(command, directory, environment)
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    return done.stdout


def _first_update(command: list[str], directory: Path, environment: Mapping[str, str]) -> str:
    with subprocess.Popen(
        command, cwd=directory, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("data: "):
                break
        os.killpg(process.pid, signal.SIGKILL)
    return "".join(lines)


def check(example: Example, printed: str) -> None:
    """Compare what an example has printed with what the document shows. Times, ids and versions may differ."""
    if example.kind == "json":
        assert _shape(json.loads(printed)) == _shape(json.loads(example.output)), f"{example.script}\n{printed}"
    for line in example.output.splitlines() if example.kind == "text" else ():
        assert _masked(line) in _masked(printed), f"{example.script}\n{line}\nis not in\n{printed}"


def _shape(value: object) -> object:
    """Return JSON with what depends on the time replaced: digits in texts, and fractions."""
    if isinstance(value, dict):
        return {key: _shape(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_shape(item) for item in value]
    if isinstance(value, str):
        return _masked(value)
    return "a fraction" if isinstance(value, float) else value


def _masked(text: str) -> str:
    """Replace numbers, time-zone offsets and hex ids, whose digits differ from run to run."""
    return re.sub(r"[+-]?[0-9a-f]*\d[0-9a-f]*", "0", text)
