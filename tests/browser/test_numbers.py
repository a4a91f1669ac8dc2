"""The numbers on a page are those of the server, or are not shown."""

import asyncio
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from tests.browser.conftest import count_two_days
from tests.browser.dashboard import choose, enter_admin_key, past_day, wait_until_loaded
from tests.support.servers import Process

SHIFTS = """
  window.shifts = 0;
  new PerformanceObserver(list => list.getEntries().forEach(entry => { window.shifts += entry.value; }))
    .observe({ type: "layout-shift", buffered: true });
"""


@pytest.fixture(scope="module")
def tally(tally_with_history: Process) -> Process:
    return tally_with_history


@pytest.mark.fails_on_mutant(
    "the running day is left out",
    "static/js/data/series.js",
    "all: sum(this.points)",
    "all: sum(this.points.slice(0, -1))",
)
@pytest.mark.fails_on_mutant(
    "unknown days are compared", "static/js/data/series.js", "every(({ known }) => known)", "every(() => true)"
)
def test_the_sum_of_a_chart_is_that_of_the_leaderboard(tally: Process, open_page) -> None:
    """The server began to count two days ago, so there is no week before to compare with."""
    page = open_page(f"{tally.url}/#/event/search?range=week")
    expect(page.locator("#event-chart .note")).to_have_text("480 hits in the last 7 days.")
    expect(page.locator("#event-chart path.previous")).to_have_attribute("d", "")
    page.goto(f"{tally.url}/#/leaderboard?window=7d")
    expect(page.locator("#leaderboard-list li").filter(has_text="search")).to_contain_text("480")
    page.goto(f"{tally.url}/#/event/search?range=week")
    page.locator("#event-chart svg").focus()
    page.keyboard.press("Home")
    expect(page.locator("#event-chart .tooltip")).to_contain_text("before the first count")
    page.goto(f"{tally.url}/#/event/search")
    expect(page.locator("#event-chart .note")).to_contain_text("Without the current minute: ")
    expect(page.locator("#event-chart .note")).to_contain_text(" 60 minutes earlier.")


@pytest.mark.fails_on_mutant(
    "an unedited number is sent", "static/js/components/confirm-dialog.js", "value && value !== defaultValue", "value"
)
@pytest.mark.fails_on_mutant(
    "the shown number is not sent",
    "static/js/components/confirm-dialog.js",
    "...(shown[i] === null ? [] : [[fields[i].expected, shown[i]]])",
    "",
)
def test_a_correction_contains_only_what_was_edited_and_what_it_replaces(tally: Process, open_page) -> None:
    tally.post("/event/busy", b'{"by": 30}')
    page = open_page(f"{tally.url}/#/event/busy")
    enter_admin_key(page)
    expect(page.locator("#event-today .figures")).to_contain_text("Total30")
    page.locator("#event-correct").click()
    tally.post("/event/busy", b'{"by": 7}')
    expect(page.locator("#confirm .now").first).to_have_text("now 37")
    page.locator("#confirm-count").fill("20")
    page.locator("#confirm-word").fill("busy")
    with page.expect_request("**/event/busy") as request:
        page.keyboard.press("Enter")
    assert request.value.post_data_json == {"count": 20, "expectedCount": 37}
    expect(page.locator("#confirm")).to_be_hidden()
    assert tally.get("/event/busy") == {"eventName": "busy", "count": 20, "total": 37, "day": past_day(0)}


def test_a_correction_of_a_moved_number_is_explained_and_can_be_repeated(tally: Process, open_page) -> None:
    tally.post("/event/moved", b'{"by": 30}')
    page = open_page(f"{tally.url}/#/event/moved")
    enter_admin_key(page)
    expect(page.locator("#event-today .figures")).to_contain_text("Total30")
    page.locator("#event-correct").click()
    page.locator("#confirm-total").fill("100")
    page.locator("#confirm-word").fill("moved")
    page.route(
        "**/event/moved",
        lambda route: route.continue_(post_data=json.dumps({"total": 100, "expectedTotal": 29})),
        times=1,
    )
    page.keyboard.press("Enter")
    expect(page.locator("#confirm .problem")).to_contain_text("moved now has the count 30 and the total 30")
    page.keyboard.press("Enter")
    expect(page.locator("#confirm")).to_be_hidden()
    expect(page.locator("#event-today .figures")).to_contain_text("Total100")


