"""Every screen passes axe, works with the keyboard, and respects the reader's motion, colour and width."""

import re

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.dashboard import (
    WIDTHS,
    accessibility_violations,
    choose,
    count_of,
    enter_admin_key,
    expect_status,
    fits_width,
    past_day,
    wait_until_loaded,
)
from tests.support.servers import ROOT, Process

SCREENS = [
    "/",
    "/#/event/signup",
    "/#/event/signup?range={before}..{yesterday}&with=search",
    "/#/leaderboard?order=change",
    "/#/leaderboard?window=total",
]
SCREENS += [
    "/#/history",
    "/#/history/{yesterday}?with={before}",
    "/#/alerts",
    "/#/settings",
    "/kiosk",
    "/kiosk?event=signup",
]

# Texts that a browser's translation would change: names of events, and numbers.
TRANSLATED = """[...document.querySelectorAll("main *")].filter((el) => el.translate && !el.childElementCount
  && /^(signup|search|page.view|[0-9,]+)$/.test(el.textContent) && el.checkVisibility()).map((el) => el.outerHTML)"""


@pytest.fixture(scope="module")
def tally(tally_with_history: Process) -> Process:
    return tally_with_history


def open_screen(page: Page, tally: Process, screen: str) -> Page:
    page.goto(tally.url + screen.format(yesterday=past_day(1), before=past_day(2)))
    return wait_until_loaded(page)


def test_no_screen_has_accessibility_violations(tally: Process, open_page, console_messages: list[str]) -> None:
    page = open_page(tally.url, viewport={"width": 1280, "height": 900})
    for screen in SCREENS:
        assert accessibility_violations(open_screen(page, tally, screen)) == [], screen
    open_screen(page, tally, "/#/event/signup")
    enter_admin_key(page)
    for opener in ("#help-open", "#event-chart .foot button", "#share-open", "#event-correct"):
        wait_until_loaded(page).locator(opener).click()
        assert accessibility_violations(page) == [], opener
        page.keyboard.press("Escape")
    assert console_messages == []


@pytest.mark.fails_on_mutant("a second main", "static/js/docs.js", 'layout: "Routes"', 'layout: "BaseLayout"')
@pytest.mark.fails_on_mutant("links inside buttons", "static/js/docs.js", "DeepLink: (", "Unused: (")
@pytest.mark.fails_on_mutant("no labels", "static/js/docs.js", "RequestBodyEditor: (", "Unused: (")
@pytest.mark.fails_on_mutant("its own colours", "static/docs.html", 'href="static/docs.css"', 'href="static/app.css"')
@pytest.mark.fails_on_mutant("a region without a name", "static/js/docs.js", '"table[role]": {', '"i": {')
@pytest.mark.fails_on_mutant("a name of a div", "static/js/docs.js", '"div.copy-to-clipboard": {', '"i": {')
@pytest.mark.fails_on_mutant("a name that differs from the text", "static/js/docs.js", '".btn, ', '"')
@pytest.mark.fails_on_mutant("a skipped heading", "static/js/docs.js", '{ ariaLevel: "5" }', "{}")
@pytest.mark.fails_on_mutant("keys cannot scroll an example", "static/js/docs.js", "el.tabIndex = 0;", "continue;")
def test_the_api_reference_has_no_accessibility_violations(
    tally: Process, open_page, console_messages: list[str]
) -> None:
    page = open_page(f"{tally.url}/docs")
    operation = page.locator(".opblock", has=page.locator('[data-path="/event/{name}"]')).first
    expect(operation).to_be_visible()
    assert accessibility_violations(page) == []
    operation.locator(".opblock-summary-control").click()
    # The form to try it out is open at once.
    expect(operation.get_by_role("textbox", name="Request body")).to_be_visible()
    operation.get_by_placeholder("name", exact=True).fill("tried")
    operation.get_by_role("button", name="Execute").click()
    expect(operation.locator(".live-responses-table")).to_contain_text('"eventName": "tried"')
    long_example = page.locator(".opblock", has=page.locator('[data-path="/history/{day}"]'))
    long_example.locator(".opblock-summary-control").click()
    expect(long_example.locator(".example").first).to_be_visible()
    # A sticky head would cover the rows, because its background is transparent.
    expect(operation.locator("thead th").first).to_have_css("position", "static")
    page.evaluate("scrollTo(0, 0)")  # axe cannot judge colours above the visible part
    assert accessibility_violations(page) == []
    page.locator(".btn.authorize").click()
    dialog = page.locator(".modal-ux")
    dialog.get_by_label("Value:").fill("any key")
    dialog.get_by_role("button", name="Authorize", exact=True).click()
    expect(dialog.get_by_role("button", name="Logout", exact=True)).to_be_visible()
    assert accessibility_violations(page) == []
    dialog.get_by_role("button", name="Close").last.click()
    page.set_viewport_size({"width": 390, "height": 900})
    assert fits_width(page)
    assert console_messages == []


