"""The pages of the dashboard: an event, the leaderboard, the history, corrections, the kiosk and the API docs."""

import csv
import io
import json
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from playwright.sync_api import Download, expect

from tests.browser.dashboard import (
    ADMIN_KEY,
    HOSTILE_NAMES,
    WIDTHS,
    accessibility_violations,
    choose,
    enter_admin_key,
    expect_status,
    fits_width,
    past_day,
    wait_until_loaded,
)
from tests.support.servers import Process


@pytest.fixture(scope="module")
def tally(tally_with_history: Process) -> Process:
    return tally_with_history


def counts_in_csv(download: Download) -> dict[str, str]:
    rows = csv.reader(io.StringIO(Path(download.path()).read_text()))
    return {row[0]: row[1] for row in rows}


def test_hostile_names_are_text_on_every_screen_and_in_the_csv_file(
    tally: Process, open_page, console_messages: list[str]
) -> None:
    tally.post("/events", json.dumps([{"event": name} for name in HOSTILE_NAMES]).encode())
    page = open_page(tally.url, viewport={"width": 320, "height": 700})
    for name in HOSTILE_NAMES:
        card = page.locator(f"[data-event={json.dumps(name, ensure_ascii=False)}]")
        expect(card).to_have_count(1)
        expect(card).to_be_visible()
        expect(card).to_contain_text(name.strip())
        box = card.bounding_box()
        assert box
        assert box["x"] + box["width"] <= 320
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width in reversed(WIDTHS):
            page.set_viewport_size({"width": width, "height": 700})
            assert fits_width(page), (scheme, width)
    for name in HOSTILE_NAMES:
        page.goto(f"{tally.url}/#/event/{quote(name, safe='')}")
        expect(page.locator("h1:visible")).to_have_text(name)
        assert fits_width(page), name
    page.goto(f"{tally.url}/kiosk?rotate=0&{urlencode({'event': HOSTILE_NAMES}, doseq=True)}")
    for name in HOSTILE_NAMES:
        expect(page.locator("h1:visible")).to_have_text(name)
        assert fits_width(page), name
        page.keyboard.press("ArrowRight")
    page.goto(f"{tally.url}/#/leaderboard")
    for name in HOSTILE_NAMES:
        expect(page.locator("#leaderboard-list li").filter(has_text=name).first).to_be_attached()
    page.goto(f"{tally.url}/#/event/{quote(HOSTILE_NAMES[0])}")
    enter_admin_key(page)
    page.locator("#share-open").click()
    expect(page.locator("#share")).to_contain_text("%3Cimg")
    page.locator("#share").get_by_role("button", name="Close").click()
    page.locator("#event-delete").click()
    expect(page.locator("#confirm .word")).to_have_text(HOSTILE_NAMES[0])
    page.goto(tally.url)
    wait_until_loaded(page)
    with page.expect_download() as download:
        page.locator("#export").click()
    rows = counts_in_csv(download.value)
    assert rows["'=HYPERLINK(1)"] == rows["'+cmd|calc"] == rows[HOSTILE_NAMES[0]] == "1"
    assert page.locator("[onerror], [onload], main script").count() == 0
    assert console_messages == []


def test_an_event_page_shows_new_hits(tally: Process, open_page, console_messages: list[str]) -> None:
    never = open_page(f"{tally.url}/#/event/moving")
    expect(never.get_by_text("has not been counted yet")).to_be_visible()
    tally.post("/event/moving", b'{"by": 3}')
    expect(never.get_by_text("has not been counted yet")).to_be_hidden()
    never.goto(f"{tally.url}/kiosk?event=moved")
    expect(never.get_by_text("Not counted yet")).to_be_visible()
    never.goto(f"{tally.url}/kiosk?event=moving")
    expect(never.locator(".rate:visible")).to_contain_text("a minute")
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
    page.locator("#event-chart").get_by_role("button", name="View as table").click()
    expect(page.locator("#event-chart tbody tr")).to_have_count(7)
    expect(page.locator("#event-chart tbody tr").first).to_contain_text("4")
    assert console_messages == []


@pytest.mark.fails_on_mutant(
    "a row is a link only in its middle", "static/app.css", ".long a.name { line-height: 38px; }\n", ""
)
def test_the_leaderboard_ranks_by_the_chosen_window(tally: Process, open_page, console_messages: list[str]) -> None:
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
    first.click(position={"x": 90, "y": 1})
    expect(page.locator("#event-name")).to_have_text("page.view")
    assert console_messages == []


