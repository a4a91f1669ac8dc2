"""Faults that readers found in Chromium, Firefox ESR or WebKitGTK, in each engine in which they occurred.

WebKitGTK cannot force colours. Only WebKit zooms some font sizes twice. Only Chromium measures layout shifts, and
emulates touch and slow networks. The other browser tests check in Chromium what does not depend on the engine.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import anyio
import httpx
import pytest
from anyio.from_thread import BlockingPortal
from starlette.types import Receive, Scope, Send

from app.http.app import TallyApp
from tests.browser.conftest import ENGINES
from tests.browser.dashboard import past_day
from tests.support.engines import LOADED, Chromium, Engine, Firefox
from tests.support.redis_servers import wait_until
from tests.support.servers import Process, RunningApp, SettableClock
from tests.support.site import Site

pytestmark = pytest.mark.timeout(180)  # includes the start of a browser
READ_KEY, WRITE_KEY = "a-key-to-read-with-17", "a-key-to-count-with-5"
CHART = "static/js/components/bar-chart.js"
FITS = "document.documentElement.scrollWidth <= innerWidth"
NUMBER_FITS = "document.querySelector('.number > .value').getBoundingClientRect().right <= innerWidth"
TITLE_END = "(document.querySelector('.slide h1').getBoundingClientRect().bottom + 15) / innerHeight"
CHART_SUM = """[...document.querySelectorAll("#event-chart tbody td:nth-child(2)")]
  .reduce((sum, cell) => sum + (Number(cell.textContent.replace(",", "")) || 0), 0)"""
LOADED_MINUTES = "performance.getEntriesByType('resource').filter(({ name }) => name.includes('step=minute')).length"
NEWEST_BAR_IS_AT_THE_EDGE = """(() => {
  const bars = [...document.querySelectorAll("#event-chart rect.bar")];
  const plot = document.querySelector("#event-chart svg").getBoundingClientRect();
  return bars.at(-1).getBoundingClientRect().right > plot.right - plot.width / bars.length;
})()"""
NAMES_ARE_WHOLE = """[...document.querySelectorAll("#leaderboard-list .name")]
  .every((name) => name.scrollWidth <= name.clientWidth)"""
LABEL = "document.querySelector('#event-today .label')"
# Only WebKit zooms a font size in units of its container twice.
ZOOMED_WEBKIT = pytest.param(
    "zoomed webkit",
    marks=pytest.mark.fails_on_mutant(
        "the zoom is applied twice", "static/app.css", "min(40 * var(--h), 88 * var(--w)", "min(40cqh, 88cqw"
    ),
)
# Whether the tab is in the background. A test cannot hide it in all engines.
HIDE = """void (Object.defineProperty(document, "hidden", { value: %s, configurable: true }),
  document.dispatchEvent(new Event("visibilitychange")))"""


@pytest.fixture(scope="module")
def tally(tally_with_history: Process) -> Process:
    return tally_with_history


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site() as site:
        yield site


def hold(monkeypatch: pytest.MonkeyPatch, portal: BlockingPortal, *paths: str) -> Callable[[], None]:
    """Let requests to these paths wait, until the returned function is called."""
    released, handle = anyio.Event(), TallyApp.__call__

    async def wait_and_handle(app: TallyApp, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(paths):
            await released.wait()
        await handle(app, scope, receive, send)

    monkeypatch.setattr(TallyApp, "__call__", wait_and_handle)
    return lambda: portal.call(released.set)


@pytest.mark.fails_on_mutant(
    "draws before the counts are loaded", "static/js/pages/event.js", "    if (!isLoaded()) return;\n", ""
)
@pytest.mark.fails_on_mutant(
    "hits of a snapshot are new",
    "static/js/data/counters.js",
    "received.get(name) ?? 0",
    "received.get(name) ?? counts[0]",
)
def test_an_event_page_shows_nothing_until_the_counts_are_loaded(
    engine: Engine, serve: Callable[..., RunningApp], portal: BlockingPortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its chart loads first, and its tab is in the background while the counts arrive."""
    app = serve()
    httpx.post(f"{app.url}/event/early", json={"by": 40_000})
    release = hold(monkeypatch, portal, "/events", "/socket.io/")
    engine.open(f"{app.url}/#/event/early")
    engine.wait("document.querySelector('#event-chart').ariaBusy === 'false'")
    engine.wait("performance.getEntriesByType('resource').some(({ name }) => name.endsWith('/event/early'))")
    assert engine.evaluate("document.querySelector('#event-today .hero .value').textContent") == ""
    assert engine.text("#event-today dd") == "\N{EN DASH}"
    engine.evaluate(HIDE % "true")
    release()
    engine.wait(f"{LOADED_MINUTES} === 2")
    engine.expect_status("live")
    engine.evaluate(HIDE % "false")
    engine.expect("#event-today .hero .value", "40,000")
    httpx.post(f"{app.url}/event/early", json={"by": 3})
    engine.expect("#event-today .hero .value", "40,003")
    engine.click("#event-chart .toggle")
    assert engine.wait(CHART_SUM) == 40_003
    assert engine.recorded_errors() == []


