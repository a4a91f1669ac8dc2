"""The nightly check: differences are a reason in /health, a metric, and a line in the log that names the event."""

import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import httpx
import pytest

from app import nightly_check
from app.domain.buckets import Bucket
from app.domain.calendar import Calendar
from app.domain.counting import BucketWrite, DayChange
from app.nightly_check import NightlyCheck
from app.scheduler import Midnight
from tests.support.redis_servers import RedisServer
from tests.support.servers import RunningApp, eventually, serving, settings_for


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def server(
    request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RunningApp]:
    monkeypatch.setattr(nightly_check, "LIVE_SECONDS", 0.1)
    async with serving(settings_for(request.param, tmp_path, redis_server)) as server:
        yield server


def check_of(server: RunningApp) -> NightlyCheck:
    return server.app.state.jobs.get_job("nightly_check").func.__wrapped__.__self__


async def differences(client: httpx.AsyncClient) -> float:
    """Return the metric, after checking that the health agrees with it."""
    health = (await client.get("/health")).json()
    lines = (await client.get("/metrics")).text.splitlines()
    (number,) = (float(line.split()[1]) for line in lines if line.startswith("tally_check_differences "))
    assert health["status"] == ("degraded" if number else "ok")
    assert "; ".join(health["reasons"]) == (
        f"the last check found {number:.0f} differences between counts: the log names them" if number else ""
    )
    return number


@pytest.mark.fails_on_mutant(
    "differences are not reported", "app/nightly_check.py", "        self._differences = len(found)\n", ""
)
async def test_a_difference_is_reported_until_it_is_repaired(
    server: RunningApp, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    store, check = server.app.state.store, check_of(server)
    async with server.client() as client:
        await client.post("/events", json={"signup": 3, "order": 4})
        await check.run()
        assert await differences(client) == 0
        slot = Calendar(ZoneInfo("UTC")).slot(time.time())
        for offset, by in enumerate([1, -1]):
            write = BucketWrite("add", Bucket("hour", slot.hour), {"signup": by})
            await store.apply_change("damage", offset, offset + 1, DayChange(slot, [write]))
            await check.run()
            assert await differences(client) == (2 if by == 1 else 0)
    logged = [record.getMessage() for record in caplog.records if record.name == "tally.check"]
    assert [line.partition(" has ")[0].split()[5] for line in logged] == ["signup:", "signup:"]
    assert not (tmp_path / "backups").exists()


@pytest.mark.fails_on_mutant(
    "live counts are not compared", "app/nightly_check.py", "            found += await self._check_live()\n", ""
)
async def test_a_live_count_that_differs_from_the_store_is_found(
    server: RunningApp, caplog: pytest.LogCaptureFixture
) -> None:
    check = check_of(server)
    async with server.client() as client:
        await client.post("/events", json={"signup": 3, "order": 4})
        check._live_day.merge(check._live_day.day, {"signup": 5})
        await check.run()
        assert await differences(client) == 1
    assert "signup: live clients see 5, but the store has 3" in caplog.text


@pytest.mark.fails_on_mutant(
    "each node checks the store", "app/live/peers.py", "or self._id == min(self._last_message_at)", "or True"
)
async def test_one_node_checks_a_shared_store(tmp_path: Path, redis_server: RedisServer) -> None:
    settings = settings_for("redis", tmp_path, redis_server)
    async with serving(settings) as one, serving(settings) as other:
        peers = [check_of(server)._peers for server in (one, other)]
        await eventually(lambda: all(p.live_node_count() == 2 for p in peers))
        assert sorted(p.is_first_node() for p in peers) == [False, True]


def test_the_check_runs_once_in_each_night_also_when_the_clock_is_changed() -> None:
    trigger, zone = Midnight(Calendar(ZoneInfo("Europe/Berlin")), 3.5 * 3600), ZoneInfo("Europe/Berlin")
    times = [datetime(2026, 3, 27, 12, tzinfo=zone)]
    for _ in range(4):
        times.append(trigger.get_next_fire_time(None, times[-1]))
    assert [f"{at:%d %H:%M}" for at in times] == ["27 12:00", "28 03:30", "29 04:30", "30 03:30", "31 03:30"]
