"""What administrators do: correct, delete, reset, erase, and carry all data away or in."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, BinaryIO

import msgspec
from fastapi import Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from typing_extensions import TypedDict

from app import corrections as changes
from app.domain.calendar import Clock, TimeSlot
from app.domain.counting import COUNT_MAX, DayChange
from app.export_import import TransferError, check_file, export, import_line, read_lines
from app.group_commit import GroupCommitter
from app.http.errors import Problem
from app.http.rate_limits import RateLimits
from app.http.routes.count import HIT_BYTES_MAX, REFUSED, decode, path_name, path_visitor, read_body
from app.http.routes.counts import CorrectedRow, corrected_row
from app.stores.base import CounterStore

PathEvent = Annotated[str, Depends(path_name)]
PathVisitor = Annotated[str, Depends(path_visitor)]
Number = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]
Plan = Callable[[TimeSlot, int], Awaitable[tuple[DayChange, changes.CorrectionRecord]]]

Erased = TypedDict("Erased", {"user": str, "uniquesKeep": bool})
Imported = TypedDict("Imported", {"lines": int})

_NUMBER = {"type": ["integer", "null"], "minimum": 0, "maximum": COUNT_MAX}
_NUMBERS = {"type": "object", "properties": {"count": _NUMBER, "total": _NUMBER}, "additionalProperties": False}


class NumbersBody(msgspec.Struct, forbid_unknown_fields=True):
    count: Number | None = None
    total: Number | None = None


def add_routes(
    app: FastAPI, recorder: GroupCommitter, store: CounterStore, clock: Clock, limits: RateLimits, names_max: int
) -> None:
    async def charge(request: Request) -> None:
        limits.charge(request, "write")

    every: dict[str, Any] = {"dependencies": [Depends(charge)]}

    async def change(plan: Plan) -> CorrectedRow:
        try:
            logged = await recorder.apply_change(lambda slot: plan(slot, int(clock.at())))
        except changes.ChangeRejected as refusal:
            raise Problem(*REFUSED[refusal.reason]) from None
        return corrected_row(clock.calendar, logged)

    @app.put(
        "/event/{name}",
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": _NUMBERS}}}},
        **every,
    )
    async def correct_event(request: Request, event: PathEvent) -> CorrectedRow:
        """Set an event's count of the day, its total, or both; history remembers from what to what."""
        body = decode(await read_body(request, HIT_BYTES_MAX), NumbersBody)
        if body.count is None and body.total is None:
            raise Problem(422, "a correction has a count, a total, or both")
        values = body.count, body.total
        return await change(lambda slot, at: changes.correct(store, slot, at, event, *values, names_max))

    @app.delete("/event/{name}", **every)
    async def delete_event(event: PathEvent) -> CorrectedRow:
        """Forget an event: its count and total, its minutes, hours and days, and who came to it."""
        return await change(lambda slot, at: changes.delete(store, slot, at, event))

    @app.post("/reset", **every)
    async def reset() -> CorrectedRow:
        """Let all counts of the day restart at 0. What was counted is a part of the day's history; totals go on."""
        return await change(lambda slot, at: changes.reset(store, slot, at))

    @app.delete("/user/{id:path}", **every)
    async def erase_user(visitor: PathVisitor) -> Erased:
        """Forget a user. Where uniques are estimated they keep a shadow, which names nobody."""
        await recorder.apply_change(lambda slot: changes.erase(store, slot, visitor))
        return Erased(user=visitor, uniquesKeep=store.kind == "redis")

    _add_transfer(app, store, clock, every)


def _add_transfer(app: FastAPI, store: CounterStore, clock: Clock, every: dict[str, Any]) -> None:
    """All data, away and in."""

    @app.get(
        "/export", response_class=StreamingResponse, responses={200: {"content": {"application/x-ndjson": {}}}}, **every
    )
    async def export_all() -> StreamingResponse:
        """All data as NDJSON, to be imported by any store. For a move, stop those who count before."""
        headers = {"Content-Disposition": 'attachment; filename="tally.ndjson"'}
        return StreamingResponse(export(store, clock), headers=headers, media_type="application/x-ndjson")

    @app.post(
        "/import", openapi_extra={"requestBody": {"required": True, "content": {"application/x-ndjson": {}}}}, **every
    )
    async def import_all(request: Request) -> Imported:
        """Add an export to what there is, once however often it is sent. Nothing is added of a file with a bad line."""
        with tempfile.TemporaryFile() as file:
            try:
                async for chunk in request.stream():
                    file.write(chunk)
                return await import_file(file)
            except ClientDisconnect:
                raise Problem(400, "the body ended early") from None
            except OSError as error:
                raise Problem(413, f"there is no room for this file: {error}") from None
            except TransferError as error:
                raise Problem(422, str(error)) from None

    async def import_file(file: BinaryIO) -> Imported:
        file.seek(0)
        await asyncio.to_thread(check_file, file, clock)
        lines = 0
        for line in read_lines(file, clock):
            await import_line(store, clock, line)
            lines += 1
        return Imported(lines=lines)