@pytest.mark.fails_on_mutant(
    "an instance with history looks new", "static/js/pages/overview.js", 'counters.lastDay?.day === ""', "true"
)
@pytest.mark.fails_on_mutant(
    "events of the last day are hidden",
    "static/js/components/card-grid.js",
    "...(counters.lastDay?.counts.keys() ?? [])",
    "",
)
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
    for opened in ("before midnight", "after it"):
        if opened == "after it":
            engine.open(f"{app.url}/#/")
        for selector in ("[data-event=search] [data-count]", "[data-event=signup] [data-count]", "#today .hero .value"):
            engine.wait(f"document.querySelector('{selector}')?.textContent === '0'", opened)
        engine.expect("[data-event=search] .rate", "120 on ")
        assert engine.evaluate("document.querySelector('#empty').hidden"), opened
    httpx.post(f"{app.url}/event/search")
    engine.expect("[data-event=search] [data-count]", "1")
    assert engine.recorded_errors() == []


@pytest.mark.fails_on_mutant(
    "the running day is left out",
    "static/js/data/series.js",
    "all: sum(this.points)",
    "all: sum(this.points.slice(0, -1))",
)
@pytest.mark.fails_on_mutant(
    "unknown days are compared", "static/js/data/series.js", "every(({ known }) => known)", "every(() => true)"
)
@pytest.mark.fails_on_mutant("the newest day has no label", CHART, "&& !isNewestDay", "")
@pytest.mark.fails_on_mutant(
    "seven bars fill a part of the panel",
    CHART,
    "barStep = (box.width - MARGIN.left) / points.length",
    "barStep = Math.min(64, (box.width - MARGIN.left) / points.length)",
)
@pytest.mark.fails_on_mutant(
    "a bar opens nothing", "static/js/components/hits-chart.js", "onRange(iso.slice(0, 10))", "undefined"
)
def test_a_week_fills_its_chart_and_a_bar_opens_its_day(engine: Engine, tally: Process) -> None:
    """The server began to count two days ago, so there is no week before to compare with."""
    engine.open(f"{tally.url}/#/event/search?range=week")
    note = "document.querySelector('#event-chart .note').textContent.trim()"
    engine.wait(f"{note} === '480 hits in the last 7 days.'", note)
    assert engine.evaluate("document.querySelector('#event-chart path.previous').getAttribute('d')") == ""
    assert engine.evaluate(NEWEST_BAR_IS_AT_THE_EDGE)
    engine.click("#event-chart .toggle")
    assert engine.evaluate(CHART_SUM) == 480
    engine.click("#event-chart .toggle")
    engine.click("#event-chart rect:nth-child(6)")
    engine.expect("#event-chart-title", "Hits per hour")
    engine.wait("document.querySelectorAll('#event-chart rect.bar').length === 24")
    assert engine.evaluate("location.hash") == f"#/event/search?range={past_day(1)}"
    engine.evaluate("void (location.hash = '#/event/search?range=month')")
    engine.wait("document.querySelectorAll('#event-chart rect.bar').length === 30")
    engine.expect("#event-chart .axis text:last-child", f"{datetime.now(UTC):%b} {datetime.now(UTC).day}")
    assert engine.recorded_errors() == []


@pytest.mark.fails_on_mutant(
    "names have no room", "static/app.css", "  .long :is(.part, .change), .about-parts { display: none; }\n", ""
)
def test_a_narrow_leaderboard_shows_its_names(engine: Engine, tally: Process) -> None:
    engine.open(f"{tally.url}/#/leaderboard?window=7d", 320)
    engine.expect("#leaderboard-list li:nth-child(2) .count", "480")
    assert engine.evaluate(NAMES_ARE_WHOLE)


