"""A dashboard that needs an API key asks for it, keeps it in its tab only, and sends it with every request."""

from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.browser.dashboard import accessibility_violations, choose, expect_status
from tests.support.servers import Process

READ_KEY, WRITE_KEY, ADMIN_KEY = "a-key-to-read-with-17", "a-key-to-count-with-5", "a-key-for-everything-4"


@pytest.fixture(scope="module")
def tally(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    directory = tmp_path_factory.mktemp("keys")
    keys = {"TALLY_READ_KEYS": READ_KEY, "TALLY_WRITE_KEYS": WRITE_KEY, "TALLY_ADMIN_KEYS": ADMIN_KEY}
    process = Process(directory, TALLY_STORE=f"sqlite:///{directory}/tally.db", **keys)
    process.start()
    headers = {"Authorization": f"Bearer {WRITE_KEY}"}
    httpx.post(f"{process.url}/event/a", json={"by": 7}, headers=headers).raise_for_status()
    yield process
    process.kill()


def enter_key(page: Page, key: str) -> None:
    page.locator("#key-prompt input[type=password]").fill(key)
    page.get_by_role("button", name="Save", exact=True).click()


@pytest.mark.fails_on_mutant(
    "keeps the key in the browser", "static/js/data/prefs.js", 'remember ? value : ""', "value"
)
@pytest.mark.parametrize("path", ["/", "/kiosk"])
def test_a_page_asks_for_an_api_key_and_uses_it(tally: Process, open_page, path: str) -> None:
    page = open_page(tally.url + path)
    expect_status(page, "locked")
    expect(page.get_by_text("This dashboard is protected")).to_be_visible()
    expect(page.locator("#key-prompt input[type=password]")).to_be_focused()
    enter_key(page, "not the key that it is")
    problem = page.locator("#key-prompt .key + [role=alert]")
    expect(problem).to_have_text("Wrong key: the server does not know it.")
    expect(page.locator("#key-prompt input[type=password]")).to_have_attribute("aria-invalid", "true")
    colour = problem.evaluate("el => getComputedStyle(el).color")
    assert colour == page.locator("#status").evaluate("el => getComputedStyle(el).color"), "that of a problem"
    assert accessibility_violations(page) == []
    enter_key(page, READ_KEY)
    expect_status(page, "live")
    expect(page.locator("#key-prompt")).to_be_hidden()
    expect(page.locator("main")).to_contain_text("7")
    assert READ_KEY not in page.url
    assert READ_KEY not in page.evaluate("JSON.stringify({ ...localStorage }) + document.cookie")
    page.reload()
    expect_status(page, "live")


@pytest.mark.fails_on_mutant(
    "a locked page seems offline",
    "static/js/data/socket.js",
    "if (error.data) flags.online = true;\n    else",
    "if (!error.data)",
)
def test_a_browser_that_reports_no_network_still_asks_for_an_api_key(tally: Process, open_page) -> None:
    page = open_page("about:blank")
    page.add_init_script("Object.defineProperty(navigator, 'onLine', { value: false })")
    page.goto(tally.url)
    expect_status(page, "locked")


def test_an_api_key_can_be_forgotten(tally: Process, open_page) -> None:
    page = open_page(f"{tally.url}/#/settings")
    expect(page.locator("#health")).to_contain_text("sqlite")
    page.locator("#key input[type=password]").fill(READ_KEY)
    page.get_by_role("button", name="Save", exact=True).click()
    expect_status(page, "live")
    page.get_by_role("button", name="Remove key").click()
    expect_status(page, "locked")
    assert page.evaluate("sessionStorage.length") == 0


@pytest.mark.fails_on_mutant(
    "a wrong key replaces the present one",
    "static/js/components/key-form.js",
    "if (permissions.read) save(key)",
    "if (true) save(key)",
)
def test_a_key_that_cannot_read_does_not_lock_the_page(tally: Process, open_page) -> None:
    page = open_page(f"{tally.url}/#/settings")
    page.locator("#key input[type=password]").fill(ADMIN_KEY)
    page.get_by_role("button", name="Save", exact=True).click()
    expect_status(page, "live")
    expect(page.locator("#key .note")).to_contain_text("This key can read, count, and administer.")
    problems = {
        "mistyped-key-0000000": "the server does not know it",
        "schlüssel 0": "the server does not know it",
        WRITE_KEY: "this one can count, but not read",
    }
    for key, problem in problems.items():
        page.locator("#key input[type=password]").fill(key)
        page.get_by_role("button", name="Save", exact=True).click()
        expect(page.locator("#key").get_by_role("alert")).to_have_text(f"Wrong key: {problem}.")
        expect(page.locator("#key .note")).to_contain_text("This key can read, count, and administer.")
        expect_status(page, "live")
    assert page.evaluate("sessionStorage.getItem('tally-key')") == ADMIN_KEY


@pytest.mark.fails_on_mutant(
    "anyone is offered to reset",
    "static/js/components/admin-panels.js",
    "actions.disabled = !permissions.admin",
    "actions.disabled = false",
)
def test_administrative_actions_need_an_admin_key(tally: Process, open_page, console_messages: list[str]) -> None:
    page = open_page(f"{tally.url}/#/settings")
    for key, note, allowed in (
        (READ_KEY, "This key can read.", False),
        (ADMIN_KEY, "This key can read, count, and administer.", True),
    ):
        page.locator("#key input[type=password]").fill(key)
        page.get_by_role("button", name="Save", exact=True).click()
        expect(page.locator("#key .note")).to_contain_text(note)
        expect(page.locator("#reset-all")).to_be_enabled(enabled=allowed)
    page.get_by_role("link", name="Overview", exact=True).click()
    page.locator(".card a").click()
    expect(page.locator("#event-delete")).to_be_enabled()
    expect(page.locator("#page-event .needs-admin")).to_be_hidden()
    page.evaluate("sessionStorage.clear()")
    page.goto(f"{tally.url}/#/settings")
    page.reload()
    expect(page.locator("#page-settings .needs-admin").last).to_be_visible()
    expect(page.locator("#reset-all")).to_be_disabled()
    assert [text for text in console_messages if "401" not in text] == []


@pytest.mark.fails_on_mutant(
    "nothing is remembered", "static/js/data/prefs.js", 'write(browserStorage, "tally-key", remember ? value : "");', ""
)
def test_a_key_can_be_remembered_on_a_device(tally: Process, open_page) -> None:
    page = open_page(tally.url)
    page.get_by_label("Remember on this device").first.check()
    enter_key(page, READ_KEY)
    expect_status(page, "live")
    page.evaluate("sessionStorage.clear()")
    page.reload()
    expect_status(page, "live")
    page.goto(f"{tally.url}/#/settings")
    expect(page.locator("#key .note")).to_have_text("This key can read. Stored in this browser.")
    page.get_by_role("button", name="Remove key").last.click()
    expect_status(page, "locked")
    assert page.evaluate("localStorage.getItem('tally-key')") is None


@pytest.mark.fails_on_mutant("no count", "static/js/first-count.js", "element.textContent = text;", "")
@pytest.mark.fails_on_mutant("no key", "static/js/first-count.js", "key ? {", "false ? {")
@pytest.mark.fails_on_mutant("it is hidden", "static/app.css", ":not(#first-count:not(:empty))", "")
@pytest.mark.fails_on_mutant("an export without counts", "static/index.html", " disabled>Export CSV", ">Export CSV")
def test_the_first_count_is_shown_before_the_modules_arrive(tally: Process, open_page) -> None:
    page = open_page(tally.url)
    enter_key(page, READ_KEY)
    expect_status(page, "live")
    page.route("**/js/main.js", lambda route: None)  # It never arrives.
    page.reload(wait_until="commit")
    expect(page.locator("#first-count")).to_have_text("7")
    expect(page.locator("main")).to_have_attribute("aria-busy", "true")
    assert page.evaluate("getComputedStyle(document.querySelector('#first-count')).color") != "rgba(0, 0, 0, 0)"
    expect(page.locator("#export")).to_be_disabled()


def test_the_share_panel_names_what_a_key_protects(tally: Process, open_page) -> None:
    page = open_page(f"{tally.url}/#/event/a")
    enter_key(page, READ_KEY)
    expect_status(page, "live")
    page.locator("#share-open").click()
    share = page.locator("#share")
    expect(share).to_contain_text("Set TALLY_EMBED_ORIGINS=https://your.site and restart Tally.")
    expect(share.locator("iframe")).to_have_count(0)
    choose(page, "#share", "Badge")
    expect(share).to_contain_text("Set TALLY_PUBLIC_BADGES=true and restart Tally.")
    expect(share.locator("img")).to_have_count(0)
    choose(page, "#share", "Script")
    for setting in ("TALLY_ALLOWED_ORIGINS=https://your.site", "TALLY_WRITE_KEYS", "TALLY_READ_KEYS"):
        expect(share).to_contain_text(setting)
    choose(page, "#share", "curl")
    expect(share).to_contain_text("-H 'Authorization: Bearer <write key>'")
    expect(share).to_contain_text("-H 'Authorization: Bearer <read key>'")


def test_notes_can_be_added_only_with_a_write_key(tally: Process, open_page) -> None:
    page = open_page(f"{tally.url}/#/event/a")
    enter_key(page, READ_KEY)
    expect_status(page, "live")
    page.get_by_role("button", name="Notes").click()
    expect(page.locator("#notes")).to_contain_text("To add notes, enter a write key in Settings.")
    expect(page.locator("#notes form input")).to_have_count(0)
