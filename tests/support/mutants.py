"""`make mutants`: apply each wrong build that a test says it catches; the test must fail on it, and pass without it.

A test names its wrong builds with @pytest.mark.catches(what, file, old, new); `old` stands once in `file`.
"""

import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("app", "static", "bench", "tests", "docs", "deploy")
PARTS += ("docker-compose.yml", "README.md", "SECURITY.md", "pyproject.toml")


class Mutant(NamedTuple):
    """A wrong build, and the test that must not pass on it."""

    what: str
    file: str
    old: str
    new: str
    test: str


class Collector:
    def __init__(self) -> None:
        self.mutants: list[Mutant] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            self.mutants += [Mutant(*mark.args, item.nodeid) for mark in item.iter_markers("catches")]


@cache
def passes(test: str, mutant: Mutant | None = None) -> bool:
    """Whether a test passes on the code as it is, or on a wrong build of it."""
    with tempfile.TemporaryDirectory() as copy:
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, Path(copy, part), ignore=shutil.ignore_patterns("node_modules"))
            else:
                shutil.copy(source, Path(copy, part))
        Path(copy, "node_modules").symlink_to(ROOT / "node_modules")
        if mutant:
            file = Path(copy, mutant.file)
            text = file.read_text()
            assert text.count(mutant.old) == 1, f"{mutant.file} has not just one {mutant.old!r}"
            file.write_text(text.replace(mutant.old, mutant.new))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test]
        ended = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300, check=False)
        assert ended.returncode in {0, 1}, ended.stdout + ended.stderr
        return ended.returncode == 0


def main() -> None:
    collector = Collector()
    chosen = sys.argv[1:] or [str(ROOT / "tests")]
    pytest.main(["--collect-only", "-q", "-q", *chosen], plugins=[collector])
    failures = 0
    for mutant in collector.mutants:
        # A test that fails on every build catches nothing.
        verdict = "UNSOUND " if not passes(mutant.test) else "SURVIVED" if passes(mutant.test, mutant) else "caught  "
        failures += verdict != "caught  "
        print(verdict, mutant.what, "--", mutant.test, flush=True)
    print(f"{len(collector.mutants)} wrong builds, {failures} not caught")
    sys.exit(failures > 0 or not collector.mutants)


if __name__ == "__main__":
    main()
