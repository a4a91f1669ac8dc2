"""What a flood of changes costs an open dashboard, and what thousands of events do; `make soak` measures more of it."""

from collections.abc import Iterator

import pytest
from conftest import Process
from playwright.sync_api import Browser, expect

from bench.pages import of_dashboard, of_naive

MANY = 10_000


@pytest.fixture
def tally(process) -> Iterator[Process]:
    return process(TALLY_STORE="memory://", TALLY_WRITE_LIMIT="1000000/second", TALLY_READ_LIMIT="10000/second")


@pytest.mark.timeout(120)
def test_a_flood_costs_a_tenth_of_what_it_costs_a_page_that_redraws(tally: Process, browser: Browser) -> None:
    naive = of_naive(browser, tally.url, 0.3)
    found = of_dashboard(browser, tally.url, 4)
    assert found.main_ms < naive.main_ms / 10, (naive, found)
    assert found.heap_after < 1.2 * found.heap_before
    assert found.long_tasks < found.batches / 2  # most of what it does is short


@pytest.mark.catches(
    "draws what nobody sees",
    "static/js/cards.js",
    "const first = isIntersecting && !card.drawn;",
    "const first = !card.drawn;",
)
def test_of_thousands_of_events_only_those_in_sight_are_drawn(tally: Process, open_page, said: list[str]) -> None:
    tally.post("/events", "\n".join(f"event.{i:05}" for i in range(MANY)).encode())
    page = open_page(tally.url)
    expect(page.locator(".card")).to_have_count(MANY)
    expect(page.locator(".card .floor").first).to_be_attached()
    assert page.locator(".card .floor").count() < MANY / 20
    page.locator("#filter").fill("09999")
    expect(page.locator(".card")).to_have_count(1)
    expect(page.locator("#match-count")).to_have_text("1 of 10,000 events")
    tally.post("/event/event.09999")
    expect(page.locator(".card .count")).to_have_text("2")
    assert said == []
