"""Each thing is filled to its limit, and costs what the tables of docs/reference/limits.md say.

A test may exceed a figure by a third, because memory is measured in pages and the allocator keeps some of them. A limit
that takes long to reach is lowered, and the cost of one item is compared.
"""

import asyncio
import contextlib
import importlib
import json
import os
import pkgutil
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import pytest

import app
from app import corrections
from app.domain.counting import DayChange, HitGroup, IdempotencyKey, Visit
from app.settings import Settings
from app.stores.base import CounterStore, StoreLimits
from app.stores.redis import RedisStore
from app.stores.redis_url import RedisTarget
from app.stores.rules import RANKED_VISITORS_MAX, RESULT_EVENTS_MAX
from app.stores.sqlite import SqliteStore
from tests.stores.offline_stores import NOON
from tests.support.load import Connection
from tests.support.redis_servers import RedisServer
from tests.support.scenarios import memory_kb, node, store
from tests.support.scenarios.clients import connect_without_reading, connected_clients
from tests.support.servers import ROOT, Process, eventually

UNITS = {"bytes": 1, "kB": 1000, "MB": 10**6, "KiB": 1024, "MiB": 1024**2, "": 1}
TABLES = (
    (ROOT / "docs/reference/limits.md").read_text().split("## What each thing costs at most\n")[1].split("\n## ")[0]
)
ROWS = {cells[0]: cells[1:] for line in TABLES.splitlines() if len(cells := line.strip("| ").split(" | ")) == 4}
NAMES = [f"{i:06}{'x' * 14}" for i in range(100_000)]
TCP_CLOSE = 7  # a state in Linux' TCP_INFO
LIMITS = StoreLimits(names=10**6, keys=10**6)


def cost(thing: str, which: int = 0) -> float:
    """Return a figure of a thing's row, in bytes."""
    number, unit = re.findall(r"([\d,.]+) (bytes|kB|MB)\b", ROWS[thing][1])[which]
    return float(number.replace(",", "")) * UNITS[unit]


def check(thing: str, measured: float, which: int = 0, part: float = 1) -> None:
    """Check that a part of a thing costs what its row says, and not far less."""
    expected = cost(thing, which) * part
    assert 0.3 * expected <= measured <= 1.34 * expected, f"{thing}: {measured:,.0f} bytes, not {expected:,.0f}"


def code_constants() -> dict[str, set[object]]:
    """Return the values of all constants in the code by their names."""
    constants: dict[str, set[object]] = {}
    for found in pkgutil.walk_packages(app.__path__, "app."):
        if found.name != "app.__main__":
            for name, value in vars(importlib.import_module(found.name)).items():
                if name.isupper() and isinstance(value, (int, float)):
                    constants.setdefault(name, set()).add(value)
    return constants


def test_the_limits_in_the_tables_are_those_of_the_code() -> None:
    constants = code_constants()
    documented = re.findall(r"`([A-Z_]+)` = ([\d,.]+)(?: (KiB|MiB|kB|MB))?", TABLES)
    assert len(documented) > 25
    for name, number, unit in documented:
        value = float(number.replace(",", "")) * UNITS[unit]
        if name.startswith("TALLY_"):
            value = float(number.replace(",", ""))
            assert Settings.model_fields[name.removeprefix("TALLY_").lower()].default == value, name
        else:
            assert value in constants[name], f"{name} is {constants[name]}"


# The store


async def bytes_in_redis(server: RedisServer, fill: Callable[[CounterStore], Awaitable[None]]) -> int:
    server.flush()
    filled = RedisStore(RedisTarget.from_url(server.url), LIMITS)
    await filled.open()
    await fill(filled)
    await filled.close()
    with server.client() as client:
        return sum(client.memory_usage(key, samples=0) for key in client.scan_iter("*"))


