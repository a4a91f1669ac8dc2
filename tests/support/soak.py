"""`make soak-service`: everything at once on a service whose nodes are killed, with exact counts and flat memory.

It prints a verdict, and writes a CSV and a plot with the memory of each process and the longest wait.
"""

import argparse
import asyncio
import contextlib
import csv
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from tests.support.load import Connection, Load
from tests.support.scenarios import (
    Figures,
    compare_counts,
    compare_with_history,
    in_background,
    memory_kb,
    nodes,
    require_exact,
    store,
    wait_until_healthy,
)
from tests.support.servers import ADMIN_KEY, Process
from tests.support.watchers import PollingWatcher, Watcher

SAMPLE_SECONDS = 5.0
KILL_SECONDS = 120.0
REST_SECONDS = 0.2  # of each of the twenty writers of a node
RECOVERY_SECONDS = 5.0  # after a kill, in which requests may wait
WAIT_MAX_SECONDS = 1.0
GROWTH_MAX = 0.15  # of the memory of a process, between the second and the last third of its life
LIFE_MIN_SAMPLES = 12  # of a process whose memory is judged
ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}
READS = (
    "/events", "/leaderboard", "/leaderboard?window=1h", "/leaderboard?window=7d", "/leaderboard?event=batch0",
    "/series",
    "/series?step=minute&points=1440", "/event/batch0/series?step=hour&points=48", "/audience?days=7",
    "/event/batch0/audience", "/user/u1", "/session/s1", "/history", "/health", "/badge/batch0.svg", "/openapi.json",
)  # fmt: skip


@dataclass
class Sample:
    """Measurements of one interval: memory in MB by node, and the longest wait in seconds, outside of recoveries."""

    at: float
    memory: dict[str, float]
    longest_wait: float
    killed: bool


