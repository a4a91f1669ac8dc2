"""`make bench`: measures Tally and its peers in turn, checks their counts, and writes docs/benchmarks.md.

With names of scenarios, or with --quick, it only prints the tables.
"""

import argparse
import asyncio
import gc
import os
import resource
import sys
import time
import traceback

import uvloop

from bench.load import Figures
from bench.report import document, tables
from bench.results import Results
from bench.scenarios import SCENARIOS, Case, Durations
from bench.servers import LOAD_CORE, ROOT, installed, serving

FULL = Durations(measured=4, warm_up=1)
QUICK = Durations(measured=1, warm_up=1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=f"one of {', '.join(SCENARIOS)}")
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, help="measurements of each row (default: 3)")
    parser.add_argument("--servers", default="", help="measure only rows whose name contains this text")
    options = parser.parse_args()
    names = options.scenarios or list(SCENARIOS)
    if unknown := set(names) - set(SCENARIOS):
        parser.error(f"unknown scenario: {', '.join(sorted(unknown))}")
    rounds = options.rounds or (1 if options.quick else 3)
    prepare()
    chosen = [name for name in names for _ in range(SCENARIOS[name].repeat)]
    cases = [(name, case) for name in chosen for case in SCENARIOS[name].cases if options.servers in case.row]
    results, failures = measure(cases, rounds, QUICK if options.quick else FULL)
    print("\n" + tables(results))
    if failures:
        sys.exit("\n".join(["These measurements failed:", *failures]))
    if not (options.scenarios or options.quick or options.servers):
        (ROOT / "docs/benchmarks.md").write_text(document(results, rounds))


def prepare() -> None:
    if (os.cpu_count() or 1) <= LOAD_CORE:
        sys.exit("The benchmark needs two cores, one for the server and one for the load.")
    os.sched_setaffinity(0, {LOAD_CORE})  # wrk inherits it
    # The servers inherit the limit, which bounds connections on both sides.
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    gc.disable()  # a pause of the load would look like one of the server


def measure(cases: list[tuple[str, Case]], rounds: int, durations: Durations) -> tuple[Results, list[str]]:
    results, failures = Results(), []
    began = time.monotonic()
    for number in range(rounds):
        for name, case in cases:
            row_id = f"{name}/{case.row}"
            if not installed(case.server):
                print(f"{row_id}: not installed")
                continue
            try:
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    figures = runner.run(measure_case(case, durations))
            except Exception as error:  # noqa: BLE001 # the others are measured, and then the run fails
                traceback.print_exc()
                failures.append(f"{row_id}: {error!r}")
                continue
            results.rounds[row_id].append(figures)
            gc.collect()
            shown = "  ".join(f"{key} {figure:.4g}" for key, figure in figures.items())
            print(f"{time.monotonic() - began:5.0f} s  {number + 1}/{rounds}  {row_id}: {shown}", flush=True)
    return results, failures


async def measure_case(case: Case, durations: Durations) -> Figures:
    with serving(case.server, **case.environment) as server:
        return await case.measure(server, durations)


if __name__ == "__main__":
    main()
