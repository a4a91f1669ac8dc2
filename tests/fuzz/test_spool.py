"""Hits are counted once, whichever requests to Redis are lost, late or repeated, and whichever nodes crash."""

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from app.domain.buckets import TOTAL
from app.domain.counting import IdempotencyKey, Visit
from app.group_commit import Overloaded
from app.stores import offline
from app.stores.base import OutcomeUnknown, StoreUnavailable
from tests.fuzz import TEST_SECONDS, run_episodes
from tests.fuzz.nodes import CALENDAR, Cluster, Node, NoResponse, redis_node
from tests.support import redis_servers
from tests.support.redis_servers import RedisServer
from tests.support.servers import SettableClock

pytestmark = pytest.mark.timeout(TEST_SECONDS)

CLIENTS = 5
REQUESTS = 30
DISTURBANCES = 20
EVENTS = [f"event {number}" for number in range(6)]
RETRY_SECONDS = 0.002
CLOCK_ERROR_SECONDS = 3 * 3600  # far less than the life of an idempotency key


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "RETRY_SECONDS", 0.01)


class Responses:
    """The bounds of each count: the acknowledged hits, and in the upper bound also those that may have been counted."""

    def __init__(self) -> None:
        self.lower: Counter[str] = Counter()
        self.upper: Counter[str] = Counter()
        # The acknowledged hits without a key by day. A retry may be acknowledged on another day than it is counted.
        self.days: dict[str, Counter[str]] = {}

    async def submit(self, node: Node, amounts: dict[str, int], key: IdempotencyKey | None, user: str | None) -> bool:
        """Send hits to a node, note the outcome, and return whether they are acknowledged."""
        visits = [Visit(event, by, user, user) for event, by in amounts.items()] if user else []
        if not key:
            self.upper.update(amounts)
        try:
            outcome = await node.respond(node.committer.submit(amounts, key, visits))
        except (StoreUnavailable, Overloaded):
            if not key:
                self.upper.subtract(amounts)
            return False
        except (OutcomeUnknown, NoResponse):
            return False
        assert outcome.result.values.keys() == amounts.keys(), outcome
        self.lower.update(amounts)
        if not key:
            self.days.setdefault(outcome.date, Counter()).update(amounts)
        return True

    async def check(self, node: Node) -> None:
        """Require that the totals, and the counts of each day, are within their bounds, as a node reads them."""
        buckets = [b for b in await node.store.list_buckets() if b.step == "day" and not b.dimension]
        totals, *counts_of_days = await node.store.read([TOTAL, *buckets])
        days = {
            CALENDAR.slot(bucket.start).date: counts for bucket, counts in zip(buckets, counts_of_days, strict=True)
        }
        for event in EVENTS:
            total = totals.get(event, 0)
            assert self.lower[event] <= total <= self.upper[event], (event, self.lower[event], total, self.upper[event])
            assert total == sum(counts.get(event, 0) for counts in days.values()), (event, total, days)
        for day, acknowledged in self.days.items():
            assert all(days.get(day, {}).get(event, 0) >= n for event, n in acknowledged.items()), (day, acknowledged)


async def send_hits(cluster: Cluster, responses: Responses, rng: random.Random) -> None:
    """Send requests to random nodes. Repeat those with a key until they are acknowledged."""
    for _ in range(REQUESTS):
        amounts = {event: rng.randint(1, 9) for event in rng.sample(EVENTS, rng.choice([1, 1, 1, 2, 4]))}
        user = rng.choice([None, None, "ann", "bob"])
        key = IdempotencyKey(f"{rng.random()}", "request", "client") if rng.random() < 0.4 else None
        if key:
            responses.upper.update(amounts)
        while not await responses.submit(rng.choice(cluster.nodes), amounts, key, user) and key:
            await asyncio.sleep(RETRY_SECONDS)


async def disturb(cluster: Cluster, clocks: list[SettableClock], rng: random.Random) -> None:
    """Crash nodes, set clocks, execute late requests, and recover orphans."""
    for _ in range(DISTURBANCES):
        await asyncio.sleep(rng.uniform(0, 0.03))
        what = rng.choice(["crash", "crash", "clock", "late", "recover"])
        if what == "crash":
            await cluster.crash()
        elif what == "clock":
            rng.choice(clocks).shift = rng.uniform(-CLOCK_ERROR_SECONDS, CLOCK_ERROR_SECONDS)
        elif what == "late":
            await cluster.execute_late(3)
        else:
            await cluster.recover_orphans()


async def episode(server: RedisServer | redis_servers.Cluster, url: str, directory: Path, rng: random.Random) -> None:
    server.flush()
    clocks: list[SettableClock] = []  # of all nodes, dead ones included

    def make_node() -> Node:
        clocks.append(SettableClock(rng.uniform(-CLOCK_ERROR_SECONDS, CLOCK_ERROR_SECONDS)))
        return redis_node(url, directory, rng, clocks[-1])

    cluster, responses = Cluster(make_node, rng), Responses()
    try:
        for _ in range(3):
            await cluster.add()
        clients = [send_hits(cluster, responses, random.Random(rng.random())) for _ in range(CLIENTS)]
        await asyncio.gather(*clients, disturb(cluster, clocks, rng))
        await cluster.settle()
        await cluster.execute_all_late()
        for node in cluster.nodes:
            await responses.check(node)
        assert not list(directory.glob("*.spool"))
    finally:
        await cluster.close()


@pytest.mark.fails_on_mutant(
    "add without compare",
    "app/stores/lua/offset.lua",
    "(tonumber(offset) ~= tonumber(ARGV[2]) or tonumber(new_offset) < tonumber(offset))",
    "false",
)
@pytest.mark.fails_on_mutant(
    "no recovery", "app/stores/spool_file.py", "if _suffix_of(path) in self._suffixes)", "if False)"
)
async def test_nodes_on_one_redis(redis_server: RedisServer, tmp_path: Path) -> None:
    await run_episodes(4, lambda rng: episode(redis_server, redis_server.url, tmp_path, rng))


@pytest.mark.fails_on_mutant(
    "shards ignore idempotency keys",
    "app/stores/redis_sharded.py",
    'key = group.key and group.key._replace(client="")',
    "key = None",
)
async def test_nodes_on_shards(redis_cluster: redis_servers.Cluster, tmp_path: Path) -> None:
    url = redis_cluster.url.replace("shards=16", "shards=3")
    await run_episodes(3, lambda rng: episode(redis_cluster, url, tmp_path, rng))
