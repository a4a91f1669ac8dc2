"""An offline store spools commits, and replays each of them once when Redis is reachable again."""

import asyncio
import itertools
import math
import sqlite3
from pathlib import Path

import pytest

from app.domain.buckets import TOTAL
from app.domain.counting import COUNT_MAX, Commit, HitGroup, IdempotencyKey
from app.stores import offline
from app.stores.base import OutcomeUnknown, StoreLimits, StoreUnavailable
from app.stores.memory import MemoryStore
from app.stores.offline import OfflineStore
from app.stores.replay import REPLAY_LINES, Replay
from app.stores.results import ApplyResult, GroupResult, Value, reject
from app.stores.spool_file import SpooledCommit, SpoolFile, encode
from tests.stores.offline_stores import LIMITS, NOON, hits, offline_store, opened, redis_store, total_of, wait_online
from tests.support.redis_servers import RedisServer

pytestmark = pytest.mark.usefixtures("short_pauses")


@pytest.mark.fails_on_mutant(
    "blind retry",
    "app/stores/replay.py",
    "lambda offset: self._store.apply(source, offset, new_offset, commit),",
    "lambda _: self._store.apply(str(time.monotonic()), 0, 1, commit),",
)
async def test_a_commit_whose_response_was_lost_is_counted_once(tmp_path: Path, redis_server: RedisServer) -> None:
    async with opened(offline_store(redis_server, tmp_path)) as store:
        await store.apply("s", 0, 1, hits("a", 1))
        inner, apply = store._store, store._store.apply

        async def lose_the_response(*arguments: object) -> ApplyResult:
            await apply(*arguments)
            inner.apply = apply
            raise OutcomeUnknown("the response was lost")

        inner.apply = lose_the_response
        assert (await store.apply("s", 1, 2, hits("a", 10))).ack == "spooled"
        await wait_online(store)
        assert await total_of(redis_server, "a") == 11
        assert (await store.apply("s", 2, 3, hits("a", 100))).groups == [GroupResult({"a": Value(111, 111)})]


