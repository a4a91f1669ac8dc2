"""Scenarios with full and failing disks."""

import asyncio
import contextlib
import os
import re
import resource
import shutil
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.load import Connection, Load, read_all
from tests.support.scenarios import (
    ALWAYS,
    Figures,
    check_reads,
    compare_counts,
    compare_with_history,
    node,
    redis,
    require_exact,
    under_load,
    wait_until_healthy,
)
from tests.support.servers import Process, eventually


@contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[Path]:
    """Yield a file system of this size, or a directory if this process may not mount one."""
    disk, mounted = directory / "disk", False
    disk.mkdir()
    if os.geteuid() == 0:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(disk)]
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield disk
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path, writer: int) -> None:
    """Fill a disk. If it is only a directory, stop the growth of the writer's log files instead."""
    if not disk.is_mount():
        limit_files(writer, max(file.stat().st_size for log in ("*-wal", "*.aof") for file in disk.rglob(log)))
        return
    with (disk / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(4096))


def make_room(disk: Path, app: Process) -> None:
    """Undo `fill` for a node. A Redis that could not write has ended."""
    (disk / "ballast").unlink(missing_ok=True)
    limit_files(app.pid)


def limit_files(pid: int, size: int = resource.RLIM_INFINITY) -> None:
    """Let writes of a process beyond this file size fail with EFBIG, which SQLite reports as an I/O error."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


async def disk_full(directory: Path, kind: str, times: int) -> Figures:
    """The disk of SQLite, or of Redis with `appendfsync always`, is full under load and has room again, many times.

    With SQLite, hits are rejected with a 503 until there is room. Redis exits when it cannot write, and hits are
    spooled to the node's own disk until it is back. At the end, all processes are killed with `kill -9` and started
    again. No acknowledged hit is lost.
    """
    with small_disk(directory, 16) as disk, contextlib.ExitStack() as started:
        server = started.enter_context(redis(disk, *ALWAYS)) if kind == "redis" else None
        app = started.enter_context(node(directory, server.url if server else f"sqlite:///{disk}/tally.db"))
        load = Load(app.url)
        async with under_load(load) as wait_for_hits:
            for _ in range(times):
                await wait_for_hits(200)
                fill(disk, server.process.pid if server else app.pid)
                if server:
                    await eventually(lambda: server.process.poll() is not None)
                    await wait_for_hits(100)
                else:
                    target = len(load.problems) + 100
                    await eventually(lambda target=target: len(load.problems) >= target, 60)
                make_room(disk, app)
                if server:
                    server.stop()
                    await asyncio.to_thread(server.start, *ALWAYS)
                    await wait_until_healthy(app)
            await wait_for_hits(200)
        app.kill()
        if server:
            server.stop()
            server.start(*ALWAYS)
        app.start()
        await wait_until_healthy(app)
        figures = require_exact(compare_with_history(load.history.adds, await read_all(load, app)))
        assert server or integrity(app, disk / "tally.db") == "ok"
    check_reads(figures, load.history)
    figures.details |= {"503s": len(load.problems), "spooled": load.acks["spooled"]}
    statuses = {response.status for response in load.problems}
    figures.require(statuses <= {503}, f"a full disk led to statuses {statuses}")
    return figures


def integrity(app: Process, file: Path) -> str:
    """End a node, and return the result of SQLite's integrity check of its file."""
    app.terminate()
    with contextlib.closing(sqlite3.connect(file)) as db:
        return db.execute("PRAGMA integrity_check").fetchone()[0]


@contextmanager
def traced(app: Process, *options: str) -> Iterator[None]:
    """Attach strace with these options to a node, and detach it at the end."""
    strace = subprocess.Popen(["strace", "-f", "-qq", "-p", str(app.pid), *options], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        strace.terminate()
        strace.wait()


async def sync_errors(directory: Path, times: int) -> Figures:
    """`fdatasync` fails with EIO many times, and at the end the node is killed with `kill -9`.

    A commit that is not synced is not acknowledged. SQLite restarts its write-ahead log, because its contents are
    unknown after a failed sync.
    """
    if not shutil.which("strace"):
        raise NotImplementedError("strace is not installed")
    with node(directory, f"sqlite:///{directory}/tally.db") as app:
        load = Load(app.url, 0.005)
        async with under_load(load) as wait_for_hits:
            await wait_for_hits(50)
            with traced(app, "-o", "/dev/null", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=20+20"):
                await eventually(lambda: len(load.problems) >= times, 120)
            await wait_for_hits(100)
        app.kill()
        app.start()
        figures = require_exact(compare_with_history(load.history.adds, await read_all(load, app)))
        assert integrity(app, directory / "tally.db") == "ok"
    check_reads(figures, load.history)
    figures.details["503s"] = len(load.problems)
    return figures


async def sync_before_response(directory: Path, responses: int) -> Figures:
    """strace records the system calls of a node on SQLite that gets one hit after the other.

    Before each 200, a sync of SQLite's write-ahead log succeeded. This covers power loss, which `kill -9` does not
    test.
    """
    if not shutil.which("strace"):
        raise NotImplementedError("strace is not installed")
    trace = directory / "trace"
    with node(directory, f"sqlite:///{directory}/tally.db") as app:
        connection = Connection(app.url)
        await connection.request("POST", "/event/a")
        calls = "trace=fdatasync,write,writev,sendto,sendmsg"
        with traced(app, "-y", "-s", "20", "-o", str(trace), "-e", calls):
            await eventually(lambda: "TracerPid:\t0" not in Path(f"/proc/{app.pid}/status").read_text())
            for _ in range(responses):
                assert (await connection.request("POST", "/event/a")).json["ack"] == "disk"
        connection.close()
        values = app.get("/events")
    synced, early, sent = False, 0, 0
    for line in trace.read_text().splitlines():
        if re.search(r"fdatasync(\(.*-wal>\)| resumed>\)) += 0$", line):
            synced = True
        elif "HTTP/1.1 200" in line:
            sent, early, synced = sent + 1, early + (not synced), False
    figures = require_exact(compare_counts(Counter(a=responses + 1), Counter(a=responses + 1), values))
    figures.details |= {"responses": sent, "sent before their sync": early}
    figures.require(sent == responses, f"strace recorded {sent} of {responses} responses")
    figures.require(not early, f"{early} responses were sent before their sync")
    return figures
