"""Nodes on one store show the same numbers: each tells the others what it counted, and looks what it missed.

Counts are absolute, so that news which come twice, late or out of order do no harm: the larger number is
the newer. What got lost is found in the store within seconds. Only where the store itself has lost
something, which its epoch says, do its smaller numbers win.
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

from app.events import EVERYTHING, Clock, Moment
from app.feed import Feed
from app.metrics import Metrics
from app.stores.base import CounterStore, StoreError

TELL_SECONDS = 0.1  # between two news of a node, so that many commits cost the others little
BEAT_SECONDS = 1.0  # after which a node tells that it is there
SILENCE_SECONDS = 3.0  # in which a node hears at least itself, or else its connection is dead
REST = 50  # times as long as reading a whole day took, a node waits to do so again
NEWS_EVENTS = 2000  # in one message: Redis cuts a listener for which megabytes wait

log = logging.getLogger("tally.nodes")


class News(NamedTuple):
    """What a node counted: of the day that begins at this UTC second, as the store of this epoch has it."""

    node: str
    epoch: str
    day: int
    counts: dict[str, int]


class Nodes:
    def __init__(self, store: CounterStore, feed: Feed, clock: Clock, metrics: Metrics) -> None:
        self._store = store
        self._feed = feed
        self._clock = clock
        self._id = secrets.token_hex(4)
        self._epoch = ""
        self._day = 0
        self._rested = (0, 0.0)  # until when a day is not read again as a whole
        self._untold: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._heard: dict[str, float] = {}  # when from whom
        self._tasks: list[asyncio.Task[None]] = []
        metrics.watch("tally_nodes", "Nodes heard of lately, this one included.", self.count)

    async def start(self) -> None:
        with contextlib.suppress(StoreError):  # it has just gone away, and is looked for
            await self.resync()
        if self._store.shared:
            self._heard[self._id] = time.monotonic()
            self._tasks = [asyncio.create_task(self._speak()), asyncio.create_task(self._listen())]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def publish(self, moment: Moment, counts: dict[str, int]) -> None:
        """Show what a commit here made of the counts, to this node's pages and to the other nodes."""
        self._feed.publish(moment, counts)
        if self._store.shared:
            if moment.day != self._day:
                self._day, self._untold = moment.day, {}
            self._untold |= counts
            self._changed.set()

    async def resync(self) -> None:
        """Look whether the store has more than is shown, or less, which its epoch must explain."""
        moment, feed = self._clock.moment(), self._feed
        epoch, before = await self._store.epoch(), feed.shown() if feed.day == moment.day else {}
        if epoch == self._epoch and feed.day == moment.day:
            (everything,) = await self._store.read([("day", moment.day)], [EVERYTHING])
            if everything.get(EVERYTHING, 0) == sum(before.values()) or (moment.day, time.monotonic()) < self._rested:
                return
        begun = time.monotonic()
        (counts,) = await self._store.read([("day", moment.day)])
        counts.pop(EVERYTHING, None)
        self._rested = moment.day, time.monotonic() + REST * (time.monotonic() - begun)
        if feed.day > moment.day:
            return  # it has ended meanwhile
        if epoch == self._epoch:
            feed.publish(moment, counts)
        else:
            self._epoch = epoch
            feed.replace(moment, counts, before)

    def count(self) -> int:
        """How many nodes were heard of lately, this one included."""
        since = time.monotonic() - SILENCE_SECONDS
        self._heard = {node: at for node, at in self._heard.items() if at > since}
        return len(self._heard) if self._store.shared else 1

    def reasons(self) -> list[str]:
        """What is wrong with hearing the other nodes, beside what the store says of itself."""
        heard = self.count() or self._store.condition().stale_seconds is not None
        return [] if heard else ["nothing is heard from any node, not even from this one"]

    async def _speak(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._changed.wait()
            self._changed.clear()
            try:
                for news in self._news():
                    await self._store.tell(msgspec.json.encode(news).decode())
            except Exception as error:  # noqa: BLE001 # the next ones are told all the same
                log.log(logging.DEBUG if isinstance(error, StoreError) else logging.ERROR, "news got lost: %r", error)
            await asyncio.sleep(TELL_SECONDS)

    def _news(self) -> Iterator[News]:
        counts, self._untold = list(self._untold.items()), {}
        for i in range(0, max(1, len(counts)), NEWS_EVENTS):
            yield News(self._id, self._epoch, self._day, dict(counts[i : i + NEWS_EVENTS]))

    async def _listen(self) -> None:
        while True:
            try:
                async for text in self._store.hear(SILENCE_SECONDS):
                    with contextlib.suppress(msgspec.DecodeError):  # of another version, perhaps
                        self._take(msgspec.json.decode(text, type=News))
            except Exception as error:  # noqa: BLE001 # whatever it was, the next news are heard
                away = self._store.condition().stale_seconds is not None  # which was said already
                log.log(logging.DEBUG if away else logging.WARNING, "news of other nodes do not come: %s", error)
            await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311 # nodes shall not knock together

    def _take(self, news: News) -> None:
        self._heard[news.node] = time.monotonic()
        # In another epoch one of the two does not know yet that the store went back; it will, within seconds.
        if news.node != self._id and news.epoch == self._epoch:
            self._feed.merge(news.day, news.counts)
