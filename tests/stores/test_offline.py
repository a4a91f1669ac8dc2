"""Tally while Redis is unreachable: requests succeed, and every acknowledged hit is counted once afterwards."""

import asyncio
import os
import re
import signal
import statistics
import time
from collections.abc import Awaitable
from pathlib import Path

import httpx
import pytest

from tests.live.clients import Dashboard, dashboard
from tests.stores.offline_stores import DURABLE, total_of, wait_ok
from tests.support.fault_proxy import FaultProxy
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.servers import Process, eventually, serving, settings_for

pytestmark = pytest.mark.usefixtures("short_pauses")


@pytest.mark.fails_on_mutant(
    "the end of an outage is not logged",
    "app/stores/offline.py",
    "        if self._reconnecting:\n            log",
    "        if False:\n            log",
)
@pytest.mark.fails_on_mutant(
    "the log has no reason",
    "app/stores/offline.py",
    'hits are spooled: %s", str(error.__cause__ or "") or error',
    'hits are spooled: %s", error',
)
async def test_requests_succeed_while_redis_is_down(
    tmp_path: Path, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis.start(*DURABLE)
    async with serving(settings_for("redis", tmp_path, own_redis)) as tally, tally.client() as client:
        assert (await client.post("/event/a")).json()["ack"] == "redis"
        own_redis.stop()
        responses = [(await client.post("/event/a")).json() for _ in range(3)]
        assert [(response["count"], response["ack"]) for response in responses] == [(n, "spooled") for n in (2, 3, 4)]
        for path in ("/event/a", "/events", "/leaderboard", "/series"):
            response = await client.get(path)
            assert response.status_code == 200
            assert int(response.headers["Tally-Stale"]) >= 0
        assert (await client.get("/events")).json() == {"a": 4}
        health = (await client.get("/health")).json()
        assert (health["status"], health["ack"]) == ("degraded", "spooled")
        assert health["reasons"][0] == "Redis is unreachable: hits are spooled to disk"
        own_redis.start(*DURABLE)
        await wait_ok(client)
        response = (await client.post("/event/a")).json()
        assert (response["count"], response["total"], response["ack"]) == (5, 5, "redis")
        assert re.search("hits are spooled: .*connect", caplog.text)
        assert "Redis is reachable again after" in caplog.text
        assert "Tally-Stale" not in (await client.get("/event/a")).headers
    assert not list((tmp_path / "spool").iterdir())


@pytest.mark.fails_on_mutant(
    "the header is as old as the request",
    "app/http/dependencies.py",
    "response = await handler(request)\n",
    "old = stale_headers()\n                    return [r := await handler(request), r.raw_headers.extend(old)][0]\n",
)
async def test_a_read_that_detects_an_outage_is_marked_as_stale(tmp_path: Path, own_redis: RedisServer) -> None:
    async with serving(settings_for("redis", tmp_path, own_redis)) as tally, tally.client() as client:
        for path in ("/event/a", "/events", "/series", "/history?format=csv"):
            own_redis.start()
            await wait_ok(client)
            own_redis.stop()
            response = await client.get(path)
            assert (response.status_code, response.headers.get("Tally-Stale")) == (200, "0")


@pytest.mark.fails_on_mutant(
    "waits as long as it takes",
    "app/stores/redis_url.py",
    "COMMAND_TIMEOUT_SECONDS = 1.5",
    "COMMAND_TIMEOUT_SECONDS = 150.0",
)
@pytest.mark.fails_on_mutant(
    "the log has no reason for a time-out",
    "app/stores/offline.py",
    'str(error.__cause__ or "") or error',
    "error.__cause__ or error",
)
async def test_requests_do_not_wait_for_a_frozen_redis(
    tmp_path: Path, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis.start()
    async with serving(settings_for("redis", tmp_path, own_redis)) as tally, tally.client() as client:
        await client.post("/event/a")
        assert own_redis.process
        os.kill(own_redis.process.pid, signal.SIGSTOP)
        try:
            responses = await asyncio.gather(*(client.post("/event/a") for _ in range(50)))
            assert {response.json()["ack"] for response in responses} == {"spooled"}
        finally:
            os.kill(own_redis.process.pid, signal.SIGCONT)
        await wait_ok(client)
        assert (await client.get("/event/a")).json()["total"] == 51
    assert "hits are spooled: Redis did not reply" in caplog.text
    # Redis has also applied the commit that it received while it was frozen.
    assert await total_of(own_redis, "a") == 51


async def test_hits_do_not_wait_for_heavy_reads(tmp_path: Path, own_redis: RedisServer) -> None:
    async def seconds(request: Awaitable[httpx.Response]) -> float:
        began = time.perf_counter()
        response = await request
        assert response.status_code == 200
        assert response.json()[0]["points"] if isinstance(response.json(), list) else response.json()["ack"] == "redis"
        assert "Tally-Stale" not in response.headers
        return time.perf_counter() - began

    async def read() -> None:
        while not done.is_set():
            reads.append(await seconds(client.get(f"/series?step=minute&points=1440&{query}")))

    own_redis.start()
    query, reads, done = "&".join(f"event=e{i}" for i in range(13)), list[float](), asyncio.Event()
    settings = settings_for("redis", tmp_path, own_redis, read_limit="100000/second")
    async with serving(settings) as tally, tally.client() as client:
        await client.post("/events", json={f"e{i}": 1 for i in range(13)})
        readers = [asyncio.create_task(read()) for _ in range(4)]
        await eventually(lambda: len(reads) > 4)
        writes = [await seconds(client.post("/event/a")) for _ in range(50)]
        done.set()
        await asyncio.gather(*readers)
    assert statistics.median(writes) < statistics.median(reads) / 3


async def test_a_full_redis_counts_as_unreachable(tmp_path: Path, own_redis: RedisServer) -> None:
    own_redis.start()
    async with serving(settings_for("redis", tmp_path, own_redis)) as tally, tally.client() as client:
        await client.post("/event/a")
        with own_redis.client() as admin:
            admin.config_set("maxmemory", "1")
            response: httpx.Response = await client.post("/event/a")
            assert (response.json()["count"], response.json()["ack"]) == (2, "spooled")
            admin.config_set("maxmemory", "0")
        await wait_ok(client)
    assert await total_of(own_redis, "a") == 2


async def test_tally_reconnects_under_load(tmp_path: Path, own_redis: RedisServer) -> None:
    own_redis.start(*DURABLE)
    settings = settings_for("redis", tmp_path, own_redis, write_limit="100000/second")
    async with serving(settings) as tally, tally.client() as client:
        acknowledged, done = 0, asyncio.Event()

        async def write() -> None:
            nonlocal acknowledged
            while not done.is_set():
                assert (await client.post("/event/a")).status_code == 200
                acknowledged += 1

        writers = [asyncio.create_task(write()) for _ in range(16)]
        await eventually(lambda: acknowledged > 100)
        own_redis.stop()
        before = acknowledged
        await eventually(lambda: acknowledged > before + 500)
        own_redis.start(*DURABLE)
        await wait_ok(client)
        done.set()
        await asyncio.gather(*writers)
        assert (await client.get("/event/a")).json()["total"] == acknowledged
    assert await total_of(own_redis, "a") == acknowledged


@pytest.mark.fails_on_mutant(
    "spooled only in memory",
    "app/stores/spool_file.py",
    'SpoolFile(self._directory / f"{uuid.uuid4().hex}{self.suffix}")',
    'SpoolFile(":memory:")',
)
def test_spooled_hits_survive_kill_9(process, own_redis: RedisServer) -> None:
    app: Process = process(REDIS_URL=own_redis.url, TALLY_WRITE_LIMIT="100000/second")
    acks = [app.post("/event/a")["ack"] for _ in range(20)]
    assert set(acks) == {"spooled"}
    app.kill()
    app.start()
    # These counts come from the file of the dead process.
    assert app.get("/event/a")["total"] == 20
    own_redis.start()
    wait_until(lambda: app.get("/health")["status"] == "ok")
    assert app.post("/event/a") | {"day": ""} == {"eventName": "a", "count": 21, "total": 21, "day": "", "ack": "redis"}


async def test_dashboards_receive_the_counts_of_redis_after_an_outage(tmp_path: Path, own_redis: RedisServer) -> None:
    def states(page: Dashboard) -> list[str]:
        return [data["status"] for event, data in page.received if event == "state"]

    own_redis.start(*DURABLE)
    settings = settings_for("redis", tmp_path, own_redis)
    async with serving(settings) as earlier, earlier.client() as client:
        await client.post("/event/a", json={"by": 100})
    own_redis.stop()
    async with serving(settings) as tally, tally.client() as client, dashboard(tally) as page:
        await client.post("/event/a")
        await eventually(lambda: page.counts == {"a": 1} and states(page)[-1] == "degraded")
        own_redis.start(*DURABLE)
        await eventually(lambda: page.counts == {"a": 101} and states(page)[-1] == "ok")


async def test_two_nodes_with_one_redis_show_the_same_counts(tmp_path: Path, redis_server: RedisServer) -> None:
    settings = settings_for("redis", tmp_path, redis_server)
    async with (
        serving(settings) as one,
        serving(settings) as two,
        one.client() as client,
        two.client() as other,
        dashboard(two) as page,
    ):
        counts = [(await c.post("/event/a")).json()["count"] for c in (client, other, client)]
        assert counts == [1, 2, 3]
        assert (await other.get("/event/a")).json()["count"] == 3
        await eventually(lambda: page.counts == {"a": 3})


@pytest.mark.fails_on_mutant(
    "counts that are too large stay",
    "app/stores/offline.py",
    "            await self._store.record_data_loss(0)\n",
    "            pass\n",
)
@pytest.mark.fails_on_mutant(
    "counts of other nodes are unknown in an outage",
    "app/live/peers.py",
    "            self._store.add_known_counts(message.day, message.counts, message.generation)\n",
    "            pass\n",
)
@pytest.mark.fails_on_mutant(
    "replayed keys are overlooked",
    "app/stores/replay.py",
    "self.shows_too_much |= not all(",
    "self.shows_too_much |= False and not all(",
)
async def test_all_nodes_show_a_key_once_that_was_retried_on_another_node_in_an_outage(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    own_redis.start()
    async with FaultProxy(own_redis.socket) as proxy:
        direct, proxied = (settings_for("redis", tmp_path / name, own_redis) for name in ("a", "b"))
        proxied = proxied.model_copy(update={"store": proxy.url})
        async with (
            serving(direct) as a,
            serving(proxied) as b,
            a.client() as client,
            b.client() as other,
            dashboard(b) as page,
        ):
            keys = [{"Idempotency-Key": f"key-{i}"} for i in range(20)]
            for key in keys:
                assert (await client.post("/event/a", headers=key)).json()["ack"] == "redis"
            await eventually(lambda: page.counts == {"a": 20})
            proxy.inject("cut before", matching=b"\r\n")
            for key in keys:
                assert (await other.post("/event/a", headers=key)).json()["ack"] == "spooled"
            await eventually(lambda: page.counts == {"a": 40})
            proxy.inject("pass")
            await wait_ok(other)
            await eventually(lambda: page.counts == {"a": 20})
            for one in (client, other):
                assert (await one.get("/event/a")).json()["count"] == 20
            assert (await other.post("/event/a")).json()["count"] == 21
            await eventually(lambda: page.counts == {"a": 21})


async def test_a_node_with_a_full_spool_is_down(tmp_path: Path, own_redis: RedisServer) -> None:
    settings = settings_for("redis", tmp_path, own_redis, spool_max_mb=1, write_limit="100000/second")
    async with serving(settings) as tally, tally.client() as client:
        assert (await client.get("/health")).status_code == 200
        status, acknowledged, body = 200, 0, {f"{i} {'x' * 100}": 1 for i in range(5000)}
        while status == 200:
            response = await client.post("/events", json=body)
            status = response.status_code
            acknowledged += status == 200
        assert (status, response.json()["counted"], response.headers["Retry-After"]) == (503, "no", "1")
        health = await client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "down")
        text = "Redis is unreachable: hits are rejected, because the spool is full (TALLY_SPOOL_MAX_MB)"
        assert health.json()["reasons"][0] == text
        assert health.json()["spoolBytes"] > 500_000
        async with dashboard(tally) as page:
            await eventually(lambda: page.received and page.received[-1][1].get("status") == "down")
        own_redis.start()
        await wait_ok(client)
        assert (await client.post("/events", json=body)).status_code == 200
    assert await total_of(own_redis, f"0 {'x' * 100}") == acknowledged + 1


@pytest.mark.parametrize(
    ("options", "durability"),
    [
        ((), "has no append-only file"),
        (("--appendonly", "yes"), "but for the last 2 seconds"),
        (DURABLE, "power loss"),
        (("--appendonly", "yes", "--rename-command", "CONFIG", ""), "did not report"),
    ],
)
async def test_health_reports_how_durable_redis_is(
    tmp_path: Path, own_redis: RedisServer, options: tuple[str, ...], durability: str
) -> None:
    own_redis.start(*options)
    async with serving(settings_for("redis", tmp_path, own_redis)) as tally, tally.client() as client:
        health = (await client.get("/health")).json()
        assert durability in health["durability"]
        assert (health["status"], health["nodes"]) == ("ok", 1)
