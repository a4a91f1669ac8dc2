"""A batch with many users and sessions does not make other clients wait for all of it."""

import asyncio
import json
import time
from pathlib import Path

import pytest

from tests.support.load import Connection
from tests.support.scenarios import node, store
from tests.support.scenarios.heavy import heavy_batches, heavy_reads, polling_clients


@pytest.mark.fails_on_mutant(
    "all visits are one commit",
    "app/group_commit.py",
    "        if weight(amounts, visits) <= COMMIT_WEIGHT_MAX:\n",
    "        if True:\n",
)
@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_hits_go_between_the_commits_of_a_large_batch(kind: str, tmp_path: Path) -> None:
    items = json.dumps([{"event": f"e{i % 50}", "user": f"u{i}", "session": f"s{i}"} for i in range(10_000)]).encode()
    longest = 0.0
    with store(tmp_path, kind) as url, node(tmp_path, url) as app:
        sender, other = Connection(app.url), Connection(app.url)
        await other.request("POST", "/event/other")
        began = time.monotonic()
        batch = asyncio.create_task(sender.request("POST", "/events", items))
        while not batch.done():
            sent = time.monotonic()
            assert (await other.request("POST", "/event/other")).json["ack"] in {"disk", "redis"}
            longest = max(longest, time.monotonic() - sent)
        assert (await batch).json["accepted"] == 10_000
        assert longest < (time.monotonic() - began) / 2
        audience = app.get("/audience")
        sender.close()
        other.close()
    assert abs(audience["users"] - 10_000) <= 10_000 * 4 * audience["error"]


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_a_heavy_batch_during_hits_is_counted_exactly(kind: str, tmp_path: Path) -> None:
    assert (await heavy_batches(tmp_path, kind, batches=1, wait_max=20)).violations == []


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_heavy_reads_during_hits_take_nothing_from_them(kind: str, tmp_path: Path) -> None:
    assert (await heavy_reads(tmp_path, kind, names=5000, reads=20, wait_max=20)).violations == []


@pytest.mark.fails_on_mutant(
    "sessions that poll are not woken",
    "app/live/socketio.py",
    "        socket.queue.put_nowait(Packet(MESSAGE, message.packet))\n",
    "        socket.queue._queue.append(Packet(MESSAGE, message.packet))\n",
)
async def test_clients_that_poll_get_all_counts(tmp_path: Path) -> None:
    assert (await polling_clients(tmp_path, clients=20, seconds=2)).violations == []
