"""What a flood of changes costs an open dashboard, and what thousands of events do; `make soak` measures more of it."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from bench.pages import of_dashboard, of_naive, until_usable
from tests.support.servers import Process

MANY = 10_000


@pytest.fixture
def tally(process) -> Iterator[Process]:
    return process(TALLY_STORE="memory://", TALLY_WRITE_LIMIT="1000000/second", TALLY_READ_LIMIT="10000/second")


@pytest.mark.timeout(120)
def test_a_flood_costs_a_tenth_of_what_it_costs_a_page_that_redraws(tally: Process, browser: Browser) -> None:
    naive = of_naive(browser, tally.url, 0.3)
    found = of_dashboard(browser, tally.url, 4)
    assert found.main_ms < naive.main_ms / 10, (naive, found)
    assert found.heap_after < found.heap_before + 5_000_000
    assert found.long_tasks < found.batches / 2  # most of what it does is short


@pytest.mark.catches(
    "shows room where nothing is",
    "static/js/components/card-grid.js",
    "Math.min(rows, Math.max(0, row))",
    "Math.max(0, row)",
)
@pytest.mark.catches(
    "draws what nobody sees", "static/js/components/card-grid.js", "const OVERSCAN = 120;", "const OVERSCAN = 1e6;"
)
def test_of_thousands_of_events_those_near_the_screen_are_drawn(tally: Process, open_page, said: list[str]) -> None:
    tally.post("/events", "\n".join(f"event.{i:05}" for i in range(MANY)).encode())
    page = open_page(tally.url)
    expect(page.locator("#match-count")).to_have_text("10,000 events")
    assert page.locator(".card").count() < MANY / 20
    page.locator(".card a").first.focus()
    for key, name in {"End": "event.09999", "ArrowLeft": "event.09998", "Home": "event.00000"}.items():
        page.keyboard.press(key)
        expect(page.locator(":focus")).to_have_text(name)
        expect(page.locator(":focus")).to_be_in_viewport()
    page.evaluate("scrollTo(0, document.body.scrollHeight / 2)")
    middle = page.locator('[aria-posinset="5000"]')
    expect(middle).to_have_attribute("data-event", "event.04999")
    expect(middle.locator(".count")).to_have_text("1")
    assert page.locator(".card").count() < MANY / 20
    page.evaluate("location.hash = '#/?filter=09999'")
    expect(page.locator(".card")).to_have_count(1)
    expect(page.locator("#match-count")).to_have_text("1 of 10,000 events")
    tally.post("/event/event.09999")
    expect(page.locator(".card .count")).to_have_text("2")
    assert said == []


@pytest.mark.catches(
    "opens with every card", "static/js/components/card-grid.js", "const OVERSCAN = 120;", "const OVERSCAN = 1e5;"
)
def test_thousands_of_events_open_about_as_soon_as_a_few(tally: Process, browser: Browser) -> None:
    few, many = (min(until_usable(browser, tally.url, events)[1] for _ in range(2)) for events in (10, MANY))
    assert many < 3 * few
