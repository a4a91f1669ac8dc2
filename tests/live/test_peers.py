"""Sync with a store that changes while it is read."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from zoneinfo import ZoneInfo

import msgspec
import pytest

from app.domain.buckets import Bucket
from app.domain.calendar import Calendar, Clock
from app.domain.counting import HitGroup
from app.live import peers
from app.live.day import LiveDay
from app.live.peers import CountsMessage, PeerSync
from app.metrics import Metrics
from app.stores.base import StoreLimits
from app.stores.memory import MemoryStore
from tests.support.servers import eventually

NOON = 1_795_435_200.0


class LossyStore(MemoryStore):
    """A store that can lose everything, which begins a new epoch, and that can run code after a read.

    `after_full_read` runs after a read of the whole day, `after_read` after any other one.
    """

    def __init__(self) -> None:
        super().__init__(StoreLimits(10))
        self.losses = 0
        self.after_full_read: Callable[[], None] = lambda: None
        self.after_read: Callable[[], None] = lambda: None

    def lose(self) -> None:
        self._buckets.clear()
        self.losses += 1

    async def refresh(self) -> str:
        return str(self.losses)

    async def read(self, buckets: Sequence[Bucket], members: Sequence[str] | None = None) -> list[dict[str, int]]:
        found = await super().read(buckets, members)
        (self.after_full_read if members is None else self.after_read)()
        return found

    async def publish(self, message: str) -> None:
        pass

    async def subscribe(self, timeout_seconds: float) -> AsyncIterator[str]:
        yield msgspec.json.encode(CountsMessage("another", "", 0, {})).decode()
        await asyncio.sleep(timeout_seconds)


class Scene:
    def __init__(self) -> None:
        self.now = NOON
        self.clock = Clock(Calendar(ZoneInfo("UTC")), lambda: self.now)
        self.store, self.day = LossyStore(), LiveDay(self.clock)
        self.peers = PeerSync(self.store, self.day, self.clock, Metrics())

    def hit(self, event: str, by: int) -> None:
        slot = self.clock.slot()
        (result,) = self.store.count([HitGroup(slot, {event: by})])
        self.peers.publish(slot, {event: value.count for event, value in result.counted.items()}, 0)


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(peers, "FULL_READ_BACKOFF", 0)
    scene = Scene()
    scene.hit("a", 5)
    scene.hit("b", 1)
    await scene.peers.resync()
    return scene


async def test_counts_that_the_store_lost_disappear(scene: Scene) -> None:
    scene.store.lose()
    scene.hit("a", 2)
    await scene.peers.resync()
    assert scene.day.counts() == {"a": 2}


@pytest.mark.fails_on_mutant(
    "a hit during the read counts as a loss",
    "app/live/day.py",
    "for event, count in before.items()",
    "for event, count in counts.items()",
)
async def test_a_hit_during_the_read_of_a_new_epoch_is_no_loss(scene: Scene) -> None:
    epoch = scene.day.head.epoch
    scene.store.losses += 1  # a restart that lost nothing
    scene.store.after_full_read = lambda: scene.hit("a", 1)
    await scene.peers.resync()
    assert scene.day.counts() == {"a": 6, "b": 1}
    assert scene.day.head.epoch == epoch  # so no client gets a new snapshot


@pytest.mark.fails_on_mutant(
    "yesterday is shown today", "app/live/peers.py", "if live_day.day > slot.day:", "if False:"
)
async def test_a_day_that_ends_during_its_read_is_not_shown_on_the_next_day(scene: Scene) -> None:
    def midnight() -> None:
        scene.store.after_full_read = lambda: None
        scene.now = NOON + 86_400
        scene.hit("a", 1)

    scene.store.lose()
    scene.store.count([HitGroup(scene.clock.slot(), {"a": 2})])
    scene.store.after_full_read = midnight
    await scene.peers.resync()
    assert scene.day.counts() == {"a": 1}
    await scene.peers.resync()
    assert scene.day.counts() == {"a": 1}


@pytest.mark.fails_on_mutant(
    "hits in flight count as lost", "app/live/peers.py", "shown <= stored <= self", "stored == self"
)
async def test_hits_during_the_comparison_cause_no_full_read(scene: Scene) -> None:
    def read() -> None:
        raise AssertionError

    scene.store.after_full_read, scene.store.after_read = read, lambda: scene.hit("a", 1)
    await scene.peers.resync()
    assert scene.day.counts() == {"a": 7, "b": 1}


@pytest.mark.fails_on_mutant(
    "messages before the subscription are not missed",
    "app/live/peers.py",
    "self._gap_possible, is_first = True, False",
    "is_first = False",
)
async def test_hits_before_the_subscription_are_read_from_the_store(scene: Scene) -> None:
    scene.store.shared, scene.store.after_read = True, lambda: scene.hit("a", 9)  # more than were missed
    await scene.peers.start()
    scene.store.count([HitGroup(scene.clock.slot(), {"b": 4})])  # a hit of another node
    await eventually(lambda: scene.peers.live_node_count() == 2)
    await scene.peers.resync()
    await scene.peers.close()
    assert scene.day.counts()["b"] == 5


@pytest.mark.fails_on_mutant(
    "a full read waits although a message may be lost",
    "app/live/peers.py",
    "self._full_read_not_before and not self._gap_possible",
    "self._full_read_not_before",
)
@pytest.mark.fails_on_mutant(
    "the resync waits for its job", "app/live/peers.py", "                        self._resync_needed.set()\n", ""
)
async def test_a_new_subscription_reads_the_day_at_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the day was read just before, when reads are made seldom because they take long."""
    monkeypatch.setattr(peers, "FULL_READ_BACKOFF", 1e9)
    scene.store.shared = True
    scene.store.lose()
    scene.hit("a", 5)
    await scene.peers.start()  # reads the new epoch
    scene.store.count([HitGroup(scene.clock.slot(), {"b": 4})])  # a hit of another node, whose message is lost
    await eventually(lambda: scene.day.counts().get("b") == 4)
    await scene.peers.close()


@pytest.mark.fails_on_mutant(
    "a slow network delays the next read",
    "app/live/peers.py",
    "pause = FULL_READ_BACKOFF * (time.thread_time() - began)",
    "pause = FULL_READ_BACKOFF * 0.5",
)
async def test_after_a_read_over_a_slow_network_the_day_is_soon_read_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SlowStore(LossyStore):
        async def read(self, buckets: Sequence[Bucket], members: Sequence[str] | None = None) -> list[dict[str, int]]:
            if members is None:
                await asyncio.sleep(0.5)
            return await super().read(buckets, members)

    async def shows_all_hits() -> bool:
        await scene.peers.resync()
        return scene.day.count_of("a") == 7

    monkeypatch.setattr(peers, "FULL_READ_BACKOFF", 50)
    scene.store.__class__ = SlowStore
    another_nodes_hit = [HitGroup(scene.clock.slot(), {"a": 1})]  # its message is lost
    scene.store.count(another_nodes_hit)
    await scene.peers.resync()
    scene.store.count(another_nodes_hit)
    await eventually(shows_all_hits, seconds=10)


@pytest.mark.fails_on_mutant(
    "two resyncs overlap", "app/live/peers.py", "        async with self._resync_lock:", "        if True:"
)
async def test_resyncs_do_not_overlap(scene: Scene) -> None:
    running = most = 0

    class CountingStore(LossyStore):
        async def refresh(self) -> str:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1
            return await super().refresh()

    scene.store.__class__ = CountingStore
    await asyncio.gather(*(scene.peers.resync() for _ in range(3)))
    assert most == 1
