"""Chromium for the browser tests and the screenshots, with pages that record their console messages."""

import shutil
from collections.abc import Callable, Generator, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
FAILED = pytest.StashKey[bool]()
expect.set_options(timeout=15_000)  # ms; on a busy machine, a page can need longer than the default of 5 s


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start one browser for a module. A wider scope would leave Playwright's event loop running in async tests."""
    binary = shutil.which("chromium")
    assert binary, "chromium is not installed: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def console_messages() -> list[str]:
    """The console messages and uncaught errors of all pages of a test; a correct page has none."""
    return []


@pytest.fixture
def open_page(
    browser: Browser, console_messages: list[str], request: pytest.FixtureRequest
) -> Iterator[Callable[..., Page]]:
    """Open a page in a browser context of its own. `clock=True` lets the test move the page's time forward."""
    pages: list[Page] = []

    def open_one(url: str, *, clock: bool = False, **context: object) -> Page:
        page = browser.new_context(**context).new_page()
        page.on("console", lambda message: console_messages.append(message.text))
        page.on("pageerror", lambda error: console_messages.append(str(error)))
        pages.append(page)
        if clock:
            page.clock.install()
        page.goto(url)
        return page

    yield open_one
    artifacts = request.config.rootpath / "test-artifacts"
    artifacts.mkdir(exist_ok=True)
    for i, page in enumerate(pages):
        if request.node.stash[FAILED]:
            page.screenshot(path=artifacts / f"{request.node.name.replace('/', '_')}-{i}.png")
        page.context.close()