@pytest.mark.fails_on_mutant("a tap finds no bar", "static/js/components/bar-chart.js", "    pointAt(event);\n", "")
@pytest.mark.fails_on_mutant(
    "the tooltip covers bars", "static/app.css", "bottom: calc(100% - var(--tooltip) - 6px)", "top: 90px"
)
@pytest.mark.fails_on_mutant(
    "a table leaves its panel empty", "static/app.css", "flex: 1 1 0; min-height: clamp", "height: clamp"
)
@pytest.mark.fails_on_mutant(
    "a shorter text moves the ranges", "static/app.css", "  .readout { min-height: 2.9em; }\n", ""
)
@pytest.mark.fails_on_mutant(
    "the tooltip leaves with the finger", "static/js/components/bar-chart.js", 'pointerType === "mouse"', "pointerType"
)
def test_a_tap_selects_a_bar(tally: Process, open_page) -> None:
    page = open_page(f"{tally.url}/#/history", has_touch=True, viewport={"width": 390, "height": 1200})
    expect(page.locator("#history-day .lead")).to_be_visible()
    box = page.locator("#history-chart svg").bounding_box()
    assert box
    page.touchscreen.tap(box["x"] + 40 + (box["width"] - 40) / 4, box["y"] + 60)  # the first of two bars
    expect(page).to_have_url(re.compile(past_day(2)))
    page.goto(f"{tally.url}/#/event/search?range=week")
    expect(page.locator("#event-chart .note")).to_contain_text("480 hits")
    box = page.locator("#event-chart svg").bounding_box()
    assert box
    page.touchscreen.tap(box["x"] + box["width"] - 10, box["y"] + 60)
    tooltip = page.locator("#event-chart .tooltip")
    expect(tooltip).to_contain_text("120 hits")
    expect(page).to_have_url(re.compile("range=week$"))
    assert tooltip.evaluate("""tooltip => [...document.querySelectorAll("#event-chart rect.bar")]
      .every(bar => tooltip.getBoundingClientRect().bottom <= bar.getBoundingClientRect().y)""")
    page.touchscreen.tap(box["x"] + box["width"] - 10, box["y"] + 60)
    expect(page).to_have_url(re.compile(f"range={past_day(0)}$"))
    # It has room for two lines, so that a longer text does not move the ranges.
    assert page.locator("#event-chart .readout").evaluate("readout => readout.clientHeight") > 36
    page.goto(f"{tally.url}/#/event/search?range=month&as=table")
    rows = page.locator("#event-chart tbody th")
    expect(rows).to_have_count(30)
    expect(page.locator("#event-chart thead")).to_contain_text("30 days")
    assert rows.first.evaluate("row => row.clientHeight < 40")
    assert page.locator("#event-chart .table-view").evaluate("view => view.clientHeight") > 230


