"""Live numbers on real sockets: both namespaces, both transports, bounded queues."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Self
from urllib.parse import urlsplit

import httpx
import pytest
import socketio
import websockets

from app.live import broadcaster as live
from tests.support.redis_servers import RedisServer
from tests.support.scenarios.pages import deaf_pages
from tests.support.servers import ChosenClock, Served, eventually, serving, settings_for


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
                assert data.get("since", data["seq"]) <= self.seq + 1 <= data["seq"]
                self.seq = data["seq"]
                self.names += data["names"]
                for index, count in data["changes"]:
                    assert count >= self.counts.get(self.names[index], 0)
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


@pytest.mark.catches("unbounded queues", "app/live/broadcaster.py", "socket.queue.qsize() >= QUEUE_MAX", "False")
async def test_a_client_that_reads_nothing_is_cut_and_the_others_go_on(
    tally: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "QUEUE_MAX", 50)
    monkeypatch.setattr(live, "STUCK_SECONDS", 0.1)
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
    for queued in tally.app.state.live.server.eio.sockets.values():
        assert queued.queue.qsize() <= 51
    await eventually(lambda: len(tally.app.state.live._clients) == 1)
    await page.client.disconnect()
    await leave(stuck)


@pytest.mark.catches(
    "the kernel keeps what it likes",
    "app/server/http_protocol.py",
    "SEND_BUFFER_BYTES = 65_536",
    "SEND_BUFFER_BYTES = 4_000_000",
)
@pytest.mark.catches("never cut", "app/live/broadcaster.py", "blocked_since < STUCK_SECONDS", "blocked_since < 1000")
async def test_pages_that_read_nothing_cost_little_and_are_cut(tmp_path: Path) -> None:
    assert (await deaf_pages(tmp_path, pages=30, rate=5000, stuck_seconds=1)).broken == []


class SlowPage:
    """A WebSocket whose owner reads a message only when told to, so that what is sent fills the buffers."""

    def __init__(self, url: str, namespace: str) -> None:
        address = f"{url.replace('http', 'ws')}/socket.io/?EIO=4&transport=websocket"
        door = socket.create_connection((urlsplit(url).hostname, urlsplit(url).port))
        door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        self._connecting = websockets.connect(address, sock=door, max_queue=1, compression=None, close_timeout=0.2)
        self._where = "" if namespace == "/" else f"{namespace},"
        self.page = Dashboard()
        self.told = 0

    async def __aenter__(self) -> Self:
        self._socket = await self._connecting
        await self._socket.recv()
        await self._socket.send(f"40{self._where}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._socket.close()

    async def read(self) -> None:
        """One event; pings are answered."""
        text = await self._socket.recv()
        if text == "2":
            await self._socket.send("3")
        elif text.startswith(f"42{self._where}"):
            event, data = json.loads(text[2 + len(self._where) :])
            self.told += len(data["changes"]) if event == "changes" else 1
            if event == "update":
                self.page.counts[data["eventName"]] = data["count"]
            else:
                self.page._hear(event)(data)


@pytest.mark.catches(
    "a page that does not read is sent all the same",
    "app/server/websocket_protocol.py",
    "        if not self.writable.is_set():\n            return False\n",
    "",
)
@pytest.mark.catches(
    "what a slow page missed is not told",
    "app/live/broadcaster.py",
    "            elif client.place is not feed.told:\n",
    "            elif False:\n",
)
@pytest.mark.parametrize(
    ("namespace", "names", "posts"),
    [
        ("/", 500, 100),
        pytest.param(
            *("/live", 2500, 7),  # few enough for the log of changes
            marks=pytest.mark.catches(
                "one number for several messages", "app/live/day.py", " and i + PAGE_NAMES >= len(indices):", ":"
            ),
        ),
    ],
)
async def test_a_page_that_reads_slowly_gets_fewer_messages_and_ends_on_the_same_numbers(
    tmp_path: Path, redis_server: RedisServer, namespace: str, names: int, posts: int
) -> None:
    batch = {f"{i} {'x' * 120}": 1 for i in range(names)}
    chosen = settings_for("memory", tmp_path, redis_server, write_limit="100000/second", live_interval_ms=0)
    async with (
        serving(chosen, buffer=32_768) as tally,
        SlowPage(tally.url, namespace) as slow,
        tally.client() as client,
    ):
        for _ in range(posts):
            assert (await client.post("/events", json=batch)).status_code == 200
        ((_, page),) = tally.app.state.live._clients.items()
        assert page.held  # its buffers are full, and nothing more is queued for it
        while sum(slow.page.counts.values()) < posts * len(batch):
            await slow.read()
        assert set(slow.page.counts.values()) == {posts}
        assert slow.told < posts * len(batch)


async def share_of_sending(tally: Served, monkeypatch: pytest.MonkeyPatch) -> float:
    """What part of the time it takes by its own clock, with rounds as they are with hundreds of pages."""
    view = tally.app.state.live
    spent, rounds, real, told = 0.0, 0, view._round, asyncio.Event()

    async def costly() -> tuple[float, bool]:
        nonlocal spent, rounds
        begun = time.thread_time()
        _, waiting = await real()
        while time.thread_time() - begun < 0.015:
            pass
        spent, rounds = spent + time.thread_time() - begun, rounds + 1
        told.set()
        return time.thread_time() - begun, waiting

    page = Dashboard()
    await page.client.connect(tally.url, namespaces=["/live"], transports=["websocket"])
    async with tally.client() as client:
        before = (await client.get("/event/a")).json()["count"]
        begun, sent = time.monotonic(), 0
        with monkeypatch.context() as patch:
            patch.setattr(view, "_round", costly)
            while rounds < 25:
                told.clear()
                await client.post("/event/a")
                sent += 1
                await told.wait()
        share = spent / (time.monotonic() - begun)
    await eventually(lambda: page.counts == {"a": before + sent})
    await page.client.disconnect()
    return share


@pytest.mark.catches("no budget", "app/live/broadcaster.py", "SHARE = 0.16", "SHARE = 0.9")
async def test_sending_takes_no_more_than_its_share_and_the_last_value_arrives(
    tally: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await share_of_sending(tally, monkeypatch) < 0.4


OF_BUSY = pytest.mark.catches(
    "as much of a busy core", "app/live/broadcaster.py", "1 - used / max(passed, 1e-6)", "1.0"
)
OF_IDLE = pytest.mark.catches(
    "no more of an idle core", "app/live/broadcaster.py", "SHARE * (1 + max(", "SHARE * (1 + 0 * max("
)


@pytest.mark.parametrize(
    ("busy", "share"),
    [
        pytest.param(0.0, 2 * live.SHARE, marks=OF_IDLE),
        pytest.param(0.5, 1.5 * live.SHARE, marks=OF_IDLE),
        pytest.param(1.0, live.SHARE, marks=OF_BUSY),
    ],
)
async def test_sending_takes_less_of_a_core_that_has_other_work(
    tally: Served, monkeypatch: pytest.MonkeyPatch, busy: float, share: float
) -> None:
    """On chosen clocks: beside the machine's other work no process gets a core as a whole."""
    view = tally.app.state.live
    view._sender.cancel()
    begun = now = view._ticked
    spent, sleep, done = 0.0, asyncio.sleep, asyncio.Event()

    async def costly() -> tuple[float, bool]:
        nonlocal now, spent
        now, spent = now + 0.015, spent + 0.015
        view._feed.changed.set()
        if now > begun + 60:
            done.set()
            await sleep(3600)  # until it is cancelled
        return 0.015, False

    async def rest(seconds: float) -> None:
        nonlocal now
        now += seconds
        await sleep(0)

    monkeypatch.setattr(view, "_round", costly)
    clocks = SimpleNamespace(monotonic=lambda: now, process_time=lambda: now * busy, thread_time=time.thread_time)
    monkeypatch.setattr(live, "time", clocks)
    monkeypatch.setattr(live, "asyncio", SimpleNamespace(**(vars(asyncio) | {"sleep": rest})))
    sender = asyncio.create_task(view._send())
    await done.wait()
    assert spent / (now - begun) == pytest.approx(share, rel=0.05)
    sender.cancel()


