"""The first promise, as a client sees it, over every store: post, read, watch, rank, limit, midnight.

Default clients on real sockets: httpx, and python-socketio's own, which begins with polling.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import socketio

from tests.support.redis_servers import RedisServer
from tests.support.servers import Process, RunningApp, SettableClock, eventually, serving, settings_for

STORES = ["memory", "sqlite", "redis", "offline"]


@pytest.fixture(params=STORES)
async def tally(
    request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer, clock: SettableClock
) -> AsyncIterator[RunningApp]:
    limits = getattr(request.function, "limits", {})
    async with serving(settings_for(request.param, tmp_path, redis_server, **limits), clock) as served:
        yield served


class Watcher:
    """A default Socket.IO client that keeps the messages it receives."""

    def __init__(self) -> None:
        self.received: list[tuple[str, object]] = []
        self.client = socketio.AsyncClient()
        for event in ("update", "reset"):
            self.client.on(event, self._note(event))

    def _note(self, event: str):
        return lambda data: self.received.append((event, data))

    def updates(self) -> list[object]:
        return [data for event, data in self.received if event == "update"]


@pytest.fixture
async def watchers(tally: RunningApp) -> AsyncIterator[list[Watcher]]:
    watching = [Watcher() for _ in range(3)]
    for watcher in watching:
        await watcher.client.connect(tally.url)
    yield watching
    for watcher in watching:
        await watcher.client.disconnect()


async def test_three_posts_answer_1_2_3(tally: RunningApp) -> None:
    async with tally.client() as client:
        answers = [await client.post("/event/signup") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert [answer.json()["count"] for answer in answers] == [1, 2, 3]
    assert {answer.json()["eventName"] for answer in answers} == {"signup"}


async def test_one_event_and_all_of_them_are_read_back(tally: RunningApp) -> None:
    async with tally.client() as client:
        for name in ("signup", "signup", "login"):
            await client.post(f"/event/{name}")
        assert (await client.get("/event/signup")).json()["count"] == 2
        assert (await client.get("/event/never")).json()["count"] == 0
        assert (await client.get("/events")).json() == {"signup": 2, "login": 1}


async def test_every_post_reaches_every_connected_client(tally: RunningApp, watchers: list[Watcher]) -> None:
    async with tally.client() as client:
        for _ in range(3):
            await client.post("/event/signup")
    expected = [{"eventName": "signup", "count": count} for count in (1, 2, 3)]
    for watcher in watchers:
        await eventually(lambda w=watcher: len(w.updates()) >= 3)
        assert watcher.updates() == expected


async def test_the_leaderboard_ranks_the_top_n(tally: RunningApp) -> None:
    async with tally.client() as client:
        for name, hits in {"a": 3, "b": 5, "c": 1}.items():
            await client.post(f"/event/{name}", json={"by": hits})
        assert (await client.get("/leaderboard?limit=2")).json() == [
            {"rank": 1, "eventName": "b", "count": 5},
            {"rank": 2, "eventName": "a", "count": 3},
        ]


@pytest.mark.fails_on_mutant(
    "limit by name", "app/http/fast_path.py", "consume_for(head.address, ", "consume_for(head.address + url.decode(), "
)
async def test_over_the_limit_is_429_only_for_that_address(tally: RunningApp) -> None:
    async with tally.client("127.0.0.1") as greedy, tally.client("127.0.0.2") as other:
        answers = await asyncio.gather(*(greedy.post(f"/event/name{i % 5}") for i in range(40)))
        statuses = [answer.status_code for answer in answers]
        assert statuses.count(200) == 20
        assert statuses.count(429) == 20
        rejected = next(answer for answer in answers if answer.status_code == 429)
        assert int(rejected.headers["Retry-After"]) >= 1
        assert (await other.post("/event/name0")).status_code == 200


test_over_the_limit_is_429_only_for_that_address.limits = {"write_limit": "20/minute"}


@pytest.mark.fails_on_mutant(
    "destructive reset",
    "app/scheduler.py",
    'cutoffs["day"] = self._clock.calendar.starts("day", slot.day, self._days_kept)[0]',
    'cutoffs["day"] = self._clock.slot().day',
)
@pytest.mark.fails_on_mutant(
    "no reset is sent", "app/live/day.py", 'self.head.epoch, {}, [self._reset("/")]', "self.head.epoch, {}, []"
)
async def test_midnight_empties_the_counters_and_reaches_the_clients(
    tally: RunningApp, watchers: list[Watcher], clock: SettableClock
) -> None:
    async with tally.client() as client:
        today = (await client.post("/event/signup")).json()["day"]
        tomorrow = datetime.fromisoformat(today).replace(tzinfo=UTC) + timedelta(days=1)
        clock.go_to(tomorrow.isoformat())
        tally.app.state.jobs.get_job("close_day").modify(next_run_time=datetime.now(UTC))
        for watcher in watchers:
            await eventually(lambda w=watcher: ("reset", {"day": str(tomorrow.date())}) in w.received)
        assert (await client.get("/events")).json() == {}
        assert (await client.get(f"/history/{today}")).json()["parts"][0]["counts"] == {"signup": 1}
        assert (await client.post("/event/signup")).json()["count"] == 1
    for watcher in watchers:
        await eventually(lambda w=watcher: len(w.updates()) == 2)
        assert [event for event, _ in watcher.received] == ["update", "reset", "update"]


@pytest.mark.parametrize("kind", STORES)
async def test_uvicorn_serves_app_main_app_to_default_clients(
    kind: str, process: Callable[..., Process], tmp_path: Path, redis_server: RedisServer
) -> None:
    store = settings_for(kind, tmp_path, redis_server).store
    app = process("-m", "uvicorn", "app.main:app", "--port", "{port}", TALLY_STORE=store)
    watcher = Watcher()
    await watcher.client.connect(app.url)
    async with httpx.AsyncClient(base_url=app.url) as client:
        answers = [(await client.post("/event/signup")).json() for _ in range(3)]
        assert (await client.get("/events")).json() == {"signup": 3}
    assert [(answer["eventName"], answer["count"]) for answer in answers] == [("signup", n) for n in (1, 2, 3)]
    await eventually(lambda: watcher.updates() == [{"eventName": "signup", "count": n} for n in (1, 2, 3)])
    await watcher.client.disconnect()
