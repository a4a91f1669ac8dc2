"""Socket.IO connections: plain clients, upgrades from polling, and clients that send what they must not."""

import asyncio
import contextlib

import httpx
import pytest
import socketio

from app.live import socketio as live_socketio
from tests.live.clients import SlowClient, dashboard, leave, stop_polling
from tests.support.servers import RunningApp, eventually


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
