"""Code, strings, comments, scripts and documents use standard words: those that only this project used are rejected."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.servers import ROOT

# Each pattern is a word of the old vocabulary, with what to write instead.
REJECTED = {
    r"(un)?told": "sent, published, configured, reported",
    r"tells? (?:the )?(?:pages|clients|others|nodes)": "sends to, notifies",
    r"anew": "again, restart, rebuild",
    r"likewise": "the reason itself",
    r"whoever|whosoever|who(?:m)? it may": "the client, a caller",
    r"(?:is|are|was|were|goes|went|gone|be) away": "unreachable, offline",
    r"(?:mis|over)?heard": "received",
    r"beside": "next to, in addition to",
    r"stands|stood": "is at, represents",
    r"postings?": "hit group",
    r"(?<![\w.])tags?(?= of (?:a|the) (?:cluster|store))": "shard",
    r"for good": "permanently, for ever",
    r"wrong builds?": "mutant",
    r"lets? go of": "close, release",
    r"nobody who|those who|for who|by who|to who": "users, clients, operators",
    r"come_to|let_go|note_loss|insist|untold": "advance_to, evict, record_data_loss, apply_despite_loss",
    r"hears?|hearing|deaf": "receives; that does not read",
    r"what is (?:said|asked|wanted|to be)": "name the thing",
}
# A file may use a word that matches, for the reason given.
EXCEPTIONS = {"tests/project/test_vocabulary.py": "this list"}
SUFFIXES = {
    ".py",
    ".lua",
    ".js",
    ".mjs",
    ".go",
    ".sh",
    ".ts",
    ".toml",
    ".yml",
    ".yaml",
    ".conf",
    ".html",
    ".css",
    ".md",
    "",
}
FOLDERS = ("app/", "static/", "tests/", "bench/", "tools/", "deploy/", "docs/", "examples/", ".ci/", ".github/")
TOP = {"Makefile", "Dockerfile", "pyproject.toml", "docker-compose.yml", ".compose-lint.yml"}
TOP |= {"README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"}


def files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True)
    names = [name for name in listed.stdout.decode().splitlines() if (ROOT / name).is_file()]
    ours = [n for n in names if (n.startswith(FOLDERS) or n in TOP) and Path(n).suffix in SUFFIXES]
    # A decision keeps the words of its time.
    return [name for name in ours if name not in EXCEPTIONS and "/vendor/" not in name and "/decisions/" not in name]


@pytest.mark.parametrize("word", REJECTED)
def test_no_file_uses_a_rejected_word(word: str) -> None:
    pattern = re.compile(rf"(?<![A-Za-z])(?:{word})(?![A-Za-z])", re.IGNORECASE)
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name in files()
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, f"write {REJECTED[word]} instead:\n" + "\n".join(found[:50])


def test_each_exception_still_exists() -> None:
    assert all((ROOT / name).exists() for name in EXCEPTIONS)
