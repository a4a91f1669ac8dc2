"""The tables of a run, and docs/benchmarks.md from them."""

import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench.results import ASKED, Results
from bench.scenarios import SCENARIOS, Case, Scenario
from bench.servers import REDIS_CORE, ROOT

BUSY = 0.9  # a server whose core is used less than this is not what bounds a rate
QUIET = 0.05  # of the servers' core, used by other programs
PACKAGES = ("uvicorn", "uvloop", "httptools", "fastapi", "python-socketio", "slowapi", "redis", "hiredis")
PEERS = ("express", "socket.io", "express-rate-limit", "redis")

# What is measured: the head of its column, and how it is written.
COLUMNS = {
    "rate": ("requests/s", "{:,.0f}"),
    "hits": ("hits/s", "{:,.0f}"),
    "records": ("records/s", "{:,.0f}"),
    "plain_us": ("plain consumer µs/record", "{:.1f}"),
    "answered": ("answered/s", "{:,.0f}"),
    "p50_ms": ("POST p50 ms", "{:.1f}"),
    "p99_ms": ("POST p99 ms", "{:.1f}"),
    "alone_p50_ms": ("alone p50 ms", "{:.1f}"),
    "alone_p99_ms": ("alone p99 ms", "{:.1f}"),
    "shown_p50_ms": ("shown p50 ms", "{:.1f}"),
    "shown_p99_ms": ("shown p99 ms", "{:.1f}"),
    "due_p99_ms": ("due to shown p99 ms", "{:.1f}"),
    "updates": ("updates/s", "{:,.1f}"),
    "same_s": ("all the same after s", "{:.2f}"),
    "read_p50_ms": ("read p50 ms", "{:.0f}"),
    "rss_10000": ("process B/name of 10,000", "{:,.0f}"),
    "rss_100000": ("of 100,000", "{:,.0f}"),
    "redis_b_10000": ("Redis B/name of 10,000", "{:,.0f}"),
    "redis_b_100000": ("of 100,000", "{:,.0f}"),
    "file_10000": ("file B/name of 10,000", "{:,.0f}"),
    "file_100000": ("of 100,000", "{:,.0f}"),
    "us": ("server µs/hit", "{:.1f}"),
    "redis_us": ("Redis µs/hit", "{:.1f}"),
    "server": ("server busy", "{:.0%}"),
    "redis": ("Redis busy", "{:.0%}"),
    "load": ("load busy", "{:.0%}"),
}

HEAD = """\
# Benchmarks

Written by `make bench`, whole; change `bench/` instead. Each server runs alone on one core and the load on another, and
is started anew for each measurement, {rounds} times in turn with all the others. A figure is the median, with the
smallest and the largest in brackets. What a figure is divided by was measured in the same round.

## How to read it

- Machines differ, so read the ratios. "Server busy" is the share of its core that the server used, "load busy" that
  of the load. Where a server that was asked as fast as it answers is under {busy:.0%}, its rate is marked with °: then
  the load, a disk or Redis was the bound, and the server could do more.
- "Server µs/hit" is the processor time of a hit. What it gives as a ratio suffers least from a machine that is not
  quiet, and says what a server would do with a core of its own.
- A p99 under the load of wrk is that of a server asked for all it can; one at a chosen rate is counted from when the
  hit was due, so that a server that falls behind cannot hide it.
- Every run is checked while it is measured: a server has counted what it answered, and nothing that was not sent; the
  answers at a chosen rate are each number once; every page ends on the server's numbers, and no number runs backwards.
- Redis keeps nothing on disk here, for anyone. SQLite is synced to a real disk before each answer; the peers on memory
  keep nothing.
- Limits are set so high that they are never hit, and are evaluated, by Tally and its peers alike.

The peers are in [bench/peers](../bench/peers): `express` is Express, Socket.IO and express-rate-limit, written with
care; `naive` is what a first afternoon with FastAPI gives; `bare` is uvicorn and a dict, the limit of a Python process;
`webdis` is HTTP in front of Redis, measured where it is installed.
"""


