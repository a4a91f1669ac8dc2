"""Server-Sent Events on real sockets: who reads them, loses them and comes again has the same numbers as everybody."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from app.domain.calendar import Calendar, Clock
from app.http.routes import stream
from app.live import broadcaster as live
from app.live.day import NO_CURSOR, LiveDay, Message
from app.settings import Settings
from tests.server.test_nginx import stub_nodes
from tests.support.nginx import Proxy
from tests.support.redis_servers import RedisServer
from tests.support.servers import AS_ADMIN, ChosenClock, Process, Served, eventually, serving, settings_for


@pytest.fixture
async def tally(tmp_path: Path, redis_server: RedisServer, clock: ChosenClock) -> AsyncIterator[Served]:
    clock.go_to("2026-05-01T12:00:00+00:00")
    async with serving(settings_for("memory", tmp_path, redis_server, write_limit="100000/second"), clock) as served:
        yield served


class Reader:
    """What a browser's EventSource does, by the book."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, dict]] = []
        self.counts: dict[str, int] = {}
        self.last_id = ""
        self.retry = 0
        self.comments = 0
        self.ended = False

    async def read(self, answer: httpx.Response) -> None:
        event, data, id_ = "message", "", self.last_id
        async for line in answer.aiter_lines():
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
                    self._hear(event, json.loads(data))
                event, data = "message", ""
        self.ended = True

    def _hear(self, event: str, data: dict) -> None:
        self.heard.append((event, data))
        if event == "reset":
            self.counts = {}
        else:
            self.counts[data["eventName"]] = data["count"]


