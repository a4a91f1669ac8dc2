"""Series and history: time zones, empty points, CSV and retention."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import httpx
import pytest

from tests.support.servers import SettableClock, eventually


async def test_series_are_filled_with_zeros_and_end_with_the_running_bucket(
    client: httpx.AsyncClient, clock: SettableClock
) -> None:
    await client.post("/event/a", json={"by": 2})
    clock.go_to("2026-03-28T23:10:00+00:00")
    await client.post("/events", json={"a": 1, "b": 5})
    series = (await client.get("/event/a/series?step=hour&points=3")).json()
    assert (series["eventName"], series["step"]) == ("a", "hour")
    assert [point["count"] for point in series["points"]] == [0, 2, 1]
    assert series["points"][-1]["start"] == "2026-03-28T23:00:00+00:00"
    together = (await client.get("/series?step=day&points=2")).json()
    assert (together["eventName"], [point["count"] for point in together["points"]]) == (None, [0, 8])
    lines = (await client.get("/series?event=a&event=b&event=a&points=1")).json()
    assert [(line["eventName"], line["points"][0]["count"]) for line in lines] == [("a", 1), ("b", 5), ("a", 1)]


@pytest.mark.fails_on_mutant(
    "a day ends when it begins", "app/http/routes/series.py", "at.date() + timedelta(days=1)) - 1", "at.date()))"
)
@pytest.mark.fails_on_mutant(
    "a future without hits is shown", "app/http/queries.py", "min(until, self.clock.at())", "until"
)
@pytest.mark.parametrize("client", [{"timezone": ZoneInfo("Europe/Berlin")}], indirect=True)
async def test_series_may_end_earlier(client: httpx.AsyncClient, clock: SettableClock) -> None:
    await client.post("/event/a", json={"by": 2})  # 23:30 on 28 March in Berlin
    clock.go_to("2026-03-30T10:00:00+00:00")
    await client.post("/event/a")

    async def starts(query: str) -> list[tuple[str, int]]:
        series = (await client.get(f"/event/a/series?{query}")).json()
        return [(point["start"][:16], point["count"]) for point in series["points"]]

    assert await starts("step=hour&points=2&until=2026-03-28") == [("2026-03-28T22:00", 0), ("2026-03-28T23:00", 2)]
    assert await starts("step=minute&points=1&until=2026-03-28T22:30:59Z") == [("2026-03-28T23:30", 2)]
    assert await starts("step=day&points=2&until=2999-12-31") == [("2026-03-29T00:00", 0), ("2026-03-30T00:00", 1)]
    assert (await client.get("/series?step=day&points=1440&until=1971-01-01")).status_code == 200


@pytest.mark.fails_on_mutant(
    "any number of counts", "app/http/routes/series.py", "if len(events) * points > COUNTS_MAX:", "if False:"
)
async def test_a_response_has_a_limited_number_of_counts(client: httpx.AsyncClient) -> None:
    def path(events: int) -> str:
        return "/series?step=minute&points=1000&" + "&".join(f"event=e{i}" for i in range(events))

    response = await client.get(path(20))
    assert [len(line["points"]) for line in response.json()] == [1000] * 20
    response = await client.get(path(21))
    assert response.status_code == 422
    assert response.json()["detail"] == (
        "points: 21 events of 1000 points are 21000 counts, and one response has at most 20000: request fewer of either"
    )


@pytest.mark.parametrize("client", [{"timezone": ZoneInfo("Europe/Berlin")}], indirect=True)
async def test_days_and_hours_begin_on_the_zones_clock(client: httpx.AsyncClient, clock: SettableClock) -> None:
    await client.post("/event/a")  # 23:30 in Berlin, the evening before the clock goes forward
    clock.go_to("2026-03-29T10:00:00+00:00")
    assert (await client.post("/event/a")).json() | {"ack": ""} == {
        "eventName": "a", "count": 1, "total": 2, "day": "2026-03-29", "ack": ""
    }  # fmt: skip
    points = (await client.get("/event/a/series?step=day&points=2")).json()["points"]
    assert points == [
        {"start": "2026-03-28T00:00:00+01:00", "count": 1},
        {"start": "2026-03-29T00:00:00+01:00", "count": 1},
    ]
    history = (await client.get("/history/2026-03-28")).json()
    parts = [{"until": "2026-03-29T00:00:00+01:00", "counts": {"a": 1}}]
    assert history == {"day": "2026-03-28", "parts": parts, "corrections": []}
    assert (await client.get("/health")).json()["resetsAt"] == "2026-03-30T00:00:00+02:00"


async def test_history_lists_past_days_newest_first(client: httpx.AsyncClient, clock: SettableClock) -> None:
    await client.post("/events", json={"a": 2, "=1+1": 3})
    for text, event in (("=v2", None), ('"=v3"', "a"), ("v4", "b")):
        clock.shift += 1
        await client.post("/notes", json={"text": text, "event": event})
    clock.go_to("2026-03-30T12:00:00+00:00")
    await client.post("/event/a")
    assert (await client.get("/history")).json() == [{"day": "2026-03-28", "hits": 5, "events": 2, "parts": 1}]
    clock.go_to("2026-03-31T12:00:00+00:00")
    listed = (await client.get("/history")).json()
    assert [day["day"] for day in listed] == ["2026-03-30", "2026-03-28"]
    days = await client.get("/history?format=csv")
    notes = '"22:30 =v2; 22:30 a: ""=v3""; 22:30 b: v4"\r\n'
    assert days.headers["content-type"] == "text/csv; charset=utf-8"
    assert days.text == '"day","hits","events","parts","notes"\r\n"2026-03-30",1,1,1,""\r\n"2026-03-28",5,2,1,' + notes
    day = await client.get("/history/2026-03-28?format=csv")
    assert day.text == (
        '"event","count","until","notes"\r\n"\'=1+1",3,"2026-03-29T00:00:00+00:00",""\r\n'
        '"a",2,"2026-03-29T00:00:00+00:00","22:30 ""=v3"""\r\n'
        '"","","2026-03-29T00:00:00+00:00","22:30 =v2"\r\n"b",0,"2026-03-29T00:00:00+00:00","22:30 v4"\r\n'
    )


@pytest.mark.parametrize("client", [{"minutes_kept_hours": 24, "hours_kept_days": 2, "days_kept": 8}], indirect=True)
async def test_old_data_is_deleted_and_totals_stay(client: httpx.AsyncClient, clock: SettableClock) -> None:
    await client.post("/event/a")
    for day in ("2026-04-09", "2026-04-10"):  # only hits on two newer days make older ones expire
        clock.go_to(f"{day}T12:00:00+00:00")
        await client.post("/event/b")
    jobs = client._transport.app.state.jobs
    jobs.get_job("close_day").modify(next_run_time=datetime.now(UTC))

    async def forgotten() -> bool:
        return (await client.get("/event/a/series?step=day&points=14")).json()["points"][0]["count"] == 0

    await eventually(forgotten)
    assert [day["day"] for day in (await client.get("/history")).json()] == ["2026-04-09"]
    assert (await client.get("/event/a")).json()["total"] == 1
