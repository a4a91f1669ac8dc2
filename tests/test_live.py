"""Live numbers on real sockets: both namespaces, both transports, bounded queues."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import socketio
from conftest import ChosenClock, RedisServer, Served, eventually, serving, settings_for

from app import live


@pytest.fixture
async def tally(tmp_path: Path, redis_server: RedisServer, clock: ChosenClock) -> AsyncIterator[Served]:
    clock.go_to("2026-05-01T12:00:00+00:00")
    chosen = settings_for("memory", tmp_path, redis_server, write_limit="100000/second")
    async with serving(chosen, clock) as served:
        yield served


class Dashboard:
    """What a page does: keep the names and the larger counts, notice a gap, ask again."""

    def __init__(self) -> None:
        self.client = socketio.AsyncClient(reconnection=False)
        self.names: list[str] = []
        self.counts: dict[str, int] = {}
        self.seq = -1
        self.heard: list[tuple[str, dict]] = []
        for event in ("snapshot", "changes", "reset", "state"):
            self.client.on(event, self._hear(event), namespace="/live")

    def _hear(self, event: str):
        def hear(data: dict) -> None:
            self.heard.append((event, data))
            if event == "snapshot":
                if data["offset"] == 0:
                    self.names, self.counts = [], {}
                self.names += data["names"]
                self.counts |= dict(zip(data["names"], data["counts"], strict=True))
                self.seq = data["seq"]
            elif event == "changes":
                assert data["seq"] == self.seq + 1
                self.seq += 1
                self.names += data["names"]
                for index, count in data["changes"]:
                    assert count > self.counts.get(self.names[index], 0)
                    self.counts[self.names[index]] = count

        return hear

    def events(self) -> list[str]:
        return [event for event, _ in self.heard]


async def leave(client: socketio.AsyncClient) -> None:
    """Go without waiting for the last long poll, which the server answers only with its next ping."""
    session, reading = client.eio.http, client.eio.read_loop_task
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await client.eio.disconnect(abort=True)
    await session.close()


@pytest.mark.parametrize("transport", ["polling", "websocket"])
async def test_a_dashboard_gets_a_snapshot_and_then_every_change(tally: Served, transport: str) -> None:
    async with tally.client() as client:
        await client.post("/events", json={"a": 3, "b": 1})
        page = Dashboard()
        await page.client.connect(tally.url, namespaces=["/live"], transports=[transport])
        await eventually(lambda: page.counts == {"a": 3, "b": 1} and "state" in page.events())
        first = page.heard[0][1]
        assert (first["day"], first["generation"], first["resetsAt"]) == ("2026-05-01", 0, "2026-05-02T00:00:00+00:00")
        assert (first["offset"], first["size"]) == (0, 2)
        await client.post("/event/c")
        await client.post("/event/a")
        await eventually(lambda: page.counts == {"a": 4, "b": 1, "c": 1})
        assert page.events() == ["snapshot", "state", "changes", "changes"]
        assert page.heard[1][1] == {"status": "ok", "reasons": []}
        await page.client.emit("resync", namespace="/live")
        await eventually(lambda: page.events().count("snapshot") == 2)
        await leave(page.client)


async def test_a_long_snapshot_comes_in_pages(tally: Served) -> None:
    async with tally.client() as client:
        await client.post("/events", json={f"name {i}": i + 1 for i in range(2500)})
    page = Dashboard()
    await page.client.connect(tally.url, namespaces=["/live"], transports=["websocket"])
    await eventually(lambda: len(page.counts) == 2500)
    assert [len(data["names"]) for event, data in page.heard if event == "snapshot"] == [1000, 1000, 500]
    assert page.counts["name 2499"] == 2500
    await page.client.disconnect()


async def test_a_new_day_is_a_reset_and_a_new_snapshot(tally: Served, clock: ChosenClock) -> None:
    page = Dashboard()
    await page.client.connect(tally.url, namespaces=["/live"])
    async with tally.client() as client:
        await client.post("/event/a")
        clock.go_to("2026-05-02T00:00:01+00:00")
        await client.post("/event/b")  # no job has run: the hit itself turns the page
        await eventually(lambda: page.counts == {"b": 1})
        assert page.events()[-3:] == ["reset", "snapshot", "changes"]
        assert page.names == ["b"]
        tally.app.state.jobs.get_job("close_day").modify(next_run_time=datetime.now(UTC))
        await client.post("/event/b")
        await eventually(lambda: page.counts == {"b": 2})
    assert page.events().count("reset") == 1
    await page.client.disconnect()


async def test_concurrent_hits_end_at_the_same_number_on_every_page(tally: Served) -> None:
    pages = [Dashboard() for _ in range(5)]
    for page in pages:
        await page.client.connect(tally.url, namespaces=["/live"], transports=["websocket"])
    async with tally.client() as client:
        answers = await asyncio.gather(*(client.post(f"/event/e{i % 3}") for i in range(300)))
    counts = sorted((answer.json()["eventName"], answer.json()["count"]) for answer in answers)
    assert counts == [(f"e{i}", n) for i in range(3) for n in range(1, 101)]  # each value once
    for page in pages:
        await eventually(lambda p=page: p.counts == {"e0": 100, "e1": 100, "e2": 100})
        await page.client.disconnect()


@pytest.mark.catches(
    "unbounded queues", "app/live.py", "+ len(packets) > (QUEUE_MAX", "+ len(packets) > 10**9 + (QUEUE_MAX"
)
async def test_a_client_that_reads_nothing_is_cut_and_the_others_go_on(
    tally: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "UPDATES_MAX", 50)
    stuck = socketio.AsyncClient(reconnection=False)
    await stuck.connect(tally.url, transports=["polling"])
    page = Dashboard()
    await page.client.connect(tally.url, namespaces=["/live"], transports=["websocket"])
    # the stuck one's polling ends here: it stays connected, and nobody fetches what is queued for it
    stuck.eio.read_loop_task.cancel()
    await asyncio.gather(stuck.eio.read_loop_task, return_exceptions=True)
    async with tally.client() as client:
        for i in range(100):
            await client.post(f"/event/e{i}")
    await eventually(lambda: len(page.counts) == 100)
    for socket in tally.app.state.live.server.eio.sockets.values():
        assert socket.queue.qsize() <= 51
    assert len(tally.app.state.live._clients) == 1
    await page.client.disconnect()
    await leave(stuck)


async def test_a_page_of_another_origin_may_not_connect(tally: Served) -> None:
    for transport in ("polling", "websocket"):
        foreign = socketio.AsyncClient(reconnection=False)
        with pytest.raises(socketio.exceptions.ConnectionError):
            await foreign.connect(tally.url, headers={"Origin": "http://evil.example"}, transports=[transport])
        if foreign.eio.http:
            await foreign.eio.http.close()


@pytest.mark.catches(
    "one dead client stops the others", "app/live.py", "except SocketIsClosedError:", "except KeyError:"
)
async def test_a_client_found_dead_takes_nothing_from_the_others(tally: Served) -> None:
    dead, healthy = socketio.AsyncClient(reconnection=False), socketio.AsyncClient(reconnection=False)
    heard: list[str] = []
    healthy.on("update", lambda data: heard.append(data["eventName"]))
    await dead.connect(tally.url, transports=["polling"])
    dead.eio.read_loop_task.cancel()
    await asyncio.gather(dead.eio.read_loop_task, return_exceptions=True)
    await healthy.connect(tally.url, transports=["websocket"])
    (socket,) = [s for s in tally.app.state.live.server.eio.sockets.values() if not s.upgraded]
    socket.last_ping = 1.0  # its pong is overdue, and nobody has noticed yet
    async with tally.client() as client:
        await client.post("/events", json={"a": 1, "b": 1, "c": 1})
    await eventually(lambda: heard == ["a", "b", "c"])
    await healthy.disconnect()
    await leave(dead)


@pytest.mark.parametrize("namespace", ["/", "/live"])
async def test_a_client_may_send_auth(tally: Served, namespace: str) -> None:
    page = socketio.AsyncClient(reconnection=False)
    heard: list[str] = []
    page.on("*", lambda event, *_: heard.append(event), namespace=namespace)
    await page.connect(tally.url, namespaces=[namespace], auth={"token": "x"}, transports=["websocket"])
    async with tally.client() as client:
        await client.post("/event/a")
    await eventually(lambda: "update" in heard or "changes" in heard)
    await page.disconnect()


@pytest.mark.catches("a snapshot each time", "app/live.py", " and socket.queue.qsize() <= 1:", ":")
async def test_who_does_not_read_gets_no_further_snapshot(tally: Served) -> None:
    async with tally.client() as client:
        await client.post("/events", json={f"name {i}": 1 for i in range(3000)})
    page = Dashboard()
    await page.client.connect(tally.url, namespaces=["/live"], transports=["polling"])
    page.client.eio.read_loop_task.cancel()
    await asyncio.gather(page.client.eio.read_loop_task, return_exceptions=True)
    live_view = tally.app.state.live
    ((sid, known),) = live_view._clients.items()
    for _ in range(50):
        await live_view._resync(sid)
    assert live_view.server.eio.sockets[known.engine_id].queue.qsize() <= 2 * 5
    await leave(page.client)


async def test_a_large_commit_comes_in_messages_of_a_bounded_size(tally: Served) -> None:
    page = Dashboard()
    await page.client.connect(tally.url, namespaces=["/live"], transports=["websocket"])
    async with tally.client() as client:
        await client.post("/events", json={f"name {i}": i + 1 for i in range(1500)})
        await eventually(lambda: len(page.counts) == 1500)
        await client.post("/events", json={f"name {i}": 1 for i in range(700, 2600)})
        await eventually(lambda: len(page.counts) == 2600)
    assert page.counts["name 699"] == 700
    assert page.counts["name 700"] == 702
    assert page.counts["name 2599"] == 1
    assert max(len(data["changes"]) for event, data in page.heard if event == "changes") == 1000
    await page.client.disconnect()


async def test_one_connection_may_join_both_namespaces(tally: Served) -> None:
    page = Dashboard()
    updates: list[dict] = []
    page.client.on("update", updates.append)
    await page.client.connect(tally.url, namespaces=["/", "/live"], transports=["websocket"])
    await eventually(lambda: page.events()[:1] == ["snapshot"])
    async with tally.client() as client:
        await client.post("/event/a")
    await eventually(lambda: updates == [{"eventName": "a", "count": 1}] and page.counts == {"a": 1})
    await page.client.disconnect()
