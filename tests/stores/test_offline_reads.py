"""Reads during an outage return the last known counts."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from app import corrections
from app.domain.buckets import ALL_EVENTS, GENERATION, TOTAL, Bucket
from app.domain.counting import Commit, HitGroup
from app.stores import redis_url
from app.stores.base import OutcomeUnknown, StoreLimits, StoreUnavailable
from app.stores.memory import MemoryStore
from app.stores.offline import OfflineStore
from app.stores.records import RecordChange
from app.stores.redis import RedisStore
from app.stores.redis_url import RedisTarget
from app.stores.results import ApplyResult, GroupResult, Value
from tests.stores.offline_stores import (
    DURABLE,
    LIMITS,
    NOON,
    YESTERDAY,
    hits,
    offline_store,
    opened,
    redis_store,
    wait_online,
)
from tests.support.fault_proxy import FaultProxy
from tests.support.redis_servers import RedisServer
from tests.support.servers import eventually

pytestmark = pytest.mark.usefixtures("short_pauses")


@pytest.mark.fails_on_mutant(
    "whole reads are forgotten",
    "app/stores/last_known.py",
    "                self._whole_reads[bucket] = counts\n",
    "                pass\n",
)
async def test_an_outage_keeps_the_counts_that_were_read_of_another_node(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    own_redis.start()
    other = redis_store(own_redis)
    async with opened(offline_store(own_redis, tmp_path)) as store:
        await wait_online(store)
        for offset in range(2):
            names = {f"name {i}": i + 1 for i in range(100)}
            await other.apply("other", offset, offset + 1, [HitGroup(NOON, names)])
            (totals,) = await store.read([TOTAL])
        own_redis.stop()
        assert await store.read([TOTAL]) == [totals]
        assert store.status().stale_seconds is not None
        assert totals["name 99"] == 200
    await other.close()


@pytest.mark.fails_on_mutant(
    "totals forgotten",
    "app/stores/offline.py",
    "            self._last_known.refill(dict(zip(buckets, found, strict=True)), generations)\n",
    "            self._last_known.refill({}, generations)\n",
)
async def test_a_second_outage_keeps_the_totals_of_the_first(tmp_path: Path, own_redis: RedisServer) -> None:
    own_redis.start(*DURABLE)
    redis = redis_store(own_redis)
    for offset in range(3):
        await redis.apply("another node", offset, offset + 1, hits("a", 1))
    await redis.close()
    async with opened(offline_store(own_redis, tmp_path)) as store:
        first = await store.refresh()
        own_redis.stop()
        result = await store.apply("s", 0, 1, hits("a", 1, YESTERDAY))
        assert result.groups == [GroupResult({"a": Value(1, 4)})]
        own_redis.start(*DURABLE)
        await wait_online(store)
        assert await store.refresh() != first
        own_redis.stop()
        result = await store.apply("s", 1, 2, hits("a", 1, YESTERDAY))
        assert result.groups[0].values["a"].total == 5


@pytest.mark.fails_on_mutant(
    "refilled although the response was lost",
    "app/stores/offline.py",
    "        buckets = self._last_known.begin_refill()\n",
    "        buckets = self._last_known.begin_refill()\n        self._last_known.refill({}, generations)\n",
)
@pytest.mark.fails_on_mutant(
    "the epoch is taken for a refresh",
    "app/stores/offline.py",
    "            await self._refill_last_known()\n",
    "            pass\n",
)
async def test_deleted_counts_are_dropped_even_if_the_first_refresh_fails(
    tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_redis.start()
    other = redis_store(own_redis)
    async with opened(offline_store(own_redis, tmp_path)) as store:
        await wait_online(store)
        await store.apply("s", 0, 1, hits("a", 5))
        deletion, _ = await corrections.delete(other, NOON, NOON.minute, "a")
        await other.apply_change("other", 0, 1, deletion)
        await store.apply("s", 1, 2, hits("b", 1))

        async def fail(_: object) -> None:
            raise StoreUnavailable("the response was lost")

        with monkeypatch.context() as outage:
            outage.setattr(store._store, "read", fail)
            with pytest.raises(StoreUnavailable):
                await store.refresh()
        await store.refresh()
        own_redis.stop()
        assert await store.read([TOTAL], ["a", "b"]) == [{"b": 1}]
    await other.close()


@pytest.mark.fails_on_mutant(
    "hits on top of outdated counts stay on the dashboards",
    "app/stores/offline.py",
    "self._replay.shows_too_much |= self._last_known.is_outdated",
    "pass",
)
async def test_an_outage_before_a_correction_is_read_in_full_ends_with_a_new_epoch(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    own_redis.start()
    other = redis_store(own_redis)
    async with FaultProxy(own_redis.socket) as proxy:
        redis = RedisStore(RedisTarget.from_url(proxy.url), LIMITS)
        async with opened(OfflineStore(redis, "redis", tmp_path, 10**6, LIMITS)) as store:
            epoch = await store.refresh()
            await store.apply("s", 0, 1, hits("a", 10))
            change, _ = await corrections.correct(other, NOON, 0, "a", 1, None, LIMITS.names)
            await other.apply_change("other", 0, 1, change)
            await store.read([Bucket("day", NOON.day, GENERATION)], [ALL_EVENTS])
            proxy.inject("cut before", matching=b"")
            result = await store.apply("s", 1, 2, hits("a", 1))
            assert (result.ack, result.generations, result.groups[0].values["a"].count) == (
                "spooled",
                {NOON.day: 1},
                11,
            )
            proxy.inject("pass")
            await wait_online(store)
            assert await store.refresh() != epoch  # so all nodes replace the counts that they show
            assert (await store.counts(NOON.day, ["a"]))["a"] == 2
    await other.close()


class ScriptedStore(MemoryStore):
    """A store whose responses arrive when the test sets an event; it cannot be reached again after an outage."""

    def __init__(self) -> None:
        super().__init__(StoreLimits(10))
        self.applied, self.respond, self.respond_to_read = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.respond_to_read.set()
        self.has_read = asyncio.Event()

    async def apply(
        self, source: str, expected_offset: int, new_offset: int, commit: Commit, note: str = ""
    ) -> ApplyResult:
        await super().apply(source, expected_offset, new_offset, commit, note)
        self.applied.set()
        await self.respond.wait()
        self.open = self.fail
        raise OutcomeUnknown("the response was lost")

    async def fail(self) -> None:
        raise StoreUnavailable("still unreachable")

    async def read(
        self, buckets: Sequence[Bucket], members: Sequence[str] | None = None
    ) -> Sequence[Mapping[str, int]]:
        found = await super().read(buckets, members)
        await self.respond_to_read.wait()
        self.has_read.set()
        return found


@pytest.mark.parametrize(
    "read_ends_first",
    [
        pytest.param(
            True,
            marks=pytest.mark.fails_on_mutant(
                "a read during a commit is merged",
                "app/stores/offline.py",
                "commit_in_flight=self._commit_lock.locked()",
                "commit_in_flight=False",
            ),
        ),
        False,
    ],
)
async def test_a_commit_whose_response_was_lost_is_not_shown_twice(tmp_path: Path, read_ends_first: bool) -> None:
    inner = ScriptedStore()
    async with opened(OfflineStore(inner, "scripted", tmp_path, 10**6, LIMITS)) as store:
        commit = asyncio.create_task(store.apply("s", 0, 1, hits("a", 1)))
        await inner.applied.wait()
        if not read_ends_first:
            inner.respond_to_read.clear()
        read = asyncio.create_task(store.read([TOTAL], ["a"]))
        await asyncio.sleep(0)
        if read_ends_first:
            await read
        inner.respond.set()
        assert (await commit).ack == "spooled"
        inner.respond_to_read.set()
        assert await read == [{"a": 1}]
        assert await store.read([TOTAL], ["a"]) == [{"a": 1}]


@pytest.mark.fails_on_mutant(
    "a refresh does not wait for the commit in flight",
    "app/stores/offline.py",
    "        async with self._commit_lock:  # these counts",
    "        if True:  # these counts",
)
async def test_a_commit_during_a_refresh_whose_response_was_lost_is_not_shown_twice(tmp_path: Path) -> None:
    inner = ScriptedStore()
    async with opened(OfflineStore(inner, "scripted", tmp_path, 10**6, LIMITS)) as store:
        store._last_known.drop_stale_generations({NOON.day: 1})  # an administrator has changed the day
        commit = asyncio.create_task(store.apply("s", 0, 1, hits("a", 1)))
        await inner.applied.wait()
        inner.has_read.clear()
        refresh = asyncio.create_task(store.refresh())
        await inner.has_read.wait()
        inner.respond.set()
        assert (await commit).ack == "spooled"
        await refresh
        assert await store.read([TOTAL], ["a"]) == [{"a": 1}]


@pytest.mark.parametrize(
    "is_spooled",
    [
        pytest.param(
            False,
            marks=pytest.mark.fails_on_mutant(
                "a refresh forgets commits",
                "app/stores/last_known.py",
                "for day, values in self._newer_values.items():",
                "for day, values in ():",
            ),
        ),
        pytest.param(
            True,
            marks=pytest.mark.fails_on_mutant(
                "a refresh forgets replayed commits", "app/stores/offline.py", " and outages == self._outages", ""
            ),
        ),
    ],
)
async def test_a_commit_during_a_refresh_is_known_in_the_next_outage(
    tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, is_spooled: bool
) -> None:
    own_redis.start(*DURABLE)
    redis, has_read, respond = redis_store(own_redis), asyncio.Event(), asyncio.Event()
    read = redis.read

    async def read_slowly(buckets: Sequence[Bucket]) -> list[dict[str, int]]:
        monkeypatch.setattr(redis, "read", read)
        found = await read(buckets)
        has_read.set()
        await respond.wait()
        return found

    async with opened(OfflineStore(redis, "redis", tmp_path, 10**6, LIMITS)) as store:
        await wait_online(store)
        await store.apply("s", 0, 1, hits("a", 5))
        correction, _ = await corrections.correct(store, NOON, NOON.minute, "a", 2, None, 1000)
        await store.apply_change("s", 1, 2, correction)
        monkeypatch.setattr(redis, "read", read_slowly)
        refresh = asyncio.create_task(store.refresh())
        await has_read.wait()
        if is_spooled:
            store._go_offline(StoreUnavailable("no reply"))
        await store.apply("s", 2, 3, hits("a", 1))
        await wait_online(store)
        respond.set()
        await refresh
        own_redis.stop()
        assert await store.counts(NOON.day, ["a"]) == {"a": 3}
        assert await store.read([TOTAL], ["a"]) == [{"a": 6}]


@pytest.mark.fails_on_mutant(
    "a failed read is an outage",
    "app/stores/offline.py",
    "                if await self._is_reachable():\n",
    "                self._go_offline(StoreUnavailable(str()))\n                if False:\n",
)
@pytest.mark.fails_on_mutant(
    "reads use the slots of commits",
    "app/stores/redis.py",
    "await self._execute(command, self._target.read_slots)",
    "await self._execute(command, self._target.command_slots)",
)
@pytest.mark.fails_on_mutant(
    "records use the slots of commits",
    "app/stores/redis.py",
    "self._execute, self._read)",
    "self._execute, self._execute)",
)
@pytest.mark.fails_on_mutant(
    "each read sends a ping", "app/stores/offline.py", "if self._ping is None or self._ping.done():", "if True:"
)
async def test_commits_go_on_while_reads_fail(
    tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pings() -> int:
        return own_redis.info("commandstats").get("cmdstat_hget", {"calls": 0})["calls"]

    own_redis.start()
    redis = redis_store(own_redis)
    async with opened(OfflineStore(redis, "redis", tmp_path, 10**6, LIMITS)) as store:
        await wait_online(store)
        monkeypatch.setattr(redis_url, "COMMAND_TIMEOUT_SECONDS", 0.2)
        for _ in range(redis_url.CONCURRENT_READS_MAX):  # as many reads as may run at once get no reply
            await redis._target.read_slots.acquire()
        before = pings()
        errors = await asyncio.gather(*(store.read([TOTAL]) for _ in range(10)), return_exceptions=True)
        assert [type(error) for error in errors] == [StoreUnavailable] * 10
        assert before < pings() < before + 10  # those that fail together share one
        for query in (store.sizes([TOTAL]), store.list_buckets(), store.records.read("notes")):
            with pytest.raises(StoreUnavailable):
                await query
        assert store.status().stale_seconds is None
        assert (await store.apply("s", 0, 1, hits("a", 1))).ack == "redis"


@pytest.mark.fails_on_mutant(
    "a ping outlives its store", "app/stores/offline.py", "filter(None, (self._ping, ", "filter(None, ("
)
async def test_a_store_that_is_closed_during_a_ping_keeps_no_connection(tmp_path: Path, own_redis: RedisServer) -> None:
    own_redis.start()
    redis = redis_store(own_redis)
    slots = redis._target.command_slots
    async with opened(OfflineStore(redis, "redis", tmp_path, 10**6, LIMITS)) as store:
        await wait_online(store)
        for _ in range(redis_url.CONCURRENT_COMMANDS_MAX):  # the ping waits for a slot
            await slots.acquire()
        ping = asyncio.create_task(store._is_reachable())
        await eventually(lambda: store._ping)
    for _ in range(redis_url.CONCURRENT_COMMANDS_MAX):
        slots.release()
    await asyncio.wait([ping])
    with own_redis.client() as client:
        assert len(client.client_list(_type="normal")) == 1


@pytest.mark.fails_on_mutant(
    "records wait for a time-out", "app/stores/offline_records.py", "if self._is_offline():", "if False:"
)
@pytest.mark.fails_on_mutant(
    "no ping after an error", "app/stores/offline_records.py", "            await self._is_reachable()\n", ""
)
async def test_records_fail_at_once_during_an_outage(tmp_path: Path, own_redis: RedisServer) -> None:
    own_redis.start()
    async with opened(offline_store(own_redis, tmp_path)) as store:
        await wait_online(store)
        change = [RecordChange("notes", "a", None, "text")]
        assert await store.records.change(change)
        own_redis.stop()
        with pytest.raises(StoreUnavailable, match="Redis did not reply"):
            await store.records.read("notes")
        for operation in (store.records.read("notes"), store.records.size("notes"), store.records.change(change)):
            with pytest.raises(StoreUnavailable, match="Redis is unreachable"):
                await operation
        own_redis.start()
        await wait_online(store)
        assert await store.records.read("notes") == {}


async def test_a_read_that_fails_in_an_outage_returns_the_last_known_counts(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    own_redis.start()
    async with opened(offline_store(own_redis, tmp_path)) as store:
        await store.apply("s", 0, 1, hits("a", 1))
        own_redis.stop()
        found = await asyncio.gather(*(store.read([TOTAL], ["a"]) for _ in range(3)))
        assert found == [[{"a": 1}]] * 3
        assert store.status().stale_seconds is not None


@pytest.mark.fails_on_mutant(
    "an idle node is not offline",
    "app/stores/offline.py",
    "            if await self._is_reachable():\n                raise\n            return self._epoch\n",
    "            raise\n",
)
async def test_a_node_without_requests_detects_an_outage(tmp_path: Path, own_redis: RedisServer) -> None:
    own_redis.start()
    async with opened(offline_store(own_redis, tmp_path)) as store:
        await wait_online(store)
        epoch = await store.refresh()
        own_redis.stop()
        assert await store.refresh() == epoch
        assert store.status().reasons == ("Redis is unreachable: hits are spooled to disk",)
