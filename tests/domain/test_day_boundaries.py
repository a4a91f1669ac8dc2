"""Days in time zones with skipped and doubled midnights, across restarts, and with a clock that jumps."""

import asyncio
import json
from collections import Counter
from datetime import date, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import httpx
import pytest

from app.domain.buckets import ALL_EVENTS, TOTAL, Bucket
from app.domain.calendar import Calendar, Clock, TimeSlot, day_start
from app.group_commit import GroupCommitter
from app.live.day import LiveDay
from app.main import create_app
from app.metrics import Metrics
from app.stores.base import StoreLimits
from app.stores.memory import MemoryStore
from tests.support.redis_servers import RedisServer
from tests.support.scenarios.days import clock_jumps
from tests.support.servers import SettableClock, settings_for

DAYS = 400
ZONES = ["Europe/Berlin", "America/New_York", "America/Santiago", "America/Havana", "Africa/Cairo", "Atlantic/Azores"]
ZONES += ["Asia/Kolkata", "Australia/Lord_Howe"]


@pytest.mark.fails_on_mutant(
    "every day has 24 hours",
    "app/domain/calendar.py",
    "_hour_start(local), day_start(zone, local.date()))",
    "_hour_start(local), minute - minute % 86_400)",
)
@pytest.mark.fails_on_mutant(
    "a reset is sent twice", "app/live/day.py", "if slot.day > self._slot.day:", "if slot.day >= self._slot.day:"
)
@pytest.mark.parametrize("name", ZONES)
async def test_400_days_with_hits_in_every_hour_have_one_reset_each(name: str) -> None:
    zone = ZoneInfo(name)
    calendar, first = Calendar(zone), date(2026, 1, 1)
    begin, end = day_start(zone, first), day_start(zone, first + timedelta(days=DAYS))
    now = float(begin)
    clock = Clock(calendar, lambda: now)
    store = MemoryStore(StoreLimits(10))
    live_day = LiveDay(clock)
    resets: list[str] = []

    def publish(slot: TimeSlot, counts: dict[str, int], _generation: int) -> None:
        live_day.start_day(slot)
        live_day.merge(slot.day, counts)

    committer = GroupCommitter(store, clock, publish, Metrics())
    committer.start()
    expected: Counter[str] = Counter()
    for now in range(begin, end, 1800):
        if now % 5400 == 0:
            live_day.start_day(clock.slot())  # the periodic job, which runs before the hit or after it
        await committer.submit({"a": 1})
        live_day.start_day(clock.slot())
        updates = [message for delta in live_day.take_deltas() for message in delta.updates]
        resets += [json.loads(message.data)["day"] for message in updates if message.event == "reset"]
        expected[calendar.local(now).date().isoformat()] += 1
    await committer.close()
    dates = [(first + timedelta(days=i)).isoformat() for i in range(DAYS)]
    assert list(expected) == dates
    assert resets == dates[1:]
    days = await store.read([Bucket("day", start) for start in calendar.starts("day", end - 1, DAYS)])
    assert [counts["a"] for counts in days] == list(expected.values())
    assert set(expected.values()) <= {46, 47, 48, 49, 50}  # two per hour: a day has 23 to 25 hours
    hours = calendar.starts("hour", end - 1, (end - begin) // 1800)
    found = await store.read([Bucket("hour", start) for start in hours if start >= begin], [ALL_EVENTS])
    assert sum(counts[ALL_EVENTS] for counts in found) == (end - begin) // 1800
    assert await store.read([TOTAL], ["a"]) == [{"a": (end - begin) // 1800}]


async def days_of(client: httpx.AsyncClient) -> dict[str, int]:
    days = (await client.get("/event/a/series?step=day&points=7")).json()["points"]
    return {point["start"][:10]: point["count"] for point in days if point["count"]}


@pytest.mark.fails_on_mutant(
    "the day goes back with the clock",
    "app/domain/calendar.py",
    "at = max(self._now(), self._earliest)",
    "at = self._now()",
)
@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
async def test_a_clock_that_jumps_loses_no_hit_and_no_day_goes_back(kind: str, tmp_path: Path) -> None:
    assert (await clock_jumps(tmp_path, kind, jumps=8)).violations == []


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_a_restart_across_midnight_keeps_both_days(
    kind: str, tmp_path: Path, redis_server: RedisServer, clock: SettableClock
) -> None:
    settings = settings_for(kind, tmp_path, redis_server)

    async def start_at(instant: str, hits: int) -> dict[str, object]:
        clock.go_to(instant)
        app = create_app(settings, clock)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://tally") as client,
        ):
            before = (await client.get("/events")).json()
            await asyncio.gather(*(client.post("/event/a") for _ in range(hits)))
            return {"before": before, "days": await days_of(client), "history": (await client.get("/history")).json()}

    assert (await start_at("2026-05-01T23:59:58+00:00", 5))["days"] == {"2026-05-01": 5}
    after = await start_at("2026-05-02T00:00:01+00:00", 2)
    assert after["before"] == {}
    assert after["days"] == {"2026-05-01": 5, "2026-05-02": 2}
    assert after["history"] == [{"day": "2026-05-01", "hits": 5, "events": 1, "parts": 1}]
    much_later = await start_at("2026-05-06T10:00:00+00:00", 1)
    assert much_later["days"] == {"2026-05-01": 5, "2026-05-02": 2, "2026-05-06": 1}
    assert [day["day"] for day in much_later["history"]] == ["2026-05-02", "2026-05-01"]
