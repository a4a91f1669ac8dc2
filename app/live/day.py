"""The running day as clients see it: current counts, a log of recent changes, and the service status.

Each client has a cursor, and gets the changes since then. Counts are absolute, so a client that receives fewer messages
than others still ends on the same numbers.
"""

import asyncio
import itertools
import math
import re
import secrets
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import NamedTuple

from app.domain.calendar import Clock, TimeSlot
from app.live.messages import (
    MESSAGE_NAMES_MAX,
    Chunk,
    Message,
    Namespace,
    SharedMessages,
    SnapshotHead,
    changes_messages,
    reset_message,
    snapshot_messages,
    sse_chunks,
    state_message,
    update_message,
    update_messages,
)

LOG_MAX = 20_000  # changes that are kept for clients that fall behind


class Cursor(NamedTuple):
    """A client's position: the number of changes, messages and names that it has, in one epoch and day."""

    change: int
    seq: int
    names: int
    epoch: str
    day: int

    @property
    def event_id(self) -> str:
        """The id of a Server-Sent Event, which a client sends back as Last-Event-ID; empty for NO_CURSOR."""
        return self.epoch and f"{self.epoch}-{self.day}:{self.change}"


NO_CURSOR = Cursor(-1, -1, 0, "", -1)
_EVENT_ID = re.compile(r"(\w{1,32})-(\d{1,12}):(-1|\d{1,16})", re.ASCII)


class Delta(NamedTuple):
    """The messages that lead from one cursor to another: `updates` for plain clients, `changes` for dashboards.

    `chunks` returns those for a stream of these events, or of all if there are none, with ids or without. They are
    built at the first call, and then shared. There are no chunks if the counts were replaced: then a stream catches up.
    """

    begin: Cursor
    end: Cursor
    updates: SharedMessages
    changes: SharedMessages
    chunks: Callable[[tuple[str, ...], bool], Sequence[Chunk]] | None = None

    def release(self) -> None:
        """Drop the encoded messages, because nearly all clients have them."""
        self.updates.release()
        self.changes.release()


