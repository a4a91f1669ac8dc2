"""The kinds of live clients: a dashboard, a plain Socket.IO client, and a stream of Server-Sent Events.

Each has a cursor, and sends the messages that its client lacks for as long as the client can take more.
"""

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from app.live.day import NO_CURSOR, Cursor, Delta, LiveDay
from app.live.messages import Chunk, Message, sse_chunks, sse_id

Send = Callable[[Any], Awaitable[None]]  # of an ASGI server
Item = TypeVar("Item", Message, Chunk)  # the unit of sending: a message, or a chunk of a stream


class Connection(Protocol):
    """A connection to a Socket.IO client. `engine_id` is the id of its Engine.IO session."""

    engine_id: str

    @property
    def is_direct(self) -> bool:
        """Whether messages are written to its WebSocket at once, and not to its queue."""

    def try_send(self, message: Message) -> bool:
        """Send a message, or return False if the client cannot take it now. Raises OSError if it is closed."""

    def request_direct(self) -> None:
        """Write to its WebSocket, if it has one, as soon as its queue has been sent."""

    async def abort(self) -> None:
        """Close the connection, and drop the messages in its queue."""


class Client(ABC, Generic[Item]):
    """A live client and its position in the changes of the day.

    While `is_catching_up`, items are pending that lead on from `cursor`. `undelivered` is one that the client could not
    take.
    """

    def __init__(self) -> None:
        self.cursor = NO_CURSOR
        self.undelivered: Item | None = None
        self.is_catching_up = False
        self._pending: Iterator[Item] = iter(())
        self._cursor_after = NO_CURSOR
        self._blocked_since = math.inf

    @abstractmethod
    def join(self, day: LiveDay) -> None:
        """Set the cursor from which the client begins."""

    @abstractmethod
    def try_send(self, item: Item) -> bool:
        """Send an item now, or return False. Raises OSError or RuntimeError if the connection is closed."""

    @abstractmethod
    async def close(self) -> None:
        """Close the connection of a client that reads too slowly."""

    @property
    def blocked_seconds(self) -> float:
        """How long the client has been unable to take an item; 0 if it took the last one."""
        return max(0.0, time.monotonic() - self._blocked_since)

    def deliver(self, day: LiveDay, deltas: Sequence[Delta]) -> int:
        """Send the items that the client lacks, up to one that it cannot take now; return how many were sent.

        `deltas` are the latest ones of the day. Raises OSError or RuntimeError if the connection is closed.
        """
        sent = 0
        for item in self._missing_items(day, deltas):
            if not self.try_send(item):
                self.undelivered = item
                self._blocked_since = min(self._blocked_since, time.monotonic())
                break
            self.undelivered, self._blocked_since = None, math.inf
            sent += 1
        return sent

    def _missing_items(self, day: LiveDay, deltas: Sequence[Delta]) -> Iterator[Item]:
        """Yield the items that the client lacks, in order. It may be dropped at any item: the next call continues."""
        if self.undelivered is not None:
            yield self.undelivered
        if self.is_catching_up:
            # The rest of an earlier round may have newer counts than these deltas.
            deltas = ()
        while True:
            if self.is_catching_up:
                # 'yield from' would close the iterator when this generator is dropped.
                for item in self._pending:  # noqa: UP028
                    yield item
                self.is_catching_up, self.cursor = False, self._cursor_after
            elif (missing := self._next_messages(day, deltas)) is None:
                return
            else:
                messages, self._cursor_after = missing
                self._pending, self.is_catching_up = self._encode(messages, self._cursor_after), True

    @abstractmethod
    def _next_messages(self, day: LiveDay, deltas: Sequence[Delta]) -> tuple[Iterable[Message], Cursor] | None:
        """Return messages that the client lacks, and its cursor after them; None if it lacks nothing."""

    @abstractmethod
    def _encode(self, messages: Iterable[Message], end: Cursor) -> Iterator[Item]:
        """Yield the items to send for these messages, which lead to the cursor `end`."""