@pytest.mark.fails_on_mutant("a number is translated", "static/js/lib/dom.js", "{ translate: false }, cell", "{}, cell")
@pytest.mark.fails_on_mutant(
    "the navigation covers a low page", "static/app.css", "  nav { position: static; order: 1;", "  nav { order: 1;"
)
def test_every_screen_fits_every_size_and_keeps_its_names(
    tally: Process, open_page, console_messages: list[str]
) -> None:
    page = open_page(tally.url)
    for screen in SCREENS:
        open_screen(page, tally, screen)
        assert page.evaluate(TRANSLATED) == [], screen
        for width, height in [*((width, 900) for width in WIDTHS), (844, 390), (320, 256)]:
            page.set_viewport_size({"width": width, "height": height})
            assert fits_width(page), (screen, width)
        # At a zoom of 400 %, a fixed bar would cover most of the page.
        assert page.evaluate(
            "[...document.querySelectorAll('nav')].every(nav => getComputedStyle(nav).position === 'static')"
        )
    assert console_messages == []


@pytest.mark.fails_on_mutant(
    "an image without a name until its numbers are loaded",
    "static/js/components/bar-chart.js",
    ', "aria-label": title.textContent ?? ""',
    "",
)
@pytest.mark.fails_on_mutant(
    "the table of one event under the name of another",
    "static/js/components/bar-chart.js",
    "return tableView.replaceChildren()",
    "return",
)
@pytest.mark.fails_on_mutant(
    "the bars of one event under the name of another",
    "static/js/components/bar-chart.js",
    'svg.style.visibility = data.points.length ? "" : "hidden";',
    "",
)
def test_a_loading_chart_is_busy_and_never_shows_another_event(tally: Process, open_page) -> None:
    page = wait_until_loaded(open_page(tally.url))
    delayed: list[Route] = []
    page.route("**/series?*", lambda route: delayed.append(route))  # noqa: PLW0108 - Playwright cannot mark a builtin
    page.goto(f"{tally.url}/#/event/signup")
    chart = page.locator("#event-chart")
    expect(chart).to_have_attribute("aria-busy", "true")
    assert accessibility_violations(page) == []
    for route in delayed:
        route.continue_()
    expect(chart).to_have_attribute("aria-busy", "false")
    expect(chart.locator(".plot")).to_be_visible()
    chart.get_by_role("button", name="View as table").click()
    expect(chart.locator("td").first).to_be_visible()
    chart.get_by_role("button", name="View as chart").click()
    page.route("**/series?*", lambda route: route.abort())
    page.goto(f"{tally.url}/#/event/search")
    expect(chart).to_contain_text("Could not load this chart")
    assert accessibility_violations(page) == []
    expect(chart.locator(".plot")).to_be_hidden()
    chart.get_by_role("button", name="View as table").click()
    expect(chart.locator("td")).to_have_count(0)


