"""The messages of the wire protocol: their payloads, and their encoding for Socket.IO and Server-Sent Events."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

import msgspec
from websockets.frames import Frame, Opcode

MESSAGE_NAMES_MAX = 1000  # events in one `snapshot` or `changes` message
CHUNK_UPDATES_MAX = 100  # updates in one chunk of a stream

Namespace = Literal["/", "/live"]


class Message:
    """An event of one Socket.IO namespace. It is encoded once, however many clients it is sent to."""

    __slots__ = ("_frame", "_packet", "_prefix", "data", "event")

    def __init__(self, event: str, data: object, namespace: Namespace) -> None:
        self.event = event
        self.data = msgspec.json.encode(data).decode()
        self._prefix = "2" if namespace == "/" else f"2{namespace},"
        self._packet = ""
        self._frame: bytes | None = None

    @property
    def packet(self) -> str:
        """The Socket.IO packet: the content of an Engine.IO packet of the type "message"."""
        if not self._packet:
            self._packet = f'{self._prefix}["{self.event}",{self.data}]'
        return self._packet

    @property
    def frame(self) -> bytes:
        """The Engine.IO packet as an unmasked WebSocket text frame."""
        if self._frame is None:
            text = f'4{self._prefix}["{self.event}",{self.data}]'
            self._frame = Frame(Opcode.TEXT, text.encode()).serialize(mask=False)
        return self._frame


class SharedMessages(Sequence[Message]):
    """Messages for many clients: some that are given, then `size` further ones, encoded when a client needs them.

    After `release`, a client that is still behind encodes the messages that it lacks again, maybe with newer counts. So
    clients that do not read keep no messages in memory.
    """

    def __init__(self, size: int, encode: Callable[[int], Message], first: Sequence[Message] = ()) -> None:
        self._size, self._encode, self._first = size, encode, first
        self._encoded: dict[int, Message] | None = {}

    def __len__(self) -> int:
        return len(self._first) + self._size

    def __iter__(self) -> Iterator[Message]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        if index < len(self._first):
            return self._first[index]
        number = index - len(self._first)
        if self._encoded is None:
            return self._encode(number)
        if number not in self._encoded:
            self._encoded[number] = self._encode(number)
        return self._encoded[number]

    def release(self) -> None:
        """Drop the encoded messages."""
        self._encoded = None


def update_message(event: str, count: int) -> Message:
    return Message("update", {"eventName": event, "count": count}, "/")


def reset_message(date: str, namespace: Namespace) -> Message:
    return Message("reset", {"day": date}, namespace)


def state_message(status: str, reasons: Sequence[str]) -> Message:
    return Message("state", {"status": status, "reasons": reasons}, "/live")


class SnapshotHead(NamedTuple):
    """The fields that all messages of one snapshot share; `size` is the number of its events."""

    epoch: str
    seq: int
    day: str
    generation: int
    resetsAt: str  # noqa: N815 # the name of the JSON field
    size: int


def snapshot_messages(head: SnapshotHead, names: Sequence[str], counts: Sequence[int]) -> SharedMessages:
    """Return the whole day: at least one message, each with at most MESSAGE_NAMES_MAX of the first `head.size` events.

    A message that is encoded later has later counts.
    """

    def encode(number: int) -> Message:
        part = slice(number * MESSAGE_NAMES_MAX, min(head.size, (number + 1) * MESSAGE_NAMES_MAX))
        body = {"offset": part.start, "names": names[part], "counts": counts[part]}
        return Message("snapshot", head._asdict() | body, "/live")

    return SharedMessages(max(1, math.ceil(head.size / MESSAGE_NAMES_MAX)), encode)


def update_messages(
    names: Sequence[str], counts: Sequence[int], indices: Sequence[int], first: Sequence[Message] = ()
) -> SharedMessages:
    """Return the counts with these indices for plain clients, after the `first` messages."""
    return SharedMessages(len(indices), lambda i: update_message(names[indices[i]], counts[indices[i]]), first)


def changes_messages(
    names: Sequence[str],
    counts: Sequence[int],
    changed: Sequence[int],
    seq: int,
    known_names: int,
    last_seq: int | None = None,
) -> SharedMessages:
    """Return the changed counts, in messages of at most MESSAGE_NAMES_MAX events, for a client at `seq`.

    `changed` are indices into `names` and `counts`, in ascending order. The client knows the first `known_names` names;
    a new name comes with its count or before it. With `last_seq`, the last message covers all messages up to that
    number: its `seq` is `last_seq`, and its `since` is its own number.
    """
    size = math.ceil(len(changed) / MESSAGE_NAMES_MAX)

    def encode(i: int) -> Message:
        part = changed[i * MESSAGE_NAMES_MAX : (i + 1) * MESSAGE_NAMES_MAX]
        body: dict[str, object] = {"seq": seq + 1 + i, "changes": [[index, counts[index]] for index in part]}
        body["names"] = names[max(part[0], known_names) : part[-1] + 1]
        if last_seq is not None and i == size - 1:
            body |= {"seq": last_seq, "since": seq + 1 + i}
        return Message("changes", body, "/live")

    return SharedMessages(size, encode)


def sse_id(event_id: str) -> str:
    """Return the line that sets a stream's Last-Event-ID, or nothing for an empty id."""
    return event_id and f"id: {event_id}\n"


class Chunk:
    """A piece of an event stream: one or more complete events. It is encoded once for all streams that get it."""

    __slots__ = ("_framed", "body")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self._framed: bytes | None = None

    @property
    def framed(self) -> bytes:
        """The chunk in HTTP's chunked transfer coding."""
        if self._framed is None:
            self._framed = b"%x\r\n%b\r\n" % (len(self.body), self.body)
        return self._framed


def sse_chunks(messages: Iterable[Message], begin_id: str, end_id: str) -> Iterator[Chunk]:
    """Yield messages as Server-Sent Events, at most CHUNK_UPDATES_MAX in a chunk.

    Only the last event has `end_id`; the others have `begin_id`. So a client that loses the stream in between resumes
    from the beginning, and misses nothing. If the last chunk is full, no event has `end_id`, and the next comment has.
    """
    begin, end = sse_id(begin_id), sse_id(end_id)
    remaining = iter(messages)
    while part := list(islice(remaining, CHUNK_UPDATES_MAX)):
        ids = [begin] * (len(part) - 1) + [end if len(part) < CHUNK_UPDATES_MAX else begin]
        events = [f"{id_}event: {m.event}\ndata: {m.data}\n\n" for id_, m in zip(ids, part, strict=True)]
        yield Chunk("".join(events).encode())
