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

from bench import abacus
from bench.results import HIGHLIGHTS, TARGETS, Highlight, Results
from bench.scenarios import SCENARIOS, Case, Scenario
from bench.servers import REDIS_CORE, ROOT

BUSY_SHARE = 0.9  # below this use of its core, the server is not the bottleneck
QUIET_SHARE = 0.05  # of the servers' core, used by other programs
PACKAGES = ("uvicorn", "uvloop", "httptools", "fastapi", "python-socketio", "slowapi", "redis", "hiredis")
PEERS = ("express", "socket.io", "express-rate-limit", "redis")

# For each figure: the title of its column and the format of its values.
COLUMNS = {
    "rate": ("requests/s", "{:,.0f}"),
    "hits": ("hits/s", "{:,.0f}"),
    "records": ("records/s", "{:,.0f}"),
    "plain_us": ("plain consumer µs/record", "{:.1f}"),
    "answered": ("answered/s", "{:,.0f}"),
    "p50_ms": ("p50 ms", "{:.1f}"),
    "p99_ms": ("p99 ms", "{:.1f}"),
    "without_reads_p50_ms": ("without reads p50 ms", "{:.1f}"),
    "without_reads_p99_ms": ("without reads p99 ms", "{:.1f}"),
    "shown_p50_ms": ("shown p50 ms", "{:.1f}"),
    "shown_p99_ms": ("shown p99 ms", "{:.1f}"),
    "due_p99_ms": ("due to shown p99 ms", "{:.1f}"),
    "updates": ("updates/s", "{:,.1f}"),
    "connect_us": ("server µs/connection", "{:,.0f}"),
    "message_us": ("server µs/message", "{:.1f}"),
    "per_hit": ("messages per hit", "{:.2f}"),
    "all_p50_ms": ("to all p50 ms", "{:.0f}"),
    "all_p99_ms": ("to all p99 ms", "{:.0f}"),
    "converged_s": ("converged after s", "{:.2f}"),
    "read_p50_ms": ("read p50 ms", "{:.0f}"),
    "rss_10000": ("process B/name, 10,000 names", "{:,.0f}"),
    "rss_100000": ("100,000 names", "{:,.0f}"),
    "redis_b_10000": ("Redis B/name, 10,000 names", "{:,.0f}"),
    "redis_b_100000": ("100,000 names", "{:,.0f}"),
    "file_10000": ("file B/name, 10,000 names", "{:,.0f}"),
    "file_100000": ("100,000 names", "{:,.0f}"),
    "cpu_us": ("server µs", "{:.1f}"),
    "redis_us": ("Redis µs", "{:.1f}"),
    "server": ("server busy", "{:.0%}"),
    "redis": ("Redis busy", "{:.0%}"),
    "load": ("load busy", "{:.0%}"),
}

HEAD = """\
# Benchmarks

`make bench` writes this page; to change it, change `bench/`. The server has one core, and the load another. Compare
ratios, because machines differ.
"""

METHOD = """\
## How to read it

Each measurement starts a new server, {rounds} time(s) in turn with all the others. A figure is the median, with the
minimum and the maximum in brackets. A ratio compares figures of the same round.

- "Server busy" is the share of its core that the server used, "load busy" that of the load. If a saturated server was
  busy for less than {busy:.0%}, its rate has a °: the load, a disk or Redis was the bottleneck, and the server could do
  more.
- "Server µs" is processor time per hit, or per read in a table of reads. Ratios of it are the least sensitive to other
  programs on the machine, and show how the server would do with a core of its own.
- p99 under a saturating load is that of an overloaded server. At a fixed rate, latency counts from when the hit was
  due, so that a server that falls behind cannot hide it.
- Every measurement checks its counts: the server counted every acknowledged hit and no others; at a fixed rate, the
  responses contain each count exactly once; every client ends with the server's counts, and no count decreases.
- Redis does not write to disk here, for any server. SQLite syncs to a real disk before each response; the peers keep
  counts in memory.
- Rate limits are evaluated, by Tally and its peers, but never reached.

The peers are in [bench/peers](../bench/peers): `express` is Express, Socket.IO and express-rate-limit, written with
care. `naive` is a first attempt with FastAPI. `bare` is uvicorn and a dict. `floor` is uvloop, httptools and a dict
without a server, the limit of a Python process: most of its time is system calls. `webdis` is HTTP in front of Redis,
measured if it is installed.
"""


def tables(results: Results) -> str:
    """Return the tables of the targets and of all scenarios, to print."""
    parts = [disturbance(results), target_table(results)] + [
        scenario_table(name, scenario, results) for name, scenario in SCENARIOS.items()
    ]
    return "\n".join(part for part in parts if part)


