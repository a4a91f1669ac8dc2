"""The same screens in Chromium, Firefox ESR and WebKitGTK, which differ in rendering and timing."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import anyio
import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from starlette.types import Receive, Scope, Send

from app.http.app import TallyApp
from app.settings import Settings
from tests.browser.conftest import count_two_days
from tests.browser.dashboard import USUAL_COUNTS
from tests.support.browser import FAILED
from tests.support.engines import Chromium, Engine, firefox, webkit
from tests.support.redis_servers import wait_until
from tests.support.servers import Process, RunningApp, SettableClock, serving
from tests.support.site import Site

pytestmark = pytest.mark.timeout(180)  # includes the start of a browser
READ_KEY = "a-key-to-read-with-17"
FITS = "document.documentElement.scrollWidth <= innerWidth"
LOADED = "![...document.querySelectorAll('[aria-busy=true]')].some((element) => element.checkVisibility())"
NUMBER_FITS = "document.querySelector('.number > .value').getBoundingClientRect().right <= innerWidth"
TITLE_IS_WHOLE = "document.querySelector('h1').scrollHeight <= document.querySelector('h1').clientHeight"
CHART_SUM = """[...document.querySelectorAll("#event-chart tbody td:nth-child(2)")]
  .reduce((sum, cell) => sum + (Number(cell.textContent.replace(",", "")) || 0), 0)"""


@pytest.fixture(scope="module", params=["chromium", "firefox", "webkit"])
def shared_engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    if request.param == "chromium":
        yield Chromium(request.getfixturevalue("browser"))
        return
    start = {"firefox": firefox, "webkit": webkit}[request.param]
    with start(tmp_path_factory.mktemp(request.param)) as engine:
        yield engine


@pytest.fixture
def engine(shared_engine: Engine, request: pytest.FixtureRequest) -> Iterator[Engine]:
    shared_engine.open("about:blank")  # the page of an earlier test may still call its server
    shared_engine.errors.clear()
    yield shared_engine
    if request.node.stash[FAILED]:
        artifacts = request.config.rootpath / "test-artifacts"
        artifacts.mkdir(exist_ok=True)
        shared_engine.screenshot().save(artifacts / f"{request.node.name}.png")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site() as site:
        yield site


@pytest.fixture(scope="module")
def tally(tmp_path_factory: pytest.TempPathFactory, site: Site) -> Iterator[Process]:
    """A server with two closed days and the usual counts, whose numbers the site may show in a frame."""
    directory = tmp_path_factory.mktemp("engines")
    store = f"sqlite:///{directory}/tally.db"
    with ThreadPoolExecutor() as pool:  # Playwright's event loop runs in this thread
        pool.submit(asyncio.run, count_two_days(store)).result()
    settings = {"TALLY_STORE": store, "TALLY_EMBED_ORIGINS": site.url, "TALLY_READ_LIMIT": "10000/second"}
    process = Process(directory, **settings).start()
    process.post(
        "/events", json.dumps({**USUAL_COUNTS, "gypsy": 2151, **{f"event {i:02}": 1 for i in range(30)}}).encode()
    )
    yield process
    process.kill()


@pytest.fixture
def portal() -> Iterator[BlockingPortal]:
    """A thread for apps of this process, because Playwright's event loop runs in the main thread."""
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture
def serve(portal: BlockingPortal) -> Iterator[Callable[..., RunningApp]]:
    with ExitStack() as stack:

        def start(clock: Callable[[], float] = time.time, **options: str) -> RunningApp:
            settings = Settings(TALLY_STORE="memory://", **options)
            return stack.enter_context(portal.wrap_async_context_manager(serving(settings, clock)))

        yield start


def test_every_view_has_the_right_numbers_and_fits_any_width(engine: Engine, tally: Process) -> None:
    total = f"{sum(tally.get('/events').values()):,}"
    views = (
        ("", "#today .hero .value", total),
        ("", '[data-event="search"] [data-count]', "120"),
        ("", "#top-events li", "gypsy2,151"),
        ("event/search", "#event-today .hero .value", "120"),
        ("event/search?range=week", "#event-chart .note", "480 hits in the last 7 days."),
        ("leaderboard", "#leaderboard-list li:nth-child(2) .count", "300"),
        ("leaderboard?window=7d", "#leaderboard-list li:nth-child(3) .count", "480"),
        ("history", "#history-day", "920 hits across 3 events"),
        ("settings", "#health", "sqlite"),
    )
    for width in (1200, 320):
        engine.open(f"{tally.url}/#/", width)
        for view, selector, text in views:
            engine.evaluate(f"void (location.hash = '#/{view}')")
            engine.expect(selector, text)
            engine.wait(LOADED)
            assert engine.evaluate(FITS), (view, width)
        engine.press("?")
        engine.expect("#help", "Show shortcuts")
        assert engine.evaluate(FITS), width
    assert engine.errors == []


