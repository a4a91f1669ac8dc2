"""Several nodes on one Redis, Sentinel or Cluster: all nodes and their dashboards show the same numbers."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from app.settings import Settings
from tests.support.load import KEYED, UNKEYED, Load
from tests.support.redis_servers import Cluster, GuardedRedis, RedisServer, Sentinels
from tests.support.scenarios.clients import dashboards_converge, idle_clients
from tests.support.scenarios.days import event_name_flood, midnights
from tests.support.scenarios.network import REST_SECONDS, duplicate_requests
from tests.support.servers import eventually, serving
from tests.support.watchers import Watcher, watching

LIMITS = {"write_limit": "100000/second", "read_limit": "100000/second"}
LOST_COMMITS_METRIC = "tally_lost_batches"


def settings(url: str, directory: Path) -> Settings:
    return Settings(TALLY_STORE=url, spool=str(directory / "spool"), **LIMITS)


async def test_400_dashboards_on_two_nodes_end_on_the_same_numbers(tmp_path: Path) -> None:
    assert (await dashboards_converge(tmp_path, clients=400, messages=10_000)).violations == []


async def test_an_idle_dashboard_costs_little_and_gets_updates_at_once(tmp_path: Path) -> None:
    assert (await idle_clients(tmp_path, clients=200)).violations == []


@pytest.mark.fails_on_mutant("missing dedup", "app/http/parsing.py", "    if not texts:\n", "    if texts:\n")
async def test_an_idempotency_key_sent_to_three_nodes_at_once_is_counted_once(tmp_path: Path) -> None:
    assert (await duplicate_requests(tmp_path, keys=200, copies=10)).violations == []


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            "sqlite",
            marks=pytest.mark.fails_on_mutant(
                "one name too many", "app/stores/rules.py", "names_left < 1:", "names_left < 0:"
            ),
        ),
        pytest.param(
            "redis",
            marks=pytest.mark.fails_on_mutant(
                "one name too many", "app/stores/lua/count.lua", "names_left < 1 and", "names_left < 0 and"
            ),
        ),
    ],
)
async def test_a_flood_of_new_names_stops_at_the_limit_on_event_names(kind: str, tmp_path: Path) -> None:
    assert (await event_name_flood(tmp_path, kind, names=5000, limit=500)).violations == []


@pytest.mark.fails_on_mutant(
    "counts of any day",
    "app/live/peers.py",
    "self._show(message.day, message.counts, message.generation)",
    "self._show(self._live_day.day, message.counts, message.generation)",
)
async def test_midnight_passes_under_load_on_nodes_whose_clocks_differ(tmp_path: Path) -> None:
    assert (await midnights(tmp_path, nights=1)).violations == []


async def test_redis_behind_tls_and_an_access_list_needs_only_the_commands_that_tally_uses(
    tmp_path: Path, guarded_redis: GuardedRedis
) -> None:
    async with serving(settings(guarded_redis.url, tmp_path)) as tally, tally.client() as client:
        first = await client.post("/event/a", headers={"Idempotency-Key": "k"})
        again = await client.post("/event/a", headers={"Idempotency-Key": "k"})
        assert (first.json()["ack"], again.json()["count"], again.headers["Idempotent-Replayed"]) == (
            "redis",
            1,
            "true",
        )
        assert (await client.post("/events", json={"a": 2, "b": 1})).json()["ack"] == "redis"
        assert (await client.get("/events")).json() == {"a": 3, "b": 1}
        assert (await client.get("/history")).json() == []
        assert (await client.get("/health")).json()["status"] == "ok"
        # This job prunes the store.
        await tally.app.state.jobs.get_job("close_day").func()
        assert (await client.get("/health")).json()["status"] == "ok"


async def test_a_redis_whose_certificate_cannot_be_verified_gets_no_data(
    tmp_path: Path, guarded_redis: GuardedRedis
) -> None:
    async with serving(settings(guarded_redis.unverifiable, tmp_path)) as tally, tally.client() as client:
        assert (await client.post("/event/a")).json()["ack"] == "spooled"
    with guarded_redis.client() as operator:
        assert operator.dbsize() == 0


@contextlib.asynccontextmanager
async def two_nodes(url: str, directory: Path) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Run two nodes on one Redis; yield a client of each."""
    async with (
        serving(settings(url, directory)) as one,
        serving(settings(url, directory)) as two,
        one.client() as one_client,
        two.client() as two_client,
    ):
        yield one_client, two_client


