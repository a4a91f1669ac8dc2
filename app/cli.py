"""`tally export | import | verify FILE`: carry all data from one store to another, while no service runs on it."""

import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from app import export_import as transfer
from app.domain.calendar import Clock
from app.stores.base import CounterStore, StoreOpenError

BAR = 40  # characters
DIFFERENCES_MAX = 20  # that are told


async def run(command: str, path: Path, store: CounterStore, clock: Clock) -> str:
    """Do it; what was done, in a sentence. Raises StoreError, TransferError and OSError."""
    async with _opened(store):
        if command == "export":
            with path.open("xb") as file:
                return await _export(file, store, clock)
        with path.open("rb") as file:
            await asyncio.to_thread(deque, transfer.pieces(file, clock), maxlen=0)  # whether all of it can be read
            file.seek(0)
            return await (_import if command == "import" else _verify)(file, store, clock)


@asynccontextmanager
async def _opened(store: CounterStore) -> AsyncIterator[None]:
    try:
        await store.open()
        if store.status().stale_seconds is not None:
            raise StoreOpenError("the store is away")
        yield
    finally:
        await store.close()


async def _export(file: BinaryIO, store: CounterStore, clock: Clock) -> str:
    lines = 0
    async for line in transfer.export(store, clock):
        file.write(line)
        lines += 1
        _show(f"{lines} lines")
    return f"{lines} lines are in {file.name}"


async def _import(file: BinaryIO, store: CounterStore, clock: Clock) -> str:
    for piece in transfer.pieces(file, clock):
        await transfer.restore(store, clock, piece)
        _show_share(file)
    return f"all of {file.name} is in the store"


async def _verify(file: BinaryIO, store: CounterStore, clock: Clock) -> str:
    comparison, differences = transfer.Comparison(store), list[str]()
    for piece in transfer.pieces(file, clock):
        differences += await comparison.differences(piece)
        _show_share(file)
    differences += await comparison.surplus()
    if differences:
        raise transfer.TransferError("\n".join([f"{len(differences)} differences", *differences[:DIFFERENCES_MAX]]))
    return f"the store has what {file.name} has, and nothing else"


def _show_share(file: BinaryIO) -> None:
    share = file.tell() / max(1, Path(file.name).stat().st_size)
    _show(f"[{'#' * round(share * BAR):{BAR}}] {share:4.0%}")


def _show(progress: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{progress}", end="", file=sys.stderr, flush=True)  # noqa: T201 # this is what a terminal is for