async def bytes_in_sqlite(path: Path, fill: Callable[[CounterStore], Awaitable[None]]) -> int:
    """Return the bytes of the pages that are used. The file does not shrink when pages become free."""
    filled = SqliteStore(path, LIMITS)
    await filled.open()

    def used() -> int:
        size, pages, free = (
            filled._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count")
        )
        return int(size * (pages - free))

    before = used()
    await fill(filled)
    await filled.prune({}, NOON)  # writes the counts of the log into the tables
    grown = used() - before
    await filled.close()
    return grown


async def count_names(filled: CounterStore) -> None:
    await filled.apply("s", 0, 1, [HitGroup(NOON, dict.fromkeys(NAMES[:3000], 1000))])


async def count_few_names(filled: CounterStore) -> None:
    for offset in range(20):
        slot = NOON._replace(minute=NOON.minute + 60 * offset)
        await filled.apply("s", offset, offset + 1, [HitGroup(slot, dict.fromkeys(NAMES[:100], 1000))])


def use_keys(number: int, events: int) -> Callable[[CounterStore], Awaitable[None]]:
    """Return a function that counts this many batches with a key, whose counts have as many digits as possible."""

    async def fill(filled: CounterStore) -> None:
        amounts = dict.fromkeys(NAMES[:events], 10**12)
        await filled.apply("s", 0, 1, [HitGroup(NOON, dict.fromkeys(amounts, 5 * 10**15))])
        for i in range(1, number + 1):
            key = IdempotencyKey(f"{i:032}", f"{i:032}", "c" * 32)
            await filled.apply("s", i, i + 1, [HitGroup(NOON, amounts, key)])

    return fill


async def count_visitors(filled: CounterStore) -> None:
    for i in range(0, RANKED_VISITORS_MAX + 2000, 500):
        visits = [Visit("a", 1, f"{number:032}", None) for number in range(i, i + 500)]
        await filled.apply("s", i, i + 500, [HitGroup(NOON, {"a": 500}, visits=visits)])


async def correct(filled: CounterStore) -> None:
    await filled.apply("s", 0, 1, [HitGroup(NOON, {NAMES[0]: 1000})])
    for i in range(300):
        change, _ = await corrections.correct(filled, NOON, NOON.minute, NAMES[0], 10**9 + i, None, 100)
        await apply_change(filled, i, change)


async def apply_change(filled: CounterStore, offset: int, change: DayChange) -> None:
    await filled.apply_change("changes", offset, offset + 1, change._replace(may_be_late=True))


async def use_sources(filled: CounterStore) -> None:
    for i in range(500):
        await filled.apply(f"{i:032}", 0, 1, [HitGroup(NOON, {"a": 1})])


ITEMS = {  # by row: what is filled, and the number of items; the first figure is that of Redis, the second of SQLite
    "an event name in each minute, hour and day, and its total": (count_names, 4 * 3000),
    "an `Idempotency-Key`": (use_keys(1000, 1), 1000),
    "an `Idempotency-Key` of a batch": (use_keys(200, RESULT_EVENTS_MAX), 200),
    "the users of an event on a day": (count_visitors, 1),
    "a correction, deletion or reset": (correct, 300),
    "a source, such as a process": (use_sources, 500),
}


@pytest.mark.parametrize("thing", ITEMS)
async def test_the_store_needs_as_much_as_the_table_says(thing: str, redis_server: RedisServer, tmp_path: Path) -> None:
    fill, items = ITEMS[thing]
    check(thing, await bytes_in_redis(redis_server, fill) / items, 0)
    check(thing, await bytes_in_sqlite(tmp_path / "tally.db", fill) / items, 1)


async def test_a_batch_of_more_events_than_are_saved_needs_no_more_than_a_hit(redis_server: RedisServer) -> None:
    grown = [await bytes_in_redis(redis_server, use_keys(number, RESULT_EVENTS_MAX + 1)) for number in (10, 110)]
    check("an `Idempotency-Key`", (grown[1] - grown[0]) / 100)


# A node