def urls(*nodes: httpx.AsyncClient) -> list[str]:
    return [str(node.base_url).rstrip("/") for node in nodes]


async def lost_commits(*nodes: httpx.AsyncClient) -> int:
    """Return how many lost commits these nodes count. A node that counts any gives them as a reason in /health."""
    lost = 0
    for node in nodes:
        lines = (await node.get("/metrics")).text.splitlines()
        of_node = sum(int(float(line.split()[1])) for line in lines if line.startswith(f"{LOST_COMMITS_METRIC} "))
        assert ("lost" in " ".join((await node.get("/health")).json()["reasons"])) == (of_node > 0)
        lost += of_node
    return lost


async def none_stale(*nodes: httpx.AsyncClient) -> bool:
    responses = [await node.get("/event/a") for node in nodes]
    return not any("Tally-Stale" in response.headers for response in responses)


@pytest.mark.parametrize("kind", ["redis_server", "redis_cluster", "sentinels"])
async def test_two_nodes_agree_on_every_kind_of_redis(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    servers: RedisServer | Cluster | Sentinels = request.getfixturevalue(kind)
    async with two_nodes(servers.url, tmp_path) as (one, two), watching(*urls(one, two), live=2, plain=2) as pages:
        first = {f"name {i}": i + 1 for i in range(100)}
        second = {f"name {i}": 1 for i in range(50, 150)}
        for node, counts, other in ((one, first, two), (two, second, one)):
            key = {"Idempotency-Key": f"{counts['name 50']}"}
            response = await node.post("/events", json=counts, headers=key)
            assert (response.json()["ack"], response.json()["accepted"]) == ("redis", sum(counts.values()))
            replayed = await other.post("/events", json=counts, headers=key)
            assert (replayed.json(), replayed.headers["Idempotent-Replayed"]) == (response.json(), "true")
        both = Counter(first) + Counter(second)
        await eventually(lambda: all(page.counts == both for page in pages))
        for node in (one, two):
            assert (await node.get("/events")).json() == both
            assert (await node.get("/series?step=day&points=1")).json()["points"][0]["count"] == both.total()
            leaderboard = (await node.get("/leaderboard?window=total&limit=2")).json()
            assert [row["eventName"] for row in leaderboard] == ["name 99", "name 98"]
        assert [page.wrong for page in pages if page.wrong] == []
    if isinstance(servers, Cluster):
        for master in servers.masters():
            with master.client() as operator:
                assert operator.dbsize() > 0


class Writers(Load):
    """A load that does not read, because a node does not know the hits that the other has spooled."""

    async def _read(self) -> None:
        pass


@pytest.mark.fails_on_mutant(
    "the script is still in the cache",
    "app/stores/redis.py",
    "except exceptions.NoScriptError:",
    "except exceptions.DataError:",
)
@pytest.mark.parametrize("kind", ["sentinels", "own_cluster"])
async def test_hits_are_acknowledged_while_a_replica_is_promoted(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    servers: Cluster | Sentinels = request.getfixturevalue(kind)
    async with two_nodes(servers.url, tmp_path) as (one, two):
        loads = [Writers(url, REST_SECONDS) for url in urls(one, two)]
        loads[1].history = history = loads[0].history
        tasks = [asyncio.create_task(load.run()) for load in loads]

        async def acknowledge_100_more() -> None:
            targets = [load.acknowledged + 100 for load in loads]
            await eventually(
                lambda: all(load.acknowledged > target for load, target in zip(loads, targets, strict=True))
            )

        await acknowledge_100_more()
        servers.kill_master()
        await acknowledge_100_more()  # there is no master yet
        await eventually(lambda: none_stale(one, two))
        await acknowledge_100_more()
        for load in loads:
            load.stop.set()
        await asyncio.gather(*tasks)
        await eventually(lambda: none_stale(one, two))
        for node in (one, two):
            values = (await node.get("/events")).json()
            for event in (*UNKEYED, *KEYED):
                with history.reading(event) as read:
                    read.append(values.get(event, 0))
        assert [wrong for wrong in history.wrong_reads() if wrong.read.value > wrong.upper] == []
        # The master may have died before it replicated a commit. This is rare, and the nodes report it.
        if await lost_commits(one, two) == 0:
            assert history.wrong_reads() == []


async def test_a_node_reconnects_to_a_cluster_that_was_down(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    try:
        async with serving(settings(cluster.url, tmp_path)) as tally, tally.client() as client:
            assert (await client.post("/event/a")).json()["ack"] == "spooled"
            for hits in (1, 2):
                cluster.start("--appendonly", "yes", "--appendfsync", "always")
                await eventually(lambda: none_stale(client))
                response = (await client.post("/event/a")).json()
                assert (response["count"], response["ack"]) == (2 * hits, "redis")
                cluster.stop()
                response = (await client.post("/event/a")).json()
                assert (response["count"], response["ack"]) == (2 * hits + 1, "spooled")
    finally:
        cluster.stop()


async def all_show(pages: list[Watcher], counts: dict[str, int], epochs: int) -> None:
    """Wait until each dashboard shows these counts and has seen so many epochs.

    A watcher is wrong if a count went back without a new snapshot.
    """
    await eventually(lambda: all(page.counts == counts and len(page.epochs) == epochs for page in pages))
    assert [page.wrong for page in pages if page.wrong] == []


@pytest.mark.fails_on_mutant(
    "larger numbers always win",
    "app/live/peers.py",
    "            live_day.replace(slot, counts, before, generation)",
    "            live_day.merge(slot.day, counts)",
)
@pytest.mark.parametrize("how", ["flushed", "restarted"])
async def test_all_dashboards_follow_a_redis_that_has_lost_everything(
    how: str, tmp_path: Path, own_redis: RedisServer
) -> None:
    own_redis.start("--appendonly", "no")
    async with two_nodes(own_redis.url, tmp_path) as (one, two), watching(*urls(one, two), live=2, plain=0) as pages:
        for node in (one, two, one):
            await node.post("/events", json={"a": 10, "b": 1})
        await all_show(pages, {"a": 30, "b": 3}, epochs=1)
        if how == "flushed":
            own_redis.flush()
        else:
            own_redis.stop()
            own_redis.start("--appendonly", "no")
        for node in (one, two):
            await node.post("/event/a")
        await all_show(pages, {"a": 2}, epochs=2)
        await eventually(lambda: none_stale(one, two))
        for node in (one, two):
            assert (await node.get("/events")).json() == {"a": 2}
            assert await lost_commits(node) > 0


@pytest.mark.fails_on_mutant(
    "a loss that is not reported", "app/stores/offline.py", "self._lost_commits += commits", "self._lost_commits += 0"
)
async def test_commits_lost_in_a_failover_are_reported_and_leave_all_dashboards(
    tmp_path: Path, sentinels: Sentinels
) -> None:
    async with two_nodes(sentinels.url, tmp_path) as (one, two), watching(*urls(one, two), live=2, plain=0) as pages:
        for node in (one, two):
            await node.post("/events", json={"a": 10, "b": 1})
        await all_show(pages, {"a": 20, "b": 2}, epochs=1)
        sentinels.stop_replication()
        for _ in range(3):
            assert (await one.post("/event/a", json={"by": 100})).json()["ack"] == "redis"
        await all_show(pages, {"a": 320, "b": 2}, epochs=1)
        sentinels.kill_master()
        for node in (one, two):
            assert (await node.post("/event/a")).json()["ack"] == "spooled"
        await all_show(pages, {"a": 22, "b": 2}, epochs=2)
        await eventually(lambda: none_stale(one, two))
        assert (await one.get("/events")).json() == (await two.get("/events")).json() == {"a": 22, "b": 2}
        assert (await lost_commits(one), await lost_commits(two)) == (3, 0)


@pytest.mark.fails_on_mutant(
    "never subscribes again",
    "app/live/peers.py",
    "            await asyncio.sleep(random.uniform(0.5, 1.5))",
    "            return",
)
async def test_a_node_subscribes_again_after_its_connection_was_cut(tmp_path: Path, redis_server: RedisServer) -> None:
    def subscribers() -> int:
        with redis_server.client() as operator:
            return len(operator.client_list(_type="pubsub"))

    async with two_nodes(redis_server.url, tmp_path) as (one, two), watching(*urls(two), live=2, plain=2) as pages:
        for hits in range(1, 4):
            await eventually(lambda: subscribers() == 2)
            with redis_server.client() as operator:
                assert operator.client_kill_filter(_type="pubsub") == 2
            await one.post("/event/a")
            await eventually(lambda hits=hits: all(page.counts == {"a": hits} for page in pages))
        assert [page.wrong for page in pages if page.wrong] == []