def title_is_whole(engine: Engine) -> bool:
    """Return whether the title looks the same without its limits. WebKit does not include letters in a scrollHeight."""
    engine.evaluate("void (document.querySelector('.slide h1').style.overflow = '')")
    picture = engine.screenshot()
    title = (0, 0, picture.width, round(picture.height * engine.evaluate(TITLE_END)))
    engine.evaluate("void (document.querySelector('.slide h1').style.overflow = 'visible')")
    return engine.screenshot().crop(title) == picture.crop(title)


@pytest.mark.fails_on_mutant(
    "letters are cut off", "static/app.css", "line-height: 1.3; display:", "line-height: 1.05; display:"
)
@pytest.mark.parametrize("shared_engine", [*ENGINES, ZOOMED_WEBKIT], indirect=True)
def test_a_kiosk_cuts_nothing_off_at_any_size(engine: Engine, serve: Callable[..., RunningApp]) -> None:
    app = serve()
    httpx.post(f"{app.url}/event/gypsy", json={"by": 2151})
    for width, height in ((1200, 700), (320, 600)):
        engine.open(f"{app.url}/kiosk?event=gypsy&event=search&rotate=0", width, height)
        engine.expect(".number > .value", "2,151")
        engine.expect_status("live")
        for fits in (FITS, NUMBER_FITS):
            engine.wait(fits)
        # Something else may be painted between its two pictures.
        wait_until(lambda: title_is_whole(engine), lambda: "the title is cut off")
        engine.press("ArrowRight")
        engine.expect("h1", "search")
    assert engine.recorded_errors() == []


@pytest.mark.fails_on_mutant("the place is forgotten", "static/js/main.js", "scrollPositions.get(entry) ?? 0", "0")
@pytest.mark.fails_on_mutant(
    "every entry is a new one", "static/js/main.js", "if (!history.state?.entry) history", "history"
)
@pytest.mark.fails_on_mutant("the view is forgotten", "static/js/main.js", 'location.hash || "#/"', '"#/"')
def test_back_leads_to_the_card_that_was_left(engine: Engine, serve: Callable[..., RunningApp]) -> None:
    app = serve()
    httpx.post(f"{app.url}/events", json={f"event {i:03}": 1 for i in range(300)})
    engine.open(f"{app.url}/#/?sort=name&range=day", 390, 800)
    engine.wait(LOADED)
    engine.evaluate("void addEventListener('click', () => { window.left = scrollY; }, { capture: true, once: true })")
    engine.evaluate("scrollTo(0, document.body.scrollHeight / 2)")
    engine.click('[data-event="event 150"] a')
    engine.expect("#event-name", "event 150")
    engine.wait("scrollY === 0")
    engine.evaluate("history.back()")
    engine.wait("document.activeElement.title === 'event 150' && left > 500 && Math.abs(scrollY - left) < 5")
    engine.evaluate("history.forward()")
    engine.click(".crumb a")
    engine.wait("location.hash === '#/?sort=name&range=day'")
    assert engine.recorded_errors() == []


@pytest.mark.fails_on_mutant(
    "a frame has a color-scheme", "static/embed.css", ":root { --accent", ":root { color-scheme: light dark; --accent"
)
@pytest.mark.fails_on_mutant("a frame has a border", "static/js/data/snippets.js", "border:0;", "")
def test_a_copied_frame_is_transparent_on_a_light_page(
    engine: Engine, serve: Callable[..., RunningApp], site: Site
) -> None:
    """The reader prefers dark colours, which the page around the frame ignores. So is a frame without a style."""
    app = serve(embed_origins=site.url)
    engine.open(f"{app.url}/#/event/search")
    engine.click("#share-open")
    engine.expect("#share-body .curl code", "<iframe")
    copied = engine.text("#share-body .curl code")
    plain = copied.replace('style="border:0;color-scheme:light"', 'frameborder="0"')
    site.html = f'<!doctype html><body style="margin: 0">{copied}{plain}'
    engine.open(site.url)
    assert engine.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    for left in (0, 200):
        frame = (left, 0, left + 200, 100)
        wait_until(lambda frame=frame: engine.screenshot().crop(frame).getcolors(1) is None, lambda: "a frame is blank")
        assert engine.screenshot().getpixel((left, 0)) == (255, 255, 255)
    engine.open("about:blank")  # the frame's stream would delay the end of the server


