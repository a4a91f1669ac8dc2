"""Corrections, deletions and resets: their effect on counts, on history, and on connected clients."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from app.main import create_app
from tests.http.problems import detail_of
from tests.support.redis_servers import RedisServer
from tests.support.servers import AS_ADMIN, RunningApp, SettableClock, eventually, serving, settings_for
from tests.support.watchers import watching

BAD_BODIES = [b"", b"{}", b'{"count":-1}', b'{"count":1.5}', b'{"total":9007199254740992}', b"[1]", b'{"x":1}', b"\xff"]


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def client(
    request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer, clock: SettableClock
) -> AsyncIterator[httpx.AsyncClient]:
    clock.go_to("2026-03-28T12:00:00+00:00")
    app = create_app(settings_for(request.param, tmp_path, redis_server, events_max=5), clock)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://tally", headers=AS_ADMIN) as client,
    ):
        yield client


async def numbers(client: httpx.AsyncClient, event: str) -> tuple[int, int]:
    found = (await client.get(f"/event/{event}")).json()
    return found["count"], found["total"]


async def test_a_correction_sets_only_the_numbers_that_it_contains(client: httpx.AsyncClient) -> None:
    await client.post("/event/a", json={"by": 10})
    row = (await client.put("/event/a", json={"count": 7})).json()
    assert (row["before"], row["after"]) == ({"count": 10, "total": 10}, {"count": 7, "total": 10})
    assert (await client.post("/event/a")).json()["count"] == 8
    await client.put("/event/a", json={"total": 100})
    assert await numbers(client, "a") == (8, 100)
    await client.put("/event/new", json={"count": 3, "total": 1234})  # a count from another service
    assert await numbers(client, "new") == (3, 1234)
    assert (await client.get("/events")).json() == {"a": 8, "new": 3}
    points = (await client.get("/event/a/series?step=day&points=1")).json()["points"]
    assert [point["count"] for point in points] == [11]  # the series keeps the hits


@pytest.mark.fails_on_mutant(
    "the count is not checked", "app/corrections.py", "expected[0] not in {None, value.count}", "False"
)
@pytest.mark.fails_on_mutant(
    "the total is not checked", "app/corrections.py", "expected[1] not in {None, value.total}", "False"
)
async def test_a_correction_of_numbers_that_have_moved_is_rejected(client: httpx.AsyncClient) -> None:
    await client.post("/event/a", json={"by": 10})
    for body in ({"count": 7, "expectedCount": 9}, {"count": 7, "expectedCount": 10, "expectedTotal": 11}):
        problem = detail_of(await client.put("/event/a", json=body), 409)
        assert problem == "a now has the count 10 and the total 10; nothing was changed. Read it and correct it again"
    assert await numbers(client, "a") == (10, 10)
    moved = await client.put("/event/a", json={"count": 7, "expectedCount": 10, "expectedTotal": 10})
    assert moved.json()["after"] == {"count": 7, "total": 10}
    missing = await client.put("/event/new", json={"total": 7, "expectedTotal": 0})
    assert missing.json()["after"] == {"count": 0, "total": 7}


async def test_a_reset_keeps_earlier_counts_as_a_part_of_the_day(
    client: httpx.AsyncClient, clock: SettableClock
) -> None:
    await client.post("/events", json={"a": 5, "b": 1})
    await client.put("/event/b", json={"count": 3})
    assert (await client.post("/reset")).json()["before"] == {"count": 8, "total": 6}
    assert (await client.get("/events")).json() == {}
    assert (await client.get("/leaderboard")).json() == []
    assert await numbers(client, "a") == (0, 5)
    assert (await client.post("/event/a")).json()["count"] == 1
    assert [row["count"] for row in (await client.get("/leaderboard?window=7d")).json()] == [6, 1]
    clock.shift += 60
    await client.post("/reset")
    await client.post("/event/b", json={"by": 2})
    clock.shift += 86_400
    assert (await client.get("/history")).json() == [{"day": "2026-03-28", "hits": 9, "events": 2, "parts": 3}]
    day = (await client.get("/history/2026-03-28")).json()
    assert [part["counts"] for part in day["parts"]] == [{"a": 5, "b": 3}, {"a": 1}, {"b": 2}]
    assert [part["until"][:16] for part in day["parts"]] == ["2026-03-28T12:00", "2026-03-28T12:01", "2026-03-29T00:00"]
    corrections = [(row["action"], row["eventName"], row["before"], row["after"]) for row in day["corrections"]]
    assert corrections == [
        ("correct", "b", {"count": 1, "total": 1}, {"count": 3, "total": 1}),
        ("reset", None, {"count": 8, "total": 6}, {"count": 0, "total": 6}),
        ("reset", None, {"count": 1, "total": 7}, {"count": 0, "total": 7}),
    ]


async def test_a_deleted_event_is_forgotten_and_may_be_counted_again(client: httpx.AsyncClient) -> None:
    await client.post("/events", json=[{"event": "a", "by": 5, "user": "ann"}, {"event": "b"}])
    await client.post("/reset")
    await client.post("/event/a")
    assert (await client.delete("/event/a")).json()["before"] == {"count": 1, "total": 6}
    assert await numbers(client, "a") == (0, 0)
    assert (await client.get("/leaderboard?event=a&window=total")).json() == []
    points = (await client.get("/series?step=day&points=1")).json()["points"]
    assert [point["count"] for point in points] == [1]  # it is also gone from the series of all events
    assert (await client.post("/event/a")).json() | {"ack": ""} == {
        "eventName": "a", "count": 1, "total": 1, "day": "2026-03-28", "ack": ""
    }  # fmt: skip


async def test_an_invalid_correction_is_rejected_and_changes_nothing(client: httpx.AsyncClient) -> None:
    await client.post("/events", json={f"e{i}": 1 for i in range(5)})
    for body in BAD_BODIES:
        assert (await client.put("/event/e0", content=body)).status_code == 422, body
    assert (await client.put("/event/a%2Fb", json={"count": 1})).status_code == 404
    assert (await client.put("/event/one-too-many", json={"count": 1})).status_code == 429
    # The sum of all events would exceed the limit.
    assert (await client.put("/event/e0", json={"total": 2**53 - 1})).status_code == 422
    assert (await client.get("/events")).json() == {f"e{i}": 1 for i in range(5)}
    assert (await client.get("/leaderboard?window=total")).json()[0]["count"] == 1


def nonzero(counts: dict[str, int]) -> dict[str, int]:
    return {event: count for event, count in counts.items() if count}


async def load(node: httpx.AsyncClient, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await node.post("/events", json={"a": 1, "b": 2, "c": 3})


async def correct_under_load(nodes: list[RunningApp], watched: RunningApp) -> None:
    """Reset, correct and delete on the first node under load, until all clients show the final counts."""
    async with contextlib.AsyncExitStack() as stack:
        first, *_, last = [await stack.enter_async_context(node.client()) for node in nodes]
        watchers = await stack.enter_async_context(watching(watched.url, live=50, plain=50))
        await first.post("/events", json={"a": 1_000_000, "b": 1_000_000, "gone": 5})
        stop = asyncio.Event()
        writers = [asyncio.create_task(load(node, stop)) for node in (first, last)]
        for request in (
            first.post("/reset", headers=AS_ADMIN),
            first.put("/event/a", json={"count": 7}, headers=AS_ADMIN),
            first.delete("/event/gone", headers=AS_ADMIN),
            first.put("/event/b", json={"count": 500_000}, headers=AS_ADMIN),
            first.post("/reset", headers=AS_ADMIN),
        ):
            assert (await request).status_code == 200
        stop.set()
        await asyncio.gather(*writers)
        counts = (await last.get("/events")).json()
        assert max(counts.values()) < 500_000
        await eventually(lambda: all(nonzero(watcher.counts) == counts for watcher in watchers))
        dashboards = [watcher for watcher in watchers if watcher.epochs]
        assert [watcher.wrong for watcher in dashboards] == [[]] * 50  # no count went backwards within a generation


@pytest.mark.fails_on_mutant(
    "a smaller count of a new generation is ignored",
    "app/live/peers.py",
    "            live_day.replace(slot, counts, before, generation)",
    "            live_day.merge(slot.day, counts)",
)
async def test_clients_of_another_node_show_the_corrected_counts(tmp_path: Path, redis_server: RedisServer) -> None:
    chosen = settings_for("redis", tmp_path, redis_server, write_limit="100000/second")
    async with serving(chosen) as one, serving(chosen) as other:
        await correct_under_load([one, other], other)


async def test_clients_of_the_same_node_show_the_corrected_counts(tmp_path: Path, redis_server: RedisServer) -> None:
    async with serving(settings_for("sqlite", tmp_path, redis_server, write_limit="100000/second")) as node:
        await correct_under_load([node, node], node)


async def test_corrections_are_rejected_while_the_store_is_unreachable(tmp_path: Path, own_redis: RedisServer) -> None:
    own_redis.start("--appendonly", "yes")
    async with serving(settings_for("redis", tmp_path, own_redis)) as tally, tally.client() as client:
        await client.post("/event/a", json={"by": 5})
        await client.post("/reset", headers=AS_ADMIN)
        own_redis.stop()
        assert (await client.post("/event/a")).json()["count"] == 1  # spooled, after the reset
        for request in (
            client.put("/event/a", json={"count": 9}, headers=AS_ADMIN),
            client.post("/reset", headers=AS_ADMIN),
        ):
            answer = await request
            assert (answer.status_code, json.loads(answer.content).get("counted", "no")) == (503, "no")
        own_redis.start("--appendonly", "yes")
        await eventually(lambda: not_stale(client))
        assert (await client.post("/event/a")).json()["count"] == 2
        assert (await client.get("/event/a")).json()["total"] == 7


@pytest.mark.fails_on_mutant(
    "counts while offline lack the last change",
    "app/stores/last_known.py",
    "            self.store.write(change.writes)",
    "            pass",
)
async def test_a_reset_just_before_an_outage_holds_on_every_node(tmp_path: Path, own_redis: RedisServer) -> None:
    persistent = ("--appendonly", "yes", "--appendfsync", "always")
    own_redis.start(*persistent)
    chosen = settings_for("redis", tmp_path, own_redis)
    async with contextlib.AsyncExitStack() as stack:
        served = [await stack.enter_async_context(serving(chosen)) for _ in range(2)]
        one, other = [await stack.enter_async_context(node.client()) for node in served]
        watchers = await stack.enter_async_context(watching(*(node.url for node in served), live=2, plain=2))
        await one.post("/events", json={"a": 50, "b": 7})
        await eventually(lambda: all(watcher.counts == {"a": 50, "b": 7} for watcher in watchers))
        await one.post("/reset", headers=AS_ADMIN)
        own_redis.stop()
        answer = (await one.post("/event/a")).json()
        assert (answer["count"], answer["total"], answer["ack"]) == (1, 51, "spooled")
        assert (await one.get("/events")).json() == {"a": 1}
        # The other node may not have received the reset yet.
        assert (await other.post("/event/a")).json()["ack"] == "spooled"
        own_redis.start(*persistent)
        await eventually(lambda: not_stale(one))
        await eventually(lambda: not_stale(other))
        await other.post("/event/b")
        for node in (one, other):
            assert (await node.get("/events")).json() == {"a": 2, "b": 1}
        await eventually(lambda: all(nonzero(watcher.counts) == {"a": 2, "b": 1} for watcher in watchers))
        assert [watcher.wrong for watcher in watchers if watcher.epochs and watcher.wrong] == []


async def test_concurrent_resets_subtract_each_count_once(tmp_path: Path, redis_server: RedisServer) -> None:
    chosen = settings_for("redis", tmp_path, redis_server)
    async with serving(chosen) as one, serving(chosen) as two, one.client() as client, two.client() as other:
        for by in range(1, 6):
            await client.post("/event/a", json={"by": by})
            resets = [node.post("/reset", headers=AS_ADMIN) for node in (client, other) for _ in range(4)]
            befores = [answer.json()["before"]["count"] for answer in await asyncio.gather(*resets)]
            assert sorted(befores) == [0] * 7 + [by]
            assert (await other.get("/events")).json() == {}


async def not_stale(client: httpx.AsyncClient) -> bool:
    return (await client.get("/health")).json()["staleSeconds"] is None


@pytest.mark.fails_on_mutant(
    "any number of changes", "app/corrections.py", "    if changes >= CHANGES_PER_DAY_MAX:\n", "    if False:\n"
)
async def test_a_day_has_a_limited_number_of_changes(
    client: httpx.AsyncClient, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.corrections.CHANGES_PER_DAY_MAX", 3)
    for _ in range(3):
        assert (await client.post("/reset")).status_code == 200
    for response in (await client.post("/reset"), await client.put("/event/a", json={"count": 1})):
        assert (response.status_code, response.json()["code"]) == (429, "change-limit")
    assert (await client.post("/event/a")).json()["count"] == 1
    clock.go_to("2026-03-29T12:00:00+00:00")
    assert (await client.put("/event/a", json={"count": 1})).status_code == 200