@pytest.mark.fails_on_mutant(
    "a bar opens nothing", "static/js/components/hits-chart.js", "onRange(iso.slice(0, 10))", "undefined"
)
@pytest.mark.fails_on_mutant(
    "another chart has the selected bar", "static/js/components/hits-chart.js", "      chart.clear();\n", ""
)
@pytest.mark.fails_on_mutant("a click draws a frame", "static/app.css", ", .plot:focus:not(:focus-visible)", "")
@pytest.mark.fails_on_mutant(
    "a day has the hours of its neighbours", "static/js/data/ranges.js", "start.slice(0, 10) >= from &&", ""
)
def test_any_range_is_an_address_and_a_bar_opens_its_day_or_hour(
    tally: Process, open_page, console_messages: list[str]
) -> None:
    page = open_page(f"{tally.url}/#/event/search?range=week")
    svg, note = page.locator("#event-chart svg"), page.locator("#event-chart .note")
    bars, title = page.locator("#event-chart rect.bar"), page.locator("#event-chart-title")
    expect(note).to_contain_text("480 hits")
    box = svg.bounding_box()
    assert box
    svg.click(position={"x": 40 + (box["width"] - 40) * 5.5 / 7, "y": 60})
    expect(page).to_have_url(re.compile(f"range={past_day(1)}$"))
    expect(title).to_have_text("Hits per hour")
    expect(note).to_contain_text(
        re.compile("240 hits. 100% more than the day before. Peak hour: .*, 240 hits. All events")
    )
    expect(bars).to_have_count(24)
    assert svg.evaluate("svg => document.activeElement === svg && getComputedStyle(svg).outlineStyle") == "none"
    expect(page.locator("#event-chart .highlighted")).to_have_count(0)
    expect(page.locator("#event-chart .tooltip")).to_have_text("")
    first, last = page.get_by_label("From", exact=True).last, page.get_by_label("To", exact=True).last
    expect(first).to_have_value(past_day(1))
    first.fill(past_day(2))
    first.press("Enter")
    expect(note).to_contain_text("360 hits.")
    expect(last).to_have_value(past_day(1))
    page.go_back()
    note.get_by_role("link").click()
    page.locator("#history-day").get_by_role("link", name="search").click()
    expect(page).to_have_url(re.compile(f"event/search.range={past_day(1)}$"))
    choose(page, "#event-chart", "90 days")
    expect(bars).to_have_count(90)
    choose(page, "#event-chart", "Year")
    expect(bars).to_have_count(12)
    expect(title).to_have_text("Hits per month")

    def open_last_bar(expected: str) -> None:
        expect(page.locator("#event-chart[aria-busy=false]")).to_be_visible()
        svg.focus()
        page.keyboard.press("End")
        page.keyboard.press("Enter")
        expect(title).to_have_text(expected)

    open_last_bar("Hits per day")
    choose(page, "#event-chart", "Day")
    expect(title).to_have_text("Hits per hour")
    open_last_bar("Hits per minute")
    expect(page).to_have_url(re.compile(f"range={past_day(0)}T"))
    assert console_messages == []


def type_date(field: Locator, day: str) -> None:
    year, month, day_of_month = day.split("-")
    field.focus()
    field.press_sequentially(month + day_of_month + year)


@pytest.mark.fails_on_mutant(
    "each digit is applied", "static/js/components/hits-chart.js", "{ edited = true; }", "{ applyDates(); }"
)
@pytest.mark.fails_on_mutant(
    "typing is overwritten", "static/js/components/hits-chart.js", "    if (edited) return;\n", ""
)
@pytest.mark.fails_on_mutant(
    "days before the first count are shown", "static/js/components/hits-chart.js", "from.value >= first && ", ""
)
@pytest.mark.fails_on_mutant(
    "future days are shown", "static/js/components/hits-chart.js", " && to.value <= today()", ""
)
@pytest.mark.fails_on_mutant(
    "an unknown range is an hour without a word",
    "static/js/components/hits-chart.js",
    'value && value !== "hour"',
    "false",
)
def test_a_range_is_typed(tally: Process, open_page, console_messages: list[str]) -> None:
    page = open_page(f"{tally.url}/#/event/search?range={past_day(1)}", locale="en-US")
    note, problem = page.locator("#event-chart .note"), page.locator("#event-chart .problem")
    first, last = page.get_by_label("From", exact=True).last, page.get_by_label("To", exact=True).last
    expect(note).to_contain_text("240 hits.")
    type_date(first, past_day(2))
    expect(page).to_have_url(re.compile(f"range={past_day(1)}$"))
    page.evaluate("location.hash = location.hash.replace('search', 'signup')")
    expect(page.locator("#event-name")).to_have_text("signup")
    expect(first).to_have_value(past_day(2))
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(f"signup.range={past_day(2)}..{past_day(1)}$"))
    expect(note).to_contain_text("120 hits.")
    days = page.url
    for field, wrong in ((first, "0002-02-03"), (first, past_day(9)), (last, past_day(-1)), (last, past_day(5))):
        type_date(field, wrong)
        page.locator("#event-name").click()
        expect(problem).to_contain_text("Enter an earlier and a later day from")
        expect(page).to_have_url(days)
        field.fill(past_day(2) if field is first else past_day(1))
        field.press("Enter")
        expect(problem).to_have_text("")
    first.press("Backspace")
    page.locator("#event-name").click()
    expect(problem).to_be_visible()
    choose(page, "#event-chart", "Week")
    expect(problem).to_be_hidden()
    choose(page, "#event-chart", "Dates")
    first.fill(past_day(2))
    page.locator("#event-name").click()
    expect(page).to_have_url(re.compile(f"range={past_day(2)}..{past_day(0)}$"))
    for unknown in ("2026-13-45", "2026-02-30", "2026-11-15..2026-11-01", "banana"):
        page.goto(f"{tally.url}/#/event/search?range={unknown}")
        expect(problem).to_have_text("The range in the address cannot be shown. This is the last hour.")
        expect(page.locator("#event-chart :checked")).to_have_value("hour")
        page.goto(f"{tally.url}/#/event/search?range=hour")
        expect(problem).to_be_hidden()
    assert console_messages == []


