"""`make bench`: measures Tally and its peers in turn, checks what they count, and writes docs/benchmarks.md.

With names of scenarios, or --quick, it only prints the tables.
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
from bench.scenarios import SCENARIOS, Case, Pace
from bench.servers import LOAD_CORE, ROOT, installed, serving

FULL = Pace(seconds=4, warm=1)
QUICK = Pace(seconds=1, warm=1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=f"of {', '.join(SCENARIOS)}")
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, help="how often each is measured (3)")
    parser.add_argument("--servers", default="", help="only rows with this in their name")
    options = parser.parse_args()
    names = options.scenarios or list(SCENARIOS)
    if unknown := set(names) - set(SCENARIOS):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    rounds = options.rounds or (1 if options.quick else 3)
    prepare()
    chosen = [name for name in names for _ in range(SCENARIOS[name].times)]
    cases = [(name, case) for name in chosen for case in SCENARIOS[name].cases if options.servers in case.row]
    results, failures = measure(cases, rounds, QUICK if options.quick else FULL)
    print("\n" + tables(results))
    if failures:
        sys.exit("\n".join(["These went wrong:", *failures]))
    if not (options.scenarios or options.quick or options.servers):
        (ROOT / "docs/benchmarks.md").write_text(document(results, rounds))


def prepare() -> None:
    if (os.cpu_count() or 1) <= LOAD_CORE:
        sys.exit("The benchmark needs two cores, one for the server and one for the load.")
    os.sched_setaffinity(0, {LOAD_CORE})  # also that of wrk, which it starts
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # for the connections, here and in the servers
    gc.disable()  # a pause of the load would be read as one of the server


def measure(cases: list[tuple[str, Case]], rounds: int, pace: Pace) -> tuple[Results, list[str]]:
    results, failures = Results(), []
    began = time.monotonic()
    for number in range(rounds):
        for name, case in cases:
            place = f"{name}/{case.row}"
            if not installed(case.server):
                print(f"{place}: it is not installed")
                continue
            try:
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    figures = runner.run(measured(case, pace))
            except Exception as error:  # noqa: BLE001 # it fails the run, and the others are measured all the same
                traceback.print_exc()
                failures.append(f"{place}: {error!r}")
                continue
            results.rounds[place].append(figures)
            gc.collect()
            shown = "  ".join(f"{key} {figure:.4g}" for key, figure in figures.items())
            print(f"{time.monotonic() - began:5.0f} s  {number + 1}/{rounds}  {place}: {shown}", flush=True)
    return results, failures


async def measured(case: Case, pace: Pace) -> Figures:
    with serving(case.server, **case.environment) as server:
        return await case.measure(server, pace)


if __name__ == "__main__":
    main()
