"""Live clients of a fuzzer: a dashboard that loses messages and stops reading, and a stream that is interrupted."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect

from tests.live.clients import StreamReader

SNAPSHOT_TIMEOUT_SECONDS = 0.3  # after which a dashboard asks for a snapshot again
PREFIX = "42/live,"


class Decreases(Counter[str]):
    """How often the count of each event was smaller than the one before it in the same scope."""

    def __init__(self) -> None:
        super().__init__()
        self._scope: object = None
        self._counts: dict[str, int] = {}

    def observe(self, scope: object, counts: Mapping[str, int]) -> None:
        if scope != self._scope:
            self._scope, self._counts = scope, {}
        self.update(event for event, count in counts.items() if count < self._counts.get(event, 0))
        self._counts |= counts


class LossyDashboard:
    """Keeps counts as static/js/data/socket.js does, but ignores messages at its `loss_rate`: `lost` so far.

    `wrong` are the decreases within an epoch, day and generation, `decreases` those on a node within a day.
    """

    def __init__(self, rng: random.Random) -> None:
        self.counts: dict[str, int] = {}
        self.wrong, self.decreases = Decreases(), Decreases()
        self.loss_rate, self.lost = 0.0, 0
        self._rng = rng
        self._names: list[str] = []
        self._url = ""
        self._seq = -1
        self._generation = "", "", 0  # the epoch, day and generation
        self._reading: asyncio.Task[None] | None = None
        self._pause_seconds = 0.0

    async def join(self, url: str) -> None:
        self._url = url
        address = f"{url.replace('http', 'ws', 1)}/socket.io/?EIO=4&transport=websocket"
        self._socket = socket = await connect(address, compression=None, ping_interval=None)
        await socket.recv()
        await socket.send("40/live,")
        self._expect_snapshot()
        self._reading = asyncio.create_task(self._read(socket))

    async def leave(self) -> None:
        if self._reading:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            await self._socket.close()

    def pause(self, seconds: float) -> None:
        """Read nothing for some time."""
        self._pause_seconds = seconds

    def check(self) -> None:
        """Raise the error that has ended the connection, if one has."""
        assert not self.wrong, self.wrong
        if self._reading and self._reading.done():
            self._reading.result()
            raise AssertionError("the server has closed the connection")

    def _expect_snapshot(self) -> None:
        self._awaiting, self._partial = True, dict[str, Any]()
        self._buffered: list[dict[str, Any]] = []

    async def _read(self, socket: ClientConnection) -> None:
        while True:
            if self._pause_seconds:
                await asyncio.sleep(self._pause_seconds)
                self._pause_seconds = 0
            try:
                async with asyncio.timeout(SNAPSHOT_TIMEOUT_SECONDS):
                    packet = await socket.recv()
            except TimeoutError:
                if self._awaiting:
                    await self._resync(socket)
                continue
            if packet == "2":
                await socket.send("3")
            elif not packet.startswith(PREFIX):
                continue
            elif self._rng.random() < self.loss_rate:
                self.lost += 1
            elif not self._take(*json.loads(packet.removeprefix(PREFIX))):
                await self._resync(socket)

    async def _resync(self, socket: ClientConnection) -> None:
        self._expect_snapshot()
        await socket.send(f'{PREFIX}["resync"]')

    def _take(self, event: str, data: dict[str, Any]) -> bool:
        """Take a message. Return False if one before it is missing."""
        if event == "snapshot":
            return self._take_snapshot(data)
        if event == "changes":
            return self._take_changes(data)
        if event == "reset":
            self._expect_snapshot()
        return True

    def _take_snapshot(self, chunk: dict[str, Any]) -> bool:
        if chunk["offset"] == 0:
            self._awaiting, self._partial = True, chunk | {"names": [], "counts": []}
        partial = self._partial
        expected = (partial.get("epoch"), partial.get("seq"), len(partial.get("names", ())))
        if (chunk["epoch"], chunk["seq"], chunk["offset"]) != expected:
            return False
        partial["names"] += chunk["names"]
        partial["counts"] += chunk["counts"]
        if len(partial["names"]) < chunk["size"]:
            return True
        buffered = self._buffered
        self._expect_snapshot()
        self._awaiting = False
        self._show_snapshot(partial)
        is_complete = True
        for changes in buffered:
            is_complete &= self._take_changes(changes)
        return is_complete

    def _show_snapshot(self, snapshot: dict[str, Any]) -> None:
        self._names, self._seq = snapshot["names"], snapshot["seq"]
        assert len(self._names) == len(set(self._names)) == snapshot["size"], snapshot
        self._generation = snapshot["epoch"], snapshot["day"], snapshot["generation"]
        self._show(dict(zip(self._names, snapshot["counts"], strict=True)))

    def _take_changes(self, changes: dict[str, Any]) -> bool:
        if self._awaiting:
            self._buffered.append(changes)
            return True
        if changes["seq"] <= self._seq:
            return True
        names = [*self._names, *changes["names"]]
        if changes.get("since", changes["seq"]) > self._seq + 1 or any(i >= len(names) for i, _ in changes["changes"]):
            return False
        self._names, self._seq = names, changes["seq"]
        self._show(self.counts | {names[index]: count for index, count in changes["changes"]})
        return True

    def _show(self, counts: dict[str, int]) -> None:
        _, day, _ = self._generation
        everything = dict.fromkeys(self.counts, 0) | counts
        self.wrong.observe(self._generation, everything)
        self.decreases.observe((self._url, day), everything)
        self.counts = counts


class InterruptedStream(StreamReader):
    """Reads a stream, and resumes it with the last id. `decreases` are those on a node within a day."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.decreases = Decreases()
        self._path, self.url = path, ""
        self._resets = 0
        self._reading: asyncio.Task[None] | None = None

    async def join(self, url: str) -> None:
        self.url = url
        self._reading = asyncio.create_task(self._read_from(url))

    async def leave(self) -> None:
        if self._reading:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    def check(self) -> None:
        """Raise the error that has ended the connection, if one has."""
        if self._reading and self._reading.done():
            self._reading.result()
            raise AssertionError("the server has closed the connection")

    async def _read_from(self, url: str) -> None:
        headers = {"Last-Event-ID": self.last_id.encode()} if self.last_id else {}
        async with (
            httpx.AsyncClient(timeout=30) as client,
            client.stream("GET", url + self._path, headers=headers) as response,
        ):
            assert response.status_code == 200
            await self.read(response)

    def _handle(self, event: str, data: dict[str, Any]) -> None:
        super()._handle(event, data)
        if event == "reset":
            self._resets += 1
        else:
            self.decreases.observe((self.url, self._resets), {data["eventName"]: data["count"]})
