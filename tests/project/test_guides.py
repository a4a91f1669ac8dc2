"""The commands of the tutorial and of the reference are run as they are written, and print what the page shows."""

import ast
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from app.alerts.command import ALERTS_COMMAND
from app.cli import FILE_COMMANDS, OFFSET_COMMAND, SERVE_COMMANDS
from app.http.permissions import ROUTE_PERMISSIONS
from app.http.problem_kinds import PROBLEM_KINDS
from app.settings import Settings
from tests.support.examples import check, examples, run
from tests.support.servers import ADMIN_KEY, ROOT, Process, SettableClock, serving, zone_at_noon

pytestmark = pytest.mark.anyio
HTTP_API = (ROOT / "docs/reference/http-api.md").read_text()


TUTORIAL, _, TUTORIAL_WITH_KEYS = (ROOT / "docs/tutorial.md").read_text().partition("## 7. Protect it\n")


def on_port(script: str, app: Process) -> str:
    """Return a script that uses this app instead of the port of the documents."""
    return re.sub(r"(127\.0\.0\.1|localhost):8000", f"127.0.0.1:{app.port}", script)


def test_the_tutorial_prints_what_the_page_shows(process: Callable[..., Process], tmp_path: Path) -> None:
    keys = {"TALLY_WRITE_KEYS": "a-key-that-may-count", "TALLY_ADMIN_KEYS": ADMIN_KEY}
    settings = {"TALLY_STORE": f"sqlite:///{tmp_path}/tally.db", "TALLY_TIMEZONE": zone_at_noon()}
    for text, variables in ((TUTORIAL, {}), (TUTORIAL_WITH_KEYS, keys)):
        app = process(**settings, **variables)
        for example in examples(text):
            check(example, run(on_port(example.script, app), tmp_path, variables))
        assert app.terminate() == 0


@pytest.mark.fails_on_mutant(
    "a field has another name",
    "app/http/routes/export_import.py",
    "Imported(format=source.format, lines=lines",
    "dict(format=source.format, line_count=lines",
)
@pytest.mark.fails_on_mutant(
    "a header has another name", "app/http/routes/counts.py", 'headers["Link"]', 'headers["Next"]'
)
@pytest.mark.fails_on_mutant("the page shows another count", "docs/reference/http-api.md", '"parts":1}]', '"parts":2}]')
async def test_the_examples_of_the_http_api_print_what_the_page_shows(
    process: Callable[..., Process], tmp_path: Path
) -> None:
    store, zone = f"sqlite:///{tmp_path}/tally.db", zone_at_noon()
    clock = SettableClock(-86_400)
    async with serving(Settings(TALLY_STORE=store, timezone=zone), clock) as yesterday, yesterday.client() as client:
        await client.post("/events", json={"signup": 3, "order": 1})
    app = process(TALLY_STORE=store, TALLY_TIMEZONE=zone, TALLY_ADMIN_KEYS=ADMIN_KEY, TALLY_COUNTAPI="true")
    date = f"{datetime.now(ZoneInfo(zone)) - timedelta(days=1):%Y-%m-%d}"
    for example in examples(HTTP_API):
        script = example.script.replace("2026-11-22", date)
        check(example, run(script, tmp_path, {"TALLY": app.url, "TALLY_KEY": ADMIN_KEY}))


@pytest.mark.fails_on_mutant(
    "a route needs another role", "app/http/permissions.py", '"GET /export": "admin"', '"GET /export": "read"'
)
def test_the_http_api_lists_every_route_with_its_role() -> None:
    table = re.findall(r"^\| (\[?`\w+ /.*?) \| (\w+) \|", HTTP_API, re.MULTILINE)
    rows = [(route, role) for cell, role in table for route in re.findall(r"`(\w+ /[^`]*)`", cell)]
    mounts = {route for route in ROUTE_PERMISSIONS if route.startswith("*")}
    assert len(dict(rows)) == len(rows)
    assert dict(rows) == {route: role for route, role in ROUTE_PERMISSIONS.items() if route not in mounts}


def test_troubleshooting_quotes_messages_of_the_code() -> None:
    """Codes are kinds of problems; the other messages are in a string of the app, where … is anything."""
    page = (ROOT / "docs/troubleshooting.md").read_text()
    errors, _, messages = page.partition("\n## /health reasons\n")
    codes = set(re.findall(r"^\| \d+ .*?`([a-z-]+)`", errors, re.MULTILINE))
    assert codes <= {kind.code for kind in PROBLEM_KINDS}
    assert len(codes) > 10
    labels = (ROOT / "static/js/data/connection-status.js").read_text()
    quoted = re.findall(r'^\| "(.*?)"', messages, re.MULTILINE)
    assert quoted
    assert all(f'"{label}"' in labels for label in quoted)
    texts = "\n".join(text for path in (ROOT / "app").rglob("*.py") for text in strings(path))
    for message in re.findall(r"^\| `(.*?)` \|", messages, re.MULTILINE):
        assert re.search(re.escape(message.removeprefix("… ")).replace("…", ".*?"), texts), message


def strings(path: Path) -> Iterator[str]:
    """Yield the strings in a module, each with its parts joined. A value in one is an ellipsis."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%\w", "…", node.value).replace("\n", " ")
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)


@pytest.mark.fails_on_mutant("a metric has another name", "app/metrics.py", '"tally_live_sends"', '"tally_sends"')
@pytest.mark.fails_on_mutant("a field has another name", "app/http/routes/operations.py", "nodes=peers", "peers=peers")
async def test_the_reference_lists_every_field_of_health_and_every_metric() -> None:
    page = (ROOT / "docs/reference/health-and-metrics.md").read_text().partition("\n## Kafka\n")[0]
    health, _, metrics = page.partition("\n## /metrics\n")
    async with serving(Settings(TALLY_STORE="memory://")) as app, app.client() as client:
        fields = list((await client.get("/health")).json())
        scraped = [(await client.get(path)).text for path in ("/metrics", "/metrics/events?event=a")]
        types = re.findall(r"^# TYPE (\w+) (\w+)$", "".join(scraped), re.MULTILINE)
    listed = re.findall(r"^\| (`.*?`) \|", health, re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(listed)) == fields
    actual = {(name, kind) for name, kind in types if not name.endswith("_created")}
    assert set(re.findall(r"^\| `(\w+).*?` \| (\w+) \|", metrics, re.MULTILINE)) == actual


def test_the_reference_lists_every_command() -> None:
    rows = re.findall(r"^\| `(tally.*?) \|", (ROOT / "docs/reference/cli.md").read_text(), re.MULTILINE)
    commands = {word for row in rows for word in re.findall(r"tally ([a-z-]+)", row)}
    assert commands - {"--version", "--help"} == {
        *SERVE_COMMANDS,
        "backup",
        "check",
        *FILE_COMMANDS,
        "import",
        "rezone",
        OFFSET_COMMAND,
        ALERTS_COMMAND,
    }
