"""Disks that are full or fail, and what is synced when."""

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
from tests.support.scenarios import ALWAYS, Figures, compared, exact, healthy, judged, loaded, node, read_rightly, redis
from tests.support.servers import Process, eventually


@contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[Path]:
    """A file system of this size; where that may not be mounted, a directory."""
    place, mounted = directory / "disk", False
    place.mkdir()
    if os.geteuid() == 0:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield place
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, writer: int) -> None:
    """Leave no room; where the disk is not one of its own, let the logs of this process not grow any more."""
    if not disk.is_mount():
        limit_files(writer, max(file.stat().st_size for log in ("*-wal", "*.aof") for file in disk.rglob(log)))
        return
    with (disk / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(4096))


def make_room(disk: Path, app: Process) -> None:
    (disk / "ballast").unlink(missing_ok=True)
    limit_files(app.pid)  # a Redis that could not write is no more


def limit_files(pid: int, size: int = resource.RLIM_INFINITY) -> None:
    """From now on a write beyond this size of a file fails, as on a disk that does: EFBIG, which SQLite calls I/O."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


async def disk_full(directory: Path, kind: str, times: int) -> Figures:
    """The disk of SQLite, or of Redis with `appendfsync always`, is full under load, has room again, and so on.

    With SQLite hits are refused meanwhile with a 503 that says so, and go on by themselves when there is room. Redis
    ends itself when it cannot write; hits are spooled on the node's own disk until it is back. At the end all is killed
    with `kill -9` and started again. Nothing acknowledged is lost.
    """
    with small_disk(directory, 16) as disk, contextlib.ExitStack() as started:
        server = started.enter_context(redis(disk, *ALWAYS)) if kind == "redis" else None
        app = started.enter_context(node(directory, server.url if server else f"sqlite:///{disk}/tally.db"))
        load = Load(app.url)
        async with loaded(load) as go_on:
            for _ in range(times):
                await go_on(200)
                fill(disk, server.process.pid if server else app.pid)
                if server:
                    await eventually(lambda: server.process.poll() is not None)
                    await go_on(100)
                else:
                    refused = len(load.problems) + 100
                    await eventually(lambda refused=refused: len(load.problems) >= refused, 60)
                make_room(disk, app)
                if server:
                    server.stop()
                    await asyncio.to_thread(server.start, *ALWAYS)
                    await healthy(app)
            await go_on(200)
        app.kill()
        if server:
            server.stop()
            server.start(*ALWAYS)
        app.start()
        await healthy(app)
        figures = exact(judged(load.history.adds, await read_all(load, app)))
        assert server or integrity(app, disk / "tally.db") == "ok"
    read_rightly(figures, load.history)
    figures.also |= {"503s": len(load.problems), "spooled": load.acks["spooled"]}
    statuses = {answer.status for answer in load.problems}
    figures.promise(statuses <= {503}, f"a full disk is a 503: {statuses}")
    return figures


def integrity(app: Process, file: Path) -> str:
    app.terminate()
    with contextlib.closing(sqlite3.connect(file)) as db:
        return db.execute("PRAGMA integrity_check").fetchone()[0]


@contextmanager
def traced(app: Process, *options: str) -> Iterator[None]:
    """With strace at a process, which is let go of as it was."""
    strace = subprocess.Popen(["strace", "-f", "-qq", "-p", str(app.pid), *options], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        strace.terminate()
        strace.wait()


async def sync_fails(directory: Path, times: int) -> Figures:
    """The disk says that it could not sync (`fdatasync` gives EIO), again and again; at the end `kill -9`.

    A commit that is not synced is not acknowledged. SQLite's log is begun anew, since what a failed sync has left
    of it cannot be known.
    """
    if not shutil.which("strace"):
        raise NotImplementedError("strace is not installed")
    with node(directory, f"sqlite:///{directory}/tally.db") as app:
        load = Load(app.url, 0.005)
        async with loaded(load) as go_on:
            await go_on(50)
            with traced(app, "-o", "/dev/null", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=20+20"):
                await eventually(lambda: len(load.problems) >= times, 120)
            await go_on(100)
        app.kill()
        app.start()
        figures = exact(judged(load.history.adds, await read_all(load, app)))
        assert integrity(app, directory / "tally.db") == "ok"
    read_rightly(figures, load.history)
    figures.also["503s"] = len(load.problems)
    return figures


async def synced_first(directory: Path, answers: int) -> Figures:
    """What the kernel is asked to do, watched by strace, while hits are sent one after the other to SQLite.

    Before each 200 lies a sync of SQLite's log that succeeded. This is what stands in for power loss, which
    `kill -9` does not show.
    """
    if not shutil.which("strace"):
        raise NotImplementedError("strace is not installed")
    trace = directory / "trace"
    with node(directory, f"sqlite:///{directory}/tally.db") as app:
        connection = Connection(app.url)
        await connection.ask("POST", "/event/a")
        calls = "trace=fdatasync,write,writev,sendto,sendmsg"
        with traced(app, "-y", "-s", "20", "-o", str(trace), "-e", calls):
            await eventually(lambda: "TracerPid:\t0" not in Path(f"/proc/{app.pid}/status").read_text())
            for _ in range(answers):
                assert (await connection.ask("POST", "/event/a")).json["ack"] == "disk"
        connection.close()
        values = app.get("/events")
    synced, early, told = False, 0, 0
    for line in trace.read_text().splitlines():
        if re.search(r"fdatasync(\(.*-wal>\)| resumed>\)) += 0$", line):
            synced = True
        elif "HTTP/1.1 200" in line:
            told, early, synced = told + 1, early + (not synced), False
    figures = exact(compared(Counter(a=answers + 1), Counter(a=answers + 1), values))
    figures.also |= {"answers seen": told, "before their sync": early}
    figures.promise(told == answers, f"all answers are seen, and {told} were")
    figures.promise(not early, f"no answer goes before its sync, and {early} did")
    return figures