@pytest.mark.fails_on_mutant(
    "another range forgets the second event", "static/js/pages/event.js", "{ ...view, ...change }", "change"
)
def test_two_events_are_compared_in_one_chart(tally: Process, open_page, console_messages: list[str]) -> None:
    page = open_page(f"{tally.url}/#/event/search?range=week")
    expect(page.locator("#event-chart .note")).to_contain_text("480 hits")
    page.locator("#event-with").fill("signup")
    page.locator("#event-with").press("Enter")
    expect(page).to_have_url(re.compile("range=week&with=signup$"))
    expect(page.locator("#event-chart .note")).to_contain_text("160 hits of")
    choose(page, "#event-chart", "Month")
    expect(page).to_have_url(re.compile("range=month&with=signup$"))
    expect(page.locator("#event-chart rect.bar")).to_have_count(30)
    page.locator("#event-chart svg").focus()
    page.keyboard.press("End")
    expect(page.locator("#event-chart .tooltip")).to_contain_text(re.compile("120 hits · 40 of .signup"))
    page.locator("#event-chart").get_by_role("button", name="View as table").click()
    expect(page.locator("#event-chart thead")).to_contain_text("signup")
    assert console_messages == []


@pytest.mark.fails_on_mutant("the newest day has no label", "static/js/components/bar-chart.js", "&& !isNewestDay", "")
@pytest.mark.fails_on_mutant(
    "seven bars fill a part of the panel",
    "static/js/components/bar-chart.js",
    "barStep = (box.width - MARGIN.left) / points.length",
    "barStep = Math.min(64, (box.width - MARGIN.left) / points.length)",
)
@pytest.mark.parametrize("width", [390, 1440, 2560])
def test_a_chart_fills_its_panel_and_names_the_newest_day(tally: Process, open_page, width: int) -> None:
    page = open_page(f"{tally.url}/#/event/search", viewport={"width": width, "height": 900})
    for label, bars in (("Week", 7), ("Month", 30)):
        choose(page, "#event-chart", label)
        expect(page.locator("#event-chart rect.bar")).to_have_count(bars)
        today = page.evaluate(
            "new Intl.DateTimeFormat(undefined, {day: 'numeric', month: 'short', timeZone: 'UTC'}).format()"
        )
        expect(page.locator("#event-chart .axis text").last).to_have_text(today)
        svg, bar = (
            page.locator("#event-chart svg").bounding_box(),
            page.locator("rect.bar").nth(bars - 1).bounding_box(),
        )
        assert svg
        assert bar
        assert bar["x"] + bar["width"] > svg["x"] + svg["width"] * (1 - 1 / bars)


