"""Sync between the nodes of one store, so that all show the same counts within a second.

Each node publishes the counts of its commits. Counts are absolute: a message that comes twice, late or out of order
does no harm, because the larger count is the newer one. Lost messages are noticed within seconds, and the day is read
from the store. Smaller counts replace larger ones only if the store's epoch changed, because it lost data, or
the day's generation, because an administrator changed the counts.
"""

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from app.domain.buckets import ALL_EVENTS, GENERATION, Bucket
from app.domain.calendar import Clock, TimeSlot
from app.live.day import LiveDay
from app.metrics import Metrics
from app.stores.base import CounterStore, StoreError

PUBLISH_INTERVAL_SECONDS = 0.1  # between two messages of a node, which many commits share
HEARTBEAT_SECONDS = 1.0  # after which a node without commits publishes an empty message
PEER_TIMEOUT_SECONDS = 3.0  # without a message of any node, this one included, the connection is dead
FULL_READ_BACKOFF = 50  # times the CPU time of a full read of the day have to pass before the next one
MESSAGE_EVENTS_MAX = 2000  # events in a message: Redis disconnects a subscriber for which megabytes wait

log = logging.getLogger("tally.nodes")


class CountsMessage(NamedTuple):
    """Counts of the day that begins at this UTC second, which a node got from the store of this epoch."""

    node: str
    epoch: str
    day: int
    counts: dict[str, int]
    generation: int = 0


