"""`make accuracy`: run every accuracy scenario in full size, and write docs/accuracy.md.

ONLY=prefix runs only the scenarios whose names begin with it. Each row is written when its scenario ends; others stay.
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
from tests.support.scenarios.alerts import crossings
from tests.support.scenarios.backups import backups
from tests.support.scenarios.changes import SHARDS, cut_changes
from tests.support.scenarios.clients import clients_that_do_not_read, dashboards_converge, idle_clients, slow_clients
from tests.support.scenarios.days import clock_jumps, event_name_flood, midnights
from tests.support.scenarios.disks import disk_full, sync_before_response, sync_errors
from tests.support.scenarios.heavy import heavy_batches, heavy_reads, polling_clients
from tests.support.scenarios.kills import kill_fleet, kill_node, kill_redis, rolling_restart
from tests.support.scenarios.network import duplicate_requests, network_faults, redis_offline
from tests.support.scenarios.servers import eviction, fast_clock, full_redis, offline_names, other_zone

PAGE = Path(__file__).parents[2] / "docs/accuracy.md"
COLUMNS = ("scenario", "size", "acknowledged", "unknown", "counted", "lost", "counted twice", "s", "guarantee")
COLUMNS += ("details", "date")
TABLE = (f"| {' | '.join(COLUMNS)} |", "|---|---|---:|---:|---:|---:|---:|---:|---|---|---|")
INTRODUCTION = """# Accuracy

How accurate the counts are under faults. `make accuracy` measures this and writes the page, with real processes,
sockets and disks. It compares every count with the responses to the clients.

## In ten rows
"""
FULL_TABLE = """
A violated guarantee would be in bold. Redis may lose hits if it does not sync every write, and loses all if it keeps no
append-only file. Then Tally reports the loss in `/health`, and counts nothing twice.
[Exactly once](explanation/exactly-once.md) explains the guarantee.

## Every scenario

