"""Every screen of the dashboard: before the eyes of axe, by keyboard, in every width, and with names that attack it."""

import asyncio
import csv
import gzip
import io
import json
import re
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from playwright.sync_api import Download, Locator, Page, Route, expect

from app.settings import Settings
from tests.support.servers import ROOT, ChosenClock, Process, serving

AXE = ROOT / "node_modules/axe-core/axe.min.js"
WIDTHS = [320, 390, 768, 1440, 1920, 3840]
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'-alert(1)-'",
    "javascript:alert(1)",
    "<script>alert(1)",
    "<style onload=alert(1)>",
    "${alert(1)}",
    "{{constructor.constructor('alert(1)')()}}",
    "`;alert(1);`",
    "<!--",
    "&lt;b&gt;&amp;",
    "%3Cscript%3E",
    "#event?range=day&x=1",
    "=HYPERLINK(1)",
    "+cmd|calc",
    "x" * 128,
    "W " * 63 + "W",
    "ورود کاربر به سامانه",
    "👩‍💻 pairing",
    unicodedata.normalize("NFC", "Z̸̢̛͔a̷l̶g̴o̵" * 6),
]
IN_A_HURRY = """([text, then]) => {
  const filter = document.getElementById("filter");
  filter.value = text;
  filter.dispatchEvent(new Event("input"));
  document.querySelector(then).click();
}"""
USUAL = {"signup": 40, "page.view": 300, "search": 120}
ADMIN = "a-key-for-everything-4"
# axe cannot judge colours in what is faded, drawn, or under something that floats; the tokens are tested below
STILL = """
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(`* { transition: none !important; animation: none !important }
    nav { position: static !important } del::after, .card .sparkline, .ranking .share { display: none !important }`);
  document.adoptedStyleSheets = [sheet];
"""
SCREENS = ["/", "/#/event/signup", "/#/event/signup?range=week", "/#/leaderboard", "/#/leaderboard?window=total"]
SCREENS += ["/#/history", "/#/history/{yesterday}?with={before}", "/#/settings", "/kiosk", "/kiosk?event=signup"]


def day(ago: int) -> str:
    return (datetime.now(UTC) - timedelta(days=ago)).date().isoformat()


async def live_through(store: str) -> None:
    """Two days that are over, on a clock that went through them; what is counted afterwards is counted by a process."""
    clock = ChosenClock(-2 * 86_400)
    admin = {"Authorization": f"Bearer {ADMIN}"}
    async with serving(Settings(TALLY_STORE=store, admin_keys=ADMIN), clock) as tally, tally.client() as client:
        await client.post("/events", json={**USUAL, "gone": 9})
        (await client.put("/event/gone", json={"count": 7}, headers=admin)).raise_for_status()
        clock.shift = -86_400
        await client.post("/events", json=USUAL)
        (await client.post("/reset", headers=admin)).raise_for_status()
        await client.post("/events", json=USUAL)