def patched(*changes: str) -> tuple[str, str]:
    """Return the command line of a node with other constants: each change is `module.NAME = value`."""
    modules = {f"import {change.rpartition('.')[0]}" for change in changes}
    return "-c", "; ".join([*modules, *changes, "from app.cli import main", "main()"])


async def count_all(process: Process, names: list[str], repeat: int = 1) -> None:
    connection = Connection(process.url)
    for _ in range(repeat):
        for i in range(0, len(names), 10_000):
            body = json.dumps(dict.fromkeys(names[i : i + 10_000], 1)).encode()
            assert (await connection.request("POST", "/events", body)).status == 200
    connection.close()


@contextlib.asynccontextmanager
async def growing(process: Process) -> AsyncIterator[Callable[[], int]]:
    """Yield a function that returns by how many bytes the node's memory has grown, at its peak."""
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # resets VmHWM
    before = memory_kb(process, "VmHWM")
    yield lambda: 1024 * (memory_kb(process, "VmHWM") - before)


@contextlib.contextmanager
def unread(process: Process, *requests: bytes) -> Iterator[list[socket.socket]]:
    """Send each request on a connection of its own, and read nothing."""
    with contextlib.ExitStack() as opened:
        connections = [opened.enter_context(socket.socket()) for _ in requests]
        for connection, request in zip(connections, requests, strict=True):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", process.port))
            connection.send(request)
        yield connections


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
async def test_a_node_needs_as_much_for_a_name(kind: str, tmp_path: Path) -> None:
    with store(tmp_path, kind) as url, node(tmp_path, url) as process:
        await count_all(process, NAMES[:100])
        async with growing(process) as grown:
            await count_all(process, NAMES[:30_000])
            check("an event name", grown(), part=30_000)


@pytest.mark.fails_on_mutant(
    "all reads at once", "app/http/queries.py", "Semaphore(LARGE_READS_MAX)", "Semaphore(1000)"
)
async def test_reads_of_all_events_wait_for_each_other(tmp_path: Path) -> None:
    part = 0.2  # of 100,000 names
    with node(tmp_path, "memory://") as process:
        await count_all(process, NAMES[: int(part * len(NAMES))])
        async with growing(process) as grown, httpx.AsyncClient(timeout=60, base_url=process.url) as client:
            responses = await asyncio.gather(*(client.get("/events?sort=-count") for _ in range(40)))
            assert {len(response.json()) for response in responses} == {20_000}
            check("reads of all events", grown(), part=4 * part)


@pytest.mark.fails_on_mutant(
    "the kernel keeps what was not sent",
    "app/server/connection.py",
    "        if not self.is_closing():\n",
    "        if False:\n",
)
@pytest.mark.fails_on_mutant(
    "responses wait without bound", "app/server/connection.py", "while self._total > UNREAD_BYTES_MAX:", "while False:"
)
async def test_responses_that_clients_do_not_read_have_a_common_limit(tmp_path: Path) -> None:
    lowered = patched("app.server.connection.UNREAD_BYTES_MAX = 8 * 1024 * 1024")
    with node(tmp_path, "memory://", *lowered) as process:
        await count_all(process, NAMES[:20_000])  # a list of them has half a megabyte
        await asyncio.to_thread(process.get, "/events")
        async with growing(process) as grown:
            with unread(process, *[get("/events")] * 60) as connections:
                await eventually(lambda: sum(map(is_closed, connections)) >= 30)
                reading = 4 * cost("reads of all events") / 5
                check("responses that clients do not read", grown() - reading, part=1 / 8)
                # A client that reads gets its response.
                assert len(await asyncio.to_thread(process.get, "/events")) == 20_000


