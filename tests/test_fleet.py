"""Three nodes behind nginx under load, while each of them and their Redis are killed or restarted in turn."""

from pathlib import Path

import pytest
from scenarios.killed import fleet_killed, restarted


@pytest.mark.catches(
    "spooled under another name",
    "app/stores/spool.py",
    "await base.insist(self._store, self.note_loss, source, at, next_offset, batch)",
    "await self._store.apply(uuid.uuid4().hex, 0, 1, batch)",
)
@pytest.mark.catches("missing dedup", "app/ingest.py", "    if not texts:\n", "    if texts:\n")
async def test_nodes_and_redis_die_in_turn_and_every_acknowledged_hit_is_counted_once(tmp_path: Path) -> None:
    assert (await fleet_killed(tmp_path, rounds=2)).broken == []


@pytest.mark.catches(
    "connections are closed under requests", "app/__main__.py", "if self.config.proxy_headers:", "if False:"
)
async def test_no_request_fails_while_each_node_is_restarted_in_turn(tmp_path: Path) -> None:
    assert (await restarted(tmp_path, rounds=2, answers=300)).broken == []
