"""Administrative changes agree with hits that are counted at the same time, whatever happens to requests and nodes.

Each acknowledged change is applied once, and each other one at most once, and never after its deadline.
"""

import asyncio
import io
import itertools
import random
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from app import corrections
from app.corrections import CorrectionRecord
from app.domain.buckets import TOTAL
from app.domain.calendar import TimeSlot, day_start
from app.domain.counting import DayChange, Visit
from app.export_import import encode_counts, encode_end, encode_head, import_line, read_lines
from app.stores import offline, redis_url
from app.stores.base import CounterStore, StoreError
from tests.fuzz import TEST_SECONDS, run_episodes
from tests.fuzz.faults import (
    LIMITS,
    LOCAL_FATES,
    NETWORK_FATES,
    Faults,
    UnreliableMemory,
    UnreliableSqlite,
    unreliable_redis,
)
from tests.fuzz.ledger import Change, Erasure, Hits, Ledger, check_late, read_all
from tests.fuzz.nodes import CALENDAR, Cluster, Node, NoResponse, redis_node
from tests.support import redis_servers
from tests.support.redis_servers import RedisServer

pytestmark = pytest.mark.timeout(TEST_SECONDS)

ROUNDS = 3
DEADLINE_SECONDS = 0.25  # in place of COMMAND_TIMEOUT_SECONDS, so that an episode can wait for it
FAULT_RATE = 0.2
EVENTS = ["a", "b", "c"]
IMPORTED = {"d": 5, "e": 7}  # counts of these events are also imported, so they are not deleted
USERS = ["ann", "bob"]

Plan = Callable[[TimeSlot], Awaitable[tuple[DayChange, Any]]]


@dataclass
class FixedClock:
    """A clock that an episode sets."""

    now: float

    def __call__(self) -> float:
        return self.now


class Episode:
    """Rounds of hits and changes on one store. After each round, the store is compared with all responses."""

    def __init__(self, make: Callable[[FixedClock], Node], rng: random.Random, url: str) -> None:
        self._rng, self._is_network = rng, bool(url)
        self._clock = FixedClock(CALENDAR.slot(time.time()).day + 12 * 3600)
        self._ledger = Ledger()
        self._cluster = Cluster(lambda: make(self._clock), rng)
        # Nodes have a short time-out, which is too short for reading everything on a busy machine.
        self._reader = unreliable_redis(url, Faults(rng, rate=0)) if url else None
        self._times = itertools.count(int(self._clock.now))  # each change has a time of its own, which identifies it

    async def run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        try:
            for _ in range(3 if self._is_network else 1):
                await self._cluster.add()
            for _ in range(ROUNDS):
                with monkeypatch.context() as patched:
                    patched.setattr(redis_url, "COMMAND_TIMEOUT_SECONDS", DEADLINE_SECONDS)
                    await self._run_round()
                await self._check()
                self._clock.now += self._rng.choice([0, 60, 3600, 86_400])
        finally:
            await self._cluster.close()
            if self._reader:
                await self._reader.close()

    async def _run_round(self) -> None:
        for node in self._cluster.nodes:
            node.faults.rate = FAULT_RATE
        workers = [self._send_hits, self._send_hits, self._send_changes, self._send_changes]
        workers += [self._import] * self._rng.randint(0, 1) + [self._disturb] * self._is_network
        await asyncio.gather(*(worker(random.Random(self._rng.random())) for worker in workers))
        await self._cluster.settle()
        if self._is_network:
            await self._send_late_change()
            await self._cluster.settle()

    async def _check(self) -> None:
        store = self._reader or self._cluster.nodes[0].store
        await read_all(store)  # this completes changes that a crash cut between shards
        before = await read_all(store)
        if any(node.faults.late for node in (*self._cluster.nodes, *self._cluster.dead)):
            await asyncio.sleep(DEADLINE_SECONDS)  # after it, no change is applied
        await self._cluster.execute_all_late()
        after = await read_all(store)
        check_late(before, after)
        self._ledger.check(after)

    async def _send_late_change(self) -> None:
        """Send a change that is late. No other change follows that would conflict with it."""
        node = self._rng.choice(self._cluster.nodes)
        node.faults.rate, node.faults.fates = 1, ["late"]
        await self._administer(node, self._rng)
        node.faults.fates = NETWORK_FATES

    async def _send_hits(self, rng: random.Random) -> None:
        for _ in range(10):
            node, user = rng.choice(self._cluster.nodes), rng.choice([None, *USERS])
            amounts = {event: rng.randint(1, 9) for event in rng.sample([*EVENTS, *IMPORTED], rng.choice([1, 1, 2]))}
            hits = Hits(amounts=amounts, user=user)
            visits = [Visit(event, by, user, None) for event, by in amounts.items()] if user else []
            outcome = await self._ledger.send(hits, node.respond(node.committer.submit(amounts, None, visits)))
            if outcome:
                hits.day = day_start(CALENDAR.zone, date.fromisoformat(outcome.date))
                hits.is_spooled = outcome.ack == "spooled"

    async def _send_changes(self, rng: random.Random) -> None:
        for _ in range(4):
            await self._administer(rng.choice(self._cluster.nodes), rng)

    async def _administer(self, node: Node, rng: random.Random) -> None:
        """Send a change. Some administrators disconnect before they get a response."""
        patience = rng.choice([None, None, None, rng.uniform(0, 0.005)])
        if rng.random() < 0.2:
            user = rng.choice(USERS)
            response = node.respond(node.committer.apply_change(_erasing(node.store, user)), patience)
            await self._ledger.send(Erasure(user=user), response)
        else:
            change = Change()
            plan = self._correcting(node.store, change, rng)
            response = node.respond(node.committer.apply_change(plan), patience)
            change.acknowledged = await self._ledger.send(change, response)

    def _correcting(self, store: CounterStore, change: Change, rng: random.Random) -> Plan:
        """Return the plan of a random change. Its records are added to the change."""
        action, at = rng.choice(["correct", "correct", "correct", "delete", "reset"]), next(self._times)
        event = rng.choice(EVENTS if action == "delete" else [*EVENTS, *IMPORTED])
        count, total = rng.choice([(rng.randint(0, 99), None), (None, rng.randint(0, 99)), (rng.randint(0, 99), 100)])

        async def plan(slot: TimeSlot) -> tuple[DayChange, CorrectionRecord]:
            if action == "correct":
                planned = await corrections.correct(store, slot, at, event, count, total, LIMITS.names)
            elif action == "delete":
                planned = await corrections.delete(store, slot, at, event)
            else:
                planned = await corrections.reset(store, slot, at)
            change.planned.append(planned[1])
            return planned

        return plan

    async def _import(self, rng: random.Random) -> None:
        """Import a file, again and again until it is complete."""
        slot = CALENDAR.slot(self._clock.now)
        lines = [line for bucket in (TOTAL, *slot.buckets[:3]) for line in encode_counts(bucket, IMPORTED)]
        file = b"".join([encode_head(CALENDAR.zone.key), *lines, encode_end(1 + len(lines))])
        is_complete = False
        while not is_complete:
            node = rng.choice(self._cluster.nodes)
            try:
                for line in read_lines(io.BytesIO(file), node.clock):
                    await node.respond(import_line(node.store, node.clock, line))
                is_complete = True
            except (StoreError, NoResponse):
                await asyncio.sleep(0.005)
        self._ledger.imported.update({(slot.day, event): by for event, by in IMPORTED.items()})

    async def _disturb(self, rng: random.Random) -> None:
        for _ in range(8):
            await asyncio.sleep(rng.uniform(0, 0.03))
            what = rng.choice(["crash", "late", "recover"])
            if what == "crash":
                await self._cluster.crash()
            elif what == "late":
                await self._cluster.execute_late(3)
            else:
                await self._cluster.recover_orphans()


