"""The shards of a store: a group that spans several is rejected by all or by none, and counted once in each."""

import contextlib
from collections.abc import AsyncIterator
from zoneinfo import ZoneInfo

import pytest

from app.domain.buckets import ALL_EVENTS, TOTAL
from app.domain.calendar import Calendar
from app.domain.counting import COUNT_MAX, BucketWrite, Commit, DayChange, HitGroup, IdempotencyKey
from app.stores.base import OutcomeUnknown, StoreLimits, StoreOpenError, StoreUnavailable
from app.stores.redis import RedisStore
from app.stores.redis_sharded import ShardedRedisStore
from app.stores.redis_url import RedisTarget
from app.stores.results import GroupResult, Value, reject
from app.stores.rules import apply_despite_loss
from tests.support.redis_servers import Cluster, wait_until

pytestmark = pytest.mark.usefixtures("patience")

NOON = Calendar(ZoneInfo("UTC")).slot(1_795_435_200)
SHARDS = 16
IN_EVERY_SHARD = {f"event {i}": i + 1 for i in range(40)}
KEY = IdempotencyKey("k" * 32, "r" * 32, "o")


def sharded(cluster: Cluster, names: int = 100, keys: int = 100) -> ShardedRedisStore:
    """A store with these limits per shard."""
    target = RedisTarget.from_url(cluster.url)
    return ShardedRedisStore([RedisStore(target, StoreLimits(names, keys), i) for i in range(target.shards)])


@contextlib.asynccontextmanager
async def opened(store: ShardedRedisStore) -> AsyncIterator[ShardedRedisStore]:
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def store(redis_cluster: Cluster) -> AsyncIterator[ShardedRedisStore]:
    async with opened(sharded(redis_cluster)) as store:
        yield store


async def totals(store: ShardedRedisStore) -> dict[str, int]:
    (counts,) = await store.read([TOTAL])
    return counts


@pytest.mark.fails_on_mutant(
    "half rejected", "app/stores/redis_sharded.py", "rejected = await self._prepare(source, new_offset, commit)", "pass"
)
async def test_a_group_that_one_shard_rejects_is_counted_by_none(store: ShardedRedisStore) -> None:
    await store.apply("s", 0, 1, [HitGroup(NOON, {"event 7": COUNT_MAX})])
    commit = [HitGroup(NOON, {"b": 1}), HitGroup(NOON, IN_EVERY_SHARD), HitGroup(NOON, {"c": 1})]
    result = await store.apply("s", 1, 2, commit)
    assert result.groups == [GroupResult({"b": Value(1, 1)}), reject("overflow"), GroupResult({"c": Value(1, 1)})]
    assert await store.apply("s", 1, 2, commit) == result
    assert await totals(store) == {"event 7": COUNT_MAX, "b": 1, "c": 1, ALL_EVENTS: COUNT_MAX + 2}


async def test_the_limit_on_names_holds_in_each_shard(redis_cluster: Cluster) -> None:
    async with opened(sharded(redis_cluster, names=2)) as store:
        single = [HitGroup(NOON, {name: 1}) for name in IN_EVERY_SHARD]
        result = await store.apply("s", 0, 1, [*single, HitGroup(NOON, IN_EVERY_SHARD)])
        assert result.groups[-1] == reject("full")
        assert len(await totals(store)) - 1 == sum(bool(group.values) for group in result.groups) <= 2 * SHARDS


@pytest.mark.fails_on_mutant("no limit", "app/stores/redis_sharded.py", "(preparing or not group.atomic)", "preparing")
async def test_the_limit_on_names_holds_in_each_shard_for_a_group_that_is_not_atomic(redis_cluster: Cluster) -> None:
    async with opened(sharded(redis_cluster, names=1)) as store:
        names = [f"event {i}" for i in range(200)]
        result = await store.apply("s", 0, 1, [HitGroup(NOON, dict.fromkeys(names, 1), atomic=False)])
        (group,) = result.groups
        assert group.values == {event: Value(1, 1) for event in group.values}
        assert group.rejected == {event: "full" for event in names if event not in group.values}
        assert await totals(store) == {**dict.fromkeys(group.values, 1), ALL_EVENTS: SHARDS}


