"""What a node makes of a store that changes while it is read."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from zoneinfo import ZoneInfo

import msgspec
import pytest

from app.domain.buckets import Bucket
from app.domain.calendar import Calendar, Clock
from app.domain.counting import HitGroup
from app.live import peers as nodes
from app.live.day import LiveDay
from app.live.peers import CountsMessage, PeerSync
from app.metrics import Metrics
from app.stores.base import StoreLimits
from app.stores.memory import MemoryStore
from tests.support.servers import eventually

NOON = 1_795_435_200.0


class Lossy(MemoryStore):
    """A store of another epoch each time it has lost something, in which something may happen after a day is read."""

    def __init__(self) -> None:
        super().__init__(StoreLimits(10))
        self.lives = 0
        self.meanwhile: Callable[[], None] = lambda: None
        self.asked: Callable[[], None] = lambda: None

    def lose(self) -> None:
        self._buckets.clear()
        self.lives += 1

    async def epoch(self) -> str:
        return str(self.lives)

    async def read(self, buckets: Sequence[Bucket], events: Sequence[str] | None = None) -> list[dict[str, int]]:
        found = await super().read(buckets, events)
        (self.meanwhile if events is None else self.asked)()
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
        self.store, self.feed = Lossy(), LiveDay(self.clock)
        self.nodes = PeerSync(self.store, self.feed, self.clock, Metrics())

    def hit(self, event: str, by: int) -> None:
        slot = self.clock.slot()
        (result,) = self.store.count([HitGroup(slot, {event: by})])
        self.nodes.publish(slot, {event: value.count for event, value in result.counted.items()}, 0)


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(nodes, "REST", 0)
    scene = Scene()
    scene.hit("a", 5)
    scene.hit("b", 1)
    await scene.nodes.resync()
    return scene


async def test_what_the_store_has_lost_is_shown_no_longer(scene: Scene) -> None:
    scene.store.lose()
    scene.hit("a", 2)
    await scene.nodes.resync()
    assert scene.feed.shown() == {"a": 2}


@pytest.mark.catches(
    "a hit during the read is taken for a loss",
    "app/live/day.py",
    "for event, known in before.items()",
    "for event, known in shown.items()",
)
async def test_a_hit_while_a_new_epoch_is_read_is_no_loss(scene: Scene) -> None:
    epoch = scene.feed.told.epoch
    scene.store.lives += 1  # a restart that has lost nothing
    scene.store.meanwhile = lambda: scene.hit("a", 1)
    await scene.nodes.resync()
    assert scene.feed.shown() == {"a": 6, "b": 1}
    assert scene.feed.told.epoch == epoch  # no page has to begin anew


@pytest.mark.catches("yesterday is shown today", "app/live/peers.py", "if feed.day > slot.day:", "if False:")
async def test_a_day_that_ends_while_it_is_read_is_not_shown_on_the_next(scene: Scene) -> None:
    def midnight() -> None:
        scene.store.meanwhile = lambda: None
        scene.now = NOON + 86_400
        scene.hit("a", 1)

    scene.store.lose()
    scene.store.count([HitGroup(scene.clock.slot(), {"a": 2})])
    scene.store.meanwhile = midnight
    await scene.nodes.resync()
    assert scene.feed.shown() == {"a": 1}
    await scene.nodes.resync()
    assert scene.feed.shown() == {"a": 1}


@pytest.mark.catches(
    "hits under way are taken for lost ones", "app/live/peers.py", "shown <= everything <= self", "everything == self"
)
async def test_a_day_is_not_read_again_because_of_hits_that_come_by(scene: Scene) -> None:
    def read() -> None:
        raise AssertionError

    scene.store.meanwhile, scene.store.asked = read, lambda: scene.hit("a", 1)
    await scene.nodes.resync()
    assert scene.feed.shown() == {"a": 7, "b": 1}


@pytest.mark.catches("what was not heard", "app/live/peers.py", "self._unsure or deaf", "self._unsure")
async def test_what_was_told_before_this_node_could_hear_is_read(scene: Scene) -> None:
    scene.store.shared, scene.store.asked = True, lambda: scene.hit("a", 9)  # which is more than was missed
    await scene.nodes.start()
    scene.store.count([HitGroup(scene.clock.slot(), {"b": 4})])  # by another node
    await eventually(lambda: scene.nodes.count() == 2)
    await scene.nodes.resync()
    await scene.nodes.close()
    assert scene.feed.shown()["b"] == 5
