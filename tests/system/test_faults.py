"""A network that fails between a node and its Redis, and a Redis that goes away under load."""

import asyncio
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from tests.support.fault_proxy import FaultProxy, Kind
from tests.support.redis_servers import RedisServer
from tests.support.scenarios.network import network_fails, redis_away, scene
from tests.support.servers import Process, eventually


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
    "app/stores/lua/offset.lua",
    """if offset == new_offset then
  return {'applied', redis.call('HGET', KEYS[1], 'answers')}
elseif not preparing and tonumber(offset) ~= tonumber(ARGV[2]) then
  return {'mismatch', offset}
end
""",
    "",
)
async def test_hits_are_counted_once_although_redis_answers_are_lost(tmp_path: Path) -> None:
    assert (await network_fails(tmp_path, "cut after", 200)).broken == []


async def test_the_same_network_makes_a_client_that_retries_by_itself_count_twice(redis_server: RedisServer) -> None:
    async with FaultProxy(redis_server.socket) as proxy:
        counted, lost = await count_plainly(proxy, 30)
    assert counted == 30 + lost > 30


@pytest.mark.parametrize(
    ("kind", "times"),
    [
        pytest.param(
            "cut before",
            50,
            marks=pytest.mark.catches(
                "acknowledged and not spooled",
                "app/stores/spool_file.py",
                "await asyncio.to_thread(self.files[-1].append, line)",
                "pass",
            ),
        ),
        pytest.param(
            "reset",
            50,
            marks=pytest.mark.catches(
                "the way back drops what it should send",
                "app/stores/offline.py",
                "await self._replay_line(lines[replayed])",
                "pass",
            ),
        ),
        pytest.param(
            "freeze",
            2,
            marks=pytest.mark.catches(
                "what comes late is added all the same",
                "app/stores/lua/offset.lua",
                "elseif not preparing and tonumber(offset) ~= tonumber(ARGV[2]) then",
                "elseif false then",
            ),
        ),
    ],
)
async def test_hits_are_counted_once_on_a_network_that_fails(kind: Kind, times: int, tmp_path: Path) -> None:
    assert (await network_fails(tmp_path, kind, times)).broken == []


@pytest.mark.catches(
    "a commit for every hit", "app/group_commit.py", "COMMIT_EVENTS_MAX = 10_000", "COMMIT_EVENTS_MAX = 1"
)
async def test_a_slow_redis_costs_one_wait_for_many_hits(tmp_path: Path) -> None:
    async with scene(tmp_path) as now:
        fault = now.proxy.strike("slow", seconds=0.05)
        before = now.load.acknowledged
        await now.come_to(lambda: fault.struck >= 50)
        assert now.load.acknowledged - before > 3 * 50
        assert (await now.end()).broken == []


@pytest.mark.catches(
    "a read during a commit is believed",
    "app/stores/offline.py",
    "commit_in_flight=self._gate.locked()",
    "commit_in_flight=False",
)
async def test_a_hit_whose_answer_is_lost_is_not_shown_twice(process, redis_server: RedisServer) -> None:
    async with FaultProxy(redis_server.socket) as proxy:
        app: Process = await asyncio.to_thread(process, TALLY_STORE=proxy.url)
        assert (await asyncio.to_thread(app.post, "/event/a"))["count"] == 1
        fault = proxy.strike("cut after", left=1, seconds=1)  # Redis has counted; a second later its answer is lost
        group = asyncio.create_task(asyncio.to_thread(app.post, "/event/a"))
        await eventually(lambda: fault.struck)
        assert (await asyncio.to_thread(app.get, "/event/a"))["count"] in {1, 2}
        answer = await group
        assert (answer["ack"], answer["count"]) == ("spooled", 2)


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(
            "frozen",
            marks=pytest.mark.catches(
                "waits as long as it takes",
                "app/stores/redis_url.py",
                "COMMAND_TIMEOUT_SECONDS = ",
                "COMMAND_TIMEOUT_SECONDS = 100 * ",
            ),
        ),
        pytest.param(
            "killed",
            marks=pytest.mark.catches(
                "drops more of the spool than it has applied",
                "app/stores/offline.py",
                "files[0].drop, lines[:replayed])",
                "files[0].drop, lines)",
            ),
        ),
    ],
)
async def test_an_outage_under_load_costs_no_hit_and_no_long_wait(how: str, tmp_path: Path) -> None:
    assert (await redis_away(tmp_path, how, rate=1500, seconds=3)).broken == []
