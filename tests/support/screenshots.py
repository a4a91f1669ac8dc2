"""`make screenshots`: images of the dashboard, and an animation, with a month of hits on a clock that moves fast."""

import asyncio
import math
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import httpx
from playwright.async_api import Browser, Page, async_playwright

from app.settings import Settings
from tests.support.animation import record
from tests.support.browser import FLAGS
from tests.support.servers import ROOT, RunningApp, SettableClock, serving

IMAGES = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/img"
SHARES = {"api.request": 300, "page.view": 210, "search.query": 84, "video.play": 43, "login": 27, "cart.add": 19}
SHARES |= {"email.sent": 13, "signup": 6, "checkout.completed": 5, "download": 4, "invite.sent": 2, "refund": 0.6}
PER_MINUTE = 0.2  # of the shares
STARTED_AT = int(time.time())
MINUTES_AGE = 7200 + STARTED_AT % 3600  # seconds ago: hits are hourly before it, and then every minute
# The ages of the hits, in seconds.
AGES = [*range(MINUTES_AGE + 1800 + 32 * 24 * 3600, MINUTES_AGE, -3600), *range(MINUTES_AGE - 30, STARTED_AT % 60, -60)]
WIDE, PHONE, WALL = (1440, 960), (390, 844), (1920, 1080)
SCREENS = {"overview": "/", "event": "/#/event/search.query?range=day", "leaderboard": "/#/leaderboard?window=7d"}
SCREENS |= {"history": "/#/history?", "settings": "/#/settings"}


async def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    clock = SettableClock(-AGES[0])
    limits = {"write_limit": "1000000/second", "read_limit": "1000000/second"}
    with tempfile.TemporaryDirectory() as directory:
        settings = Settings(TALLY_STORE=f"sqlite:///{directory}/tally.db", **limits)
        await take_pictures(settings, clock)


async def take_pictures(settings: Settings, clock: SettableClock) -> None:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        async with serving(settings, clock) as tally:
            await screenshot(browser, tally, "empty", "/", WIDE, "light")
            await count_a_month(tally, clock)
            traffic = asyncio.create_task(keep_counting(tally))
            for scheme in ("light", "dark"):
                await asyncio.gather(
                    *(screenshot(browser, tally, f"{n}-{scheme}", p, WIDE, scheme) for n, p in SCREENS.items())
                )
                await screenshot(browser, tally, f"kiosk-{scheme}", "/kiosk?event=page.view", WALL, scheme)
            await asyncio.gather(
                *(screenshot(browser, tally, f"{n}-phone", p, PHONE, "light") for n, p in SCREENS.items())
            )
            await screenshot(browser, tally, "kiosk-all", "/kiosk", WALL, "dark")
            page = await open_page(browser, tally, "/", WIDE, "dark")
            traffic.cancel()
            await record(browser, tally, IMAGES / "live.gif")
        await page.locator("#banner").wait_for()  # it appears because the server has stopped
        await page.screenshot(path=IMAGES / "reconnecting.png")


async def count_a_month(tally: RunningApp, clock: SettableClock) -> None:
    """Count hits of a month for each hour, and for each minute of the last two or three hours."""
    chance, now = random.Random(5), STARTED_AT  # a fixed seed, so that the images do not change
    async with tally.client() as client:
        for age in AGES:
            clock.shift = now - age - time.time()
            scale = pace(now - age) * (7 if age > MINUTES_AGE else PER_MINUTE)
            counts = {name: round(share * scale * chance.uniform(0.8, 1.2)) for name, share in SHARES.items()}
            if age > MINUTES_AGE:
                await post(client, {name: count for name, count in counts.items() if count})
            else:
                await post(client, [hit(chance, name) for name, count in counts.items() for _ in range(count)])
        # Counting a month takes some time, in which hits go on.
        second = STARTED_AT // 60 * 60
        while second < time.time():
            clock.shift = second - time.time()
            hits = int(hits_per_second(second) + chance.random())
            await post(client, [some_hit(chance) for _ in range(hits)])
            second += 1
    clock.shift = 0


def pace(at: float) -> float:
    """Return how busy a time is, compared with others: less so at night and on weekends."""
    hours = at / 3600
    return (1 + 0.5 * math.sin(hours / 24 * math.tau - 2)) * (0.75 if hours // 24 % 7 in {2, 3} else 1.15)


def hits_per_second(at: float) -> float:
    return sum(SHARES.values()) * PER_MINUTE * pace(at) / 60


def some_hit(chance: random.Random) -> dict[str, str]:
    return hit(chance, chance.choices(list(SHARES), SHARES.values())[0])


def hit(chance: random.Random, name: str) -> dict[str, str]:
    user = min(int(chance.expovariate(1 / 200)), 1200)  # a few users have most hits
    return {"event": name, "user": f"user-{user}", "session": f"session-{user}"}


async def keep_counting(tally: RunningApp) -> None:
    chance = random.Random(7)
    async with tally.client() as client:
        while True:
            await post(client, [some_hit(chance)])
            await asyncio.sleep(chance.expovariate(hits_per_second(time.time())))


async def post(client: httpx.AsyncClient, counts: object) -> None:
    (await client.post("/events", json=counts)).raise_for_status()


async def open_page(browser: Browser, tally: RunningApp, path: str, size: tuple[int, int], scheme: str) -> Page:
    viewport = {"width": size[0], "height": size[1]}
    scale = 1.5 if path == "/" else 1
    page = await browser.new_page(viewport=viewport, color_scheme=scheme, device_scale_factor=scale)
    await page.goto(tally.url + path)
    await page.wait_for_timeout(6000)  # so that the cards load their last hour and show some hits
    return page


async def screenshot(
    browser: Browser, tally: RunningApp, name: str, path: str, size: tuple[int, int], scheme: str
) -> None:
    page = await open_page(browser, tally, path, size, scheme)
    await page.screenshot(path=IMAGES / f"{name}.png")
    await page.close()


asyncio.run(main())
