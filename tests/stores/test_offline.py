"""Redis away: hits go on, are kept on disk, and are applied exactly once when it is back."""

import asyncio
import itertools
import os
import signal
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import httpx
import pytest

from app import corrections as changes
from app.domain.buckets import TOTAL, Bucket
from app.domain.calendar import Calendar
from app.domain.counting import Commit, HitGroup
from app.stores import offline as spool
from app.stores.base import OutcomeUnknown, StoreLimits, StoreUnavailable
from app.stores.memory import MemoryStore
from app.stores.offline import OfflineStore
from app.stores.redis import RedisStore
from app.stores.redis_url import RedisTarget
from app.stores.results import ApplyResult, GroupResult, Value, reject
from app.stores.spool_file import SpoolFile
from tests.live.test_socketio import Dashboard
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.servers import Process, eventually, serving, settings_for

NOON = Calendar(ZoneInfo("UTC")).slot(1_795_435_200)
YESTERDAY = Calendar(ZoneInfo("UTC")).slot(1_795_435_200 - 86_400)


def hits(event: str, by: int, slot=NOON) -> Commit:
    return [HitGroup(slot, {event: by})]


def spooled(server: RedisServer, directory: Path, bytes_max: int = 10**6, identity: str = "redis") -> OfflineStore:
    return OfflineStore(RedisStore(RedisTarget.from_url(server.url), StoreLimits(1000)), identity, directory, bytes_max)


async def total_of(server: RedisServer, event: str) -> int:
    store = RedisStore(RedisTarget.from_url(server.url), StoreLimits(1000))
    (totals,) = await store.read([TOTAL], [event])
    await store.close()
    return totals.get(event, 0)


async def test_hits_are_counted_through_an_outage_of_redis(tmp_path: Path, own_redis: RedisServer) -> None:
    own_redis.start("--appendonly", "yes", "--appendfsync", "always")
    async with serving(settings_for("redis", tmp_path, own_redis)) as tally, tally.client() as client:
        assert (await client.post("/event/a")).json()["ack"] == "redis"
        own_redis.stop()
        answers = [(await client.post("/event/a")).json() for _ in range(3)]
        assert [(answer["count"], answer["ack"]) for answer in answers] == [(n, "spooled") for n in (2, 3, 4)]
        for path in ("/event/a", "/events", "/leaderboard", "/series"):
            answer = await client.get(path)
            assert answer.status_code == 200
            assert int(answer.headers["Tally-Stale"]) >= 0
        assert (await client.get("/events")).json() == {"a": 4}
        health = (await client.get("/health")).json()
        assert (health["status"], health["ack"]) == ("degraded", "spooled")
        own_redis.start("--appendonly", "yes", "--appendfsync", "always")

        async def back() -> bool:
            return (await client.get("/health")).json()["status"] == "ok"

        await eventually(back)
        answer = (await client.post("/event/a")).json()
        assert (answer["count"], answer["total"], answer["ack"]) == (5, 5, "redis")
        assert "Tally-Stale" not in (await client.get("/event/a")).headers
    assert not list((tmp_path / "spool").iterdir())


@pytest.mark.catches(
    "blind retry",
    "app/stores/offline.py",
    "lambda offset: self._store.apply(source, offset, new_offset, commit),",
    "lambda _: self._store.apply(str(time.monotonic()), 0, 1, commit),",
)
async def test_a_batch_whose_answer_was_lost_is_not_counted_twice(tmp_path: Path, redis_server: RedisServer) -> None:
    store = spooled(redis_server, tmp_path)
    await store.open()
    await store.apply("s", 0, 1, hits("a", 1))
    inner, applied = store._store, store._store.apply

    async def cut(*arguments: object) -> ApplyResult:
        await applied(*arguments)
        inner.apply = applied
        raise OutcomeUnknown("the answer was lost")

    inner.apply = cut
    assert (await store.apply("s", 1, 2, hits("a", 10))).ack == "spooled"
    await eventually(lambda: store.status().stale_seconds is None)
    assert await total_of(redis_server, "a") == 11
    assert (await store.apply("s", 2, 3, hits("a", 100))).groups == [GroupResult({"a": Value(111, 111)})]
    await store.close()


