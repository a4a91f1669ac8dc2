"""Goals: an administrator sets one, every page shows how far it is, and the marks celebrate when it is reached."""

import re

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.dashboard import ADMIN_KEY, accessibility_violations, fits_width, wait_until_loaded
from tests.support.servers import Process

AS_ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
WHOLE_SHEET = 25
GOALS_POLL_MS = 30_000


def newest_strokes(page: Page, part: str) -> int:
    """Return the number of strokes that are drawn in the accent colour."""
    return page.locator(f"{part} .newest").evaluate("el => el.getAttribute('d').split('M').length - 1")


def expect_flourish(page: Page, part: str) -> None:
    whole_sheet = re.compile(rf"^(M[^M]+){{{WHOLE_SHEET}}}$")
    expect(page.locator(f"{part} .newest")).to_have_attribute("d", whole_sheet)


@pytest.mark.fails_on_mutant(
    "a goal is reached by loading", "static/js/data/goals.js", "wasReached !== false", "wasReached"
)
@pytest.mark.fails_on_mutant(
    "a flourish with reduced motion",
    "static/js/components/tally-marks.js",
    "flourishing || reducedMotion()",
    "flourishing",
)
@pytest.mark.fails_on_mutant(
    "other pages keep the old goals",
    "static/js/data/session.js",
    'if (connection.name === "live" && !paused) loadGoals();',
    "",
)
@pytest.mark.fails_on_mutant(
    "only a colour says that a goal is reached",
    "static/app.css",
    ".with-goal .state { display: block; }",
    ".with-goal .state { display: none; }",
)
@pytest.mark.fails_on_mutant(
    "a goal lowers the number",
    "static/app.css",
    "grid-template: auto auto auto 1fr",
    "grid-template: 1fr auto auto auto",
)
@pytest.mark.fails_on_mutant(
    "small cards on a phone have too many rows",
    "static/app.css",
    ':root:not([data-density="compact"]) .card .marks {',
    ".card .marks {",
)
def test_a_goal_is_set_shown_everywhere_and_reached(tally: Process, open_page, console_messages: list[str]) -> None:
    tally.post("/event/sale", b'{"by": 37}')
    still = wait_until_loaded(open_page(f"{tally.url}/#/event/sale", clock=True, reduced_motion="reduce"))
    page = wait_until_loaded(open_page(f"{tally.url}/#/event/sale"))
    expect(page.locator("#event-today .goal")).to_be_hidden()
    page.get_by_role("button", name="Set a goal").click()
    expect(page.get_by_label("Admin key", exact=True)).to_be_focused()
    page.keyboard.type(ADMIN_KEY)
    page.locator("#confirm").get_by_role("button", name="Save").click()
    expect(page.locator("#goal-number")).to_be_focused()
    page.keyboard.type("9007199254740992")
    page.locator("#confirm form").evaluate("form => { form.noValidate = true }")
    page.keyboard.press("Enter")
    expect(page.locator("#goal-number-problem")).to_contain_text("expected a whole number")
    assert console_messages.pop().startswith("Failed to load resource: the server responded with a status of 422")
    assert accessibility_violations(page) == []
    page.locator("#goal-number").fill("40")
    page.keyboard.press("Enter")
    expect(page.locator("#event-today .goal")).to_have_text("37 of 40 today")
    tally.post("/event/sale")
    expect(still.locator("#event-today .hero .value").first).to_have_text("38")
    still.clock.fast_forward(GOALS_POLL_MS)
    expect(still.locator("#event-today .goal")).to_have_text("38 of 40 today")
    kiosk = wait_until_loaded(open_page(f"{tally.url}/kiosk?event=sale"))
    overview = wait_until_loaded(open_page(tally.url, viewport={"width": 320, "height": 900}))
    card = '[data-event="sale"]'
    expect(overview.locator(f"{card} .goal")).to_have_text("38 of 40 today")
    expect(kiosk.locator(".goal")).to_have_text("38 of 40 today")
    assert accessibility_violations(overview) == []
    assert fits_width(overview)
    still.evaluate("""() => {
      const newest = document.querySelector('#event-today .newest');
      window.most = 0;
      new MutationObserver(() => { most = Math.max(most, newest.getAttribute('d').split('M').length - 1); })
        .observe(newest, { attributes: true });
    }""")
    tally.post("/event/sale", b'{"by": 2}')
    for shown, part in ((page, "#event-today"), (kiosk, ".slide"), (overview, card)):
        expect_flourish(shown, part)
        expect(shown.locator(f"{part} .goal.reached")).to_have_text("Goal reached: 40 today")
    expect(page.locator("#announce")).to_have_text("sale. Goal reached: 40 today")
    expect(still.locator("#event-today .goal.reached")).to_have_text("Goal reached: 40 today")
    assert still.evaluate("most") < WHOLE_SHEET
    tally.post("/event/sale")
    for shown in (page, kiosk, overview):
        expect(shown.locator(".goal.reached:visible")).to_have_text("Goal reached: 41 of 40 today")
    assert overview.locator(f"{card} .goal").evaluate("el => el.scrollWidth <= el.clientWidth")
    expect(overview.locator(f"{card} .state")).to_be_visible()
    overview.locator("#cards").scroll_into_view_if_needed()
    expect(overview.locator(".card:not(.with-goal) .rate").first).to_contain_text("/ min")
    for density in ("comfortable", "compact"):
        overview.evaluate("density => { document.documentElement.dataset.density = density }", density)
        tops = overview.locator(".card .count").evaluate_all("counts => counts.map(count => count.offsetTop)")
        assert len(set(tops)) == 1, (density, tops)
    page.reload()
    expect(page.locator("#event-today .goal.reached")).to_be_visible()
    assert newest_strokes(page, "#event-today") < WHOLE_SHEET
    assert "Goal reached" not in page.locator("#announce").inner_text()
    page.get_by_role("button", name="Edit goal").click()
    page.locator("#confirm").get_by_role("link", name="Settings").click()
    expect(page.locator("#set-notify")).to_be_visible()
    expect(page.locator("#confirm")).to_be_hidden()
    page.go_back()
    page.get_by_role("button", name="Edit goal").click()
    page.get_by_role("button", name="Remove goal").click()
    expect(page.get_by_role("button", name="Set a goal")).to_be_visible()
    expect(page.locator("#event-today .goal")).to_be_hidden()
    assert httpx.get(f"{tally.url}/goals").json() == []
    assert console_messages == []


