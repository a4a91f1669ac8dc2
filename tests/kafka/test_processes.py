"""Kafka as an operator uses it: an existing topic by settings only, and processes that only consume."""

import asyncio
import json
import shutil
import urllib.error
from collections import Counter
from contextlib import suppress
from importlib.metadata import distribution
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import expect, sync_playwright

from app.domain.names import InvalidName, event_name
from tests.support.kafka_broker import Broker
from tests.support.redis_servers import RedisServer, wait_until

pytestmark = pytest.mark.timeout(180)  # the first test of a run may download Kafka


def components() -> list[dict[str, object]]:
    """Return real records that were written for another purpose: the components of two development tools."""
    found = []
    for tool in ("ruff", "uv"):
        (path,) = [path for path in distribution(tool).files or [] if path.name.endswith(".cyclonedx.json")]
        found += json.loads(Path(path.locate()).read_text())["components"]
    return found


def is_event_name(text: object) -> bool:
    with suppress(InvalidName):
        return bool(event_name(str(text)))
    return False


def test_an_existing_topic_is_on_the_dashboard_by_settings_only(process, broker: Broker, names: dict[str, str]) -> None:
    topic, records = f"parts.{names['kafka_group']}", components()
    asyncio.run(broker.create_topics(topic, names["kafka_dead_letters"]))
    asyncio.run(broker.produce(topic, *records))
    app = process(
        TALLY_STORE="memory://",
        TALLY_KAFKA_INPUTS=f"{broker.servers}/{topic}?event=author&user=name",
        TALLY_KAFKA_GROUP=names["kafka_group"],
        TALLY_KAFKA_DEAD_LETTERS=names["kafka_dead_letters"],
    )
    expected = Counter(text for part in records if is_event_name(text := part.get("author", "")))
    assert len(records) > 500
    assert len(expected) > 100
    wait_until(lambda: app.get("/events") == expected, lambda: str(app.get("/health")))
    assert app.get("/health")["kafka"]["deadLetters"] == len(records) - expected.total() > 0
    ((author, _),) = expected.most_common(1)
    users = {part["name"] for part in records if part.get("author") == author}
    assert app.get(f"/event/{quote(author, safe='')}/audience")["users"] == len(users)
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"]).new_page()
        page.goto(app.url)
        expect(page.locator("main")).to_contain_text(author, timeout=20_000)
        expect(page.locator("main")).to_contain_text(str(expected.total()), timeout=20_000)


def test_the_consume_command_counts_and_serves_only_health_and_metrics(
    process, redis_server: RedisServer, broker: Broker, names: dict[str, str]
) -> None:
    asyncio.run(broker.create_topics(names["kafka_topic"]))
    environment = {f"TALLY_{name.upper()}": value for name, value in names.items()}
    consumer = process("-m", "app", "consume", TALLY_STORE=redis_server.url, TALLY_KAFKA=broker.servers, **environment)
    assert "is counting records from Kafka" in consumer.log.read_text()
    asyncio.run(broker.produce(names["kafka_topic"], {"counts": {"a": 2}}))
    wait_until(lambda: consumer.get("/health")["kafka"]["records"] == 1)
    for path in ("/event/a", "/", "/events"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            consumer.get(path)
    assert consumer.terminate() == 0
