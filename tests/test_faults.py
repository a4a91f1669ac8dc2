"""A network that fails between a node and its Redis, and a Redis that goes away under load.

TALLY_TEST_CUTS chooses how many of Redis' answers are lost, TALLY_TEST_RATE how many hits a second are offered while
Redis is away. `pytest -rP` shows the figures.
"""

import asyncio
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Process, eventually
from fault_proxy import Fault, FaultProxy, Kind
from load import Load, Offer, assert_exact, assert_right, read_all
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis_servers import RedisServer

CUTS = int(os.environ.get("TALLY_TEST_CUTS", "500"))
RATE = int(os.environ.get("TALLY_TEST_RATE", "2000"))
CONNECTIONS = 100
AWAY_SECONDS = 5
REST_SECONDS = 0.02  # so that the clients leave the node some of the machine to find Redis again
WAIT_SECONDS_MAX = 2.5  # the promise
GROWTH_KB_MAX = 50_000  # likewise
UNLIMITED = {"TALLY_WRITE_LIMIT": "100000/second", "TALLY_READ_LIMIT": "100000/second"}
AOF = ("--appendonly", "yes", "--appendfsync", "always")


@dataclass
class Scene:
    """A node under load, with a proxy between it and Redis."""

    proxy: FaultProxy
    app: Process
    load: Load
    running: asyncio.Task[None]

    async def come_to(self, done: Callable[[], bool]) -> None:
        await eventually(lambda: self.running.done() or done(), 60 + CUTS)

    async def strike(self, kind: Kind, times: int) -> Fault:
        """Let the fault strike so often; once more each time that Redis was found again, and now and then twice."""
        fault = self.proxy.strike(kind, left=1)

        def again(ack: str, sent: float) -> None:
            if ack == "redis" and sent > fault.chosen_at:
                fault.left = 1 if random.random() < 0.99 else 2

        self.load.on_ack = again
        await self.come_to(lambda: fault.struck >= times)
        return fault

    async def end(self) -> dict[str, int]:
        """Let the network be as it should, and after some more hits read everything."""
        self.proxy.strike("pass")
        enough = self.load.acks["redis"] + 200
        await self.come_to(lambda: self.load.acks["redis"] >= enough)
        self.load.stop.set()
        await self.running
        await healthy(self.app)
        return await read_all(self.load, self.app)


@pytest.fixture
async def scene(process, redis_server: RedisServer) -> AsyncIterator[Scene]:
    async with FaultProxy(redis_server.socket) as proxy:
        app = await asyncio.to_thread(process, TALLY_STORE=proxy.url, **UNLIMITED)
        load = Load(app.url, REST_SECONDS)
        async with at_once(load.run()) as running:
            yield Scene(proxy, app, load, running)


@asynccontextmanager
async def at_once(work: Coroutine[None, None, None]) -> AsyncIterator[asyncio.Task[None]]:
    """Run it beside the block, and let it not outlive a block that fails."""
    running = asyncio.create_task(work)
    try:
        yield running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def healthy(app: Process) -> None:
    async def ok() -> bool:
        return (await asyncio.to_thread(app.get, "/health"))["status"] == "ok"

    await eventually(ok)


def in_redis(server: RedisServer) -> dict[str, int]:
    """Today's counts as they stand in Redis, whoever put them there."""
    counts: Counter[str] = Counter()
    with server.client() as client:
        for key in client.scan_iter("tally:*"):
            if re.search(r"\}:day:\d+$", key):
                counts.update({event: int(count) for event, count in client.hgetall(key).items()})
    del counts[""]  # all of them together
    return dict(counts)


@pytest.mark.parametrize(
    ("kind", "error", "counted", "counted_late"),
    [
        ("cut before", "closed by server", 0, 0),
        ("reset", "reset by peer", 0, 0),
        ("cut after", "closed by server", 1, 1),
        ("slow", "Timeout", 1, 1),
        ("freeze", "Timeout", 0, 1),
    ],
)
async def test_a_fault_is_what_it_says(
    kind: Kind, error: str, counted: int, counted_late: int, redis_server: RedisServer
) -> None:
    async with (
        FaultProxy(redis_server.socket) as proxy,
        Redis(port=proxy.port, socket_timeout=0.5, retry=Retry(NoBackoff(), 0)) as client,
        Redis(unix_socket_path=str(redis_server.socket), decode_responses=True) as beside,
    ):
        fault = proxy.strike(kind, holding=b"INCR", seconds=1 if kind == "slow" else 0)
        with pytest.raises(RedisError, match=error):
            await client.incr("plain")
        assert (await beside.get("plain"), fault.struck) == ("1" if counted else None, 1)
        proxy.strike("pass")
        await client.ping()

        async def late() -> bool:
            return await beside.get("plain") == ("1" if counted_late else None)

        await eventually(late)