def test_a_kiosk_cuts_nothing_off_at_any_size(engine: Engine, tally: Process) -> None:
    for width, height in ((1440, 900), (320, 600)):
        engine.open(f"{tally.url}/kiosk?event=gypsy&event=search&rotate=0", width, height)
        engine.expect(".number > .value", "2,151")
        engine.expect_status("live")
        for fits in (FITS, NUMBER_FITS, TITLE_IS_WHOLE):
            assert engine.evaluate(fits), (fits, width)
        engine.press("ArrowRight")
        engine.expect("h1", "search")
    assert engine.errors == []


def test_the_api_reference_is_shown(engine: Engine, tally: Process) -> None:
    engine.open(f"{tally.url}/docs")
    engine.wait("document.querySelector('#swagger-ui').textContent.includes('/event/{name}')")
    assert engine.errors == []


def test_new_hits_move_each_open_number(engine: Engine, tally: Process) -> None:
    event = f"live.{engine.name}"
    tally.post(f"/event/{event}", b'{"by": 7}')
    screens = {
        "/#/": f'[data-event="{event}"] [data-count]',
        f"/#/event/{event}": "#event-today .hero .value",
        f"/kiosk?event={event}": ".number > .value",
        f"/embed/{event}": "#count",
    }
    for count, (path, selector) in enumerate(screens.items(), start=7):
        engine.open(tally.url + path)
        engine.expect(selector, str(count))
        tally.post(f"/event/{event}")
        engine.expect(selector, str(count + 1))
    assert engine.errors == []


def test_a_paused_page_keeps_its_numbers(engine: Engine, tally: Process) -> None:
    event = f"paused.{engine.name}"
    tally.post(f"/event/{event}")
    engine.open(f"{tally.url}/#/?filter={event}")
    count = f'[data-event="{event}"] [data-count]'
    engine.expect(count, "1")
    engine.click("#pause")
    engine.expect_status("paused")
    tally.post(f"/event/{event}")
    engine.expect("#status", "Paused · 1 update")
    assert engine.text(count) == "1"
    engine.press("p")
    engine.expect(count, "2")
    engine.expect_status("live")
    assert engine.errors == []


def test_keys_lead_to_every_view_and_filter(engine: Engine, tally: Process) -> None:
    engine.open(f"{tally.url}/#/")
    engine.wait(LOADED)
    for key, view in {"l": "leaderboard", "h": "history", "s": "settings", "o": "overview"}.items():
        engine.press(key)
        engine.wait(f"document.querySelector('#page-{view}').checkVisibility()")
    engine.press("?")
    engine.wait("document.querySelector('#help').open")
    engine.press("Escape")
    engine.wait("!document.querySelector('#help').open")
    engine.press("/", *"page.v")
    engine.wait("document.querySelectorAll('.card').length === 1")
    engine.press("Escape")
    engine.wait("document.querySelectorAll('.card').length > 30")
    assert engine.errors == []


def test_back_leads_to_the_card_that_was_left(engine: Engine, tally: Process) -> None:
    engine.open(f"{tally.url}/#/?sort=name", 390, 800)
    engine.wait(LOADED)
    engine.click('[data-event="event 20"] a')
    engine.expect("#event-name", "event 20")
    engine.wait("scrollY === 0")
    engine.evaluate("history.back()")
    engine.wait("document.activeElement.title === 'event 20' && scrollY > 500")


def test_an_embed_is_transparent_on_a_light_page(engine: Engine, tally: Process, site: Site) -> None:
    """The reader prefers dark colours, which the page around the frame ignores."""
    frame = f'<iframe src="{tally.url}/embed/search" width="200" height="100" frameborder="0"></iframe>'
    site.html = f'<!doctype html><body style="margin: 0">{frame}'
    engine.open(site.url)
    assert engine.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    white = (255, 255, 255)
    wait_until(lambda: engine.screenshot().crop((0, 0, 200, 100)).getcolors(1) is None, lambda: "the frame is blank")
    assert engine.screenshot().getpixel((2, 2)) == white


