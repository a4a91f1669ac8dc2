"""GET /movers: what is compared with what, and what is not because it is unknown."""

from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest

from app.http import queries
from tests.http.problems import assert_problem
from tests.support.servers import AS_ADMIN, SettableClock


async def movers(client: httpx.AsyncClient, query: str = "") -> dict[str, Any]:
    response = await client.get(f"/movers?{query}")
    assert response.status_code == 200
    return response.json()


async def count_at(client: httpx.AsyncClient, clock: SettableClock, instant: str, counts: dict[str, int]) -> None:
    clock.go_to(instant)
    (await client.post("/events", json=counts)).raise_for_status()


@pytest.mark.fails_on_mutant(
    "the running hour is compared", "app/http/routes/movers.py", "        await add_counts(sums, running, -1)\n", ""
)
@pytest.mark.fails_on_mutant(
    "all of an earlier day is compared", "app/http/routes/movers.py", "calendar.local(at).hour < hour", "True"
)
async def test_today_is_compared_with_earlier_days_up_to_the_same_hour(
    client: httpx.AsyncClient, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "SLICE", 2)
    await count_at(client, clock, "2026-05-22T13:59:00+00:00", {"a": 5, "week": 1})
    await count_at(client, clock, "2026-05-28T13:30:00+00:00", {"a": 10, "gone": 30, "same": 4, "late": 1})
    await count_at(client, clock, "2026-05-28T14:00:00+00:00", {"a": 100})
    await count_at(client, clock, "2026-05-29T13:10:00+00:00", {"a": 14, "new": 9, "same": 4})
    await count_at(client, clock, "2026-05-29T14:01:00+00:00", {"a": 1000, "now": 1})
    found = await movers(client)
    assert found["until"] == "2026-05-29T14:00:00+00:00"
    assert found["events"] == [
        {"eventName": "gone", "count": 0, "previous": 30, "weekAgo": 0},
        {"eventName": "new", "count": 9, "previous": 0, "weekAgo": 0},
        {"eventName": "a", "count": 14, "previous": 10, "weekAgo": 5},
        {"eventName": "late", "count": 0, "previous": 1, "weekAgo": 0},
        {"eventName": "same", "count": 4, "previous": 4, "weekAgo": 0},
    ]
    assert (await movers(client, "limit=1"))["events"] == found["events"][:1]


@pytest.mark.fails_on_mutant(
    "the time before the first hit is 0",
    "app/http/routes/movers.py",
    "if buckets[0].start >= await self._first_day() else None",
    "",
)
async def test_a_time_before_the_first_hit_is_not_compared(client: httpx.AsyncClient, clock: SettableClock) -> None:
    await count_at(client, clock, "2026-05-22T15:00:00+00:00", {"a": 5})
    await count_at(client, clock, "2026-05-23T13:00:00+00:00", {"a": 7})
    clock.go_to("2026-05-23T14:00:00+00:00")
    assert (await movers(client))["events"] == [{"eventName": "a", "count": 7, "previous": 0, "weekAgo": None}]
    assert (await movers(client, "window=7d"))["events"] == []
    clock.go_to("2026-05-24T00:30:00+00:00")  # no hour of this day is over
    assert (await movers(client))["events"] == []


@pytest.mark.fails_on_mutant(
    "hours that were deleted are 0",
    "app/http/routes/movers.py",
    "or (hours and last.start < clock.at() - self._hours_kept_seconds)",
    "",
)
@pytest.mark.parametrize("client", [{"hours_kept_days": 7}], indirect=True)
async def test_hours_that_are_not_kept_are_not_compared(client: httpx.AsyncClient, clock: SettableClock) -> None:
    await count_at(client, clock, "2026-05-01T10:00:00+00:00", {"a": 5})
    await count_at(client, clock, "2026-05-23T10:00:00+00:00", {"a": 7})
    clock.go_to("2026-05-24T14:00:00+00:00")
    assert (await movers(client))["events"] == [{"eventName": "a", "count": 0, "previous": 7, "weekAgo": None}]
    assert (await movers(client, "window=7d"))["events"] == []


@pytest.mark.fails_on_mutant(
    "no week is compared at midnight", "app/http/routes/movers.py", "if not buckets or", "if not hours or"
)
@pytest.mark.parametrize("client", [{"timezone": ZoneInfo("Europe/Berlin")}], indirect=True)
async def test_a_week_is_compared_with_the_week_before(client: httpx.AsyncClient, clock: SettableClock) -> None:
    """The clock is put back on 25 October."""
    await count_at(client, clock, "2026-10-14T09:00:00+00:00", {"a": 1000})
    for instant, hits in {
        "2026-10-15T08:00:00+00:00": 1,  # 13 days ago
        "2026-10-20T23:30:00+02:00": 2,
        "2026-10-21T09:59:00+02:00": 4,
        "2026-10-21T10:00:00+02:00": 8,  # later than this hour, 7 days ago: in neither period
        "2026-10-22T00:00:00+02:00": 16,  # 6 days ago
        "2026-10-27T12:00:00+01:00": 32,
        "2026-10-28T09:59:00+01:00": 64,
        "2026-10-28T10:00:00+01:00": 128,
    }.items():
        await count_at(client, clock, instant, {"a": hits})
    found = await movers(client, "window=7d")
    assert found == {"until": "2026-10-28T10:00:00+01:00", "events": [{"eventName": "a", "count": 112, "previous": 7}]}
    clock.go_to("2026-10-29T00:10:00+01:00")  # both periods are six days while no hour of this day is over
    found = await movers(client, "window=7d")
    assert found["events"] == [{"eventName": "a", "count": 224, "previous": 14}]


@pytest.mark.fails_on_mutant(
    "each request reads all hours",
    "app/http/routes/movers.py",
    "found is None or found.minute != self._queries.clock.slot().minute",
    "True",
)
async def test_movers_are_read_once_in_a_minute(client: httpx.AsyncClient, clock: SettableClock) -> None:
    await count_at(client, clock, "2026-05-28T10:00:00+00:00", {"a": 5})
    clock.go_to("2026-05-29T14:00:00+00:00")
    first = await movers(client)
    await client.delete("/event/a", headers=AS_ADMIN)
    assert await movers(client) == first
    clock.go_to("2026-05-29T14:01:00+00:00")
    assert (await movers(client))["events"] == []


@pytest.mark.parametrize("query", ["window=1h", "window=total", "limit=0", "limit=10001"])
async def test_invalid_parameters_are_rejected(empty_app: httpx.AsyncClient, query: str) -> None:
    assert_problem(await empty_app.get(f"/movers?{query}"), 422, None)
