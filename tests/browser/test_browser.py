"""The dashboard in Chromium: pages that move together, states, and no word on the console."""

import functools
import os
import signal
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Error, Page, expect

from tests.support.redis_servers import RedisServer
from tests.support.servers import Process

WIDTHS = [320, 390, 768, 1440, 1920]
HOSTILE = ["<img src=x onerror=alert(1)>", "x" * 128, "ورود کاربر", "👩‍💻 pairing", '"><svg onload=alert(1)>']


@pytest.fixture
def tally(process, tmp_path: Path) -> Process:
    return process(TALLY_STORE=f"sqlite:///{tmp_path}/tally.db", TALLY_WRITE_LIMIT="100000/second")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """For tests that let it live, each with events of its own."""
    process = Process(tmp_path_factory.mktemp("shared"), TALLY_STORE="memory://", TALLY_READ_LIMIT="1000/second")
    yield process.start()
    process.kill()


def count(page: Page, event: str):
    return page.locator(f'[data-event="{event}"] [data-count]')


def test_two_open_pages_move_on_one_post_from_outside(tally: Process, open_page, said: list[str]) -> None:
    tally.post("/event/signup", b'{"by": 41}')
    pages = [open_page(tally.url) for _ in range(2)]
    for page in pages:
        expect(page.locator("#status")).to_have_attribute("data-state", "live")
        expect(count(page, "signup")).to_have_text("41")
        page.evaluate("window.sameDocument = true")
    tally.post("/event/signup")
    tally.post("/event/brand%20new")
    for page in pages:
        expect(count(page, "signup")).to_have_text("42")
        expect(count(page, "brand new")).to_have_text("1")
        expect(page.locator("#today .hero .value")).to_have_text("43")
        expect(page.locator("#top-events li").first).to_contain_text("signup")
        assert page.evaluate("window.sameDocument")
    assert said == []


def test_an_empty_page_teaches_and_turns_live_by_itself(tally: Process, open_page, said: list[str]) -> None:
    page = open_page(tally.url)
    expect(page.locator("#empty code")).to_have_text(f"curl -X POST {tally.url}/event/hello")
    page.locator("#test-hit").click()
    expect(count(page, "hello")).to_have_text("1")
    expect(page.locator("#empty")).to_be_hidden()
    os.system(page.locator("#empty code").text_content() + " -sS >/dev/null")  # noqa: S605 # as a reader would paste it
    expect(count(page, "hello")).to_have_text("2")
    assert said == []


def test_a_lost_connection_dims_the_numbers_and_the_page_catches_up(tally: Process, open_page) -> None:
    tally.post("/event/a", b'{"by": 7}')
    page = open_page(tally.url)
    expect(page.locator("#status")).to_have_attribute("data-state", "live")
    tally.kill()
    expect(page.locator("#status")).to_have_attribute("data-state", "reconnecting")
    expect(count(page, "a")).to_have_text("7")
    expect(page.locator("#banner")).to_be_visible()
    tally.start()
    tally.post("/event/a")
    expect(page.locator("#status")).to_have_attribute("data-state", "live", timeout=20_000)
    expect(count(page, "a")).to_have_text("8")