def document(results: Results, rounds: int) -> str:
    """Return the page: a summary, and the wide tables of the scenarios, which a reader has to open."""
    parts = [HEAD, disturbance(results), summary(results), target_table(results)]
    parts += [METHOD.format(rounds=rounds, busy=BUSY_SHARE), machine()]
    parts += [scenario_table(name, scenario, results, _folded) for name, scenario in SCENARIOS.items()]
    parts.append(abacus_table())
    return "\n".join(part for part in parts if part)


def summary(results: Results) -> str:
    """Return the table of the highlights."""
    rows = [
        [highlight.title, _medians(highlight, results), _ratio_text(highlight, results)]
        for highlight in HIGHLIGHTS
        if highlight.row_id in results.rounds
    ]
    return "## In ten rows\n\n" + _table(["", "Tally", "compared with"], rows)


def _medians(highlight: Highlight, results: Results) -> str:
    return ", ".join(
        form.format(statistics.median(results.values(highlight.row_id, figure)))
        for figure, form in highlight.forms.items()
    )


def _ratio_text(highlight: Highlight, results: Results) -> str:
    if not highlight.baseline:
        return ""
    ratios = results.ratio_to(highlight.row_id, highlight.baseline)
    return f"{statistics.median(ratios):.2f}× {highlight.than}"


def abacus_table() -> str:
    return f"## Abacus\n\n{abacus.SOURCE}\n\n" + _table(["", "Abacus", "Tally then"], list(map(list, abacus.FIGURES)))


def disturbance(results: Results) -> str:
    others = [figures["others"] for rounds in results.rounds.values() for figures in rounds if "others" in figures]
    if not others or max(others) < QUIET_SHARE:
        return ""
    return (
        f"**The machine was not quiet**: other programs used {statistics.median(others):.0%} of the servers' core in "
        f"the median measurement, and {max(others):.0%} in the worst.\n"
    )


def target_table(results: Results) -> str:
    rows = []
    for target in TARGETS:
        values = target.measured(results)
        if values:
            verdict = "met" if target.is_met(statistics.median(values)) else "**missed**"
            rows.append([target.title, target.bounds(), _spread(values, target.form), verdict])
    return "## Targets\n\n" + _table(["", "target", "measured", ""], rows) if rows else ""


def scenario_table(
    name: str, scenario: Scenario, results: Results, style: Callable[[str], str] = lambda table: table
) -> str:
    cases = [case for case in scenario.cases if results.rounds.get(f"{name}/{case.row}")]
    columns = [key for key in COLUMNS if any(results.values(f"{name}/{case.row}", key) for case in cases)]
    head = [name, *(COLUMNS[key][0] for key in columns)]
    rows = [[case.row, *(_cell(f"{name}/{case.row}", key, scenario, results) for key in columns)] for case in cases]
    if any(case.baselines for case in cases):
        head += ["compared with", "by processor time"]
        for case, row in zip(cases, rows, strict=True):
            row += [_ratios(f"{name}/{case.row}", case, ratio) for ratio in (results.ratio_to, results.cpu_ratio_to)]
    return f"## {scenario.title}\n\n{scenario.text}\n\n{style(_table(head, rows))}" if cases else ""


def _folded(table: str) -> str:
    return f"<details><summary>Figures</summary>\n\n{table}\n</details>\n"


def _cell(row_id: str, key: str, scenario: Scenario, results: Results) -> str:
    values = results.values(row_id, key)
    if not values:
        return ""
    rate = key in {"rate", "hits"} and scenario.saturating
    return _spread(values, COLUMNS[key][1]) + ("°" if rate and _core_was_free(row_id, results) else "")


def _core_was_free(row_id: str, results: Results) -> bool:
    used = zip(results.values(row_id, "server"), results.values(row_id, "others"), strict=True)
    return statistics.median(server + others for server, others in used) < BUSY_SHARE


def _ratios(row_id: str, case: Case, ratio: Callable[[str, str], list[float]]) -> str:
    found = [(ratio(row_id, baseline), baseline.partition("/")[2]) for baseline in case.baselines]
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
        "cores": f"servers on core 0, the load on core 1, Redis on {redis_at}",
        "system": f"Linux {platform.release()}, {_output_of('stat', '-f', '-c', '%T', str(ROOT))} for SQLite's file",
        "programs": f"Python {platform.python_version()}, node {_output_of('node', '--version')}, "
        f"Redis {_version('redis-server', '--version')}, wrk {_version('wrk', '-v')}",
        "Python packages": ", ".join(f"{package} {version(package)}" for package in PACKAGES),
        "node packages": ", ".join(f"{package} {_node_version(package)}" for package in PEERS),
    }
    return "## The machine\n\n" + _table(["", ""], [[name, fact] for name, fact in facts.items()])


def _output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _version(*command: str) -> str:
    found = re.search(r"\d+\.\d+(\.\d+)?", _output_of(*command))
    return found[0] if found else "?"


def _node_version(package: str) -> str:
    return json.loads((ROOT / f"bench/peers/express/node_modules/{package}/package.json").read_text())["version"]