class LiveDay:
    """The counts of the running day, and the changes that clients have yet to receive.

    `head` is the cursor of a client that has everything. `state` is the message with the service status. `generation`
    is the number of administrative changes of the day. `changed` is set when there is something to send.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._slot = clock.slot()
        self._names: list[str] = []
        self._index: dict[str, int] = {}
        self._counts: list[int] = []
        # The indices of changed events, in the order of the changes; `_log_start` is the number of the first change.
        self._log: list[int] = []
        self._log_start = 0
        self._deltas: list[Delta] = []
        self._taken_deltas: list[Delta] = []
        # The last snapshot, and the changes since a cursor. Dashboards share them until the next change, because a
        # dashboard may already have a newer count.
        self._snapshot = (NO_CURSOR, 0), SharedMessages(0, lambda _: self.state)
        self._caught_up = NO_CURSOR, (NO_CURSOR, 0), SharedMessages(0, lambda _: self.state)
        self.generation = 0
        self.head = Cursor(0, 0, 0, secrets.token_hex(4), self._slot.day)
        self.state = state_message("ok", [])
        self.changed = asyncio.Event()

    @property
    def day(self) -> int:
        """The UTC second at which the day begins."""
        return self._slot.day

    def counts(self) -> dict[str, int]:
        """Return all counts of the day."""
        return dict(zip(self._names, self._counts, strict=True))

    def count_of(self, event: str) -> int:
        """Return an event's count of the day."""
        return self._counts[self._index[event]] if event in self._index else 0

    def sum_of_counts(self) -> int:
        """Return the sum of all counts."""
        return sum(self._counts)

    def merge(self, day: int, counts: Mapping[str, int]) -> None:
        """Raise counts to these, where they are larger. Counts of another day are ignored."""
        if day != self._slot.day:
            return
        indices, known = self._index, self._counts
        for event, count in counts.items():
            index = indices.get(event, len(known))
            if index == len(known):
                indices[event] = index
                self._names.append(event)
                known.append(0)
            if count > known[index]:
                known[index] = count
                self._log.append(index)
        self.changed.set()

    def replace(self, slot: TimeSlot, read: Mapping[str, int], before: Mapping[str, int], generation: int) -> None:
        """Replace the counts with those that were read from the store, even with smaller ones.

        Within a generation, an event's count is smaller only if the store lost hits: if it is less than `before`, the
        count when the read began. In another generation an administrator changed the counts, so all of `read` holds.
        """
        self.start_day(slot)
        counts, same_generation = self.counts(), generation == self.generation
        lost, after = diff_after_loss(counts, read, before if same_generation else counts)
        if same_generation and not lost:
            self.merge(slot.day, read)
            return
        self._log_delta()
        self.generation = generation
        changed = {event: count for event, count in after.items() if count != counts.get(event)}
        after = {event: count for event, count in after.items() if count}
        if len(after) < len(changed):
            self._restart(after, secrets.token_hex(4), after, [self._reset("/")], [])
        else:
            self._restart(after, secrets.token_hex(4), changed, [], [])

    def start_day(self, slot: TimeSlot) -> None:
        """Begin a new day, on which all counts restart at 0. Does nothing if the day has begun already."""
        if slot.day > self._slot.day:
            self._log_delta()
            self._slot, self.generation = slot, 0
            self._restart({}, self.head.epoch, {}, [self._reset("/")], [self._reset("/live")])

    def set_status(self, status: str, reasons: Sequence[str]) -> None:
        """Send the service status to the dashboards, if it differs from the last one."""
        state = state_message(status, reasons)
        if state.data != self.state.data:
            self.state = state
            self.changed.set()

    def take_deltas(self) -> list[Delta]:
        """Return the deltas since the last call, oldest first. The end of the last one is `head`."""
        self._log_delta()
        for delta in self._taken_deltas:
            delta.release()
        self._taken_deltas, self._deltas = self._deltas, []
        return self._taken_deltas

    def parse_cursor(self, event_id: str) -> Cursor:
        """Return the cursor for a Last-Event-ID; a cursor before all changes if the id is unknown here."""
        match = _EVENT_ID.fullmatch(event_id)
        if not match:
            return NO_CURSOR
        known = match[1] == self.head.epoch and int(match[3]) <= self.head.change
        return Cursor(int(match[3]) if known else -1, -1, 0, match[1], int(match[2]))

    def catch_up_plain(self, cursor: Cursor, events: Collection[str] = ()) -> tuple[Iterator[Message], Cursor]:
        """Return the messages that a plain client lacks, of these events or of all, and its cursor after them.

        A client of all events gets a reset first if it may have events that this day lacks.
        """
        # The iterator may be read after a new day began, so it keeps this day's lists. It keeps no copy of them: many
        # clients may be behind.
        names, counts, index, missing = self._names, self._counts, self._index, iter(events)
        changed, is_complete = self._changed_since(cursor)
        if is_complete:
            wanted = frozenset(events)
            missing = (names[i] for i in changed if not events or names[i] in wanted)
        elif not events:
            missing = map(names.__getitem__, range(self.head.names))
        is_other_day = (cursor.epoch, cursor.day) != (self.head.epoch, self.head.day)
        resets = [self._reset("/")] if is_other_day and not events else self._reset_since(cursor, "/")
        updates = (update_message(event, counts[index[event]] if event in index else 0) for event in missing)
        return itertools.chain(resets, updates), self.head

    def catch_up_dashboard(self, cursor: Cursor) -> tuple[Iterator[Message], Cursor]:
        """Return the messages that a dashboard at this cursor lacks, and its cursor after them."""
        begin, version, messages = self._caught_up
        if (begin, version) == (cursor, self._version):
            return iter(messages), self.head
        changed, is_complete = self._changed_since(cursor)
        if not is_complete or (cursor.epoch, cursor.day) != (self.head.epoch, self.head.day):
            return itertools.chain(self._reset_since(cursor, "/live"), self._build_snapshot()), self.head
        changed = array("I", sorted(changed))
        messages.release()
        messages = changes_messages(self._names, self._counts, changed, cursor.seq, cursor.names, self.head.seq)
        self._caught_up = cursor, self._version, messages
        return iter(messages), self.head

    @property
    def _version(self) -> tuple[Cursor, int]:
        """A value that differs after every change of a count."""
        return self.head, self._log_start + len(self._log)

    def _changed_since(self, cursor: Cursor) -> tuple[Sequence[int], bool]:
        """Return the indices of the events that changed, and whether the log still has all changes since then."""
        log = self._log[max(0, cursor.change - self._log_start) : self.head.change - self._log_start]
        return array("I", dict.fromkeys(log)), cursor.change >= self._log_start

    def _reset_since(self, cursor: Cursor, namespace: Namespace) -> list[Message]:
        return [] if cursor.day in {self.head.day, NO_CURSOR.day} else [self._reset(namespace)]

    def _reset(self, namespace: Namespace) -> Message:
        return reset_message(self._slot.date, namespace)

    def _restart(
        self,
        counts: Mapping[str, int],
        epoch: str,
        updated: Mapping[str, int],
        first_updates: Sequence[Message],
        first_changes: Sequence[Message],
    ) -> None:
        """Replace all counts, and empty the log: a client that does not get this delta has to receive everything.

        Plain clients get `first_updates`, then the counts of `updated`; dashboards `first_changes`, then a snapshot.
        """
        begin = self.head
        self._names, self._counts = list(counts), list(counts.values())
        self._index = {event: index for index, event in enumerate(counts)}
        self._log_start, self._log = begin.change + 1, []
        self.head = Cursor(self._log_start, begin.seq + 1, len(counts), epoch, self._slot.day)
        snapshot = self._build_snapshot()
        updates = update_messages(list(updated), list(updated.values()), range(len(updated)), first_updates)
        changes = SharedMessages(len(snapshot), snapshot.__getitem__, first_changes)
        self._deltas.append(Delta(begin, self.head, updates, changes))
        self.changed.set()

    def _log_delta(self) -> None:
        """Make a delta of the changes since the last one, and shorten a long log."""
        begin, names, counts, index = self.head, self._names, self._counts, self._index
        changed = array("I", dict.fromkeys(self._log[begin.change - self._log_start :]))
        if not changed:
            return
        # The number of messages has to be the same whether or not a dashboard is connected that gets them.
        self.head = begin._replace(
            change=self._log_start + len(self._log),
            seq=begin.seq + math.ceil(len(changed) / MESSAGE_NAMES_MAX),
            names=len(self._names),
        )
        end, changed_set = self.head, cache(lambda: set(changed))
        updates = update_messages(names, counts, changed)
        changes = changes_messages(names, counts, array("I", sorted(changed)), begin.seq, begin.names)

        @cache
        def chunks(events: tuple[str, ...], has_ids: bool) -> list[Chunk]:
            of_events = (event for event in events if index.get(event) in changed_set())
            messages = (update_message(event, counts[index[event]]) for event in of_events) if events else updates
            ids = (begin.event_id, end.event_id) if has_ids else ("", "")
            return list(sse_chunks(messages, *ids))

        self._deltas.append(Delta(begin, end, updates, changes, chunks))
        if len(self._log) > LOG_MAX:
            self._log = self._log[-LOG_MAX // 2 :]
            self._log_start = self.head.change - len(self._log)

    def _build_snapshot(self) -> SharedMessages:
        """Return the whole day as of `head`; all calls up to the next change return the same messages."""
        version, messages = self._snapshot
        if version == self._version:
            return messages
        head, resets_at = self.head, datetime.fromtimestamp(self._clock.calendar.next_day(self._slot.day), UTC)
        fields = SnapshotHead(head.epoch, head.seq, self._slot.date, self.generation, resets_at.isoformat(), head.names)
        messages.release()
        messages = snapshot_messages(fields, self._names, self._counts)
        self._snapshot = self._version, messages
        return messages


def diff_after_loss(
    counts: Mapping[str, int], read: Mapping[str, int], before: Mapping[str, int]
) -> tuple[set[str], dict[str, int]]:
    """Return the events of which the store lost hits, and all counts to show now (0 if the store lost all hits).

    counts: the counts shown now. read: what the store had. before: the counts shown when the read began. The store lost
    hits of an event if it had fewer than `before`. Otherwise the larger count is right: hits came during the read.
    """
    lost = {event for event, count in before.items() if event in counts and read.get(event, 0) < count}
    kept = {event: count for event, count in counts.items() if event not in lost}
    return lost, {event: max(read.get(event, 0), kept.get(event, 0)) for event in {**counts, **read}}
