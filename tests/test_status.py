"""The status of the service: a part that has stopped, a store that cannot be written, and a clock that is fast."""

import asyncio
import resource
from pathlib import Path

import httpx
import pytest

from app import status
from app.stores.base import CounterStore, StoreLimits, StoreOpenError
from app.stores.redis import RedisStore
from app.stores.redis_url import RedisTarget
from app.stores.sqlite import SqliteStore
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.servers import Process, SettableClock, eventually, serving, settings_for


async def health(client: httpx.AsyncClient, expected: str) -> str:
    """Return the reasons in /health, after checking its status."""
    response = await client.get("/health")
    assert (response.status_code, response.json()["status"]) == (503 if expected == "down" else 200, expected)
    return "; ".join(response.json()["reasons"])


async def probe(client: httpx.AsyncClient, name: str) -> tuple[int, object]:
    response = await client.get(f"/health/{name}")
    return response.status_code, response.json()


@pytest.mark.fails_on_mutant(
    "a stopped committer is not restarted", "app/status.py", 'restart_reasons.append("hits', 'reasons.append("hits'
)
@pytest.mark.fails_on_mutant(
    "a stopped committer is not noticed", "app/status.py", "if not self._committer", "if False and self._committer"
)
async def test_a_stopped_committer_is_down(tmp_path: Path, redis_server: RedisServer, clock: SettableClock) -> None:
    async with serving(settings_for("memory", tmp_path, redis_server), clock) as server, server.client() as client:
        assert await health(client, "ok") == ""
        assert await probe(client, "live") == await probe(client, "ready") == (200, {"ok": True, "reasons": []})
        (task,) = [task for task in asyncio.all_tasks() if "GroupCommitter._run" in repr(task)]
        task.cancel()
        await asyncio.wait([task])
        reason = "hits are not counted because of an error in Tally; restart this node"
        assert reason in await health(client, "down")
        assert await probe(client, "live") == await probe(client, "ready") == (503, {"ok": False, "reasons": [reason]})


@pytest.mark.fails_on_mutant(
    "stalled jobs are not noticed", "app/status.py", "time.monotonic() - self._jobs_ran_at > LATE_SECONDS", "False"
)
async def test_a_stopped_scheduler_is_degraded(
    tmp_path: Path, redis_server: RedisServer, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(settings_for("memory", tmp_path, redis_server), clock) as server, server.client() as client:
        server.app.state.jobs.pause()
        monkeypatch.setattr(status, "LATE_SECONDS", 0.01)
        await eventually(lambda: is_stalled(client))


async def is_stalled(client: httpx.AsyncClient) -> bool:
    return "periodic jobs are stalled" in "; ".join((await client.get("/health")).json()["reasons"])


@pytest.mark.fails_on_mutant(
    "a restart for a full disk",
    "app/http/routes/operations.py",
    "status_monitor.current().restart_reasons",
    "status_monitor.current().reasons",
)
@pytest.mark.fails_on_mutant(
    "a failed write is not reported", "app/stores/sqlite.py", "            self._write_error = str(error)\n", ""
)
@pytest.mark.fails_on_mutant(
    "the status stays down",
    "app/stores/sqlite.py",
    "            await self.apply(PROBE_SOURCE",
    "            await self.get_offset(PROBE_SOURCE) or (PROBE_SOURCE",
)
def test_sqlite_on_a_full_disk_is_down_until_there_is_space(tmp_path: Path) -> None:
    """A limit on the size of files stops the writes of a real process, as a full disk does."""
    process = Process(tmp_path, TALLY_STORE=f"sqlite:///{tmp_path}/tally.db").start()
    try:
        with httpx.Client(base_url=process.url, timeout=20) as client:
            assert client.post("/event/a").json()["count"] == 1
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            failed = client.post("/event/a")
            assert failed.status_code == 503
            health = client.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "down")
            assert "hits are rejected: SQLite: " in health.json()["reasons"][0]
            assert client.get("/health/ready").status_code == 503
            assert client.get("/health/live").status_code == 200
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            wait_until(lambda: client.get("/health").json()["status"] == "ok", process.log.read_text)
            count = client.post("/event/a").json()["count"]
            assert 2 <= count <= 2 + (failed.json()["counted"] == "unknown")
    finally:
        process.terminate()


@pytest.mark.fails_on_mutant(
    "a fast clock deletes history", "app/scheduler.py", "slot(min(now.minute, ", "slot(max(now.minute, "
)
@pytest.mark.fails_on_mutant(
    "one hit under a fast clock deletes history", "app/scheduler.py", "(days[-1])", "(days[0])"
)
@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
async def test_a_clock_that_is_500_days_fast_deletes_nothing(
    kind: str, tmp_path: Path, redis_server: RedisServer, clock: SettableClock
) -> None:
    async with serving(settings_for(kind, tmp_path, redis_server), clock) as server, server.client() as client:
        await client.post("/event/a")
        clock.shift += 2 * 86_400
        await client.post("/event/a")
        before = await counts_of(server.app.state.store)
        clock.shift += 500 * 86_400
        close_day = server.app.state.jobs.get_job("close_day").func
        await close_day()
        assert await counts_of(server.app.state.store) == before
        await client.post("/event/a")  # one hit may have a wrong time
        await close_day()
        deleted = before.keys() - (await counts_of(server.app.state.store)).keys()
        assert [bucket.step for bucket in deleted] == ["minute"]  # that of the first day, some hours too early
        clock.shift += 86_400
        await client.post("/event/a")  # hits on two days justify it
        await close_day()
        assert not before.keys() & (await counts_of(server.app.state.store)).keys()


async def counts_of(store: CounterStore) -> dict[object, object]:
    buckets = [bucket for bucket in await store.list_buckets() if not bucket.dimension and bucket.step != "total"]
    return dict(zip(buckets, await store.read(buckets), strict=True))


@pytest.mark.fails_on_mutant(
    "any time zone is accepted", "app/stores/base.py", "if not is_same_zone(stored, configured):", "if False:"
)
@pytest.mark.fails_on_mutant(
    "an alias is another time zone",
    "app/stores/base.py",
    "if not is_same_zone(stored, configured):",
    "if stored != configured:",
)
@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_a_store_refuses_another_time_zone(kind: str, tmp_path: Path, redis_server: RedisServer) -> None:
    def store(zone: str) -> CounterStore:
        if kind == "sqlite":
            return SqliteStore(tmp_path / "tally.db", StoreLimits(10), zone)
        return RedisStore(RedisTarget.from_url(redis_server.url), StoreLimits(10), zone=zone)

    for zone, error in (
        ("Asia/Kolkata", ""),
        ("UTC", "set TALLY_TIMEZONE=Asia/Kolkata"),
        ("Asia/Colombo", "set TALLY_TIMEZONE=Asia/Kolkata"),  # the same offset today, but not always
        ("Asia/Calcutta", ""),
    ):
        opened = store(zone)
        try:
            if error:
                with pytest.raises(StoreOpenError, match=error):
                    await opened.open()
            else:
                await opened.open()
        finally:
            await opened.close()
