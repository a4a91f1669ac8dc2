"""Wait until a node has reached Kafka, or has counted."""

import httpx

from tests.support.servers import eventually


async def wait_until_ready(client: httpx.AsyncClient) -> None:
    """Wait until the node's status has no reasons for concern."""

    async def is_ready() -> bool:
        return not (await client.get("/health")).json()["reasons"]

    await eventually(is_ready)


async def wait_for_counts(client: httpx.AsyncClient, **expected: int) -> None:
    """Wait until the day has exactly these counts."""
    counts: dict[str, int] = {}

    async def is_counted() -> bool:
        counts.clear()
        counts.update((await client.get("/events")).json())
        return counts == expected

    try:
        await eventually(is_counted)
    except AssertionError:
        assert counts == expected


async def wait_for_reason(client: httpx.AsyncClient, text: str) -> None:
    """Wait until a reason for concern contains this text."""

    async def has_reason() -> bool:
        return text in str((await client.get("/health")).json()["reasons"])

    await eventually(has_reason)
