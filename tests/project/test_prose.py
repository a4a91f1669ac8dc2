"""The documents for people: short sentences, standard words, and only names that the code has."""

import re
from pathlib import Path

import pytest
from starlette.routing import Match

from app.http.problem_kinds import PROBLEM_KINDS
from app.main import create_app
from app.settings import Settings
from tests.project.test_vocabulary import REJECTED
from tests.support.servers import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "examples/README.md"])
WORDS_MAX = 40
SENTENCE_END = re.compile(r"(?<!e\.g\.)(?<=[.!?])\)? ")
# Variables that are no settings: those of docker-compose.yml, of tests, and of the examples.
OTHER_VARIABLES = {"TALLY_REDIS_PASSWORD", "TALLY_REDIS_SYNC", "TALLY_SUBNET", "TALLY_URL", "TALLY_KEY"}
OTHER_NAMES = {"tally_node", "tally_counts"}  # a cookie of nginx, and a volume
KEY_FILES = {"TALLY_ADMIN_KEYS_FILE", "TALLY_WRITE_KEYS_FILE", "TALLY_READ_KEYS_FILE"}


def prose(text: str) -> list[str]:
    """Return the paragraphs, list items and table cells of a page, without code and addresses."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"<[^>\n]+>", "", text)
    text = re.sub(r"`[^`\n]+`", "CODE", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^\|(.*)\|$", lambda row: row[1].replace("|", "\n\n") + "\n", text, flags=re.MULTILINE)
    text = re.sub(r"^(\s*([-*]|\d+\.) |#+ )", "\n\n", text, flags=re.MULTILINE)
    return [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text)]


def sentences(text: str) -> list[str]:
    return [sentence for paragraph in prose(text) for sentence in SENTENCE_END.split(paragraph)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_sentences_are_short(page: Path) -> None:
    long = [text for text in sentences(page.read_text()) if len(re.findall(r"[\w'/-]*\w", text)) > WORDS_MAX]
    assert not long, f"more than {WORDS_MAX} words; make two sentences of each:\n" + "\n".join(long)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_use_standard_words(page: Path) -> None:
    text = "\n".join(prose(page.read_text()))
    found = {
        match[0]: advice
        for word, advice in REJECTED.items()
        for match in re.finditer(rf"(?<![A-Za-z])(?:{word})(?![A-Za-z])", text, re.IGNORECASE)
    }
    assert not found


def test_every_variable_is_a_setting() -> None:
    known = {f"TALLY_{name.upper()}" for name in Settings.model_fields} | KEY_FILES | OTHER_VARIABLES
    unknown = {(page.name, name) for page in PAGES for name in re.findall(r"\bTALLY_[A-Z_]+\b", page.read_text())}
    assert not {(page, name) for page, name in unknown if name not in known}


def test_every_metric_exists_and_is_described() -> None:
    """Decisions may name metrics that were removed."""
    code = "".join(file.read_text() for file in (ROOT / "app").rglob("*.py"))
    metrics = set(re.findall(r'"(tally_[a-z_]+)"', code))
    pages = [page.read_text() for page in PAGES if page.parent.name != "decisions"]
    described = {name for text in pages for name in re.findall(r"\btally_[a-z_]+", text)}
    assert {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in described - OTHER_NAMES} == metrics


def test_every_route_exists() -> None:
    """A route in inline code, such as `GET /event/signup`, is one of the app. The changelog may name others."""
    routes = create_app(Settings(TALLY_STORE="memory://", countapi=True)).routes
    unknown = []
    for page in (page for page in PAGES if page.name != "CHANGELOG.md"):
        for method, path in re.findall(r"`(GET|HEAD|POST|PUT|DELETE) (/[^\s`?#]*)", page.read_text()):
            scope = {"type": "http", "method": method, "path": re.sub(r"[{…}]", "x", path), "headers": []}
            if not any(route.matches(scope)[0] is Match.FULL for route in routes):
                unknown.append((page.name, method, path))
    assert not unknown


def test_every_error_code_exists() -> None:
    codes = {kind.code for kind in PROBLEM_KINDS}
    named = {(page.name, code) for page in PAGES for code in re.findall(r'"code": ?"([a-z-]+)"', page.read_text())}
    assert named
    assert not {(page, code) for page, code in named if code not in codes}
