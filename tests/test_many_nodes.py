"""Several nodes on one Redis, whichever kind that is: each of them and each of their pages shows the same numbers."""

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from pathlib import Path

import httpx
from conftest import ChosenClock, GuardedRedis, RedisServer, eventually, serving
from watchers import watching

from app.settings import Settings

LIMITS = {"write_limit": "100000/second", "read_limit": "100000/second"}
EVENTS = [f"e{i}" for i in range(20)]
SLOWEST, FASTEST = 0, 2  # the seconds by which clocks differ


def settings(url: str, directory: Path) -> Settings:
    return Settings(TALLY_STORE=url, spool=str(directory / "spool"), **LIMITS)


async def test_400_pages_on_two_nodes_end_on_the_same_numbers(process, redis_server: RedisServer) -> None:
    environment = {f"TALLY_{name}".upper(): value for name, value in LIMITS.items()}
    urls = [process(TALLY_STORE=redis_server.url, **environment).url for _ in range(2)]
    acknowledged: Counter[str] = Counter()
    todo = iter(range(240))

    async def write(client: httpx.AsyncClient) -> None:
        for i in todo:
            counts = {EVENTS[i % 7]: 1} | ({EVENTS[i % 20]: 3, EVENTS[i % 19]: 2} if i % 5 == 0 else {})
            answer = await client.post("/events", json=counts)
            assert answer.json()["ack"] == "redis"
            acknowledged.update(counts)

    async with contextlib.AsyncExitStack() as stack:
        pages = await stack.enter_async_context(watching(*urls, live=100, plain=100))
        nodes = [await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=20)) for url in urls]
        await asyncio.gather(*(write(node) for node in nodes for _ in range(4)))
        quiet = time.monotonic()
        await eventually(lambda: all(page.counts == acknowledged for page in pages))
        took = time.monotonic() - quiet
        print(f"{len(pages)} pages agreed {took:.2f} s after the last hit")  # noqa: T201 # pytest -rP shows it
        assert [page.wrong for page in pages if page.wrong] == []
        for node in nodes:
            assert (await node.get("/events")).json() == acknowledged


async def test_midnight_passes_under_load_on_nodes_whose_clocks_differ(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    clocks = [ChosenClock() for _ in range(3)]
    acknowledged: dict[str, Counter[str]] = {"2026-05-01": Counter(), "2026-05-02": Counter()}

    def go_to(instant: str) -> None:
        for clock, ahead in zip(clocks, (SLOWEST, 1, FASTEST), strict=True):
            clock.go_to(instant)
            clock.shift += ahead

    async def post(node: httpx.AsyncClient, event: str, by: int = 1) -> str:
        answer = (await node.post(f"/event/{event}", json={"by": by})).json()
        acknowledged[answer["day"]][event] += by
        return answer["day"]

    async def write_over_midnight(node: httpx.AsyncClient) -> None:
        of_new_day = 0
        for event in itertools.cycle(EVENTS[:5]):
            of_new_day += await post(node, event) == "2026-05-02"
            if of_new_day == 30:
                return

    go_to("2026-05-01T12:00:00+00:00")
    async with contextlib.AsyncExitStack() as stack:
        served = [
            await stack.enter_async_context(serving(settings(redis_server.url, tmp_path), clock)) for clock in clocks
        ]
        nodes = [await stack.enter_async_context(node.client()) for node in served]
        pages = await stack.enter_async_context(watching(*(node.url for node in served), live=4, plain=4))
        for event in EVENTS[:5]:  # so that every count of the old day is larger than any of the new one
            await post(nodes[0], event, by=1_000_000)
        await eventually(lambda: all(page.counts == acknowledged["2026-05-01"] for page in pages))
        go_to("2026-05-01T23:59:57.500+00:00")
        await asyncio.gather(*(write_over_midnight(node) for node in nodes for _ in range(2)))
        old, new = acknowledged.values()
        await eventually(lambda: all(page.counts == new for page in pages))
        for page in pages:
            assert page.resets == ["2026-05-02"]
            assert page.wrong == []  # as it would be with a count of the one day shown on the other
        closed = {"day": "2026-05-01", "hits": old.total(), "events": 5, "parts": 1}
        for node in nodes:
            assert (await node.get("/history")).json() == [closed]
            assert (await node.get("/history/2026-05-01")).json()["parts"][0]["counts"] == old
            assert (await node.get("/events")).json() == new
            totals = (await node.get("/leaderboard?window=total")).json()
            assert {line["eventName"]: line["count"] for line in totals} == old + new


async def test_a_redis_behind_tls_needs_to_let_its_user_do_only_what_tally_asks(
    tmp_path: Path, guarded_redis: GuardedRedis
) -> None:
    async with serving(settings(guarded_redis.url, tmp_path)) as tally, tally.client() as client:
        first = await client.post("/event/a", headers={"Idempotency-Key": "k"})
        again = await client.post("/event/a", headers={"Idempotency-Key": "k"})
        assert (first.json()["ack"], again.json()["count"], again.headers["Idempotency-Replayed"]) == (
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
