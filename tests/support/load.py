"""Clients that load a node and record the results.

They have an HTTP client of their own, because httpx needs more CPU time per hit than Tally, and both share two cores.
"""

import asyncio
import itertools
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.support.history_checker import Add, History, Outcome, Read
from tests.support.servers import Process

UNKEYED = [f"bare{i}" for i in range(5)]
KEYED = [f"keyed{i}" for i in range(5)]
WRITERS = 2  # per event
RETRY_SECONDS = 0.01


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    json: Any

    @property
    def outcome(self) -> Outcome:
        """The outcome of a hit. Fails if this is not a response that a hit can get."""
        if self.status == 200:
            return "acknowledged"
        assert self.status in {502, 503, 504}, self
        assert self.headers["content-type"] == "application/problem+json", self
        return "rejected" if self.json["counted"] == "no" else "unknown"


class Connection:
    """A keep-alive connection with one request at a time. After an error, the next request reconnects."""

    def __init__(self, url: str, address: str = "127.0.0.1") -> None:
        self._host, self._port = url.removeprefix("http://").split(":")
        self._local_address = address
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self) -> None:
        """Connect if necessary. Raises OSError if nothing was sent."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(
                self._host, int(self._port), local_addr=(self._local_address, 0)
            )

    async def request(self, method: str, path: str, body: bytes = b"", **headers: str) -> Response:
        """Send a request, and wait for its JSON response. Raises OSError or EOFError if its outcome is unknown."""
        status, received, content = await self._exchange(method, path, body, headers)
        return Response(status, received, json.loads(content))

    async def fetch(self, method: str, path: str, body: bytes = b"") -> str:
        """Send a request, and return the text of its response. Raises OSError or EOFError, also if it is an error."""
        status, _, content = await self._exchange(method, path, body, {})
        if status != 200:
            raise ConnectionError(f"{status} {content.decode()}")
        return content.decode()

    async def _exchange(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        await self.connect()
        assert self._writer
        sent = {"host": self._host, "content-length": str(len(body))} | headers
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items()), "\r\n"]
        try:
            self._writer.write("\r\n".join(lines).encode() + body)
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
            status, *lines = head.strip().split("\r\n")
            received = dict(line.split(": ", 1) for line in lines)
            if "content-length" in received:
                content = await self._reader.readexactly(int(received["content-length"]))
            else:
                content = await self._read_chunks()
        except (OSError, EOFError):
            self.close()
            raise
        if received.get("connection") == "close":
            self.close()
        return int(status.split()[1]), received, content

    async def _read_chunks(self) -> bytes:
        """Read a body in HTTP's chunked transfer coding."""
        content, size = b"", 1
        while size:
            size = int(await self._reader.readline(), 16)
            content += (await self._reader.readexactly(size + 2))[:-2]
        return content

    def close(self) -> None:
        if self._writer:
            self._writer.close()
            self._writer = None


