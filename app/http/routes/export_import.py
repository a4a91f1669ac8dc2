"""GET /export and POST /import: all data as NDJSON, while the service runs."""

import asyncio
import tempfile
from typing import BinaryIO

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from typing_extensions import TypedDict

from app.domain.calendar import Clock
from app.export_import import ExportError, check_file, export, import_line, read_lines
from app.http.errors import Problem
from app.http.problem_kinds import INVALID_REQUEST, MALFORMED_REQUEST, REQUEST_TOO_LARGE
from app.stores.base import CounterStore

Imported = TypedDict("Imported", {"lines": int})

_NDJSON_BODY = {"requestBody": {"required": True, "content": {"application/x-ndjson": {}}}}


def add_routes(router: APIRouter, store: CounterStore, clock: Clock) -> None:
    """Add the routes that export and import."""

    @router.get("/export", response_class=StreamingResponse, responses={200: {"content": {"application/x-ndjson": {}}}})
    async def export_all() -> StreamingResponse:
        """Export all data as NDJSON, which any store can import. For a consistent copy, stop all writers first."""
        headers = {"Content-Disposition": 'attachment; filename="tally.ndjson"'}
        return StreamingResponse(export(store, clock), headers=headers, media_type="application/x-ndjson")

    @router.post("/import", openapi_extra=_NDJSON_BODY)
    async def import_all(request: Request) -> Imported:
        """Add an export to the present data. Repeating it adds nothing. A file with an invalid line is rejected."""
        with tempfile.TemporaryFile() as file:
            try:
                async for chunk in request.stream():
                    file.write(chunk)
                return await _import_file(store, clock, file)
            except ClientDisconnect:
                raise Problem(
                    MALFORMED_REQUEST, "the connection closed before the whole body arrived; send the file again"
                ) from None
            except OSError as error:
                raise Problem(REQUEST_TOO_LARGE, f"not enough disk space for the import: {error}") from None
            except ExportError as error:
                raise Problem(INVALID_REQUEST, str(error)) from None


async def _import_file(store: CounterStore, clock: Clock, file: BinaryIO) -> Imported:
    file.seek(0)
    # Nothing of an invalid file is imported, so the whole file is checked first, in a thread.
    await asyncio.to_thread(check_file, file, clock)
    lines = 0
    for line in read_lines(file, clock):
        await import_line(store, clock, line)
        lines += 1
    return Imported(lines=lines)
