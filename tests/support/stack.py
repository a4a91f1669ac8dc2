"""`make stack`: kill the containers of docker-compose.yml under load on a Docker Engine, and compare the counts.

It needs root, a running engine, and port 8000. Its containers and volumes have a name of their own, and are removed.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.images import provide
from tests.support.load import Load
from tests.support.scenarios import UNLIMITED, Figures, compare_with_history, require_exact, under_load
from tests.support.servers import ROOT, eventually

URL = "http://127.0.0.1:8000"
NODES = 3
ROUNDS = 3
REST_SECONDS = 0.01  # between requests, because nginx limits an address to 3,000 per second
UPGRADE_PAUSE_SECONDS = 5  # between two nodes, as in docs/how-to/many-nodes.md
# Compose would also read them from .env.
SETTINGS = UNLIMITED | {"TALLY_REDIS_SYNC": "always", "TALLY_TIMEZONE": "Europe/Berlin"}
READ = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000{path}').read().decode())"


class Stack:
    """The containers of docker-compose.yml."""

    def __init__(self) -> None:
        plugin = subprocess.run(["docker", "compose", "version"], check=False, capture_output=True).returncode == 0
        self._compose = [*(["docker", "compose"] if plugin else ["docker-compose"]), "--project-name", "tally-stack"]

    async def compose(self, *arguments: str) -> str:
        return await self._run(*self._compose, *arguments)

    async def docker(self, *arguments: str) -> str:
        return await self._run("docker", *arguments)

    async def scale(self, *options: str) -> None:
        await self.compose("up", "-d", "--scale", f"app={NODES}", *options)

    async def containers(self, service: str) -> list[str]:
        return (await self.compose("ps", "--quiet", service)).split()

    async def read_nodes(self, path: str) -> list[dict[str, object]]:
        """Read this path of each node."""
        program = READ.format(path=path)
        nodes = await self.containers("app")
        return [json.loads(await self.docker("exec", node, "python", "-c", program)) for node in nodes]

    async def healthy(self) -> bool:
        """Return whether each node reports that it is healthy and sees all nodes."""
        try:
            states = await self.read_nodes("/health")
        except subprocess.CalledProcessError:  # a node is starting
            return False
        return [(state["status"], state["nodes"]) for state in states] == [("ok", NODES)] * NODES

    async def _run(self, *command: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env=os.environ | SETTINGS, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        output, errors = await process.communicate()
        if process.returncode:
            error = subprocess.CalledProcessError(process.returncode, command)
            error.add_note(errors.decode())
            raise error
        return output.decode()


@asynccontextmanager
async def running() -> AsyncIterator[Stack]:
    """Run the containers during the block."""
    stack = Stack()
    await stack.docker("info")
    provide()
    try:
        await stack.scale("--build")
        await eventually(stack.healthy, 120)
        yield stack
    except BaseException:
        print(await stack.compose("logs", "--no-color"))
        raise
    finally:
        await stack.compose("down", "--volumes", "--timeout", "15")


async def kill(stack: Stack) -> Load:
    """Kill each node, then Redis and nodes that have spooled hits, then the proxy. Return the load."""
    load = Load(URL, REST_SECONDS)
    (redis,), (proxy,) = await stack.containers("redis"), await stack.containers("proxy")
    nodes = await stack.containers("app")
    async with under_load(load) as wait_for_hits:
        for _ in range(ROUNDS):
            for node in nodes:  # one of them gets all requests, because Docker gives all clients the same address
                await stack.docker("kill", node)
                await wait_for_hits(100)
                await stack.docker("start", node)
                await wait_for_hits(100)
            await stack.docker("kill", redis)
            for node in nodes:
                await wait_for_hits(100)  # the nodes spool these hits
                await stack.docker("kill", node)
                await wait_for_hits(100)
                await stack.docker("start", node)
            await stack.docker("start", redis)
            await wait_for_hits(100)
            await stack.docker("kill", proxy)
            await stack.docker("start", proxy)
            await wait_for_hits(100)
            await eventually(stack.healthy, 120)
    await load.repeat(200)
    return load


async def upgrade(stack: Stack) -> Load:
    """Replace each node as docs/how-to/many-nodes.md says. Return the load."""
    load = Load(URL, REST_SECONDS)
    async with under_load(load) as wait_for_hits:
        for node in await stack.containers("app"):
            await stack.docker("stop", node)
            await stack.docker("rm", node)
            await stack.scale("--no-deps", "--no-recreate", "app")
            await asyncio.sleep(UPGRADE_PAUSE_SECONDS)
            await wait_for_hits(100)
    await eventually(stack.healthy, 120)
    return load


async def check(stack: Stack) -> Figures:
    """Return the figures of all hits. None may be lost or counted twice, and the upgrade may fail no request.

    No container may log an alert of nginx, or a traceback.
    """
    killed, upgraded = await kill(stack), await upgrade(stack)
    shown = await stack.read_nodes("/events")
    figures = require_exact(compare_with_history(killed.history.adds + upgraded.history.adds, shown[0]))
    figures.require(shown == [shown[0]] * NODES, f"the nodes show different counts: {shown}")
    failed = [add for add in upgraded.history.adds if add.outcome != "acknowledged"]
    figures.require(not (failed or upgraded.problems or upgraded.failed_reads), f"requests failed: {failed[:2]}")
    figures.details |= {"acks": dict(killed.acks), "retried": len(killed.retried)}
    figures.details["requests during the upgrade"] = len(upgraded.history.adds) + len(upgraded.history.reads)
    alerts = re.findall(r".*(?:\[alert\]|\[emerg\]|Traceback).*", await stack.compose("logs", "--no-color"))
    figures.require(not alerts, f"{len(alerts)} alerts were logged: {alerts[:2]}")
    return figures


async def main() -> None:
    async with running() as stack:
        figures = await check(stack)
    print(figures)
    sys.exit(bool(figures.violations))


if __name__ == "__main__":
    asyncio.run(main())