@pytest.mark.catches("no adoption", "app/stores/spool_file.py", 'sorted(self._directory.glob(f"*{self.suffix}"))', "[]")
async def test_a_dead_processs_spool_is_adopted_and_applied_once(tmp_path: Path, own_redis: RedisServer) -> None:
    first = spooled(own_redis, tmp_path)
    await first.open()
    for offset in range(5):
        await first.apply("dead", offset, offset + 1, hits("a", 1, YESTERDAY))
    await first.close()  # Redis never came; the file stays
    second = spooled(own_redis, tmp_path)
    await second.open()
    assert await second.read([Bucket("day", YESTERDAY.day)], ["a"]) == [{"a": 5}]
    await second.apply("alive", 0, 1, hits("a", 1))
    own_redis.start()
    await eventually(lambda: second.status().stale_seconds is None)
    assert await second.read([Bucket("day", YESTERDAY.day), Bucket("day", NOON.day), TOTAL], ["a"]) == [
        {"a": 5},
        {"a": 1},
        {"a": 6},
    ]
    await second.close()
    assert not list(tmp_path.glob("*.spool*"))


@pytest.mark.catches(
    "add without compare",
    "app/stores/lua/offset.lua",
    "elseif not preparing and tonumber(offset) ~= tonumber(ARGV[2]) then",
    "elseif false then",
)
@pytest.mark.catches(
    "missing dedup", "app/stores/rules.py", "if mismatch.offset >= new_offset:", "if mismatch.offset < 0:"
)
async def test_a_spool_that_was_half_applied_is_finished(tmp_path: Path, own_redis: RedisServer) -> None:
    store = spooled(own_redis, tmp_path)
    await store.open()
    for offset in range(4):
        await store.apply("s", offset, offset + 1, hits("a", 1))
    await store.close()
    own_redis.start()
    redis = RedisStore(RedisTarget.from_url(own_redis.url), StoreLimits(1000))
    for offset in range(2):  # it died after applying two, before it could drop them
        await redis.apply("s", offset, offset + 1, hits("a", 1))
    await redis.close()
    store = spooled(own_redis, tmp_path)
    await store.open()
    assert await store.read([TOTAL], ["a"]) == [{"a": 4}]
    await store.close()


@pytest.mark.catches("a gap loses what follows", "app/stores/rules.py", "if mismatch.offset >= new_offset:", "if True:")
async def test_batches_count_although_redis_came_back_empty(tmp_path: Path, own_redis: RedisServer) -> None:
    own_redis.start()
    store = spooled(own_redis, tmp_path)
    await store.open()
    for offset in range(3):
        await store.apply("s", offset, offset + 1, hits("a", 1))
    own_redis.stop()
    await store.apply("s", 3, 4, hits("a", 10))
    await store.apply("s", 4, 5, hits("a", 10))
    own_redis.start()  # it kept nothing: the first three are lost, the others are not
    await eventually(lambda: store.status().stale_seconds is None)
    assert await total_of(own_redis, "a") == 20
    await store.close()


@pytest.mark.catches("no bound", "app/stores/spool_file.py", "> self._bytes_max\n", "> 10**9\n")
async def test_the_spool_is_bounded_and_says_so(tmp_path: Path, own_redis: RedisServer) -> None:
    store = spooled(own_redis, tmp_path, bytes_max=300)
    await store.open()
    taken = 0
    with pytest.raises(StoreUnavailable, match="spool is full"):
        for offset in range(10):
            await store.apply("s", offset, offset + 1, hits("a", 1))
            taken += 1
    assert 1 <= taken < 5
    own_redis.start()
    await eventually(lambda: store.status().stale_seconds is None)
    assert await total_of(own_redis, "a") == taken
    await store.close()