*Acknowledged* hits got a 2xx. For *unknown* ones, the client cannot know whether they were counted. *Lost* hits were
acknowledged but not counted, and hits *counted twice* were counted beyond both. A violated guarantee is described in
its row. If hits are lost and the guarantee is kept, Redis was configured so that it may lose them; the scenario below
gives the exact guarantee.
"""
SUMMARY_TABLE = ("| fault | acknowledged | lost | counted twice | guarantee |", "|---|---:|---:|---:|---|")


class Case(NamedTuple):
    """A scenario with its arguments for the full size."""

    scenario: Callable[..., Coroutine[None, None, Figures]]
    size: str
    arguments: tuple[object, ...]


CASES = {
    "node killed, SQLite": Case(kill_node, "50 kills", ("sqlite", 50, 4000)),
    "node killed, Redis": Case(kill_node, "50 kills", ("redis", 50, 1000)),
    "Redis killed, fsync always": Case(kill_redis, "50 kills", (ALWAYS, 50, 800)),
    "Redis killed, fsync everysec": Case(kill_redis, "50 kills", (EVERYSEC, 50, 800)),
    "Redis killed, no AOF": Case(kill_redis, "5 kills", (NEVER, 5, 2000)),
    "nodes and Redis killed, nginx": Case(kill_fleet, "51 kills", (17,)),
    "graceful restarts, nginx": Case(rolling_restart, "15 restarts", (15, 1000)),
    "responses lost": Case(network_faults, "5,000 times", ("cut after", 5000)),
    "requests lost": Case(network_faults, "200 resets", ("reset", 200)),
    "requests delayed": Case(network_faults, "10 times", ("freeze", 10)),
    "Redis frozen": Case(redis_offline, "30 s, 2,000 hits/s", ("frozen", 2000, 30)),
    "Redis down": Case(redis_offline, "30 s, 2,000 hits/s", ("killed", 2000, 30)),
    "Redis down, many event names": Case(offline_names, "2,000,000 names", (2_000_000, 100_000)),
    "Redis full": Case(full_redis, "20 times", (20,)),
    "Redis evicts, volatile-lru": Case(eviction, "until it evicts", ("volatile-lru", 5000)),
    "Redis evicts, allkeys-lru": Case(eviction, "until it evicts", ("allkeys-lru", 5000)),
    "concurrent duplicates": Case(duplicate_requests, "5,000 keys, 10 each", (5000, 10)),
    "disk full, SQLite": Case(disk_full, "20 times", ("sqlite", 20)),
    "disk full, Redis": Case(disk_full, "10 times", ("redis", 10)),
    "sync errors, SQLite": Case(sync_errors, "100 errors", (100,)),
    "sync before response, SQLite": Case(sync_before_response, "2,000 responses", (2000,)),
    "dashboards converge": Case(dashboards_converge, "1,000 clients", (1000, 1_000_000, 2.0)),
    "clients that do not read": Case(clients_that_do_not_read, "50 clients, 10,000 hits/s", (50, 10_000)),
    "idle clients": Case(idle_clients, "8,000 clients", (8000,)),
    "slow clients, nginx": Case(slow_clients, "2,000 connections", (2000,)),
    "many event names, SQLite": Case(event_name_flood, "1,000,000 names", ("sqlite", 1_000_000, 100_000)),
    "many event names, Redis": Case(event_name_flood, "1,000,000 names", ("redis", 1_000_000, 100_000)),
    "clock jumps, SQLite": Case(clock_jumps, "400 jumps", ("sqlite", 400)),
    "clock jumps, Redis": Case(clock_jumps, "400 jumps", ("redis", 400)),
    "a cluster change cut at every step": Case(cut_changes, "16 steps, 3 changes", (range(1, SHARDS + 1),)),
    "midnights, 3 nodes": Case(midnights, "20 midnights", (20,)),
    "a clock 500 days fast, SQLite": Case(fast_clock, "300 days", ("sqlite", 300)),
    "a clock 500 days fast, Redis": Case(fast_clock, "300 days", ("redis", 300)),
    "another time zone, SQLite": Case(other_zone, "20 starts", ("sqlite", 20)),
    "another time zone, Redis": Case(other_zone, "20 starts", ("redis", 20)),
    "heavy batches, SQLite": Case(heavy_batches, "20 of 10,000 hits", ("sqlite", 20)),
    "heavy batches, Redis": Case(heavy_batches, "20 of 10,000 hits", ("redis", 20)),
    "heavy reads, SQLite": Case(heavy_reads, "100,000 names, 200 reads", ("sqlite", 100_000, 200)),
    "heavy reads, Redis": Case(heavy_reads, "100,000 names, 200 reads", ("redis", 100_000, 200)),
    "alerts, 3 nodes": Case(crossings, "1,000 crossings, 10 rounds", (1000, 10)),
    "backups under load": Case(backups, "50 backups, 20 MB", (50, 20)),
    "large backups": Case(backups, "3 backups, 500 MB", (3, 500)),
    "clients that poll": Case(polling_clients, "300, and 300 silent ones", (300, 30.0, 2.0)),
}

# The rows of the summary, each with the beginnings of the names of its cases.
SUMMARY = {
    "a node is killed": ("node killed",),
    "Redis is killed, and syncs every write": ("Redis killed, fsync always",),
    "Redis is killed, and syncs every second": ("Redis killed, fsync everysec",),
    "two of three nodes and their Redis are killed": ("nodes and Redis killed",),
    "nodes are restarted one after the other": ("graceful restarts",),
    "requests to Redis, or its responses, are lost or delayed": ("responses lost", "requests"),
    "Redis is frozen or down for 30 s": ("Redis frozen", "Redis down"),
    "three nodes get the same requests at the same time": ("concurrent duplicates",),
    "the disk is full, or fails": ("disk full", "sync"),
    "midnights and wrong clocks": ("midnights", "clock jumps"),
}

REPRODUCE = """
## Reproduce

`make accuracy` takes half an hour on two cores; `make accuracy ONLY=disk` runs the scenarios whose names begin with
"disk". It exits with an error if a guarantee is violated. If it may not mount a small file system, it fills the disk
with a quota. Scenarios that need strace fail without it. The scenarios are in
[tests/support/scenarios](../tests/support/scenarios). `make test` runs them in a smaller size, and `make mutants`
checks that they fail on code with deliberate bugs.

