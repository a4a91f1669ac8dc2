"""Several nodes on one Redis, whichever kind that is: each of them and each of their pages shows the same numbers."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from app.settings import Settings
from tests.support.load import BARE, KEYED, Load
from tests.support.redis_servers import Cluster, GuardedRedis, RedisServer, Sentinels
from tests.support.scenarios.days import midnights, names_flood
from tests.support.scenarios.network import REST_SECONDS, duplicates
from tests.support.scenarios.pages import idle_pages, pages_agree
from tests.support.servers import Served, eventually, serving
from tests.support.watchers import Watcher, watching

LIMITS = {"write_limit": "100000/second", "read_limit": "100000/second"}
EVENTS = [f"e{i}" for i in range(20)]
SLOWEST, FASTEST = 0, 2  # the seconds by which clocks differ
LOST = "tally_lost_batches"  # acknowledged by a Redis that then forgot them


def settings(url: str, directory: Path) -> Settings:
    return Settings(TALLY_STORE=url, spool=str(directory / "spool"), **LIMITS)


async def test_400_pages_on_two_nodes_end_on_the_same_numbers(tmp_path: Path) -> None:
    assert (await pages_agree(tmp_path, pages=400, messages=10_000)).broken == []


async def test_a_page_that_nothing_is_told_costs_little_and_is_told_at_once(tmp_path: Path) -> None:
    assert (await idle_pages(tmp_path, pages=200)).broken == []


@pytest.mark.catches("missing dedup", "app/http/routes/count.py", "    if not texts:\n", "    if texts:\n")
async def test_keys_that_come_to_three_nodes_at_once_are_counted_once(tmp_path: Path) -> None:
    assert (await duplicates(tmp_path, keys=200, copies=10)).broken == []


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            "sqlite",
            marks=pytest.mark.catches("one name too many", "app/stores/rules.py", "names_left < 1:", "names_left < 0:"),
        ),
        pytest.param(
            "redis",
            marks=pytest.mark.catches(
                "one name too many",
                "app/stores/lua/count.lua",
                "if free_names <= new_names then",
                "if free_names < new_names then",
            ),
        ),
    ],
)
async def test_a_flood_of_names_leaves_as_many_as_the_cap_says(kind: str, tmp_path: Path) -> None:
    assert (await names_flood(tmp_path, kind, names=5000, cap=500)).broken == []


@pytest.mark.catches(
    "news of any day",
    "app/live/peers.py",
    "self._show(news.day, news.counts, news.generation)",
    "self._show(self._feed.day, news.counts, news.generation)",
)
async def test_midnight_passes_under_load_on_nodes_whose_clocks_differ(tmp_path: Path) -> None:
    assert (await midnights(tmp_path, nights=1)).broken == []


async def test_a_redis_behind_tls_needs_to_let_its_user_do_only_what_tally_asks(
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
        await tally.app.state.jobs.get_job("close_day").func()  # what is too old is forgotten
        assert (await client.get("/health")).json()["status"] == "ok"


async def test_a_redis_whose_certificate_nobody_vouches_for_is_not_spoken_to(
    tmp_path: Path, guarded_redis: GuardedRedis
) -> None:
    async with serving(settings(guarded_redis.unverifiable, tmp_path)) as tally, tally.client() as client:
        assert (await client.post("/event/a")).json()["ack"] == "spooled"
    with guarded_redis.client() as operator:
        assert operator.dbsize() == 0


@contextlib.asynccontextmanager
async def two_nodes(url: str, directory: Path) -> AsyncIterator[tuple[Served, Served]]:
    async with serving(settings(url, directory)) as one, serving(settings(url, directory)) as two:
        yield one, two


async def lost_batches(*nodes: httpx.AsyncClient) -> int:
    """What these nodes have counted as lost; a loss is among the reasons of a node's health, too."""
    lost = 0
    for node in nodes:
        metrics = (await node.get("/metrics")).text
        of_node = sum(int(float(line.split()[1])) for line in metrics.splitlines() if line.startswith(f"{LOST} "))
        assert ("lost" in " ".join((await node.get("/health")).json()["reasons"])) == (of_node > 0)
        lost += of_node
    return lost


