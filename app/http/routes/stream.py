"""Server-Sent Events: what changes, for whoever can read a line of text."""

import asyncio
from collections.abc import Collection
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Query, Response
from starlette.types import Receive, Scope, Send

from app.domain.names import InvalidName, event_name
from app.http.errors import Problem
from app.http.routes.count import name_under
from app.http.routes.counts import LINES_MAX, Charge
from app.live.broadcaster import Broadcaster, send_nowait

BEAT_SECONDS = 15.0  # between two signs of life, so that nobody on the way takes the stream for dead
RETRY_MS = 3000  # after which a client that lost it comes again

EmbedEvent = Annotated[str, Depends(name_under(b"embed"))]
Events = Annotated[list[str] | None, Query(max_length=LINES_MAX)]
LastId = Annotated[str, Header(alias="Last-Event-ID")]


class EventStream(Response):
    media_type = "text/event-stream"

    def __init__(self, live: Broadcaster, events: Collection[str], last_id: str) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["Content-Length"]
        self._live, self._events, self._last_id = live, events, last_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 # how ASGI calls it
        ended = asyncio.Event()
        with self._live.stream(send, ended, self._events, self._last_id) as client:

            def piece(text: str) -> dict[str, Any]:
                place = client.place.id_field if client.todo is None else ""
                return {"type": "http.response.body", "body": f"{text}\n{place}\n".encode(), "more_body": True}

            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send(piece(f"retry: {RETRY_MS}"))
            over = [asyncio.ensure_future(_gone(receive)), asyncio.ensure_future(ended.wait())]
            try:
                while not (await asyncio.wait(over, timeout=BEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED))[0]:
                    send_nowait(send(piece(":")))
            finally:
                for waiting in over:
                    waiting.cancel()
        send_nowait(send({"type": "http.response.body"}))


def add_routes(app: FastAPI, live: Broadcaster, charge: Charge) -> None:
    every: dict[str, Any] = {"response_class": EventStream, "status_code": 200, "dependencies": [Depends(charge)]}

    @app.get("/stream", **every)
    async def stream_events(event: Events = None, last_event_id: LastId = "") -> Response:
        """Each change as `update {"eventName", "count"}`, a new day as `reset {"day"}`.

        With ?event=a&event=b of those alone, and first their values. After a Last-Event-ID first what changed since.
        """
        try:
            return EventStream(live, dict.fromkeys(map(event_name, event or [])), last_event_id)
        except InvalidName as error:
            raise Problem(422, f"event: {error}") from None

    @app.get("/embed/{name}/stream", include_in_schema=False, **every)
    async def stream_embedded(event: EmbedEvent, last_event_id: LastId = "") -> Response:
        return EventStream(live, [event], last_event_id)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