@pytest.mark.fails_on_mutant(
    "an address leads to any path",
    "static/js/pages/history.js",
    'dayOrNone(query.get("with") ?? "")',
    'query.get("with") ?? ""',
)
def test_two_closed_days_are_compared(tally: Process, open_page, console_messages: list[str]) -> None:
    page = open_page(f"{tally.url}/#/history")
    expect(page.locator("#history-day")).to_contain_text("920 hits across 3 events")
    expect(page.locator("#history-day")).to_contain_text("Hits in each part of the day: 460, 460")
    expect(page.locator(".corrections")).to_contain_text("Day reset")
    page.locator("#history-with").select_option(past_day(2))
    expect(page.locator("#history-day .lead")).to_contain_text("on")
    row = page.locator("#history-day tbody tr").filter(has_text="gone")
    assert row.locator("td").all_text_contents() == ["0", "7", "-7"]
    with page.expect_download() as download:
        page.locator("#history-csv").click()
    # The file has the counts of the last part of the day.
    assert counts_in_csv(download.value)["search"] == "120"
    page.locator("#history-choice").select_option(past_day(2))
    assert f"/{past_day(2)}?with={past_day(2)}" in page.url
    expect(page.locator("#history-day")).to_contain_text("467 hits across 4 events")
    expect(page.locator(".corrections")).to_contain_text("Corrected gone count 9 7")
    paths: list[str] = []
    page.on("request", lambda request: paths.append(request.url.removeprefix(tally.url)))
    with page.expect_response(f"**/history/{past_day(2)}"):
        page.evaluate(f"location.hash = '#/history/{past_day(2)}?with=../set/a%3Fvalue=1'")
    assert not [path for path in paths if path.startswith("/set")]
    assert console_messages == []


def test_unique_users_are_counted_and_ranked(tally: Process, open_page, console_messages: list[str]) -> None:
    users = [*HOSTILE_NAMES, HOSTILE_NAMES[0]]
    tally.post("/events", json.dumps([{"event": "met", "user": user, "session": user} for user in users]).encode())
    page = open_page(f"{tally.url}/#/event/met")
    expect(page.locator("#event-today .figures")).to_contain_text(f"Unique users today{len(HOSTILE_NAMES)}")
    expect(page.locator("#event-today .figures")).to_contain_text(f"Active sessions{len(HOSTILE_NAMES)}")
    page.locator("#event-users").click()
    expect(page.locator("h1:visible")).to_have_text("Top users: met")
    expect(page).to_have_title("Top users: met · Tally")
    expect(page.locator("#leaderboard-list li").first).to_contain_text(HOSTILE_NAMES[0])
    expect(page.locator("#leaderboard-list li")).to_have_count(len(HOSTILE_NAMES))
    assert page.locator("#leaderboard-list :is(a, img, script)").count() == 0
    page.goto(tally.url)
    expect(page.locator("#today .figures")).to_contain_text("Unique users")
    assert console_messages == []


@pytest.mark.fails_on_mutant(
    "asks for no name",
    "static/js/components/confirm-dialog.js",
    "submit.disabled = wordInput.value.normalize() !== word || ",
    "submit.disabled = ",
)
def test_a_correction_requires_typing_the_event_name(tally: Process, open_page, console_messages: list[str]) -> None:
    tally.post("/event/wrong", b'{"by": 50}')
    page = open_page(f"{tally.url}/#/settings")
    page.locator("#key input[type=password]").fill(ADMIN_KEY)
    page.get_by_role("button", name="Save", exact=True).click()
    page.goto(f"{tally.url}/#/event/wrong")
    expect(page.locator("#event-today .figures")).to_contain_text("Total50")
    page.locator("#event-correct").click()
    page.locator("#confirm-word").fill("wrong")
    expect(page.get_by_role("button", name="Save").last).to_be_disabled()
    page.locator("#confirm-count").fill("20")
    page.locator("#confirm-word").fill("wron")
    expect(page.get_by_role("button", name="Save").last).to_be_disabled()
    page.locator("#confirm-word").press_sequentially("g")
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
    assert console_messages == []


