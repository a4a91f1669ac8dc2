"""Nodes on one store show the same numbers: each tells the others what it counted, and looks what it missed.

Counts are absolute, so that news which come twice, late or out of order do no harm: the larger number is
the newer. What got lost is found in the store within seconds. Only where the store itself has lost
something, which its epoch says, or where an administrator changed the counts, which their generation
says, do its smaller numbers win.
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

TELL_SECONDS = 0.1  # between two news of a node, so that many commits cost the others little
BEAT_SECONDS = 1.0  # after which a node tells that it is there
SILENCE_SECONDS = 3.0  # in which a node hears at least itself, or else its connection is dead
REST = 50  # times as long as reading a whole day took, a node waits to do so again
NEWS_EVENTS = 2000  # in one message: Redis cuts a listener for which megabytes wait

log = logging.getLogger("tally.nodes")


class CountsMessage(NamedTuple):
    """What a node counted: of the day that begins at this UTC second, as the store of this epoch has it."""

    node: str
    epoch: str
    day: int
    counts: dict[str, int]
    generation: int = 0


class PeerSync:
    def __init__(self, store: CounterStore, feed: LiveDay, clock: Clock, metrics: Metrics) -> None:
        self._store = store
        self._feed = feed
        self._clock = clock
        self._id = secrets.token_hex(4)
        self._epoch = ""
        self._counted = (0, 0)  # the day and generation of what is untold
        self._early = (0, 0, dict[str, int]())  # the same of what was counted in a generation that is not shown yet
        self._behind = asyncio.Event()  # there is one
        self._unsure = False  # whether something was told that was not heard
        self._rested = (0, 0.0)  # until when a day is not read again as a whole
        self._untold: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._heard: dict[str, float] = {}  # when from whom
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False
        metrics.watch("tally_nodes", "Nodes heard of lately, this one included.", self.count)

    async def start(self) -> None:
        with contextlib.suppress(StoreError):  # it has just gone away, and is looked for
            await self.resync()
        self._tasks = [asyncio.create_task(self._catch_up())]
        if self._store.shared:
            self._heard[self._id] = time.monotonic()
            self._tasks += [asyncio.create_task(self._speak()), asyncio.create_task(self._listen())]

    async def close(self) -> None:
        self._closing = True  # redis-py may take a cancellation for a failure of its own
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def publish(self, slot: TimeSlot, counts: dict[str, int], generation: int) -> None:
        """Show what a commit here made of the counts, to this node's pages and to the other nodes."""
        self._feed.turn(slot)
        self._show(slot.day, counts, generation)
        if self._store.shared:
            if (slot.day, generation) != self._counted:
                self._counted, self._untold = (slot.day, generation), {}
            self._untold |= counts
            self._changed.set()

    def _show(self, day: int, counts: dict[str, int], generation: int) -> None:
        """Show these counts, if they are of the generation that is shown. For a newer one all are looked up first."""
        feed = self._feed
        if day == feed.day and generation > feed.generation:
            if self._early[:2] != (day, generation):
                self._early = (day, generation, {})
            self._early[2].update(counts)
            self._behind.set()
        elif generation == feed.generation:
            feed.merge(day, counts)

    async def resync(self) -> None:
        """Look whether the store has more than is shown, or less, which its epoch or its generation must explain."""
        slot, feed, store = self._clock.slot(), self._feed, self._store
        epoch = await store.refresh()
        (generations,) = await store.read([Bucket("day", slot.day, GENERATION)], [ALL_EVENTS])
        generation = generations.get(ALL_EVENTS, 0)
        same = (epoch, slot.day, generation) == (self._epoch, feed.day, feed.generation)
        if same and ((slot.day, time.monotonic()) < self._rested or await self._all_is_shown(slot)):
            return
        self._unsure = False
        begun, before = time.monotonic(), feed.shown() if feed.day == slot.day else {}
        counts = dict(await store.counts(slot.day))
        counts.pop(ALL_EVENTS, None)
        self._rested = slot.day, time.monotonic() + REST * (time.monotonic() - begun)
        if feed.day > slot.day:
            return  # it has ended meanwhile
        feed.turn(slot)
        if (epoch, generation) == (self._epoch, feed.generation):
            feed.merge(slot.day, counts)
        else:
            self._epoch = epoch
            feed.replace(slot, counts, before, generation)
            if self._early[:2] == (slot.day, generation):
                feed.merge(slot.day, self._early[2])

    async def _all_is_shown(self, slot: TimeSlot) -> bool:
        """Whether the store's sum is one that what is shown had while it was asked, and no news can have got lost."""
        shown = self._feed.hits()
        everything = (await self._store.counts(slot.day, [ALL_EVENTS])).get(ALL_EVENTS, 0)
        if everything > self._feed.hits():
            await asyncio.sleep(2 * TELL_SECONDS)  # for what is under way
        return shown <= everything <= self._feed.hits() and not self._unsure

    async def _catch_up(self) -> None:
        while not self._closing:
            await self._behind.wait()
            self._behind.clear()
            try:
                await self.resync()
            except Exception as error:  # noqa: BLE001 # it is looked up once more
                log.log(logging.DEBUG if isinstance(error, StoreError) else logging.ERROR, "still behind: %r", error)
                await asyncio.sleep(TELL_SECONDS)
                self._behind.set()

    def count(self) -> int:
        """How many nodes were heard of lately, this one included."""
        since = time.monotonic() - SILENCE_SECONDS
        self._heard = {node: at for node, at in self._heard.items() if at > since}
        return len(self._heard) if self._store.shared else 1

    def reasons(self) -> list[str]:
        """What is wrong with hearing the other nodes, beside what the store says of itself."""
        heard = self.count() or self._store.status().stale_seconds is not None
        return [] if heard else ["nothing is heard from any node, not even from this one"]

    async def _speak(self) -> None:
        while not self._closing:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._changed.wait()
            self._changed.clear()
            try:
                for news in self._news():
                    await self._store.publish(msgspec.json.encode(news).decode())
            except Exception as error:  # noqa: BLE001 # the next ones are told all the same
                log.log(logging.DEBUG if isinstance(error, StoreError) else logging.ERROR, "news got lost: %r", error)
            await asyncio.sleep(TELL_SECONDS)

    def _news(self) -> Iterator[CountsMessage]:
        counts, self._untold = list(self._untold.items()), {}
        for i in range(0, max(1, len(counts)), NEWS_EVENTS):
            day, generation = self._counted
            yield CountsMessage(self._id, self._epoch, day, dict(counts[i : i + NEWS_EVENTS]), generation)

    async def _listen(self) -> None:
        while not self._closing:
            try:
                deaf = True
                async for text in self._store.subscribe(SILENCE_SECONDS):
                    self._unsure, deaf = self._unsure or deaf, False
                    with contextlib.suppress(msgspec.DecodeError):  # of another version, perhaps
                        self._take(msgspec.json.decode(text, type=CountsMessage))
            except Exception as error:  # noqa: BLE001 # whatever it was, the next news are heard
                away = self._store.status().stale_seconds is not None  # which was said already
                log.log(logging.DEBUG if away else logging.WARNING, "news of other nodes do not come: %s", error)
            await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311 # nodes shall not knock together

    def _take(self, news: CountsMessage) -> None:
        self._heard[news.node] = time.monotonic()
        # In another epoch one of the two does not know yet that the store went back; it will, within seconds.
        if news.node != self._id and news.epoch == self._epoch:
            self._show(news.day, news.counts, news.generation)
