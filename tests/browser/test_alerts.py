"""The alerts page: an administrator adds, changes and deletes an alert, and sees what was not delivered."""

import re
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.dashboard import ADMIN_KEY, accessibility_violations, enter_admin_key, wait_until_loaded
from tests.support.redis_servers import free_port
from tests.support.servers import Process

AS_ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


@pytest.fixture(scope="module")
def tally(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server whose alerts may be sent to this machine."""
    directory = tmp_path_factory.mktemp("alerts")
    keys = {"TALLY_ADMIN_KEYS": ADMIN_KEY, "TALLY_ALERTS_ALLOW_PRIVATE": "true"}
    process = Process(directory, TALLY_STORE="memory://", **keys)
    process.start()
    yield process
    process.kill()


def save(page: Page) -> None:
    page.locator("#alert-form .primary").click()


@pytest.mark.fails_on_mutant(
    "each alert is requested",
    "static/js/pages/alerts.js",
    'get("/alerts") : null',
    'get("/alerts").then((all) => Promise.all(all.map(({ id }) => get(`/alerts/${id}`)))) : null',
)
@pytest.mark.fails_on_mutant(
    "the form opens on another page", "static/js/pages/alerts.js", "latestLoad += 1; // No form", "// No form"
)
def test_an_alert_is_added_from_an_event_changed_and_deleted(
    tally: Process, open_page, console_messages: list[str]
) -> None:
    tally.post("/event/order")
    page = wait_until_loaded(open_page(f"{tally.url}/#/event/order"))
    page.get_by_role("link", name="Alert me").click()
    expect(page.locator("#alerts-locked")).to_contain_text("only an admin key")
    page.get_by_role("link", name="Back to order").click()
    expect(page.locator("#event-name")).to_have_text("order")
    page.go_back()
    expect(page.get_by_label("Admin key", exact=True)).to_be_focused()
    page.keyboard.type(ADMIN_KEY)
    page.locator("#alerts-key").get_by_role("button", name="Save").click()
    expect(page.locator("#alert-event")).to_have_value("order")
    expect(page.locator("#alert-when")).to_be_focused()
    page.go_back()
    expect(page.locator("#event-name")).to_be_focused()
    expect(page.locator("#alert-form")).to_be_hidden()
    page.go_forward()
    expect(page.locator("#alert-event")).to_have_value("order")
    expect(page.locator("#alert-when")).to_be_focused()
    late = page.locator("#alert-form .warning")
    expect(page.get_by_label("Number now 1")).to_be_focused()
    page.keyboard.type("1")
    expect(late).to_have_text(re.compile("Today.s count is already 1: this alert would not fire before tomorrow"))
    page.locator("#alert-kind").select_option("total")
    expect(late).to_have_text("The total is already 1: this alert would not fire.")
    page.locator("#alert-kind").select_option("count")
    page.locator("#alert-when").fill("2")
    expect(late).to_be_empty()
    page.locator("#alert-url").fill("ftp://hooks.example")
    save(page)
    expect(page.locator("#alert-url-problem")).to_contain_text("must begin with https:// or http://")
    expect(page.locator("#alert-url")).to_be_focused()
    assert console_messages.pop().startswith("Failed to load resource: the server responded with a status of 422")
    assert accessibility_violations(page) == []
    page.get_by_label("Send to").select_option("Slack")
    expect(page.locator("#alert-url")).to_have_attribute("placeholder", re.compile("hooks.slack.com"))
    page.get_by_label("Send to").select_option("Other web address (JSON)")
    page.locator("#alert-url").fill(f"http://127.0.0.1:{free_port()}/hook")
    save(page)
    expect(page.locator("#alert-form code")).to_contain_text("whsec_")
    assert accessibility_violations(page) == []
    page.get_by_role("button", name="Done").click()
    row = page.locator("#alerts-list li")
    expect(row).to_contain_text(re.compile("order when today.s count reaches 2"))
    page.get_by_role("link", name="Back to order").click()
    expect(page.locator("#event-name")).to_have_text("order")
    page.go_back()
    expect(page.locator("#alert-form")).to_be_hidden()
    tally.post("/event/order")
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.reload()
    expect(row).to_contain_text("1 message waiting: ")
    assert [url for url in requests if "/alerts/" in url] == []
    row.get_by_role("button", name="Edit").click()
    page.locator("#alert-kind").select_option("below")
    page.locator("#alert-when").fill("1")
    page.locator("#alert-url").fill("https://ntfy.sh/topic")
    expect(page.locator("#alert-format")).to_have_value("ntfy")
    save(page)
    expect(row).to_contain_text("when there are no hits in 1 hour")
    expect(row).to_contain_text("ntfy to ntfy.sh")
    alerts = httpx.get(f"{tally.url}/alerts", headers=AS_ADMIN).json()
    assert [alert["when"] for alert in alerts] == [{"below": 1, "window": "1h"}]
    assert accessibility_violations(page) == []
    row.get_by_role("button", name="Delete").click()
    page.locator("#confirm-word").fill("order")
    page.keyboard.press("Enter")
    expect(page.locator("#alerts-note")).to_contain_text("No alerts yet")
    assert httpx.get(f"{tally.url}/alerts", headers=AS_ADMIN).json() == []
    delayed: list[Route] = []
    page.route("**/alerts", lambda route: delayed.append(route))  # noqa: PLW0108 - Playwright cannot mark a builtin
    with page.expect_request("**/alerts"):
        page.goto(f"{tally.url}/#/alerts?event=order")
    page.goto(f"{tally.url}/#/settings")
    with page.expect_response("**/alerts"):
        delayed[0].continue_()
    page.evaluate("new Promise(requestAnimationFrame)")
    expect(page.locator("#alert-form")).to_be_hidden()
    assert console_messages == []


def test_a_test_message_is_sent_and_its_outcome_shown(tally: Process, open_page, console_messages: list[str]) -> None:
    # A text to /events counts as the name of an event.
    urls = {f"{tally.url}/events": "ntfy", f"http://127.0.0.1:{free_port()}/hook": "json"}
    for url, format_ in urls.items():
        alert = {"event": "order", "when": {"total": 9000}, "url": url, "format": format_}
        httpx.post(f"{tally.url}/alerts", json=alert, headers=AS_ADMIN).raise_for_status()
    page = open_page(f"{tally.url}/#/alerts")
    enter_admin_key(page)
    for format_, outcome in (
        ("ntfy", "The test message was accepted."),
        ("JSON", "The test message was not accepted: could not connect to 127.0.0.1:"),
    ):
        row = page.locator("#alerts-list li", has_text=f"{format_} to")
        row.get_by_role("button", name="Test the alert of order").click()
        expect(row.get_by_role("status")).to_contain_text(outcome)
    assert tally.get("/events")["Test: order: the total has reached 9000"] == 1
    assert accessibility_violations(page) == []
    for alert in httpx.get(f"{tally.url}/alerts", headers=AS_ADMIN).json():
        httpx.delete(f"{tally.url}/alerts/{alert['id']}", headers=AS_ADMIN).raise_for_status()
    assert console_messages == []