def is_closed(connection: socket.socket) -> bool:
    """Return whether the node has reset a connection of which nothing is read."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE


@pytest.mark.fails_on_mutant(
    "any number of bodies", "app/http/parsing.py", "if size > 0 and self._used > BODIES_BYTES_MAX:", "if False:"
)
@pytest.mark.fails_on_mutant(
    "a body counts for ever", "app/http/parsing.py", "        budget.take(-len(body))\n", "        pass\n"
)
async def test_batches_that_are_being_received_have_a_common_limit(tmp_path: Path) -> None:
    head = b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: 4000002\r\n\r\n"

    async def begin() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
        writer.write(head + b'{"' + b"x" * 3_999_000)
        with contextlib.suppress(OSError):
            await writer.drain()
        return reader, writer

    with node(tmp_path, "memory://", *patched("app.http.parsing.BODIES_BYTES_MAX = 32 * 1024 * 1024")) as process:
        await count_all(process, NAMES[:10])
        async with growing(process) as grown:
            connections = await asyncio.gather(*(begin() for _ in range(30)))
            heads = [asyncio.create_task(reader.readuntil(b"\r\n\r\n")) for reader, _ in connections]
            await eventually(lambda: sum(head.done() for head in heads) >= 20)
            check("batches that are being received", grown(), part=1 / 2)
        assert {head.result().split()[1] for head in heads if head.done()} == {b"503"}
        for (_, writer), head in zip(connections, heads, strict=True):
            writer.close()
            head.cancel()
        await asyncio.gather(*heads, return_exceptions=True)
        await eventually(lambda: is_accepted(process))  # the bodies of closed connections no longer count


async def is_accepted(process: Process) -> bool:
    return await send_batch(process, [f"{name}{'x' * 100}" for name in NAMES[:10_000]]) == 200


@pytest.mark.fails_on_mutant(
    "any number of connections", "app/server/connection.py", "if len(self.connections) > CONNECTIONS_MAX:", "if False:"
)
async def test_a_node_has_a_limited_number_of_connections(tmp_path: Path) -> None:
    with node(tmp_path, "memory://", *patched("app.server.connection.CONNECTIONS_MAX = 1000")) as process:
        first = Connection(process.url)
        await first.request("GET", "/event/a")
        async with growing(process) as grown:
            idle = [Connection(process.url) for _ in range(999)]
            for connection in idle:
                await connection.request("GET", "/event/a")
            check("a connection", grown(), part=len(idle))
            with pytest.raises((OSError, EOFError)):
                await Connection(process.url).request("GET", "/event/a")
        assert (await first.request("GET", "/event/a")).status == 200
        for connection in (first, *idle):
            connection.close()


async def test_hits_that_wait_have_a_limit(tmp_path: Path, own_redis: RedisServer) -> None:
    own_redis.start()
    with node(tmp_path, own_redis.url, TALLY_EVENTS_MAX="1000000") as process:
        await count_all(process, NAMES[:10_000])
        assert own_redis.process
        os.kill(own_redis.process.pid, signal.SIGSTOP)
        async with growing(process) as grown:
            batches = [[f"{i}{name[1:]}" for name in NAMES[:10_000]] for i in range(30)]
            responses = await asyncio.gather(*(send_batch(process, batch) for batch in batches))
            check("hits that wait for a commit", grown())
        os.kill(own_redis.process.pid, signal.SIGCONT)
    assert {200, 503} == set(responses)
    assert 20 <= responses.count(200) <= 22


async def send_batch(process: Process, names: list[str]) -> int:
    connection = Connection(process.url)
    response = await connection.request("POST", "/events", json.dumps(dict.fromkeys(names, 1)).encode())
    connection.close()
    return response.status


async def test_live_clients_that_do_not_read_cost_little(tmp_path: Path) -> None:
    """They connect while all counts change, so that they fall behind at different times."""
    with node(tmp_path, "memory://") as process:
        await count_all(process, NAMES[:30_000], repeat=2)
        async with growing(process) as grown:
            with contextlib.ExitStack() as connected:
                for _ in range(5):
                    for _ in range(5):
                        connected.enter_context(unread(process, STREAM))
                        for namespace in ("/live", "/"):
                            connected.enter_context(connect_without_reading(process.url, namespace))
                        await begin_polling(process)
                    await count_all(process, NAMES[:30_000])
                assert connected_clients(process) == 100
                each, shared = cost("a live client that does not read"), cost("what live clients have in common")
                assert 100 * cost("a live client") / 3 <= grown() <= 100 * each + 0.3 * shared


STREAM = b"GET /stream HTTP/1.1\r\nHost: x\r\nLast-Event-ID: old-0:5\r\n\r\n"


async def begin_polling(process: Process) -> None:
    """Connect a dashboard that polls, and then poll no more."""
    async with httpx.AsyncClient(base_url=process.url) as client:
        opened = (await client.get("/socket.io/?EIO=4&transport=polling")).text
        path = f"/socket.io/?EIO=4&transport=polling&sid={json.loads(opened[1:])['sid']}"
        await client.post(path, content="40/live,")


# Parts of a node, each in a process of its own, because a limit takes many requests to reach.

MEASURE = """
import gc, re
from pathlib import Path

