"""Three nodes behind nginx under load, while each of them and their Redis are killed in turn.

TALLY_TEST_ROUNDS chooses how many rounds. Redis syncs every write, so nothing acknowledged may be lost.
"""

import asyncio
import os
import random

import pytest
from conftest import Fleet, composed, eventually
from load import KEYED, Load, read_all

ROUNDS = int(os.environ.get("TALLY_TEST_ROUNDS", "5"))
SYNCED = ("--appendfsync", "always")
UNLIMITED = {"TALLY_WRITE_LIMIT": "100000/second", "TALLY_READ_LIMIT": "100000/second"}


@pytest.mark.catches(
    "spooled under another name",
    "app/stores/spool.py",
    "await base.insist(self._store, self.note_loss, source, at, next_offset, batch)",
    "await self._store.apply(uuid.uuid4().hex, 0, 1, batch)",
)
@pytest.mark.catches("missing dedup", "app/ingest.py", "    if not texts:\n", "    if texts:\n")
@pytest.mark.timeout(60 + 30 * ROUNDS)
async def test_nodes_and_redis_die_in_turn_and_every_acknowledged_hit_is_counted_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with composed(tmp_path_factory.mktemp, *SYNCED, **UNLIMITED) as fleet:
        load = Load(fleet.proxy.url, addresses=12)
        running = asyncio.create_task(load.run())

        async def go_on(hits: int) -> None:
            target = load.acknowledged + hits
            await eventually(lambda: running.done() or load.acknowledged >= target, 60)

        for number in range(ROUNDS):
            node = fleet.nodes[number % 3]
            await go_on(random.randint(50, 200))
            node.kill()
            await go_on(random.randint(20, 100))
            fleet.redis.stop()
            await go_on(random.randint(20, 100))  # to the spools of those that live
            await asyncio.to_thread(node.start)  # without its Redis
            await go_on(random.randint(20, 100))
            fleet.nodes[(number + 1) % 3].kill()  # with what it has spooled
            await asyncio.to_thread(fleet.redis.start, *SYNCED)
            await asyncio.to_thread(fleet.nodes[(number + 1) % 3].start)
            await eventually(lambda: all_well(fleet), 60)
        load.stop.set()
        await running
        await eventually(lambda: all_well(fleet), 60)
        for node in fleet.nodes:  # each shows the same, and that is right
            values = await read_all(load, node)
            for event in KEYED:
                assert values[event] == sum(add.by for add in load.history.adds if add.event == event)
        last = load.history.reads[-len(values) * 3 :]
        assert [wrong for wrong in load.history.wrong_reads() if wrong.read in last] == []
        # Before, a node did not know what another one had spooled; but none ever showed more than there was.
        reads = [*load.history.wrong_reads(), *load.stale.wrong_reads()]
        assert [wrong for wrong in reads if wrong.read.value > wrong.upper] == []
        assert load.acks["spooled"] > 20 * ROUNDS
        assert load.acks["redis"] > 20 * ROUNDS


async def all_well(fleet: Fleet) -> bool:
    states = await asyncio.gather(*(asyncio.to_thread(node.get, "/health") for node in fleet.nodes))
    return all(state["status"] == "ok" and state["nodes"] == 3 for state in states)
