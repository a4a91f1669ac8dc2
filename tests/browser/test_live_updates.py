"""Open pages follow the counts, and report every state of the connection."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.dashboard import accessibility_violations, choose, count_of, expect_status, fits_width
from tests.support.redis_servers import RedisServer
from tests.support.servers import Process

WRITE_KEY = "a-key-to-count-with-5"
AWKWARD_NAME = """it's "50%" off: $(id) `x` \\n <b>&amp; ${{ y }} (é)"""


@pytest.fixture(scope="module")
def restartable_tally(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server that tests stop and start again. Each test uses event names of its own."""
    directory = tmp_path_factory.mktemp("restartable")
    process = Process(directory, TALLY_STORE=f"sqlite:///{directory}/tally.db")
    yield process.start()
    process.kill()


def test_two_open_pages_show_new_hits_without_reloading(tally: Process, open_page, console_messages: list[str]) -> None:
    tally.post("/event/signups", b'{"by": 4100}')
    total = sum(tally.get("/events").values())
    pages = [open_page(tally.url) for _ in range(2)]
    for page in pages:
        expect_status(page, "live")
        expect(count_of(page, "signups")).to_have_text("4,100")
        page.evaluate("window.sameDocument = true")
    tally.post("/event/signups")
    tally.post("/event/brand%20new")
    for page in pages:
        expect(count_of(page, "signups")).to_have_text("4,101")
        expect(count_of(page, "brand new")).to_have_text("1")
        expect(page.locator("#today .hero .value")).to_have_text(f"{total + 2:,}")
        expect(page.locator("#top-events li").first).to_contain_text("signups")
        assert page.evaluate("window.sameDocument")
    assert console_messages == []


@pytest.mark.fails_on_mutant(
    "the key is missing", "static/js/components/empty-state.js", '!open.includes("count")));', "false));"
)
@pytest.mark.fails_on_mutant(
    "a quote ends the command", "static/js/data/snippets.js", "replace(/[!'()*]/g,", "replace(/[!()*]/g,"
)
@pytest.mark.fails_on_mutant(
    "a quote ends the attribute", "static/js/data/snippets.js", """.replaceAll('"', "&quot;")""", ""
)
@pytest.mark.fails_on_mutant("any name", "static/index.html", r' pattern="[^\/]+"', "")
def test_the_first_hit_of_a_copied_snippet_opens_the_overview(
    process, tmp_path: Path, open_page, console_messages: list[str]
) -> None:
    """Each snippet counts the name that the reader typed, with the key that the server needs."""
    tally = process(TALLY_STORE=f"sqlite:///{tmp_path}/tally.db", TALLY_WRITE_KEYS=WRITE_KEY)
    page = open_page(tally.url, viewport={"width": 320, "height": 800})
    code = page.locator("#first-form code")
    expect(code).to_contain_text("Bearer <write key>")
    assert fits_width(page)
    assert accessibility_violations(page) == []
    page.locator("#first-name").fill("a/b")
    expect(page.locator("#test-hit")).to_be_disabled()
    expect(page.locator("#way-note")).to_contain_text("no /")
    page.locator("#first-name").fill(f" {AWKWARD_NAME} ")
    snippets = {}
    for way in ("curl", "Web page", "Python", "CI"):
        choose(page, "#ways", way)
        snippets[way] = code.inner_text().replace("<write key>", WRITE_KEY)
        if way == "Web page":
            expect(page.locator("#way-note")).to_contain_text("TALLY_WRITE_KEYS")
    run_in_shell(snippets["curl"])
    expect(page.locator("#overview-body")).to_be_visible()
    expect(page.locator(".card .count")).to_have_text("1")
    run_in_shell(snippets["curl"])
    subprocess.run([sys.executable, "-c", snippets["Python"]], check=True, capture_output=True)
    for _ in range(2):
        run_in_shell(snippets["CI"].partition("run: |\n")[2])
    expect(page.locator(".card .count")).to_have_text("4")
    assert tally.get("/events") == {AWKWARD_NAME: 4}
    assert console_messages == []
    page = open_page("about:blank")
    page.route("**/tally-1.js", lambda route: route.abort())
    page.set_content(snippets["Web page"])
    assert page.locator("button").get_attribute("data-tally-hit") == AWKWARD_NAME


@pytest.mark.fails_on_mutant("a redirect is followed", "static/js/data/api.js", ', redirect: "error"', "")
def test_a_hit_that_a_proxy_redirects_to_a_page_is_not_shown_as_counted(process, open_page) -> None:
    page = open_page(process(TALLY_STORE="memory://").url)
    page.route("**/event/*", lambda route: route.fulfill(status=302, headers={"Location": "/docs"}))
    page.locator("#test-hit").click()
    expect(page.get_by_text("Could not send the hit.")).to_be_visible()


def run_in_shell(command: str) -> None:
    run = {"GITHUB_RUN_ID": "17", "GITHUB_RUN_ATTEMPT": "1", "GITHUB_JOB": "build", "TALLY_KEY": WRITE_KEY}
    subprocess.run(["sh", "-c", command], check=True, capture_output=True, env=os.environ | run)


def test_a_page_keeps_its_numbers_while_disconnected_and_catches_up(restartable_tally: Process, open_page) -> None:
    restartable_tally.post("/event/a", b'{"by": 7}')
    page = open_page(restartable_tally.url, clock=True)
    expect_status(page, "live")
    restartable_tally.kill()
    expect_status(page, "reconnecting")
    expect(count_of(page, "a")).to_have_text("7")
    page.clock.fast_forward(2000)
    expect(page.locator("#banner")).to_be_visible()
    restartable_tally.start()
    restartable_tally.post("/event/a")
    page.clock.fast_forward(10_000)
    expect_status(page, "live", timeout=20_000)
    expect(count_of(page, "a")).to_have_text("8")


def test_a_page_loads_its_data_again_after_the_server_returns(restartable_tally: Process, open_page) -> None:
    page = open_page(f"{restartable_tally.url}/#/history", clock=True)
    expect(page.locator("#history-note")).to_contain_text("No history yet")
    page.evaluate("location.hash = '#/'")
    expect_status(page, "live")
    restartable_tally.kill()
    page.evaluate("location.hash = '#/history'")
    expect(page.locator("#history-note")).to_contain_text("Could not load the history")
    restartable_tally.start()
    page.clock.fast_forward(10_000)
    expect(page.locator("#history-note")).to_contain_text("No history yet", timeout=20_000)


@pytest.mark.fails_on_mutant(
    "sees no new version", "static/js/data/session.js", "health.version !== version", "health.version === 'another'"
)
def test_a_new_server_version_is_offered_to_a_page_and_reloads_a_kiosk(restartable_tally: Process, open_page) -> None:
    page, kiosk = (open_page("about:blank", clock=True) for _ in range(2))
    for one, path in ((page, "/"), (kiosk, "/kiosk")):
        # The page reads the version from /health.
        with one.expect_response("**/health"):
            one.goto(restartable_tally.url + path)
        expect_status(one, "live")
        one.evaluate("document.documentElement.dataset.same = ''")
    restartable_tally.kill()
    restartable_tally._command = ("-c", "import app; app.__version__ = '99.0'; from app.cli import main; main()")
    restartable_tally.start()
    for one in (page, kiosk):
        with one.expect_response("**/health"):
            one.clock.fast_forward(10_000)
    expect(page.locator("#banner")).to_contain_text("Tally was updated", timeout=20_000)
    expect(page.locator("html[data-same]")).to_have_count(1)
    page.locator("#banner button").click()
    kiosk.clock.fast_forward(3000)
    for one in (page, kiosk):
        expect(one.locator("html[data-same]")).to_have_count(0, timeout=20_000)
        expect_status(one, "live")


def test_a_page_reports_a_store_outage_and_still_counts(process, own_redis: RedisServer, open_page) -> None:
    tally = process(TALLY_STORE=own_redis.url)
    page = open_page(tally.url)
    expect_status(page, "spooling")
    tally.post("/event/a")
    expect(count_of(page, "a")).to_have_text("1")
    expect(page.locator("#banner")).to_contain_text("Hits are being saved to disk")
    own_redis.start()
    expect_status(page, "live", timeout=20_000)


def test_a_rate_limited_page_still_shows_new_hits(process, open_page) -> None:
    tally = process(TALLY_STORE="memory://", TALLY_READ_LIMIT="5/minute")
    tally.post("/event/a")
    page = open_page(tally.url)
    expect_status(page, "limited")
    tally.post("/event/a")
    expect(count_of(page, "a")).to_have_text("2")
    expect(page.locator("#banner")).to_contain_text("Rate limit reached")


def test_a_page_shows_placeholders_before_its_scripts_run(tally: Process, browser: Browser) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(tally.url)
    expect(page.locator("main")).to_have_attribute("aria-busy", "true")
    expect(page.locator("#status")).to_contain_text("Connecting")
    page.context.close()


@pytest.mark.fails_on_mutant(
    "counts while paused", "static/js/data/session.js", "(paused ? holdChanges : takeChanges)", "takeChanges"
)
def test_a_paused_page_keeps_its_numbers_and_catches_up(tally: Process, open_page, console_messages: list[str]) -> None:
    tally.post("/event/paused")
    page = open_page(tally.url)
    expect(count_of(page, "paused")).to_have_text("1")
    page.locator("#pause").click()
    expect_status(page, "paused")
    tally.post("/event/paused")
    expect(page.locator("#status")).to_contain_text("Paused · 1 update")
    page.evaluate("dispatchEvent(new Event('resize'))")  # The cards are drawn again.
    expect(count_of(page, "paused")).to_have_text("1")
    page.keyboard.press("l")
    page.keyboard.press("o")
    expect(count_of(page, "paused")).to_have_text("1")
    page.keyboard.press("p")
    expect(count_of(page, "paused")).to_have_text("2")
    expect_status(page, "live")
    assert console_messages == []


def test_an_offline_page_shows_the_age_of_its_numbers_and_catches_up(tally: Process, open_page) -> None:
    tally.post("/event/cut.off")
    page = open_page(tally.url)
    expect_status(page, "live")
    page.context.set_offline(True)
    expect_status(page, "offline")
    expect(page.locator("#today .as-of")).to_contain_text("as of")
    tally.post("/event/cut.off")
    page.context.set_offline(False)
    expect(count_of(page, "cut.off")).to_have_text("2", timeout=15_000)
    expect_status(page, "live")


def test_a_page_catches_up_after_sleeping(tally: Process, open_page, console_messages: list[str]) -> None:
    tally.post("/event/asleep")
    page = open_page(tally.url)
    expect(count_of(page, "asleep")).to_have_text("1")
    devtools = page.context.new_cdp_session(page)
    devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
    tally.post("/events", b'{"asleep": 5, "during.sleep": 2}')
    devtools.send("Page.setWebLifecycleState", {"state": "active"})
    expect(count_of(page, "asleep")).to_have_text("6")
    expect(count_of(page, "during.sleep")).to_have_text("2")
    assert console_messages == []


@pytest.mark.fails_on_mutant(
    "shows a silent server as live", "static/js/data/socket.js", 'if (silent) return "stale";', ""
)
def test_a_page_with_a_silent_server_is_not_live(tally: Process, open_page) -> None:
    tally.post("/event/quiet")
    page = open_page(tally.url, clock=True)
    expect(count_of(page, "quiet")).to_have_text("1")
    expect_status(page, "live")
    os.kill(tally.pid, signal.SIGSTOP)
    try:
        page.clock.fast_forward(33_000)
        expect_status(page, "stale")
        expect(count_of(page, "quiet")).to_have_text("1")
    finally:
        os.kill(tally.pid, signal.SIGCONT)
    tally.post("/event/quiet")
    expect(count_of(page, "quiet")).to_have_text("2")
    expect_status(page, "live")


def test_an_unknown_address_shows_the_overview(tally: Process, open_page, console_messages: list[str]) -> None:
    page = open_page(f"{tally.url}/#/nowhere/at?all")
    expect(page.locator("nav [aria-current]")).to_have_text("Overview")
    assert console_messages == []
