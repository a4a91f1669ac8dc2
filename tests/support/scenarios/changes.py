"""A scenario with administrative changes that a crash interrupts."""

import asyncio
from collections import Counter
from pathlib import Path

import httpx

from tests.support.redis_servers import Cluster
from tests.support.scenarios import Figures, compare_counts, nodes, require_exact
from tests.support.servers import ADMIN_KEY, AS_ADMIN, eventually

NAMES = [f"event {i}" for i in range(40)]
CHANGES = ("correct", "delete", "reset")
CORRECTED, TOTAL = 7, 9
SHARDS = 16


async def cut_changes(directory: Path, steps: range) -> Figures:
    """A node dies while it corrects, deletes or resets counts in a Redis Cluster, after so many shards have the change.

    At the last step all shards have it. Other nodes complete each change once, and keep the hits that are counted
    meanwhile.
    """
    cluster = Cluster(directory)
    counts, totals, made = Counter[str](), Counter[str](), 0
    try:
        cluster.start()
        with nodes(directory, cluster.url, 2, TALLY_ADMIN_KEYS=ADMIN_KEY) as (dying, other):
            async with httpx.AsyncClient(headers=AS_ADMIN, timeout=20) as client:

                async def hit() -> None:
                    hits = {name: index + 1 for index, name in enumerate(NAMES)}
                    (await client.post(f"{other.url}/events", json=hits)).raise_for_status()
                    counts.update(hits)
                    totals.update(hits)

                for step in steps:
                    for change in CHANGES:
                        await hit()
                        event = NAMES[made % len(NAMES)]
                        with cluster.writable(range(step), forget_changes=step < SHARDS):
                            response = await _send(client, dying.url, change, event)
                            reached = response.is_success or response.json()["code"] == "outcome-unknown"
                            assert reached, response.text
                            dying.kill()
                        _apply(change, event, counts, totals)
                        made += 1
                        await hit()
                        await eventually(lambda: not _keys(cluster, "tally:*:unfinished"), 60)
                        await asyncio.to_thread(dying.start)
                values = [(await client.get(f"{other.url}/event/{name}")).json() for name in NAMES]
        expected = Counter(
            {f"{kind} {name}": n for kind, c in (("count", counts), ("total", totals)) for name, n in c.items()}
        )
        found = {f"{kind} {value['eventName']}": value[kind] for value in values for kind in ("count", "total")}
        figures = require_exact(compare_counts(expected, expected, found))
        records = sum(_keys(cluster, "tally:*:day:*:log").values())
        figures.require(records == made, f"{made} changes have {records} lines in the history")
        figures.details |= {"changes": made, "lines in the history": records}
        return figures
    finally:
        cluster.stop()


async def _send(client: httpx.AsyncClient, url: str, change: str, event: str) -> httpx.Response:
    if change == "correct":
        return await client.put(f"{url}/event/{event}", json={"count": CORRECTED, "total": TOTAL})
    if change == "delete":
        return await client.delete(f"{url}/event/{event}")
    return await client.post(f"{url}/reset")


def _apply(change: str, event: str, counts: Counter[str], totals: Counter[str]) -> None:
    if change == "reset":
        counts.clear()
    elif change == "delete":
        del counts[event], totals[event]
    else:
        counts[event], totals[event] = CORRECTED, TOTAL


def _keys(cluster: Cluster, pattern: str) -> dict[str, int]:
    """Return the number of fields of each hash whose key matches."""
    found = {}
    for master in cluster.masters():
        with master.client() as client:
            found |= {key: client.hlen(key) for key in client.scan_iter(pattern)}
    return found
