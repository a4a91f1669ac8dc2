"""GET /events and /leaderboard: order, pages, windows, and parameters that are rejected."""

import httpx
import pytest

from app.http import queries
from app.stores import sqlite
from tests.http.problems import assert_problem
from tests.support.servers import SettableClock

BAD_TIMES = ["", "x", "0001-01-01", "9999-12-31", "2026-13-01", "20261119", "2026-11-19T14", "2026-11-19T14:00:00"]


async def test_events_are_filtered_sorted_and_paged(client: httpx.AsyncClient) -> None:
    await client.post("/events", json={"page.a": 5, "page.b": 9, "page.c": 5, "other": 7})
    assert list((await client.get("/events")).json()) == ["other", "page.a", "page.b", "page.c"]
    assert list((await client.get("/events?prefix=page.&sort=-count")).json()) == ["page.b", "page.a", "page.c"]
    for sort in ("name", "-count"):
        seen, url = [], f"/events?sort={sort}&limit=3&prefix="
        while url:
            response = await client.get(url)
            seen += response.json()
            url = response.links.get("next", {}).get("url")
        assert seen == list((await client.get(f"/events?sort={sort}")).json())


@pytest.mark.fails_on_mutant("only the last slice is merged", "app/http/queries.py", "chain(*runs)", "runs[-1]")
async def test_long_listings_are_merged_from_slices(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "SLICE", 7)
    monkeypatch.setattr(sqlite, "PAGE_ROWS", 5)
    counts = {f"{'ab'[i % 2]} {i * 37 % 100}": 1 + i % 5 for i in range(100)}
    await client.post("/events", json=counts)
    orders = {"name": sorted(counts), "-count": sorted(counts, key=lambda event: (-counts[event], event))}
    for sort, order in orders.items():
        assert list((await client.get(f"/events?sort={sort}")).json().items()) == [(e, counts[e]) for e in order]
        seen, url = [], f"/events?sort={sort}&limit=9&prefix=a"
        while url:
            response = await client.get(url)
            seen += response.json()
            url = response.links.get("next", {}).get("url")
        assert seen == [event for event in order if event.startswith("a")]
    for window in ("today", "total", "1h", "7d"):
        top = (await client.get(f"/leaderboard?limit=20&window={window}")).json()
        assert [(row["eventName"], row["count"]) for row in top] == [(e, counts[e]) for e in orders["-count"][:20]]


async def test_leaderboards_of_today_and_of_all_time(client: httpx.AsyncClient, clock: SettableClock) -> None:
    await client.post("/events", json={"old": 10, "a": 1})
    clock.go_to("2026-03-29T00:10:00+00:00")
    await client.post("/events", json={"a": 2, "b": 2})
    names = [row["eventName"] for row in (await client.get("/leaderboard")).json()]
    assert names == ["a", "b"]
    total = (await client.get("/leaderboard?window=total&limit=2")).json()
    assert total == [{"rank": 1, "eventName": "old", "count": 10}, {"rank": 2, "eventName": "a", "count": 3}]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/leaderboard?limit=0", 422),
        ("/leaderboard?window=2h", 422),
        ("/series?points=0", 422),
        ("/series?step=week", 422),
        ("/series?points=1441", 422),
        *((f"/series?until={until}", 422) for until in BAD_TIMES),
        ("/events?after=x", 422),
        ("/events?after=WzFd", 422),
        ("/events?sort=x", 422),
        ("/series?event=", 422),
        ("/series?" + "event=a&" * 101, 422),
        ("/history/2026-03-28", 404),
        ("/nothing", 404),
        ("/history/2999-01-01", 404),
        ("/history/x", 422),
        ("/history/0001-01-01", 404),
        ("/event/a/b/c", 404),
    ],
)
async def test_invalid_parameters_of_reads_are_rejected(empty_app: httpx.AsyncClient, path: str, status: int) -> None:
    assert_problem(await empty_app.get(path), status, None)


@pytest.mark.parametrize("client", [{"read_limit": "2/minute"}], indirect=True)
async def test_reads_have_a_rate_limit_of_their_own(client: httpx.AsyncClient) -> None:
    assert [(await client.get("/events")).status_code for _ in range(3)] == [200, 200, 429]
    assert (await client.post("/event/a")).status_code == 200
    assert (await client.get("/health")).status_code == 200


async def test_leaderboards_of_the_last_hour_and_week(client: httpx.AsyncClient, clock: SettableClock) -> None:
    await client.post("/event/old", json={"by": 9})
    clock.go_to("2026-03-28T23:20:00+00:00")
    await client.post("/event/a", json={"by": 2})
    clock.go_to("2026-03-29T00:10:00+00:00")
    await client.post("/event/a")
    hour = (await client.get("/leaderboard?window=1h")).json()
    assert hour == [{"rank": 1, "eventName": "a", "count": 3}]
    week = (await client.get("/leaderboard?window=7d")).json()
    assert [(row["eventName"], row["count"]) for row in week] == [("old", 9), ("a", 3)]
    clock.go_to("2026-04-04T00:10:00+00:00")
    assert (await client.get("/leaderboard?window=7d")).json() == [{"rank": 1, "eventName": "a", "count": 1}]
