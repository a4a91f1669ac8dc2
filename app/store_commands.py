"""The commands that work on a store or an export. They return the text to print."""

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from io import SEEK_END
from pathlib import Path
from typing import BinaryIO
from zoneinfo import ZoneInfo

from app import export_import
from app.backup_download import download_backup
from app.check import DifferencesFound, check_copy, check_store, mark_import
from app.domain.calendar import Clock
from app.export_import import Contents
from app.importing.files import Source, open_source
from app.importing.redis_counters import RedisCounters, add_counters, missing_counts, read_counters
from app.kafka.sources import set_offset
from app.rezone import rezone
from app.settings import Settings
from app.stores import create_store
from app.stores.base import CounterStore, StoreInUse, StoreOpenError

PROGRESS_BAR_WIDTH = 40  # characters
DIFFERENCES_MAX = 20  # lines that `verify` and `check` print


async def run_file_command(command: str, path: Path, store: CounterStore, clock: Clock) -> str:
    """Export or verify; return a sentence to print. Raises StoreError, ExportError and OSError."""
    if command == "export":
        with _new_file(path) as file:
            async with _opened(store):
                return await _export(file, store, clock)
    with path.open("rb") as file:
        async with _opened(store):
            await asyncio.to_thread(export_import.check_file, file, clock)
            return await _verify(file, store, clock)


async def run_import(arguments: argparse.Namespace, store: CounterStore, clock: Clock) -> str:
    """Import a file or the counters of a Redis; return sentences to print. Raises StoreError, ExportError, OSError."""
    dry_run: bool = arguments.dry_run
    if arguments.from_redis:
        counters = await read_counters(arguments.from_redis, arguments.match, arguments.strip)
        async with _opened(store):
            return await _import_counters(counters, store, clock, dry_run=dry_run)
    with arguments.file.open("rb") as file:
        source = await asyncio.to_thread(open_source, file, clock, with_bots=arguments.bots)
        with source.file:
            contents = await asyncio.to_thread(export_import.check_file, source.file, clock)
            async with _opened(store):
                return await _import_file(source, contents, store, clock, dry_run=dry_run)


async def run_backup(path: Path, settings: Settings) -> str:
    """Copy the SQLite store to a new file; return a sentence to print. Raises StoreError and OSError."""
    _require_file(settings)
    _require_new(path)
    store = create_store(settings)
    try:
        async with _opened(store):
            await store.back_up(path)
    except StoreInUse:
        await asyncio.to_thread(download_backup, settings, path)
    return f"Wrote {path}"


def _require_new(path: Path) -> None:
    if path.exists():
        raise FileExistsError(f"{path} exists: remove it, or name another file")


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a new file to write to. If writing fails, remove it."""
    _require_new(path)
    with path.open("xb") as file:
        try:
            yield file
        except BaseException:  # also if the user interrupts it
            path.unlink()
            raise


def _require_file(settings: Settings) -> None:
    """Raise StoreOpenError if there is no SQLite file: opening it would create an empty one."""
    if settings.store_kind == "sqlite" and not settings.sqlite_file.exists():
        raise StoreOpenError(f"{settings.sqlite_file.absolute()} does not exist: set TALLY_STORE to the file to use")


async def run_check(settings: Settings) -> str:
    """Check the store, of SQLite a copy; return a sentence to print. Raises DifferencesFound and StoreError."""
    if settings.store_kind == "memory":
        raise StoreOpenError("a memory store is checked by its own process, every night")
    if settings.store_kind == "sqlite":
        _require_file(settings)
        with tempfile.TemporaryDirectory(prefix="check-", dir=settings.sqlite_file.absolute().parent) as directory:
            copy = Path(directory, "copy.db")
            await run_backup(copy, settings)
            found = await check_copy(copy, settings, time.time())
    else:
        store = create_store(settings)
        async with _opened(store):
            found = await check_store(store, settings, time.time())
    if found:
        raise DifferencesFound(_listed(found))
    return "OK: the counts are consistent"


def _listed(differences: list[str]) -> str:
    return "\n".join([f"{len(differences)} differences", *differences[:DIFFERENCES_MAX]])


async def run_set_offset(arguments: argparse.Namespace, store: CounterStore) -> str:
    """Choose from which offset a Kafka partition is counted; return a sentence to print. Raises StoreError."""
    async with _opened(store):
        return await set_offset(store, arguments.topic, arguments.partition, arguments.offset)


def rezone_file(path: Path, new_path: Path, zone: ZoneInfo) -> str:
    """Write a rezoned export; return a sentence to print. Raises ExportError and OSError."""
    with path.open("rb") as file, _new_file(new_path) as new_file:
        new_file.writelines(rezone(file, zone))
    return f"Wrote {new_path} with the days of {zone.key}. Import it into a new store."


@contextlib.asynccontextmanager
async def _opened(store: CounterStore) -> AsyncIterator[None]:
    try:
        await store.open()
        if store.status().stale_seconds is not None:
            raise StoreOpenError("the store in TALLY_STORE is unreachable; check its address, and that it runs")
        yield
    finally:
        await store.close()


async def _export(file: BinaryIO, store: CounterStore, clock: Clock) -> str:
    lines = 0
    async for line in export_import.export(store, clock):
        file.write(line)
        lines += 1
        _show_progress(f"{lines} lines")
    return f"Exported {lines} lines to {file.name}"


async def _import_file(source: Source, contents: Contents, store: CounterStore, clock: Clock, *, dry_run: bool) -> str:
    left = await export_import.lines_left(store, contents)
    found = f"Format: {source.format}. It has {contents.hits} hits of {contents.events} events"
    if contents.days:
        first, last = (clock.calendar.slot(day).date for day in (contents.days[0], contents.days[-1]))
        found += f" on {len(contents.days)} days from {first} to {last}"
    found += "."
    if source.bots:
        found += f" {source.bots} hits of bots are left out."
    if not left:
        return f"{found}\nNothing to add: it was imported before."
    if dry_run:
        return f"{found}\nNothing was written, because of --dry-run."
    await mark_import(store, clock)
    for line in export_import.read_lines(source.file, clock):
        await export_import.import_line(store, clock, line)
        _show_progress(_progress_bar(line.number - 1, contents.lines))
    return f"{found}\nImported."


async def _import_counters(counters: RedisCounters, store: CounterStore, clock: Clock, *, dry_run: bool) -> str:
    missing = await missing_counts(store, counters)
    found = f"The Redis has {sum(counters.counts.values())} hits of {len(counters.counts)} events."
    if not missing:
        return f"{found}\nNothing to add: they were imported before."
    to_add = f"{sum(missing.values())} hits of {len(missing)} events"
    if dry_run:
        return f"{found}\nWithout --dry-run, this would add {to_add}."
    await add_counters(store, clock, counters)
    return f"{found}\nImported {to_add}."


async def _verify(file: BinaryIO, store: CounterStore, clock: Clock) -> str:
    comparison, differences = export_import.Comparison(store), list[str]()
    size = file.seek(0, SEEK_END)
    file.seek(0)
    for line in export_import.read_lines(file, clock):
        differences += await comparison.differences(line)
        _show_progress(_progress_bar(file.tell(), size))
    differences += await comparison.extra_in_store()
    if differences:
        raise export_import.ExportError(_listed(differences))
    return f"OK: the store matches {file.name}"


def _progress_bar(done: int, size: int) -> str:
    fraction = done / max(1, size)
    return f"[{'#' * round(fraction * PROGRESS_BAR_WIDTH):{PROGRESS_BAR_WIDTH}}] {fraction:4.0%}"


def _show_progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{text}")
        sys.stderr.flush()