async def count_plainly(proxy: FaultProxy, asked: int) -> tuple[int, int]:
    """What redis-py as it comes makes of so many INCRs when a third of the answers is lost, and how many were lost."""
    fault = proxy.strike("cut after", holding=b"INCR", chance=1 / 3)
    async with Redis(port=proxy.port) as plain:
        for _ in range(asked):
            await plain.incr("plain")
        return int(await plain.getdel("plain")), fault.struck


@pytest.mark.catches(
    "adds without looking where the source stands",
    "app/stores/stand.lua",
    """if offset == next_offset then
  return {'counted', redis.call('HGET', KEYS[1], 'answers')}
elseif not asked and tonumber(offset) ~= tonumber(ARGV[2]) then
  return {'moved', offset}
end
""",
    "",
)
@pytest.mark.timeout(60 + CUTS)
async def test_hits_are_counted_once_although_redis_answers_are_lost(scene: Scene, redis_server: RedisServer) -> None:
    fault = await scene.strike("cut after", CUTS)
    values = await scene.end()
    told(scene, fault)
    assert_exact(scene.load, values)
    assert_right(scene.load.stale)
    assert scene.load.problems == []
    assert in_redis(redis_server) == values
    # The same proxy makes a client that retries by itself count once more for each answer that was lost.
    counted, lost = await count_plainly(scene.proxy, 30)
    assert counted == 30 + lost > 30


@pytest.mark.parametrize(
    ("kind", "times"),
    [
        pytest.param(
            "cut before",
            50,
            marks=pytest.mark.catches(
                "acknowledged and not spooled",
                "app/stores/spool.py",
                "await asyncio.to_thread(self._files[-1].append, line)",
                "pass",
            ),
        ),
        pytest.param(
            "reset",
            50,
            marks=pytest.mark.catches(
                "the way back drops what it should send",
                "app/stores/spool.py",
                "await self._send_spooled(lines[applied])",
                "pass",
            ),
        ),
        pytest.param(
            "freeze",
            2,
            marks=pytest.mark.catches(
                "what comes late is added all the same",
                "app/stores/stand.lua",
                "elseif not asked and tonumber(offset) ~= tonumber(ARGV[2]) then",
                "elseif false then",
            ),
        ),
    ],
)
async def test_hits_are_counted_once_on_a_network_that_fails(
    kind: Kind, times: int, scene: Scene, redis_server: RedisServer
) -> None:
    fault = await scene.strike(kind, times)
    values = await scene.end()
    told(scene, fault)
    assert_exact(scene.load, values)
    assert scene.load.problems == []
    assert in_redis(redis_server) == values


@pytest.mark.catches("a commit for every hit", "app/recorder.py", "BATCH_EVENTS_MAX = 10_000", "BATCH_EVENTS_MAX = 1")
async def test_a_slow_redis_costs_one_wait_for_many_hits(scene: Scene, redis_server: RedisServer) -> None:
    fault = scene.proxy.strike("slow", seconds=0.05)
    before = scene.load.acknowledged
    await scene.come_to(lambda: fault.struck >= 50)
    assert scene.load.acknowledged - before > 3 * 50
    values = await scene.end()
    told(scene, fault)
    assert_exact(scene.load, values)
    assert scene.load.problems == []
    assert in_redis(redis_server) == values


@pytest.mark.catches(
    "a read during a commit is believed",
    "app/stores/spool.py",
    "if self._away_since is None and self._gate.locked():",
    "if False:",
)
async def test_a_hit_whose_answer_is_lost_is_not_shown_twice(process, redis_server: RedisServer) -> None:
    async with FaultProxy(redis_server.socket) as proxy:
        app: Process = await asyncio.to_thread(process, TALLY_STORE=proxy.url)
        assert (await asyncio.to_thread(app.post, "/event/a"))["count"] == 1
        fault = proxy.strike("cut after", left=1, seconds=1)  # Redis has counted; a second later its answer is lost
        posting = asyncio.create_task(asyncio.to_thread(app.post, "/event/a"))
        await eventually(lambda: fault.struck)
        assert (await asyncio.to_thread(app.get, "/event/a"))["count"] in {1, 2}
        answer = await posting
        assert (answer["ack"], answer["count"]) == ("spooled", 2)