@dataclass
class Soak:
    """One run of the soak on these nodes."""

    apps: list[Process]
    samples: list[Sample] = field(default_factory=list)
    lives: list[tuple[str, list[float]]] = field(default_factory=list)  # memory of each process, by its name
    acknowledged: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    _longest: float = 0.0
    _recovering_until: float = 0.0
    _killed: bool = False

    async def run(self, minutes: float) -> Figures:
        """Run for this long; return the figures of all counts."""
        loads = [Load(app.url, REST_SECONDS) for app in self.apps]
        for load in loads:  # all nodes count the same events
            load.history, load.stale = loads[0].history, loads[0].stale
        self.lives = [(f"node {i}", []) for i in range(len(self.apps))]
        async with contextlib.AsyncExitStack() as stack:
            for app in self.apps:
                for work in (self._probe, self._count_batches, self._read, self._export, self._correct, self._watch):
                    await stack.enter_async_context(in_background(self._repeat(work, app)))
            loading = [asyncio.create_task(load.run()) for load in loads]
            await stack.enter_async_context(in_background(self._sample()))
            end = time.monotonic() + 60 * minutes
            while (left := end - time.monotonic()) > 0:
                await asyncio.sleep(min(left, KILL_SECONDS))
                if end - time.monotonic() > KILL_SECONDS / 2:
                    await self._kill(random.randrange(len(self.apps)))
            for load in loads:
                load.stop.set()
            await asyncio.gather(*loading)
        await wait_until_healthy(*self.apps)
        return await self._compare(loads)

    async def _compare(self, loads: list[Load]) -> Figures:
        """Compare the counts of every node with the responses to its clients."""
        adds = loads[0].history.adds
        values = [await asyncio.to_thread(app.get, "/events") for app in self.apps]
        figures = require_exact(
            compare_with_history(adds, {e: n for e, n in values[0].items() if e[0] in "bk" and e[:5] != "batch"})
        )
        own = {event: n for event, n in values[0].items() if event.startswith(("batch", "probe"))}
        others = require_exact(compare_counts(self.acknowledged, self.acknowledged + self.unknown, own))
        figures.violations += others.violations
        figures.require(all(value == values[0] for value in values), "the nodes return different counts")
        wrong = loads[0].history.wrong_reads()
        figures.require(not wrong, f"{len(wrong)} reads are outside their bounds: {wrong[:2]}")
        figures.details |= {"acknowledged in batches and probes": others.acknowledged, "errors": dict(self.errors)}
        return figures

    async def _repeat(self, work: Callable[[Process], Awaitable[None]], app: Process) -> None:
        """Do work again and again; a node that was killed breaks it."""
        while True:
            try:
                await work(app)
            except (OSError, EOFError, asyncio.IncompleteReadError) as error:
                self.errors[f"{work.__name__}: {type(error).__name__}"] += 1
                await asyncio.sleep(0.2)

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        if began > self._recovering_until:
            self._longest = max(self._longest, time.monotonic() - began)

    async def _send_hits(self, connection: Connection, path: str, body: bytes, amounts: Counter[str]) -> None:
        """Send hits once, and add their outcome."""
        await connection.connect()
        try:
            with self._timed():
                response = await connection.request("POST", path, body)
        except (OSError, EOFError):
            self.unknown += amounts
            raise
        if response.outcome != "rejected":
            (self.acknowledged if response.outcome == "acknowledged" else self.unknown).update(amounts)

    async def _probe(self, app: Process) -> None:
        async with _connected(app) as connection:
            event = f"probe {self.apps.index(app)}"
            while True:
                await self._send_hits(connection, f"/event/{event.replace(' ', '%20')}", b"", Counter({event: 1}))
                await asyncio.sleep(0.1)

    async def _count_batches(self, app: Process) -> None:
        async with _connected(app) as connection:
            while True:
                events = random.choices([f"batch{i}" for i in range(5)], k=random.randint(1, 300))
                items = [
                    {"event": e, "user": f"u{random.randrange(5000)}", "session": f"s{random.randrange(9000)}"}
                    for e in events
                ]
                await self._send_hits(connection, "/events", json.dumps(items).encode(), Counter(events))
                await asyncio.sleep(2)

    async def _read(self, app: Process) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
        try:
            for path in READS:
                with self._timed():
                    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                    head = await reader.readuntil(b"\r\n\r\n")
                    await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                await asyncio.sleep(0.5)
        finally:
            writer.close()

    async def _export(self, app: Process) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
        try:
            head = f"Host: x\r\nAuthorization: Bearer {ADMIN_KEY}\r\nConnection: close"
            writer.write(f"GET /export HTTP/1.1\r\n{head}\r\n\r\n".encode())
            while await reader.read(65_536):
                pass
        finally:
            writer.close()
        await asyncio.sleep(60)

    async def _correct(self, app: Process) -> None:
        async with _connected(app) as connection:
            while True:
                await connection.request("POST", "/event/changed")
                await connection.request("PUT", "/event/changed", b'{"count": 5}', **ADMIN)
                await connection.request("DELETE", "/event/changed", **ADMIN)
                await asyncio.sleep(20)

    async def _watch(self, app: Process) -> None:
        """Keep two dashboards, one that polls, a plain client and an event stream connected."""
        watchers = [Watcher("/live"), Watcher("/live"), PollingWatcher("/live"), Watcher("/")]
        reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
        try:
            for watcher in watchers:
                await watcher.join(app.url)
            writer.write(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
            while await reader.read(65_536):
                pass
        except Exception as error:  # websockets has errors of its own for a node that was killed
            raise OSError(str(error)) from error
        finally:
            writer.close()
            for watcher in watchers:
                with contextlib.suppress(Exception):
                    await watcher.leave()

    async def _kill(self, number: int) -> None:
        app = self.apps[number]
        self._recovering_until, self._killed = float("inf"), True
        app.kill()
        await asyncio.to_thread(app.start)
        self._recovering_until = time.monotonic() + RECOVERY_SECONDS
        self.lives.append((f"node {number}", []))

    async def _sample(self) -> None:
        began = time.monotonic()
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            memory: dict[str, float] = {}
            for i, app in enumerate(self.apps):
                with contextlib.suppress(OSError, AssertionError, TypeError):  # it is being started
                    memory[f"node {i}"] = memory_kb(app, "VmRSS") / 1000
            for name, megabytes in memory.items():
                [values for owner, values in self.lives if owner == name][-1].append(megabytes)
            self.samples.append(Sample(time.monotonic() - began, memory, self._longest, self._killed))
            self._longest, self._killed = 0.0, False

    def check(self, figures: Figures) -> None:
        """Require flat memory, and no long wait outside of recoveries."""
        waits = sorted((sample.longest_wait for sample in self.samples), reverse=True)
        figures.details["longest waits, s"] = [round(wait, 2) for wait in waits[:5]]
        figures.require(not waits or waits[0] <= WAIT_MAX_SECONDS, f"a request waited for {waits[:1]} s")
        growths = []
        for name, values in self.lives:
            if len(values) >= LIFE_MIN_SAMPLES:
                third = len(values) // 3
                growths.append((fmean(values[-third:]) / fmean(values[third : 2 * third]) - 1, name))
        figures.details["growth of memory, %"] = [round(100 * growth, 1) for growth, _ in growths]
        figures.require(
            not growths or max(growths)[0] <= GROWTH_MAX, f"the memory of a process grew: {max(growths, default=None)}"
        )


@contextlib.asynccontextmanager
async def _connected(app: Process) -> AsyncIterator[Connection]:
    connection = Connection(app.url)
    try:
        yield connection
    finally:
        connection.close()


def write_csv(samples: list[Sample], path: Path) -> None:
    names = sorted({name for sample in samples for name in sample.memory})
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seconds", *(f"{name} MB" for name in names), "longest wait s", "killed"])
        for s in samples:
            memory = [round(s.memory[name], 1) if name in s.memory else "" for name in names]
            writer.writerow([round(s.at), *memory, round(s.longest_wait, 3), int(s.killed)])


def plot(samples: list[Sample], title: str) -> str:
    """Return an SVG with a line of memory per node above the longest waits; a kill is a dotted line."""
    width, height, end = 900, 170, max(sample.at for sample in samples)
    most = max(max(sample.memory.values(), default=1) for sample in samples) * 1.1
    slowest = max(WAIT_MAX_SECONDS, *(sample.longest_wait for sample in samples))

    def x(sample: Sample) -> float:
        return 60 + sample.at / end * (width - 80)

    parts = [f'<text x="60" y="20" class="t">{title}: memory (MB) above, longest wait (s) below; dotted: a kill</text>']
    for name in sorted({name for sample in samples for name in sample.memory}):
        points = [f"{x(s):.1f},{30 + height * (1 - s.memory[name] / most):.1f}" for s in samples if name in s.memory]
        parts.append(f'<polyline points="{" ".join(points)}" class="l"/>')
    points = [f"{x(s):.1f},{60 + height + height * (1 - s.longest_wait / slowest):.1f}" for s in samples]
    parts.append(f'<polyline points="{" ".join(points)}" class="w"/>')
    parts += [
        f'<line x1="{x(s):.1f}" x2="{x(s):.1f}" y1="30" y2="{60 + 2 * height}" class="k"/>' for s in samples if s.killed
    ]
    for y, label in ((30, f"{most:.0f}"), (30 + height, "0"), (60 + height, f"{slowest:.1f}"), (60 + 2 * height, "0")):
        parts.append(f'<text x="50" y="{y + 4}" text-anchor="end" class="t">{label}</text>')
        parts.append(f'<line x1="60" x2="{width - 20}" y1="{y}" y2="{y}" class="k"/>')
    style = (
        "<style>.t{font:13px sans-serif;fill:#57606a}.l,.w{fill:none;stroke:#2457d6;stroke-width:1.5}.w{stroke:#b42318}"
        ".k{stroke:#8c959f;stroke-dasharray:2 3}@media(prefers-color-scheme:dark){.t{fill:#98a4b5}.l{stroke:#86abff}"
        ".w{stroke:#ff9389}}</style>"
    )
    box = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {80 + 2 * height}"'
    return f"<svg {box}>{style}{''.join(parts)}</svg>\n"


async def soak(directory: Path, kind: str, minutes: float) -> tuple[Soak, Figures]:
    """Run a soak on one process with SQLite, or on three nodes with one Redis."""
    with (
        store(directory, kind) as url,
        nodes(directory, url, 3 if kind == "redis" else 1, TALLY_ADMIN_KEYS=ADMIN_KEY) as apps,
    ):
        running = Soak(apps)
        figures = await running.run(minutes)
        running.check(figures)
        return running, figures


def main() -> None:
    parser = argparse.ArgumentParser("soak", description=__doc__)
    parser.add_argument("kind", choices=["sqlite", "redis"])
    parser.add_argument("minutes", type=float)
    parser.add_argument("--output", type=Path, help="directory of the CSV and the plot")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        running, figures = asyncio.run(soak(Path(directory), arguments.kind, arguments.minutes))
    if arguments.output:
        write_csv(running.samples, arguments.output / f"soak-{arguments.kind}.csv")
        title = f"{arguments.kind}, {arguments.minutes:g} minutes"
        (arguments.output / f"soak-{arguments.kind}.svg").write_text(plot(running.samples, title))
    hits = f"{figures.acknowledged} hits acknowledged, {figures.unknown} unknown, {figures.lost} lost"
    lines = [f"{arguments.kind}, {arguments.minutes:g} minutes: {hits}, {figures.doubled} counted twice"]
    lines += [f"{name}: {value}" for name, value in figures.details.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.exit("\n".join(figures.violations) or None)


if __name__ == "__main__":
    main()