def test_an_event_page_shows_nothing_until_the_counts_are_loaded(
    engine: Engine, serve: Callable[..., RunningApp], portal: BlockingPortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = serve()
    httpx.post(f"{app.url}/event/early", json={"by": 40_000})
    release = hold(monkeypatch, portal, "/events", "/socket.io/")
    engine.open(f"{app.url}/#/event/early")
    engine.wait("document.querySelector('#event-chart').ariaBusy === 'false'")
    engine.wait("performance.getEntriesByType('resource').some(({ name }) => name.endsWith('/event/early'))")
    assert engine.evaluate("document.querySelector('#event-today .hero .value').textContent") == ""
    assert engine.text("#event-today dd") == "\N{EN DASH}"
    release()
    engine.expect("#event-today .hero .value", "40,000")
    engine.expect_status("live")
    engine.click("#event-chart .toggle")
    engine.wait(f"{CHART_SUM} === 40000")
    assert engine.errors == []


def hold(monkeypatch: pytest.MonkeyPatch, portal: BlockingPortal, *paths: str) -> Callable[[], None]:
    """Let requests to these paths wait, until the returned function is called."""
    released, handle = anyio.Event(), TallyApp.__call__

    async def wait_and_handle(app: TallyApp, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(paths):
            await released.wait()
        await handle(app, scope, receive, send)

    monkeypatch.setattr(TallyApp, "__call__", wait_and_handle)
    return lambda: portal.call(released.set)


def test_at_midnight_every_known_event_is_at_0(
    engine: Engine, serve: Callable[..., RunningApp], portal: BlockingPortal
) -> None:
    clock = SettableClock()
    app = serve(clock)
    httpx.post(f"{app.url}/events", json={"search": 120, "signup": 40})
    engine.open(f"{app.url}/#/")
    engine.expect("#today .hero .value", "160")
    engine.expect_status("live")
    clock.shift = 86_400
    portal.call(app.app.state.jobs.get_job("close_day").func)
    for selector in ("[data-event=search] [data-count]", "[data-event=signup] [data-count]", "#today .hero .value"):
        engine.wait(f"document.querySelector('{selector}')?.textContent === '0'")
    assert engine.evaluate("document.querySelector('#empty').hidden")
    httpx.post(f"{app.url}/event/search")
    engine.expect("[data-event=search] [data-count]", "1")
    assert engine.errors == []


def test_a_wrong_key_does_not_lock_a_page(engine: Engine, serve: Callable[..., RunningApp]) -> None:
    app = serve(read_keys=READ_KEY)
    httpx.post(f"{app.url}/event/kept", json={"by": 7})
    engine.open(app.url)
    engine.expect_status("locked")
    engine.click("#key-prompt input")
    engine.press(*"not the key", "Enter")
    engine.expect("#key-prompt", "Wrong key")
    engine.evaluate("document.activeElement.select()")
    engine.press(*READ_KEY, "Enter")
    engine.expect_status("live")
    engine.expect("[data-event=kept] [data-count]", "7")
    engine.press("s")
    engine.click("#key input")
    engine.press(*"mistyped", "Enter")
    engine.expect("#key .problem", "Wrong key")
    engine.expect_status("live")
    assert engine.evaluate("sessionStorage.getItem('tally-key')") == READ_KEY


def test_a_page_catches_up_after_the_server_returns(
    engine: Engine, process: Callable[..., Process], tmp_path: Path
) -> None:
    tally = process(TALLY_STORE=f"sqlite:///{tmp_path}/tally.db")
    tally.post("/event/kept", b'{"by": 7}')
    engine.open(f"{tally.url}/#/")
    engine.expect("[data-event=kept] [data-count]", "7")
    engine.expect_status("live")
    tally.kill()
    engine.expect_status("reconnecting")
    engine.expect("#today .as-of", "as of")
    assert engine.text("[data-event=kept] [data-count]") == "7"
    assert engine.evaluate("document.body.classList.contains('stale')")
    tally.start()
    tally.post("/event/kept")
    engine.expect("[data-event=kept] [data-count]", "8")
    engine.expect_status("live")
    assert engine.evaluate("document.querySelector('#today .as-of').textContent") == ""