@pytest.mark.fails_on_mutant("a frame on no page", "app/http/routes/pages.py", " frame-src 'self';", "")
@pytest.mark.fails_on_mutant("a number that never changes", "static/js/pages/event.js", "      share?.paint();\n", "")
def test_the_share_panel_previews_each_form(tally: Process, open_page, console_messages: list[str]) -> None:
    tally.post("/event/shown", b'{"by": 7}')
    page = wait_until_loaded(open_page(f"{tally.url}/#/event/shown", viewport={"width": 320, "height": 700}))
    share, code = page.locator("#share"), page.locator("#share .curl code").first
    bottoms = page.locator("#event-today dd").evaluate_all("all => all.map(dd => dd.getBoundingClientRect().bottom)")
    assert len(set(bottoms)) == 2, "the values of each row are on one line"
    assert page.locator("#page-event .title .actions").evaluate("actions => actions.offsetLeft") == 16
    page.locator("#share-open").click()
    expect(code).to_contain_text('title="shown"')
    choose(page, "#share", "Badge")
    expect(page.get_by_alt_text("Badge of shown")).to_have_js_property("naturalHeight", 20)
    expect(share).to_contain_text("Shows the total. Any site can show it, without a setting or a key.")
    share.get_by_label("Label").fill("new [users]")
    choose(page, "#share", "Today")
    expect(code).to_have_text(rf"![new \[users\]]({tally.url}/badge/shown.svg?label=new+%5Busers%5D&value=count)")
    html = f'<img src="{tally.url}/badge/shown.svg?label=new+%5Busers%5D&amp;value=count" alt="new [users]">'
    expect(share.locator(".curl code").nth(1)).to_have_text(html)
    choose(page, "#share", "Frame")
    choose(page, "#share", "Dark")
    number = page.frame_locator("#share iframe").locator("#count")
    expect(number).to_have_css("color", "rgb(134, 171, 255)")
    expect(code).to_contain_text(f'src="{tally.url}/embed/shown?theme=dark"')
    expect(share).to_contain_text("TALLY_EMBED_ORIGINS=https://your.site")
    tally.post("/event/shown")
    expect(number).to_have_text("8")
    choose(page, "#share", "Script")
    tally.post("/event/shown")
    expect(share.locator(".live")).to_have_text("9")
    assert page.evaluate("document.getElementById('share').scrollWidth <= 320")
    assert accessibility_violations(page) == []
    choose(page, "#share", "Kiosk")
    share.get_by_label("page.view").check()
    share.get_by_label("Seconds for each").fill("60")
    choose(page, "#share", "Dark")
    expect(code).to_have_text(f"{tally.url}/kiosk?event=shown&event=page.view&rotate=60&theme=dark")
    expect(page.get_by_role("img", name="QR code of the address")).to_be_visible()
    assert page.evaluate("document.getElementById('share').scrollWidth <= 320")
    assert accessibility_violations(page) == []
    page.goto(code.text_content() or "")
    expect(page.locator("h1:visible")).to_have_text("shown")
    page.keyboard.press("ArrowRight")
    expect(page.locator("h1:visible")).to_have_text("page.view")
    assert console_messages == []


def test_theme_and_density_survive_a_reload(tally: Process, open_page, console_messages: list[str]) -> None:
    page = wait_until_loaded(open_page(f"{tally.url}/#/settings", color_scheme="light"))
    choose(page, "#set-theme", "Dark")
    choose(page, "#set-density", "Compact")
    page.reload()
    assert page.evaluate("({ ...document.documentElement.dataset })") == {"theme": "dark", "density": "compact"}
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 18, 24)"
    expect(page.locator("#health")).to_contain_text("sqlite")
    assert console_messages == []


def test_a_kiosk_rotates_and_fits_its_screen(tally: Process, open_page, console_messages: list[str]) -> None:
    url = f"{tally.url}/kiosk?event=signup&event=search&rotate=60"
    page = open_page(url, clock=True, viewport={"width": 1920, "height": 1080})
    expect(page.locator("h1:visible")).to_have_text("signup")
    number = page.locator(".number > .value:visible").first
    expect(number).to_have_text("40")
    box = number.bounding_box()
    assert box
    assert box["height"] > 300
    expect_status(page, "live")
    page.clock.fast_forward(60_000)
    expect(page.locator("h1:visible")).to_have_text("search", timeout=10_000)
    page.keyboard.press("p")
    expect_status(page, "paused")
    for width, height in ((320, 568), (800, 600), (3840, 2160)):
        page.set_viewport_size({"width": width, "height": height})
        assert fits_width(page)
        assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
        box = number.bounding_box()
        assert box
        assert box["x"] + box["width"] <= width
    assert console_messages == []


def test_the_api_docs_list_the_routes(tally: Process, open_page, console_messages: list[str]) -> None:
    page = open_page(f"{tally.url}/docs")
    expect(page.get_by_text("/event/{name}").first).to_be_visible()
    expect(page.locator("h3.opblock-tag").first).to_have_attribute("data-tag", "Count")
    page.get_by_text("Count batch").click()
    expect(page.get_by_text("all are counted or none").first).to_be_visible()
    page.get_by_text("Count hit").click()
    expect(page.locator(".opblock.is-open textarea").first).to_have_value('{\n  "by": 1\n}')
    assert console_messages == []
