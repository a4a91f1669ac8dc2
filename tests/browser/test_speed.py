"""The cost of an open dashboard during a burst of changes and with thousands of events; `make soak` measures more."""

import pytest
from playwright.sync_api import Browser

from bench.pages import dashboard_cost, naive_cost, until_usable
from tests.support.servers import Process

MANY = 10_000


@pytest.fixture
def tally(process) -> Process:
    limits = {"TALLY_WRITE_LIMIT": "1000000/second", "TALLY_READ_LIMIT": "10000/second"}
    return process(TALLY_STORE="memory://", **limits)


def test_a_burst_costs_a_tenth_of_a_page_that_redraws(tally: Process, browser: Browser) -> None:
    naive = naive_cost(browser, tally.url, 0.3)
    dashboard = dashboard_cost(browser, tally.url, 3)
    assert dashboard.main_ms < naive.main_ms / 10, (naive, dashboard)
    assert dashboard.heap_after < dashboard.heap_before + 5_000_000
    assert dashboard.long_tasks < dashboard.batches / 2


@pytest.mark.fails_on_mutant(
    "opens with every card", "static/js/components/card-grid.js", "const OVERSCAN = 120;", "const OVERSCAN = 1e5;"
)
def test_ten_thousand_events_open_about_as_fast_as_ten(tally: Process, browser: Browser) -> None:
    few, many = (min(until_usable(browser, tally.url, events)[1] for _ in range(2)) for events in (10, MANY))
    assert many < 3 * few