@contextlib.asynccontextmanager
async def reading(url: str, path: str = "/stream", last_id: str = "") -> AsyncIterator[Reader]:
    reader = Reader()
    headers = {"Last-Event-ID": last_id.encode()} if last_id else {}
    async with httpx.AsyncClient(timeout=30) as client, client.stream("GET", url + path, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        task = asyncio.create_task(reader.read(answer))
        await eventually(lambda: reader.retry)
        try:
            yield reader
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def update(event: str, count: int) -> tuple[str, dict]:
    return "update", {"eventName": event, "count": count}


async def test_named_events_come_with_their_values_first_and_nothing_else_comes(tally: Served) -> None:
    async with tally.client() as client:
        await client.post("/events", json={"a b": 3, "c": 5})
        async with reading(tally.url, "/stream?event=a+b&event=new&event=a%20b") as reader:
            await eventually(lambda: len(reader.heard) == 2)
            assert reader.heard == [update("a b", 3), update("new", 0)]
            await client.post("/event/c")
            await client.post("/event/new")
            await client.post("/event/c")
            await client.post("/event/a%20b")
            await eventually(lambda: len(reader.heard) >= 4)
            assert reader.heard[2:] == [update("new", 1), update("a b", 4)]


async def test_all_events_come_as_they_change(tally: Served) -> None:
    async with tally.client() as client:
        await client.post("/event/before")
        async with reading(tally.url) as reader:
            await client.post("/event/a")
            await client.post("/event/b")
            await eventually(lambda: len(reader.heard) == 2)
            assert reader.heard == [update("a", 1), update("b", 1)]


@pytest.mark.catches(
    "what changed meanwhile is not told",
    "app/live/broadcaster.py",
    "self._feed.place(last_id) if",
    "self._feed.told if",
)
@pytest.mark.catches(
    "everything again", "app/live/day.py", "known = match[1] == self.told.epoch and", "known = False and"
)
@pytest.mark.parametrize("query", ["", "?event=a&event=b&event=quiet"])
async def test_who_comes_again_is_told_exactly_what_has_changed_since(tally: Served, query: str) -> None:
    async with tally.client() as client:
        await client.post("/events", json={"a": 1, "b": 1, "quiet": 7})
        async with reading(tally.url, f"/stream{query}") as first:
            await client.post("/event/a")
            await eventually(lambda: update("a", 2) in first.heard)
        for event in ("b", "other", "b"):
            await client.post(f"/event/{event}")
        async with reading(tally.url, f"/stream{query}", first.last_id) as again:
            await client.post("/event/a")
            await eventually(lambda: update("a", 3) in again.heard)
        missed = [update("b", 3), *([] if query else [update("other", 1)])]
        assert sorted(map(str, again.heard)) == sorted(map(str, [*missed, update("a", 3)]))


@pytest.mark.catches(
    "an id before all of it was told", "app/live/broadcaster.py", "[begin] * (len(part) - 1)", "[end] * (len(part) - 1)"
)
@pytest.mark.parametrize("updates", [99, 100, 250])
def test_an_id_says_that_all_before_it_was_told(updates: int) -> None:
    text = b"".join(
        block["body"]
        for block in live._blocks(iter([Message("update", {"n": i}) for i in range(updates)]), "id: b\n", "id: e\n")
    ).decode()
    ids = [line for line in text.splitlines() if line.startswith("id: ")]
    assert len(ids) == updates
    assert set(ids[:-1]) <= {"id: b"}
    assert ids[-1] == ("id: b" if updates == 100 else "id: e")  # or by the next sign of life


@pytest.mark.parametrize(
    "last_id", ["nonsense", "0a0b0c0d-1777593600:3", "é", "--1:-1", "x" * 5000, "{epoch}-{day}:999999"]
)
async def test_after_an_unknown_id_the_current_values_come_first(tally: Served, last_id: str) -> None:
    told = tally.app.state.live._feed.told
    last_id = last_id.format(epoch=told.epoch, day=told.day)
    async with tally.client() as client:
        await client.post("/events", json={"a": 3, "b": 4})
        async with reading(tally.url, "/stream", last_id) as everything:
            await eventually(lambda: everything.counts == {"a": 3, "b": 4})
        async with reading(tally.url, "/stream?event=b&event=c", last_id) as named:
            await eventually(lambda: named.counts == {"b": 4, "c": 0})


async def test_what_an_administrator_changes_is_told_as_the_new_value(tally: Served) -> None:
    async with tally.client() as client:
        await client.post("/events", json={"a": 5, "b": 6})
        async with reading(tally.url) as every, reading(tally.url, "/stream?event=a&event=c") as named:
            await eventually(lambda: named.counts == {"a": 5, "c": 0})
            before = named.last_id
            assert (await client.put("/event/a", json={"count": 2}, headers=AS_ADMIN)).status_code == 200
            await eventually(lambda: every.counts.get("a") == named.counts["a"] == 2)
        async with reading(tally.url, "/stream?event=a&event=c", before) as again:
            await eventually(lambda: again.counts == {"a": 2, "c": 0})
        async with reading(tally.url, "/stream?event=a") as reader:
            await client.post("/reset", headers=AS_ADMIN)
            await eventually(lambda: reader.counts == {"a": 0})


@pytest.mark.catches("a new day is not told", "app/live/day.py", "place.day in {self.told.day, NO_CURSOR.day}", "True")
async def test_a_new_day_is_told_at_once_and_to_those_who_come_again(tally: Served, clock: ChosenClock) -> None:
    async with tally.client() as client:
        await client.post("/events", json={"a": 3, "b": 4})
        async with reading(tally.url, "/stream?event=a") as reader:
            await eventually(lambda: reader.counts == {"a": 3})
            before = reader.last_id
            clock.go_to("2026-05-02T00:00:01+00:00")
            await client.post("/event/b")
            await eventually(lambda: len(reader.heard) > 1)
            assert reader.heard[1] == ("reset", {"day": "2026-05-02"})
            await client.post("/event/a")
            await eventually(lambda: reader.counts == {"a": 1})
        async with reading(tally.url, "/stream", before) as again:
            await eventually(lambda: again.counts == {"a": 1, "b": 1})
            assert again.heard[0] == ("reset", {"day": "2026-05-02"})
        async with reading(tally.url, "/stream?event=b", before) as named:
            await eventually(lambda: named.heard == [("reset", {"day": "2026-05-02"}), update("b", 1)])


def test_what_the_store_has_lost_is_told_to_those_who_come_again() -> None:
    clock = Clock(Calendar(Settings().timezone), lambda: 1_777_636_800.0)
    feed = LiveDay(clock)
    feed.merge(feed.day, {"a": 5, "b": 6, "c": 7})
    feed.collect()
    before = feed.told.id_field[4:-1]
    feed.replace(clock.slot(), {"a": 2, "c": 7}, feed.shown(), 0)
    feed.collect()
    assert feed.place(before).change == -1

    def told(*events: str) -> dict[str, int]:
        messages, then = feed.missed_updates(feed.place(before), events)
        assert then == feed.told
        return {data["eventName"]: data["count"] for data in (json.loads(message.data) for message in messages)}

    assert told() == {"a": 2, "b": 0, "c": 7}
    assert told("b", "c", "d") == {"b": 0, "c": 7, "d": 0}
    assert feed.place(feed.told.id_field[4:-1]).change == feed.told.change
    assert feed.place(NO_CURSOR.id_field) == NO_CURSOR


async def test_a_quiet_stream_shows_that_it_is_alive(tally: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "HEARTBEAT_SECONDS", 0.05)
    async with tally.client() as client, reading(tally.url, "/stream?event=a") as reader:
        await client.post("/event/other")
        await eventually(lambda: reader.comments >= 3)
        at = int(reader.last_id.rpartition(":")[2])
        await client.post("/event/other")
        await eventually(lambda: int(reader.last_id.rpartition(":")[2]) == at + 1)  # so that it need not ask for that
        assert reader.heard == [update("a", 0)]


@pytest.mark.catches(
    "streams are not counted", "app/live/broadcaster.py", 'self._clients[f"stream {id(client)}"] = client', "pass"
)
@pytest.mark.catches(
    "streams are never forgotten", "app/live/broadcaster.py", 'self._clients.pop(f"stream {id(client)}", None)', "pass"
)
async def test_streams_are_bounded_and_forgotten(tally: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "CLIENTS_MAX", 2)
    async with tally.client() as client:
        async with reading(tally.url), reading(tally.url), client.stream("GET", "/stream") as refused:
            assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
            assert refused.headers["retry-after"]
        await eventually(lambda: not tally.app.state.live._clients)
        async with reading(tally.url) as reader:
            await client.post("/event/a")
            await eventually(lambda: reader.heard == [update("a", 1)])


@pytest.mark.parametrize(
    "path",
    ["/stream?event=%20", "/stream?event=", "/stream?event=a/b", "/stream?" + "event=a&" * 101, "/embed/%FF/stream"],
)
async def test_a_wrong_name_is_a_problem(tally: Served, path: str) -> None:
    async with tally.client() as client:
        answer = await client.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")


async def test_the_page_in_a_frame_has_a_stream_of_its_own(tally: Served) -> None:
    async with tally.client() as client, reading(tally.url, "/embed/sign%20up/stream") as reader:
        await client.post("/event/sign%20up")
        await eventually(lambda: reader.heard[-1:] == [update("sign up", 1)])


@contextlib.contextmanager
def stuck(url: str) -> socket.socket:
    """One that asks for everything, and reads nothing."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port)) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        door.sendall(f"GET /stream HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
        yield door


@pytest.mark.catches(
    "nobody is ever cut",
    "app/live/broadcaster.py",
    "            client.ended.set()\n        socket = self",
    "            pass\n        socket = self",
)
async def test_a_stream_that_nobody_reads_is_cut(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "STUCK_SECONDS", 0.5)
    chosen = settings_for("memory", tmp_path, redis_server, write_limit="100000/second")
    async with serving(chosen, buffer=32_768) as tally, tally.client() as client:
        with stuck(tally.url) as door:
            await eventually(lambda: len(tally.app.state.live._clients) == 1)
            requests = {f"{i} {'x' * 120}": 1 for i in range(500)}
            while tally.app.state.live._clients:
                await client.post("/events", json=requests)
            door.setblocking(False)
            async with asyncio.timeout(20):
                while await asyncio.get_running_loop().sock_recv(door, 65_536):
                    pass  # what was sent before; and then it is closed


async def test_a_slow_reader_gets_less_and_ends_on_the_same_numbers(tmp_path: Path, redis_server: RedisServer) -> None:
    batch = {f"{i} {'x' * 120}": 1 for i in range(500)}
    chosen = settings_for("memory", tmp_path, redis_server, write_limit="100000/second", live_interval_ms=0)
    async with serving(chosen, buffer=32_768) as tally, tally.client() as client:
        with stuck(tally.url) as door:
            await eventually(lambda: len(tally.app.state.live._clients) == 1)
            ((_, slow),) = tally.app.state.live._clients.items()
            posts = 0
            while not slow.held:
                await client.post("/events", json=batch)
                posts += 1
            for _ in range(50):
                await client.post("/events", json=batch)
            text, last = b"", f'"count":{posts + 50}}}'.encode()
            door.setblocking(False)
            while text.count(last) < len(batch):
                text += await asyncio.get_running_loop().sock_recv(door, 65_536)
    assert text.count(b"event: update") < (posts + 50) * len(batch)


def test_a_stream_ends_when_the_server_does(process: Callable[..., Process]) -> None:
    node = process(TALLY_STORE="memory://")
    with httpx.Client(timeout=20) as client, client.stream("GET", f"{node.url}/stream?event=a") as answer:
        lines = answer.iter_lines()
        while next(lines) != 'data: {"eventName":"a","count":0}':
            pass
        assert node.terminate() == 0
        assert list(lines) == [""]  # and it was ended as it should be, or this raised an error
    assert "rror" not in node.log.read_text()


@pytest.mark.catches(
    "the proxy ends quiet streams",
    "deploy/nginx.conf",
    "location ~ ^/(stream|embed/[^/]+/stream)$ {",
    "location = /never {",
)
async def test_a_stream_comes_through_the_proxy_at_once_and_may_be_quiet(tally: Served, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with stub_nodes(1, answers=False) as (silent, _), contextlib.AsyncExitStack() as started:
        front = Proxy(tmp_path, [urlsplit(tally.url).port], {"proxy_read_timeout 5s": "proxy_read_timeout 300ms"})
        later = Proxy(tmp_path / "other", silent, {"proxy_read_timeout 5s": "proxy_read_timeout 600ms"})
        for proxy in (front, later):
            started.callback(proxy.start().stop)
        async with tally.client() as client, httpx.AsyncClient() as other:
            for path in ("/stream?event=a", "/embed/a/stream"):
                async with reading(front.url, path) as reader:
                    await eventually(lambda reader=reader: len(reader.heard) == 1)
                    assert (await other.get(f"{later.url}/events")).status_code == 504  # twice that time is over
                    await client.post("/event/a")
                    await eventually(lambda reader=reader: len(reader.heard) == 2)
