"""kill -9 in the middle of a load, seen by the checker: bare hits inside the bounds, keyed and retried ones exact.

TALLY_TEST_KILLS chooses how many rounds.
"""

import asyncio
import os
import random
from pathlib import Path

import pytest
from conftest import RedisServer, eventually
from load import Load, assert_exact, read_all

ROUNDS = int(os.environ.get("TALLY_TEST_KILLS", "20"))


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
    assert_exact(load, values)
    assert load.problems == []
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
    assert_exact(load, await read_all(load, app))
    assert load.problems == []
