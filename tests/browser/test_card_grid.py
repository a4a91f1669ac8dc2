"""The grid of event cards and the rankings: order, filter, pins, sparklines, and thousands of events."""

import pytest
from playwright.sync_api import expect

from tests.browser.dashboard import count_of, expect_status, wait_until_loaded
from tests.support.servers import Process

MANY = 10_000
# While slowFrames is set, a frame is painted only after two ticks.
SLOW_FRAMES = """
  globalThis.slowFrames = false;
  const soon = globalThis.requestAnimationFrame;
  globalThis.requestAnimationFrame = (paint) => (slowFrames ? setTimeout(() => soon(paint), 2500) : soon(paint));
"""
FILTER_AND_CLICK_AT_ONCE = """([text, selector]) => {
  const filter = document.getElementById("filter");
  filter.value = text;
  filter.dispatchEvent(new Event("input"));
  document.querySelector(selector).click();
}"""


def test_a_pinned_card_comes_first_even_after_a_reload(tally: Process, open_page, console_messages: list[str]) -> None:
    tally.post("/event/precious")
    page = open_page(tally.url)
    card = page.locator('[data-event="precious"]')
    expect(card).to_be_attached()
    card.hover()
    card.get_by_role("button", name="Pin precious").click()
    expect(page.locator(".card").first).to_have_attribute("data-event", "precious")
    page.reload()
    expect(page.locator(".card").first).to_have_attribute("data-event", "precious")
    assert console_messages == []


@pytest.mark.fails_on_mutant(
    "forgets the view", "static/js/pages/overview.js", "view = Object.fromEntries(query);", "view = {};"
)
@pytest.mark.fails_on_mutant(
    "forgets the last letter", "static/js/pages/overview.js", ' filter: byId("filter").value,', ""
)
def test_a_view_can_be_shared_by_its_address_and_left_with_back(
    tally: Process, open_page, console_messages: list[str]
) -> None:
    page = wait_until_loaded(open_page(tally.url))
    page.locator("#sort").select_option("count")
    page.locator("#filter").press_sequentially("e")
    page.locator("#filter").press_sequentially("arc")
    expect(page.locator(".card")).to_have_count(1)
    page.evaluate(FILTER_AND_CLICK_AT_ONCE, ["earch", "#hits-chart input[value=week]"])
    assert page.url.endswith("#/?sort=count&filter=earch&range=week")
    other = wait_until_loaded(open_page(page.url))
    expect(other.locator(".card")).to_have_count(1)
    expect(other.locator("#filter")).to_have_value("earch")
    expect(other.locator("#sort")).to_have_value("count")
    expect(other.locator("#chart-title")).to_have_text("Hits per day")
    other.locator(".card a").click()
    expect(other.locator("#event-name")).to_have_text("search")
    other.go_back()
    expect(other.locator(".card:visible")).to_have_count(1)
    page.go_back()
    page.go_back()
    expect(page.locator("#filter")).to_have_value("")
    expect(page.locator("#sort")).to_have_value("count")
    expect(page.locator(".card").first).not_to_have_attribute("data-event", "search")
    assert console_messages == []


def test_cards_follow_the_chosen_order(tally: Process, open_page) -> None:
    tally.post("/events", b'{"order.c": 7, "order.a": 5, "order.b": 9}')
    page = open_page(f"{tally.url}/#/?filter=order.")
    names = page.locator(".card .name")
    for order, expected in {"first": "cab", "name": "abc", "count": "bca", "rate": "bca", "change": "bca"}.items():
        page.locator("#sort").select_option(order)
        expect(names).to_have_text([f"order.{name}" for name in expected])