def test_every_screen_works_with_the_keyboard(tally: Process, open_page, console_messages: list[str]) -> None:
    page = wait_until_loaded(open_page(tally.url, viewport={"width": 1280, "height": 900}))
    stops = tab_stops(page)
    assert stops[0] == "Skip to main content"
    assert len([name for name in stops if name in {"Overview", "Leaderboard", "History", "Settings"}]) == 4
    assert len(stops) < 40, "the card grid is one tab stop"
    page.keyboard.press("/")
    expect(page.locator("#filter")).to_be_focused()
    page.keyboard.type("signup")
    expect(page.locator(".card:visible")).to_have_count(1)
    page.keyboard.press("Escape")
    page.locator("#export").focus()
    page.keyboard.press("Tab")
    focused = page.locator(":focus")
    expect(focused).to_have_class("name")
    page.keyboard.press("Home")
    for key in ("ArrowRight", "ArrowDown", "End", "Home"):
        page.keyboard.press(key)
    event = focused.text_content()
    page.keyboard.press("Enter")
    expect(page.locator("#event-name")).to_be_focused()
    expect(page.locator("#event-name")).to_have_text(event)
    page.locator("#event-chart :checked").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#event-chart-title")).to_have_text("Hits per hour")
    page.locator("#share-open").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#share")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#share-open")).to_be_focused()
    heading = page.locator("h1:visible")
    for key, text in (("l", "Leaderboard"), ("h", "History"), ("s", "Settings")):
        page.keyboard.press(key)
        expect(heading).to_have_text(text)
        expect(heading).to_be_focused()
    page.keyboard.press("h")
    expect(heading).to_have_text("History")
    expect(page.locator("#history-day")).to_contain_text("920 hits")
    page.locator("#history-chart .plot").focus()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    expect(page.locator("#history-day")).to_contain_text("gone")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    assert console_messages == []


def tab_stops(page: Page) -> list[str]:
    """Return the names of all tab stops, each of which has to show its focus."""
    names: list[str] = []
    page.evaluate("document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute('tabindex')")
    while len(names) < 60:
        page.keyboard.press("Tab")
        name, outlined = page.evaluate("""() => {
          const el = document.activeElement;
          const visible = el.matches('[type=radio]') ? el.nextElementSibling : el;
          const outlined = el === document.body || getComputedStyle(visible).outlineStyle !== 'none';
          return [el.getAttribute('aria-label') ?? el.textContent.trim(), outlined];
        }""")
        assert outlined, f"{name} has focus but does not show it"
        if names and name == names[0]:
            break
        names.append(name)
    return names


def test_single_key_shortcuts_can_be_disabled(tally: Process, open_page) -> None:
    page = wait_until_loaded(open_page(f"{tally.url}/#/settings"))
    choose(page, "#set-shortcuts", "Off")
    page.locator("h1:visible").focus()
    page.keyboard.press("p")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_hidden()
    expect_status(page, "live")


def test_nothing_is_animated_with_reduced_motion(tally: Process, open_page) -> None:
    page = open_page(tally.url, reduced_motion="reduce")
    tally.post("/event/still")
    expect(count_of(page, "still")).to_have_text("1")
    assert page.evaluate("document.getAnimations().length") == 0


def test_forced_colours_keep_borders_and_contrast(tally: Process, open_page) -> None:
    page = wait_until_loaded(open_page(tally.url, forced_colors="active"))
    for part in (".card", ".panel", ".pill"):
        assert page.locator(part).first.evaluate("el => parseFloat(getComputedStyle(el).borderTopWidth) > 0"), part
    assert accessibility_violations(page) == []


# Text colour, background, and the contrast that WCAG 2.2 requires.
PAIRS = [
    (text, background, 4.5)
    for text in ("text", "text-2", "text-3")
    for background in ("bg", "surface", "sunken", "flash", "accent-soft")
]
PAIRS += [(kind, f"{kind}-soft", 4.5) for kind in ("ok", "warn", "danger")] + [("on-accent", "accent", 4.5)]
PAIRS += [
    (text, background, 4.5) for text in ("accent", "ok", "danger") for background in ("bg", "surface", "accent-soft")
]
PAIRS += [("control", background, 3) for background in ("bg", "surface")]


@pytest.mark.parametrize("scheme", [0, 1])
def test_colour_tokens_have_enough_contrast(scheme: int) -> None:
    css = (ROOT / "static/app.css").read_text()
    tokens = {name: pair[scheme] for name, *pair in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", css)}
    for text, background, required in PAIRS:
        light, dark = sorted((luminance(tokens[text]), luminance(tokens[background])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= required, (text, background)


def luminance(colour: str) -> float:
    """Return the relative luminance of #rrggbb, as WCAG 2.2 defines it."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
