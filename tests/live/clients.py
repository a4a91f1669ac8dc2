"""Clients of all kinds: a dashboard, a client that reads slowly, and a reader of Server-Sent Events."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Self
from urllib.parse import urlsplit

import httpx
import socketio
import websockets

from tests.support.servers import RunningApp, eventually


class Dashboard:
    """Does what Tally's page does: keeps names and counts, and checks that nothing is missing or goes backwards."""

    def __init__(self) -> None:
        self.client = socketio.AsyncClient(reconnection=False)
        self.names: list[str] = []
        self.counts: dict[str, int] = {}
        self.seq = -1
        self.received: list[tuple[str, dict]] = []
        for event in ("snapshot", "changes", "reset", "state"):
            self.client.on(event, self.handler(event), namespace="/live")

    def handler(self, event: str) -> Callable[[dict], None]:
        def handle(data: dict) -> None:
            self.received.append((event, data))
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

        return handle

    def events(self) -> list[str]:
        return [event for event, _ in self.received]


@contextlib.asynccontextmanager
async def dashboard(
    tally: RunningApp, *transports: str, namespaces: tuple[str, ...] = ("/live",)
) -> AsyncIterator[Dashboard]:
    """A connected dashboard, by default on a WebSocket."""
    page = Dashboard()
    await page.client.connect(tally.url, namespaces=[*namespaces], transports=[*(transports or ["websocket"])])
    try:
        yield page
    finally:
        await leave(page.client)


async def leave(client: socketio.AsyncClient) -> None:
    """Disconnect. A long poll is not waited for, because the server responds to it only with its next ping."""
    if client.eio.transport() == "websocket":
        await client.disconnect()
        return
    session = client.eio.http
    await stop_polling(client)
    await client.eio.disconnect(abort=True)
    await session.close()


async def stop_polling(client: socketio.AsyncClient) -> None:
    """Stay connected, but do not fetch what is queued any more."""
    client.eio.read_loop_task.cancel()
    await asyncio.gather(client.eio.read_loop_task, return_exceptions=True)


class SlowClient:
    """A WebSocket that reads a message only when a test calls `read`, so that the buffers fill up."""

    def __init__(self, url: str, namespace: str) -> None:
        self._url = url
        self._prefix = "" if namespace == "/" else f"{namespace},"
        self.page = Dashboard()
        self.changes = 0  # received

    async def __aenter__(self) -> Self:
        address = f"{self._url.replace('http', 'ws')}/socket.io/?EIO=4&transport=websocket"
        connection = socket.create_connection((urlsplit(self._url).hostname, urlsplit(self._url).port))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        self._socket = await websockets.connect(
            address, sock=connection, max_queue=1, compression=None, close_timeout=0.2
        )
        await self._socket.recv()
        await self._socket.send(f"40{self._prefix}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._socket.close()

    async def send(self, packet: str | bytes) -> None:
        await self._socket.send(packet)

    async def read(self) -> None:
        """Read one packet. Pings are answered."""
        text = await self._socket.recv()
        if text == "2":
            await self._socket.send("3")
        elif text.startswith(f"42{self._prefix}"):
            event, data = json.loads(text[2 + len(self._prefix) :])
            self.changes += len(data["changes"]) if event == "changes" else 1
            if event == "update":
                self.page.counts[data["eventName"]] = data["count"]
            else:
                self.page.handler(event)(data)


class StreamReader:
    """Does what a browser's EventSource does."""

    def __init__(self) -> None:
        self.received: list[tuple[str, dict]] = []
        self.counts: dict[str, int] = {}
        self.last_id = ""
        self.retry = 0
        self.comments = 0

    async def read(self, response: httpx.Response) -> None:
        event, data, id_ = "message", "", self.last_id
        async for line in response.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                event = value
            elif name == "data":
                data = value
            elif name == "id":
                id_ = value
            elif name == "retry":
                self.retry = int(value)
            elif line.startswith(":"):
                self.comments += 1
            elif not line:
                self.last_id = id_
                if data:
                    self._handle(event, json.loads(data))
                event, data = "message", ""

    def _handle(self, event: str, data: dict) -> None:
        self.received.append((event, data))
        if event == "reset":
            self.counts = {}
        else:
            self.counts[data["eventName"]] = data["count"]


@contextlib.asynccontextmanager
async def reading(url: str, path: str = "/stream", last_id: str = "") -> AsyncIterator[StreamReader]:
    """Read a stream, from the time that its first line has arrived."""
    reader = StreamReader()
    headers = {"Last-Event-ID": last_id.encode()} if last_id else {}
    async with httpx.AsyncClient(timeout=30) as client, client.stream("GET", url + path, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        task = asyncio.create_task(reader.read(response))
        try:
            await eventually(lambda: reader.retry)
            yield reader
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@contextlib.contextmanager
def unread_stream(url: str) -> Iterator[socket.socket]:
    """A connection that asks for the stream of all events, and reads nothing."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        connection.sendall(f"GET /stream HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
        yield connection


def update(event: str, count: int) -> tuple[str, dict]:
    return "update", {"eventName": event, "count": count}
