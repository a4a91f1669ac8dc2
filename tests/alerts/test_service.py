"""Deliveries: sent once, retried with the same id for a day, by any node, and never in the way of hits."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from app.alerts import sender
from app.alerts.service import AlertService
from app.domain.alerts import Alert, AlertFields, Condition
from app.domain.calendar import Clock
from app.domain.counting import HitGroup
from app.group_commit import GroupCommitter
from app.metrics import Metrics
from app.stores.base import CounterStore, StoreLimits
from app.stores.sqlite import SqliteStore
from tests.stores.contract.support import CALENDAR
from tests.support.receiver import Receiver, receiving
from tests.support.servers import SettableClock, eventually

SENDER = "app/alerts/sender.py"


class Tally:
    """A SQLite store with nodes that watch it, all on one clock."""

    def __init__(self, directory: Path, receiver: Receiver) -> None:
        self.receiver, self.now = receiver, SettableClock()
        self.now.go_to("2026-11-23T12:00:00+00:00")
        self.clock = Clock(CALENDAR, self.now)
        self.store: CounterStore = SqliteStore(directory / "tally.db", StoreLimits(1000))
        self.offset = 0
        self.nodes: list[AlertService] = []

    def add_node(self) -> AlertService:
        service = AlertService(self.store, self.clock, Metrics(), allow_private=True)
        self.nodes.append(service)
        return service

    async def add_alert(self, **when: object) -> Alert:
        fields = AlertFields("order", msgspec.convert(when, Condition), self.receiver.url)
        return await self.nodes[0].add(fields)

    async def count(self, by: int) -> None:
        self.offset += 1
        group = HitGroup(self.clock.slot(), {"order": by})
        await self.store.apply("s", self.offset - 1, self.offset, [group])

    async def check(self, seconds_later: float = 0) -> None:
        """Check alerts on all nodes at the same time, and wait until nothing is being sent."""
        self.now.shift += seconds_later
        await asyncio.gather(*(node.check_alerts() for node in self.nodes))
        await eventually(lambda: not any(node._sender._tasks for node in self.nodes))


@pytest.fixture
async def tally(tmp_path: Path) -> AsyncIterator[Tally]:
    async with receiving() as receiver:
        tally = Tally(tmp_path, receiver)
        await tally.store.open()
        for _ in range(3):
            tally.add_node()
        yield tally
        for node in tally.nodes:
            await node.close()
        await tally.store.close()


@pytest.mark.fails_on_mutant(
    "every node sends",
    SENDER,
    "if claimed is None:\n                return",
    "if claimed is None:\n                claimed = delivery",
)
@pytest.mark.fails_on_mutant(
    "an accepted delivery is sent again", SENDER, "await self._storage.delete_delivery(alert_id, claimed)", "pass"
)
async def test_each_crossing_is_sent_once(tally: Tally) -> None:
    await tally.add_alert(every=10)
    await tally.count(105)
    await tally.check()
    await tally.check(sender.LEASE_SECONDS)
    assert len(tally.receiver.ids) == len(set(tally.receiver.ids)) == 10


@pytest.mark.fails_on_mutant("a failure is forgotten", SENDER, "if not error:", "if True:")
@pytest.mark.fails_on_mutant("no pause", SENDER, "next_at=now + pause", "next_at=now")
async def test_a_delivery_is_retried_with_the_same_id_after_longer_and_longer_pauses(tally: Tally) -> None:
    await tally.add_alert(total=10)
    tally.receiver.status = 500
    await tally.count(10)
    await tally.check()
    for requests, pause in enumerate((5, 15, 45, 135), 1):
        await tally.check(pause - 1)
        assert len(tally.receiver.requests) == requests
        await tally.check(1)
        assert len(tally.receiver.requests) == requests + 1
    tally.receiver.status = 204
    await tally.check(3600)
    await tally.check(86_400)
    assert (len(tally.receiver.ids), len(set(tally.receiver.ids))) == (6, 1)


async def test_a_delivery_that_fails_for_a_day_is_listed_and_no_longer_sent(
    tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "FAILED_MAX", 2)
    alert = await tally.add_alert(every=10)
    tally.receiver.status = 410
    for _ in range(3):
        await tally.count(10)
        await tally.check(1)
    await tally.check(86_400)
    await tally.check(86_400)
    requests = len(tally.receiver.requests)
    await tally.check(86_400)
    found = [(d.threshold, d.failed, d.error) for d in await tally.nodes[0].deliveries(alert.id)]
    assert found == [(20, True, "the response was 410"), (30, True, "the response was 410")]
    assert (len(tally.receiver.requests), len(set(tally.receiver.ids))) == (requests, 3)


@pytest.mark.fails_on_mutant(
    "a dead node keeps its deliveries", SENDER, "next_at=now + LEASE_SECONDS", "next_at=now * 2"
)
async def test_another_node_sends_what_a_dead_node_had_begun_to_send(tally: Tally) -> None:
    await tally.add_alert(total=10)
    tally.receiver.silent = True
    await tally.count(10)
    await tally.nodes[0].check_alerts()
    await eventually(lambda: tally.receiver.requests)
    await tally.nodes.pop(0).close()
    tally.receiver.silent = False
    await tally.check(sender.LEASE_SECONDS - 1)
    assert len(tally.receiver.ids) == 1
    await tally.check(1)
    assert (len(tally.receiver.ids), len(set(tally.receiver.ids))) == (2, 1)


async def test_an_alert_that_is_deleted_or_changed_while_it_fails(tally: Tally) -> None:
    alert = await tally.add_alert(total=10)
    tally.receiver.status = 500
    await tally.count(10)
    await tally.check()
    async with receiving() as other:
        await tally.nodes[1].replace(alert.id, AlertFields("order", alert.when, other.url))
        await tally.check(5)
        assert other.ids == tally.receiver.ids
    await tally.nodes[1].replace(alert.id, AlertFields("order", Condition(total=20), tally.receiver.url))
    await tally.count(10)
    await tally.check()
    assert len(tally.receiver.ids) == 2
    assert await tally.nodes[0].delete(alert.id)
    await tally.check(3600)
    assert (len(tally.receiver.ids), await tally.nodes[0].deliveries(alert.id)) == (2, [])


@pytest.mark.fails_on_mutant(
    "sending blocks hits",
    "app/alerts/sender.py",
    "alert = self._alerts[alert_id]\n",
    "alert = self._alerts[alert_id]\n            __import__('time').sleep(6)\n",
)
async def test_hits_do_not_wait_for_a_receiver_that_does_not_answer(tally: Tally) -> None:
    """The hits that follow 100 crossings are counted while all of their requests hang."""
    node = tally.nodes[0]
    node.start()
    await tally.add_alert(every=1)
    tally.receiver.silent = True
    committer = GroupCommitter(tally.store, tally.clock, lambda _, counts, __: node.watcher.notice(counts), Metrics())
    committer.start()
    await committer.submit({"order": 100})
    await eventually(lambda: len(tally.receiver.requests) == sender.CONCURRENT_MAX)
    for _ in range(50):
        await committer.submit({"order": 1})
    assert len(tally.receiver.requests) == sender.CONCURRENT_MAX
    await committer.close()


@pytest.mark.fails_on_mutant(
    "events without alerts are checked",
    "app/alerts/watcher.py",
    "if self._watched and (counted := self._watched.keys() & counts.keys()):",
    "if counted := counts.keys():",
)
async def test_hits_on_events_without_alerts_cause_no_check(tally: Tally) -> None:
    node = tally.nodes[0]
    await tally.add_alert(every=1)
    node.watcher.notice({"signup": 1})
    assert not node.watcher._noticed.is_set()
    node.watcher.notice({"signup": 1, "order": 1})
    assert node.watcher._noticed.is_set()