"""


def main() -> None:
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    only = os.environ.get("ONLY", "")
    cases = {name: case for name, case in CASES.items() if name.startswith(only)}
    failures = 0
    print(*TABLE, sep="\n")
    for name, case in cases.items():
        began = time.monotonic()
        figures = run(case)
        failures += bool(figures.violations)
        new_row = row(name, case, figures, time.monotonic() - began)
        print(new_row, flush=True)
        PAGE.write_text(page(rows_of_page() | {name: new_row}))
    sys.exit(bool(failures or not cases))


def run(case: Case) -> Figures:
    with tempfile.TemporaryDirectory(prefix="t") as directory:
        try:
            return asyncio.run(case.scenario(Path(directory), *case.arguments))
        except Exception as error:  # noqa: BLE001 # its row reports it, and the others still run
            traceback.print_exc()
            return Figures(0, 0, 0, 0, 0, violations=[f"it failed: {error!r}"])


def row(name: str, case: Case, figures: Figures, seconds: float) -> str:
    counts = (figures.acknowledged, figures.unknown, figures.counted, figures.lost, figures.doubled, round(seconds))
    verdict = "violated: " + "; ".join(figures.violations) if figures.violations else "kept"
    details = "; ".join(f"{name} {figure:,}" for name, figure in figures.details.items())
    cells = [name, case.size, *(f"{count:,}" for count in counts), verdict.replace("|", "/"), details]
    return f"| {' | '.join(cells)} | {datetime.now(UTC):%Y-%m-%d} |"


def rows_of_page() -> dict[str, str]:
    """Return the rows of the current page by the names of their scenarios."""
    lines = PAGE.read_text().splitlines() if PAGE.exists() else []
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")}


def machine() -> str:
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    versions = [f"Python {platform.python_version()}", f"SQLite {sqlite3.sqlite_version}"]
    for command in (["redis-server", "--version"], ["nginx", "-v"]):
        output = subprocess.run(command, capture_output=True, text=True, check=False)
        versions.append(" ".join((output.stdout + output.stderr).split()[:3]))
    return (
        f"The last run was on {cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB, "
        f"{platform.system()} {platform.release()}, {', '.join(versions)}. Clients, nodes and Redis share the cores."
    )


def summary_row(title: str, rows: dict[str, str]) -> str:
    """Return a row of the summary: the sums of its cases, and the worst verdict."""
    cells = [rows[name].strip("| ").split(" | ") for name in CASES if name in rows and name.startswith(SUMMARY[title])]
    acknowledged, lost, twice = (sum(int(row[i].replace(",", "")) for row in cells) for i in (2, 5, 6))
    verdict = "kept" if all(row[8] == "kept" for row in cells) else "**violated**"
    return f"| {title} | {acknowledged:,} | {lost:,} | {twice:,} | {verdict if cells else 'not measured yet'} |"


def page(rows: dict[str, str]) -> str:
    summary = [*SUMMARY_TABLE, *(summary_row(title, rows) for title in SUMMARY)]
    table = [*TABLE, *(rows[name] for name in CASES if name in rows)]
    titles: dict[str, str] = {}  # by description, because a scenario may have several rows
    for name, case in CASES.items():
        titles.setdefault(inspect.getdoc(case.scenario) or "", name.split(",")[0])
    descriptions = [f"**{title}.** {text}" for text, title in titles.items()]
    missing = [name for name in CASES if name not in rows]
    unmeasured = [f"Not measured yet: {'; '.join(missing)}."] if missing else []
    return "\n".join(
        [
            INTRODUCTION,
            *summary,
            FULL_TABLE,
            *table,
            "",
            *unmeasured,
            REPRODUCE,
            machine(),
            "",
            "## The scenarios\n",
            "\n\n".join(descriptions),
            "",
        ]
    )


if __name__ == "__main__":
    main()
