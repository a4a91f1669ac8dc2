"""Live clients on bare WebSockets, hundreds in one process, which notice counts that go backwards."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

from websockets.asyncio.client import ClientConnection, connect

from tests.support.load import Connection

JOINING_AT_ONCE = 50  # more would fill the queue of a listening socket


class Watcher:
    """A client of one namespace, which keeps the counts that it receives."""

    def __init__(self, namespace: str) -> None:
        self.counts: dict[str, int] = {}
        self.resets: list[str] = []  # days that began
        self.epochs: list[str] = []  # of the snapshots of /live, without repetitions
        self.states: list[str] = []
        self.message_count = 0
        self.wrong: list[str] = []  # counts that went backwards
        self._prefix = "" if namespace == "/" else f"{namespace},"
        self._names: list[str] = []
        self._seq = -1
        # Epoch, day and generation, within which counts only grow.
        self._generation: object = None
        self._joined = asyncio.Event()

    async def join(self, url: str) -> None:
        address = f"{url.replace('http', 'ws', 1)}/socket.io/?EIO=4&transport=websocket"
        self._socket: ClientConnection = await connect(address, compression=None, ping_interval=None)
        assert (await self._socket.recv())[0] == "0"
        await self._socket.send(f"40{self._prefix}")
        self._reading = asyncio.create_task(self._read())
        await self._until_joined()

    async def _until_joined(self) -> None:
        joined = asyncio.create_task(self._joined.wait())
        await asyncio.wait([joined, self._reading], return_when=asyncio.FIRST_COMPLETED)
        if not joined.done():
            joined.cancel()
            raise ConnectionError("the connection was closed before the client had joined")

    async def leave(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._socket.close()

    async def _send(self, packet: str) -> None:
        await self._socket.send(packet)

    async def _read(self) -> None:
        async for packet in self._socket:
            await self._on_packet(packet)

    async def _on_packet(self, packet: str) -> None:
        if packet == "2":
            await self._send("3")
        elif packet.startswith(f"40{self._prefix}"):
            self._joined.set()
        elif packet.startswith(f"42{self._prefix}"):
            self.message_count += 1
            event, data = json.loads(packet[2 + len(self._prefix) :])
            await getattr(self, f"_on_{event}")(data)

    async def _on_update(self, data: dict) -> None:
        self._show(data["eventName"], data["count"])

    async def _on_reset(self, data: dict) -> None:
        self.resets.append(data["day"])
        self.counts = {}

    async def _on_state(self, data: dict) -> None:
        self.states.append(data["status"])

    async def _on_snapshot(self, data: dict) -> None:
        if data["offset"] == 0:
            generation = data["epoch"], data["day"], data["generation"]
            if generation != self._generation:
                self._generation, self.counts = generation, {}
                self.epochs += [data["epoch"]] if data["epoch"] not in self.epochs[-1:] else []
            self._names = []
        self._names += data["names"]
        self._seq = data["seq"]
        for name, count in zip(data["names"], data["counts"], strict=True):
            self._show(name, count)

    async def _on_changes(self, data: dict) -> None:
        if data.get("since", data["seq"]) > self._seq + 1:
            await self._send(f'42{self._prefix}["resync"]')
            return
        self._seq = data["seq"]
        self._names += data["names"]
        for index, count in data["changes"]:
            self._show(self._names[index], count)

    def _show(self, name: str, count: int) -> None:
        if count < self.counts.get(name, 0):
            self.wrong.append(f"{name} was {self.counts[name]}, and then {count}")
        self.counts[name] = count


class PollingWatcher(Watcher):
    """A watcher that polls over HTTP, one request after the other."""

    async def join(self, url: str) -> None:
        self._path = "/socket.io/?EIO=4&transport=polling"
        self._polls, self._posts = Connection(url), Connection(url)
        opened = json.loads((await self._polls.fetch("GET", self._path))[1:])
        self._path += f"&sid={opened['sid']}"
        await self._send(f"40{self._prefix}")
        self._reading = asyncio.create_task(self._read())
        await self._until_joined()

    async def leave(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        self._polls.close()
        self._posts.close()

    async def _send(self, packet: str) -> None:
        await self._posts.fetch("POST", self._path, packet.encode())

    async def _read(self) -> None:
        while True:
            for packet in (await self._polls.fetch("GET", self._path)).split("\x1e"):
                await self._on_packet(packet)


@contextlib.asynccontextmanager
async def watching(*urls: str, live: int, plain: int, kind: type[Watcher] = Watcher) -> AsyncIterator[list[Watcher]]:
    """Connect clients to each of these nodes, so many of each namespace; yield them in the order of the nodes."""
    watchers = [(url, kind(name)) for url in urls for name in ["/live"] * live + ["/"] * plain]
    joining = asyncio.Semaphore(JOINING_AT_ONCE)

    async def join(url: str, watcher: Watcher) -> None:
        async with joining:
            await watcher.join(url)

    await asyncio.gather(*(join(url, watcher) for url, watcher in watchers))
    try:
        yield [watcher for _, watcher in watchers]
    finally:
        await asyncio.gather(*(watcher.leave() for _, watcher in watchers))
