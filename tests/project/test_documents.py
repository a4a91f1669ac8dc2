"""The documents: settings, links and named tests are what they claim; mutants still have their place."""

import re
import subprocess

import pytest

from app.http.problem_kinds import PROBLEM_KINDS, ProblemKind
from app.settings import Settings
from tests.support.servers import ROOT

CODES_OF_THE_PROXY = {
    "malformed-request": 400,
    "not-served": 403,
    "not-found": 404,
    "method-not-allowed": 405,
    "request-too-large": 413,
    "url-too-long": 414,
    "rate-limit": 429,
    "headers-too-large": 431,
    "no-node": 502,
    "node-timeout": 504,
}


def test_every_setting_is_documented_with_its_default() -> None:
    rows = re.findall(
        r"^\| `TALLY_(\w+)` \| (.*?) \| (.*?) \|$", (ROOT / "docs/reference/settings.md").read_text(), re.MULTILINE
    )
    documented = {name.lower(): (default, text) for name, default, text in rows}
    actual = {
        name: (f"`{field.default}`" if field.default not in {"", ()} else "none", field.description)
        for name, field in Settings.model_fields.items()
    }
    assert documented == actual


def test_every_kind_of_error_is_documented() -> None:
    rows = re.findall(
        r"^\| `([a-z-]+)` \| (\d+) \| (.*?)\. (.*?) \|$", (ROOT / "docs/reference/errors.md").read_text(), re.MULTILINE
    )
    assert [ProblemKind(code, int(status), title, text) for code, status, title, text in rows] == list(PROBLEM_KINDS)


@pytest.mark.parametrize("column", ["code", "title"])
def test_the_proxy_names_errors_as_the_nodes_do(column: str) -> None:
    text = (ROOT / "deploy/nginx.conf").read_text()
    (table,) = re.findall(rf"map \$status \${column} \{{(.*?)\}}", text, re.DOTALL)
    rows = dict(re.findall(r"(\d+) '?(.*?)'?;", table))
    for code, status in CODES_OF_THE_PROXY.items():
        (kind,) = [kind for kind in PROBLEM_KINDS if kind.code == code]
        assert (kind.status, getattr(kind, column)) == (status, rows[str(status)])
    assert len(rows) == len(CODES_OF_THE_PROXY)


def test_every_test_named_in_security_md_exists() -> None:
    """Each row of the table names at least one."""
    text = (ROOT / "SECURITY.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    assert len(rows) > 20
    for row in rows:
        if row.split("|")[-2].strip() != "shown by":
            assert re.search(r"`test_\w+\.py::test_\w+`", row.split("|")[-2]), row
    for file, test in re.findall(r"`(test_\w+\.py)::(test_\w+)`", text):
        (path,) = (ROOT / "tests").rglob(file)
        assert re.search(rf"^(async )?def {test}\(", path.read_text(), re.MULTILINE), test


def test_links_between_documents_resolve() -> None:
    files = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "README.md" in files
    for name in files:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", (ROOT / name).read_text()):
            if "://" not in target:
                assert ((ROOT / name).parent / target).exists(), f"{name}: {target}"


def test_every_mutant_matches_its_file_once(request: pytest.FixtureRequest) -> None:
    for item in request.session.items:
        for mark in item.iter_markers("fails_on_mutant"):
            _, file, old, new = mark.args
            assert (ROOT / file).read_text().count(old) == 1, f"{item.nodeid}: {old!r} in {file}"
            assert old != new
