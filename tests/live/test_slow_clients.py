"""Clients that read slowly or not at all: bounded memory, fewer messages, and disconnection."""

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import socketio

from app.live import broadcaster
from app.live import socketio as live_socketio
from tests.live.clients import SlowClient, dashboard, leave, stop_polling, unread_stream
from tests.live.conftest import memory_settings
from tests.support.scenarios.clients import clients_that_do_not_read
from tests.support.servers import RunningApp, eventually, serving

Starter = Callable[[], AbstractAsyncContextManager[RunningApp]]


@pytest.mark.fails_on_mutant(
    "unbounded queues", "app/live/socketio.py", "socket.queue.qsize() >= QUEUE_MAX or ", "False and "
)
async def test_a_client_that_reads_nothing_is_disconnected_and_the_others_go_on(
    tally: RunningApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcaster, "SLOW_CLIENT_TIMEOUT_SECONDS", 0.1)
    stuck = socketio.AsyncClient(reconnection=False)
    await stuck.connect(tally.url, transports=["polling"])
    async with dashboard(tally) as page, tally.client() as client:
        await stop_polling(stuck)
        for i in range(100):
            await client.post(f"/event/e{i}")
        await eventually(lambda: len(page.counts) == 100)
        for socket in tally.app.state.socketio.server.eio.sockets.values():
            assert socket.queue.qsize() <= live_socketio.QUEUE_MAX + 1
        await eventually(lambda: len(tally.app.state.broadcaster.clients) == 1)
    await leave(stuck)


@pytest.mark.fails_on_mutant(
    "the kernel buffers as much as it likes",
    "app/server/connection.py",
    "SEND_BUFFER_BYTES = 65_536",
    "SEND_BUFFER_BYTES = 4_000_000",
)
@pytest.mark.fails_on_mutant(
    "slow clients are never closed",
    "app/live/broadcaster.py",
    "client.blocked_seconds >= SLOW_CLIENT_TIMEOUT_SECONDS",
    "client.blocked_seconds >= 1000",
)
async def test_clients_that_read_nothing_cost_little_and_are_disconnected(tmp_path: Path) -> None:
    assert (await clients_that_do_not_read(tmp_path, clients=30, rate=5000, stuck_seconds=1)).violations == []


@pytest.mark.fails_on_mutant(
    "frames are written to a client that does not read",
    "app/server/websocket_protocol.py",
    "        if not self.writable.is_set():\n            return False\n",
    "",
)
@pytest.mark.parametrize(
    ("namespace", "names", "posts"),
    [
        pytest.param(
            *("/", 500, 100),
            marks=[
                pytest.mark.fails_on_mutant(
                    "a slow client does not get what it missed",
                    "app/live/clients.py",
                    "return None if self.cursor is day.head else day.catch_up_plain(self.cursor)\n",
                    "return None\n",
                ),
                pytest.mark.fails_on_mutant(
                    "a slow client is forgotten",
                    "app/live/broadcaster.py",
                    "                        self._behind.add(client_id)\n",
                    "",
                ),
            ],
        ),
        pytest.param(
            *("/live", 2500, 7),  # few enough changes for the log
            marks=[
                pytest.mark.fails_on_mutant(
                    "one number for several messages", "app/live/messages.py", " and i == size - 1:", ":"
                ),
                pytest.mark.fails_on_mutant(
                    "a slow dashboard does not get what it missed",
                    "app/live/clients.py",
                    "if self.cursor is not day.head:",
                    "if self.cursor is NO_CURSOR:",
                ),
            ],
        ),
    ],
)
async def test_a_client_that_reads_slowly_gets_fewer_messages_and_ends_on_the_same_counts(
    tally_with_small_buffers: Starter, namespace: str, names: int, posts: int
) -> None:
    batch = {f"{i} {'x' * 120}": 1 for i in range(names)}
    async with tally_with_small_buffers() as tally, SlowClient(tally.url, namespace) as slow, tally.client() as client:
        for _ in range(posts):
            assert (await client.post("/events", json=batch)).status_code == 200
        ((_, connected),) = tally.app.state.broadcaster.clients.items()
        assert connected.undelivered  # all buffers are full, so nothing more is queued
        while sum(slow.page.counts.values()) < posts * len(batch):
            await slow.read()
        assert set(slow.page.counts.values()) == {posts}
        assert slow.changes < posts * len(batch)