@pytest.mark.fails_on_mutant(
    "no claim",
    "app/stores/redis_sharded.py",
    "                part.groups.append(HitGroup(",
    "                list().append((",
)
async def test_a_key_belongs_to_one_request_even_if_another_has_no_event_in_common(store: ShardedRedisStore) -> None:
    await store.apply("s", 0, 1, [HitGroup(NOON, {"a": 1}, KEY)])
    others = [HitGroup(NOON, {f"event {i}": 1}, KEY._replace(request="x" * 32)) for i in range(40)]
    result = await store.apply("s", 1, 2, others)
    assert result.groups == [reject("mismatch")] * 40
    assert await totals(store) == {"a": 1, ALL_EVENTS: 1}


async def test_keys_are_limited_in_the_shard_that_claims_them(redis_cluster: Cluster) -> None:
    async with opened(sharded(redis_cluster, keys=10)) as store:
        keys = [IdempotencyKey(f"{i:032}", "r", "one client") for i in range(100)]
        result = await store.apply("s", 0, 1, [HitGroup(NOON, {"a": 1}, key) for key in keys])
        # A client may have a tenth of the keys, which is one in each shard.
        assert sum(bool(group.values) for group in result.groups) == SHARDS
        assert await totals(store) == {"a": SHARDS, ALL_EVENTS: SHARDS}


@pytest.mark.parametrize("key", [None, KEY])
async def test_a_retry_finishes_a_commit_that_some_shards_have_applied(
    store: ShardedRedisStore, key: IdempotencyKey | None
) -> None:
    await store.apply("s", 0, 1, [HitGroup(NOON, {"a": 1})])
    commit = [HitGroup(NOON, IN_EVERY_SHARD, key), HitGroup(NOON, {"a": 1})]
    await apply_in_half_of_the_shards(store, commit)
    assert (await store.apply("s", 1, 2, commit)).groups == [
        GroupResult({event: Value(by, by) for event, by in IN_EVERY_SHARD.items()}),
        GroupResult({"a": Value(2, 2)}),
    ]
    assert await totals(store) == IN_EVERY_SHARD | {"a": 2, ALL_EVENTS: sum(IN_EVERY_SHARD.values()) + 2}


async def test_a_retry_by_key_on_another_node_finishes_the_commit_of_a_node_that_crashed(
    store: ShardedRedisStore,
) -> None:
    await store.apply("s", 0, 1, [HitGroup(NOON, {"a": 1})])
    commit = [HitGroup(NOON, IN_EVERY_SHARD, KEY)]
    await apply_in_half_of_the_shards(store, commit)
    for source, offset in (("t", 0), ("t", 1), ("u", 0)):
        values = {event: Value(by, by) for event, by in IN_EVERY_SHARD.items()}
        result = await store.apply(source, offset, offset + 1, commit)
        assert result.groups == [GroupResult(values, {}, NOON.date)]
    assert await totals(store) == IN_EVERY_SHARD | {"a": 1, ALL_EVENTS: sum(IN_EVERY_SHARD.values()) + 1}


@pytest.mark.fails_on_mutant(
    "half counted, and rejected",
    "app/stores/redis_sharded.py",
    "elif applied or (result and i < size):",
    "elif applied:",
)
async def test_a_retry_by_key_finishes_the_commit_even_if_no_new_names_are_allowed(redis_cluster: Cluster) -> None:
    async with opened(sharded(redis_cluster, names=8)) as store:
        await store.apply("s", 0, 1, [HitGroup(NOON, {"a": 1})])
        commit = [HitGroup(NOON, IN_EVERY_SHARD, KEY)]
        await apply_in_half_of_the_shards(store, commit)
        await store.apply("t", 0, 1, [HitGroup(NOON, {f"name {i}": 1}) for i in range(1000)])
        (result,) = (await store.apply("u", 0, 1, commit)).groups
        assert (result.values.keys(), result.replayed_on) == (IN_EVERY_SHARD.keys(), NOON.date)
        assert IN_EVERY_SHARD.items() <= (await totals(store)).items()


