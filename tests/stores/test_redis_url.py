"""Connections to the servers of a URL."""

import pytest

from app.stores.base import StoreLimits
from app.stores.redis import RedisStore
from app.stores.redis_url import RedisTarget
from tests.support.redis_servers import USER, Sentinels, wait_until

pytestmark = pytest.mark.usefixtures("patience")


def connections(sentinels: Sentinels) -> int:
    """Return the number of connections of stores. The servers connect to each other as another user."""
    number = 0
    for server in (*sentinels.sentinels, *sentinels.servers):
        with server.client() as client:
            number += sum(connection["user"] == USER for connection in client.client_list())
    return number


@pytest.mark.fails_on_mutant(
    "the connections to the sentinels stay open",
    "app/stores/redis_url.py",
    "await pool.sentinel_manager.aclose()",
    "pass",
)
async def test_a_store_closes_its_connections_to_the_sentinels(sentinels: Sentinels) -> None:
    store = RedisStore(RedisTarget.from_url(sentinels.url), StoreLimits(10))
    await store.open()
    assert connections(sentinels) >= 2
    await store.close()
    wait_until(lambda: connections(sentinels) == 0)
