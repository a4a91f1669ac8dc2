"""GET /stream and /embed/{name}/stream: live counts as Server-Sent Events."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response
from starlette.types import Receive, Scope, Send

from app.http.parsing import QUERY_EVENTS_MAX, event_in_query, event_name_in_path
from app.live.broadcaster import Broadcaster
from app.live.clients import send_nowait

HEARTBEAT_SECONDS = 15.0  # between two comments, so that proxies keep an idle stream open
RETRY_MS = 3000  # after this time a client reconnects
FRAMED_CHUNKS_EXTENSION = "tally.framed_chunks"  # of ASGI, offered by server/http_protocol.py

EmbedEvent = Annotated[str, Depends(event_name_in_path(b"embed"))]
Events = Annotated[list[str] | None, Query(max_length=QUERY_EVENTS_MAX)]
LastId = Annotated[str, Header(alias="Last-Event-ID")]


class EventStream(Response):
    """A stream that ends when the client disconnects or `ended` is set."""

    media_type = "text/event-stream"

    def __init__(self, broadcaster: Broadcaster, events: tuple[str, ...], last_id: str | None) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["Content-Length"]
        self.ended = asyncio.Event()
        self._broadcaster, self._events, self._last_id = broadcaster, events, last_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._broadcaster.stream(send, self.ended, self._events, self._last_id) as client:

            def chunk(text: str) -> dict[str, Any]:
                return {"type": "http.response.body", "body": f"{text}\n{client.id_line}\n".encode(), "more_body": True}

            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send(chunk(f"retry: {RETRY_MS}"))
            if FRAMED_CHUNKS_EXTENSION in scope.get("extensions", {}):
                request: dict[str, Any] = {"type": FRAMED_CHUNKS_EXTENSION}
                await send(request)
                client.send_framed = request.get("send_framed")
            ends = [asyncio.ensure_future(wait_for_disconnect(receive)), asyncio.ensure_future(self.ended.wait())]
            try:
                while not (await asyncio.wait(ends, timeout=HEARTBEAT_SECONDS, return_when="FIRST_COMPLETED"))[0]:
                    send_nowait(send(chunk(":")))
            finally:
                for end in ends:
                    end.cancel()
        send_nowait(send({"type": "http.response.body"}))


def add_routes(router: APIRouter, broadcaster: Broadcaster) -> None:
    """Add the routes of the event streams."""
    options: dict[str, Any] = {"response_class": EventStream, "status_code": 200}

    @router.get("/stream", **options)
    async def stream_events(event: Events = None, last_event_id: LastId = "") -> Response:
        """Send each change as `update {"eventName", "count"}`, and a new day as `reset {"day"}`.

        With `?event=a&event=b`, send only these events, and their counts first. With `Last-Event-ID`, send first the
        changes since then.
        """
        return EventStream(broadcaster, tuple(dict.fromkeys(map(event_in_query, event or []))), last_event_id)

    @router.get("/embed/{name}/stream", include_in_schema=False, **options)
    async def stream_embedded(event: EmbedEvent, last_event_id: LastId = "") -> Response:
        return EventStream(broadcaster, (event,), last_event_id)


async def wait_for_disconnect(receive: Receive) -> None:
    """Wait until the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
