"""A TCP proxy between a node and its Redis that does what networks do, where and when a test says so."""

import asyncio
import math
import random
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

Kind = Literal["pass", "cut before", "cut after", "freeze", "slow", "reset"]
CHUNK_BYTES = 65_536
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, for no time


@dataclass(eq=False)
class Fault:
    """What happens, by chance, to a request that holds these bytes.

    `cut before`: the request does not reach Redis. `reset`: likewise, and with a RST. `slow`: the answer comes so many
    seconds later. `cut after`: Redis answers, and so many seconds later the answer is lost. `freeze`: the request is
    held until `thaw`, then sent on, even if nobody waits for its answer any more.
    """

    kind: Kind = "pass"
    holding: bytes = b"EVAL"  # and so EVALSHA, not the pings and reads
    chance: float = 1.0
    left: float = math.inf  # how often it may strike yet
    seconds: float = 0
    struck: int = 0
    chosen_at: float = 0  # when it last chose its request, by time.monotonic()
    thawed: asyncio.Event = field(default_factory=asyncio.Event)

    def meets(self, request: bytes, dice: random.Random) -> bool:
        if self.kind == "pass" or self.holding not in request or self.left < 1 or dice.random() >= self.chance:
            return False
        self.left -= 1
        self.chosen_at = time.monotonic()
        return True

    def thaw(self) -> None:
        self.thawed.set()


class FaultProxy:
    """Listens on a port of this machine as long as it is entered; `fault` is what it does now."""

    def __init__(self, redis_socket: Path, seed: int = 0) -> None:
        self.fault = Fault()
        self._redis_socket = redis_socket
        self._dice = random.Random(seed)
        self._links: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    def strike(self, kind: Kind, **how: object) -> Fault:
        """From now on this; what the last fault holds goes on its way."""
        self.fault.thaw()
        self.fault = Fault(kind, **how)
        return self.fault

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.create_task(self._serve(reader, writer))
        self._links.add(link)
        link.add_done_callback(self._links.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry bytes both ways until one side ends, or a fault does."""
        try:
            from_redis, to_redis = await asyncio.open_unix_connection(self._redis_socket)
        except OSError:  # Redis is away, and so is this
            writer.transport.abort()
            return
        link = _Link(writer, to_redis, lambda request: self.fault if self.fault.meets(request, self._dice) else None)
        ways = [asyncio.create_task(link.requests(reader)), asyncio.create_task(link.answers(from_redis))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            for side in (writer, to_redis):
                side.close()
            await asyncio.gather(*ways, writer.wait_closed(), to_redis.wait_closed(), return_exceptions=True)


@dataclass(eq=False)
class _Link:
    """One connection; the node has at most one request under way on it, or a pipeline that goes out as one."""

    to_node: asyncio.StreamWriter
    to_redis: asyncio.StreamWriter
    meets: Callable[[bytes], Fault | None]
    on_answer: Fault | None = None  # what happens to the answer that comes next

    async def requests(self, node: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while chunk := await node.read(CHUNK_BYTES):
                fault = self.meets(chunk)
                if fault and fault.kind in {"cut after", "slow"}:
                    self.on_answer = fault
                elif fault:
                    fault.struck += 1
                    if fault.kind != "freeze":
                        self._cut(fault)
                        return
                    await fault.thawed.wait()
                self.to_redis.write(chunk)
                await self.to_redis.drain()

    async def answers(self, redis: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while chunk := await redis.read(CHUNK_BYTES):
                fault, self.on_answer = self.on_answer, None
                if fault:
                    fault.struck += 1
                    await asyncio.sleep(fault.seconds)
                    if fault.kind == "cut after":
                        return
                self.to_node.write(chunk)
                await self.to_node.drain()

    def _cut(self, fault: Fault) -> None:
        if fault.kind == "reset":
            self.to_node.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self.to_node.transport.abort()
