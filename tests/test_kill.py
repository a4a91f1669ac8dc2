"""kill -9 in the middle of a load: for every event, acknowledged <= value <= acknowledged + unknown."""

import asyncio
import random
from collections import Counter

import httpx
import pytest
from conftest import Process, RedisServer, eventually

EVENTS = [f"event{i}" for i in range(7)]
WRITERS = 16
ROUNDS = 5


class Load:
    """Writers that never retry, and what each of their hits came to."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.acknowledged: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()

    async def run(self, stop: asyncio.Event) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=20) as client:
            await asyncio.gather(*(self._write(client, stop) for _ in range(WRITERS)))

    async def _write(self, client: httpx.AsyncClient, stop: asyncio.Event) -> None:
        while not stop.is_set():
            event, by = random.choice(EVENTS), random.randint(1, 5)
            try:
                answer = await client.post(f"/event/{event}", json={"by": by})
            except httpx.ConnectError:
                return  # it never left this process
            except httpx.TransportError:
                self.unknown[event] += by
                return
            assert answer.status_code == 200, answer.text
            self.acknowledged[event] += by


async def kill_rounds(app: Process, seen: Counter[str]) -> Load:
    load = Load(app.url)
    for _ in range(ROUNDS):
        before = load.acknowledged.total()
        stop = asyncio.Event()
        running = asyncio.create_task(load.run(stop))
        target = before + random.randint(50, 300)
        await eventually(lambda target=target: load.acknowledged.total() >= target)
        app.kill()
        stop.set()
        await running
        await asyncio.to_thread(app.start)
        values = await asyncio.to_thread(app.get, "/events")
        for event in EVENTS:
            value, acknowledged = values.get(event, 0), load.acknowledged[event]
            assert acknowledged <= value <= acknowledged + load.unknown[event], event
            assert value >= seen[event]
            seen[event] = value
    return load


@pytest.mark.catches(
    "the answer before the commit",
    "app/recorder.py",
    "            applied = await self._apply(batch)\n",
    """            from app.stores.base import Value
            waiting = [{e: Value(0, 0) for e in p.counts} for p in batch.postings]
            for answer, sharing in zip(waiting, sharers, strict=True):
                _resolve(answer, sharing, moment.date, "disk")
            await asyncio.sleep(0.05)
            applied = await self._apply(batch)
""",
)
@pytest.mark.parametrize("store", ["sqlite", "redis"])
async def test_no_acknowledged_hit_is_lost_and_none_counts_twice(
    store: str, process, tmp_path, redis_server: RedisServer
):
    urls = {"sqlite": f"sqlite:///{tmp_path}/tally.db", "redis": redis_server.url}
    app = process(TALLY_STORE=urls[store], TALLY_WRITE_LIMIT="100000/second")
    seen: Counter[str] = Counter()
    load = await kill_rounds(app, seen)
    assert load.acknowledged.total() > 250
    hits = app.get("/series?step=day&points=1")["points"][0]["count"]
    assert hits == seen.total()


async def test_sigterm_under_load_answers_every_hit_that_it_counts(process, tmp_path) -> None:
    app = process(TALLY_STORE=f"sqlite:///{tmp_path}/tally.db", TALLY_WRITE_LIMIT="100000/second")
    load = Load(app.url)
    running = asyncio.create_task(load.run(asyncio.Event()))
    await eventually(lambda: load.acknowledged.total() >= 300)
    assert await asyncio.to_thread(app.terminate) == 0
    await running
    await asyncio.to_thread(app.start)
    values = await asyncio.to_thread(app.get, "/events")
    for event in EVENTS:
        assert load.acknowledged[event] <= values[event] <= load.acknowledged[event] + load.unknown[event]
