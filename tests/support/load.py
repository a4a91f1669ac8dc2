"""Clients under load, and what they saw.

They speak HTTP by hand, so that two cores have room for them beside a node: httpx takes longer for a hit than Tally.
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

BARE = [f"bare{i}" for i in range(5)]
KEYED = [f"keyed{i}" for i in range(5)]
WRITERS = 2  # for each event
AGAIN_SECONDS = 0.01  # after what was not answered


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    json: Any

    @property
    def outcome(self) -> Outcome:
        """What it says of a hit: counted, not counted, or that nobody knows. Else it is no answer to a hit."""
        if self.status == 200:
            return "acknowledged"
        assert self.status in {502, 503, 504}, self
        assert self.headers["content-type"] == "application/problem+json", self
        return "refused" if self.json["counted"] == "no" else "unknown"


class Connection:
    """One kept alive, with one request at a time; after an error the next request makes it anew."""

    def __init__(self, url: str, address: str = "127.0.0.1") -> None:
        self._host, self._port = url.removeprefix("http://").split(":")
        self._address = address  # that it comes from
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self) -> None:
        """Raises OSError; nothing has been sent then."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(
                self._host, int(self._port), local_addr=(self._address, 0)
            )

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        """Raises OSError or EOFError: whether it was heard is not known."""
        await self.connect()
        assert self._writer
        said = {"host": self._host, "content-length": str(len(body))} | headers
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in said.items()), "\r\n"]
        try:
            self._writer.write("\r\n".join(lines).encode() + body)
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
            status, *named = head.strip().split("\r\n")
            told = dict(line.split(": ", 1) for line in named)
            content = await self._reader.readexactly(int(told["content-length"]))
        except (OSError, EOFError):
            self.close()
            raise
        if told.get("connection") == "close":
            self.close()
        return Answer(int(status.split()[1]), told, json.loads(content))

    def close(self) -> None:
        if self._writer:
            self._writer.close()
            self._writer = None


class Load:
    """Writers that hit one after the other, and a reader, until `stop` is set.

    Bare hits are never retried; keyed ones are retried until they are acknowledged. They come from several
    addresses, which a proxy may spread over its nodes.
    """

    def __init__(self, url: str, rest_seconds: float = 0, addresses: int = 1, *, apart: bool = False) -> None:
        self.url, self.rest_seconds = url, rest_seconds  # between one request and the next
        self.apart = apart  # whether a few hits after another have a name of their own; then nothing is read
        self._addresses = itertools.cycle(f"127.0.1.{i + 1}" for i in range(addresses))
        self.history = History()
        self.stale = History(self.history.adds)  # what was read while the node answered with the last known numbers
        self.again: list[Add] = []  # keyed hits that were sent anew, though their first try may have been counted
        self.acks: Counter[str] = Counter()  # the acknowledged hits, by what they survive
        self.problems: list[Answer] = []
        self.missed = 0  # reads that were not answered
        self.on_ack: Callable[[str, float], None] = lambda ack, sent: None  # and when its request was sent
        self.stop = asyncio.Event()

    @property
    def acknowledged(self) -> int:
        return self.acks.total()

    async def run(self) -> None:
        writing = [self._write(event) for event in (*BARE, *KEYED) for _ in range(WRITERS)]
        await asyncio.gather(*writing, *([] if self.apart else [self._read()]))

    async def _write(self, event: str) -> None:
        connection = Connection(self.url, next(self._addresses))
        while not self.stop.is_set():
            name = f"{event}-{len(self.history.adds) // 200}" if self.apart else event
            add = self.history.begin(name, random.randint(1, 5))
            key = {"idempotency-key": uuid.uuid4().hex} if event in KEYED else {}
            outcome = await self._hit(connection, add, key)
            while key and outcome != "acknowledged":
                if outcome == "unknown":
                    self.again.append(Add(name, add.by, add.began))
                await asyncio.sleep(AGAIN_SECONDS)
                outcome = await self._hit(connection, add, key)
            self.history.end(add, outcome)
            await asyncio.sleep(self.rest_seconds if outcome == "acknowledged" else AGAIN_SECONDS)
        connection.close()

    async def _hit(self, connection: Connection, add: Add, key: dict[str, str]) -> Outcome:
        try:
            await connection.connect()
        except OSError:
            return "refused"  # it never left
        sent = time.monotonic()
        try:
            answer = await connection.ask("POST", f"/event/{add.event}", b'{"by": %d}' % add.by, **key)
        except (OSError, EOFError):
            return "unknown"
        if answer.status != 200:
            self.problems.append(answer)
        else:
            self.acks[answer.json["ack"]] += 1
            self.on_ack(answer.json["ack"], sent)
        return answer.outcome

    async def _read(self) -> None:
        connection = Connection(self.url, next(self._addresses))
        while not self.stop.is_set():
            event = random.choice([*BARE, *KEYED])
            began = self.history.tick()
            try:
                answer = await connection.ask("GET", f"/event/{event}")
            except (OSError, EOFError):
                answer = None
            if answer is None or answer.status in {502, 504}:  # the proxy's
                self.missed += 1
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            assert answer.status == 200, answer
            read = Read(event, began, self.history.tick(), answer.json["count"])
            (self.stale if "tally-stale" in answer.headers else self.history).reads.append(read)
            await asyncio.sleep(self.rest_seconds)
        connection.close()


class Offer:
    """So many hits a second over so many connections, whether they are answered or not, until `stop` is set.

    A connection that was held up offers what it owes as soon as it can, so that a slow node is offered no less.
    """

    def __init__(self, url: str, events: list[str], rate: float, connections: int) -> None:
        self.url, self.events, self.rate, self.connections = url, events, rate, connections
        self.outcomes: Counter[Outcome] = Counter()
        self.acks: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()  # the acknowledged hits, by event
        self.longest_seconds = 0.0  # that a hit waited for its answer
        self.stop = asyncio.Event()

    @property
    def acknowledged(self) -> int:
        return self.outcomes["acknowledged"]

    async def run(self) -> None:
        self._begun = time.monotonic()
        await asyncio.gather(*(self._offer(number) for number in range(self.connections)))

    async def _offer(self, number: int) -> None:
        connection = Connection(self.url)
        event, due = self.events[number % len(self.events)], self._begun + number / self.rate
        while not self.stop.is_set():
            await asyncio.sleep(due - time.monotonic())
            due += self.connections / self.rate
            sent = time.monotonic()
            try:
                answer = await connection.ask("POST", f"/event/{event}")
            except (OSError, EOFError):
                self.outcomes["unknown"] += 1
                continue
            finally:
                self.longest_seconds = max(self.longest_seconds, time.monotonic() - sent)
            self.outcomes[answer.outcome] += 1
            if answer.status == 200:
                self.acks[answer.json["ack"]] += 1
                self.counts[event] += 1
        connection.close()


async def read_all(load: Load, app: Process) -> dict[str, int]:
    values = await asyncio.to_thread(app.get, "/events")
    for event in (*BARE, *KEYED):
        with load.history.reading(event) as read:
            read.append(values.get(event, 0))
    return values


def assert_exact(load: Load, values: dict[str, int]) -> None:
    """Every true read lay within its bounds, and what was retried until it was acknowledged is counted just once."""
    assert_right(load.history)
    for event in KEYED:
        assert values[event] == sum(add.by for add in load.history.adds if add.event == event)


def assert_right(history: History) -> None:
    wrong = history.wrong_reads()
    assert not wrong, f"{len(wrong)} of {len(history.reads)} reads, the first {wrong[:3]}"
