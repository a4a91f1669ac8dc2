"""A dashboard works without the browser's storage: blocked, full, or with contents that are not Tally's."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.browser.dashboard import choose, expect_status
from tests.browser.test_api_key import enter_key
from tests.support.servers import Process

PREFS = "static/js/data/prefs.js"
KEY = "a-key-to-read-with-17"
BLOCK = """for (const name of ["localStorage", "sessionStorage", "indexedDB", "caches"]) {
  Object.defineProperty(window, name, { get() { ACCESS } });
}"""
STORAGES = {
    "blocked": BLOCK.replace("ACCESS", 'throw new DOMException("access is denied", "SecurityError");'),
    "missing": BLOCK.replace("ACCESS", "return null;"),
    "full": """for (const storage of [localStorage, sessionStorage]) {
      for (let size = 2 ** 23, i = 0; size >= 1;) {
        try { storage.setItem(`x${size}-${i++}`, "x".repeat(size)); } catch { size /= 2; }
      }
    }""",
    "broken": """for (const method of ["getItem", "setItem", "removeItem"]) {
      Storage.prototype[method] = () => { throw new DOMException("I/O error", "UnknownError"); };
    }""",
    "garbage": """for (const name of ["theme", "density", "shortcuts", "announce", "pins", "key"]) {
      for (const storage of [localStorage, sessionStorage]) storage.setItem(`tally-${name}`, '{"ключ');
    }""",
}


@pytest.fixture(scope="module")
def tally(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = Process(tmp_path_factory.mktemp("storage"), TALLY_STORE="memory://", TALLY_READ_KEYS=KEY)
    process.start()
    process.post("/events", b'{"first": 7, "pinned": 1}')
    yield process
    process.kill()


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            "blocked",
            marks=pytest.mark.fails_on_mutant(
                "an error of reading is not caught", PREFS, "catch { return null; }", "finally {}"
            ),
        ),
        "missing",
        pytest.param(
            "full",
            marks=pytest.mark.fails_on_mutant(
                "an error of writing is not caught",
                PREFS,
                "catch { /* It is kept until the page closes. */ }",
                "finally {}",
            ),
        ),
        "broken",
        "garbage",
    ],
)
def test_a_dashboard_works_without_storage(tally: Process, open_page, console_messages: list[str], kind: str) -> None:
    page = open_page("about:blank", color_scheme="light")
    page.context.add_init_script(STORAGES[kind])
    page.goto(tally.url)
    expect_status(page, "locked")
    enter_key(page, KEY)
    expect_status(page, "live")
    card = page.locator('[data-event="pinned"]')
    card.hover()
    card.get_by_role("button", name="Pin pinned").click()
    expect(page.locator(".card").first).to_have_attribute("data-event", "pinned")
    page.goto(f"{tally.url}/#/settings")
    choose(page, "#set-theme", "Dark")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    choose(page, "#set-announce", "Off")
    page.get_by_role("button", name="Remove key").click()
    expect_status(page, "locked")
    assert [text for text in console_messages if "401" not in text] == []
