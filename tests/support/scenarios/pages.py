"""Pages that watch, that read nothing, that do nothing; and clients that are slow."""

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

from tests.support.load import Connection, Offer
from tests.support.nginx import Proxy
from tests.support.scenarios import (
    NEVER,
    Figures,
    compared,
    exact,
    in_redis,
    loaded,
    memory_kb,
    metric,
    node,
    nodes,
    redis,
    send_nowait,
)
from tests.support.servers import Process, eventually
from tests.support.watchers import watching

DEAF_BYTES_MAX = 256 * 1024  # for each page that does not read
CUT_SECONDS = 30.0  # after which it is gone


async def pages_agree(directory: Path, pages: int, messages: int, within_seconds: float = 20) -> Figures:
    """So many pages on two nodes watch while hits come in, half of them dashboards and half plain clients.

    No number ever runs backwards, and within 2 s of the last hit every page shows what was acknowledged.
    """
    events = [f"e{i}" for i in range(20)]
    least: Counter[str] = Counter()
    with redis(directory, *NEVER) as server, nodes(directory, server.url, 2) as apps:
        async with watching(*(app.url for app in apps), live=pages // 4, plain=pages // 4) as watchers:

            async def write(app: Process) -> None:
                connection = Connection(app.url)
                while sum(watcher.message_count for watcher in watchers) < messages:
                    counts = Counter(random.choices(events, k=3))
                    answer = await connection.ask("POST", "/events", json.dumps(counts).encode())
                    assert (answer.status, answer.json["ack"]) == (200, "redis"), answer
                    least.update(counts)
                connection.close()

            await asyncio.gather(*(write(app) for _ in range(4) for app in apps))
            quiet = time.monotonic()
            with contextlib.suppress(AssertionError):
                await eventually(lambda: all(watcher.counts == least for watcher in watchers))
            took = time.monotonic() - quiet
            unlike = sum(watcher.counts != least for watcher in watchers)
        figures = exact(compared(least, least, in_redis(server)))
    wrong = [what for watcher in watchers for what in watcher.wrong]
    figures.also |= {"pages": len(watchers), "messages": sum(watcher.message_count for watcher in watchers)}
    figures.also |= {"numbers that ran backwards": len(wrong), "all equal after, s": round(took, 2)}
    figures.promise(not wrong, f"no number runs backwards: {wrong[:2]}")
    figures.promise(not unlike and took < within_seconds, f"{unlike} pages were not right after {took:.2f} s")
    return figures


def deaf_page(url: str, namespace: str) -> socket.socket:
    """A page whose socket holds next to nothing, and which reads nothing once it is greeted."""
    host, port = url.removeprefix("http://").split(":")
    door = socket.socket()
    door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    door.connect((host, int(port)))
    key = base64.b64encode(os.urandom(16)).decode()
    upgrade = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}"
    door.sendall(f"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: {host}\r\n{upgrade}\r\n\r\n".encode())
    assert b" 101 " in door.recv(2048)
    join = f"40{namespace},".encode() if namespace != "/" else b"40"
    door.sendall(bytes([0x81, 0x80 | len(join), 0, 0, 0, 0]) + join)  # masked, with a mask that changes nothing
    return door


def waits_in_kernel(app: Process) -> int:
    """The most bytes that the kernel keeps for one connection of this node."""
    own, most = f":{app.port:04X}", 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[1].endswith(own):
            most = max(most, int(words[4].split(":")[0], 16))
    return most


def clients_of(app: Process) -> int:
    return int(metric(app, "tally_live_clients"))


