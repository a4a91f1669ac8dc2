"""A TCP proxy between a node and its Redis that injects network faults."""

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
    """A fault that hits, with some probability, requests that contain some bytes.

    `cut before`: the connection closes before the request reaches Redis. `reset`: the same, with a TCP reset.
    `slow`: the response is delayed by `seconds`. `cut after`: Redis responds, and the connection closes `seconds` later
    without the response. `freeze`: the request is held until `release`, and then sent even if its client no longer
    waits.
    """

    kind: Kind = "pass"
    matching: bytes = b"EVAL"  # also EVALSHA, but no pings and reads
    probability: float = 1.0
    remaining: float = math.inf  # how often it may still happen
    seconds: float = 0
    injected: int = 0  # how often it has happened
    matched_at: float = 0  # when it last matched a request, by time.monotonic()
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def matches(self, request: bytes, dice: random.Random) -> bool:
        """Decide whether the fault happens to a request."""
        if self.kind == "pass" or self.matching not in request or self.remaining < 1:
            return False
        if dice.random() >= self.probability:
            return False
        self.remaining -= 1
        self.matched_at = time.monotonic()
        return True

    def release(self) -> None:
        """Send the requests that `freeze` holds."""
        self.released.set()


class FaultProxy:
    """Listens on a port of this machine while its context is open. `fault` is the current fault."""

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

    def inject(self, kind: Kind, **options: object) -> Fault:
        """Replace the current fault, and send the requests that it holds. Options are fields of Fault."""
        self.fault.release()
        self.fault = Fault(kind, **options)
        return self.fault

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.create_task(self._serve(reader, writer))
        self._links.add(link)
        link.add_done_callback(self._links.discard)
        link.add_done_callback(lambda _: writer.close())  # it may be cancelled before it begins

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Copy bytes in both directions until one side or a fault closes the connection."""
        try:
            from_redis, to_redis = await asyncio.open_unix_connection(self._redis_socket)
        except OSError:  # Redis is unreachable, so this connection must fail, too
            writer.transport.abort()
            return
        link = _Link(writer, to_redis, lambda request: self.fault if self.fault.matches(request, self._dice) else None)
        directions = [asyncio.create_task(link.requests(reader)), asyncio.create_task(link.responses(from_redis))]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            for side in (writer, to_redis):
                side.close()
            await asyncio.gather(*directions, writer.wait_closed(), to_redis.wait_closed(), return_exceptions=True)


@dataclass(eq=False)
class _Link:
    """A connection with at most one request in flight. A pipeline is one request."""

    to_node: asyncio.StreamWriter
    to_redis: asyncio.StreamWriter
    fault_for: Callable[[bytes], Fault | None]
    response_fault: Fault | None = None  # applies to the next response

    async def requests(self, node: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while chunk := await node.read(CHUNK_BYTES):
                fault = self.fault_for(chunk)
                if fault and fault.kind in {"cut after", "slow"}:
                    self.response_fault = fault
                elif fault:
                    fault.injected += 1
                    if fault.kind != "freeze":
                        self._cut(fault)
                        return
                    await fault.released.wait()
                self.to_redis.write(chunk)
                await self.to_redis.drain()

    async def responses(self, redis: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while chunk := await redis.read(CHUNK_BYTES):
                fault, self.response_fault = self.response_fault, None
                if fault:
                    fault.injected += 1
                    await asyncio.sleep(fault.seconds)
                    if fault.kind == "cut after":
                        return
                self.to_node.write(chunk)
                await self.to_node.drain()

    def _cut(self, fault: Fault) -> None:
        if fault.kind == "reset":
            self.to_node.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self.to_node.transport.abort()