@pytest.mark.fails_on_mutant(
    "a claim is taken for a hit", "app/stores/redis_sharded.py", "(result and i < size)", "result"
)
async def test_a_key_that_was_only_claimed_does_not_exceed_the_limit_on_names(redis_cluster: Cluster) -> None:
    async with opened(sharded(redis_cluster, names=2)) as store:
        await store.apply("t", 0, 1, [HitGroup(NOON, {f"name {i}": 1}) for i in range(1000)])
        commit = [HitGroup(NOON, {"a": 1}, KEY)]
        await store._prepare("s", 1, commit)
        assert (await store.apply("u", 0, 1, commit)).groups == [reject("full")]
        assert "a" not in await totals(store)


async def apply_in_half_of_the_shards(store: ShardedRedisStore, commit: Commit) -> None:
    await store._prepare("s", 2, commit)
    for shard, part in list(zip(store._shards, store._split(commit), strict=True))[::2]:
        await shard.apply("s", 1, 2, part.groups)


@pytest.mark.fails_on_mutant(
    "a lost shard stops all", "app/stores/rules.py", "            offset = mismatch.offset\n", "            raise\n"
)
async def test_a_shard_that_lost_data_takes_new_commits_and_the_loss_is_recorded(
    store: ShardedRedisStore, redis_cluster: Cluster
) -> None:
    commit = [HitGroup(NOON, IN_EVERY_SHARD)]
    for offset in range(3):
        await store.apply("s", offset, offset + 1, commit)
    lost: list[int] = []

    async def record_data_loss(commits: int) -> None:
        lost.append(commits)

    redis_cluster.masters()[0].flush()  # as after a restart without a file
    before = await totals(store)
    assert 0 < len(before) < len(IN_EVERY_SHARD)
    assert await apply_despite_loss(lambda offset: store.apply("s", offset, 4, commit), record_data_loss, 3, 4)
    assert lost == [3]
    assert {e: n for e, n in (await totals(store)).items() if e} == {
        event: before.get(event, 0) + by for event, by in IN_EVERY_SHARD.items()
    }


@pytest.mark.fails_on_mutant(
    "keys not declared", "app/stores/redis.py", "(len(all_keys), *all_keys, *arguments)", "(1, all_keys[0], *arguments)"
)
async def test_a_commit_during_the_move_of_a_slot_is_not_half_counted(redis_cluster: Cluster) -> None:
    store = RedisStore(RedisTarget.from_url(redis_cluster.url.replace("?shards=16", "")), StoreLimits(100))
    await store.open()
    await store.apply("s", 0, 1, [HitGroup(NOON, {"a": 1})])
    # Without a correction, its missing key would be the one that stops the script.
    await store.apply_change("s", 1, 2, DayChange(NOON, [BucketWrite("add", NOON.day_buckets[1], {"a": 5})]))
    exists, missing = HitGroup(NOON, {"a": 1}), HitGroup(NOON, {"b": 1}, KEY)
    with contextlib.ExitStack() as stack:
        operators = [stack.enter_context(node.client()) for node in redis_cluster.nodes]
        slot = operators[0].execute_command("CLUSTER KEYSLOT", "tally:{0}:keys")
        names = [operator.execute_command("CLUSTER MYID") for operator in operators]
        owner = slot * 3 // 16_384
        other = (owner + 1) % 3
        operators[other].execute_command("CLUSTER SETSLOT", slot, "IMPORTING", names[owner])
        operators[owner].execute_command("CLUSTER SETSLOT", slot, "MIGRATING", names[other])
        with pytest.raises((StoreUnavailable, OutcomeUnknown)):
            await store.apply("s", 2, 3, [exists, missing])
        for operator in operators:
            operator.execute_command("CLUSTER SETSLOT", slot, "STABLE")
    assert await store.read(NOON.buckets) == [{"a": 1, ALL_EVENTS: 1}] * 4
    assert (await store.apply("s", 2, 3, [exists, missing])).groups == [
        GroupResult({"a": Value(7, 2)}),
        GroupResult({"b": Value(1, 1)}),
    ]
    await store.close()


async def test_the_number_of_shards_of_a_store_cannot_be_changed(
    store: ShardedRedisStore, redis_cluster: Cluster
) -> None:
    for url in (redis_cluster.url.replace("shards=16", "shards=4"), redis_cluster.url.replace("?shards=16", "")):
        other = RedisStore(RedisTarget.from_url(url), StoreLimits(10))
        with pytest.raises(StoreOpenError, match="created with shards=16"):
            await other.open()
        await other.close()


