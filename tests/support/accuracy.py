"""`make accuracy`: every scenario of the matrix in its full size, one after the other, into docs/accuracy.md.

ONLY=name runs those whose names begin so. Each row is written when it is measured, and the others stay.
"""

import asyncio
import inspect
import os
import platform
import re
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from tests.support.scenarios import ALWAYS, EVERYSEC, NEVER, Figures
from tests.support.scenarios.days import clock_jumps, midnights, names_flood
from tests.support.scenarios.disks import disk_full, sync_fails, synced_first
from tests.support.scenarios.killed import app_killed, fleet_killed, redis_killed, restarted
from tests.support.scenarios.network import duplicates, network_fails, redis_away
from tests.support.scenarios.pages import deaf_pages, idle_pages, pages_agree, slow_clients

PAGE = Path(__file__).parents[2] / "docs/accuracy.md"
COLUMNS = ("scenario", "size", "acknowledged", "unknown", "counted", "lost", "doubled", "s", "promise", "also", "on")
TABLE = (f"| {' | '.join(COLUMNS)} |", "|---|---|---:|---:|---:|---:|---:|---:|---|---|---|")
INTRODUCTION = """# Accuracy

What was counted under faults, as `make accuracy` measured it; it writes this page. Each scenario runs against real
processes, sockets and disks, compares every count with what its clients were answered, and lies in
[tests/scenarios](../tests/scenarios). `make test` runs the same scenarios in a smaller size, and `make mutants`
shows that they fail on builds that are wrong. [Exactly once](exactly-once.md) says what is promised and why it holds.

*Acknowledged* are hits that were answered with a 2xx, *unknown* those of which the client cannot know. *Lost* is what
was acknowledged and not counted, *doubled* what was counted beyond both. A promise that was broken stands in its row.
Where hits are lost and the promise is kept, Redis was set up to lose them: the row says how many, and the scenario
below what was promised.
"""


class Case(NamedTuple):
    """A scenario in its full size."""

    scenario: Callable[..., Coroutine[None, None, Figures]]
    size: str
    arguments: tuple[object, ...]


CASES = {
    "app killed, SQLite": Case(app_killed, "50 kills", ("sqlite", 50, 4000)),
    "app killed, Redis": Case(app_killed, "50 kills", ("redis", 50, 1000)),
    "Redis killed, fsync always": Case(redis_killed, "50 kills", (ALWAYS, 50, 800)),
    "Redis killed, fsync everysec": Case(redis_killed, "50 kills", (EVERYSEC, 50, 800)),
    "Redis killed, no AOF": Case(redis_killed, "5 kills", (NEVER, 5, 2000)),
    "nodes and Redis killed, nginx": Case(fleet_killed, "51 kills", (17,)),
    "graceful restarts, nginx": Case(restarted, "15 restarts", (15, 1000)),
    "answers lost": Case(network_fails, "5,000 cuts", ("cut after", 5000)),
    "requests lost": Case(network_fails, "200 resets", ("reset", 200)),
    "requests held": Case(network_fails, "10 times", ("freeze", 10)),
    "Redis frozen": Case(redis_away, "30 s, 2,000 hits/s", ("frozen", 2000, 30)),
    "Redis dead": Case(redis_away, "30 s, 2,000 hits/s", ("killed", 2000, 30)),
    "duplicates at once": Case(duplicates, "5,000 keys, 10 each", (5000, 10)),
    "disk full, SQLite": Case(disk_full, "20 times", ("sqlite", 20)),
    "disk full, Redis": Case(disk_full, "10 times", ("redis", 10)),
    "sync fails, SQLite": Case(sync_fails, "100 errors", (100,)),
    "synced first, SQLite": Case(synced_first, "2,000 answers", (2000,)),
    "pages agree": Case(pages_agree, "1,000 pages", (1000, 1_000_000, 2.0)),
    "deaf pages": Case(deaf_pages, "50 pages, 10,000 hits/s", (50, 10_000)),
    "idle pages": Case(idle_pages, "8,000 pages", (8000,)),
    "slow clients, nginx": Case(slow_clients, "2,000 connections", (2000,)),
    "flood of names, SQLite": Case(names_flood, "1,000,000 names", ("sqlite", 1_000_000, 100_000)),
    "flood of names, Redis": Case(names_flood, "1,000,000 names", ("redis", 1_000_000, 100_000)),
    "clock jumps, SQLite": Case(clock_jumps, "400 jumps", ("sqlite", 400)),
    "clock jumps, Redis": Case(clock_jumps, "400 jumps", ("redis", 400)),
    "midnights, 3 nodes": Case(midnights, "20 midnights", (20,)),
}

