"""Hits are counted exactly once on a faulty network between a node and Redis, and while Redis is down."""

import asyncio
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from tests.support.fault_proxy import FaultProxy, Kind
from tests.support.redis_servers import RedisServer
from tests.support.scenarios.network import network_faults, redis_offline, scene
from tests.support.servers import Process, eventually


@pytest.mark.parametrize(
    ("kind", "error", "counted", "counted_later"),
    [
        ("cut before", "closed by server", 0, 0),
        ("reset", "reset by peer", 0, 0),
        ("cut after", "closed by server", 1, 1),
        ("slow", "Timeout", 1, 1),
        ("freeze", "Timeout", 0, 1),
    ],
)
async def test_the_fault_proxy_injects_each_kind_of_fault(
    kind: Kind, error: str, counted: int, counted_later: int, redis_server: RedisServer
) -> None:
    async with (
        FaultProxy(redis_server.socket) as proxy,
        Redis(port=proxy.port, socket_timeout=0.5, retry=Retry(NoBackoff(), 0)) as client,
        Redis(unix_socket_path=str(redis_server.socket), decode_responses=True) as direct_client,
    ):
        fault = proxy.inject(kind, matching=b"INCR", seconds=1 if kind == "slow" else 0)
        with pytest.raises(RedisError, match=error):
            await client.incr("plain")
        assert (await direct_client.get("plain"), fault.injected) == ("1" if counted else None, 1)
        proxy.inject("pass")
        await client.ping()

        async def is_counted_later() -> bool:
            return await direct_client.get("plain") == ("1" if counted_later else None)

        await eventually(is_counted_later)


async def incr_with_retries(proxy: FaultProxy, times: int) -> tuple[int, int]:
    """INCR with redis-py's default retries while a third of the responses is lost.

    Returns the count in Redis and the number of lost responses.
    """
    fault = proxy.inject("cut after", matching=b"INCR", probability=1 / 3)
    async with Redis(port=proxy.port) as client:
        for _ in range(times):
            await client.incr("plain")
        return int(await client.getdel("plain")), fault.injected


@pytest.mark.fails_on_mutant(
    "applies a commit without comparing offsets",
    "app/stores/lua/offset.lua",
    """if offset == new_offset then
  return {'applied', redis.call('HGET', KEYS[1], 'answers')}
elseif not preparing and (tonumber(offset) ~= tonumber(ARGV[2]) or tonumber(new_offset) < tonumber(offset)) then
  return {'mismatch', offset}
end
""",
    "",
)
async def test_hits_are_counted_once_although_responses_of_redis_are_lost(tmp_path: Path) -> None:
    assert (await network_faults(tmp_path, "cut after", 200)).violations == []


async def test_a_client_with_plain_retries_counts_twice_on_the_same_network(redis_server: RedisServer) -> None:
    async with FaultProxy(redis_server.socket) as proxy:
        counted, lost = await incr_with_retries(proxy, 30)
    assert counted == 30 + lost > 30


@pytest.mark.parametrize(
    ("kind", "times"),
    [
        pytest.param(
            "cut before",
            50,
            marks=pytest.mark.fails_on_mutant(
                "acknowledged but not spooled",
                "app/stores/spool_file.py",
                "await asyncio.to_thread(self.files[-1].append, line)",
                "pass",
            ),
        ),
        pytest.param(
            "reset",
            50,
            marks=pytest.mark.fails_on_mutant(
                "replay drops spooled commits",
                "app/stores/replay.py",
                "await self._replay_line(lines[replayed])",
                "pass",
            ),
        ),
        pytest.param(
            "freeze",
            2,
            marks=pytest.mark.fails_on_mutant(
                "a delayed commit is applied again",
                "app/stores/lua/offset.lua",
                "elseif not preparing and (tonumber(offset) ~= tonumber(ARGV[2]) or",
                "elseif false and (true or",
            ),
        ),
    ],
)
async def test_hits_are_counted_once_on_a_faulty_network(kind: Kind, times: int, tmp_path: Path) -> None:
    assert (await network_faults(tmp_path, kind, times)).violations == []


@pytest.mark.fails_on_mutant(
    "a commit for each hit", "app/pending_commit.py", "COMMIT_WEIGHT_MAX = 10_000", "COMMIT_WEIGHT_MAX = 1"
)
async def test_many_hits_share_one_round_trip_to_a_slow_redis(tmp_path: Path) -> None:
    async with scene(tmp_path) as current:
        fault = current.proxy.inject("slow", seconds=0.05)
        before = current.load.acknowledged
        await current.wait_until(lambda: fault.injected >= 50)
        assert current.load.acknowledged - before > 3 * 50
        assert (await current.end()).violations == []


@pytest.mark.fails_on_mutant(
    "a read during a commit is trusted",
    "app/stores/offline.py",
    "commit_in_flight=self._commit_lock.locked()",
    "commit_in_flight=False",
)
async def test_a_hit_whose_response_is_lost_is_not_shown_twice(process, redis_server: RedisServer) -> None:
    async with FaultProxy(redis_server.socket) as proxy:
        app: Process = await asyncio.to_thread(process, TALLY_STORE=proxy.url)
        assert (await asyncio.to_thread(app.post, "/event/a"))["count"] == 1
        # Redis counts the hit, and its response is lost a second later.
        fault = proxy.inject("cut after", remaining=1, seconds=1)
        second_hit = asyncio.create_task(asyncio.to_thread(app.post, "/event/a"))
        await eventually(lambda: fault.injected)
        assert (await asyncio.to_thread(app.get, "/event/a"))["count"] in {1, 2}
        response = await second_hit
        assert (response["ack"], response["count"]) == ("spooled", 2)


@pytest.mark.parametrize(
    "outage",
    [
        pytest.param(
            "frozen",
            marks=pytest.mark.fails_on_mutant(
                "commands to Redis have no time-out",
                "app/stores/redis_url.py",
                "COMMAND_TIMEOUT_SECONDS = ",
                "COMMAND_TIMEOUT_SECONDS = 100 * ",
            ),
        ),
        pytest.param(
            "killed",
            marks=pytest.mark.fails_on_mutant(
                "drops more spooled commits than it has applied",
                "app/stores/replay.py",
                "files[0].drop, lines[:replayed])",
                "files[0].drop, lines)",
            ),
        ),
    ],
)
async def test_an_outage_under_load_loses_no_hit_and_delays_none_for_long(outage: str, tmp_path: Path) -> None:
    assert (await redis_offline(tmp_path, outage, rate=1500, seconds=3)).violations == []