@pytest.mark.fails_on_mutant(
    "the missing setting is not named", "static/js/components/share-panel.js", 'isOpen("scripts") ?', "true ?"
)
@pytest.mark.fails_on_mutant(
    "a command without a key",
    "static/js/data/snippets.js",
    "keyed ? [`-H '${WRITE_KEY}'`]",
    "false ? [`-H '${WRITE_KEY}'`]",
)
def test_the_share_panel_names_what_the_server_needs(engine: Engine, serve: Callable[..., RunningApp]) -> None:
    app = serve(read_keys=READ_KEY, write_keys=WRITE_KEY, embed_origins="https://site.test")
    engine.open(app.url)
    engine.evaluate(f"sessionStorage.setItem('tally-key', '{READ_KEY}')")
    engine.open(f"{app.url}/#/event/search")
    engine.expect_status("live")
    engine.click("#share-open")
    forms = {
        "badge": ["Set TALLY_PUBLIC_BADGES=true"],
        "frame": ["Sites in TALLY_EMBED_ORIGINS can show this. If yours is not in it, add it and restart Tally."],
        "script": ["Set TALLY_ALLOWED_ORIGINS=https://your.site", "TALLY_WRITE_KEYS", "TALLY_READ_KEYS"],
        "curl": ["-H 'Authorization: Bearer <write key>'", "-H 'Authorization: Bearer <read key>'"],
    }
    for form, texts in forms.items():
        engine.click(f"#share-body label:has([value={form}])")
        for text in texts:
            engine.expect("#share-body", text)


@pytest.mark.fails_on_mutant(
    "a number covers its label", "static/app.css", ".hero .label { position: relative; z-index: 1; }\n", ""
)
@pytest.mark.parametrize("shared_engine", ["chromium", "firefox"], indirect=True)
def test_a_number_covers_no_label_in_forced_colours(engine: Chromium | Firefox, tally: Process) -> None:
    """A browser puts an opaque ground behind each line of text."""
    engine.open(f"{tally.url}/#/event/search")
    engine.expect("#event-today .hero .value", "120")
    with engine.forced_colors():
        engine.wait("matchMedia('(forced-colors: active)').matches")
        box = engine.evaluate(
            f"(({{ x, y, right, bottom }}) => [x, y, right, bottom])({LABEL}.getBoundingClientRect())"
        )
        label = engine.screenshot().crop(box)
        assert label.getcolors(1) is None, "the label is blank"
        engine.evaluate("void (document.querySelector('#event-today .hero .value').style.visibility = 'hidden')")
        assert engine.screenshot().crop(box) == label


@pytest.mark.fails_on_mutant(
    "a wrong key replaces the present one",
    "static/js/components/key-form.js",
    "if (permissions.read) save(key)",
    "if (true) save(key)",
)
@pytest.mark.fails_on_mutant(
    "nothing is remembered", "static/js/data/prefs.js", 'write(browserStorage, "tally-key", remember ? value : "");', ""
)
def test_a_wrong_key_does_not_lock_a_page_and_a_right_one_is_remembered(
    engine: Engine, serve: Callable[..., RunningApp]
) -> None:
    app = serve(read_keys=READ_KEY)
    httpx.post(f"{app.url}/event/kept", json={"by": 7})
    engine.open(app.url)
    engine.expect_status("locked")
    engine.click("#key-prompt [type=checkbox]")
    engine.click("#key-prompt [type=password]")
    engine.press(*"not the key", "Enter")
    engine.expect("#key-prompt", "Wrong key")
    engine.evaluate("document.activeElement.select()")
    engine.press(*READ_KEY, "Enter")
    engine.expect_status("live")
    engine.expect("[data-event=kept] [data-count]", "7")
    engine.evaluate("sessionStorage.clear()")
    engine.open(f"{app.url}/#/settings")
    engine.expect_status("live")
    engine.click("#key [type=password]")
    engine.press(*"mistyped", "Enter")
    engine.expect("#key .problem", "Wrong key")
    engine.expect_status("live")
    assert engine.evaluate("localStorage.getItem('tally-key')") == READ_KEY
