"""Scenarios that back up a SQLite store while it counts."""

import asyncio
import contextlib
import shutil
import statistics
import time
import urllib.request
from pathlib import Path

from app.domain.buckets import TOTAL
from app.stores.base import StoreLimits
from app.stores.sqlite import SqliteStore
from app.stores.sqlite_backup import find_damage
from app.stores.sqlite_connection import open_database
from tests.support.history_checker import Read
from tests.support.load import KEYED, UNKEYED, Load, read_all
from tests.support.scenarios import Figures, check_reads, compare_with_history, node, require_exact, store, under_load
from tests.support.servers import ADMIN_KEY, AS_ADMIN, Process

VISITORS = 20_000  # in each bucket that makes a file larger, about 1 MB
REST_SECONDS = 0.05  # of each of the clients, between two hits


async def backups(directory: Path, number: int, megabytes: int) -> Figures:
    """A SQLite store is backed up many times under load, and each backup is restored.

    Each has all hits that were acknowledged before the backup began, and none that was sent after it ended. SQLite's
    integrity check finds no damage.
    """
    during: dict[bool, list[float]] = {
        False: [],
        True: [],
    }  # seconds from a hit to its response, by whether in a backup
    backing_up = False
    with store(directory, "sqlite") as url:
        await asyncio.to_thread(enlarge, directory / "tally.db", megabytes)
        with node(directory, url, TALLY_ADMIN_KEYS=ADMIN_KEY) as app:
            load, damaged, took = Load(app.url, REST_SECONDS), 0, list[float]()
            load.on_ack = lambda _, sent: during[backing_up].append(time.monotonic() - sent)
            async with under_load(load) as wait_for_hits:
                for _ in range(number):
                    await wait_for_hits(100)
                    backing_up, began, began_at = True, load.history.tick(), time.monotonic()
                    await asyncio.to_thread(download, app, directory / "restored.db")
                    ended, took, backing_up = load.history.tick(), [*took, time.monotonic() - began_at], False
                    totals, damage = await restored_totals(directory / "restored.db")
                    damaged += bool(damage)
                    values = {event: totals.get(event, 0) for event in (*UNKEYED, *KEYED)}
                    load.history.reads += [Read(event, began, ended, value) for event, value in values.items()]
            figures = require_exact(compare_with_history(load.history.adds, await read_all(load, app)))
        check_reads(figures, load.history)
        figures.require(not damaged, f"{damaged} backups are damaged")
        figures.require(not (directory / "backups").exists(), "a backup left a file behind")
    figures.details |= {"MB": megabytes, "median of a backup, s": round(statistics.median(took), 1)}
    outside, inside = (round(1000 * percentile(times, 99)) for times in during.values())
    figures.details |= {"p99 of hits, ms": outside, "p99 during a backup, ms": inside}
    return figures


def enlarge(file: Path, megabytes: int) -> None:
    """Make a store, with buckets of visitors of about this size."""
    with contextlib.closing(open_database(file, "UTC")) as db:
        db.execute("BEGIN")
        for number in range(1, megabytes + 1):
            db.execute("INSERT INTO crowd VALUES (?, 'day', ?, 'user:old')", (number, 86_400 * (20_000 - number)))
            visitors = ((number, f"visitor {i:024}") for i in range(VISITORS))
            db.executemany("INSERT INTO member VALUES (?, ?, 1)", visitors)
        db.execute("COMMIT")


def download(app: Process, file: Path) -> None:
    """Save the response to GET /backup."""
    request = urllib.request.Request(f"{app.url}/backup", headers=AS_ADMIN)
    with urllib.request.urlopen(request, timeout=600) as response, file.open("wb") as copy:
        shutil.copyfileobj(response, copy)


async def restored_totals(file: Path) -> tuple[dict[str, int], list[str]]:
    """Return the totals in a backup, and the damage that SQLite finds in it."""
    damage = await asyncio.to_thread(find_damage, file)
    restored = SqliteStore(file, StoreLimits(100_000))
    await restored.open()
    try:
        return (await restored.read([TOTAL]))[0], damage
    finally:
        await restored.close()


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]