@pytest.mark.fails_on_mutant(
    "moves cards under the pointer",
    "static/js/components/card-grid.js",
    '!list.matches(":hover, :focus-within")',
    "true",
)
def test_cards_do_not_move_under_the_pointer(tally: Process, open_page) -> None:
    page = open_page(tally.url, clock=True)
    page.locator("#sort").select_option("count")
    wait_until_loaded(page).locator(".card").nth(1).hover()
    second = page.locator(".card").nth(1).get_attribute("data-event")
    tally.post("/event/overtaker", b'{"by": 1000000}')
    expect(page.locator('[data-event="overtaker"]')).to_be_attached()
    page.clock.fast_forward(20_000)
    assert page.locator(".card").nth(1).get_attribute("data-event") == second
    page.mouse.move(5, 5)
    page.clock.run_for(20_000)
    expect(page.locator(".card").first).to_have_attribute("data-event", "overtaker")


@pytest.mark.fails_on_mutant(
    "moves rows under the pointer",
    "static/js/components/ranking.js",
    'rows.size && list.matches(":hover, :focus-within")',
    "false",
)
def test_ranking_rows_do_not_move_under_the_pointer(tally: Process, open_page) -> None:
    page = wait_until_loaded(open_page(tally.url, viewport={"width": 1280, "height": 900}))
    first = page.locator("#top-events li").first
    first.hover()
    leader = first.locator(".name").text_content()
    tally.post("/event/leaps", b'{"by": 1000000}')
    expect(page.locator('[data-event="leaps"]')).to_be_attached()
    expect(first.locator(".name")).to_have_text(leader)
    page.mouse.move(5, 5)
    tally.post("/event/leaps")
    expect(page.locator("#top-events li").filter(has_text="leaps")).to_be_attached()


def test_sparklines_load_for_many_long_names(tally: Process, open_page, console_messages: list[str]) -> None:
    tally.post("/events", "\n".join(f"{i} {'ش' * 120}" for i in range(60)).encode())
    page = open_page(tally.url)
    page.locator("#filter").fill("ششش")
    expect(page.locator(".card:visible")).to_have_count(60)
    expect(page.locator(".card .sparkline path[d^=M]").first).to_be_attached(timeout=10_000)
    assert console_messages == []


@pytest.mark.fails_on_mutant(
    "leaves space after the last card",
    "static/js/components/card-grid.js",
    "Math.min(rows, Math.max(0, row))",
    "Math.max(0, row)",
)
@pytest.mark.fails_on_mutant(
    "renders every card", "static/js/components/card-grid.js", "const OVERSCAN = 120;", "const OVERSCAN = 1e6;"
)
def test_only_cards_near_the_screen_are_rendered(process, open_page, console_messages: list[str]) -> None:
    limits = {"TALLY_WRITE_LIMIT": "1000000/second", "TALLY_READ_LIMIT": "10000/second"}
    tally = process(TALLY_STORE="memory://", **limits)
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
    assert console_messages == []


@pytest.mark.fails_on_mutant(
    "a tick reads events by their old index", "static/js/data/session.js", "if (paintQueued) paintNow(); // A", "// A"
)
def test_a_card_keeps_its_count_when_a_snapshot_renumbers_the_events(process, open_page) -> None:
    """The page loads counts over HTTP, in the order of names. The snapshot has the order of first hits."""
    tally = process(TALLY_STORE="memory://")
    tally.post("/events", b'{"z": 40}')
    tally.post("/events", b'{"a": 300}')
    page = open_page("about:blank")
    page.add_init_script(SLOW_FRAMES)
    page.route_web_socket("**/socket.io/**", lambda socket: socket.close() if blocked else socket.connect_to_server())
    page.route("**/socket.io/**", lambda route: route.abort() if blocked else route.continue_())
    blocked = [True]
    page.goto(tally.url)
    expect(count_of(page, "a")).to_have_text("300")
    page.evaluate("slowFrames = true")
    blocked.clear()
    page.evaluate("dispatchEvent(new Event('online'))")  # the page connects again at once
    expect_status(page, "live", timeout=20_000)
    countdown = page.locator("#today dd").last
    expect(countdown).not_to_have_text(countdown.inner_text())  # each tick changes it
    assert count_of(page, "a").inner_text() == "300"
