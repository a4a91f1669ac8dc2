"""Chromium, as the tests and the pictures start it, and pages that keep what they say on their console."""

import shutil
from collections.abc import Callable, Generator, Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    binary = shutil.which("chromium")
    assert binary, "chromium is not installed: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def said() -> list[str]:
    """What pages said on their consoles, which is to be nothing."""
    return []


@pytest.fixture
def open_page(browser: Browser, said: list[str], request: pytest.FixtureRequest) -> Iterator[Callable[..., Page]]:
    pages: list[Page] = []

    def open_one(url: str, **context: object) -> Page:
        page = browser.new_context(**context).new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        pages.append(page)
        page.goto(url)
        return page

    yield open_one
    artifacts = request.config.rootpath / "test-artifacts"
    artifacts.mkdir(exist_ok=True)
    for i, page in enumerate(pages):
        if request.node.stash[FAILED]:
            page.screenshot(path=artifacts / f"{request.node.name.replace('/', '_')}-{i}.png")
        page.context.close()