class PeerSync:
    """Keeps a LiveDay equal to the store and to the other nodes."""

    def __init__(self, store: CounterStore, live_day: LiveDay, clock: Clock, metrics: Metrics) -> None:
        self._store, self._live_day, self._clock = store, live_day, clock
        self._id = secrets.token_hex(4)
        self._epoch = ""
        self._outbox: dict[str, int] = {}
        self._outbox_generation = (0, 0)  # the day and generation of the counts in the outbox
        self._outbox_changed = asyncio.Event()
        # The day, generation and counts of commits in a generation that is newer than the shown one.
        self._next_generation = (0, 0, dict[str, int]())
        self._resync_needed = asyncio.Event()
        self._resync_lock = asyncio.Lock()
        self._gap_possible = False  # a message may have been published while this node was not subscribed
        self._full_read_not_before = (0, 0.0)  # a day, and a monotonic time
        self._last_message_at: dict[str, float] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False
        metrics.watch("tally_nodes", "Nodes that published within 3 s, including this one.", self.live_node_count)

    async def start(self) -> None:
        """Read the day from the store, and begin to publish and subscribe."""
        with contextlib.suppress(StoreError):  # the periodic resync repeats it
            await self.resync()
        self._tasks = [asyncio.create_task(self._resync_loop())]
        if self._store.shared:
            self._last_message_at[self._id] = time.monotonic()
            self._tasks += [asyncio.create_task(self._publish_loop()), asyncio.create_task(self._subscribe_loop())]

    async def close(self) -> None:
        self._closing = True  # redis-py may treat a cancellation as a failure of its own, and continue
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def publish(self, slot: TimeSlot, counts: dict[str, int], generation: int) -> None:
        """Show the counts that result from a commit of this node, here and on the other nodes."""
        self._live_day.start_day(slot)
        self._show(slot.day, counts, generation)
        if self._store.shared:
            if (slot.day, generation) != self._outbox_generation:
                self._outbox_generation, self._outbox = (slot.day, generation), {}
            self._outbox |= counts
            self._outbox_changed.set()

    def _show(self, day: int, counts: dict[str, int], generation: int) -> None:
        """Show counts of the shown generation. Keep those of a newer one, until the whole day has been read."""
        live_day = self._live_day
        if day == live_day.day and generation > live_day.generation:
            if self._next_generation[:2] != (day, generation):
                self._next_generation = (day, generation, {})
            self._next_generation[2].update(counts)
            self._resync_needed.set()
        elif generation == live_day.generation:
            live_day.merge(day, counts)

    async def resync(self) -> None:
        """Compare the shown day with the store, and read it if they differ. Raises StoreError."""
        async with self._resync_lock:  # an older read must not replace the counts of a newer one
            await self._resync()

    async def _resync(self) -> None:
        slot, live_day, store = self._clock.slot(), self._live_day, self._store
        epoch = await store.refresh()
        (generations,) = await store.read([Bucket("day", slot.day, GENERATION)], [ALL_EVENTS])
        generation = generations.get(ALL_EVENTS, 0)
        is_same = (epoch, slot.day, generation) == (self._epoch, live_day.day, live_day.generation)
        is_recent = (slot.day, time.monotonic()) < self._full_read_not_before and not self._gap_possible
        if is_same and (is_recent or await self._is_complete(slot)):
            return
        self._gap_possible = False
        # Not the duration, which a slow network makes long.
        began, before = time.thread_time(), live_day.counts() if live_day.day == slot.day else {}
        counts = dict(await store.counts(slot.day))
        counts.pop(ALL_EVENTS, None)
        pause = FULL_READ_BACKOFF * (time.thread_time() - began)
        self._full_read_not_before = slot.day, time.monotonic() + pause
        if live_day.day > slot.day:  # the day ended during the read
            return
        live_day.start_day(slot)
        if (epoch, generation) == (self._epoch, live_day.generation):
            live_day.merge(slot.day, counts)
        else:
            self._epoch = epoch
            live_day.replace(slot, counts, before, generation)
            if self._next_generation[:2] == (slot.day, generation):
                live_day.merge(slot.day, self._next_generation[2])

    async def _is_complete(self, slot: TimeSlot) -> bool:
        """Return whether the store's sum of counts equalled the shown one during the call, and no message was lost."""
        shown = self._live_day.sum_of_counts()
        stored = (await self._store.counts(slot.day, [ALL_EVENTS])).get(ALL_EVENTS, 0)
        if stored > self._live_day.sum_of_counts():
            await asyncio.sleep(2 * PUBLISH_INTERVAL_SECONDS)  # for messages in flight
        return shown <= stored <= self._live_day.sum_of_counts() and not self._gap_possible

    async def _resync_loop(self) -> None:
        while not self._closing:
            await self._resync_needed.wait()
            self._resync_needed.clear()
            try:
                await self.resync()
            except Exception as error:  # noqa: BLE001 # the resync is repeated after any error
                level = logging.DEBUG if isinstance(error, StoreError) else logging.ERROR
                log.log(level, "the day could not be read from the store, will retry: %r", error)
                await asyncio.sleep(PUBLISH_INTERVAL_SECONDS)
                self._resync_needed.set()

    def live_node_count(self) -> int:
        """Return the number of nodes that published within PEER_TIMEOUT_SECONDS, including this one."""
        since = time.monotonic() - PEER_TIMEOUT_SECONDS
        self._last_message_at = {node: at for node, at in self._last_message_at.items() if at > since}
        return len(self._last_message_at) if self._store.shared else 1

    def is_first_node(self) -> bool:
        """Return whether this node has the lowest id of the live ones, so that it does what one node has to do."""
        return self.live_node_count() == 0 or not self._store.shared or self._id == min(self._last_message_at)

    def reasons(self) -> list[str]:
        """Return why the sync is degraded, if the store's own status does not explain it already."""
        is_connected = self.live_node_count() or self._store.status().stale_seconds is not None
        return [] if is_connected else ["no messages arrive from any node, including this one: check Redis"]

    async def _publish_loop(self) -> None:
        while not self._closing:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await self._outbox_changed.wait()
            self._outbox_changed.clear()
            try:
                for message in self._outgoing():
                    await self._store.publish(msgspec.json.encode(message).decode())
            except Exception as error:  # noqa: BLE001 # later messages have to be published
                level = logging.DEBUG if isinstance(error, StoreError) else logging.ERROR
                log.log(level, "counts could not be published to the other nodes: %r", error)
            await asyncio.sleep(PUBLISH_INTERVAL_SECONDS)

    def _outgoing(self) -> Iterator[CountsMessage]:
        """Empty the outbox into messages; an empty outbox gives one, as a heartbeat."""
        counts, self._outbox = list(self._outbox.items()), {}
        for i in range(0, max(1, len(counts)), MESSAGE_EVENTS_MAX):
            day, generation = self._outbox_generation
            yield CountsMessage(self._id, self._epoch, day, dict(counts[i : i + MESSAGE_EVENTS_MAX]), generation)

    async def _subscribe_loop(self) -> None:
        while not self._closing:
            try:
                is_first = True
                async for text in self._store.subscribe(PEER_TIMEOUT_SECONDS):
                    if is_first:
                        self._gap_possible, is_first = True, False
                        self._resync_needed.set()
                    with contextlib.suppress(msgspec.DecodeError):  # a node of another version may have sent it
                        self._on_message(msgspec.json.decode(text, type=CountsMessage))
            except Exception as error:  # noqa: BLE001 # later messages have to be received
                is_offline = self._store.status().stale_seconds is not None  # which has been logged already
                log.log(logging.DEBUG if is_offline else logging.WARNING, "no messages from other nodes: %s", error)
            await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311 # so that nodes do not reconnect all at once

    def _on_message(self, message: CountsMessage) -> None:
        self._last_message_at[message.node] = time.monotonic()
        # If the epochs differ, one of the nodes has yet to notice that the store lost data; it will within seconds.
        if message.node != self._id and message.epoch == self._epoch:
            self._show(message.day, message.counts, message.generation)
            self._store.add_known_counts(message.day, message.counts, message.generation)
