"""The same screens in Chromium, Firefox ESR and WebKitGTK, which differ in rendering and timing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.engines import LOADED, Engine
from tests.support.servers import Process, RunningApp

pytestmark = pytest.mark.timeout(180)  # includes the start of a browser
STYLE = "performance.getEntriesByType('resource').find(({ name }) => name.endsWith('app.css'))"
FITS = "document.documentElement.scrollWidth <= innerWidth"


@pytest.fixture(scope="module")
def tally(tally_with_history: Process) -> Process:
    return tally_with_history


def test_every_view_has_the_right_numbers_and_fits_any_width(engine: Engine, tally: Process) -> None:
    total = f"{sum(tally.get('/events').values()):,}"
    views = (
        ("", "#today .hero .value", total),
        ("", '[data-event="search"] [data-count]', "120"),
        ("", "#top-events li", "page.view300"),
        ("event/search", "#event-today .hero .value", "120"),
        ("event/search?range=week", "#event-chart .note", "480 hits in the last 7 days."),
        ("leaderboard", "#leaderboard-list li:nth-child(1) .count", "300"),
        ("leaderboard?window=7d", "#leaderboard-list li:nth-child(2) .count", "480"),
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
    assert engine.recorded_errors() == []


@pytest.mark.fails_on_mutant(
    "files are not compressed", "app/http/static_files.py", "if len(self.body) > _UNCOMPRESSED_MAX", "if False"
)
@pytest.mark.fails_on_mutant(
    "files are requested again", "app/http/static_files.py", '"public, max-age=31536000, immutable"', '"no-cache"'
)
def test_files_are_compressed_and_loaded_once(engine: Engine, serve: Callable[..., RunningApp]) -> None:
    app = serve()
    engine.open(f"{app.url}/#/")
    engine.expect_status("live")
    assert engine.evaluate(f"{STYLE}.encodedBodySize < {STYLE}.decodedBodySize / 2")
    engine.open(f"{app.url}/#/")
    engine.expect_status("live")
    assert engine.evaluate(f"{STYLE}.transferSize") == 0


def test_the_api_reference_is_shown(engine: Engine, tally: Process) -> None:
    engine.open(f"{tally.url}/docs")
    engine.wait("document.querySelector('#swagger-ui').textContent.includes('/event/{name}')")
    assert engine.recorded_errors() == []


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
    assert engine.recorded_errors() == []


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
    assert engine.recorded_errors() == []


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
    engine.wait("document.querySelectorAll('.card').length > 2")
    assert engine.recorded_errors() == []


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