def tables(results: Results) -> str:
    parts = [disturbance(results), asked_table(results)] + [
        scenario_table(name, scenario, results) for name, scenario in SCENARIOS.items()
    ]
    return "\n".join(part for part in parts if part)


def document(results: Results, rounds: int) -> str:
    return "\n".join([HEAD.format(rounds=rounds, busy=BUSY), machine(), tables(results)])


def disturbance(results: Results) -> str:
    others = [figures["others"] for place in results.rounds for figures in results.rounds[place] if "others" in figures]
    if not others or max(others) < QUIET:
        return ""
    return (
        f"**The machine was not quiet**: other programs used {statistics.median(others):.0%} of the servers' core in "
        f"the median measurement, and {max(others):.0%} in the worst.\n"
    )


def asked_table(results: Results) -> str:
    rows = []
    for asked in ASKED:
        values = asked.find(results)
        if values:
            verdict = "met" if asked.met(statistics.median(values)) else "**missed**"
            rows.append([asked.what, asked.bounds(), _spread(values, asked.form), verdict])
    return "## What is asked\n\n" + _table(["", "asked", "measured", ""], rows) if rows else ""


def scenario_table(name: str, scenario: Scenario, results: Results) -> str:
    cases = [case for case in scenario.cases if results.rounds.get(f"{name}/{case.row}")]
    columns = [key for key in COLUMNS if any(results.of(f"{name}/{case.row}", key) for case in cases)]
    head = [name, *(COLUMNS[key][0] for key in columns)]
    rows = [[case.row, *(_cell(f"{name}/{case.row}", key, scenario, results) for key in columns)] for case in cases]
    if any(case.beside for case in cases):
        head += ["beside", "the same by processor time"]
        for case, row in zip(cases, rows, strict=True):
            row += [_beside(f"{name}/{case.row}", case, ratio) for ratio in (results.beside, results.beside_by_cpu)]
    return f"## {scenario.title}\n\n{scenario.text}\n\n{_table(head, rows)}" if cases else ""


def _cell(place: str, key: str, scenario: Scenario, results: Results) -> str:
    values = results.of(place, key)
    if not values:
        return ""
    rate = key in {"rate", "hits"} and scenario.saturating
    return _spread(values, COLUMNS[key][1]) + ("°" if rate and _core_was_free(place, results) else "")


def _core_was_free(place: str, results: Results) -> bool:
    used = zip(results.of(place, "server"), results.of(place, "others"), strict=True)
    return statistics.median(server + others for server, others in used) < BUSY


def _beside(place: str, case: Case, ratio: Callable[[str, str], list[float]]) -> str:
    found = [(ratio(place, other), other.partition("/")[2]) for other in case.beside]
    return "; ".join(f"{statistics.median(ratios):.2f}× {row}" for ratios, row in found if ratios)


def _spread(values: list[float], form: str) -> str:
    low, middle, high = (form.format(value) for value in (min(values), statistics.median(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low}–{high})"


def _table(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    rule = ["-" * width for width in widths]
    lines = (
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [head, rule, *rows]
    )
    return "\n".join(lines) + "\n"


def machine() -> str:
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    redis_at = "a third core" if REDIS_CORE > 1 else "the load's core"
    facts = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "processor": f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB of memory",
        "placed": f"servers on core 0, the load on core 1, Redis on {redis_at}",
        "system": f"Linux {platform.release()}, {_said('stat', '-f', '-c', '%T', str(ROOT))} for SQLite's file",
        "programs": f"Python {platform.python_version()}, node {_said('node', '--version')}, "
        f"Redis {_version('redis-server', '--version')}, wrk {_version('wrk', '-v')}",
        "Python packages": ", ".join(f"{package} {version(package)}" for package in PACKAGES),
        "node packages": ", ".join(f"{package} {_node_version(package)}" for package in PEERS),
    }
    return "## The machine\n\n" + _table(["", ""], [[name, fact] for name, fact in facts.items()])


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _version(*command: str) -> str:
    found = re.search(r"\d+\.\d+(\.\d+)?", _said(*command))
    return found[0] if found else "?"


def _node_version(package: str) -> str:
    return json.loads((ROOT / f"bench/peers/express/node_modules/{package}/package.json").read_text())["version"]
