"""`make mutants`: apply each mutant that a test names; the test must fail on it, and pass without it.

A test names its mutants with @pytest.mark.fails_on_mutant(what, file, old, new); `old` occurs once in `file`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("app", "static", "bench", "tests", "docs", "deploy", "examples", "tools")
PARTS += ("Dockerfile", "docker-compose.yml", "README.md", "SECURITY.md", "pyproject.toml")
WORKERS = 2  # tests at a time; each gets ports of its own by the name that xdist gives a worker


class Mutant(NamedTuple):
    """A wrong change of the code, and the test that must fail on it."""

    what: str
    file: str
    old: str
    new: str
    test: str


class Collector:
    """A pytest plugin that collects the mutants which tests name."""

    def __init__(self) -> None:
        self.mutants: list[Mutant] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            self.mutants += [Mutant(*mark.args, item.nodeid) for mark in item.iter_markers("fails_on_mutant")]


@contextmanager
def copied_tree() -> Iterator[Path]:
    """Copy what the tests need, so that a mutant never touches the checkout."""
    with tempfile.TemporaryDirectory() as copy:
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, Path(copy, part), ignore=shutil.ignore_patterns("node_modules"))
            else:
                shutil.copy(source, Path(copy, part))
        Path(copy, "node_modules").symlink_to(ROOT / "node_modules")
        yield Path(copy)


def passes(test: str, worker: str, mutant: Mutant | None = None) -> bool:
    """Return whether a test passes on the code as it is, or with a mutant applied."""
    with copied_tree() as copy:
        if mutant:
            file = copy / mutant.file
            text = file.read_text()
            assert text.count(mutant.old) == 1, f"{mutant.file} does not contain {mutant.old!r} exactly once"
            file.write_text(text.replace(mutant.old, mutant.new))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test]
        environment = os.environ | {"PYTEST_XDIST_WORKER": worker}
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode in {0, 1}, done.stdout + done.stderr
        return done.returncode == 0


def verdicts(mutants: list[Mutant]) -> Iterator[str]:
    """Yield each mutant's verdict, in order: caught, SURVIVED, or UNSOUND for a test that fails without any mutant."""
    workers: SimpleQueue[str] = SimpleQueue()
    for number in range(WORKERS):
        workers.put(f"gw{number}")

    sound: dict[str, bool] = {}  # by test: whether it passes without a mutant

    def verdict(mutant: Mutant) -> str:
        worker = workers.get()
        try:
            if mutant.test not in sound:
                sound[mutant.test] = passes(mutant.test, worker)
            if not sound[mutant.test]:
                return "UNSOUND"
            return "SURVIVED" if passes(mutant.test, worker, mutant) else "caught"
        finally:
            workers.put(worker)

    with ThreadPoolExecutor(WORKERS) as pool:
        yield from pool.map(verdict, mutants)


def main() -> None:
    """Run the mutants of the tests given as arguments, or of all tests; exit with 1 if one is not caught."""
    collector = Collector()
    chosen = sys.argv[1:] or [str(ROOT / "tests")]
    pytest.main(["--collect-only", "-q", "-q", *chosen], plugins=[collector])
    failures = 0
    for mutant, verdict in zip(collector.mutants, verdicts(collector.mutants), strict=True):
        failures += verdict != "caught"
        print(f"{verdict:8} {mutant.what} -- {mutant.test}", flush=True)
    print(f"{len(collector.mutants)} mutants, {failures} not caught")
    sys.exit(failures > 0 or not collector.mutants)


if __name__ == "__main__":
    main()
