"""Three nodes behind nginx under load, while each of them and their Redis are killed or restarted in turn."""

import http.client
import os
import signal
import socket
from pathlib import Path

import pytest

from tests.support.redis_servers import wait_until
from tests.support.scenarios.killed import fleet_killed, restarted
from tests.support.servers import Process


@pytest.mark.catches(
    "spooled under another name",
    "app/stores/offline.py",
    "lambda offset: self._store.apply(source, offset, new_offset, commit),",
    "lambda _: self._store.apply(str(time.monotonic()), 0, 1, commit),",
)
@pytest.mark.catches("missing dedup", "app/http/parsing.py", "    if not texts:\n", "    if texts:\n")
async def test_nodes_and_redis_die_in_turn_and_every_acknowledged_hit_is_counted_once(tmp_path: Path) -> None:
    assert (await fleet_killed(tmp_path, rounds=2)).broken == []


async def test_no_request_fails_while_each_node_is_restarted_in_turn(tmp_path: Path) -> None:
    assert (await restarted(tmp_path, rounds=2, answers=300)).broken == []


@pytest.mark.catches(
    "connections are closed under requests", "app/server/server.py", "if self.config.proxy_headers:", "if False:"
)
@pytest.mark.catches(
    "a proxy is not told to go", "app/server/server.py", "default_headers.append((b", "default_headers.count((b"
)
def test_a_node_that_ends_answers_what_its_proxy_still_sends_on_a_connection(process) -> None:
    node: Process = process(TALLY_STORE="memory://", TALLY_TRUSTED_PROXIES="127.0.0.1")
    kept = http.client.HTTPConnection("127.0.0.1", node.port, timeout=20)

    def post() -> tuple[int, str | None]:
        kept.request("POST", "/event/a")
        answer = kept.getresponse()
        answer.read()
        return answer.status, answer.getheader("Connection")

    def takes_no_more() -> bool:
        with socket.socket() as another:
            return another.connect_ex(("127.0.0.1", node.port)) != 0

    assert post() == (200, None)
    os.kill(node.pid, signal.SIGTERM)
    wait_until(takes_no_more)
    assert post() == (200, "close")
    assert node.terminate() == 0