async def all_ok(*nodes: httpx.AsyncClient) -> bool:
    answers = [await node.get("/event/a") for node in nodes]
    return not any("Tally-Stale" in answer.headers for answer in answers)


@pytest.mark.parametrize("kind", ["redis_server", "redis_cluster", "sentinels"])
async def test_two_nodes_agree_on_every_kind_of_redis(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    servers: RedisServer | Cluster | Sentinels = request.getfixturevalue(kind)
    async with (
        two_nodes(servers.url, tmp_path) as (one, two),
        one.client() as client,
        two.client() as other,
        watching(one.url, two.url, live=2, plain=2) as pages,
    ):
        first = {f"name {i}": i + 1 for i in range(100)}
        second = {f"name {i}": 1 for i in range(50, 150)}
        for node, counts, again in ((client, first, other), (other, second, client)):
            key = {"Idempotency-Key": f"{counts['name 50']}"}
            answer = await node.post("/events", json=counts, headers=key)
            assert (answer.json()["ack"], answer.json()["accepted"]) == ("redis", sum(counts.values()))
            replayed = await again.post("/events", json=counts, headers=key)
            assert (replayed.json(), replayed.headers["Idempotent-Replayed"]) == (answer.json(), "true")
        both = Counter(first) + Counter(second)
        await eventually(lambda: all(page.counts == both for page in pages))
        for node in (client, other):
            assert (await node.get("/events")).json() == both
            assert (await node.get("/series?step=day&points=1")).json()["points"][0]["count"] == both.total()
            best = (await node.get("/leaderboard?window=total&limit=2")).json()
            assert [line["eventName"] for line in best] == ["name 99", "name 98"]
        assert [page.wrong for page in pages if page.wrong] == []
    if isinstance(servers, Cluster):
        for master in servers.masters():
            with master.client() as operator:
                assert operator.dbsize() > 0  # names are spread over all of it


class Writers(Load):
    """A load that reads nothing: a node cannot know what the other has spooled."""

    async def _read(self) -> None:
        pass


@pytest.mark.catches(
    "the script is where it once was",
    "app/stores/redis.py",
    "except exceptions.NoScriptError:",
    "except exceptions.DataError:",
)
@pytest.mark.parametrize("kind", ["sentinels", "own_cluster"])
async def test_hits_go_on_while_a_replica_takes_the_place_of_its_master(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    servers: Cluster | Sentinels = request.getfixturevalue(kind)
    async with two_nodes(servers.url, tmp_path) as served, served[0].client() as one, served[1].client() as two:
        loads = [Writers(node.url, REST_SECONDS) for node in served]
        loads[1].history = history = loads[0].history
        running = [asyncio.create_task(load.run()) for load in loads]

        async def further(hits: int) -> None:
            targets = [load.acknowledged + hits for load in loads]
            await eventually(
                lambda: all(load.acknowledged > target for load, target in zip(loads, targets, strict=True))
            )

        await further(100)
        servers.kill_master()
        await further(100)  # although there is no master yet
        await eventually(lambda: all_ok(one, two))
        await further(100)
        for load in loads:
            load.stop.set()
        await asyncio.gather(*running)
        await eventually(lambda: all_ok(one, two))
        for node in (one, two):
            values = (await node.get("/events")).json()
            for event in (*BARE, *KEYED):
                with history.reading(event) as read:
                    read.append(values.get(event, 0))
        assert [wrong for wrong in history.wrong_reads() if wrong.read.value > wrong.upper] == []
        if await lost_batches(one, two) == 0:  # which the master had no time to pass on: seldom, and never unsaid
            assert history.wrong_reads() == []


async def test_a_cluster_that_is_away_as_a_whole_is_come_back_to(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    try:
        async with serving(settings(cluster.url, tmp_path)) as tally, tally.client() as client:
            assert (await client.post("/event/a")).json()["ack"] == "spooled"  # it was never there
            for hits in (1, 2):
                cluster.start("--appendonly", "yes", "--appendfsync", "always")
                await eventually(lambda: all_ok(client))
                answer = (await client.post("/event/a")).json()
                assert (answer["count"], answer["ack"]) == (2 * hits, "redis")
                cluster.stop()
                answer = (await client.post("/event/a")).json()
                assert (answer["count"], answer["ack"]) == (2 * hits + 1, "spooled")
    finally:
        cluster.stop()


async def shown_by_all(pages: list[Watcher], counts: dict[str, int], lives: int) -> None:
    """Each page shows these counts, as those of the store's so-manieth life."""

    def shown() -> bool:
        return all(page.counts == counts and len(page.epochs) == lives for page in pages)

    await eventually(shown)
    assert [page.wrong for page in pages if page.wrong] == []  # it was told so by a new snapshot, not by a change


@pytest.mark.catches(
    "larger numbers always win",
    "app/live/peers.py",
    "            feed.replace(slot, counts, before, generation)",
    "            feed.merge(slot.day, counts)",
)
@pytest.mark.parametrize("how", ["flushed", "restarted"])
async def test_all_pages_follow_a_redis_that_has_lost_everything(
    how: str, tmp_path: Path, own_redis: RedisServer
) -> None:
    own_redis.start("--appendonly", "no")
    async with (
        two_nodes(own_redis.url, tmp_path) as (one, two),
        one.client() as client,
        two.client() as other,
        watching(one.url, two.url, live=2, plain=0) as pages,
    ):
        for node in (client, other, client):
            await node.post("/events", json={"a": 10, "b": 1})
        await shown_by_all(pages, {"a": 30, "b": 3}, lives=1)
        if how == "flushed":
            own_redis.flush()
        else:
            own_redis.stop()
            own_redis.start("--appendonly", "no")
        for node in (client, other):
            await node.post("/event/a")
        await shown_by_all(pages, {"a": 2}, lives=2)
        await eventually(lambda: all_ok(client, other))
        for node in (client, other):
            assert (await node.get("/events")).json() == {"a": 2}
            assert await lost_batches(node) > 0


@pytest.mark.catches("a loss unsaid", "app/stores/offline.py", "self._lost += batches", "self._lost += 0")
async def test_what_a_failover_loses_is_said_and_no_page_goes_on_showing_it(
    tmp_path: Path, sentinels: Sentinels
) -> None:
    async with (
        two_nodes(sentinels.url, tmp_path) as (one, two),
        one.client() as client,
        two.client() as other,
        watching(one.url, two.url, live=2, plain=0) as pages,
    ):
        for node in (client, other):
            await node.post("/events", json={"a": 10, "b": 1})
        await shown_by_all(pages, {"a": 20, "b": 2}, lives=1)
        sentinels.part()
        for _ in range(3):
            assert (await client.post("/event/a", json={"by": 100})).json()["ack"] == "redis"
        await shown_by_all(pages, {"a": 320, "b": 2}, lives=1)
        sentinels.kill_master()
        for node in (client, other):
            assert (await node.post("/event/a")).json()["ack"] == "spooled"
        await shown_by_all(pages, {"a": 22, "b": 2}, lives=2)
        await eventually(lambda: all_ok(client, other))
        assert (await client.get("/events")).json() == (await other.get("/events")).json() == {"a": 22, "b": 2}
        assert (await lost_batches(client), await lost_batches(other)) == (3, 0)


@pytest.mark.catches(
    "listens but once",
    "app/live/peers.py",
    "            await asyncio.sleep(random.uniform(0.5, 1.5))",
    "            return",
)
async def test_a_node_whose_channel_is_cut_hears_the_other_again(tmp_path: Path, redis_server: RedisServer) -> None:
    def listeners() -> int:
        with redis_server.client() as operator:
            return len(operator.client_list(_type="pubsub"))

    async with (
        two_nodes(redis_server.url, tmp_path) as (one, two),
        one.client() as client,
        watching(two.url, live=2, plain=2) as pages,
    ):
        for hits in range(1, 4):
            await eventually(lambda: listeners() == 2)
            with redis_server.client() as operator:
                assert operator.client_kill_filter(_type="pubsub") == 2
            await client.post("/event/a")
            await eventually(lambda hits=hits: all(page.counts == {"a": hits} for page in pages))
        assert [page.wrong for page in pages if page.wrong] == []