def test_an_outage_of_the_store_is_shown_and_the_numbers_move_on(process, own_redis: RedisServer, open_page) -> None:
    tally = process(TALLY_STORE=own_redis.url)
    page = open_page(tally.url)
    expect(page.locator("#status")).to_have_attribute("data-state", "spooling")
    tally.post("/event/a")
    expect(count(page, "a")).to_have_text("1")
    expect(page.locator("#banner")).to_contain_text("Hits are kept on disk")
    own_redis.start()
    expect(page.locator("#status")).to_have_attribute("data-state", "live", timeout=20_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_hostile_names_are_text_and_nothing_scrolls_sideways(
    shared: Process, open_page, said: list[str], scheme: str
) -> None:
    shared.post("/events", ("\n".join(HOSTILE * 3)).encode())
    page = open_page(shared.url, color_scheme=scheme)
    for name in HOSTILE:
        expect(page.locator("[data-event]").filter(has_text=name).first).to_be_visible()
    assert page.locator("[onerror], [onload]").count() == 0
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
    assert said == []


def test_nothing_moves_where_motion_is_unwanted(shared: Process, open_page) -> None:
    page = open_page(shared.url, reduced_motion="reduce")
    shared.post("/event/still")
    expect(count(page, "still")).to_have_text("1")
    assert page.evaluate("document.getAnimations().length") == 0


def test_the_api_page_works_offline(shared: Process, open_page, said: list[str]) -> None:
    page = open_page(f"{shared.url}/docs")
    expect(page.get_by_text("/event/{name}").first).to_be_visible()
    page.get_by_text("Count Events").click()
    expect(page.get_by_text("Count many hits, all or none").first).to_be_visible()
    assert said == []


POST_TWICE = """async ([tally, key]) => {
    const headers = { Authorization: `Bearer ${key}`, "Idempotency-Key": "k", "Content-Type": "application/json" };
    const post = () => fetch(`${tally}/event/a`, { method: "POST", headers, body: "{}" });
    await post();
    const again = await post();
    return [again.status, again.headers.get("Idempotent-Replayed")];
}"""
WATCH = """async ([tally, key]) => {
    const { io } = await import(`${tally}/static/vendor/socket.io.esm.min.js`);
    const socket = io(`${tally}/live`, { auth: { key } });
    return new Promise((told) => {
        socket.on("snapshot", ({ names, counts }) => told([names, counts]));
        socket.on("connect_error", (error) => told(error.data?.status ?? "refused"));
    });
}"""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[str]:
    """Another origin, with an empty page."""
    (tmp_path / "shop").mkdir()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path / "shop")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_page_of_another_origin_counts_and_watches_where_it_may(process, shop: str, open_page) -> None:
    """Preflights, headers that it may read, and Socket.IO that begins with polling."""
    key, page = "k" * 16, open_page(shop)
    closed = {"TALLY_WRITE_KEYS": key, "TALLY_READ_KEYS": key}
    tally = process(TALLY_STORE="memory://", TALLY_ALLOWED_ORIGINS=shop, **closed)
    assert page.evaluate(POST_TWICE, [tally.url, key]) == [200, "true"]
    assert page.evaluate(POST_TWICE, [tally.url, "w" * 16]) == [401, None]
    assert page.evaluate(WATCH, [tally.url, key]) == [["a"], [1]]
    assert page.evaluate(WATCH, [tally.url, "w" * 16]) == 401
    alone = process(TALLY_STORE="memory://")
    with pytest.raises(Error, match="Failed to fetch"):
        page.evaluate(POST_TWICE, [alone.url, key])
    assert alone.get("/events") == {}


def state(page: Page):
    return page.locator("#status")


def test_before_anything_is_known_a_page_says_so(shared: Process, browser) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(shared.url)
    expect(page.locator("main")).to_have_attribute("aria-busy", "true")
    expect(state(page)).to_contain_text("Connecting")
    page.context.close()


@pytest.mark.catches("paints while paused", "static/js/data/session.js", "if (!paused) paintNow();", "paintNow();")
def test_a_paused_page_stands_still_and_then_catches_up(shared: Process, open_page, said: list[str]) -> None:
    shared.post("/event/paused")
    page = open_page(shared.url)
    expect(count(page, "paused")).to_have_text("1")
    page.locator("#pause").click()
    expect(state(page)).to_have_attribute("data-state", "paused")
    shared.post("/event/paused")
    expect(state(page)).to_contain_text("1 waiting")
    expect(count(page, "paused")).to_have_text("1")
    page.keyboard.press("p")
    expect(count(page, "paused")).to_have_text("2")
    expect(state(page)).to_have_attribute("data-state", "live")
    assert said == []


def test_a_page_without_a_network_says_so_and_catches_up(shared: Process, open_page) -> None:
    shared.post("/event/cut.off")
    page = open_page(shared.url)
    expect(state(page)).to_have_attribute("data-state", "live")
    page.context.set_offline(True)
    expect(state(page)).to_have_attribute("data-state", "offline")
    expect(page.locator("#today .as-of")).to_contain_text("as of")
    shared.post("/event/cut.off")
    page.context.set_offline(False)
    expect(count(page, "cut.off")).to_have_text("2", timeout=15_000)
    expect(state(page)).to_have_attribute("data-state", "live")