@pytest.mark.fails_on_mutant(
    "the form opens on another page", "static/js/components/goal-form.js", "  if (location.hash !== hash) return;", ""
)
@pytest.mark.fails_on_mutant(
    "notes open on another page",
    "static/js/components/chart-notes.js",
    "  if (location.hash !== hash) return () => {};",
    "",
)
@pytest.mark.fails_on_mutant(
    "notifies readers who did not ask", "static/js/data/notifications.js", ' && getPref("notify") === "on"', ""
)
def test_a_reader_is_notified_of_a_goal_after_turning_it_on(
    tally: Process, open_page, console_messages: list[str]
) -> None:
    httpx.put(f"{tally.url}/goals/visit", json={"count": 2}, headers=AS_ADMIN).raise_for_status()
    page = wait_until_loaded(open_page(f"{tally.url}/#/settings"))
    page.context.grant_permissions([])  # all others are denied
    expect(page.locator("#choices .note")).to_contain_text("blocks notifications of this page")
    page.context.grant_permissions(["notifications"])
    page.add_init_script("""window.shown = [];
      window.Notification = class extends Notification {
        constructor(title, options) { super(title, options); window.shown.push(`${title}: ${options.body}`); }
      };""")
    page.goto(f"{tally.url}/#/event/visit")
    page.reload()
    expect(page.locator("#event-today .goal")).to_have_text("0 of 2 today")
    tally.post("/event/visit", b'{"by": 2}')
    expect(page.locator("#announce")).to_have_text("visit. Goal reached: 2 today")
    assert page.evaluate("shown") == []
    httpx.put(f"{tally.url}/event/visit", json={"count": 0}, headers=AS_ADMIN).raise_for_status()
    expect(page.locator("#event-today .goal")).to_have_text("0 of 2 today")
    page.goto(f"{tally.url}/#/settings")
    page.get_by_role("button", name="Turn on").click()
    expect(page.get_by_role("button", name="Turn off")).to_be_visible()
    tally.post("/event/visit", b'{"by": 3}')
    page.goto(f"{tally.url}/#/event/visit")
    expect(page.locator("#event-today .goal")).to_have_text("Goal reached: 3 of 2 today")
    assert page.evaluate("shown") == ["visit: Goal reached: 2 today"]
    delayed: list[Route] = []
    page.route("**/permissions", lambda route: delayed.append(route))  # noqa: PLW0108 - Playwright cannot mark a builtin
    for button in ("Edit goal", "Notes"):
        with page.expect_request("**/permissions"):
            page.get_by_role("button", name=button, exact=True).click()
    page.goto(f"{tally.url}/#/leaderboard")
    for route in delayed:
        with page.expect_response("**/permissions"):
            route.continue_()
    page.evaluate("new Promise(requestAnimationFrame)")
    expect(page.locator("dialog[open]")).to_have_count(0)
    assert console_messages == []
