"""Scenarios with many live clients, with clients that do not read, and with slow HTTP clients."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import random
import socket
import time
from collections import Counter
from pathlib import Path

from tests.support.load import Connection, OpenLoopLoad
from tests.support.nginx import Proxy
from tests.support.scenarios import (
    NEVER,
    Figures,
    compare_counts,
    counts_in_redis,
    in_background,
    memory_kb,
    metric,
    node,
    nodes,
    redis,
    require_exact,
    under_load,
)
from tests.support.servers import Process, connected, eventually
from tests.support.watchers import watching

UNREAD_BYTES_MAX = 256 * 1024  # per client that does not read
DISCONNECT_SECONDS = 30.0  # until such a client is disconnected


async def dashboards_converge(directory: Path, clients: int, messages: int, within_seconds: float = 20) -> Figures:
    """Hits arrive while clients are connected to two nodes: half dashboards, half plain Socket.IO clients.

    No count ever decreases, and within 2 s of the last hit every client shows the acknowledged counts.
    """
    events = [f"e{i}" for i in range(20)]
    expected: Counter[str] = Counter()
    with redis(directory, *NEVER) as server, nodes(directory, server.url, 2) as apps:
        async with watching(*(app.url for app in apps), live=clients // 4, plain=clients // 4) as watchers:

            async def write(app: Process) -> None:
                connection = Connection(app.url)
                while sum(watcher.message_count for watcher in watchers) < messages:
                    counts = Counter(random.choices(events, k=3))
                    response = await connection.request("POST", "/events", json.dumps(counts).encode())
                    assert (response.status, response.json["ack"]) == (200, "redis"), response
                    expected.update(counts)
                connection.close()

            await asyncio.gather(*(write(app) for _ in range(4) for app in apps))
            written_at = time.monotonic()
            with contextlib.suppress(AssertionError):
                await eventually(lambda: all(watcher.counts == expected for watcher in watchers))
            took = time.monotonic() - written_at
            behind = sum(watcher.counts != expected for watcher in watchers)
        figures = require_exact(compare_counts(expected, expected, counts_in_redis(server)))
    wrong = [text for watcher in watchers for text in watcher.wrong]
    figures.details |= {"clients": len(watchers), "messages": sum(watcher.message_count for watcher in watchers)}
    figures.details |= {"counts that decreased": len(wrong), "converged after, s": round(took, 2)}
    figures.require(not wrong, f"counts decreased: {wrong[:2]}")
    figures.require(not behind and took < within_seconds, f"{behind} clients were behind after {took:.2f} s")
    return figures


def connect_without_reading(url: str, namespace: str) -> socket.socket:
    """Connect a client with a tiny receive buffer, which does not read after the upgrade."""
    host, port = url.removeprefix("http://").split(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.connect((host, int(port)))
    key = base64.b64encode(os.urandom(16)).decode()
    upgrade = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}"
    client.sendall(f"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: {host}\r\n{upgrade}\r\n\r\n".encode())
    assert b" 101 " in client.recv(2048)
    join = f"40{namespace},".encode() if namespace != "/" else b"40"
    client.sendall(bytes([0x81, 0x80 | len(join), 0, 0, 0, 0]) + join)  # with a mask of zeros
    return client


def kernel_send_queue(app: Process) -> int:
    """Return the longest send queue of the node's connections in the kernel, in bytes."""
    port, longest = f":{app.port:04X}", 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(port):
            longest = max(longest, int(fields[4].split(":")[0], 16))
    return longest


def connected_clients(app: Process) -> int:
    return int(metric(app, "tally_live_clients"))