def test_a_page_that_slept_catches_up(shared: Process, open_page, said: list[str]) -> None:
    shared.post("/event/asleep")
    page = open_page(shared.url)
    expect(count(page, "asleep")).to_have_text("1")
    browser = page.context.new_cdp_session(page)
    browser.send("Page.setWebLifecycleState", {"state": "frozen"})
    shared.post("/events", b'{"asleep": 5, "meanwhile": 2}')
    browser.send("Page.setWebLifecycleState", {"state": "active"})
    expect(count(page, "asleep")).to_have_text("6")
    expect(count(page, "meanwhile")).to_have_text("2")
    assert said == []


@pytest.mark.catches("takes silence for life", "static/js/data/socket.js", 'if (silent) return "stale";', "")
def test_a_server_that_has_gone_quiet_is_not_taken_for_live(shared: Process, open_page) -> None:
    shared.post("/event/quiet")
    page = open_page("about:blank")
    page.clock.install()
    page.goto(shared.url)
    expect(count(page, "quiet")).to_have_text("1")
    expect(state(page)).to_have_attribute("data-state", "live")
    os.kill(shared.pid, signal.SIGSTOP)
    try:
        page.clock.fast_forward(33_000)
        expect(state(page)).to_have_attribute("data-state", "stale")
        expect(count(page, "quiet")).to_have_text("1")
    finally:
        os.kill(shared.pid, signal.SIGCONT)
    shared.post("/event/quiet")
    expect(count(page, "quiet")).to_have_text("2")
    expect(state(page)).to_have_attribute("data-state", "live")


def test_a_page_that_may_ask_no_more_goes_on_live(process, open_page) -> None:
    tally = process(TALLY_STORE="memory://", TALLY_READ_LIMIT="3/minute")
    tally.post("/event/a")
    page = open_page(tally.url)
    expect(state(page)).to_have_attribute("data-state", "limited")
    tally.post("/event/a")
    expect(count(page, "a")).to_have_text("2")
    expect(page.locator("#banner")).to_contain_text("asks more than it may")


def test_what_could_not_be_loaded_is_asked_for_again(tally: Process, open_page) -> None:
    page = open_page(tally.url)
    expect(state(page)).to_have_attribute("data-state", "live")
    tally.kill()
    page.evaluate("location.hash = '#/history'")
    expect(page.locator("#history-note")).to_contain_text("could not be loaded")
    tally.start()
    expect(page.locator("#history-note")).to_contain_text("No day is over yet", timeout=20_000)


@pytest.mark.catches(
    "sees no new version", "static/js/data/session.js", "health.version !== version", "health.version === 'another'"
)
def test_a_new_version_is_offered_to_a_page_and_taken_by_a_kiosk(tally: Process, open_page) -> None:
    page, kiosk = open_page(tally.url), open_page(f"{tally.url}/kiosk")
    for one in (page, kiosk):
        expect(state(one)).to_have_attribute("data-state", "live")
        one.wait_for_load_state("networkidle")  # by then it knows the version
        one.evaluate("document.documentElement.dataset.same = ''")
    tally.kill()
    tally._command = ("-c", "import app; app.__version__ = '99.0'; from app.cli import main; main()")
    tally.start()
    expect(page.locator("#banner")).to_contain_text("Tally has been updated", timeout=20_000)
    expect(page.locator("html[data-same]")).to_have_count(1)
    page.locator("#banner button").click()
    for one in (page, kiosk):
        expect(one.locator("html[data-same]")).to_have_count(0, timeout=20_000)
        expect(state(one)).to_have_attribute("data-state", "live")


def test_an_address_of_a_page_that_does_not_exist_leads_to_the_first(
    shared: Process, open_page, said: list[str]
) -> None:
    page = open_page(f"{shared.url}/#/nowhere/at?all")
    expect(page.locator("nav [aria-current]")).to_have_text("Overview")
    assert said == []
