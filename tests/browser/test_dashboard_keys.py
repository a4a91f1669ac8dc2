"""A dashboard that has to show a key: asked for, kept in its tab alone, and sent with everything."""

import pytest
from playwright.sync_api import Page, expect

from tests.support.servers import Process

READ, ADMIN = "a-key-to-read-with-17", "a-key-for-everything-4"


@pytest.fixture
def tally(process, tmp_path) -> Process:
    keys = {"TALLY_READ_KEYS": READ, "TALLY_ADMIN_KEYS": ADMIN}
    return process(TALLY_STORE=f"sqlite:///{tmp_path}/tally.db", **keys)


def unlock(page: Page, key: str) -> None:
    page.locator("#key-prompt input").fill(key)
    page.get_by_role("button", name="Use", exact=True).click()


@pytest.mark.catches("keeps the key for good", "static/js/data/prefs.js", "() => sessionStorage", "() => localStorage")
@pytest.mark.parametrize("path", ["/", "/kiosk"])
def test_a_page_asks_for_a_key_and_goes_on_with_it(tally: Process, open_page, path: str) -> None:
    tally.post("/event/a", b'{"by": 7}')
    page = open_page(tally.url + path)
    expect(page.locator("#status")).to_have_attribute("data-state", "locked")
    expect(page.get_by_text("This Tally needs a key")).to_be_visible()
    unlock(page, "not the key that it is")
    expect(page.locator("#key-prompt")).to_contain_text("does not open it")
    unlock(page, READ)
    expect(page.locator("#status")).to_have_attribute("data-state", "live")
    expect(page.locator("#key-prompt")).to_be_hidden()
    expect(page.locator("main")).to_contain_text("7")
    assert READ not in page.url
    assert READ not in page.evaluate("JSON.stringify({ ...localStorage }) + document.cookie")
    page.reload()
    expect(page.locator("#status")).to_have_attribute("data-state", "live")


def test_a_key_is_forgotten_on_request(tally: Process, open_page) -> None:
    page = open_page(f"{tally.url}/#/settings")
    expect(page.locator("#health")).to_contain_text("sqlite")
    page.locator("#key input").fill(READ)
    page.get_by_role("button", name="Use", exact=True).click()
    expect(page.locator("#status")).to_have_attribute("data-state", "live")
    page.get_by_role("button", name="Forget").click()
    expect(page.locator("#status")).to_have_attribute("data-state", "locked")
    assert page.evaluate("sessionStorage.length") == 0


def test_a_badge_that_others_do_not_see_is_not_shown_to_who_shares_it(tally: Process, open_page) -> None:
    tally.post("/event/a")
    page = open_page(f"{tally.url}/#/event/a")
    unlock(page, READ)
    expect(page.locator("#status")).to_have_attribute("data-state", "live")
    page.locator("#share-open").click()
    expect(page.locator("#share")).to_contain_text("shows it to nobody without a key")
    expect(page.locator("#share img")).to_have_count(0)