REPEAT = """
## To repeat it

`make accuracy` takes half an hour on two cores; `make accuracy ONLY=disk` runs what begins so. It ends with an
error where a promise is broken. Where it may not mount a small file system, the disk is made full by a quota; without
strace, what needs it is said to be missing.

"""


def main() -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    only = os.environ.get("ONLY", "")
    chosen = {name: case for name, case in CASES.items() if name.startswith(only)}
    broken = 0
    print(*TABLE, sep="\n")
    for name, case in chosen.items():
        began = time.monotonic()
        figures = run(case)
        broken += bool(figures.broken)
        measured = row(name, case, figures, time.monotonic() - began)
        print(measured, flush=True)
        PAGE.write_text(page(measured_before() | {name: measured}))
    sys.exit(bool(broken or not chosen))


def run(case: Case) -> Figures:
    with tempfile.TemporaryDirectory(prefix="t") as directory:
        try:
            return asyncio.run(case.scenario(Path(directory), *case.arguments))
        except Exception as error:  # noqa: BLE001 # it is said in its row, and the others are measured all the same
            traceback.print_exc()
            return Figures(0, 0, 0, 0, 0, broken=[f"it came to no end: {error!r}"])


def row(name: str, case: Case, figures: Figures, seconds: float) -> str:
    counts = (figures.acknowledged, figures.unknown, figures.day_buckets, figures.lost, figures.doubled, round(seconds))
    verdict = "broken: " + "; ".join(figures.broken) if figures.broken else "kept"
    also = "; ".join(f"{what} {figure:,}" for what, figure in figures.also.items())
    cells = [name, case.size, *(f"{count:,}" for count in counts), verdict.replace("|", "/"), also]
    return f"| {' | '.join(cells)} | {datetime.now(UTC):%Y-%m-%d} |"


def measured_before() -> dict[str, str]:
    """The rows of the page as it is, by their names."""
    lines = PAGE.read_text().splitlines() if PAGE.exists() else []
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")}


def machine() -> str:
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    versions = [f"Python {platform.python_version()}", f"SQLite {sqlite3.sqlite_version}"]
    for command in (["redis-server", "--version"], ["nginx", "-v"]):
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        versions.append(" ".join((said.stdout + said.stderr).split()[:3]))
    return (
        f"The last run was on {cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB, "
        f"{platform.system()} {platform.release()}, {', '.join(versions)}; clients, nodes and Redis share the cores."
    )


def page(rows: dict[str, str]) -> str:
    table = [*TABLE, *(rows[name] for name in CASES if name in rows)]
    told: dict[str, str] = {}  # a scenario of several rows once
    for name, case in CASES.items():
        told.setdefault(inspect.getdoc(case.scenario) or "", name.split(",")[0])
    what = [f"**{name}.** {text}" for text, name in told.items()]
    missing = [name for name in CASES if name not in rows]
    unmeasured = [f"Not measured yet: {'; '.join(missing)}."] if missing else []
    return "\n".join(
        [INTRODUCTION, *table, "", *unmeasured, REPEAT, machine(), "", "## The scenarios\n", "\n\n".join(what), ""]
    )


if __name__ == "__main__":
    main()
