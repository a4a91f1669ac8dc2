"""Fixtures of the Kafka tests: topic names, settings, and a node with the write buffer."""

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from app.settings import Settings
from tests.kafka.waiting import wait_until_ready
from tests.support.kafka_broker import Broker
from tests.support.redis_servers import RedisServer
from tests.support.servers import RunningApp, serving, settings_for

MakeSettings = Callable[..., Settings]
StartNode = Callable[..., AbstractAsyncContextManager[tuple[RunningApp, httpx.AsyncClient]]]


@pytest.fixture
def names() -> dict[str, str]:
    """Settings that name topics and a consumer group which no other test uses."""
    name = uuid.uuid4().hex
    return {"kafka_topic": f"own.{name}", "kafka_dead_letters": f"dead.{name}", "kafka_group": name}


@pytest.fixture
def make_settings(tmp_path: Path, redis_server: RedisServer, broker: Broker, names: dict[str, str]) -> MakeSettings:
    """Return a function that makes the settings of a node with the write buffer, on a kind of store."""

    def make(kind: str = "sqlite", redis: RedisServer = redis_server, **chosen: object) -> Settings:
        return settings_for(kind, tmp_path, redis, **{"kafka": broker.servers, **names, **chosen})

    return make


@pytest.fixture
def buffering_node(make_settings: MakeSettings, broker: Broker, names: dict[str, str]) -> StartNode:
    """Return a function that creates the topics and starts a node with the write buffer, which has reached Kafka."""

    @asynccontextmanager
    async def start(kind: str = "sqlite", **chosen: object) -> AsyncIterator[tuple[RunningApp, httpx.AsyncClient]]:
        await broker.create_topics(names["kafka_topic"], names["kafka_dead_letters"])
        async with serving(make_settings(kind, **chosen)) as node, node.client() as client:
            await wait_until_ready(client)
            yield node, client

    return start