@pytest.mark.catches(
    "numbers for those who listen alone",
    "app/live/day.py",
    "seq=begin.seq + math.ceil(len(changed) / PAGE_NAMES)",
    "seq=begin.seq",
)
async def test_a_dashboard_misses_nothing_that_came_while_there_was_none(tally: Served) -> None:
    async with tally.client() as client:
        for hits in range(3):
            page = Dashboard()
            await page.client.connect(tally.url, namespaces=["/live"], transports=["websocket"])
            await eventually(lambda p=page, n=hits: p.seq >= 0 and p.counts.get("a", 0) == n)
            await page.client.disconnect()
            await eventually(lambda: not tally.app.state.live._clients)
            await client.post("/events", json={"a": 1, f"new {hits}": 1})  # the snapshot is not old yet


@pytest.mark.parametrize(
    "said",
    [
        ['42/live,["connect",{"asgi.scope":{"type":"websocket"},"asgi.send":"boom"}]'],
        ['42/live,["disconnect","x"]'],
        pytest.param(
            ['459999999999-/live,["x",{"_placeholder":true,"num":0}]', *([b"x" * 10_000] * 20)],
            marks=pytest.mark.catches(
                "all is listened to", "app/live/broadcaster.py", "            serializer=InboundPacket,\n", ""
            ),
        ),
        ['46/live,1["x"]', "44/live,{}", "42/live,", "42/live,{}", '43/live,7["x"]', "49", '42["resync"]'],
    ],
)
async def test_what_a_hostile_page_says_is_its_own_affair(
    tally: Served, said: list[str | bytes], caplog: pytest.LogCaptureFixture
) -> None:
    async with SlowPage(tally.url, "/live") as hostile, tally.client() as client:
        await eventually(lambda: len(tally.app.state.live._clients) == 1)
        page = Dashboard()
        await page.client.connect(tally.url, namespaces=["/live"], transports=["websocket"])
        await client.post("/event/a")
        await eventually(lambda: page.counts == {"a": 1})
        for message in said:
            await hostile._socket.send(message)
        await client.post("/event/a")
        await eventually(lambda: page.counts == {"a": 2})
        assert len(tally.app.state.live._clients) == 2
        assert tally.app.state.live.server._binary_packet == {}
        await page.client.disconnect()
    assert "Traceback" not in caplog.text


