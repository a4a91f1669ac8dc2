"""The questions that people ask every day are answered after at most two clicks."""

import asyncio
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from playwright.sync_api import Locator, Page, expect

from app.settings import Settings
from tests.browser.dashboard import ADMIN_KEY, enter_admin_key, wait_until_loaded
from tests.support.servers import Process, SettableClock, serving, zone_at_noon

CLICKS_MAX = 2
Click = Callable[[Locator], None]


async def count_two_weeks(store: str, timezone: str) -> None:
    """Count at the same hour of each day: signup grows, page.view has one large day, and search stays as it is."""
    clock = SettableClock(-13 * 86_400 - 3600)
    async with serving(Settings(TALLY_STORE=store, timezone=timezone), clock) as tally, tally.client() as client:
        for days_ago in range(13, -1, -1):
            clock.shift = -86_400 * days_ago - 3600
            counts = {"signup": 30 if days_ago < 7 else 10, "page.view": 900 if days_ago == 3 else 100, "search": 50}
            await client.post("/events", json=counts)


@pytest.fixture(scope="module")
def timezone() -> str:
    return zone_at_noon()  # so that today has full hours to compare


@pytest.fixture(scope="module")
def tally(tmp_path_factory: pytest.TempPathFactory, timezone: str) -> Iterator[Process]:
    directory = tmp_path_factory.mktemp("questions")
    store = f"sqlite:///{directory}/tally.db"
    with ThreadPoolExecutor() as pool:
        pool.submit(asyncio.run, count_two_weeks(store, timezone)).result()
    process = Process(directory, TALLY_STORE=store, TALLY_ADMIN_KEYS=ADMIN_KEY, TALLY_TIMEZONE=timezone)
    process.start()
    process.post("/event/signup", b'{"user": "ada"}')
    yield process
    process.kill()


def open_card(page: Page, click: Click) -> None:
    click(page.locator('[data-event="signup"] a'))


def today_against_yesterday(page: Page, _: Click) -> None:
    expect(page.locator("#today .compared")).to_contain_text("as many as yesterday (180)")
    change = page.locator('[data-event="signup"] .delta')
    expect(change).to_have_accessible_name(re.compile("as many as yesterday .30., 3 times as many as a week ago .10."))


def the_largest_change_of_the_week(page: Page, click: Click) -> None:
    click(page.get_by_role("link", name="Movers"))
    expect(page.locator("#leaderboard-list li").first).to_contain_text("page.view")
    expect(page.locator("#leaderboard-list li").first).to_contain_text("+800 +114.3%")
    weeks = (
        r"^Hits and changes: \w+ \d+ . \w+ \d+ until 1?\d:00\sPM, compared with \w+ \d+ . \w+ \d+ until 1?\d:00\sPM\.$"
    )
    expect(page.locator("#leaderboard-note")).to_have_text(re.compile(weeks))


def top_users(page: Page, click: Click) -> None:
    open_card(page, click)
    click(page.get_by_role("link", name="Top users"))
    expect(page.locator("#leaderboard-list li").first).to_contain_text("ada")
    expect(page.locator("#leaderboard-note")).to_have_text("Only hits that name a user are ranked.")
    expect(page.get_by_role("link", name="Back to signup")).to_have_attribute("href", "#/event/signup")


def three_days_ago(page: Page, click: Click) -> None:
    click(page.get_by_role("link", name="History", exact=True))
    bars = page.locator("#history-chart rect.bar")
    expect(bars).to_have_count(13)
    click(bars.nth(10))
    expect(page.locator("#history-day .lead")).to_contain_text("980 hits")
    page.mouse.move(0, 0)
    expect(page.locator("#history-chart rect.selected")).to_have_count(1)
    expect(bars.nth(10)).to_have_css("stroke-width", "2px")
    expect(page.locator("#history-chart svg")).to_have_accessible_name(re.compile(r"\d selected\. Use the arrow keys"))


def the_number_on_my_page(page: Page, click: Click) -> None:
    open_card(page, click)
    click(page.get_by_role("button", name="Embed & share"))
    expect(page.locator("#share .curl code").first).to_contain_text("/signup")


def a_message_at_1000(page: Page, click: Click) -> None:
    open_card(page, click)
    click(page.get_by_role("link", name="Alert me"))
    expect(page.locator("#alert-form input").first).to_have_value("signup")


def when_did_it_spike(page: Page, click: Click) -> None:
    click(page.locator("#hits-chart").get_by_role("radio", name="Month"))
    bars = page.locator("#hits-chart rect.bar")
    expect(bars).to_have_count(30)
    peak = page.locator("#hits-chart .peak")
    expect(peak).to_have_text(re.compile(r"^Peak hour: \w+, \w+ \d+, 11:00\sAM\W+12:00\sPM, 980 hits$"))
    click(peak.get_by_role("link"))
    expect(peak).to_be_hidden()
    expect(page.locator("#hits-chart .note")).to_contain_text(
        "980 hits. 5.4 times as many as the day before. Peak hour: "
    )
    expect(page.locator("#chart-title")).to_have_text("Hits per hour")
    page.goto(page.url.partition("?range")[0] + "?range=quarter")
    expect(peak).to_have_text(re.compile(r"^Peak day: \w+, \w+ \d+, \d+, 980 hits$"))


QUESTIONS = [
    today_against_yesterday,
    the_largest_change_of_the_week,
    when_did_it_spike,
    top_users,
    three_days_ago,
    the_number_on_my_page,
    a_message_at_1000,
]


@pytest.mark.fails_on_mutant(
    "a peak is a day", "static/js/data/peak.js", "points <= HOURS_MAX && sum(days)", "points < 0"
)
@pytest.mark.fails_on_mutant(
    "a peak stays with another range", "static/js/components/hits-chart.js", "      peakNote.hidden = true;\n", ""
)
def test_everyday_questions_take_at_most_two_clicks(
    tally: Process, timezone: str, open_page, console_messages: list[str]
) -> None:
    page = open_page(tally.url, timezone_id=timezone, locale="en-US")
    enter_admin_key(page)
    for question in QUESTIONS:
        clicked: list[Locator] = []

        def click(locator: Locator, clicked: list[Locator] = clicked) -> None:
            clicked.append(locator)
            locator.click()

        page.goto(f"{tally.url}/?{question.__name__}")
        question(wait_until_loaded(page), click)
        assert len(clicked) <= CLICKS_MAX, question.__name__
    assert console_messages == []
