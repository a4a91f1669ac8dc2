"""Concurrent reads of Redis share round trips, and none of them harms another."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from app.domain.buckets import TOTAL, Bucket
from app.domain.counting import HitGroup
from app.stores.base import StoreUnavailable
from app.stores.shared_reads import SharedReads
from tests.stores.offline_stores import NOON, redis_store
from tests.support.redis_servers import RedisServer
from tests.support.servers import eventually

DAY = Bucket("day", NOON.day)
PATIENT = 60.0  # seconds; longer than any of these tests may take


class Fetches:
    """Round trips that wait until a test ends them. `started` has the buckets and members of each."""

    def __init__(self, reads_max: int = 100, timeout_seconds: float = PATIENT) -> None:
        self.started: list[Mapping[Bucket, Sequence[str]]] = []
        self._endings: list[asyncio.Future[int]] = []
        self.reads = SharedReads(self._fetch, reads_max, timeout_seconds)

    async def _fetch(self, requested: Mapping[Bucket, Sequence[str]]) -> list[dict[str, int]]:
        self.started.append(requested)
        self._endings.append(asyncio.get_running_loop().create_future())
        count = await self._endings[-1]
        return [dict.fromkeys(members, count) for members in requested.values()]

    def read(self, *members: str) -> asyncio.Task[list[dict[str, int]]]:
        return asyncio.create_task(self.reads.read([TOTAL], members))

    async def wait_for_start(self, number: int) -> None:
        await eventually(lambda: len(self.started) == number)

    def end(self, count: int) -> None:
        """End the latest round trip: each member has this count."""
        self._endings[-1].set_result(count)

    def fail(self, error: Exception) -> None:
        self._endings[-1].set_exception(error)


@pytest.mark.fails_on_mutant(
    "each read has a round trip of its own",
    "app/stores/shared_reads.py",
    "len(reads) < self._reads_max",
    "len(reads) < 1",
)
async def test_reads_that_arrive_during_a_round_trip_share_the_next_one() -> None:
    fetches = Fetches()
    first = fetches.read("a")
    await fetches.wait_for_start(1)
    others = [fetches.read("a", "b"), fetches.read("b", "c"), fetches.read("a")]
    await asyncio.sleep(0)
    fetches.end(1)
    await fetches.wait_for_start(2)
    fetches.end(2)
    assert await first == [{"a": 1}]
    # A read sees everything that was written before it began.
    assert await asyncio.gather(*others) == [[{"a": 2, "b": 2}], [{"b": 2, "c": 2}], [{"a": 2}]]
    assert fetches.started == [{TOTAL: ["a"]}, {TOTAL: ["a", "b", "c"]}]


@pytest.mark.fails_on_mutant(
    "a round trip of any size", "app/stores/shared_reads.py", "len(reads) < self._reads_max", "True"
)
async def test_a_round_trip_has_a_limited_number_of_reads() -> None:
    fetches = Fetches(reads_max=2)
    reads = [fetches.read(member) for member in "abcde"]
    for number in (1, 2, 3):
        await fetches.wait_for_start(number)
        fetches.end(number)
    assert await asyncio.gather(*reads) == [[{member: n}] for member, n in zip("abcde", (1, 1, 2, 2, 3), strict=True)]


@pytest.mark.fails_on_mutant(
    "the first error ends all reads",
    "app/stores/shared_reads.py",
    "                _fail(reads, error)\n",
    "                _fail([*reads, *self._waiting], error)\n",
)
async def test_a_round_trip_that_fails_fails_only_its_own_reads() -> None:
    fetches = Fetches()
    failing = [fetches.read("a"), fetches.read("b")]
    await fetches.wait_for_start(1)
    waiting = fetches.read("a")
    await asyncio.sleep(0)
    fetches.fail(StoreUnavailable("gone"))
    await fetches.wait_for_start(2)
    fetches.end(2)
    assert await waiting == [{"a": 2}]
    errors = await asyncio.gather(*failing, return_exceptions=True)
    assert [str(error) for error in errors] == ["gone", "gone"]


@pytest.mark.fails_on_mutant(
    "a cancelled read ends the others",
    "app/stores/shared_reads.py",
    "        if not counts.done():\n            counts.set_result",
    "        if True:\n            counts.set_result",
)
@pytest.mark.fails_on_mutant(
    "a cancelled read ends the others that fail",
    "app/stores/shared_reads.py",
    "        if not read.counts.done():\n            read.counts.set_exception",
    "        if True:\n            read.counts.set_exception",
)
async def test_a_cancelled_read_affects_no_other_read() -> None:
    fetches = Fetches()
    cancelled, failing = fetches.read("a"), fetches.read("b")
    await fetches.wait_for_start(1)
    also_cancelled, dropped, waiting = fetches.read("a"), fetches.read("x"), fetches.read("b")
    await asyncio.sleep(0)
    cancelled.cancel()
    dropped.cancel()
    await asyncio.sleep(0)
    fetches.fail(StoreUnavailable("gone"))
    await fetches.wait_for_start(2)
    assert fetches.started[1] == {TOTAL: ["a", "b"]}  # nobody waits for x
    also_cancelled.cancel()
    await asyncio.sleep(0)
    fetches.end(2)
    assert await waiting == [{"b": 2}]
    results = await asyncio.gather(cancelled, dropped, also_cancelled, failing, return_exceptions=True)
    assert list(map(type, results)) == [*([asyncio.CancelledError] * 3), StoreUnavailable]


@pytest.mark.fails_on_mutant(
    "a read waits for as long as its round trip",
    "app/stores/shared_reads.py",
    "loop.call_later(self._timeout_seconds,",
    "loop.call_later(1000,",
)
async def test_a_read_has_a_time_out_of_its_own_and_later_reads_go_on() -> None:
    fetches = Fetches(timeout_seconds=0.05)
    reads = [fetches.read("a")]
    await fetches.wait_for_start(1)
    reads.append(fetches.read("b"))
    errors = await asyncio.gather(*reads, return_exceptions=True)
    assert [str(error) for error in errors] == ["Redis did not reply in time"] * 2
    fetches.fail(StoreUnavailable("gone"))
    fetches.reads._timeout_seconds = PATIENT
    again = fetches.read("c")
    await fetches.wait_for_start(2)
    fetches.end(2)
    assert await again == [{"c": 2}]


async def test_concurrent_reads_of_a_server_need_few_commands(redis_server: RedisServer) -> None:
    store = redis_store(redis_server)
    names = [f"event {i}" for i in range(50)]
    await store.apply("s", 0, 1, [HitGroup(NOON, {name: i for i, name in enumerate(names, 1)})])
    with redis_server.client() as client:
        client.config_resetstat()
        found = await asyncio.gather(*(store.read([*NOON.day_buckets, TOTAL], [name, "never"]) for name in names))
        calls = client.info("commandstats")["cmdstat_hmget"]["calls"]
    assert found == [[{name: i}, {}, {name: i}] for i, name in enumerate(names, 1)]
    assert calls == 5  # the generation before and after, and each of the buckets
    await store.close()


@pytest.mark.fails_on_mutant(
    "large reads are shared",
    "app/stores/redis_reads.py",
    "if len(buckets) * len(members) <= SHARED_READ_FIELDS_MAX:",
    "if True:",
)
async def test_a_large_read_does_not_delay_small_ones(redis_server: RedisServer) -> None:
    store = redis_store(redis_server)
    await store.apply("s", 0, 1, [HitGroup(NOON, {"a": 1})])
    store._shared_reads = Fetches().reads  # round trips that never end
    assert await store.read([DAY], ["a", *map(str, range(100))]) == [{"a": 1}]
    await store.close()