class SocketIoClient(Client[Message]):
    """A client of one namespace of Socket.IO."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection

    def try_send(self, message: Message) -> bool:
        return self.connection.try_send(message)

    async def close(self) -> None:
        await self.connection.abort()

    def deliver(self, day: LiveDay, deltas: Sequence[Delta]) -> int:
        sent = super().deliver(day, deltas)
        if self.undelivered is None:
            self.connection.request_direct()
        return sent

    def _encode(self, messages: Iterable[Message], end: Cursor) -> Iterator[Message]:  # noqa: ARG002
        return iter(messages)


class PlainClient(SocketIoClient):
    """A client of the namespace "/", which gets the changes after it connected."""

    def join(self, day: LiveDay) -> None:
        self.cursor = day.head

    def _next_messages(self, day: LiveDay, deltas: Sequence[Delta]) -> tuple[Iterable[Message], Cursor] | None:
        if delta := _delta_at(self.cursor, deltas):
            return delta.updates, delta.end
        return None if self.cursor is day.head else day.catch_up_plain(self.cursor)


class DashboardClient(SocketIoClient):
    """A client of the namespace "/live", which first gets a snapshot, and also the service status."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._state: Message | None = None

    def join(self, day: LiveDay) -> None:  # noqa: ARG002
        self.cursor = NO_CURSOR

    def resync(self) -> None:
        """Send a snapshot again."""
        self.cursor = NO_CURSOR

    def deliver(self, day: LiveDay, deltas: Sequence[Delta]) -> int:
        return 1 if self._push_latest(day, deltas) else super().deliver(day, deltas)

    def _push_latest(self, day: LiveDay, deltas: Sequence[Delta]) -> bool:
        """Send the one message that nearly all dashboards lack, at the least cost. Return False if it was not sent."""
        if len(deltas) != 1 or self.cursor is not deltas[0].begin or self._state is not day.state:
            return False
        messages = deltas[0].changes
        if self.undelivered or len(messages) > 1 or not self.connection.is_direct:
            return False
        if not self.connection.try_send(messages[0]):
            return False
        self.cursor = deltas[0].end
        return True

    def _next_messages(self, day: LiveDay, deltas: Sequence[Delta]) -> tuple[Iterable[Message], Cursor] | None:
        if delta := _delta_at(self.cursor, deltas):
            return delta.changes, delta.end
        if self.cursor is not day.head:
            return day.catch_up_dashboard(self.cursor)
        if self._state is not day.state:
            self._state = day.state
            return [day.state], self.cursor
        return None


class StreamClient(Client[Chunk]):
    """A stream of Server-Sent Events: of these events, or of all. `ended` is set when the stream has to end.

    Chunks are sent to `send_framed` if it is set, and otherwise to the ASGI `send`. If `last_event_id` is None, the
    events have no ids, because an id contains the number of changes of all events.
    """

    def __init__(self, send: Send, ended: asyncio.Event, events: tuple[str, ...], last_event_id: str | None) -> None:
        super().__init__()
        self.ended = ended
        self.send_framed: Callable[[bytes], bool] | None = None
        self._send, self._events, self._last_event_id = send, events, last_event_id
        self._has_ids = last_event_id is not None

    @property
    def id_line(self) -> str:
        """The line that sets the Last-Event-ID to the cursor; empty while events are pending, and without ids."""
        return sse_id(self.cursor.event_id) if self._has_ids and not self.is_catching_up else ""

    def join(self, day: LiveDay) -> None:
        if self._last_event_id:
            self.cursor = day.parse_cursor(self._last_event_id)
        else:
            self.cursor = NO_CURSOR if self._events else day.head

    def try_send(self, chunk: Chunk) -> bool:
        if self.send_framed:
            return self.send_framed(chunk.framed)
        return send_nowait(self._send({"type": "http.response.body", "body": chunk.body, "more_body": True}))

    async def close(self) -> None:
        self.ended.set()

    def deliver(self, day: LiveDay, deltas: Sequence[Delta]) -> int:
        sent = self._push_latest(deltas)
        return super().deliver(day, deltas) if sent is None else sent

    def _push_latest(self, deltas: Sequence[Delta]) -> int | None:
        """Send the one chunk that nearly all streams lack, at the least cost; return None if the client needs more."""
        if len(deltas) != 1 or self.cursor is not deltas[0].begin or self.undelivered or self.is_catching_up:
            return None
        chunks = deltas[0].chunks(self._events, self._has_ids) if deltas[0].chunks else None
        if chunks is None or len(chunks) > 1 or not all(map(self.try_send, chunks)):
            return None
        self.cursor = deltas[0].end
        return len(chunks)

    def _next_messages(self, day: LiveDay, deltas: Sequence[Delta]) -> tuple[Iterable[Message], Cursor] | None:
        # A delta has the updates of all events.
        if not self._events and (delta := _delta_at(self.cursor, deltas)):
            return delta.updates, delta.end
        return None if self.cursor is day.head else day.catch_up_plain(self.cursor, self._events)

    def _encode(self, messages: Iterable[Message], end: Cursor) -> Iterator[Chunk]:
        ids = (self.cursor.event_id, end.event_id) if self._has_ids else ("", "")
        return sse_chunks(messages, *ids)


AnyClient = SocketIoClient | StreamClient


def _delta_at(cursor: Cursor, deltas: Sequence[Delta]) -> Delta | None:
    return next((delta for delta in deltas if delta.begin is cursor), None)


def send_nowait(sending: Any) -> bool:
    """Run a coroutine of an ASGI server's `send` up to its first wait; return whether it ended before that.

    ASGI has no way to send only if a client can take more. This relies on servers that wait before they write, as
    uvicorn does: if the coroutine has to wait, it is closed, and nothing was sent.
    """
    try:
        sending.send(None)
    except StopIteration:
        return True
    sending.close()
    return False
