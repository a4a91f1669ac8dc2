"""Readers find events, pages and actions, and the choices of another tab."""

import csv
import io
import json
import re
import shutil
import unicodedata
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image
from playwright.sync_api import Browser, Route, expect

from tests.browser.dashboard import accessibility_violations, past_day, wait_until_loaded
from tests.support.browser import FLAGS
from tests.support.servers import ROOT, Process

CAFE = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
ARABIC = "\N{ARABIC LETTER SEEN}\N{ARABIC LETTER LAM}\N{ARABIC LETTER ALEF}\N{ARABIC LETTER MEEM}"


@pytest.fixture(scope="module")
def tally(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server in memory with 300 events."""
    limits = {"TALLY_WRITE_LIMIT": "100000/second", "TALLY_READ_LIMIT": "10000/second"}
    process = Process(tmp_path_factory.mktemp("tally"), TALLY_STORE="memory://", **limits)
    process.start()
    process.post("/events", "\n".join([CAFE, ARABIC, *(f"event {i:03}" for i in range(298))]).encode())
    yield process
    process.kill()


@pytest.mark.fails_on_mutant(
    "a late page replaces a later one", "static/js/main.js", "  if (location.hash !== hash) return;", ""
)
@pytest.mark.fails_on_mutant("no page is loaded early", "static/js/main.js", "(load) => load()", "async () => {}")
def test_a_page_is_loaded_when_it_is_opened(tally: Process, open_page, console_messages: list[str]) -> None:
    page = open_page("about:blank")
    delayed: list[Route] = []
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.route("**/pages/settings.js", lambda route: delayed.append(route))  # noqa: PLW0108 - as in test_alerts.py
    page.route("**/pages/history.js", lambda route: route.abort())
    with page.expect_request("**/pages/leaderboard.js"):  # after the first number, so that it opens during an outage
        page.goto(tally.url)
    expect(page.locator("#today .hero .value").first).to_have_text(re.compile(r"\d"))
    page.keyboard.press("s")
    page.evaluate("new Promise(requestAnimationFrame)")
    expect(page.locator("#page-overview")).to_be_visible()
    page.keyboard.press("l")
    expect(page.locator("h1:visible")).to_have_text("Leaderboard")
    with page.expect_response("**/components/share-links.js"):
        delayed[0].continue_()
    page.evaluate(
        "import(document.querySelector('script[type=module]').src.replace('main', 'pages/settings')).then(() => {})"
    )
    expect(page).to_have_title("Leaderboard \N{MIDDLE DOT} Tally")
    page.go_back()
    expect(page.locator("h1:visible")).to_have_text("Settings")
    expect(page.locator("h1:visible")).to_be_focused()
    expect(page).to_have_title("Settings \N{MIDDLE DOT} Tally")
    page.keyboard.press("h")
    expect(page.locator("h1:visible")).to_have_text("This page could not be loaded")
    expect(page.locator("h1:visible")).to_be_focused()
    assert accessibility_violations(page) == []
    page.unroute("**/pages/history.js")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("h1:visible")).to_have_text("History")
    assert [url for url in requests if url.endswith("/alerts")] == []
    assert [text for text in console_messages if "ERR_FAILED" not in text] == []


@pytest.mark.fails_on_mutant(
    "names are compared as they were typed", "static/js/lib/search.js", "text.normalize()", "text"
)
@pytest.mark.fails_on_mutant(
    "the file has all events",
    "static/js/components/card-grid.js",
    "rows: () => order.filter",
    "rows: () => allIndices().filter",
)
def test_a_decomposed_name_is_found_and_the_file_has_what_the_filter_shows(tally: Process, open_page) -> None:
    page = wait_until_loaded(open_page(tally.url))
    page.locator("#filter").fill(unicodedata.normalize("NFD", CAFE.upper()))
    expect(page.locator(".card")).to_have_count(1)
    with page.expect_download() as download:
        page.locator("#export").click()
    assert download.value.suggested_filename == f"tally-{past_day(0)}.csv"
    assert list(csv.reader(io.StringIO(Path(download.value.path()).read_text()))) == [
        ["event", "count", "notes"],
        [CAFE, "1", ""],
    ]


@pytest.mark.fails_on_mutant(
    "another tab's pins are overwritten", "static/js/components/card-grid.js", "    pinned = pinnedNames();\n", ""
)
@pytest.mark.fails_on_mutant(
    "another tab's theme is ignored",
    "static/js/data/prefs.js",
    "    delete currentPrefs[name];\n    if (name",
    "    if (!name",
)
def test_two_tabs_share_pins_and_the_theme(tally: Process, open_page) -> None:
    page = wait_until_loaded(open_page(f"{tally.url}/#/?filter=event+00"))
    other = page.context.new_page()
    other.goto(f"{tally.url}/#/?filter=event+00")
    wait_until_loaded(other)
    for one, event in ((page, "event 003"), (other, "event 005")):
        one.locator(f'[data-event="{event}"]').hover()
        one.get_by_role("button", name=f"Pin {event}").click()
    for one in (page, other):
        expect(one.locator(".card").nth(0)).to_have_attribute("data-event", "event 003")
        expect(one.locator(".card").nth(1)).to_have_attribute("data-event", "event 005")
    page.keyboard.press("t")
    theme = page.locator("html").get_attribute("data-theme")
    expect(other.locator("html")).to_have_attribute("data-theme", theme)


@pytest.mark.fails_on_mutant("names are at the other side", "static/app.css", "text-align: left; }\nul", "}\nul")
def test_a_right_to_left_name_is_next_to_its_number(tally: Process, open_page) -> None:
    page = wait_until_loaded(open_page(f"{tally.url}/#/?filter={quote(ARABIC)}"))
    for path, name in (("/", ".card a.name"), (f"/event/{quote(ARABIC)}", "#event-name")):
        page.goto(f"{tally.url}/#{path}")
        locator = page.locator(name).filter(has_text=ARABIC)
        left = locator.evaluate("""element => {
          const range = document.createRange();
          range.selectNodeContents(element);
          return range.getBoundingClientRect().left - element.getBoundingClientRect().left;
        }""")
        assert left < 5, name


@pytest.mark.fails_on_mutant(
    "a long name loses its end", "static/app.css", "{ display: flex; white-space: pre; }", "{}"
)
def test_a_long_name_keeps_its_end(tally: Process, open_page) -> None:
    name = f"a.name.of.many.parts.{'part.' * 10}last"
    tally.post("/events", json.dumps({name: 60}).encode())
    page = open_page(f"{tally.url}/#/leaderboard", viewport={"width": 320, "height": 700})
    about_parts = page.locator("#leaderboard-note .about-parts")
    expect(about_parts).to_have_text(" Percentages are shares of these 100.", use_inner_text=False)
    expect(about_parts).to_be_hidden()
    for path, rows in {"leaderboard": "#leaderboard-list li", "?filter=a.name": ".card"}.items():
        page.goto(f"{tally.url}/#/{path}")
        shown = page.locator(rows, has_text=name)
        expect(shown.get_by_role("link", name=name, exact=True)).to_be_visible()
        end = shown.locator(".name-end")
        expect(end).to_have_text(".last")
        box, end_box = shown.bounding_box(), end.bounding_box()
        assert box
        assert end_box
        assert end_box["x"] + end_box["width"] < box["x"] + box["width"]


@pytest.mark.fails_on_mutant(
    "a print has no date", "static/js/main.js", 'addEventListener("beforeprint", preparePrint);\n', ""
)
def test_a_print_has_the_time_and_says_what_is_missing(tally: Process, open_page) -> None:
    page = wait_until_loaded(open_page(tally.url))
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    expect(page.locator("#printed")).to_contain_text(re.compile(r"Tally, .*20\d\d.* of 30\d events: export the CSV"))
    for hidden in ("nav", "#pause", "#filter"):
        expect(page.locator(hidden)).to_be_hidden()


@pytest.mark.fails_on_mutant(
    "placeholders stay", "static/app.css", "@media (scripting: none) { [data-page]", "@media (scripting: none) { .x"
)
def test_a_page_without_javascript_has_no_placeholders(tally: Process, open_page) -> None:
    page = open_page(tally.url, java_script_enabled=False)
    expect(page.locator(".card").first).to_be_hidden()


@pytest.mark.fails_on_mutant(
    "no colours", "static/app.css", "@supports not (color: light-dark(red, red))", "@supports (color: x)"
)
def test_an_old_browser_has_the_light_colours(tally: Process, open_page) -> None:
    page = open_page("about:blank", color_scheme="dark")
    css = (ROOT / "static/app.css").read_text().replace("light-dark(", "unknown(")
    page.route("**/app.css", lambda route: route.fulfill(body=css, content_type="text/css"))
    page.goto(tally.url)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 247, 249)"


@pytest.mark.fails_on_mutant(
    "the label stays", "static/js/kiosk.js", 'session.isPaused() ? "Resume" : "Pause"', '"Pause"'
)
def test_a_paused_kiosk_can_be_resumed(tally: Process, open_page) -> None:
    page = wait_until_loaded(open_page(f"{tally.url}/kiosk"))
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()


@pytest.mark.fails_on_mutant(
    "all results are listed", "static/js/components/command-palette.js", "found.slice(0, shown)", "found"
)
@pytest.mark.fails_on_mutant(
    "a result in the middle of a name comes first", "static/js/components/command-palette.js", "b.rank - a.rank", "0"
)
@pytest.mark.fails_on_mutant(
    "a screen reader gets no option",
    "static/js/components/command-palette.js",
    "selected ? input.set",
    "false ? input.set",
)
def test_the_command_palette_finds_events_pages_and_actions(
    tally: Process, open_page, console_messages: list[str]
) -> None:
    tally.post("/events", json.dumps({f"all {CAFE}": 50}).encode())
    page = wait_until_loaded(open_page(tally.url))
    box, options = page.locator(".palette input"), page.locator(".palette [role=option]")
    page.keyboard.press("Control+k")
    expect(box).to_be_focused()
    expect(options.first).to_contain_text("Filter events")
    assert accessibility_violations(page) == []
    box.fill("count it from")  # a choice of the first five minutes, which is hidden
    expect(page.locator(".palette .note")).to_have_text("Nothing found.")
    box.fill(unicodedata.normalize("NFD", CAFE.upper()))
    expect(options).to_have_text([f"{CAFE}1", f"all {CAFE}50"])
    page.keyboard.press("Enter")
    expect(page.locator("#event-name")).to_have_text(CAFE)
    page.keyboard.press("Control+k")
    box.fill("event 2")
    expect(page.locator(".palette .note")).to_have_text("30 of 136. Type more to find the others.")
    expect(options).to_have_count(30)
    for key, selected in (("ArrowUp", 29), ("ArrowDown", 0), ("ArrowDown", 1)):
        page.keyboard.press(key)
        expect(options.nth(selected)).to_have_attribute("aria-selected", "true")
        expect(options.nth(selected)).to_be_in_viewport()
        expect(box).to_have_attribute("aria-activedescendant", f"palette-{selected}")
    box.fill("event 1 2")
    expect(options).to_have_count(40)
    expect(page.locator(".palette .note")).to_be_empty()
    for query, result in (
        ("goal", f"Set a goal: .{CAFE}."),
        ("dark", "Switch theme"),
        ("table", "View as table"),
        ("notes", "Notes"),
    ):
        box.fill(query)
        expect(options.first).to_contain_text(re.compile(f"^{result}"))
    box.fill("nothing has this name")
    expect(page.locator(".palette .note")).to_have_text("Nothing found.")
    page.keyboard.press("Enter")
    page.keyboard.press("Control+k")
    expect(box).to_be_hidden()
    page.locator("#palette-open").click()
    options.filter(has_text="Leaderboard").click()
    expect(page.locator("h1:visible")).to_have_text("Leaderboard")
    expect(page.locator("h1:visible")).to_be_focused()
    page.keyboard.press("Control+k")
    box.fill(f"all {CAFE} embed")
    page.keyboard.press("Enter")
    expect(page.locator("#event-name")).to_have_text(f"all {CAFE}")
    expect(page.locator("#share")).to_be_visible()
    assert console_messages == []


@pytest.mark.fails_on_mutant(
    "ranges have no keys", "static/js/main.js", "inputs[position - 1]?.click()", "inputs[position]?.click()"
)
@pytest.mark.fails_on_mutant(
    "letters typed before the palette is open are lost",
    "static/js/main.js",
    "  dialog.showModal();",
    '  import("./components/command-palette.js").then(() => dialog.showModal());',
)
def test_keys_choose_a_range_and_the_help_lists_them(tally: Process, open_page) -> None:
    page = wait_until_loaded(open_page(tally.url))
    page.keyboard.press("2")
    expect(page.locator("#hits-chart :checked")).to_have_value("day")
    page.keyboard.press("l")
    expect(page.locator("h1:visible")).to_have_text("Leaderboard")
    page.keyboard.press("4")
    expect(page.locator("#leaderboard-window :checked")).to_have_value("total")
    page.keyboard.press("/")
    expect(page.locator("#filter")).to_be_focused()
    held: list[Route] = []
    page.route("**/command-palette.js*", lambda route: held.append(route))  # noqa: PLW0108 - Playwright cannot mark a builtin
    with page.expect_request("**/command-palette.js*"):
        page.keyboard.press("Control+k")
    page.keyboard.type("range: week")
    held.pop().continue_()
    expect(page.locator("#palette-results")).to_have_text("Range: Week")
    page.keyboard.press("Enter")
    expect(page.locator("#hits-chart :checked")).to_have_value("week")
    page.locator("h1:visible").focus()
    page.keyboard.press("?")
    expect(page.locator("#help")).to_contain_text("Tally marks have one stroke for each hit")
    expect(page.locator("#today .marks title")).to_have_text("One stroke for each hit; a new sheet after 25")
    keys = page.locator("#keys kbd").all_text_contents()
    assert {"/", "p", "t", "k", "o", "l", "h", "s", "?", "1 \N{EN DASH} 9", "Ctrl K"} <= set(keys)
    for key, heading in (("s", "Settings"), ("h", "History")):
        page.keyboard.press("Escape")
        page.keyboard.press(key)
        expect(page.locator("h1:visible")).to_have_text(heading)


@pytest.mark.fails_on_mutant(
    "a dialog moves a short page", "static/app.css", "html:has(dialog) { scrollbar-gutter: stable; }\n", ""
)
@pytest.mark.fails_on_mutant(
    "a strip stays bright", "static/app.css", " background: color-mix(in srgb, var(--bg), rgb(8 12 20));", ""
)
def test_a_dialog_moves_nothing_and_dims_the_whole_page(tally: Process, browser: Browser) -> None:
    """A browser without the flags of a test shows scrollbars that take room."""
    with browser.browser_type.launch(
        executable_path=shutil.which("chromium"), args=FLAGS, ignore_default_args=["--hide-scrollbars"]
    ) as other:
        page = other.new_page(viewport={"width": 1440, "height": 900})
        for path in ("/", "/#/alerts"):
            page.goto(tally.url + path)
            opener = wait_until_loaded(page).locator("#help-open")
            box = opener.bounding_box()
            opener.click()
            assert opener.bounding_box() == box, path
            screen = Image.open(BytesIO(page.screenshot()))
            strip, ground = (screen.getpixel((x, 700)) for x in (1436, 10))
            assert max(abs(a - b) for a, b in zip(strip, ground, strict=True)) <= 1, path
            page.keyboard.press("Escape")