async def deaf_pages(directory: Path, pages: int, rate: int, stuck_seconds: float | None = None) -> Figures:
    """Pages with tiny receive buffers connect and read nothing, while 300 names are hit so many times a second.

    Each costs at most 256 KB, the kernel's part included, and is gone within 30 s. Ten others, who read, show all.
    """
    names = [f"name {i}" for i in range(300)]
    least: Counter[str] = Counter()
    patch = f"import app.live.broadcaster as b; b.SLOW_CLIENT_TIMEOUT_SECONDS = {stuck_seconds}"
    sooner = f"{patch}; from app.cli import main; main()"
    stop = asyncio.Event()

    async def write(app: Process) -> None:
        connection, begun = Connection(app.url), time.monotonic()
        for number in itertools.count():
            counts = dict.fromkeys(names[number % 3 :: 3], 1)
            assert (await connection.ask("POST", "/events", json.dumps(counts).encode())).status == 200
            least.update(counts)
            if stop.is_set():
                break
            await asyncio.sleep(begun + (number + 1) * len(counts) / rate - time.monotonic())
        connection.close()

    with node(directory, "memory://", *(["-c", sooner] if stuck_seconds else [])) as app:
        async with watching(app.url, live=5, plain=5) as watchers, send_nowait(write(app)) as writing:
            await eventually(lambda: all(len(watcher.counts) == 300 for watcher in watchers))
            await eventually(lambda: writing.done() or least.total() > 2 * rate)
            Path(f"/proc/{app.pid}/clear_refs").write_text("5")  # VmHWM begins anew
            before, begun, hits = memory_kb(app, "VmHWM"), time.monotonic(), least.total()
            deaf = [deaf_page(app.url, ("/", "/live")[i % 2]) for i in range(pages)]
            kernel = 0

            async def cut() -> bool:
                nonlocal kernel
                kernel = max(kernel, waits_in_kernel(app))
                return await asyncio.to_thread(clients_of, app) == len(watchers) or writing.done()

            await eventually(lambda: clients_of(app) == len(watchers) + pages)
            with contextlib.suppress(AssertionError):
                await eventually(cut, 2 * CUT_SECONDS)
            took, reached = time.monotonic() - begun, least.total() - hits
            left = clients_of(app) - len(watchers)
            grown = (memory_kb(app, "VmHWM") - before) * 1024 / pages
            stop.set()
            await writing
            await eventually(lambda: all(watcher.counts == least for watcher in watchers))
        figures = exact(compared(least, least, app.get("/events")))
        for door in deaf:
            door.close()
    figures.also |= {"hits a second": round(reached / took), "KB each, in the node": round(grown / 1024)}
    figures.also |= {"KB each, in the kernel, at most": round(kernel / 1024), "all cut after, s": round(took, 1)}
    figures.promise(grown + kernel <= DEAF_BYTES_MAX, f"a page costs {grown:.0f} bytes and {kernel} in the kernel")
    figures.promise(not left and took < CUT_SECONDS, f"{left} are not cut after {took:.1f} s")
    return figures


async def idle_pages(directory: Path, pages: int) -> Figures:
    """Thousands of pages watch one node on which nothing happens; then there is one hit.

    All of them are connected and all are told, and the node needs some KB for each.
    """
    with node(directory, "memory://") as app:
        before = memory_kb(app, "VmRSS")
        async with watching(app.url, live=pages // 2, plain=pages // 2) as watchers:
            each = (memory_kb(app, "VmRSS") - before) / pages
            connected, begun = clients_of(app), time.monotonic()
            await asyncio.to_thread(app.post, "/event/a")
            await eventually(lambda: all(watcher.counts == {"a": 1} for watcher in watchers))
            took = time.monotonic() - begun
        figures = exact(compared(Counter(a=1), Counter(a=1), app.get("/events")))
    figures.also |= {"pages": connected, "KB each": round(each, 1), "all told after, s": round(took, 2)}
    figures.promise(connected == pages, f"{connected} of {pages} are connected")
    return figures


async def slow_clients(directory: Path, connections: int, timeout: str = "10s") -> Figures:
    """Through nginx, half of so many connections send half a head and half of them half a body, and then nothing.

    nginx closes each within 10 s, and who sends whole requests meanwhile is answered each time.
    """
    halves = [
        b"POST /event/a HTTP/1.1\r\nHost: a\r\nX: ",
        b"POST /event/a HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{",
    ]
    quick = {f"client_{what}_timeout 10s": f"client_{what}_timeout {timeout}" for what in ("header", "body")}
    ended: list[float] = []

    async def half(number: int) -> None:
        address = (f"127.0.2.{number % 20 + 1}", 0)  # for an address may have 500
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, local_addr=address)
        begun = time.monotonic()
        writer.write(halves[number % 2])
        with contextlib.suppress(OSError):
            assert await reader.read(1000) == b""
        ended.append(time.monotonic() - begun)
        writer.close()

    with node(directory, f"sqlite:///{directory}/tally.db") as app:
        proxy = Proxy(directory, [app.port], quick).start()
        try:
            offer = Offer(proxy.url, ["a"], rate=100, connections=10)
            async with loaded(offer) as go_on:
                await asyncio.gather(*(half(number) for number in range(connections)))
                await go_on(10)
        finally:
            proxy.stop()
        figures = exact(compared(offer.counts, offer.counts, app.get("/events")))
    refused = offer.outcomes["unknown"] + offer.outcomes["refused"]
    figures.also |= {"slow connections": len(ended), "all closed after, s": round(max(ended), 1)}
    figures.also["longest wait of others, s"] = round(offer.longest_seconds, 2)
    figures.promise(not refused, f"{refused} whole requests were not answered")
    figures.promise(len(ended) == connections and max(ended) < 12, f"the last is closed after {max(ended):.1f} s")
    return figures
