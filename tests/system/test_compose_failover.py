"""No hit is lost while the nodes behind nginx and their Redis are killed or restarted in turn."""

import http.client
import os
import signal
import socket
from pathlib import Path

import pytest

from tests.support.redis_servers import wait_until
from tests.support.scenarios.kills import kill_fleet, rolling_restart
from tests.support.servers import Process


@pytest.mark.fails_on_mutant(
    "the spool files of dead nodes are not recovered",
    "app/stores/spool_file.py",
    "        return [file for file in map(_open_orphan, paths) if file]\n",
    "        return []\n",
)
@pytest.mark.fails_on_mutant(
    "idempotency keys are ignored", "app/http/parsing.py", "    if not texts:\n", "    if texts:\n"
)
async def test_hits_are_counted_once_while_nodes_and_redis_are_killed_in_turn(tmp_path: Path) -> None:
    assert (await kill_fleet(tmp_path, rounds=2)).violations == []


async def test_no_request_fails_while_the_nodes_are_restarted_in_turn(tmp_path: Path) -> None:
    assert (await rolling_restart(tmp_path, rounds=2, hits=300)).violations == []


@pytest.mark.fails_on_mutant(
    "connections with a pending request are closed", "app/server/server.py", "if self._is_proxied:", "if False:"
)
@pytest.mark.fails_on_mutant(
    "no Connection: close during shutdown",
    "app/server/server.py",
    "default_headers.append(CLOSE_HEADER)",
    "default_headers.count(CLOSE_HEADER)",
)
def test_a_node_that_shuts_down_responds_to_late_requests_of_its_proxy(process) -> None:
    node: Process = process(TALLY_STORE="memory://", TALLY_TRUSTED_PROXIES="127.0.0.1")
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=20)

    def post() -> tuple[int, str | None]:
        connection.request("POST", "/event/a")
        response = connection.getresponse()
        response.read()
        return response.status, response.getheader("Connection")

    def rejects_connections() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", node.port)) != 0

    assert post() == (200, None)
    os.kill(node.pid, signal.SIGTERM)
    wait_until(rejects_connections)
    assert post() == (200, "close")
    assert node.terminate() == 0