def _erasing(store: CounterStore, user: str) -> Plan:
    return lambda slot: corrections.erase(store, slot, user)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch, patience: None) -> None:
    """Reconnect soon. When a round is over, wait for Redis as long as a busy machine needs."""
    monkeypatch.setattr(offline, "RETRY_SECONDS", 0.01)


async def run(
    number: int,
    make: Callable[[random.Random, FixedClock], Node],
    monkeypatch: pytest.MonkeyPatch,
    url: str = "",
    flush: Callable[[], None] = lambda: None,
) -> None:
    """Run so many episodes, on the Redis with this URL or in one process."""

    async def episode(rng: random.Random) -> None:
        flush()
        await Episode(lambda clock: make(rng, clock), rng, url).run(monkeypatch)

    await run_episodes(number, episode)


def local_node(store: UnreliableMemory | UnreliableSqlite, rng: random.Random, clock: FixedClock) -> Node:
    store.faults = Faults(random.Random(rng.random()), LOCAL_FATES)
    return Node(store, store.faults, clock)


@pytest.mark.fails_on_mutant(
    "a retry is applied again", "app/stores/memory.py", "if is_retry(offset, expected_offset, new_offset):", "if False:"
)
async def test_changes_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(rng: random.Random, clock: FixedClock) -> Node:
        return local_node(UnreliableMemory(LIMITS), rng, clock)

    await run(5, make, monkeypatch)


@pytest.mark.fails_on_mutant(
    "a retry is applied again",
    "app/stores/sqlite_writer.py",
    "ACK) if is_retry(offset, expected_offset, new_offset) else None",
    "ACK) if False else None",
)
@pytest.mark.fails_on_mutant(
    "a change ignores the redo log",
    "app/stores/sqlite_writer.py",
    "        collections.deque(self.events.flush(), 0)\n        return self._commit(source, new_offset, ()",
    "        return self._commit(source, new_offset, ()",
)
async def test_changes_in_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(rng: random.Random, clock: FixedClock) -> Node:
        return local_node(UnreliableSqlite(tmp_path / uuid.uuid4().hex, LIMITS), rng, clock)

    await run(3, make, monkeypatch)


@pytest.mark.fails_on_mutant(
    "a late change is applied", "app/stores/lua/write.lua", "if deadline and not now.err", "if false and not now.err"
)
@pytest.mark.fails_on_mutant(
    "changes of two nodes overlap",
    "app/stores/lua/write.lua",
    "if expected_corrections and redis.call",
    "if false and redis.call",
)
async def test_changes_on_one_redis(redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(rng: random.Random, clock: FixedClock) -> Node:
        return redis_node(redis_server.url, tmp_path, rng, clock)

    await run(3, make, monkeypatch, redis_server.url, redis_server.flush)


@pytest.mark.fails_on_mutant(
    "a change that was cut between shards is not completed",
    "app/stores/redis_sharded.py",
    "saved = None if change.may_be_late else unfinished",
    "saved = None",
)
async def test_changes_on_shards(
    redis_cluster: redis_servers.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = redis_cluster.url.replace("shards=16", "shards=3")

    def make(rng: random.Random, clock: FixedClock) -> Node:
        return redis_node(url, tmp_path, rng, clock)

    await run(3, make, monkeypatch, url, redis_cluster.flush)
