"""GET /stream/{ns}/{key} as in Abacus: the total of one counter as Server-Sent Events."""

import asyncio
import contextlib
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from starlette.types import Receive, Scope, Send

from app.http.routes.countapi import Call, parse_counter, read_total
from app.http.routes.stream import HEARTBEAT_SECONDS, EventStream, wait_for_disconnect
from app.live.broadcaster import SLOW_CLIENT_TIMEOUT_SECONDS, Broadcaster
from app.live.clients import send_nowait
from app.stores.base import CounterStore, StoreUnavailable


class TotalStream(EventStream):
    """A stream that sends the total after each change, as data without an event name.

    The broadcaster only has counts of today, so each of its updates is a reason to read the total.
    """

    def __init__(self, store: CounterStore, broadcaster: Broadcaster, event: str) -> None:
        super().__init__(broadcaster, (event,), "")
        self._store, self._event = store, event

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 # of ASGI
        ended, changed = asyncio.Event(), asyncio.Event()

        async def note_change(_: object) -> None:
            changed.set()

        with self._broadcaster.stream(note_change, ended, (self._event,), ""):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            ends = [self._send_totals(changed, send), wait_for_disconnect(receive), ended.wait()]
            tasks = list(map(asyncio.ensure_future, ends))
            try:
                await asyncio.wait(tasks, return_when="FIRST_COMPLETED")
            finally:
                for task in tasks:
                    task.cancel()
        send_nowait(send({"type": "http.response.body"}))

    async def _send_totals(self, changed: asyncio.Event, send: Send) -> None:
        """Send the total at once and after each change, or a comment; return if the client does not read."""
        sent = None
        while True:
            changed.clear()
            total = sent
            with contextlib.suppress(StoreUnavailable):
                total = await read_total(self._store, self._event)
            text = ":" if total == sent else f'data: {{"value":{total or 0}}}'
            try:
                async with asyncio.timeout(SLOW_CLIENT_TIMEOUT_SECONDS):
                    await send({"type": "http.response.body", "body": f"{text}\n\n".encode(), "more_body": True})
            except TimeoutError:
                return
            sent = total
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await changed.wait()


def add_routes(router: APIRouter, store: CounterStore, broadcaster: Broadcaster) -> None:
    """Add the route of the stream."""

    # A stream has no end, which programs that try the routes of the OpenAPI document do not expect.
    @router.get("/stream/{ns}/{key}", response_class=EventStream, include_in_schema=False)
    async def stream_total(call: Annotated[Call, Depends(parse_counter)]) -> Response:
        return TotalStream(store, broadcaster, call.event)
