"""Notes on the charts: marked under their bars, read with the bars, and added and deleted in a dialog."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.dashboard import (
    ADMIN_KEY,
    HOSTILE_NAMES,
    accessibility_violations,
    choose,
    past_day,
    wait_until_loaded,
)
from tests.support.servers import Process

HOSTILE = HOSTILE_NAMES[0]
LONG = "v2 deployed, with the new form of the landing page"
IS_WHOLE = "row => [...row.querySelectorAll('span')].every(el => el.scrollWidth <= el.clientWidth || !el.clientWidth)"


@pytest.fixture(scope="module")
def tally(tally_with_history: Process) -> Process:
    yesterday = {"at": f"{past_day(1)}T08:00:00Z"}
    for note in ({"text": "=v1", **yesterday}, {"text": HOSTILE}, {"text": "new form", "event": "search"}):
        tally_with_history.post("/notes", json.dumps(note).encode())
    return tally_with_history


def open_notes(page: Page, chart: str) -> None:
    page.locator(chart).get_by_role("button", name="Notes").click()


@pytest.mark.fails_on_mutant(
    "a table stays", "static/js/components/hits-chart.js", "chart.show(as);", "if (as) chart.show(as);"
)
@pytest.mark.fails_on_mutant("no marks", "static/js/components/bar-chart.js", "{ d: marks.join(", "{ d: [].join(")
def test_notes_are_read_with_their_bars(tally: Process, open_page, console_messages: list[str]) -> None:
    page = wait_until_loaded(open_page(f"{tally.url}/#/event/signup?range=day"))
    chart = page.locator("#event-chart")
    expect(chart.locator(".note-marks path")).to_have_attribute("d", re.compile("M"))
    # In the first hours of a day, yesterday's note is one of the last 24 hours, too.
    expect(chart.locator(".plot")).to_have_attribute("aria-label", re.compile("1 note, |2 notes"))
    chart.locator(".plot").focus()
    page.keyboard.press("End")
    expect(chart.locator(".tooltip")).to_contain_text(HOSTILE)
    chart.get_by_role("button", name="View as table").click()
    expect(chart.locator("th").filter(has_text="Notes")).to_be_visible()
    expect(chart.locator("tbody tr").first).to_contain_text(HOSTILE)
    page.goto(f"{tally.url}/#/event/search?range=week")
    expect(chart.locator(".plot")).to_be_visible()
    page.go_back()
    page.reload()
    expect(chart.locator("tbody tr").first).to_contain_text(HOSTILE)
    page.goto(f"{tally.url}/#/event/search?range=week&as=table")
    expect(chart.locator("tbody tr").first).to_contain_text("new form")
    expect(chart.locator("tbody tr").nth(1)).to_contain_text("=v1")
    page.goto(f"{tally.url}/#/history/{past_day(2)}")
    page.locator("#history-chart .head .toggle").click()
    expect(page.locator("#history-chart tbody tr")).to_have_count(2)
    expect(page).to_have_url(f"{tally.url}/#/history/{past_day(2)}?as=table")
    page.goto(f"{tally.url}/#/history")
    expect(page.locator("#history-chart .note-marks path")).to_have_attribute("d", re.compile("M"))
    page.locator("#history-chart .plot").focus()
    page.keyboard.press("End")
    expect(page.locator("#history-chart .tooltip")).to_contain_text("=v1")
    expect(page.locator("#history-day")).to_contain_text("=v1")
    page.goto(tally.url)
    expect(page.locator("#cards [data-event=signup]")).to_be_visible()
    with page.expect_download() as download:
        page.locator("#export").click()
    rows = {row[0]: row[2] for row in csv.reader(io.StringIO(Path(download.value.path()).read_text()))}
    assert (rows["signup"], rows["search"][6:], rows[""][6:]) == ("", "new form", HOSTILE)
    assert page.locator("[onerror]").count() == 0
    assert console_messages == []


@pytest.mark.fails_on_mutant(
    "a note of all events", "static/js/components/chart-notes.js", "if (name === event) return;", "return;"
)
def test_a_note_belongs_to_the_event_of_a_chart_that_is_loading(tally: Process, open_page) -> None:
    page = open_page("about:blank")
    page.route("**/series?*", lambda route: None)
    page.goto(f"{tally.url}/#/event/search")
    open_notes(page, "#event-chart")
    expect(page.get_by_label("Show on")).to_have_value("search")


@pytest.mark.fails_on_mutant(
    "a mark is hard to hit", "static/js/components/bar-chart.js", "NOTE_TARGET = 24", "NOTE_TARGET = 8"
)
def test_a_note_is_shown_by_a_tap_near_its_mark(tally: Process, open_page) -> None:
    page = open_page(
        f"{tally.url}/#/event/signup", has_touch=True, viewport={"width": 390, "height": 1200}, forced_colors="active"
    )
    mark = wait_until_loaded(page).locator("#event-chart .note-marks path")
    expect(mark).to_have_attribute("d", re.compile("M"))
    box = mark.bounding_box()
    assert box
    assert box["width"] >= 12
    page.touchscreen.tap(box["x"] + box["width"] / 2 - 11, box["y"] + 20)
    expect(page.locator("#event-chart .tooltip")).to_contain_text(HOSTILE)
    # In one step, because each new hit draws the marks again.
    color = "getComputedStyle(document.querySelector('#event-chart .note-marks path')).fill"
    assert page.evaluate(f"{color} === getComputedStyle(document.body).color")


@pytest.mark.fails_on_mutant(
    "a long text is cut", "static/app.css", ":is(.name, .name bdi, .palette bdi):has(", ":has("
)
def test_a_note_is_added_and_deleted(tally: Process, open_page, console_messages: list[str]) -> None:
    page = wait_until_loaded(
        open_page(f"{tally.url}/#/event/page.view?range=day", viewport={"width": 320, "height": 700})
    )
    open_notes(page, "#event-chart")
    dialog = page.locator("#notes")
    expect(dialog.get_by_label("Text")).to_be_focused()
    position = page.evaluate("scrollY")
    page.mouse.move(5, 5)
    page.mouse.wheel(0, 400)
    page.keyboard.type(LONG)
    page.keyboard.press("Enter")
    row = dialog.get_by_role("listitem").filter(has_text=f"page.view: {LONG}")
    expect(row).to_be_visible()
    assert row.evaluate(IS_WHOLE)
    assert page.evaluate("scrollY") == position
    expect(dialog.get_by_label("Text")).to_have_value("")
    expect(dialog.get_by_role("button", name="Delete: v2 deployed")).to_have_count(0)
    expect(dialog).to_contain_text("To delete notes, enter an admin key in Settings.")
    dialog.get_by_label("Text").fill("too early")
    dialog.get_by_label("Time", exact=True).fill("2001-01-01T00:00")
    dialog.get_by_label("Show on").select_option("All charts")
    dialog.get_by_role("button", name="Add note").click()
    expect(dialog.get_by_role("alert")).to_contain_text("at: must be within the last 400 days")
    page.evaluate("key => sessionStorage.setItem('tally-key', key)", ADMIN_KEY)
    page.reload()
    wait_until_loaded(page)
    choose(page, "#event-chart", "Week")
    open_notes(page, "#event-chart")
    assert accessibility_violations(page) == []
    dialog.get_by_role("button", name="Delete: v2 deployed").click()
    expect(dialog).not_to_contain_text("v2 deployed")
    dialog.get_by_role("button", name="Close").click()
    page.goto(tally.url)
    open_notes(page, "#hits-chart")
    expect(dialog).to_contain_text("search: new form")
    expect(dialog.get_by_label("Show on")).to_have_count(0)
    expect(dialog).to_contain_text("All charts show it.")
    assert LONG not in {note["text"] for note in tally.get("/notes")}
    assert all("422" in message for message in console_messages)
