"""The page of a share: live numbers for anyone with the link, on a phone and on a wall, until it is revoked."""

import json
import re

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.browser.dashboard import (
    ADMIN_KEY,
    WIDTHS,
    accessibility_violations,
    expect_status,
    fits_width,
    wait_until_loaded,
)
from tests.support.servers import Process

AS_ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
NAMES = ["signup", "<img src=x onerror=alert(1)>", "x" * 128]


def add_share(tally: Process, *events: str, title: str = "Launch <b>day</b>") -> dict[str, str]:
    body = {"title": title, "events": events}
    return httpx.post(f"{tally.url}/shares", json=body, headers=AS_ADMIN).raise_for_status().json()


def open_share(page: Page, url: str) -> Page:
    page.goto(url)
    expect_status(page, "live")
    expect(page.locator("[aria-busy=true]")).to_have_count(0)
    return page


def shown(page: Page, name: str, count: str, total: str) -> None:
    tile = page.locator("article", has=page.get_by_role("heading", name=name, exact=True))
    expect(tile.locator("> .value")).to_have_text(f"{count} today")
    expect(tile.locator("b")).to_have_text(total)


@pytest.mark.fails_on_mutant(
    "the total does not follow the count", "static/js/share.js", "number(beforeToday + count)", "number(beforeToday)"
)
def test_a_link_shows_live_numbers_without_a_key_until_it_is_revoked(
    process, open_page, console_messages: list[str]
) -> None:
    tally = process(TALLY_STORE="memory://", TALLY_ADMIN_KEYS=ADMIN_KEY, TALLY_READ_KEYS="r" * 16)
    tally.post("/events", json.dumps({"signup": 1200, "secret": 7}).encode())
    share = add_share(tally, *NAMES)
    page = open_share(open_page("about:blank", locale="en-US"), tally.url + share["path"])
    expect(page.locator("h1")).to_have_text("Launch <b>day</b>")
    shown(page, "signup", "1,200", "1,200")
    shown(page, NAMES[1], "0", "0")
    tally.post("/event/signup", b'{"by": 34}')
    shown(page, "signup", "1,234", "1,234")
    expect(page.locator("article .marks .newest").first).not_to_have_attribute("d", "")
    httpx.post(f"{tally.url}/reset", headers=AS_ADMIN).raise_for_status()
    expect(page.locator("article > .value").first).to_have_text("0 today")
    assert "secret" not in page.content()
    assert accessibility_violations(page) == []
    for query in ("", "?kiosk"):
        open_share(page, tally.url + share["path"] + query)
        shown(page, "signup", "0", "1,234")
        for width in [*WIDTHS, 2560]:
            page.set_viewport_size({"width": width, "height": 900})
            assert fits_width(page), (query, width)
    assert accessibility_violations(page) == []
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    assert console_messages == []
    httpx.delete(f"{tally.url}/shares/{share['id']}", headers=AS_ADMIN).raise_for_status()
    expect(page.locator("h1")).to_have_text("This link no longer works", timeout=20_000)
    expect(page.locator("article")).to_have_count(0)
    assert accessibility_violations(page) == []
    page.reload()
    expect(page.locator("p")).to_have_text("this link does not exist, or it was revoked; ask for a new one")


@pytest.mark.fails_on_mutant(
    "no counts without a stream", "static/js/share.js", "=== EventSource.CLOSED) load()", "=== 9) load()"
)
def test_a_link_without_a_stream_shows_the_counts_that_it_reads(tally: Process, open_page) -> None:
    tally.post("/event/polled")
    page = open_page("about:blank")
    page.route("**/stream", lambda route: route.fulfill(status=503, body="{}"))
    page.goto(tally.url + add_share(tally, "polled", title="polled")["path"])
    expect(page.locator("article > .value")).to_have_text("1 today")
    expect(page.get_by_role("heading", name="polled")).to_have_count(1)
    expect(page.locator("#status")).to_contain_text("Reconnecting")


@pytest.mark.fails_on_mutant(
    "a misspelled name is not noticed", "static/js/components/share-links.js", "total === 0", "total === -1"
)
@pytest.mark.fails_on_mutant(
    "a link is never offered", "static/js/components/share-panel.js", 'updateAdminPanels(byId("share-link"));', ""
)
@pytest.mark.fails_on_mutant(
    "a reader's key lists links",
    "static/js/components/share-links.js",
    "(await getPermissions(apiKey())).admin ? get",
    "true ? get",
)
def test_an_administrator_creates_and_revokes_links_in_the_dashboard(
    tally: Process, open_page, console_messages: list[str]
) -> None:
    tally.post("/event/order")
    page = wait_until_loaded(open_page(f"{tally.url}/#/event/order"))
    page.locator("#share-open").click()
    create = page.get_by_role("button", name="Create a shared link")
    expect(create).to_be_disabled()
    assert accessibility_violations(page) == []
    reason = page.locator("#share-link .needs-admin")
    expect(reason).to_have_text("Enter an admin key in Settings to create one.")
    reason.get_by_role("link").click()
    expect(page.locator("#share")).to_be_hidden()
    expect(page.locator("#shares form")).to_be_hidden()
    page.locator("#key input[type=password]").fill(ADMIN_KEY)
    page.locator("#key").get_by_role("button", name="Save").click()
    page.locator("#share-name").fill("Launch <i>day</i>")
    page.locator("#share-events").fill("order\n sign up \n\na\nb")
    page.keyboard.press("Tab")
    warning = page.locator("#shares .warning")
    expect(warning).to_contain_text(re.compile("Not counted yet: .sign up., .a., .b.. Check the spelling"))
    page.get_by_role("button", name="Create a link").click()
    row = page.locator("#shares li", has_text="Launch <i>day</i>")
    expect(row).to_contain_text("order, sign up, a and 1 more event")
    link = page.locator("#shares code").text_content()
    assert accessibility_violations(page) == []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert fits_width(page), width
    share = open_share(open_page("about:blank"), link)
    shown(share, "order", "1", "1")
    shown(share, "sign up", "0", "0")
    page.locator("#share-events").fill("order")
    page.keyboard.press("Tab")
    expect(warning).to_be_empty()
    row.get_by_role("button", name="Revoke").click()
    page.locator("#confirm-word").fill("revoke")
    page.keyboard.press("Enter")
    expect(row).to_have_count(0)
    assert httpx.get(f"{link}/counts").status_code == 404
    page.goto(f"{tally.url}/#/event/order")
    page.locator("#share-open").click()
    expect(reason).to_be_hidden()
    create.click()
    expect(page.locator("#share-link code")).to_contain_text(f"{tally.url}/share/")
    assert accessibility_violations(page) == []
    assert [text for text in console_messages if "404" not in text] == []
