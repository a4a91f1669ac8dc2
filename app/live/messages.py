"""The messages of the wire protocol: their payloads, and their encoding for Socket.IO and Server-Sent Events."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal, NamedTuple

import msgspec
from websockets.frames import Frame, Opcode

MESSAGE_NAMES_MAX = 1000  # events in one `snapshot` or `changes` message
CHUNK_UPDATES_MAX = 100  # updates in one chunk of a stream

Namespace = Literal["/", "/live"]


class Message:
    """An event of one Socket.IO namespace. It is encoded once, however many clients it is sent to."""

    __slots__ = ("_frame", "data", "event", "packet")

    def __init__(self, event: str, data: object, namespace: Namespace) -> None:
        self.event = event
        self.data = msgspec.json.encode(data).decode()
        prefix = "42" if namespace == "/" else f"42{namespace},"
        self.packet = f'{prefix}["{event}",{self.data}]'
        self._frame: bytes | None = None

    @property
    def frame(self) -> bytes:
        """The packet as an unmasked WebSocket text frame."""
        if self._frame is None:
            self._frame = Frame(Opcode.TEXT, self.packet.encode()).serialize(mask=False)
        return self._frame


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


def snapshot_messages(head: SnapshotHead, names: Sequence[str], counts: Sequence[int]) -> list[Message]:
    """Return the whole day: at least one message, each with at most MESSAGE_NAMES_MAX events."""
    parts = [slice(i, i + MESSAGE_NAMES_MAX) for i in range(0, max(1, head.size), MESSAGE_NAMES_MAX)]
    bodies = ({"offset": part.start, "names": names[part], "counts": counts[part]} for part in parts)
    return [Message("snapshot", head._asdict() | body, "/live") for body in bodies]


def changes_messages(
    names: Sequence[str],
    counts: Sequence[int],
    changed: Iterable[int],
    seq: int,
    known_names: int,
    last_seq: int | None = None,
) -> list[Message]:
    """Return the changed counts, in messages of at most MESSAGE_NAMES_MAX events, for a client at `seq`.

    `changed` are indices into `names` and `counts`. The client knows the first `known_names` names; a new name comes
    with its count or before it, because both are in the order of the indices. With `last_seq`, the last message covers
    all messages up to that number: its `seq` is `last_seq`, and its `since` is its own number.
    """
    indices, messages = sorted(changed), []
    for number, i in enumerate(range(0, len(indices), MESSAGE_NAMES_MAX), seq + 1):
        part = indices[i : i + MESSAGE_NAMES_MAX]
        body: dict[str, object] = {"seq": number, "changes": [[index, counts[index]] for index in part]}
        body["names"] = names[max(part[0], known_names) : part[-1] + 1]
        if last_seq is not None and i + MESSAGE_NAMES_MAX >= len(indices):
            body |= {"seq": last_seq, "since": number}
        messages.append(Message("changes", body, "/live"))
    return messages


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
