"""Socket.IO connections: plain clients, upgrades from polling, and clients that send what they must not."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import httpx
import pytest
import socketio
import websockets

from app.live import direct_socket
from app.live import socketio as live_socketio
from tests.live.clients import SlowClient, dashboard, leave, stop_polling
from tests.support.servers import RunningApp, eventually

DIRECT_SOCKET = "app/live/direct_socket.py"


@contextlib.asynccontextmanager
async def connected_websocket(url: str) -> AsyncIterator[websockets.ClientConnection]:
    """A WebSocket with an Engine.IO session, in no namespace."""
    address = f"{url.replace('http', 'ws')}/socket.io/?EIO=4&transport=websocket"
    async with websockets.connect(address, close_timeout=0.2) as websocket:
        assert (await websocket.recv()).startswith('0{"sid":')
        yield websocket


async def test_a_plain_client_gets_an_update_for_each_of_three_slow_hits(tally: RunningApp) -> None:
    plain, counts = socketio.AsyncClient(reconnection=False), []
    plain.on("update", lambda data: counts.append(data["count"]))
    await plain.connect(tally.url)
    async with tally.client() as client:
        for count in (1, 2, 3):
            await client.post("/event/a")
            await eventually(lambda n=count: counts == list(range(1, n + 1)))
    await leave(plain)


@pytest.mark.parametrize("namespace", ["/", "/live"])
async def test_a_client_may_send_auth(shared_tally: RunningApp, namespace: str) -> None:
    page = socketio.AsyncClient(reconnection=False)
    received: list[str] = []
    page.on("*", lambda event, *_: received.append(event), namespace=namespace)
    await page.connect(shared_tally.url, namespaces=[namespace], auth={"token": "x"}, transports=["websocket"])
    async with shared_tally.client() as client:
        await client.post("/event/a")
    await eventually(lambda: "update" in received or "changes" in received)
    await leave(page)


@pytest.mark.fails_on_mutant(
    "a WebSocket is not authorized",
    "app/http/router_bypass.py",
    "permissions.authorize_mount(SOCKETIO_PATH, socketio)",
    "socketio",
)
async def test_a_client_of_another_origin_may_not_connect(shared_tally: RunningApp) -> None:
    for transport in ("polling", "websocket"):
        foreign = socketio.AsyncClient(reconnection=False)
        with pytest.raises(socketio.exceptions.ConnectionError):
            await foreign.connect(shared_tally.url, headers={"Origin": "http://evil.example"}, transports=[transport])
        if foreign.eio.http:
            await foreign.eio.http.close()


async def test_sessions_are_bounded(tally: RunningApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_socketio, "CLIENTS_MAX", 2)
    async with tally.client() as client:
        responses = [await client.get("/socket.io/?EIO=4&transport=polling") for _ in range(3)]
    assert [response.status_code for response in responses] == [200, 200, 503]
    assert responses[2].headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("namespace", ["/", "/live"])
async def test_a_client_that_upgrades_from_polling_misses_nothing_and_its_counts_never_go_backwards(
    tally: RunningApp, namespace: str
) -> None:
    pages = [socketio.AsyncClient(reconnection=False) for _ in range(10)]
    received: dict[int, list[int]] = {i: [] for i in range(10)}
    done = asyncio.Event()

    async def write(client: httpx.AsyncClient) -> None:
        while not done.is_set():
            await client.post("/event/a")

    async with tally.client() as client:
        writing = asyncio.create_task(write(client))
        for i, page in enumerate(pages):
            page.on("update", lambda data, i=i: received[i].append(data["count"]))
            page.on("changes", lambda data, i=i: received[i].append(data["changes"][0][1]), namespace="/live")
            await page.connect(tally.url, namespaces=[namespace])  # polling first
            assert page.eio.transport() == "websocket"
        await eventually(lambda: all(len(counts) > 20 for counts in received.values()))
        done.set()
        await writing
        final = (await client.get("/event/a")).json()["count"]
    for i, page in enumerate(pages):
        await eventually(lambda i=i: received[i][-1] == final)
        assert received[i] == sorted(received[i])
        await page.disconnect()
    assert all(client.connection.is_direct for client in tally.app.state.broadcaster.clients.values())


@pytest.mark.fails_on_mutant(
    "no pings", DIRECT_SOCKET, "            self._ping_after(self.server.ping_interval)\n", "            pass\n"
)
@pytest.mark.fails_on_mutant("pongs are not checked", DIRECT_SOCKET, "if self.server.start_service_task:", "if False:")
@pytest.mark.fails_on_mutant(
    "a closed session keeps its WebSocket",
    DIRECT_SOCKET,
    '                send_nowait(self._send({"type": "websocket.close"}))\n',
    "                pass\n",
)
async def test_a_websocket_without_pongs_is_closed(tally: RunningApp) -> None:
    engineio = tally.app.state.socketio.server.eio
    engineio.ping_interval, engineio.ping_timeout = 0.05, 2
    async with connected_websocket(tally.url) as silent, connected_websocket(tally.url) as polite, asyncio.timeout(20):
        closed = asyncio.create_task(silent.wait_closed())
        while not closed.done():
            assert await polite.recv() == "2"
            await polite.send("3")
        assert await silent.recv() == "2"
        assert await polite.recv() == "2"
        assert len(engineio.sockets) == 1


@pytest.mark.fails_on_mutant(
    "a ping is dropped",
    DIRECT_SOCKET,
    "                self._ping_after(PING_RETRY_SECONDS)\n",
    "                pass\n",
)
async def test_a_client_that_reads_slowly_gets_its_ping_later(
    tally_with_small_buffers: Callable[[], AbstractAsyncContextManager[RunningApp]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_socket, "PING_RETRY_SECONDS", 0.05)
    batch = {f"{i} {'x' * 120}": 1 for i in range(500)}
    async with tally_with_small_buffers() as tally, SlowClient(tally.url, "/") as slow, tally.client() as client:
        await eventually(lambda: len(tally.app.state.broadcaster.clients) == 1)
        ((_, connected),) = tally.app.state.broadcaster.clients.items()
        while not connected.undelivered:
            await client.post("/events", json=batch)
        (socket,) = tally.app.state.socketio.server.eio.sockets.values()
        socket._ping()
        async with asyncio.timeout(20):
            while await slow._socket.recv() != "2":
                pass


@pytest.mark.fails_on_mutant(
    "a client that joins begins a round of all",
    "app/live/broadcaster.py",
    "list(self.clients if has_news else behind)",
    "list(self.clients)",
)
async def test_a_client_that_joins_does_not_begin_a_round_of_all_clients(
    tally: RunningApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, served = tally.app.state.broadcaster, []
    push = live._push
    async with contextlib.AsyncExitStack() as stack:
        pages = [await stack.enter_async_context(dashboard(tally)) for _ in range(5)]
        await eventually(lambda: all(page.events() == ["snapshot", "state"] for page in pages))
        monkeypatch.setattr(live, "_push", lambda client_id, *rest: served.append(client_id) or push(client_id, *rest))
        late = await stack.enter_async_context(dashboard(tally))
        await eventually(lambda: late.events() == ["snapshot", "state"])
        assert len(set(served)) == 1
        client = await stack.enter_async_context(tally.client())
        await client.post("/event/a")
        await eventually(lambda: all(page.counts == {"a": 1} for page in [*pages, late]))


@pytest.mark.fails_on_mutant(
    "a failed round is lost", "app/live/broadcaster.py", "                self._behind.update(self.clients)\n", ""
)
async def test_a_failed_round_is_repeated(tally: RunningApp, monkeypatch: pytest.MonkeyPatch) -> None:
    live, failed = tally.app.state.broadcaster, asyncio.Event()
    push = live._push

    def fail_once(*arguments: object) -> int:
        if failed.is_set():
            return push(*arguments)
        failed.set()
        raise ValueError("a bug")

    async with dashboard(tally) as page, tally.client() as client:
        await eventually(lambda: page.events() == ["snapshot", "state"])
        monkeypatch.setattr(live, "_push", fail_once)
        await client.post("/event/a")
        await failed.wait()
        await eventually(lambda: page.counts == {"a": 1})


async def test_a_dead_client_takes_nothing_from_the_others(tally: RunningApp) -> None:
    dead, healthy = socketio.AsyncClient(reconnection=False), socketio.AsyncClient(reconnection=False)
    received: list[str] = []
    healthy.on("update", lambda data: received.append(data["eventName"]))
    await dead.connect(tally.url, transports=["polling"])
    await stop_polling(dead)
    await healthy.connect(tally.url, transports=["websocket"])
    (socket,) = [s for s in tally.app.state.socketio.server.eio.sockets.values() if not s.upgraded]
    socket.closed = True  # and its "disconnect" event has not run yet
    async with tally.client() as client:
        await client.post("/events", json={"a": 1, "b": 1, "c": 1})
    await eventually(lambda: received == ["a", "b", "c"])
    await healthy.disconnect()
    await leave(dead)


HOSTILE = {
    "a connect event": ['42/live,["connect",{"asgi.scope":{"type":"websocket"},"asgi.send":"boom"}]'],
    "a disconnect event": ['42/live,["disconnect","x"]'],
    "attachments": ['459999999999-/live,["x",{"_placeholder":true,"num":0}]', *([b"x" * 10_000] * 20)],
    "other packets": ['46/live,1["x"]', "44/live,{}", "42/live,", "42/live,{}", '43/live,7["x"]', "49", '42["resync"]'],
}
ATTACHMENTS_ACCEPTED = pytest.mark.fails_on_mutant(
    "all packets are accepted", "app/live/socketio.py", "            serializer=InboundPacket,\n", ""
)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=ATTACHMENTS_ACCEPTED if kind == "attachments" else []) for kind in HOSTILE]
)
async def test_a_hostile_client_harms_no_other_client(
    tally: RunningApp, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    clients = tally.app.state.broadcaster.clients
    async with contextlib.AsyncExitStack() as stack:
        hostile = await stack.enter_async_context(SlowClient(tally.url, "/live"))
        client = await stack.enter_async_context(tally.client())
        await eventually(lambda: len(clients) == 1)
        page = await stack.enter_async_context(dashboard(tally))
        await client.post("/event/a")
        await eventually(lambda: page.counts == {"a": 1})
        for packet in HOSTILE[kind]:
            await hostile.send(packet)
        await client.post("/event/a")
        await eventually(lambda: page.counts == {"a": 2})
        assert len(clients) == 2
        assert tally.app.state.socketio.server._binary_packet == {}
    assert "Traceback" not in caplog.text