@pytest.mark.parametrize("path", ["/", "/#/event/search", "/#/history", "/#/leaderboard"])
@pytest.mark.parametrize("width", [390, 768, 1440])
def test_nothing_jumps_while_a_page_loads(tally: Process, open_page, path: str, width: int) -> None:
    page = open_page("about:blank", viewport={"width": width, "height": 900})
    page.add_init_script(SHIFTS)
    page.goto(tally.url + path)
    wait_until_loaded(page)
    expect(page.locator("[data-page]:visible :is(.bar, .ranking li)").first).to_be_attached()
    assert page.evaluate("window.shifts") < 0.05


@pytest.mark.fails_on_mutant(
    "the running hour is compared",
    "static/js/data/earlier-days.js",
    "start.slice(11, 13) < hour",
    "start.slice(11, 13) <= hour",
)
def test_a_headline_compares_today_with_earlier_days(tally: Process, open_page) -> None:
    begin = datetime(2026, 11, 22, tzinfo=UTC)
    points = [{"start": (begin + timedelta(hours=i)).isoformat(), "count": 1} for i in range(7 * 24 + 15)]
    points[-2]["count"], points[-1]["count"] = 8, 100
    page = open_page("about:blank", timezone_id="UTC", locale="en-US")
    page.route("**/series?step=hour&points=194", lambda route: route.fulfill(json={"points": points}))
    page.route(
        "**/history", lambda route: route.fulfill(json=[{"day": "2026-11-23", "hits": 1, "events": 1, "parts": 1}])
    )
    page.route("**/history/*", lambda route: route.fulfill(json={"day": "2026-11-23", "parts": []}))
    for path, headline in (("/#/", "#today"), ("/#/event/search", "#event-today")):
        page.goto(tally.url + path)
        expect(page.locator(f"{headline} .compared")).to_have_text(
            re.compile(r"By 2:00\sPM: 21, 50% more than yesterday \(14\)$")
        )


@pytest.fixture
def quiet_tally(tmp_path: Path) -> Iterator[Process]:
    """A server with two closed days and no hit today."""
    store = f"sqlite:///{tmp_path}/tally.db"
    with ThreadPoolExecutor() as pool:  # Playwright's event loop runs in this thread
        pool.submit(asyncio.run, count_two_days(store)).result()
    process = Process(tmp_path, TALLY_STORE=store)
    yield process.start()
    process.kill()


@pytest.mark.fails_on_mutant(
    "an event is listed twice",
    "static/js/components/card-grid.js",
    "    if (known.some((name) => added.has(name))) return reorder();\n",
    "",
)
def test_events_stay_in_sight_after_midnight(quiet_tally: Process, open_page, console_messages: list[str]) -> None:
    page = wait_until_loaded(open_page(quiet_tally.url))
    search = page.locator('[data-event="search"]')
    expect(search.locator(".count")).to_have_text("0")
    expect(search.locator(".rate")).to_contain_text("240 on ")
    expect(page.locator("#empty")).to_be_hidden()
    expect(page.locator("#match-count")).to_have_text("3 events")
    search.hover()
    search.get_by_role("button", name="Pin search").click()
    quiet_tally.post("/event/search")
    expect(search.locator(".count")).to_have_text("1")
    expect(search.locator(".rate")).not_to_contain_text("on")
    expect(page.locator("#match-count")).to_have_text("3 events")
    expect(page.locator(".card")).to_have_count(3)
    quiet_tally.post("/event/brand%20new")
    expect(page.locator("#match-count")).to_have_text("4 events")
    page.locator("#filter").fill("page.v")
    expect(page.locator(".card")).to_have_count(1)
    expect(page.locator("#match-count")).to_have_text("1 of 4 events")
    assert console_messages == []


MOVERS = {
    "until": "2026-11-29T14:00:00+00:00",
    "events": [
        {"eventName": "page.view", "count": 200, "previous": 300, "weekAgo": 250},
        {"eventName": "doubled", "count": 40, "previous": 20, "weekAgo": 20},
        {"eventName": "search", "count": 112, "previous": 100, "weekAgo": None},
        {"eventName": "fresh", "count": 11, "previous": 0, "weekAgo": 0},
        {"eventName": "tiny", "count": 9, "previous": 1, "weekAgo": 0},
    ],
}


