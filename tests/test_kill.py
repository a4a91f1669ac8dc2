"""kill -9 in the middle of a load, seen by the checker: bare hits inside the bounds, keyed and retried ones exact.

Half of the writers send bare hits and never retry; half send an Idempotency-Key and retry until they are answered.
A reader reads all the time. TALLY_TEST_KILLS chooses how many rounds.
"""

import asyncio
import os
import random
import uuid
from pathlib import Path

import httpx
import pytest
from checker import History, Outcome
from conftest import Process, RedisServer, eventually

ROUNDS = int(os.environ.get("TALLY_TEST_KILLS", "20"))
BARE = [f"bare{i}" for i in range(5)]
KEYED = [f"keyed{i}" for i in range(5)]
WRITERS = 8  # of each kind


class Load:
    """Clients and what they saw, for as long as `stop` is not set."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.history = History()
        self.acknowledged = 0
        self.stop = asyncio.Event()

    async def run(self) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=20) as client:
            writers = [self._write(client, event) for event in (*BARE, *KEYED) for _ in range(WRITERS // 4)]
            await asyncio.gather(self._read(client), *writers)

    async def _write(self, client: httpx.AsyncClient, event: str) -> None:
        while not self.stop.is_set():
            add = self.history.begin(event, random.randint(1, 5))
            key = {"Idempotency-Key": uuid.uuid4().hex} if event in KEYED else {}
            outcome = await self._post(client, event, add.by, key)
            while key and outcome != "acknowledged":
                await asyncio.sleep(0.01)
                outcome = await self._post(client, event, add.by, key)
            self.history.end(add, outcome)
            self.acknowledged += outcome == "acknowledged"
            if outcome != "acknowledged":
                await asyncio.sleep(0.01)

    async def _post(self, client: httpx.AsyncClient, event: str, by: int, key: dict[str, str]) -> Outcome:
        try:
            answer = await client.post(f"/event/{event}", json={"by": by}, headers=key)
        except httpx.ConnectError:
            return "refused"  # it never left
        except httpx.TransportError:
            return "unknown"
        assert answer.status_code == 200, answer.text
        return "acknowledged"

    async def _read(self, client: httpx.AsyncClient) -> None:
        while not self.stop.is_set():
            try:
                event = random.choice([*BARE, *KEYED])
                with self.history.reading(event) as values:
                    answer = await client.get(f"/event/{event}")
                    values.append(answer.json()["count"])
            except httpx.TransportError:
                await asyncio.sleep(0.01)


async def read_all(load: Load, app: Process) -> dict[str, int]:
    values = await asyncio.to_thread(app.get, "/events")
    for event in (*BARE, *KEYED):
        with load.history.reading(event) as read:
            read.append(values.get(event, 0))
    return values


@pytest.mark.catches(
    "the answer before the commit",
    "app/recorder.py",
    "            applied = await self._apply(batch)\n",
    """            from app.stores.base import Value
            waiting = [{e: Value(0, 0) for e in p.counts} for p in batch]
            for answer, sharing in zip(waiting, sharers, strict=True):
                _resolve(answer, sharing, moment.date, "disk")
            await asyncio.sleep(0.05)
            applied = await self._apply(batch)
""",
)
@pytest.mark.catches("missing dedup", "app/ingest.py", "    if not texts:\n", "    if texts:\n")
@pytest.mark.timeout(60 + 20 * ROUNDS)
@pytest.mark.parametrize("store", ["sqlite", "redis"])
async def test_kill_9_loses_no_acknowledged_hit_and_counts_none_twice(
    store: str, process, tmp_path: Path, redis_server: RedisServer
) -> None:
    urls = {"sqlite": f"sqlite:///{tmp_path}/tally.db", "redis": redis_server.url}
    app = process(TALLY_STORE=urls[store], TALLY_WRITE_LIMIT="100000/second", TALLY_READ_LIMIT="100000/second")
    load = Load(app.url)
    running = asyncio.create_task(load.run())
    for _ in range(ROUNDS):
        target = load.acknowledged + random.randint(50, 300)
        await eventually(lambda target=target: running.done() or load.acknowledged >= target)
        app.kill()
        await asyncio.to_thread(app.start)
    load.stop.set()
    await running
    values = await read_all(load, app)
    assert load.history.wrong_reads() == []
    for event in KEYED:  # retried until answered: exact
        assert values[event] == sum(add.by for add in load.history.adds if add.event == event)
    assert len(load.history.reads) > 20
    hits = app.get("/series?step=day&points=1")["points"][0]["count"]
    assert hits == sum(values.values())


async def test_sigterm_under_load_answers_every_hit_that_it_counts(process, tmp_path: Path) -> None:
    app = process(TALLY_STORE=f"sqlite:///{tmp_path}/tally.db", TALLY_WRITE_LIMIT="100000/second")
    load = Load(app.url)
    running = asyncio.create_task(load.run())
    await eventually(lambda: load.acknowledged >= 300)
    assert await asyncio.to_thread(app.terminate) == 0
    await asyncio.to_thread(app.start)
    load.stop.set()
    await running
    await read_all(load, app)
    assert load.history.wrong_reads() == []
