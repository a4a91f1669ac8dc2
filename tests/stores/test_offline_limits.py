"""The limits on names and memory also hold while Redis is unreachable."""

from pathlib import Path

import pytest

from app.domain.buckets import ALL_EVENTS, TOTAL, Bucket
from app.domain.counting import Commit, HitGroup, IdempotencyKey, Visit
from app.stores import spool_file
from app.stores.base import OutcomeUnknown, StoreLimits, StoreUnavailable
from app.stores.offline import OfflineStore
from app.stores.results import ApplyResult, GroupResult, Value, reject
from tests.stores.offline_stores import DURABLE, NOON, hits, offline_store, opened, redis_store, wait_online
from tests.support.redis_servers import RedisServer
from tests.support.servers import serving, settings_for

pytestmark = pytest.mark.usefixtures("short_pauses")


def batch(*events: str, atomic: bool = True) -> Commit:
    return [HitGroup(NOON, dict.fromkeys(events, 1), atomic=atomic)]


@pytest.mark.fails_on_mutant(
    "rejected hits are spooled",
    "app/stores/offline.py",
    "if not is_unknown and not all(result.is_counted for result in results):",
    "if False:",
)
@pytest.mark.fails_on_mutant(
    "no limits in an outage",
    "app/stores/last_known.py",
    "        super().__init__(limits)\n",
    "        super().__init__(StoreLimits(10**9))\n",
)
async def test_new_names_are_rejected_beyond_the_limit(tmp_path: Path, own_redis: RedisServer) -> None:
    own_redis.start(*DURABLE)
    async with opened(offline_store(own_redis, tmp_path, limits=StoreLimits(3))) as store:
        await store.apply("s", 0, 1, batch("a", "b"))
        own_redis.stop()
        one = Value(1, 1)
        for offset, (commit, expected) in enumerate(
            [
                (batch("c"), GroupResult({"c": one})),
                (batch("d"), reject("full")),
                (batch("a", "e"), reject("full")),
                (batch("a", "f", atomic=False), GroupResult({"a": Value(2, 2)}, {"f": "full"})),
                ([HitGroup(NOON, {"g": 1}, IdempotencyKey("key", "request", "client"))], reject("full")),
                (batch("b"), GroupResult({"b": Value(2, 2)})),
            ],
            1,
        ):
            result = await store.apply("s", offset, offset + 1, commit)
            assert (result.groups, result.ack) == ([expected], "spooled")
        own_redis.start(*DURABLE)
        await wait_online(store)
        assert await store.read([TOTAL]) == [{"a": 2, "b": 2, "c": 1, ALL_EVENTS: 5}]
        assert store.status().reasons == ()
        assert (await store.apply("s", 7, 8, batch("a"))).ack == "redis"


@pytest.mark.fails_on_mutant(
    "a hit that is spooled next to a rejected one loses its key and its visits",
    "app/stores/offline.py",
    "g if r.is_counted else g.only(r.counted)",
    "g.only(r.counted)",
)
async def test_hits_that_are_spooled_next_to_rejected_ones_keep_their_key_and_their_visits(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    keyed = HitGroup(NOON, {"a": 1}, IdempotencyKey("key", "request", "client"))
    visits = HitGroup(NOON, {}, visits=[Visit("a", 1, "ann", None)])  # of hits that an earlier commit counted
    async with opened(offline_store(own_redis, tmp_path, limits=StoreLimits(1))) as store:
        result = await store.apply("s", 0, 1, [keyed, visits, *batch("beyond the limit")])
        assert [group.is_counted for group in result.groups] == [True, True, False]
        own_redis.start()
        async with opened(redis_store(own_redis)) as other:  # its client got no response, and retries on another node
            await other.apply("t", 0, 1, [keyed])
        await wait_online(store)
        assert await store.read([TOTAL, Bucket("day", NOON.day, "user:a")]) == [{"a": 1, ALL_EVENTS: 1}, {"ann": 1}]


async def test_a_client_gets_a_429_for_a_new_name_beyond_the_limit(tmp_path: Path, own_redis: RedisServer) -> None:
    async with serving(settings_for("redis", tmp_path, own_redis, events_max=2)) as tally, tally.client() as client:
        for event, status in (("a", 200), ("b", 200), ("c", 429), ("a", 200)):
            response = await client.post(f"/event/{event}")
            assert response.status_code == status
        response = await client.post("/events", json={"a": 1, "c": 1})
        assert (response.status_code, response.json()["counted"]) == (429, "no")


@pytest.mark.fails_on_mutant(
    "rejected although Redis may have counted it",
    "app/stores/offline.py",
    "if is_unknown and any(",
    "if False and any(",
)
async def test_the_outcome_stays_unknown_if_redis_may_have_counted_a_name_beyond_the_limit(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    own_redis.start()
    redis = redis_store(own_redis)  # has room for the name, because it exists there
    async with opened(OfflineStore(redis, "redis", tmp_path, 10**6, StoreLimits(1))) as store:
        await store.apply("s", 0, 1, batch("a"))
        apply = redis.apply

        async def lose_the_response(*arguments: object) -> ApplyResult:
            await apply(*arguments)
            redis.apply = apply
            raise OutcomeUnknown("the response was lost")

        redis.apply = lose_the_response
        with pytest.raises(OutcomeUnknown):
            await store.apply("s", 1, 2, [*batch("a"), *batch("b")])
        await wait_online(store)
        assert await store.read([TOTAL], ["a", "b"]) == [{"a": 2, "b": 1}]


@pytest.mark.fails_on_mutant(
    "all orphaned commits are shown",
    "app/stores/spool_file.py",
    "            if size > ORPHAN_BYTES_SHOWN:\n",
    "            if False:\n",
)
async def test_a_large_orphaned_spool_is_shown_in_part_and_replayed_in_full(
    tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(offline_store(own_redis, tmp_path)) as dead:
        for offset in range(50):
            await dead.apply("dead", offset, offset + 1, hits(f"name {offset}", 1))
    monkeypatch.setattr(spool_file, "ORPHAN_BYTES_SHOWN", 1000)
    async with opened(offline_store(own_redis, tmp_path)) as store:
        (shown,) = await store.read([TOTAL])
        assert 1 < len(shown) < 20
        own_redis.start()
        await wait_online(store)
        assert await store.sizes([TOTAL]) == [50]


@pytest.mark.fails_on_mutant(
    "the memory has no bound",
    "app/stores/spool_file.py",
    'if self.ack == "memory" and self.files[-1].size + line_bytes > MEMORY_BYTES_MAX:',
    "if False:",
)
async def test_the_spool_in_memory_has_its_own_limit(
    tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_file, "MEMORY_BYTES_MAX", 300)
    (tmp_path / "spool").write_text("a file in the place of the directory")
    async with opened(offline_store(own_redis, tmp_path / "spool")) as store:
        assert (await store.apply("s", 0, 1, hits("a", 1))).ack == "memory"
        with pytest.raises(StoreUnavailable, match=r"cannot be written \(TALLY_SPOOL\), and the memory for it is full"):
            for offset in range(1, 10):
                await store.apply("s", offset, offset + 1, hits("a", 1))
        assert not store.status().accepting