def resident():
    gc.collect()
    return 1024 * int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

{imports}
before = resident()
{fill}
print(resident() - before)
"""
STORE = """
from app.domain.counting import HitGroup, IdempotencyKey, Visit
from app.stores import last_known
from app.stores.base import StoreLimits
from app.stores.memory import MemoryStore
from tests.stores.offline_stores import NOON

LIMITS = StoreLimits(10**6, 10**6)
store = MemoryStore(LIMITS)
names = [f"{i:06}{'x' * 14}" for i in range(10_000)]

def key(i):
    return IdempotencyKey(f"{i:032}", f"{i + 1:032}", "c" * 32)
"""
PARTS = {  # by row: the imports, what fills the part, and which part of it that is
    "rate limits": (
        """
from app.http.rate_limits import RateLimits
from app.settings import Settings
limits = RateLimits(Settings())
""",
        "for i in range(20_000): limits.consume_for(f'2001:db8:{i:x}:{i:x}::/64', 'write')",
        1 / 5,
    ),
    "last known counts of Redis": (
        f"{STORE}\nlast_known.ENTRIES_MAX = 50_000; known = last_known.LastKnownCounts(LIMITS)",
        """
for i in range(1000):
    known.count([HitGroup(NOON, dict.fromkeys(names[:100], 10**12), key(i))])
    known.count([HitGroup(NOON, {"a": 1}, visits=[Visit("a", 1, f"{i} {n:028}", None) for n in range(100)])])
""",
        1 / 10,
    ),
    "the spool without a disk": (
        "from app.stores.spool_file import SpoolFile; file = SpoolFile(':memory:')",
        "for _ in range(80): file.append('x' * 100_000)",
        1 / 8,
    ),
    "URLs of frequent events": (
        "from app.http.fast_path import _event_of; from urllib.parse import quote; name = quote(chr(0x1F600) * 122)",
        "for i in range(3000): _event_of(f'/event/{i:06}{name}'.encode())",
        0.3,
    ),
    "an export, or a deletion of an event or a user": (
        f"{STORE}\nfrom app.domain.buckets import Bucket; from app.export_import import _sort_key",
        """
buckets = [Bucket("day", NOON.day + i, f"user:{i}{names[0]}") for i in range(20_000)]
kept = [(_sort_key(bucket), bucket) for bucket in buckets]
""",
        20_000,
    ),
    "`memory://`: an `Idempotency-Key` of a batch": (
        STORE,
        "for i in range(500): store.count([HitGroup(NOON, dict.fromkeys(names[:100], 10**12), key(i))])",
        500,
    ),
    "`memory://`: a user of an event on a day": (
        STORE,
        "store.count([HitGroup(NOON, {'a': 1}, visits=[Visit('a', 1, f'{n:032}', None) for n in range(50_000)])])",
        50_000,
    ),
}


@pytest.mark.parametrize("thing", PARTS)
def test_a_part_of_a_node_needs_as_much_as_the_table_says(thing: str) -> None:
    imports, fill, part = PARTS[thing]
    script = MEASURE.format(imports=imports, fill=fill)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check(thing, int(done.stdout), part=part)