async def clients_that_do_not_read(
    directory: Path, clients: int, rate: int, stuck_seconds: float | None = None
) -> Figures:
    """Clients with tiny receive buffers connect and do not read, while hits of 300 events arrive at a fixed rate.

    Each needs at most 256 KB, including the kernel's buffers, and is disconnected within 30 s. Ten clients that read
    get all counts.
    """
    names = [f"name {i}" for i in range(300)]
    expected: Counter[str] = Counter()
    patch = f"import app.live.broadcaster as b; b.SLOW_CLIENT_TIMEOUT_SECONDS = {stuck_seconds}"
    command = f"{patch}; from app.cli import main; main()"
    stop = asyncio.Event()

    async def write(app: Process) -> None:
        connection, started = Connection(app.url), time.monotonic()
        for number in itertools.count():
            counts = dict.fromkeys(names[number % 3 :: 3], 1)
            assert (await connection.request("POST", "/events", json.dumps(counts).encode())).status == 200
            expected.update(counts)
            if stop.is_set():
                break
            await asyncio.sleep(started + (number + 1) * len(counts) / rate - time.monotonic())
        connection.close()

    with node(directory, "memory://", *(["-c", command] if stuck_seconds else [])) as app:
        async with watching(app.url, live=5, plain=5) as watchers, in_background(write(app)) as writing:
            await eventually(lambda: all(len(watcher.counts) == 300 for watcher in watchers))
            await eventually(lambda: writing.done() or expected.total() > 2 * rate)
            Path(f"/proc/{app.pid}/clear_refs").write_text("5")  # resets VmHWM
            before, started, hits = memory_kb(app, "VmHWM"), time.monotonic(), expected.total()
            sockets = [connect_without_reading(app.url, ("/", "/live")[i % 2]) for i in range(clients)]
            kernel = 0

            async def are_disconnected() -> bool:
                nonlocal kernel
                kernel = max(kernel, kernel_send_queue(app))
                return await asyncio.to_thread(connected_clients, app) == len(watchers) or writing.done()

            await eventually(lambda: connected_clients(app) == len(watchers) + clients)
            with contextlib.suppress(AssertionError):
                await eventually(are_disconnected, 2 * DISCONNECT_SECONDS)
            took, sent = time.monotonic() - started, expected.total() - hits
            left = connected_clients(app) - len(watchers)
            grown = (memory_kb(app, "VmHWM") - before) * 1024 / clients
            stop.set()
            await writing
            await eventually(lambda: all(watcher.counts == expected for watcher in watchers))
        figures = require_exact(compare_counts(expected, expected, app.get("/events")))
        for client in sockets:
            client.close()
    figures.details |= {"hits/s": round(sent / took), "KB per client in the node": round(grown / 1024)}
    figures.details |= {"KB per client in the kernel, at most": round(kernel / 1024)}
    figures.details["all disconnected after, s"] = round(took, 1)
    figures.require(grown + kernel <= UNREAD_BYTES_MAX, f"a client needs {grown:.0f} bytes and {kernel} in the kernel")
    figures.require(not left and took < DISCONNECT_SECONDS, f"{left} clients are connected after {took:.1f} s")
    return figures


async def idle_clients(directory: Path, clients: int) -> Figures:
    """Thousands of clients are connected to an idle node, which then gets one hit.

    All clients get the update, and the node needs some KB for each.
    """
    with node(directory, "memory://") as app:
        before = memory_kb(app, "VmRSS")
        async with watching(app.url, live=clients // 2, plain=clients // 2) as watchers:
            each = (memory_kb(app, "VmRSS") - before) / clients
            connected, started = connected_clients(app), time.monotonic()
            await asyncio.to_thread(app.post, "/event/a")
            await eventually(lambda: all(watcher.counts == {"a": 1} for watcher in watchers))
            took = time.monotonic() - started
        figures = require_exact(compare_counts(Counter(a=1), Counter(a=1), app.get("/events")))
    figures.details |= {"clients": connected, "KB per client": round(each, 1), "all updated after, s": round(took, 2)}
    figures.require(connected == clients, f"{connected} of {clients} clients are connected")
    return figures


async def slow_clients(directory: Path, connections: int, timeout: str = "10s") -> Figures:
    """Many connections to nginx send half of their headers or half of a body, and then nothing.

    nginx closes each within 10 s, and complete requests of other clients get their responses.
    """
    halves = [
        b"POST /event/a HTTP/1.1\r\nHost: a\r\nX: ",
        b"POST /event/a HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{",
    ]
    quick = {f"client_{part}_timeout 10s": f"client_{part}_timeout {timeout}" for part in ("header", "body")}
    ended: list[float] = []

    async def half(number: int) -> None:
        address = (f"127.0.2.{number % 20 + 1}", 0)  # nginx limits an address to 500 connections
        async with connected(proxy.url, address) as (reader, writer):
            started = time.monotonic()
            writer.write(halves[number % 2])
            with contextlib.suppress(OSError):
                assert await reader.read(1000) == b""
            ended.append(time.monotonic() - started)

    with node(directory, f"sqlite:///{directory}/tally.db") as app:
        proxy = Proxy(directory, [app.port], quick).start()
        try:
            load = OpenLoopLoad(proxy.url, ["a"], rate=100, connections=10)
            async with under_load(load) as wait_for_hits:
                await asyncio.gather(*(half(number) for number in range(connections)))
                await wait_for_hits(10)
        finally:
            proxy.stop()
        figures = require_exact(compare_counts(load.counts, load.counts, app.get("/events")))
    failed = load.outcomes["unknown"] + load.outcomes["rejected"]
    figures.details |= {"slow connections": len(ended), "all closed after, s": round(max(ended), 1)}
    figures.details["longest wait of others, s"] = round(load.longest_seconds, 2)
    figures.require(not failed, f"{failed} complete requests failed")
    figures.require(len(ended) == connections and max(ended) < 12, f"the last one closed after {max(ended):.1f} s")
    return figures