@pytest.fixture(scope="module")
def tally(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One server for the module: its tests only add events of their own."""
    directory = tmp_path_factory.mktemp("dashboard")
    store = f"sqlite:///{directory}/tally.db"
    with ThreadPoolExecutor() as pool:  # Playwright's loop runs in this thread
        pool.submit(asyncio.run, live_through(store)).result()
    process = Process(
        directory,
        TALLY_STORE=store,
        TALLY_WRITE_LIMIT="100000/second",
        TALLY_READ_LIMIT="10000/second",
        TALLY_ADMIN_KEYS=ADMIN,
    )
    process.start()
    process.post("/events", json.dumps(USUAL).encode())
    yield process
    process.kill()


def settled(page: Page) -> Page:
    expect(page.locator("#status")).to_have_attribute("data-state", "live")
    page.evaluate("new Promise(requestAnimationFrame)")  # by then a new address has been acted on
    expect(page.locator("[aria-busy=true]:visible")).to_have_count(0)
    page.wait_for_load_state("networkidle")
    return page


def file_of(download: Download) -> dict[str, str]:
    rows = csv.reader(io.StringIO(Path(download.path()).read_text()))
    return {row[0]: row[1] for row in rows}


def choose(page: Page, group: str, label: str) -> None:
    page.locator(group).get_by_role("radio", name=label, exact=True).check()


def complaints(page: Page) -> list[str]:
    """Of axe, about the page as it is, light and dark."""
    page.evaluate(STILL)
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text())
    told = []
    for scheme, rules in (("light", None), ("dark", ["color-contrast"])):
        page.emulate_media(color_scheme=scheme)
        only = {"runOnly": rules} if rules else {}
        look = "asked => axe.run({ exclude: ['.axis'] }, { resultTypes: ['violations', 'incomplete'], ...asked })"
        found = page.evaluate(look, only)
        broken = [*found["violations"], *found["incomplete"]]
        told += [
            f"{scheme} {rule['id']}: {node['html'][:120]} {node['any'][:1]}"
            for rule in broken
            for node in rule["nodes"]
        ]
    return [text for text in told if "too short" not in text]  # a 0 is text, whatever axe makes of it


def fits(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_axe_finds_nothing_on_any_screen(tally: Process, open_page, said: list[str]) -> None:
    page = open_page(tally.url, viewport={"width": 1280, "height": 900})
    for screen in SCREENS:
        page.goto(tally.url + screen.format(yesterday=day(1), before=day(2)))
        assert complaints(settled(page)) == [], screen
    page.goto(f"{tally.url}/#/event/signup")
    for opener in ("#help-open", "#share-open", "#event-correct"):
        settled(page).locator(opener).click()
        assert complaints(page) == [], opener
        page.keyboard.press("Escape")
    assert said == []


@pytest.mark.catches(
    "an image without a name until its numbers are there",
    "static/js/components/bar-chart.js",
    ', "aria-label": title.textContent ?? ""',
    "",
)
@pytest.mark.catches(
    "the table of one event under the name of another",
    "static/js/components/bar-chart.js",
    "return tableView.replaceChildren()",
    "return",
)
@pytest.mark.catches(
    "the bars of one event under the name of another",
    "static/js/components/bar-chart.js",
    'svg.style.visibility = points.length ? "" : "hidden";',
    "",
)
def test_a_chart_says_that_it_is_loading_and_never_shows_another_event(tally: Process, open_page) -> None:
    page = settled(open_page(tally.url))
    held: list[Route] = []
    page.route("**/series?*", lambda route: held.append(route))  # noqa: PLW0108 - Playwright cannot mark a builtin
    page.goto(f"{tally.url}/#/event/signup")
    chart = page.locator("#event-chart")
    expect(chart).to_have_attribute("aria-busy", "true")
    assert complaints(page) == []
    for route in held:
        route.continue_()
    expect(chart).to_have_attribute("aria-busy", "false")
    expect(chart.locator(".plot")).to_be_visible()
    chart.get_by_role("button", name="View as table").click()
    expect(chart.locator("td").first).to_be_visible()
    chart.get_by_role("button", name="View as chart").click()
    page.route("**/series?*", lambda route: route.abort())
    page.goto(f"{tally.url}/#/event/search")
    expect(chart).to_contain_text("No history to show")
    assert complaints(page) == []
    expect(chart.locator(".plot")).to_be_hidden()
    chart.get_by_role("button", name="View as table").click()
    expect(chart.locator("td")).to_have_count(0)


def test_no_screen_scrolls_sideways_in_any_width(tally: Process, open_page, said: list[str]) -> None:
    page = open_page(tally.url)
    for screen in SCREENS:
        page.goto(tally.url + screen.format(yesterday=day(1), before=day(2)))
        settled(page)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            assert fits(page), (screen, width)
    assert said == []


def test_names_that_attack_are_text_on_every_screen_and_in_the_file(tally: Process, open_page, said: list[str]) -> None:
    tally.post("/events", "\n".join(HOSTILE).encode())
    page = open_page(tally.url, viewport={"width": 320, "height": 700})
    for name in HOSTILE:
        card = page.locator(f"[data-event={json.dumps(name, ensure_ascii=False)}]")
        expect(card).to_have_count(1)
        box = card.bounding_box()
        assert box
        assert box["x"] + box["width"] <= 320
    for name in HOSTILE:
        page.goto(f"{tally.url}/#/event/{quote(name, safe='')}")
        expect(page.locator("h1:visible")).to_have_text(name)
        assert fits(page), name
    page.goto(f"{tally.url}/kiosk?rotate=0&{urlencode({'event': HOSTILE}, doseq=True)}")
    for name in HOSTILE:
        expect(page.locator("h1:visible")).to_have_text(name)
        assert fits(page), name
        page.keyboard.press("ArrowRight")
    page.goto(f"{tally.url}/#/leaderboard")
    for name in HOSTILE:
        expect(page.locator("#leaderboard-list li").filter(has_text=name).first).to_be_attached()
    page.goto(f"{tally.url}/#/event/{quote(HOSTILE[0])}")
    page.locator("#share-open").click()
    expect(page.locator("#share")).to_contain_text("%3Cimg")
    page.locator("#share").get_by_role("button", name="Close").click()
    page.locator("#event-delete").click()
    expect(page.locator("#confirm .word")).to_have_text(HOSTILE[0])
    page.goto(tally.url)
    with page.expect_download() as download:
        page.locator("#export").click()
    rows = file_of(download.value)
    assert rows["'=HYPERLINK(1)"] == rows["'+cmd|calc"] == rows[HOSTILE[0]] == "1"
    assert page.locator("[onerror], [onload], main script").count() == 0
    assert said == []


def test_many_long_names_still_show_their_last_hour(tally: Process, open_page, said: list[str]) -> None:
    tally.post("/events", "\n".join(f"{i} {'ش' * 120}" for i in range(60)).encode())
    page = open_page(tally.url)
    page.locator("#filter").fill("ششش")
    expect(page.locator(".card:visible")).to_have_count(60)
    expect(page.locator(".card .sparkline path[d^=M]").first).to_be_attached(timeout=10_000)
    assert said == []


def test_an_event_page_moves_with_its_hits(tally: Process, open_page, said: list[str]) -> None:
    tally.post("/event/moving", b'{"by": 3}')
    pages = [open_page(f"{tally.url}/#/event/moving") for _ in range(2)]
    for page in pages:
        expect(page.locator("#event-today .hero .value")).to_have_text("3")
        expect(page.locator("#event-today .figures")).to_contain_text("Total3")
    tally.post("/event/moving")
    for page in pages:
        expect(page.locator("#event-today .hero .value")).to_have_text("4")
        expect(page.locator("#event-today .figures")).to_contain_text("Total4")
        assert page.title() == "moving · Tally"
    choose(page, "#event-chart", "Week")
    expect(page.locator("#event-chart h2")).to_have_text("Hits per day")
    page.locator("#event-chart .toggle").click()
    expect(page.locator("#event-chart tbody tr")).to_have_count(7)
    expect(page.locator("#event-chart tbody tr").first).to_contain_text("4")
    assert said == []


def test_an_event_is_set_beside_the_days_before(tally: Process, open_page) -> None:
    page = open_page(f"{tally.url}/#/event/search?range=week")
    expect(page.locator("#event-chart .note")).to_contain_text("360 hits in 7 days, 360 more than in the 7 days before")


def test_the_leaderboard_ranks_what_its_window_holds(tally: Process, open_page, said: list[str]) -> None:
    page = open_page(f"{tally.url}/#/leaderboard")
    first = page.locator("#leaderboard-list li").first
    expect(first).to_contain_text("page.view")
    expect(first).to_contain_text("300")
    choose(page, "#leaderboard-window", "7 days")
    expect(first).to_contain_text("1,200")
    assert "window=7d" in page.url
    page.reload()
    expect(first).to_contain_text("1,200")
    expect(page.locator("#leaderboard-window :checked")).to_have_value("7d")
    first.get_by_role("link").click()
    expect(page.locator("#event-name")).to_have_text("page.view")
    assert said == []


def test_two_days_that_are_over_stand_side_by_side(tally: Process, open_page, said: list[str]) -> None:
    page = open_page(f"{tally.url}/#/history")
    expect(page.locator("#history-day")).to_contain_text("920 hits of 3 events")
    expect(page.locator("#history-day")).to_contain_text("Part 1: 460, Part 2: 460")
    expect(page.locator(".corrections")).to_contain_text("Day reset")
    page.locator("#history-with").select_option(day(2))
    expect(page.locator("#history-day .lead")).to_contain_text("on")
    row = page.locator("#history-day tbody tr").filter(has_text="gone")
    assert row.locator("td").all_text_contents() == ["0", "7", "-7"]
    with page.expect_download() as download:
        page.locator("#history-csv").click()
    rows = file_of(download.value)
    assert rows["search"] == "120"  # of the last part
    page.locator("#history-choice").select_option(day(2))
    assert f"/{day(2)}?with={day(2)}" in page.url
    expect(page.locator("#history-day")).to_contain_text("467 hits of 4 events")
    expect(page.locator(".corrections")).to_contain_text("Corrected gone count 9 7")
    assert said == []


def test_people_are_counted_and_ranked(tally: Process, open_page, said: list[str]) -> None:
    hits = [{"event": "met", "user": user, "session": user} for user in [*HOSTILE, HOSTILE[0]]]
    tally.post("/events", json.dumps(hits).encode())
    page = open_page(f"{tally.url}/#/event/met")
    expect(page.locator("#event-today .figures")).to_contain_text(f"Unique users today{len(HOSTILE)}")
    expect(page.locator("#event-today .figures")).to_contain_text(f"Active sessions{len(HOSTILE)}")
    page.locator("#event-users").click()
    expect(page.locator("#leaderboard-title")).to_have_text("Users of met")
    expect(page.locator("#leaderboard-list li").first).to_contain_text(HOSTILE[0])
    expect(page.locator("#leaderboard-list li")).to_have_count(len(HOSTILE))
    assert page.locator("#leaderboard-list a, #leaderboard-list img, #leaderboard-list script").count() == 0
    page.goto(tally.url)
    expect(page.locator("#today .figures")).to_contain_text("Unique users")
    assert said == []


@pytest.mark.catches(
    "asks for no name",
    "static/js/components/confirm-dialog.js",
    "submit.disabled = wordInput.value.normalize() !== word;",
    "submit.disabled = false;",
)
def test_an_administrator_corrects_by_typing_the_name(tally: Process, open_page, said: list[str]) -> None:
    tally.post("/event/wrong", b'{"by": 50}')
    page = open_page(f"{tally.url}/#/settings")
    page.locator("#key input").fill(ADMIN)
    page.get_by_role("button", name="Use", exact=True).click()
    page.goto(f"{tally.url}/#/event/wrong")
    expect(page.locator("#event-today .figures")).to_contain_text("Total50")
    page.locator("#event-correct").click()
    page.locator("#confirm-count").fill("20")
    expect(page.get_by_role("button", name="Correct").last).to_be_disabled()
    page.locator("#confirm-word").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#confirm")).to_be_hidden()
    expect(page.locator("#event-today .hero .value")).to_have_text("20")
    expect(page.locator("#event-today .figures")).to_contain_text("Total50")
    page.locator("#event-reset").click()
    page.locator("#confirm-word").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#event-today .hero .value")).to_have_text("0")
    page.locator("#event-delete").click()
    page.locator("#confirm-word").fill("wron")
    expect(page.locator("#confirm button.danger")).to_be_disabled()
    page.locator("#confirm-word").press_sequentially("g")
    page.keyboard.press("Enter")
    expect(page.locator("#event-today .figures")).to_contain_text("Total0")
    assert tally.get("/event/wrong")["total"] == 0
    assert said == []


def test_what_is_pinned_stands_first_and_stays_there(tally: Process, open_page, said: list[str]) -> None:
    tally.post("/event/precious")
    page = open_page(tally.url)
    card = page.locator('[data-event="precious"]')
    expect(card).to_be_attached()
    card.hover()
    card.get_by_role("button", name="Pin precious").click()
    expect(page.locator(".card").first).to_have_attribute("data-event", "precious")
    page.reload()
    expect(page.locator(".card").first).to_have_attribute("data-event", "precious")
    assert said == []


@pytest.mark.catches(
    "forgets the view", "static/js/pages/overview.js", "view = Object.fromEntries(query);", "view = {};"
)
@pytest.mark.catches("forgets the last letter", "static/js/pages/overview.js", ' filter: byId("filter").value,', "")
def test_a_view_can_be_sent_and_gone_back_to(tally: Process, open_page, said: list[str]) -> None:
    page = settled(open_page(tally.url))
    page.locator("#sort").select_option("count")
    page.locator("#filter").press_sequentially("e")
    page.locator("#filter").press_sequentially("arc")
    expect(page.locator(".card")).to_have_count(1)
    page.evaluate(IN_A_HURRY, ["earch", "#hits-chart input[value=week]"])
    assert page.url.endswith("#/?sort=count&filter=earch&range=week")
    other = settled(open_page(page.url))
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
    assert said == []


def test_cards_stand_in_the_order_that_is_asked_for(tally: Process, open_page) -> None:
    tally.post("/events", b'{"order.c": 7, "order.a": 5, "order.b": 9}')
    page = open_page(f"{tally.url}/#/?filter=order.")
    names = page.locator(".card .name")
    for order, expected in {"first": "cab", "name": "abc", "count": "bca", "rate": "bca"}.items():
        page.locator("#sort").select_option(order)
        expect(names).to_have_text([f"order.{name}" for name in expected])


def test_the_share_drawer_shows_the_badge_as_others_see_it(tally: Process, open_page, said: list[str]) -> None:
    page = settled(open_page(f"{tally.url}/#/event/signup"))
    page.locator("#share-open").click()
    expect(page.get_by_alt_text("Badge of signup")).to_be_visible()
    page.wait_for_function("document.querySelector('#share img').naturalHeight === 20")
    expect(page.locator("#share")).to_contain_text(f"![hits]({tally.url}/badge/signup.svg)")
    assert said == []


@pytest.mark.catches(
    "moves cards under the pointer",
    "static/js/components/card-grid.js",
    '!list.matches(":hover, :focus-within")',
    "true",
)
def test_cards_do_not_move_under_the_pointer(tally: Process, open_page) -> None:
    page = open_page(tally.url)
    page.clock.install()
    page.goto(tally.url)
    page.locator("#sort").select_option("count")
    settled(page).locator(".card").nth(1).hover()
    second = page.locator(".card").nth(1).get_attribute("data-event")
    tally.post("/event/overtaker", b'{"by": 1000000}')
    expect(page.locator('[data-event="overtaker"]')).to_be_attached()
    page.clock.fast_forward(20_000)
    assert page.locator(".card").nth(1).get_attribute("data-event") == second
    page.mouse.move(5, 5)
    page.clock.run_for(20_000)
    expect(page.locator(".card").first).to_have_attribute("data-event", "overtaker")


def focused(page: Page) -> Locator:
    return page.locator(":focus")


def test_every_screen_is_reached_and_worked_by_keyboard_alone(tally: Process, open_page, said: list[str]) -> None:
    page = settled(open_page(tally.url, viewport={"width": 1280, "height": 900}))
    walk = walk_with_tab(page)
    assert walk[0] == "Skip to the numbers"
    assert len([name for name in walk if name in {"Overview", "Leaderboard", "History", "Settings"}]) == 4
    assert len(walk) < 40, "a grid is one stop"
    page.keyboard.press("/")
    expect(page.locator("#filter")).to_be_focused()
    page.keyboard.type("signup")
    expect(page.locator(".card:visible")).to_have_count(1)
    page.keyboard.press("Escape")
    page.locator("#export").focus()
    page.keyboard.press("Tab")
    expect(focused(page)).to_have_class("name")
    page.keyboard.press("Home")
    for key in ("ArrowRight", "ArrowDown", "End", "Home"):
        page.keyboard.press(key)
    chosen = focused(page).text_content()
    page.keyboard.press("Enter")
    expect(page.locator("#event-name")).to_be_focused()
    expect(page.locator("#event-name")).to_have_text(chosen)
    page.locator("#event-chart :checked").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#event-chart-title")).to_have_text("Hits per hour")
    page.locator("#share-open").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#share")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#share-open")).to_be_focused()
    for key, heading in (("l", "Leaderboard"), ("h", "History"), ("s", "Settings")):
        page.keyboard.press(key)
        expect(page.locator("h1:visible")).to_have_text(heading)
        expect(page.locator("h1:visible")).to_be_focused()
    page.keyboard.press("h")
    expect(page.locator("h1:visible")).to_have_text("History")
    expect(page.locator("#history-day")).to_contain_text("920 hits")
    page.locator("#history-chart .plot").focus()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    expect(page.locator("#history-day")).to_contain_text("gone")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    assert said == []


def walk_with_tab(page: Page) -> list[str]:
    """The names of all that Tab stops at, each of which shows that it does."""
    names: list[str] = []
    page.evaluate("document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute('tabindex')")
    while len(names) < 60:
        page.keyboard.press("Tab")
        name, shown = page.evaluate("""() => {
          const el = document.activeElement;
          const seen = el.matches('[type=radio]') ? el.nextElementSibling : el;
          const outlined = el === document.body || getComputedStyle(seen).outlineStyle !== 'none';
          return [el.getAttribute('aria-label') ?? el.textContent.trim(), outlined];
        }""")
        assert shown, f"{name} has focus and does not show it"
        if names and name == names[0]:
            break
        names.append(name)
    return names


@pytest.mark.catches(
    "moves rows under the pointer",
    "static/js/components/ranking.js",
    'rows.size && list.matches(":hover, :focus-within")',
    "false",
)
def test_ranks_wait_while_the_pointer_is_on_them(tally: Process, open_page) -> None:
    page = settled(open_page(tally.url, viewport={"width": 1280, "height": 900}))
    first = page.locator("#top-events li").first
    first.hover()
    leader = first.locator(".name").text_content()
    tally.post("/event/leaps", b'{"by": 1000000}')
    expect(page.locator('[data-event="leaps"]')).to_be_attached()
    expect(first.locator(".name")).to_have_text(leader)
    page.mouse.move(5, 5)
    tally.post("/event/leaps")
    expect(page.locator("#top-events li").filter(has_text="leaps")).to_be_attached()


def test_shortcuts_of_one_key_can_be_switched_off(tally: Process, open_page) -> None:
    page = settled(open_page(f"{tally.url}/#/settings"))
    choose(page, "#set-shortcuts", "Off")
    page.locator("h1:visible").focus()
    page.keyboard.press("p")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_hidden()
    expect(page.locator("#status")).to_have_attribute("data-state", "live")


def test_a_theme_and_a_density_are_kept(tally: Process, open_page, said: list[str]) -> None:
    page = settled(open_page(f"{tally.url}/#/settings", color_scheme="light"))
    choose(page, "#set-theme", "Dark")
    choose(page, "#set-density", "Compact")
    page.reload()
    assert page.evaluate("({ ...document.documentElement.dataset })") == {"theme": "dark", "density": "compact"}
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 18, 24)"
    expect(page.locator("#health")).to_contain_text("sqlite")
    assert said == []


def test_forced_colours_leave_nothing_to_colour_alone(tally: Process, open_page) -> None:
    page = settled(open_page(tally.url, forced_colors="active"))
    for part in (".card", ".panel", ".pill"):
        assert page.locator(part).first.evaluate("el => parseFloat(getComputedStyle(el).borderTopWidth) > 0"), part
    assert complaints(page) == []


def test_a_kiosk_goes_round_and_fits_its_screen(tally: Process, open_page, said: list[str]) -> None:
    page = open_page(f"{tally.url}/kiosk?event=signup&event=search&rotate=2", viewport={"width": 1920, "height": 1080})
    expect(page.locator("h1:visible")).to_have_text("signup")
    number = page.locator(".number > .value:visible").first
    expect(number).to_have_text("40")
    box = number.bounding_box()
    assert box
    assert box["height"] > 300
    expect(page.locator("h1:visible")).to_have_text("search", timeout=10_000)
    page.keyboard.press("p")
    expect(page.locator("#status")).to_have_attribute("data-state", "paused")
    for size in ((320, 568), (800, 600), (3840, 2160)):
        page.set_viewport_size({"width": size[0], "height": size[1]})
        assert page.evaluate(
            "document.documentElement.scrollWidth <= innerWidth && document.documentElement.scrollHeight <= innerHeight"
        )
        box = number.bounding_box()
        assert box
        assert box["x"] + box["width"] <= size[0]
    assert said == []


PAIRS = [
    (text, under, 4.5)
    for text in ("text", "text-2", "text-3")
    for under in ("bg", "surface", "sunken", "flash", "accent-soft")
]
PAIRS += [(kind, f"{kind}-soft", 4.5) for kind in ("ok", "warn", "danger")] + [("on-accent", "accent", 4.5)]
PAIRS += [(text, under, 4.5) for text in ("accent", "ok", "danger") for under in ("bg", "surface", "accent-soft")]
PAIRS += [("control", under, 3) for under in ("bg", "surface")]


@pytest.mark.parametrize("scheme", [0, 1])
def test_colours_have_the_contrast_that_their_use_asks_for(scheme: int) -> None:
    css = (ROOT / "static/app.css").read_text()
    tokens = {name: pair[scheme] for name, *pair in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", css)}
    for text, under, least in PAIRS:
        light, dark = sorted((luminance(tokens[text]), luminance(tokens[under])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= least, (text, under)


def luminance(colour: str) -> float:
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_our_own_part_of_static_stays_small() -> None:
    files = [path for path in (ROOT / "static").rglob("*") if path.suffix in {".js", ".css", ".html"}]
    lines = [line for path in files if "vendor" not in path.parts for line in path.read_text().splitlines()]
    assert sum(bool(line.strip()) for line in lines) <= 2500


def test_all_of_static_is_light() -> None:
    files = sorted(path for path in (ROOT / "static").rglob("*") if path.is_file())
    assert len(gzip.compress(b"".join(path.read_bytes() for path in files))) < 70_000