@pytest.mark.catches(
    "a pause after each lost answer", "app/stores/spool.py", "if self._drained > drained:", "if False:"
)
async def test_the_way_back_is_found_although_one_answer_in_ten_is_lost(
    scene: Scene, redis_server: RedisServer
) -> None:
    scene.proxy.strike("cut after", holding=b"EVALSHA", chance=0.1)
    acked = scene.load.acks
    for _ in range(10):  # again and again it is back at Redis itself
        before = acked["redis"]
        await scene.come_to(lambda before=before: acked["redis"] > before + 20)
    values = await scene.end()
    assert_exact(scene.load, values)
    assert in_redis(redis_server) == values


def told(scene: Scene, fault: Fault) -> None:
    history, stale = scene.load.history, scene.load.stale
    print(  # noqa: T201 # for pytest -rP
        f"{fault.kind} {fault.struck} times; hits {dict(scene.load.acks)}, unknown {history.total('unknown')};"
        f" reads {len(history.reads)}, stale {len(stale.reads)}, of these wrong {len(stale.wrong_reads())}"
    )


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(
            "frozen",
            marks=pytest.mark.catches(
                "waits as long as it takes", "app/stores/redis.py", "ANSWER_SECONDS = ", "ANSWER_SECONDS = 100 * "
            ),
        ),
        pytest.param(
            "killed",
            marks=pytest.mark.catches(
                "drops more of the spool than it has applied",
                "app/stores/spool.py",
                "files[0].drop, lines[:applied])",
                "files[0].drop, lines)",
            ),
        ),
    ],
)
async def test_an_outage_under_load_costs_no_hit_and_no_long_wait(how: str, process, own_redis: RedisServer) -> None:
    own_redis.start(*AOF)
    app = process(TALLY_STORE=own_redis.url, **UNLIMITED)
    offer = Offer(app.url, [f"event{i}" for i in range(10)], RATE, CONNECTIONS)
    async with at_once(offer.run()) as running:
        begun = time.monotonic()
        await eventually(lambda: running.done() or offer.answered >= RATE)
        reached, resident = offer.answered / (time.monotonic() - begun), memory_kb(app, "VmRSS")
        await (freeze if how == "frozen" else kill)(own_redis)
        back, meanwhile = time.monotonic(), offer.answered
        await healthy(app)
        found_seconds = time.monotonic() - back
        offer.stop.set()
        await running
    values = await asyncio.to_thread(app.get, "/events")
    exact_seconds = time.monotonic() - back
    growth = memory_kb(app, "VmHWM") - resident
    print(  # noqa: T201 # for pytest -rP
        f"{how} for {AWAY_SECONDS} s at {RATE} hits/s ({reached:.0f} answered before) over {CONNECTIONS} connections:"
        f" {dict(offer.outcomes)}, {meanwhile} of them before Redis was back; acks {dict(offer.acks)};"
        f" longest wait {offer.longest_seconds:.2f} s; memory +{growth / 1000:.1f} MB;"
        f" Redis found again {found_seconds:.2f} s after, all read {exact_seconds:.2f} s after"
    )
    assert values == offer.counts
    assert in_redis(own_redis) == offer.counts
    assert offer.outcomes["unknown"] == 0
    assert offer.longest_seconds < WAIT_SECONDS_MAX
    assert growth < GROWTH_KB_MAX


async def freeze(server: RedisServer) -> None:
    os.kill(server.process.pid, signal.SIGSTOP)
    await asyncio.sleep(AWAY_SECONDS)  # this is the outage, and not a wait for something
    os.kill(server.process.pid, signal.SIGCONT)


async def kill(server: RedisServer) -> None:
    server.stop()
    await asyncio.sleep(AWAY_SECONDS)  # likewise
    await asyncio.to_thread(server.start, *AOF)


def memory_kb(app: Process, what: str) -> int:
    return int(re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{app.pid}/status").read_text())[1])
