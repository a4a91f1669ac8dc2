"""Server-Sent Events on real sockets: a client that reads, loses and resumes a stream ends on the right counts."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from app.http.routes import stream
from app.live import broadcaster
from tests.live.clients import reading, update
from tests.live.conftest import memory_settings
from tests.server.test_nginx import stub_nodes
from tests.support.nginx import Proxy
from tests.support.servers import AS_ADMIN, Process, RunningApp, SettableClock, eventually, serving


async def test_a_stream_of_some_events_begins_with_their_counts_and_has_no_others(tally: RunningApp) -> None:
    async with tally.client() as client:
        await client.post("/events", json={"a b": 3, "c": 5})
        async with reading(tally.url, "/stream?event=a+b&event=new&event=a%20b") as reader:
            await eventually(lambda: len(reader.received) == 2)
            assert reader.received == [update("a b", 3), update("new", 0)]
            await client.post("/event/c")
            await client.post("/event/new")
            await client.post("/event/c")
            await client.post("/event/a%20b")
            await eventually(lambda: len(reader.received) >= 4)
            assert reader.received[2:] == [update("new", 1), update("a b", 4)]


shares_frames = pytest.mark.fails_on_mutant(
    "a chunk is framed for each client",
    "app/http/middleware.py",
    '(send_compressed if message["type"].startswith("http.") else scope[_SEND])',
    "send_compressed",
)


@pytest.mark.parametrize("own_protocol", [pytest.param(True, marks=shares_frames), False])
async def test_a_stream_of_all_events_has_each_change(own_protocol: bool) -> None:
    async with serving(memory_settings(), own_protocol=own_protocol) as tally, tally.client() as client:
        await client.post("/event/before")
        async with reading(tally.url) as reader:
            (stream_client,) = tally.app.state.broadcaster.clients.values()
            await eventually(lambda: bool(stream_client.send_framed) == own_protocol)
            await client.post("/event/a")
            await client.post("/event/b")
            await eventually(lambda: len(reader.received) == 2)
            assert reader.received == [update("a", 1), update("b", 1)]


@pytest.mark.fails_on_mutant(
    "a client that resumes misses the changes",
    "app/live/clients.py",
    "self.cursor = day.parse_cursor(self._last_event_id)",
    "self.cursor = day.head",
)
@pytest.mark.fails_on_mutant(
    "a client that resumes gets everything",
    "app/live/day.py",
    "known = match[1] == self.head.epoch and",
    "known = False and",
)
@pytest.mark.parametrize("query", ["", "?event=a&event=b&event=quiet"])
async def test_a_client_that_resumes_gets_exactly_the_changes_since(tally: RunningApp, query: str) -> None:
    async with tally.client() as client:
        await client.post("/events", json={"a": 1, "b": 1, "quiet": 7})
        async with reading(tally.url, f"/stream{query}") as first:
            await client.post("/event/a")
            await eventually(lambda: update("a", 2) in first.received)
        for event in ("b", "other", "b"):
            await client.post(f"/event/{event}")
        async with reading(tally.url, f"/stream{query}", first.last_id) as again:
            await client.post("/event/a")
            await eventually(lambda: update("a", 3) in again.received)
        missed = [update("b", 3), *([] if query else [update("other", 1)])]
        assert sorted(map(str, again.received)) == sorted(map(str, [*missed, update("a", 3)]))


@pytest.mark.parametrize(
    "last_id", ["nonsense", "0a0b0c0d-1777593600:3", "é", "--1:-1", "x" * 5000, "{epoch}-{day}:999999"]
)
async def test_a_client_that_resumes_from_an_unknown_id_gets_all_counts(tally: RunningApp, last_id: str) -> None:
    head = tally.app.state.broadcaster._day.head
    last_id = last_id.format(epoch=head.epoch, day=head.day)
    async with tally.client() as client:
        await client.post("/events", json={"a": 3, "b": 4})
        async with reading(tally.url, "/stream", last_id) as everything:
            await eventually(lambda: everything.counts == {"a": 3, "b": 4})
        async with reading(tally.url, "/stream?event=b&event=c", last_id) as named:
            await eventually(lambda: named.counts == {"b": 4, "c": 0})


async def test_a_correction_and_a_reset_are_updates_of_a_stream(tally: RunningApp) -> None:
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


@pytest.mark.fails_on_mutant(
    "a client that resumes on the next day gets no reset",
    "app/live/day.py",
    "cursor.day in {self.head.day, NO_CURSOR.day}",
    "True",
)
async def test_a_new_day_is_a_reset_also_for_clients_that_resume(tally: RunningApp, clock: SettableClock) -> None:
    async with tally.client() as client:
        await client.post("/events", json={"a": 3, "b": 4})
        async with reading(tally.url, "/stream?event=a") as reader:
            await eventually(lambda: reader.counts == {"a": 3})
            before = reader.last_id
            clock.go_to("2026-05-02T00:00:01+00:00")
            await client.post("/event/b")
            await eventually(lambda: len(reader.received) > 1)
            assert reader.received[1] == ("reset", {"day": "2026-05-02"})
            await client.post("/event/a")
            await eventually(lambda: reader.counts == {"a": 1})
        async with reading(tally.url, "/stream", before) as again:
            await eventually(lambda: again.counts == {"a": 1, "b": 1})
            assert again.received[0] == ("reset", {"day": "2026-05-02"})
        async with reading(tally.url, "/stream?event=b", before) as named:
            await eventually(lambda: named.received == [("reset", {"day": "2026-05-02"}), update("b", 1)])


async def test_a_quiet_stream_has_comments_that_keep_it_open(
    tally: RunningApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "HEARTBEAT_SECONDS", 0.05)
    async with tally.client() as client, reading(tally.url, "/stream?event=a") as reader:
        await client.post("/event/other")
        await eventually(lambda: reader.comments >= 3)
        at = int(reader.last_id.rpartition(":")[2])
        await client.post("/event/other")
        await eventually(
            lambda: int(reader.last_id.rpartition(":")[2]) == at + 1
        )  # so that it does not ask for that change again
        assert reader.received == [update("a", 0)]


@pytest.mark.fails_on_mutant(
    "streams are not counted", "app/live/broadcaster.py", "self.add(client_id, client)", "client.join(self._day)"
)
@pytest.mark.fails_on_mutant(
    "ended streams are counted",
    "app/live/broadcaster.py",
    "        finally:\n            self.remove(client_id)",
    "        finally:\n            pass",
)
async def test_open_streams_are_bounded(tally: RunningApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcaster, "CLIENTS_MAX", 2)
    async with tally.client() as client:
        async with reading(tally.url), reading(tally.url), client.stream("GET", "/stream") as rejected:
            assert (rejected.status_code, rejected.headers["content-type"]) == (503, "application/problem+json")
            assert rejected.headers["retry-after"]
        await eventually(lambda: not tally.app.state.broadcaster.clients)
        async with reading(tally.url) as reader:
            await client.post("/event/a")
            await eventually(lambda: reader.received == [update("a", 1)])


@pytest.mark.parametrize(
    "path",
    ["/stream?event=%20", "/stream?event=", "/stream?event=a/b", "/stream?" + "event=a&" * 101, "/embed/%FF/stream"],
)
async def test_a_stream_of_an_invalid_name_is_rejected(shared_tally: RunningApp, path: str) -> None:
    async with shared_tally.client() as client:
        response = await client.get(path)
        assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")


async def test_an_embedded_page_has_its_own_stream(tally: RunningApp) -> None:
    async with tally.client() as client, reading(tally.url, "/embed/sign%20up/stream") as reader:
        await client.post("/event/sign%20up")
        await eventually(lambda: reader.received[-1:] == [update("sign up", 1)])


def test_a_stream_ends_cleanly_when_the_server_shuts_down(process: Callable[..., Process]) -> None:
    node = process(TALLY_STORE="memory://")
    with httpx.Client(timeout=20) as client, client.stream("GET", f"{node.url}/stream?event=a") as answer:
        lines = answer.iter_lines()
        while next(lines) != 'data: {"eventName":"a","count":0}':
            pass
        assert node.terminate() == 0
        assert list(lines) == [""]  # an unclean end would raise an error
    assert "rror" not in node.log.read_text()


@pytest.mark.fails_on_mutant(
    "the proxy ends quiet streams",
    "deploy/nginx.conf",
    "location ~ ^/(stream(/[^/]+/[^/]+)?|(embed|share)/[^/]+/stream)$ {",
    "location = /never {",
)
async def test_the_proxy_passes_a_stream_on_at_once_and_keeps_it_open_while_it_is_quiet(
    tally: RunningApp, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    async with stub_nodes(1, answers=False) as (silent, _), contextlib.AsyncExitStack() as started:
        front = Proxy(tmp_path, [urlsplit(tally.url).port], {"proxy_read_timeout 5s": "proxy_read_timeout 300ms"})
        later = Proxy(tmp_path / "other", silent, {"proxy_read_timeout 5s": "proxy_read_timeout 600ms"})
        for proxy in (front, later):
            started.callback(proxy.start().stop)
        async with tally.client() as client, httpx.AsyncClient() as other:
            share = {"title": "Launch", "events": ["a"]}
            token = (await client.post("/shares", json=share, headers=AS_ADMIN)).json()["token"]
            for path in ("/stream?event=a", "/embed/a/stream", f"/share/{token}/stream"):
                async with reading(front.url, path) as reader:
                    await eventually(lambda reader=reader: len(reader.received) == 1)
                    assert (await other.get(f"{later.url}/events")).status_code == 504  # after twice that time
                    await client.post("/event/a")
                    await eventually(lambda reader=reader: len(reader.received) == 2)