@pytest.mark.fails_on_mutant(
    "a gap loses later commits", "app/stores/rules.py", "if mismatch.offset >= new_offset:", "if True:"
)
async def test_spooled_commits_count_although_redis_has_lost_earlier_ones(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    own_redis.start()
    async with opened(offline_store(own_redis, tmp_path)) as store:
        for offset in range(3):
            await store.apply("s", offset, offset + 1, hits("a", 1))
        own_redis.stop()
        await store.apply("s", 3, 4, hits("a", 10))
        await store.apply("s", 4, 5, hits("a", 10))
        # Without an append-only file, Redis starts empty: the first three commits are lost.
        own_redis.start()
        await wait_online(store)
        assert await total_of(own_redis, "a") == 20
        assert store.status().reasons == ("Redis has lost 3 acknowledged commits since this process started",)


@pytest.mark.fails_on_mutant("no size limit", "app/stores/spool_file.py", "> self._bytes_max:", "> 10**9:")
async def test_a_full_spool_rejects_commits(tmp_path: Path, own_redis: RedisServer) -> None:
    async with opened(offline_store(own_redis, tmp_path, bytes_max=300)) as store:
        acknowledged = 0
        with pytest.raises(StoreUnavailable, match="spool is full"):
            for offset in range(10):
                await store.apply("s", offset, offset + 1, hits("a", 1))
                acknowledged += 1
        assert 1 <= acknowledged < 5
        assert not store.status().accepting
        own_redis.start()
        await wait_online(store)
        assert store.status().accepting
        assert await total_of(own_redis, "a") == acknowledged


async def test_hits_are_kept_in_memory_if_the_spool_cannot_be_written(tmp_path: Path, own_redis: RedisServer) -> None:
    (tmp_path / "spool").write_text("a file in the place of the directory")
    async with opened(offline_store(own_redis, tmp_path / "spool")) as store:
        for offset in range(2):
            assert (await store.apply("s", offset, offset + 1, hits("a", 1))).ack == "memory"
        assert "kept in memory" in store.status().reasons[0]
        own_redis.start()
        await wait_online(store)
        assert await total_of(own_redis, "a") == 2


@pytest.mark.fails_on_mutant(
    "gives up at an error of the disk",
    "app/stores/offline.py",
    "except Exception as error:",
    "except StoreError as error:",
)
async def test_the_replay_continues_after_a_disk_error(
    tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(offline_store(own_redis, tmp_path)) as store:
        await store.apply("s", 0, 1, hits("a", 1))
        failures = 3
        drop = SpoolFile.drop

        def fail_twice(self: SpoolFile, lines: list[str]) -> None:
            nonlocal failures
            failures -= 1
            if failures > 0:
                raise sqlite3.OperationalError("disk I/O error")
            drop(self, lines)

        monkeypatch.setattr(SpoolFile, "drop", fail_twice)
        own_redis.start()
        await wait_online(store)
        assert await total_of(own_redis, "a") == 1


class SlowStore(MemoryStore):
    """A store with a long round trip, which at first cannot be reached at all."""

    reachable = False

    async def open(self) -> None:
        if not self.reachable:
            raise StoreUnavailable("not yet")

    async def apply(
        self, source: str, expected_offset: int, new_offset: int, commit: Commit, note: str = ""
    ) -> ApplyResult:
        await self.open()
        await asyncio.sleep(0.004)
        return await super().apply(source, expected_offset, new_offset, commit, note)


@pytest.mark.fails_on_mutant(
    "a replay looks like an outage",
    "app/stores/offline.py",
    "        self._is_replaying = self._spool.size > 0\n",
    "        pass\n",
)
async def test_the_replay_to_a_store_slower_than_the_spool_ends_under_load(tmp_path: Path) -> None:
    slow = SlowStore(StoreLimits(10))
    async with opened(OfflineStore(slow, "slow", tmp_path, 10**7, LIMITS)) as store:
        counted = 0
        while counted < 50:
            await store.apply("s", counted, counted + 1, hits("a", 1))
            counted += 1
        slow.reachable = True
        reasons: set[str] = set()
        while store.status().stale_seconds is not None:
            reasons.update(store.status().reasons)
            await store.apply("s", counted, counted + 1, hits("a", 1))
            counted += 1
        assert "less than 0.1 MB of spooled hits are being replayed: hits are spooled to disk" in reasons
        assert store.status().reasons == ()
        result = await store.apply("s", counted, counted + 1, hits("a", 1))
        assert result.groups == [GroupResult({"a": Value(counted + 1, counted + 1)})]


@pytest.mark.fails_on_mutant(
    "a limit outlives the acknowledgement",
    "app/stores/replay.py",
    "if missing := _counted_anyway(commit, result.groups):",
    "if missing := []:",
)
@pytest.mark.parametrize(
    "atomic",
    [
        True,
        pytest.param(
            False,
            marks=pytest.mark.fails_on_mutant(
                "a limit of one event outlives it",
                "app/stores/replay.py",
                "for event, reason in result.rejected.items()",
                "for event, reason in ()",
            ),
        ),
    ],
)
async def test_hits_that_a_limit_rejected_in_a_lost_response_are_counted(
    tmp_path: Path, own_redis: RedisServer, atomic: bool
) -> None:
    own_redis.start()
    redis = redis_store(own_redis, names=1)
    async with opened(OfflineStore(redis, "redis", tmp_path, 10**6, LIMITS)) as store:
        apply, lost = redis.apply, asyncio.Event()

        async def lose_the_first_response(*arguments: object) -> ApplyResult:
            result = await apply(*arguments)
            if lost.is_set():
                return result
            lost.set()
            if atomic:
                assert result.groups == [GroupResult({"a": Value(1, 1)}), reject("full")]
            else:
                assert result.groups == [GroupResult({"a": Value(1, 1)}, {"b": "full"})]
            raise OutcomeUnknown("the response was lost")

        redis.apply = lose_the_first_response
        if atomic:
            result = await store.apply("s", 0, 1, [*hits("a", 1), *hits("b", 1)])
            assert result.groups == [GroupResult({"a": Value(1, 1)}), GroupResult({"b": Value(1, 1)})]
        else:
            result = await store.apply("s", 0, 1, [HitGroup(NOON, {"a": 1, "b": 1}, atomic=False)])
            assert result.groups == [GroupResult({"a": Value(1, 1), "b": Value(1, 1)})]
        assert result.ack == "spooled"
        await wait_online(store)
        assert await store.read([TOTAL], ["a", "b"]) == [{"a": 1, "b": 1}]


@pytest.mark.fails_on_mutant(
    "a pause after each lost response", "app/stores/offline.py", "if self._replay.lines > replayed_lines:", "if False:"
)
async def test_the_replay_does_not_pause_after_a_lost_response(
    tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_redis.start()
    redis = redis_store(own_redis)
    async with opened(OfflineStore(redis, "redis", tmp_path, 10**6, LIMITS)) as store:
        monkeypatch.setattr(offline, "RETRY_SECONDS", 1000)
        apply, calls = redis.apply, itertools.count()

        async def lose_every_other_response(*arguments: object) -> ApplyResult:
            result = await apply(*arguments)
            if next(calls) % 2 == 0:
                raise OutcomeUnknown("the response was lost")
            return result

        redis.apply = lose_every_other_response
        results = await asyncio.gather(*(store.apply("s", at, at + 1, hits("a", 1)) for at in range(5)))
        assert [result.ack for result in results] == ["spooled"] * 5
        await wait_online(store)
        assert await store.read([TOTAL], ["a"]) == [{"a": 5}]


@pytest.mark.fails_on_mutant(
    "a mismatch drops acknowledged hits", "app/stores/replay.py", 'elif result.reason == "mismatch":', "elif False:"
)
async def test_hits_whose_key_another_node_used_for_another_request_are_counted(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    def keyed(event: str) -> Commit:
        return [HitGroup(NOON, {event: 1}, IdempotencyKey("key", f"request-for-{event}", "client"))]

    async with opened(offline_store(own_redis, tmp_path)) as store:
        assert (await store.apply("s", 0, 1, [*keyed("a"), *hits("b", 1)])).ack == "spooled"
        own_redis.start()
        other = redis_store(own_redis)
        await other.apply("other", 0, 1, keyed("c"))
        await wait_online(store)
        assert await store.read([TOTAL], ["a", "b", "c"]) == [{"a": 1, "b": 1, "c": 1}]
        assert store.status().reasons == ()
        await other.close()


@pytest.mark.fails_on_mutant(
    "an overflow is dropped silently",
    "app/stores/replay.py",
    "            self.rejected_hits += hits\n",
    "            pass\n",
)
@pytest.mark.parametrize("atomic", [True, False])
async def test_spooled_hits_that_would_exceed_the_largest_count_are_reported(
    tmp_path: Path, own_redis: RedisServer, caplog: pytest.LogCaptureFixture, atomic: bool
) -> None:
    commit = [HitGroup(NOON, {"a": 5, "b": 1}, atomic=atomic)]
    async with opened(offline_store(own_redis, tmp_path)) as store:
        assert (await store.apply("s", 0, 1, commit)).ack == "spooled"
        own_redis.start()
        other = redis_store(own_redis)
        await other.apply("other", 0, 1, hits("a", COUNT_MAX - 1))
        await other.close()
        await wait_online(store)
        assert await store.read([TOTAL], ["a", "b"]) == [{"a": COUNT_MAX - 1} | ({} if atomic else {"b": 1})]
        lost = 6 if atomic else 5
        assert (store.status().rejected_hits, store.status().lost_commits) == (lost, 0)
        assert store.status().reasons[0].startswith(f"{lost} acknowledged hits were spooled and cannot be counted")
        assert f"{lost} acknowledged hits" in caplog.text


class StubbornStore(MemoryStore):
    """An unreachable store that treats a cancellation as a failure of its own, as redis-py and time-outs may do."""

    def __init__(self) -> None:
        super().__init__(StoreLimits(10))
        self.connecting, self.is_stubborn = asyncio.Event(), True

    async def open(self) -> None:
        if self._sources == {}:
            self._sources["opened"] = (1, ApplyResult([], "memory"))
            raise StoreUnavailable("unreachable")
        self.connecting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if self.is_stubborn:
                raise StoreUnavailable("cancelled") from None
            raise


@pytest.mark.fails_on_mutant(
    "closing relies on cancellation", "app/stores/offline.py", "        self._closing = True\n", "        pass\n"
)
async def test_closing_ends_although_a_cancellation_is_swallowed(tmp_path: Path) -> None:
    inner = StubbornStore()
    store = OfflineStore(inner, "stubborn", tmp_path, 10**6, LIMITS)
    await store.open()
    await inner.connecting.wait()
    closing = asyncio.create_task(store.close())
    done, _ = await asyncio.wait([closing], timeout=5)
    inner.is_stubborn = False
    assert closing in done


@pytest.mark.fails_on_mutant(
    "the replay is not stopped", "app/stores/replay.py", "        self._stopped = True\n", "        pass\n"
)
async def test_a_replay_can_be_stopped_between_two_commits(tmp_path: Path) -> None:
    class Stopping(MemoryStore):
        async def apply(self, *arguments: object) -> ApplyResult:
            replay.stop()
            return await super().apply(*arguments)

    store = Stopping(StoreLimits(10))
    replay = Replay(store, store.record_data_loss)
    file = SpoolFile(tmp_path / "file")
    for offset in range(REPLAY_LINES + 1):
        file.append(encode(SpooledCommit("s", offset, offset + 1, hits("a", 1))))
    assert not await replay.run([file], math.inf)
    assert len(list(file.lines())) == REPLAY_LINES
    assert await store.read([TOTAL], ["a"]) == [{"a": 1}]
    file.close()
