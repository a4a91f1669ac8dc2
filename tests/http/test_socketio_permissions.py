"""Which Socket.IO clients may read: keys, rate limits, and connections that never join."""

import contextlib
import itertools
import json

import pytest
import socketio
import websockets

from tests.http.api_keys import CLOSED, KEYS, bearer
from tests.http.problems import detail_of
from tests.support.servers import eventually

SOCKETS = "/socket.io/?EIO=4&transport="
LOW_LIMITS = {"read_limit": "20/hour", "write_limit": "20/hour"}
AUTHS = [None, {}, {"key": 5}, {"key": [KEYS["read"]]}, "key", ["\ud800"], {"key": "\ud800"}, {"token": KEYS["read"]}]
AUTHS += [{"key": KEYS["read"] + "x"}, *({"key": key} for key in KEYS.values())]
READERS = [{"key": KEYS["read"]}, {"key": KEYS["admin"]}]


def assert_rejection(rejection: dict, auth: object) -> None:
    assert rejection["data"] == {"status": 403 if auth == {"key": KEYS["write"]} else 401}
    assert "key" in rejection["message"]


@pytest.mark.fails_on_mutant("any client may read", "app/live/socketio.py", "self._admit(auth, scope)", "pass")
async def test_a_client_without_read_permission_gets_an_error_and_nothing_else(serve) -> None:
    async with serve(**CLOSED) as tally, tally.client() as client:
        for auth, namespace in itertools.product(AUTHS, ("/", "/live")):
            received: list[tuple] = []
            socket = socketio.AsyncClient(reconnection=False)
            for event in ("*", "connect_error"):
                socket.on(event, lambda *message, to=received: to.append(message), namespace=namespace)
            connecting = socket.connect(tally.url, namespaces=[namespace], auth=auth, transports=["websocket"])
            if auth in READERS:
                await connecting
                await client.post("/event/a", headers=bearer("write"))
                await eventually(lambda messages=received: {"update", "changes"} & {name for name, *_ in messages})
                await socket.disconnect()
            else:
                with pytest.raises(socketio.exceptions.ConnectionError):
                    await connecting
                ((rejection,),) = received
                assert_rejection(rejection, auth)


@pytest.mark.parametrize("namespace", ["", "/live,"])
async def test_a_polling_client_without_read_permission_gets_an_error_and_nothing_else(serve, namespace: str) -> None:
    async with serve(**CLOSED) as tally, tally.client() as client:
        await client.post("/event/a", headers=bearer("write"))
        for auth in AUTHS:
            sid = json.loads((await client.get(SOCKETS + "polling")).text[1:])["sid"]
            session = f"{SOCKETS}polling&sid={sid}"
            await client.post(session, content=f"40{namespace}{json.dumps(auth) if auth else ''}")
            first, *more = (await client.get(session)).text.split("\x1e")
            if auth in READERS:
                assert first.startswith(f"40{namespace}")
            else:
                assert first.startswith(f"44{namespace}")
                assert_rejection(json.loads(first.removeprefix(f"44{namespace}")), auth)
                assert not more


@pytest.mark.fails_on_mutant(
    "a Socket.IO client may guess without limit",
    "app/http/permissions.py",
    'self._rate_limits.consume(HTTPConnection(scope), "read", 0)',
    "pass",
)
async def test_a_wrong_key_over_socketio_consumes_the_rate_limit(serve) -> None:
    async with serve(**CLOSED, **LOW_LIMITS) as tally, tally.client() as client:

        async def connect(key: str) -> str:
            opened = await client.get(SOCKETS + "polling")
            if opened.status_code == 429:
                return 429
            path = f"{SOCKETS}polling&sid={json.loads(opened.text[1:])['sid']}"
            await client.post(path, content="40" + json.dumps({"key": key}))
            packet = (await client.get(path)).text
            return packet[:2] if packet.startswith("40") else json.loads(packet[2:])["data"]["status"]

        assert await connect(KEYS["read"]) == "40"
        # Each session costs one, and each wrong key another one.
        assert [await connect(f"guess-{i:011}") for i in range(25)] == [401] * 9 + [429] * 16
        assert await connect(KEYS["read"]) == 429


@pytest.mark.fails_on_mutant(
    "unjoined connections stay",
    "app/live/socketio.py",
    "            await socket.close(wait=False)\n",
    "            continue\n",
)
@pytest.mark.fails_on_mutant(
    "a WebSocket stays", "app/live/socketio.py", "            socket.queue.put_nowait(None)", "            pass"
)
@pytest.mark.fails_on_mutant(
    "joined clients are closed", "app/live/socketio.py", "sockets.keys() - joined", "set(sockets.keys())"
)
async def test_rejected_and_unjoined_connections_are_closed(serve) -> None:
    async with serve(**CLOSED) as tally, tally.client() as client, contextlib.AsyncExitStack() as opened:
        url = tally.url.replace("http", "ws", 1) + SOCKETS + "websocket"
        silent, rejected, joined = [await opened.enter_async_context(websockets.connect(url)) for _ in range(3)]
        await rejected.send('40{"key":"xxxxxxxxxxxxxxxxxxxx"}')
        await joined.send(f'40{{"key":"{KEYS["read"]}"}}')
        assert [(await socket.recv())[0] for socket in (silent, rejected, joined)] == ["0"] * 3
        assert (await rejected.recv()).startswith("44")
        assert (await joined.recv()).startswith("40")
        polled = f"{SOCKETS}polling&sid={json.loads((await client.get(SOCKETS + 'polling')).text[1:])['sid']}"
        close_unjoined = tally.app.state.jobs.get_job("close_unjoined").func
        await close_unjoined()
        await client.post(polled, content="3")
        await close_unjoined()
        for socket in (silent, rejected):
            with pytest.raises(websockets.ConnectionClosed):
                while True:
                    await socket.recv()
        assert detail_of(await client.post(polled, content="3"), 400) == "unknown Socket.IO session; connect again"
        await client.post("/event/a", headers=bearer("write"))
        while not (await joined.recv()).startswith('42["update"'):
            pass
