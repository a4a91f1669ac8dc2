"""Dashboards on real sockets: snapshots, changes, resets."""

import asyncio
import contextlib
from datetime import UTC, datetime

import pytest

from tests.live.clients import dashboard
from tests.support.servers import RunningApp, SettableClock, eventually


@pytest.mark.fails_on_mutant(
    "two messages have the same number",
    "app/live/day.py",
    "seq=begin.seq + math.ceil(len(changed) / MESSAGE_NAMES_MAX)",
    "seq=begin.seq",
)
@pytest.mark.parametrize("transport", ["polling", "websocket"])
async def test_a_dashboard_gets_a_snapshot_and_then_every_change(tally: RunningApp, transport: str) -> None:
    async with tally.client() as client:
        await client.post("/events", json={"a": 3, "b": 1})
        async with dashboard(tally, transport) as page:
            await eventually(lambda: page.counts == {"a": 3, "b": 1} and "state" in page.events())
            first = page.received[0][1]
            assert (first["day"], first["generation"]) == ("2026-05-01", 0)
            assert first["resetsAt"] == "2026-05-02T00:00:00+00:00"
            assert (first["offset"], first["size"]) == (0, 2)
            await client.post("/event/c")
            await client.post("/event/a")
            await eventually(lambda: page.counts == {"a": 4, "b": 1, "c": 1})
            assert page.events() == ["snapshot", "state", "changes", "changes"]
            assert page.received[1][1] == {"status": "ok", "reasons": []}
            await page.client.emit("resync", namespace="/live")
            await eventually(lambda: page.events().count("snapshot") == 2)


async def test_a_long_snapshot_comes_in_several_messages(tally: RunningApp) -> None:
    async with tally.client() as client:
        await client.post("/events", json={f"name {i}": i + 1 for i in range(2500)})
    async with dashboard(tally) as page:
        await eventually(lambda: len(page.counts) == 2500)
        assert [len(data["names"]) for event, data in page.received if event == "snapshot"] == [1000, 1000, 500]
        assert page.counts["name 2499"] == 2500


async def test_a_new_day_is_a_reset_and_a_new_snapshot(tally: RunningApp, clock: SettableClock) -> None:
    async with dashboard(tally, "polling", "websocket") as page, tally.client() as client:
        await client.post("/event/a")
        clock.go_to("2026-05-02T00:00:01+00:00")
        await client.post("/event/b")  # the hit begins the day: no job has run
        await eventually(lambda: page.counts == {"b": 1})
        assert page.events()[-3:] == ["reset", "snapshot", "changes"]
        assert page.names == ["b"]
        tally.app.state.jobs.get_job("close_day").modify(next_run_time=datetime.now(UTC))
        await client.post("/event/b")
        await eventually(lambda: page.counts == {"b": 2})
        assert page.events().count("reset") == 1


async def test_concurrent_hits_end_at_the_same_count_on_every_dashboard(tally: RunningApp) -> None:
    async with contextlib.AsyncExitStack() as stack:
        pages = [await stack.enter_async_context(dashboard(tally)) for _ in range(5)]
        client = await stack.enter_async_context(tally.client())
        responses = await asyncio.gather(*(client.post(f"/event/e{i % 3}") for i in range(300)))
        counts = sorted((response.json()["eventName"], response.json()["count"]) for response in responses)
        assert counts == [(f"e{i}", n) for i in range(3) for n in range(1, 101)]
        for page in pages:
            await eventually(lambda p=page: p.counts == {"e0": 100, "e1": 100, "e2": 100})


async def test_a_large_commit_comes_in_messages_of_a_bounded_size(tally: RunningApp) -> None:
    async with dashboard(tally) as page, tally.client() as client:
        await client.post("/events", json={f"name {i}": i + 1 for i in range(1500)})
        await eventually(lambda: len(page.counts) == 1500)
        await client.post("/events", json={f"name {i}": 1 for i in range(700, 2600)})
        await eventually(lambda: len(page.counts) == 2600)
        assert page.counts["name 699"] == 700
        assert page.counts["name 700"] == 702
        assert page.counts["name 2599"] == 1
        assert max(len(data["changes"]) for event, data in page.received if event == "changes") == 1000


async def test_one_connection_may_join_both_namespaces(tally: RunningApp) -> None:
    updates: list[dict] = []
    async with dashboard(tally, namespaces=("/", "/live")) as page, tally.client() as client:
        page.client.on("update", updates.append)
        await eventually(lambda: page.events()[:1] == ["snapshot"])
        await client.post("/event/a")
        await eventually(lambda: updates == [{"eventName": "a", "count": 1}] and page.counts == {"a": 1})