@pytest.mark.fails_on_mutant(
    "the largest count comes first",
    "static/js/components/card-grid.js",
    "movers.changeOf(nameOf(b)) - movers.changeOf(nameOf(a))",
    "0",
)
@pytest.mark.fails_on_mutant(
    "no movers are loaded", "static/js/components/card-grid.js", "await movers.load(now())", "false"
)
@pytest.mark.fails_on_mutant("few hits come first", "static/js/data/movers.js", "HITS_MIN = 10", "HITS_MIN = 0")
def test_cards_and_the_leaderboard_show_changes(tally: Process, open_page, console_messages: list[str]) -> None:
    tally.post("/events", b'{"no.past": 400}')
    page = open_page("about:blank", timezone_id="UTC", locale="en-US")
    page.route("**/movers?window=today&limit=10000", lambda route: route.fulfill(json=MOVERS))
    page.goto(f"{tally.url}/#/?sort=change")
    view, search = (page.locator(f'[data-event="{name}"] .delta') for name in ("page.view", "search"))
    expect(view).to_have_text("-100 -33.3%")
    page.set_viewport_size({"width": 320, "height": 800})
    expect(page.locator('[data-event="search"] .rate')).to_have_css("display", "none")
    page.set_viewport_size({"width": 1280, "height": 720})
    expect(view).to_have_accessible_name(
        re.compile(r"By 2:00\sPM: 200, 33.3% fewer than yesterday \(300\), 20% fewer than a week ago \(250\)$")
    )
    for i, name in enumerate(["page.view", "search"]):
        expect(page.locator(".card .name").nth(i)).to_have_text(name)
    expect(page.locator('[data-event="no.past"] .delta')).to_be_empty()
    page.locator("#sort").select_option("name")
    expect(search).to_have_text("▲ 12%")
    expect(search).to_have_accessible_name(re.compile(r"12% more than yesterday \(100\)$"))
    page.goto(f"{tally.url}/#/leaderboard")
    row, names = page.locator("#leaderboard-list li:has-text('page.view')"), page.locator("#leaderboard-list .name")
    expect(row).to_contain_text("-100 -33.3%")
    expect(page.locator("#leaderboard-head")).to_have_text("EventChangeShareHits")
    expect(page.locator("#leaderboard-list .loss")).to_have_count(0)
    expect(page.locator("#leaderboard-note")).to_contain_text("Changes: today until")
    choose(page, "#leaderboard-order", "Movers")
    expect(names).to_have_text(["page.view", "doubled", "search", "fresh", "tiny"])
    expect(page.locator("#leaderboard-list li", has_text="fresh")).to_contain_text("+11 new")
    expect(row.locator(".loss")).to_be_visible()
    expect(page.locator("#leaderboard-list .loss")).to_have_count(1)
    periods = r"^Hits and changes: today until 2:00\sPM, compared with yesterday until 2:00\sPM\."
    expect(page.locator("#leaderboard-note")).to_have_text(re.compile(f"{periods}$"))
    choose(page, "#leaderboard-order", "Movers by %")
    expect(names).to_have_text(["doubled", "page.view", "search", "fresh"])
    expect(page.locator("#leaderboard-note")).to_have_text(
        re.compile(f"{periods} Only events with at least 10 hits in one")
    )
    assert page.url.endswith("order=percent")
    page.set_viewport_size({"width": 390, "height": 844})
    expect(row.locator(".by-hits")).to_be_hidden()
    expect(row.locator(".by-part")).to_be_visible()
    page.goto(f"{tally.url}/#/")
    page.get_by_role("link", name="Movers").click()  # those of 7 days: this server has counted for two
    expect(page.locator("#leaderboard-note")).to_have_text("Nothing to compare with yet.")
    choose(page, "#leaderboard-window", "All time")
    expect(page.locator("#leaderboard-order")).to_be_hidden()
    expect(row.locator(".delta")).to_be_empty()
    assert console_messages == []
