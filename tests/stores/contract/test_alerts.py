"""Alerts on every store: nodes that check the same counts fire once for each crossing, and forget none."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from app import corrections
from app.alerts.storage import AlertStorage
from app.alerts.watcher import AlertWatcher
from app.domain.alerts import Alert, Condition, Delivery
from app.domain.calendar import Clock
from app.metrics import Metrics
from app.stores.base import CounterStore
from tests.stores.contract.support import (
    CALENDAR,
    DURABLE_STORES,
    LATER,
    NOON,
    StoreMaker,
    apply_planned,
    commit_of,
    on_every_store,
)

WATCHER = "app/alerts/watcher.py"


class Node:
    """A watcher of a store, whose clock is at noon until the test sets it."""

    def __init__(self, store: CounterStore) -> None:
        self.at = NOON.minute + 0.0
        self.fired = list[Alert]()
        self.storage = AlertStorage(store.records)
        clock = Clock(CALENDAR, lambda: self.at)
        self.watcher = AlertWatcher(store, clock, Metrics(), self.fired.append)

    async def add(self, name: str = "1", event: str = "a", **when: object) -> None:
        condition = msgspec.convert(when, Condition)
        alert = Alert(name, event, condition, "https://example.com", "json", "", NOON.minute, 0)
        await self.storage.add(await self.watcher.armed(alert))

    async def deliveries(self, name: str = "1") -> list[Delivery]:
        return [delivery for delivery, _ in await self.storage.deliveries(name)]


@pytest.fixture
async def nodes(store: CounterStore) -> AsyncIterator[list[Node]]:
    return [Node(store) for _ in range(3)]


@on_every_store(
    memory=pytest.mark.fails_on_mutant(
        "each node fires", "app/alerts/storage.py", "before.text, _encode(after))]", "before.text, before.text)]"
    )
)
async def test_nodes_that_check_at_the_same_time_fire_once_for_each_crossing(
    store: CounterStore, nodes: list[Node]
) -> None:
    await nodes[0].add(every=10)
    await nodes[0].add("2", total=25)
    for i in range(10):
        await store.apply("s", i, i + 1, commit_of({"a": 7, "b": 100}))
        await asyncio.gather(*(node.watcher.check_all() for node in nodes))
    assert [delivery.threshold for delivery in await nodes[0].deliveries()] == [10, 20, 30, 40, 50, 60, 70]
    assert [delivery.threshold for delivery in await nodes[0].deliveries("2")] == [25]
    assert sum(len(node.fired) for node in nodes) == 8


@on_every_store(DURABLE_STORES)
async def test_a_crossing_that_no_node_has_noticed_fires_after_a_restart(make_store: StoreMaker) -> None:
    store = make_store()
    await store.open()
    await Node(store).add(total=3)
    await Node(store).add("2", count=3)
    await store.apply("s", 0, 1, commit_of({"a": 5}))
    await store.close()
    store = make_store()
    await store.open()
    node = Node(store)
    node.at = LATER.minute
    for _ in range(2):
        await node.watcher.check_all()
        found = [(d.threshold, d.value, d.date) for name in "12" for d in await node.deliveries(name)]
        assert found == [(3, 5, ""), (3, 5, NOON.date)]
    await store.close()


async def test_hits_that_were_spooled_yesterday_fire_when_they_are_replayed(
    store: CounterStore, nodes: list[Node]
) -> None:
    await nodes[0].add(count=3)
    nodes[1].at = LATER.minute
    await nodes[1].watcher.check_all()
    await store.apply("spooled", 0, 1, commit_of({"a": 3}, slot=NOON))
    await nodes[1].watcher.check_all()
    assert [delivery.date for delivery in await nodes[1].deliveries()] == [NOON.date]


async def test_corrections_resets_and_deletions_arm_alerts_again(store: CounterStore, nodes: list[Node]) -> None:
    node = nodes[0]
    await node.add("count", count=3)
    await node.add("total", total=3)
    await store.apply("s", 0, 1, commit_of({"a": 5}))
    await apply_planned(store, corrections.reset(store, NOON, NOON.minute), "reset")
    await node.watcher.check_all()
    # The crossing before the reset fires although the count is 0 again.
    assert [len(await node.deliveries(name)) for name in ("count", "total")] == [1, 1]
    await store.apply("s", 1, 2, commit_of({"a": 3}))
    await node.watcher.check_all()
    assert [len(await node.deliveries(name)) for name in ("count", "total")] == [2, 1]
    await apply_planned(store, corrections.correct(store, NOON, NOON.minute, "a", 2, 2, 1000), "correct")
    await nodes[1].watcher.check_all()
    await store.apply("s", 2, 3, commit_of({"a": 1}))
    await node.watcher.check_all()
    assert [len(await node.deliveries(name)) for name in ("count", "total")] == [3, 2]
    await apply_planned(store, corrections.delete(store, NOON, NOON.minute, "a"), "delete")
    await store.apply("s", 3, 4, commit_of({"a": 3}))
    await node.watcher.check_all()
    deliveries = [delivery for name in ("count", "total") for delivery in await node.deliveries(name)]
    assert len({delivery.id for delivery in deliveries}) == len(deliveries) == 7


async def test_a_change_of_another_event_changes_no_alert(store: CounterStore, nodes: list[Node]) -> None:
    await nodes[0].add(total=3)
    (before,) = await nodes[0].storage.alerts()
    await apply_planned(store, corrections.correct(store, NOON, NOON.minute, "b", 2, 2, 1000))
    await nodes[0].watcher.check_all()
    assert await nodes[0].storage.alerts() == [before]


@pytest.mark.fails_on_mutant(
    "a full alert forgets crossings", WATCHER, "advance(before, observed, max(0, room))", "(changed, crossings[:room])"
)
async def test_crossings_wait_while_an_alert_has_its_most_deliveries(
    store: CounterStore, nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = nodes[0]
    monkeypatch.setattr("app.alerts.watcher.DELIVERIES_MAX", 5)
    await node.add(every=1)
    await store.apply("s", 0, 1, commit_of({"a": 8}))
    for _ in range(2):
        await node.watcher.check_all()
        assert [delivery.threshold for delivery in await node.deliveries()] == [1, 2, 3, 4, 5]
    for delivery in await node.storage.deliveries("1"):
        await node.storage.delete_delivery("1", delivery)
    await node.watcher.check_all()
    assert [delivery.threshold for delivery in await node.deliveries()] == [6, 7, 8]


@pytest.mark.parametrize("window", ["5m", "1h", "1d"])
async def test_a_window_is_compared_with_the_hits_in_it(store: CounterStore, nodes: list[Node], window: str) -> None:
    node = nodes[0]
    minutes = {"5m": 5, "1h": 60, "1d": 24 * 60}[window]
    await store.apply("s", 0, 1, commit_of({"a": 2}))
    await node.add("above", above=3, window=window)
    await node.add("below", below=2, window=window)
    await store.apply("s", 1, 2, commit_of({"a": 2}))
    await node.watcher.check_all()
    (above,) = await node.deliveries("above")
    assert above.value == 4
    node.at += minutes * 60 - 1
    await node.watcher.check_all()
    assert await node.deliveries("below") == []
    node.at += 3601  # the running hour is over
    await node.watcher.check_all()
    (below,) = await node.deliveries("below")
    assert below.value == 0