class Load:
    """Writers that send one hit after the other, and a reader, until `stop` is set.

    Hits without a key are never retried; hits with a key are retried until they are acknowledged. They come from
    several addresses, so that a proxy spreads them over its nodes. After each response a client waits for
    `rest_seconds`. With `separate_names`, every few hits have an event name of their own, and nothing is read.
    """

    def __init__(self, url: str, rest_seconds: float = 0, addresses: int = 1, *, separate_names: bool = False) -> None:
        self.url, self.rest_seconds = url, rest_seconds
        self.separate_names = separate_names
        self._addresses = itertools.cycle(f"127.0.1.{i + 1}" for i in range(addresses))
        self.history = History()
        self.stale = History(self.history.adds)  # the reads that the node marked as stale
        self.retried: list[Add] = []  # hits with a key that were sent again, although the first try may have counted
        self.keyed: list[tuple[Add, dict[str, str]]] = []  # acknowledged hits with a key, and the header with it
        self.acks: Counter[str] = Counter()  # the acknowledged hits by their `ack`
        self.problems: list[Response] = []  # error responses to hits
        self.failed_reads = 0
        # It is called for each acknowledged hit, with its `ack` and the time when its request was sent.
        self.on_ack: Callable[[str, float], None] = lambda ack, sent: None
        self.stop = asyncio.Event()

    @property
    def acknowledged(self) -> int:
        return self.acks.total()

    async def run(self) -> None:
        writing = [self._write(event) for event in (*UNKEYED, *KEYED) for _ in range(WRITERS)]
        await asyncio.gather(*writing, *([] if self.separate_names else [self._read()]))

    async def _write(self, event: str) -> None:
        connection = Connection(self.url, next(self._addresses))
        while not self.stop.is_set():
            name = f"{event}-{len(self.history.adds) // 200}" if self.separate_names else event
            add = self.history.begin(name, random.randint(1, 5))
            key = {"idempotency-key": uuid.uuid4().hex} if event in KEYED else {}
            outcome = await self._hit(connection, add, key)
            while key and outcome != "acknowledged":
                if outcome == "unknown":
                    self.retried.append(Add(name, add.by, add.began))
                await asyncio.sleep(RETRY_SECONDS)
                outcome = await self._hit(connection, add, key)
            self.history.end(add, outcome)
            if key:
                self.keyed.append((add, key))
            await asyncio.sleep(self.rest_seconds if outcome == "acknowledged" else RETRY_SECONDS)
        connection.close()

    async def repeat(self, hits: int) -> None:
        """Send some of the acknowledged hits with a key again, which must not be counted."""
        connection = Connection(self.url, next(self._addresses))
        for add, key in random.sample(self.keyed, min(hits, len(self.keyed))):
            assert await self._hit(connection, add, key) == "acknowledged"
        connection.close()

    async def _hit(self, connection: Connection, add: Add, key: dict[str, str]) -> Outcome:
        try:
            await connection.connect()
        except OSError:
            return "rejected"  # it was never sent
        sent = time.monotonic()
        try:
            response = await connection.request("POST", f"/event/{add.event}", b'{"by": %d}' % add.by, **key)
        except (OSError, EOFError):
            return "unknown"
        if response.status != 200:
            self.problems.append(response)
        else:
            self.acks[response.json["ack"]] += 1
            self.on_ack(response.json["ack"], sent)
        return response.outcome

    async def _read(self) -> None:
        connection = Connection(self.url, next(self._addresses))
        while not self.stop.is_set():
            event = random.choice([*UNKEYED, *KEYED])
            began = self.history.tick()
            try:
                response = await connection.request("GET", f"/event/{event}")
            except (OSError, EOFError):
                response = None
            if response is None or response.status in {502, 504}:  # from the proxy
                self.failed_reads += 1
                await asyncio.sleep(RETRY_SECONDS)
                continue
            assert response.status == 200, response
            read = Read(event, began, self.history.tick(), response.json["count"])
            (self.stale if "tally-stale" in response.headers else self.history).reads.append(read)
            await asyncio.sleep(self.rest_seconds)
        connection.close()


class OpenLoopLoad:
    """Hits at a fixed rate per second over some connections, until `stop` is set.

    A connection that had to wait sends its overdue hits as soon as it can, so that a slow node gets the same load.
    """

    def __init__(self, url: str, events: list[str], rate: float, connections: int) -> None:
        self.url, self.events, self.rate, self.connections = url, events, rate, connections
        self.outcomes: Counter[Outcome] = Counter()
        self.acks: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()  # the acknowledged hits, by event
        self.longest_seconds = 0.0  # from a request to its response
        self.stop = asyncio.Event()

    @property
    def acknowledged(self) -> int:
        return self.outcomes["acknowledged"]

    async def run(self) -> None:
        self._started = time.monotonic()
        await asyncio.gather(*(self._send(number) for number in range(self.connections)))

    async def _send(self, number: int) -> None:
        connection = Connection(self.url)
        event, due = self.events[number % len(self.events)], self._started + number / self.rate
        while not self.stop.is_set():
            await asyncio.sleep(due - time.monotonic())
            due += self.connections / self.rate
            sent = time.monotonic()
            try:
                response = await connection.request("POST", f"/event/{event}")
            except (OSError, EOFError):
                self.outcomes["unknown"] += 1
                continue
            finally:
                self.longest_seconds = max(self.longest_seconds, time.monotonic() - sent)
            self.outcomes[response.outcome] += 1
            if response.status == 200:
                self.acks[response.json["ack"]] += 1
                self.counts[event] += 1
        connection.close()


async def read_all(load: Load, app: Process) -> dict[str, int]:
    """Read all counts of a node, and record them in the history of the load."""
    values = await asyncio.to_thread(app.get, "/events")
    for event in (*UNKEYED, *KEYED):
        with load.history.reading(event) as read:
            read.append(values.get(event, 0))
    return values


def assert_exact(load: Load, values: dict[str, int]) -> None:
    """Check that each read was right, and that each hit with a key was counted exactly once."""
    assert_reads_right(load.history)
    for event in KEYED:
        assert values[event] == sum(add.by for add in load.history.adds if add.event == event)


def assert_reads_right(history: History) -> None:
    wrong = history.wrong_reads()
    assert not wrong, f"{len(wrong)} of {len(history.reads)} reads, the first {wrong[:3]}"
