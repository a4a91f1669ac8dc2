"""Users and sessions: unique numbers, rankings, the counts of one user, and erasing one."""

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote
from zoneinfo import ZoneInfo

import httpx
import pytest

from app.domain.buckets import Bucket
from app.domain.calendar import Calendar
from app.domain.counting import HitGroup, Visit
from app.stores import rules
from app.stores.base import CounterStore, StoreLimits
from app.stores.redis import RedisStore
from app.stores.redis_url import RedisTarget
from app.stores.sqlite import SqliteStore
from tests.http.clients import asgi_client
from tests.support.redis_servers import RedisServer
from tests.support.servers import AS_ADMIN, SettableClock, settings_for

NOON = 1_795_435_200
USERS = 100_000
CALENDAR = Calendar(ZoneInfo("UTC"))


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def client(
    request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer, clock: SettableClock
) -> AsyncIterator[httpx.AsyncClient]:
    clock.go_to("2026-03-28T12:00:00+00:00")
    async with asgi_client(settings_for(request.param, tmp_path, redis_server), clock) as client:
        client.exact = request.param != "redis"
        yield client


async def audience(client: httpx.AsyncClient, path: str = "/audience") -> tuple[int, int, int]:
    found = (await client.get(path)).json()
    assert found["exact"] == client.exact
    assert found["error"] == (0 if client.exact else 0.0081)
    return found["users"], found["sessions"], found["activeSessions"]


async def test_unique_users_and_sessions(client: httpx.AsyncClient, clock: SettableClock) -> None:
    await client.post("/event/a", json={"user": "ann", "session": "1", "by": 3})
    await client.post("/event/a")
    await client.post("/events", json=[{"event": "a", "user": "ann"}, {"event": "b", "user": "bob", "session": "2"}])
    assert await audience(client) == (2, 2, 2)
    assert await audience(client, "/event/a/audience") == (1, 1, 1)
    assert await audience(client, "/event/never/audience") == (0, 0, 0)
    clock.shift += 301
    assert await audience(client) == (2, 2, 0)
    clock.shift += 86_400
    await client.post("/event/a", json={"user": "ann"})
    assert await audience(client) == (1, 0, 0)
    assert await audience(client, "/audience?days=2") == (2, 2, 0)


async def test_the_users_of_an_event_are_ranked_by_window(client: httpx.AsyncClient, clock: SettableClock) -> None:
    async def ranked(window: str) -> list[tuple[int, str, int]]:
        return [tuple(row.values()) for row in (await client.get(f"/leaderboard?event=a&window={window}")).json()]

    await client.post("/event/a", json={"user": "ann", "by": 5})
    clock.shift += 86_400
    await client.post("/event/a", json={"user": "bob", "by": 3})
    clock.shift += 3_700
    await client.post("/event/a", json={"user": "ann"})
    assert await ranked("1h") == [(1, "ann", 1)]
    assert await ranked("today") == [(1, "bob", 3), (2, "ann", 1)]
    assert await ranked("7d") == await ranked("total") == [(1, "ann", 6), (2, "bob", 3)]


@pytest.mark.parametrize("visitor", ["a/b", "Zoë", "👩‍👩‍👧", "a b", "%41", "?x=1", "a;b"])
async def test_counts_of_one_user_and_one_session(client: httpx.AsyncClient, visitor: str) -> None:
    await client.post("/events", json=[{"event": e, "user": visitor, "session": visitor} for e in ("a", "b", "a")])
    path = quote(visitor, safe="")
    assert (await client.get(f"/user/{path}")).json() == {"user": visitor, "days": 1, "counts": {"a": 2, "b": 1}}
    assert (await client.get(f"/session/{path}")).json() == {"session": visitor, "days": 1, "counts": {"a": 2, "b": 1}}
    assert (await client.get("/user/nobody")).json()["counts"] == {}


async def test_an_erased_user_is_in_no_ranking_and_the_counts_stay(client: httpx.AsyncClient) -> None:
    await client.post("/event/a", json={"user": "ann", "by": 5})
    await client.post("/event/a", json={"user": "bob"})
    erased = await client.delete("/user/ann", headers=AS_ADMIN)
    assert erased.json() == {"user": "ann", "uniquesKeep": not client.exact}
    assert (await client.get("/user/ann")).json()["counts"] == {}
    assert [row["user"] for row in (await client.get("/leaderboard?event=a&window=total")).json()] == ["bob"]
    assert (await client.get("/event/a")).json()["count"] == 6
    assert (await audience(client))[0] == (1 if client.exact else 2)


async def test_a_ranking_of_only_the_first_ids_is_marked_as_partial(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "RANKED_VISITORS_MAX", 3)
    for user in ("a", "b"):
        await client.post("/event/x", json={"user": user})
    assert "Tally-Partial" not in (await client.get("/leaderboard?event=x")).headers
    for user in ("c", "d", "a"):
        await client.post("/event/x", json={"user": user})
    response = await client.get("/leaderboard?event=x")
    assert {row["user"]: row["count"] for row in response.json()} == {"a": 2, "b": 1, "c": 1}
    assert "first 3" in response.headers["Tally-Partial"]
    assert "first 3" in (await client.get("/user/d")).headers["Tally-Partial"]
    assert (await audience(client, "/event/x/audience"))[0] == 4


async def test_the_same_key_with_another_user_is_another_request(client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "k"}
    assert (await client.post("/event/a", json={"user": "ann"}, headers=key)).status_code == 200
    assert (await client.post("/event/a", json={"user": "ann"}, headers=key)).headers["Idempotent-Replayed"] == "true"
    assert (await client.post("/event/a", json={"user": "bob"}, headers=key)).status_code == 422
    assert (await audience(client))[0] == 1


@pytest.mark.parametrize("path", ["/user/%FF", "/user/a%20", "/session/%0A", "/audience?days=0", "/audience?days=401"])
async def test_bad_ids_and_days_are_rejected(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 422
    assert (await client.get("/leaderboard?event=a/b")).status_code == 422


COUNTED_AT_ONCE = pytest.mark.fails_on_mutant(
    "only the users of the last day are counted",
    "app/stores/base.py",
    "ids.update(*await self.read([bucket]))",
    "ids = set(*await self.read([bucket]))",
)


@pytest.mark.parametrize("kind", [pytest.param("sqlite", marks=COUNTED_AT_ONCE), "redis"])
async def test_100_000_unique_users_over_3_days(kind: str, tmp_path: Path, redis_server: RedisServer) -> None:
    caps = StoreLimits(10)
    store: CounterStore = SqliteStore(tmp_path / "tally.db", caps)
    if kind == "redis":
        store = RedisStore(RedisTarget.from_url(redis_server.url), caps)
    await store.open()
    for i, first in enumerate(range(0, USERS, 5000)):
        # Each user comes on two of the days.
        for day in {i % 3, (i + 1) % 3}:
            visits = [Visit("a", 1, f"user-{user}", None) for user in range(first, first + 5000)]
            group = HitGroup(CALENDAR.slot(NOON + day * 86_400), {"a": 5000}, visits=visits)
            await store.apply(f"{i} {day}", 0, 1, [group])
    days = [Bucket("day", CALENDAR.slot(NOON + day * 86_400).day, "user:a") for day in range(3)]
    found, error = await store.count_distinct(days)
    assert (found == USERS, error) == (True, 0.0) if kind == "sqlite" else abs(found - USERS) <= 0.02 * USERS
    of_one, _ = await store.count_distinct(days[:1])
    assert abs(of_one - 65_000) <= (0 if kind == "sqlite" else 0.02 * USERS)
    await store.close()