async def test_where_no_disk_can_be_written_hits_are_kept_in_memory(tmp_path: Path, own_redis: RedisServer) -> None:
    (tmp_path / "spool").write_text("a file where the directory should be")
    store = spooled(own_redis, tmp_path / "spool")
    await store.open()
    for offset in range(2):
        assert (await store.apply("s", offset, offset + 1, hits("a", 1))).ack == "memory"
    own_redis.start()
    await eventually(lambda: store.status().stale_seconds is None)
    assert await total_of(own_redis, "a") == 2
    await store.close()


async def test_another_stores_spool_and_a_living_processs_are_left_alone(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    living = spooled(own_redis, tmp_path)
    other = spooled(own_redis, tmp_path, identity="another redis")
    for store in (living, other):
        await store.open()
        await store.apply(str(store), 0, 1, hits("a", 1))
    await other.close()
    third = spooled(own_redis, tmp_path)
    await third.open()
    assert await third.read([TOTAL], ["a"]) == [{}]
    await third.close()
    await living.close()
    assert len(list(tmp_path.glob("*.spool"))) == 2


async def test_a_spool_too_old_to_be_safe_is_left_alone(
    tmp_path: Path, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    old = Calendar(ZoneInfo("UTC")).slot(1_700_000_000)
    store = spooled(own_redis, tmp_path)
    await store.open()
    await store.apply("s", 0, 1, hits("a", 1, old))
    await store.close()
    own_redis.start()
    for _ in range(2):
        store = spooled(own_redis, tmp_path)
        await store.open()
        assert "older than 30 days" in caplog.text
        await store.close()
    assert await total_of(own_redis, "a") == 0


@pytest.mark.catches(
    "waits as long as it takes",
    "app/stores/redis_url.py",
    "COMMAND_TIMEOUT_SECONDS = 1.5",
    "COMMAND_TIMEOUT_SECONDS = 150.0",
)
async def test_a_frozen_redis_holds_no_request_up(tmp_path: Path, own_redis: RedisServer) -> None:
    own_redis.start()
    async with serving(settings_for("redis", tmp_path, own_redis)) as tally, tally.client() as client:
        await client.post("/event/a")
        assert own_redis.process
        os.kill(own_redis.process.pid, signal.SIGSTOP)
        try:
            answers = await asyncio.gather(*(client.post("/event/a") for _ in range(50)))
            assert {answer.json()["ack"] for answer in answers} == {"spooled"}
        finally:
            os.kill(own_redis.process.pid, signal.SIGCONT)

        async def all_there() -> bool:
            return (await client.get("/health")).json()["status"] == "ok"

        await eventually(all_there)
        assert (await client.get("/event/a")).json()["total"] == 51
    assert await total_of(own_redis, "a") == 51  # although Redis took the frozen batch, too


@pytest.mark.catches(
    "spooled in memory alone",
    "app/stores/spool_file.py",
    'SpoolFile(self._directory / f"{uuid.uuid4().hex}{self.suffix}")',
    'SpoolFile(":memory:")',
)
def test_kill_9_during_an_outage_loses_nothing_spooled(process, own_redis: RedisServer) -> None:
    app: Process = process(REDIS_URL=own_redis.url, TALLY_WRITE_LIMIT="100000/second")
    acks = [app.post("/event/a")["ack"] for _ in range(20)]
    assert set(acks) == {"spooled"}
    app.kill()
    app.start()
    assert app.get("/event/a")["total"] == 20  # read from the dead process's file
    own_redis.start()
    wait_until(lambda: app.get("/health")["status"] == "ok")
    assert app.post("/event/a") | {"day": ""} == {"eventName": "a", "count": 21, "total": 21, "day": "", "ack": "redis"}


async def test_dashboards_are_told_and_see_what_redis_had(tmp_path: Path, own_redis: RedisServer) -> None:
    def states(page: Dashboard) -> list[str]:
        return [data["status"] for event, data in page.heard if event == "state"]

    own_redis.start("--appendonly", "yes", "--appendfsync", "always")
    async with serving(settings_for("redis", tmp_path, own_redis)) as one, one.client() as client:
        await client.post("/event/a", json={"by": 100})
    own_redis.stop()
    async with serving(settings_for("redis", tmp_path, own_redis)) as tally, tally.client() as client:
        page = Dashboard()
        await page.client.connect(tally.url, namespaces=["/live"], transports=["websocket"])
        await client.post("/event/a")
        await eventually(lambda: page.counts == {"a": 1} and states(page)[-1] == "degraded")
        own_redis.start("--appendonly", "yes", "--appendfsync", "always")
        await eventually(lambda: page.counts == {"a": 101} and states(page)[-1] == "ok")
        await page.client.disconnect()


async def test_two_nodes_on_one_redis_agree(tmp_path: Path, redis_server: RedisServer) -> None:
    settings = settings_for("redis", tmp_path, redis_server)
    async with serving(settings) as one, serving(settings) as two, one.client() as client, two.client() as other:
        page = Dashboard()
        await page.client.connect(two.url, namespaces=["/live"], transports=["websocket"])
        counts = [(await c.post("/event/a")).json()["count"] for c in (client, other, client)]
        assert counts == [1, 2, 3]
        assert (await other.get("/event/a")).json()["count"] == 3
        await eventually(lambda: page.counts == {"a": 3})
        await page.client.disconnect()


async def test_a_full_redis_is_away_too(tmp_path: Path, own_redis: RedisServer) -> None:
    own_redis.start()
    async with serving(settings_for("redis", tmp_path, own_redis)) as tally, tally.client() as client:
        await client.post("/event/a")
        with own_redis.client() as admin:
            admin.config_set("maxmemory", "1")
            answer: httpx.Response = await client.post("/event/a")
            assert (answer.json()["count"], answer.json()["ack"]) == (2, "spooled")
            admin.config_set("maxmemory", "0")

        async def back() -> bool:
            return (await client.get("/health")).json()["status"] == "ok"

        await eventually(back)
    assert await total_of(own_redis, "a") == 2


async def test_the_way_back_is_found_under_load(tmp_path: Path, own_redis: RedisServer) -> None:
    own_redis.start("--appendonly", "yes", "--appendfsync", "always")
    chosen = settings_for("redis", tmp_path, own_redis, write_limit="100000/second")
    async with serving(chosen) as tally, tally.client() as client:
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
        own_redis.start("--appendonly", "yes", "--appendfsync", "always")

        async def back() -> bool:
            return (await client.get("/health")).json()["status"] == "ok"

        await eventually(back)
        done.set()
        await asyncio.gather(*writers)
        assert (await client.get("/event/a")).json()["total"] == acknowledged
    assert await total_of(own_redis, "a") == acknowledged


@pytest.mark.catches(
    "gives up at an error of the disk",
    "app/stores/offline.py",
    "except Exception as error:",
    "except StoreError as error:",
)
async def test_an_error_of_the_disk_does_not_end_the_way_back(
    tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = spooled(own_redis, tmp_path)
    await store.open()
    await store.apply("s", 0, 1, hits("a", 1))
    failures = 3
    real = SpoolFile.drop

    def drop(self: SpoolFile, lines: list[str]) -> None:
        nonlocal failures
        failures -= 1
        if failures > 0:
            raise sqlite3.OperationalError("disk I/O error")
        real(self, lines)

    monkeypatch.setattr(SpoolFile, "drop", drop)
    own_redis.start()
    await eventually(lambda: store.status().stale_seconds is None)
    assert await total_of(own_redis, "a") == 1
    await store.close()


async def test_a_damaged_spool_file_is_named_and_left_alone(
    tmp_path: Path, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis.start()
    store = spooled(own_redis, tmp_path)
    damaged = tmp_path / f"0{store._spool.suffix}"
    damaged.write_bytes(b"no database" * 1000)
    await store.open()
    assert f"{damaged} cannot be read" in caplog.text
    assert (await store.apply("s", 0, 1, hits("a", 1))).ack == "redis"
    await store.close()


class SlowStore(MemoryStore):
    """A store that is far away, and at first cannot be reached at all."""

    reachable = False

    async def open(self) -> None:
        if not self.reachable:
            raise StoreUnavailable("not yet")

    async def apply(self, source: str, expected_offset: int, new_offset: int, commit: Commit) -> ApplyResult:
        await self.open()
        await asyncio.sleep(0.004)  # the way there and back
        return await super().apply(source, expected_offset, new_offset, commit)


async def test_the_way_back_is_found_to_a_store_slower_than_the_spool(tmp_path: Path) -> None:
    far = SlowStore(StoreLimits(10))
    store = OfflineStore(far, "far", tmp_path, 10**7)
    await store.open()
    counted = 0
    while counted < 50:
        await store.apply("s", counted, counted + 1, hits("a", 1))
        counted += 1
    far.reachable = True
    while store.status().stale_seconds is not None:  # hits go on, as fast as they are taken
        await store.apply("s", counted, counted + 1, hits("a", 1))
        counted += 1
    assert (await store.apply("s", counted, counted + 1, hits("a", 1))).groups == [
        GroupResult({"a": Value(counted + 1, counted + 1)})
    ]
    await store.close()


@pytest.mark.catches(
    "a cap outlives the acknowledgement",
    "app/stores/offline.py",
    "if result and (missing :=",
    "if False and (missing :=",
)
@pytest.mark.parametrize(
    "apart",
    [
        False,
        pytest.param(
            True,
            marks=pytest.mark.catches(
                "that of an event apart",
                "app/stores/offline.py",
                "for event, reason in group_result.rejected.items()",
                "for event, reason in ()",
            ),
        ),
    ],
)
async def test_what_a_cap_had_refused_in_an_answer_that_got_lost_is_counted(
    tmp_path: Path, own_redis: RedisServer, apart: bool
) -> None:
    own_redis.start()
    redis = RedisStore(RedisTarget.from_url(own_redis.url), StoreLimits(1))
    store = OfflineStore(redis, "redis", tmp_path, 10**6)
    await store.open()
    real, answered = redis.apply, asyncio.Event()

    async def lose_the_answer(*arguments: object) -> ApplyResult:
        applied = await real(*arguments)
        if answered.is_set():
            return applied
        answered.set()
        if apart:
            assert applied.groups == [GroupResult({"a": Value(1, 1)}, {"b": "full"})]
        else:
            assert applied.groups == [GroupResult({"a": Value(1, 1)}), reject("full")]
        raise OutcomeUnknown("cut")

    redis.apply = lose_the_answer
    work = [HitGroup(NOON, {"a": 1, "b": 1}, atomic=False)] if apart else [*hits("a", 1), *hits("b", 1)]
    applied = await store.apply("s", 0, 1, work)
    values = {"a": Value(1, 1)}, {"b": Value(1, 1)}
    assert applied.groups == [GroupResult(v) for v in ([values[0] | values[1]] if apart else values)]
    assert applied.ack == "spooled"
    await eventually(lambda: store.status().stale_seconds is None)
    assert await store.read([TOTAL], ["a", "b"]) == [{"a": 1, "b": 1}]
    await store.close()


@pytest.mark.catches(
    "a pause after each lost answer", "app/stores/offline.py", "if self._replayed_lines > replayed_lines:", "if False:"
)
async def test_an_answer_that_gets_lost_on_the_way_back_costs_no_pause(
    tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_redis.start()
    redis = RedisStore(RedisTarget.from_url(own_redis.url), StoreLimits(10))
    store = OfflineStore(redis, "redis", tmp_path, 10**6)
    await store.open()
    monkeypatch.setattr(spool, "RETRY_SECONDS", 1000)  # for which nobody waits here
    real, asked = redis.apply, itertools.count()

    async def lose_every_other_answer(*arguments: object) -> ApplyResult:
        applied = await real(*arguments)
        if next(asked) % 2 == 0:
            raise OutcomeUnknown("cut")
        return applied

    redis.apply = lose_every_other_answer
    applied = await asyncio.gather(*(store.apply("s", at, at + 1, hits("a", 1)) for at in range(5)))
    assert [one.ack for one in applied] == ["spooled"] * 5
    await eventually(lambda: store.status().stale_seconds is None)
    assert await store.read([TOTAL], ["a"]) == [{"a": 5}]
    await store.close()


@pytest.mark.catches(
    "what was read is forgotten",
    "app/stores/last_known.py",
    "                self._whole_reads[bucket] = counts\n",
    "                pass\n",
)
async def test_what_another_node_counted_is_known_when_redis_goes_away(tmp_path: Path, own_redis: RedisServer) -> None:
    own_redis.start()
    store, other = spooled(own_redis, tmp_path), RedisStore(RedisTarget.from_url(own_redis.url), StoreLimits(1000))
    await store.open()
    await eventually(lambda: store.status().stale_seconds is None)
    for at in range(2):
        await other.apply("other", at, at + 1, [HitGroup(NOON, {f"name {i}": i + 1 for i in range(100)})])
        (read,) = await store.read([TOTAL])
    own_redis.stop()
    assert await store.read([TOTAL]) == [read]
    assert store.status().stale_seconds is not None
    assert read["name 99"] == 200
    await store.close()
    await other.close()


@pytest.mark.catches(
    "totals forgotten",
    "app/stores/offline.py",
    "            self._last_known.refill(dict(zip(buckets, found, strict=True)), generations)\n",
    "            self._last_known.refill({}, generations)\n",
)
async def test_totals_are_known_when_redis_goes_away_again(tmp_path: Path, own_redis: RedisServer) -> None:
    own_redis.start("--appendonly", "yes", "--appendfsync", "always")
    redis = RedisStore(RedisTarget.from_url(own_redis.url), StoreLimits(10))
    for offset in range(3):
        await redis.apply("another node", offset, offset + 1, hits("a", 1))
    await redis.close()
    store = spooled(own_redis, tmp_path)
    await store.open()
    first = await store.refresh()
    own_redis.stop()
    assert (await store.apply("s", 0, 1, hits("a", 1, YESTERDAY))).groups == [GroupResult({"a": Value(1, 4)})]
    own_redis.start("--appendonly", "yes", "--appendfsync", "always")
    await eventually(lambda: store.status().stale_seconds is None)
    assert await store.refresh() != first
    own_redis.stop()
    assert (await store.apply("s", 1, 2, hits("a", 1, YESTERDAY))).groups[0].values["a"].total == 5
    await store.close()


@pytest.mark.catches(
    "known as read, although the answer was lost",
    "app/stores/offline.py",
    "        buckets = self._last_known.buckets_to_refill()\n",
    "        buckets = self._last_known.buckets_to_refill()\n        self._last_known.refill({}, generations)\n",
)
async def test_what_was_deleted_is_forgotten_although_an_answer_was_lost(
    tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_redis.start()
    store, other = spooled(own_redis, tmp_path), RedisStore(RedisTarget.from_url(own_redis.url), StoreLimits(10))
    await store.open()
    await eventually(lambda: store.status().stale_seconds is None)
    await store.apply("s", 0, 1, hits("a", 5))
    deletion, _ = await changes.delete(other, NOON, NOON.minute, "a")
    await other.apply_change("other", 0, 1, deletion)
    await store.apply("s", 1, 2, hits("b", 1))

    async def lost(_: object) -> None:
        raise StoreUnavailable("the answer was lost")

    with monkeypatch.context() as cut:
        cut.setattr(store._store, "read", lost)
        with pytest.raises(StoreUnavailable):
            await store.refresh()
    await store.refresh()
    own_redis.stop()
    assert await store.read([TOTAL], ["a", "b"]) == [{"b": 1}]
    await store.close()
    await other.close()


@pytest.mark.catches(
    "adoption at the start alone", "app/scheduler.py", "_tried(store.recover_orphans)", "_tried(store.close)"
)
async def test_a_running_node_adopts_what_a_dead_neighbour_has_left(tmp_path: Path, own_redis: RedisServer) -> None:
    url = own_redis.url
    async with serving(settings_for("redis", tmp_path, own_redis)) as tally, tally.client() as client:
        own_redis.start()

        async def back() -> bool:
            return (await client.get("/health")).json()["status"] == "ok"

        await eventually(back)
        own_redis.stop()
        dead = OfflineStore(
            RedisStore(RedisTarget.from_url(url), StoreLimits(10)),
            RedisTarget.from_url(url).identity,
            tmp_path / "spool",
            10**6,
        )
        await dead.open()
        for offset in range(3):
            await dead.apply("dead", offset, offset + 1, hits("a", 1))
        own_redis.start()
        await dead._store.apply("dead", 0, 1, hits("a", 1))  # one was applied before it died
        await dead.close()
        await eventually(back)
        tally.app.state.jobs.get_job("adopt").modify(next_run_time=datetime.now(UTC))

        async def adopted() -> bool:
            return (await client.get("/event/a")).json()["total"] == 3

        await eventually(adopted)
    assert not list((tmp_path / "spool").glob("*.spool"))


async def test_a_node_whose_spool_is_full_is_down_and_says_so(tmp_path: Path, own_redis: RedisServer) -> None:
    chosen = settings_for("redis", tmp_path, own_redis, spool_max_mb=1, write_limit="100000/second")
    async with serving(chosen) as tally, tally.client() as client:
        assert (await client.get("/health")).status_code == 200
        status, taken, body = 200, 0, {f"{i} {'x' * 100}": 1 for i in range(5000)}
        while status == 200:
            answer = await client.post("/events", json=body)
            status = answer.status_code
            taken += status == 200
        assert (status, answer.json()["counted"], answer.headers["Retry-After"]) == (503, "no", "1")
        health = await client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "down")
        assert "the spool is full" in health.json()["reasons"][0]
        assert health.json()["spoolBytes"] > 500_000
        page = Dashboard()
        await page.client.connect(tally.url, namespaces=["/live"], transports=["websocket"])
        await eventually(lambda: page.heard and page.heard[-1][1].get("status") == "down")
        await page.client.disconnect()
        own_redis.start()

        async def back() -> bool:
            return (await client.get("/health")).json()["status"] == "ok"

        await eventually(back)
        assert (await client.post("/events", json=body)).status_code == 200
    assert await total_of(own_redis, f"0 {'x' * 100}") == taken + 1


@pytest.mark.parametrize(
    ("options", "durability"),
    [
        ((), "keeps no append-only file"),
        (("--appendonly", "yes"), "but for the last 2 seconds"),
        (("--appendonly", "yes", "--appendfsync", "always"), "power loss"),
        (("--appendonly", "yes", "--rename-command", "CONFIG", ""), "did not report"),
    ],
)
async def test_health_says_how_durable_redis_is(
    tmp_path: Path, own_redis: RedisServer, options: tuple[str, ...], durability: str
) -> None:
    own_redis.start(*options)
    async with serving(settings_for("redis", tmp_path, own_redis)) as tally, tally.client() as client:
        health = (await client.get("/health")).json()
        assert durability in health["durability"]
        assert (health["status"], health["nodes"]) == ("ok", 1)
