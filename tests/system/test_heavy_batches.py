"""A batch with many users and sessions does not make other clients wait for all of it."""

import asyncio
import json
import time
from pathlib import Path

import pytest

from tests.support.load import Connection
from tests.support.scenarios import node, store


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