async def test_sessions_are_bounded(tally: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "CLIENTS_MAX", 2)
    async with tally.client() as client:
        answers = [await client.get("/socket.io/?EIO=4&transport=polling") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 503]
    assert answers[2].headers["Content-Type"] == "application/problem+json"


async def test_three_slow_hits_are_three_updates_on_a_plain_client(tally: Served) -> None:
    plain, heard = socketio.AsyncClient(reconnection=False), []
    plain.on("update", lambda data: heard.append(data["count"]))
    await plain.connect(tally.url)
    async with tally.client() as client:
        for count in (1, 2, 3):
            await client.post("/event/a")
            await eventually(lambda n=count: heard == list(range(1, n + 1)))
    await plain.disconnect()


@pytest.mark.parametrize("namespace", ["/", "/live"])
async def test_a_client_that_upgrades_from_polling_misses_nothing_and_nothing_runs_backwards(
    tally: Served, namespace: str
) -> None:
    pages = [socketio.AsyncClient(reconnection=False) for _ in range(10)]
    heard: dict[int, list[int]] = {i: [] for i in range(10)}
    done = asyncio.Event()

    async def write(client: httpx.AsyncClient) -> None:
        while not done.is_set():
            await client.post("/event/a")

    async with tally.client() as client:
        writing = asyncio.create_task(write(client))
        for i, page in enumerate(pages):
            page.on("update", lambda data, i=i: heard[i].append(data["count"]))
            page.on("changes", lambda data, i=i: heard[i].append(data["changes"][0][1]), namespace="/live")
            await page.connect(tally.url, namespaces=[namespace])  # polling first
            assert page.eio.transport() == "websocket"
        await eventually(lambda: all(len(counts) > 20 for counts in heard.values()))
        done.set()
        await writing
        final = (await client.get("/event/a")).json()["count"]
    for i, page in enumerate(pages):
        await eventually(lambda i=i: heard[i][-1] == final)
        assert heard[i] == sorted(heard[i])
        await page.disconnect()
    assert all(client.direct for client in tally.app.state.live._clients.values())


async def test_a_page_of_another_origin_may_not_connect(tally: Served) -> None:
    for transport in ("polling", "websocket"):
        foreign = socketio.AsyncClient(reconnection=False)
        with pytest.raises(socketio.exceptions.ConnectionError):
            await foreign.connect(tally.url, headers={"Origin": "http://evil.example"}, transports=[transport])
        if foreign.eio.http:
            await foreign.eio.http.close()


async def test_a_client_found_dead_takes_nothing_from_the_others(tally: Served) -> None:
    dead, healthy = socketio.AsyncClient(reconnection=False), socketio.AsyncClient(reconnection=False)
    heard: list[str] = []
    healthy.on("update", lambda data: heard.append(data["eventName"]))
    await dead.connect(tally.url, transports=["polling"])
    dead.eio.read_loop_task.cancel()
    await asyncio.gather(dead.eio.read_loop_task, return_exceptions=True)
    await healthy.connect(tally.url, transports=["websocket"])
    (socket,) = [s for s in tally.app.state.live.server.eio.sockets.values() if not s.upgraded]
    socket.closed = True  # and nobody has noticed yet
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


@pytest.mark.catches("a snapshot each time", "app/live/broadcaster.py", " and socket.queue.qsize() <= 1:", ":")
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
        await live_view._round()
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
