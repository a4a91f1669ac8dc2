"""The documents: settings, links and named tests are what they claim; mutants still have their place."""

import re
import subprocess
from pathlib import Path

import pytest
from annotated_types import Ge, Le

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


# The types of settings that are not a number, a path or any text.
TYPES = {
    "countapi": "boolean",
    "public_badges": "boolean",
    "alerts_allow_private": "boolean",
    "timezone": "zone",
    "write_limit": "rate",
    "read_limit": "rate",
    "admin_keys": "keys",
    "write_keys": "keys",
    "read_keys": "keys",
    "allowed_origins": "origins",
    "embed_origins": "origins",
    "allowed_hosts": "hosts",
    "trusted_proxies": "proxies",
    "store": "URL",
    "root_path": "URL path",
    "spool": "path",
    "kafka": "servers",
    "kafka_topic": "topic",
    "kafka_dead_letters": "topic",
    "kafka_inputs": "topics",
    "kafka_options": "options",
}
UNITS = {
    "_seconds": " seconds",
    "_ms": " ms",
    "_mb": " MB",
    "_hours": " hours",
    "_days": " days",
    "backup_every": " hours",
    "days_kept": " days",
}


def setting_row(name: str) -> str:
    """Return the row of a setting in docs/reference/settings.md."""
    field = Settings.model_fields[name]
    bounds = {type(bound): bound for bound in field.metadata}
    kind = TYPES.get(name, "text")
    if field.annotation is int:
        low, high = bounds[Ge].ge, bounds[Le].le
        kind = f"{low:,} to {high:,}" + next((unit for end, unit in UNITS.items() if name.endswith(end)), "")
    default = str(field.default).lower() if kind == "boolean" else field.default
    shown = "none" if default in {"", ()} else f"`{default}`"
    return f"| `TALLY_{name.upper()}` | {kind} | {shown} | {field.description} |"


@pytest.mark.fails_on_mutant("a setting has another bound", "app/settings.py", "ge=8, le=36_600", "ge=7, le=36_600")
def test_every_setting_is_documented_with_its_type_range_and_default() -> None:
    rows = re.findall(r"^\| `TALLY_.*$", (ROOT / "docs/reference/settings.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(map(setting_row, Settings.model_fields))


def test_every_kind_of_error_is_documented() -> None:
    rows = re.findall(
        r"^\| `([a-z-]+)` \| (\d+) \| (.*?)\. (.*?) \|$", (ROOT / "docs/reference/errors.md").read_text(), re.MULTILINE
    )
    assert [ProblemKind(code, int(status), title, text) for code, status, title, text in rows] == list(PROBLEM_KINDS)


@pytest.mark.fails_on_mutant(
    "a new alert", "deploy/prometheus/rules.yml", "      - alert: TallySlowCommits", "      - alert: TallySlowWrites"
)
def test_the_guide_explains_every_alert_of_prometheus() -> None:
    rules = re.findall(r"- alert: (\w+)", (ROOT / "deploy/prometheus/rules.yml").read_text())
    assert rules
    page = (ROOT / "docs/how-to/prometheus.md").read_text()
    assert re.findall(r"^\| `(Tally\w+)` \|", page, re.MULTILINE) == rules


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
        ["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "README.md" in files
    for name in filter(lambda name: (ROOT / name).exists(), files):
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", (ROOT / name).read_text()):
            if "://" not in target:
                path = (ROOT / name).parent / target if target else ROOT / name
                assert path.exists(), f"{name}: {target}"
                assert not anchor or anchor in anchors(path), f"{name}: {target}#{anchor}"


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_mutant_matches_its_file_once(request: pytest.FixtureRequest) -> None:
    for item in request.session.items:
        for mark in item.iter_markers("fails_on_mutant"):
            _, file, old, new = mark.args
            assert (ROOT / file).read_text().count(old) == 1, f"{item.nodeid}: {old!r} in {file}"
            assert old != new
