"""GET /metrics/events: the counts of the events that a scraper names, with their names as escaped labels."""

from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.main import create_app
from tests.support.redis_servers import RedisServer
from tests.support.servers import AS_ADMIN, SettableClock, settings_for

NAMES = ['quo"te', "back\\slash", "back\\n", '"} 1\\ntally_hits_total 5', "ünï ☃", "{a='b'}", "#comment"]


@pytest.fixture
async def client(tmp_path: Path, redis_server: RedisServer, clock: SettableClock):
    app = create_app(settings_for("memory", tmp_path, redis_server), clock)
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        yield client


def path_of(*events: str) -> str:
    return "/metrics/events?" + urlencode([("event", event) for event in events])


def samples(text: str) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(text)
    return {(sample.name, sample.labels["event"]): sample.value for family in families for sample in family.samples}


@pytest.mark.fails_on_mutant(
    "corrections are left out",
    "app/http/routes/operations.py",
    "hits.get(e, 0) + corrections.get(e, 0)",
    "hits.get(e, 0)",
)
async def test_the_total_and_the_count_of_each_event_are_returned(
    client: httpx.AsyncClient, clock: SettableClock
) -> None:
    await client.post("/events", json={"a": 5, "b": 7})
    clock.shift += 86_400
    await client.post("/events", json={"a": 2})
    await client.put("/event/a", json={"count": 1}, headers=AS_ADMIN)
    response = await client.get(path_of("a", "a", "unknown"))
    assert response.headers["content-type"].startswith("text/plain")
    expected = {"a": (7, 1), "unknown": (0, 0)}
    assert samples(response.text) == {
        (name, event): value
        for event, values in expected.items()
        for name, value in zip(("tally_event_hits_total", "tally_event_today"), values, strict=True)
    }


async def test_names_are_escaped(client: httpx.AsyncClient) -> None:
    await client.post("/events", json={name: i for i, name in enumerate(NAMES, 1)})
    text = (await client.get(path_of(*NAMES))).text
    assert len(text.splitlines()) == 4 + 2 * len(NAMES)
    assert samples(text) == {
        (metric, name): i
        for i, name in enumerate(NAMES, 1)
        for metric in ("tally_event_hits_total", "tally_event_today")
    }


async def test_large_totals_are_exact(client: httpx.AsyncClient) -> None:
    await client.post("/event/a")
    await client.put("/event/a", json={"total": 2**53 - 1}, headers=AS_ADMIN)
    assert samples((await client.get(path_of("a"))).text)["tally_event_hits_total", "a"] == 2**53 - 1


@pytest.mark.parametrize("path", ["/metrics/events", path_of(*map(str, range(101))), path_of("a/b"), path_of("")])
async def test_a_scrape_names_1_to_100_valid_events(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert (response.status_code, response.json()["code"]) == (422, "invalid-request")
    assert (await client.get(path_of(*map(str, range(100))))).status_code == 200
