"""GET /export, POST /import and GET /backup: all data, as NDJSON or a file of SQLite, and files of other counters."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send
from typing_extensions import TypedDict

from app.backups import Backups
from app.check import mark_import
from app.domain.calendar import Clock
from app.export_import import ExportError, check_file, export, import_line, lines_left, read_lines
from app.http.errors import Problem
from app.http.openapi import error_responses
from app.http.problem_kinds import INVALID_REQUEST, MALFORMED_REQUEST, REQUEST_TOO_LARGE
from app.importing.files import Format, open_source
from app.stores.base import CounterStore

Imported = TypedDict(
    "Imported", {"format": Format, "lines": int, "events": int, "hits": int, "bots": int, "added": bool}
)
CHUNK_BYTES = 262_144  # of a file, read at once in a thread
PAUSE_SECONDS_MAX = 60.0  # a file may take longer, but its client may not stop sending

_BODY = {"requestBody": {"required": True, "content": {"application/x-ndjson": {}, "text/csv": {}, "text/plain": {}}}}


def add_routes(router: APIRouter, store: CounterStore, clock: Clock, backups: Backups) -> None:
    """Add the routes that export, import and back up."""

    @router.get("/export", response_class=StreamingResponse, responses={200: {"content": {"application/x-ndjson": {}}}})
    async def export_all() -> StreamingResponse:
        """Export all data as NDJSON, which any store can import. For a consistent copy, stop all writers first."""
        headers = {"Content-Disposition": 'attachment; filename="tally.ndjson"'}
        return StreamingResponse(export(store, clock), headers=headers, media_type="application/x-ndjson")

    @router.post("/import", openapi_extra=_BODY)
    async def import_all(
        request: Request, bots: bool = False, dry_run: Annotated[bool, Query(alias="dryRun")] = False
    ) -> Imported:
        """Add an export, a CSV or a list of counts to the present data. Repeating it adds nothing.

        A file with an invalid line is rejected. `bots` also adds the hits of bots in an export of GoatCounter. `dryRun`
        writes nothing.
        """
        with tempfile.TemporaryFile() as file:
            try:
                await _save_body(request, file)
                file.seek(0)
                return await _import_file(store, clock, file, bots, dry_run)
            except OSError as error:
                raise Problem(REQUEST_TOO_LARGE, f"not enough disk space for the import: {error}") from None
            except ExportError as error:
                raise Problem(INVALID_REQUEST, str(error)) from None

    @router.get(
        "/backup",
        response_class=StreamingResponse,
        responses={200: {"content": {"application/vnd.sqlite3": {}}}, **error_responses(409)},
    )
    async def download_backup() -> FileDownload:
        """Return a copy of the SQLite file, as of one moment during the request. One backup is made at a time."""
        return FileDownload(await backups.open_copy(), "application/vnd.sqlite3", "tally.db")


async def _save_body(request: Request, file: BinaryIO) -> None:
    """Save the body in a file. Raises Problem (400) if it is not complete, or OSError."""
    chunk: bytes | None = b""
    chunks = request.stream()
    try:
        while chunk is not None:
            file.write(chunk)
            async with asyncio.timeout(PAUSE_SECONDS_MAX):
                chunk = await anext(chunks, None)
    except ClientDisconnect:
        text = "the connection closed before the whole body arrived; send the file again"
        raise Problem(MALFORMED_REQUEST, text) from None
    except TimeoutError:
        text = f"no data arrived for {PAUSE_SECONDS_MAX:g} s; send the file again"
        raise Problem(MALFORMED_REQUEST, text) from None


async def _import_file(store: CounterStore, clock: Clock, file: BinaryIO, bots: bool, dry_run: bool) -> Imported:
    # Nothing of an invalid file is imported, so the whole file is converted and checked first, in a thread.
    source = await asyncio.to_thread(open_source, file, clock, with_bots=bots)
    with source.file:
        contents = await asyncio.to_thread(check_file, source.file, clock)
        added = bool(await lines_left(store, contents)) and not dry_run
        if added:
            await mark_import(store, clock)
        for line in read_lines(source.file, clock) if added else ():
            await import_line(store, clock, line)
    _, lines, events, hits, _ = contents
    return Imported(format=source.format, lines=lines, events=events, hits=hits, bots=source.bots, added=added)


class FileDownload(StreamingResponse):
    """A response that sends an open file, and then closes it."""

    def __init__(self, file: BinaryIO, media_type: str, name: str) -> None:
        self._file = file
        size = file.seek(0, 2)
        file.seek(0)
        headers = {"Content-Length": str(size), "Content-Disposition": f'attachment; filename="{name}"'}
        super().__init__(_chunks(file), headers=headers, media_type=media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()


async def _chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
        yield chunk