@pytest.mark.fails_on_mutant(
    "a failed client is not closed", "app/stores/redis_url.py", "if isinstance(self.client, RedisCluster):", "if False:"
)
async def test_a_store_closes_its_connections_to_all_servers_after_one_has_failed(redis_cluster: Cluster) -> None:
    store = sharded(redis_cluster)
    await store.open()
    with contextlib.ExitStack() as stack:
        failing, *others = [stack.enter_context(master.client()) for master in redis_cluster.masters()]
        failing.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(OutcomeUnknown):
            await store.apply("s", 0, 1, [HitGroup(NOON, {"a": 1})])
        await store.close()
        wait_until(lambda: all(len(server.client_list(_type="normal")) == 1 for server in others))


@pytest.mark.parametrize(
    ("errors", "raised"),
    [([StoreUnavailable("x"), StoreUnavailable("y")], StoreUnavailable), ([OutcomeUnknown("x")], OutcomeUnknown)],
)
async def test_a_commit_is_certainly_not_counted_if_no_shard_has_applied_it(
    store: ShardedRedisStore, monkeypatch: pytest.MonkeyPatch, errors: list[Exception], raised: type[Exception]
) -> None:
    calls: list[object] = []

    async def fail(*arguments: object) -> None:
        calls.append(arguments)
        raise errors[len(calls) % len(errors)]

    monkeypatch.setattr(RedisStore, "apply", fail)
    with pytest.raises(raised):
        await store.apply("s", 0, 1, [HitGroup(NOON, {"a": 1})])


@pytest.mark.parametrize(
    "url",
    [
        "redis://h/0?shards=2",
        "redis+cluster://h?shards=0",
        "redis+cluster://h?shards=x",
        "redis://h:port",
        "redis+cluster://h:99999",
        "redis+cluster://h/1",
        "redis://:pa55/word@h",
    ],
)
def test_an_invalid_url_is_rejected_with_a_sentence(url: str) -> None:
    with pytest.raises(StoreOpenError, match="TALLY_STORE"):
        RedisTarget.from_url(url)


@pytest.mark.fails_on_mutant("the old name is ignored", "app/stores/redis_url.py", 'if "tags" in query:', "if False:")
def test_the_old_name_of_shards_is_rejected_with_the_new_one() -> None:
    with pytest.raises(StoreOpenError, match=r"TALLY_STORE: .* write shards=8 instead"):
        RedisTarget.from_url("redis+cluster://h?tags=8")


def test_the_identity_of_a_store_does_not_depend_on_how_it_is_reached() -> None:
    same = ["redis+cluster://a:1,b:2?shards=4", "redis+cluster://u:p@b:2,a:1?shards=4", "rediss+cluster://a:1,b:2"]
    assert len({RedisTarget.from_url(url).identity for url in same}) == 1
    database_0 = ["redis://h", "redis://h/", "redis://h/0", "redis://h?db=0", "redis://u:p@h:6379/0"]
    assert len({RedisTarget.from_url(url).identity for url in database_0}) == 1
    assert RedisTarget.from_url("redis://h?db=1").identity == RedisTarget.from_url("redis://h/1").identity
    others = [
        "redis://h",
        "redis://h/1",
        "redis+sentinel://h/x/1",
        "unix:///h?db=1",
        "redis://h:1",
        "redis+sentinel://h/x",
        "redis+sentinel://h/y",
        "unix:///h",
    ]
    assert len({RedisTarget.from_url(url).identity for url in others}) == len(others)


@pytest.mark.parametrize(
    ("url", "identity"),
    [
        ("redis://h", " h:6379 "),
        ("redis://h", " h:6379 /0"),
        ("redis://h/0", " h:6379 "),
        ("redis://h/1", " h:6379 /1"),
        ("redis://h?db=1", " h:6379 "),
        ("redis+sentinel://b,a:1/x", "sentinel a:1 b:6379 /x"),
        ("redis+cluster://h?shards=4", "cluster h:6379 "),
        ("unix:///tmp/redis.sock", " 127.0.0.1:6379 /tmp/redis.sock"),
    ],
)
def test_a_store_has_the_spool_files_of_its_identity_in_earlier_versions(url: str, identity: str) -> None:
    target = RedisTarget.from_url(url)
    assert identity in {target.identity, *target.old_identities}
    assert identity not in RedisTarget.from_url("redis://h/2").old_identities