@pytest.mark.fails_on_mutant(
    "a snapshot for each resync",
    "app/live/socketio.py",
    "self._queued_bytes >= QUEUE_BYTES_MAX",
    "socket.queue.qsize() >= 1000",
)
async def test_a_client_that_does_not_read_gets_no_further_snapshot(tally: RunningApp) -> None:
    async with tally.client() as client:
        await client.post("/events", json={f"name {i}": 1 for i in range(3000)})
    async with dashboard(tally, "polling") as page:
        await stop_polling(page.client)
        ((sid, connected),) = tally.app.state.broadcaster.clients.items()
        for _ in range(50):
            await tally.app.state.socketio._resync(sid)
            await tally.app.state.broadcaster._broadcast_once()
        socket = tally.app.state.socketio.server.eio.sockets[connected.connection.engine_id]
        assert socket.queue.qsize() <= 2 * 5


@pytest.mark.fails_on_mutant(
    "a slow stream is never closed",
    "app/live/clients.py",
    "    async def close(self) -> None:\n        self.ended.set()",
    "    async def close(self) -> None:\n        pass",
)
async def test_a_stream_that_nobody_reads_is_closed(
    tally_with_small_buffers: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcaster, "SLOW_CLIENT_TIMEOUT_SECONDS", 0.5)
    async with tally_with_small_buffers() as tally, tally.client() as client:
        clients = tally.app.state.broadcaster.clients
        with unread_stream(tally.url) as connection:
            await eventually(lambda: len(clients) == 1)
            requests = {f"{i} {'x' * 120}": 1 for i in range(500)}
            while clients:
                await client.post("/events", json=requests)
            connection.setblocking(False)
            async with asyncio.timeout(20):
                while await asyncio.get_running_loop().sock_recv(connection, 65_536):
                    pass  # what was sent before; then the connection is closed


async def test_a_stream_that_is_read_slowly_gets_fewer_updates_and_ends_on_the_same_counts(
    tally_with_small_buffers: Starter,
) -> None:
    batch = {f"{i} {'x' * 120}": 1 for i in range(500)}
    async with tally_with_small_buffers() as tally, tally.client() as client:
        with unread_stream(tally.url) as connection:
            await eventually(lambda: len(tally.app.state.broadcaster.clients) == 1)
            ((_, slow),) = tally.app.state.broadcaster.clients.items()
            posts = 0
            while not slow.undelivered:
                await client.post("/events", json=batch)
                posts += 1
            for _ in range(50):
                await client.post("/events", json=batch)
            text, last = b"", f'"count":{posts + 50}}}'.encode()
            connection.setblocking(False)
            while text.count(last) < len(batch):
                text += await asyncio.get_running_loop().sock_recv(connection, 65_536)
    assert text.count(b"event: update") < (posts + 50) * len(batch)


@pytest.mark.fails_on_mutant(
    "a silent session queues large messages", "app/live/socketio.py", "self._queued_bytes >= QUEUE_BYTES_MAX", "False"
)
async def test_a_session_that_does_not_poll_keeps_little_and_ends_on_the_latest_counts(tally: RunningApp) -> None:
    names = [f"{i:04} {'x' * 100}" for i in range(500)]
    async with tally.client() as client:
        opened = (await client.get("/socket.io/?EIO=4&transport=polling")).text
        session = f"/socket.io/?EIO=4&transport=polling&sid={json.loads(opened[1:])['sid']}"
        await client.post(session, content="40/live,")
        (socket,) = tally.app.state.socketio.server.eio.sockets.values()
        for _ in range(30):
            await client.post("/events", json=dict.fromkeys(names, 1))
            await tally.app.state.broadcaster._broadcast_once()  # sends, or notes that the client cannot take more
        waiting = [packet.data for packet in socket.queue._queue if isinstance(packet.data, str)]
        assert len(waiting) <= live_socketio.QUEUE_MAX
        assert sum(map(len, waiting[:-1])) <= live_socketio.QUEUE_BYTES_MAX
        counts: dict[int, int] = {}
        while counts.get(499) != 30:
            for packet in (await client.get(session)).text.split("\x1e"):
                if packet.startswith('42/live,["changes",'):
                    counts |= dict(json.loads(packet.removeprefix("42/live,"))[1]["changes"])


@pytest.mark.fails_on_mutant(
    "sessions are not limited", "app/live/socketio.py", "            self._limit_sessions(scope)\n", ""
)
async def test_sessions_count_as_reads() -> None:
    async with serving(memory_settings(read_limit="3/hour")) as tally, tally.client() as client:
        responses = [await client.get("/socket.io/?EIO=4&transport=polling") for _ in range(4)]
    assert [response.status_code for response in responses] == [200, 200, 200, 429]
    assert responses[3].json()["code"] == "rate-limit"
