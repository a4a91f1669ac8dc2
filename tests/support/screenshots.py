"""`make screenshots`: images of the dashboard, with a month of hits that are counted on a clock that moves fast."""

import asyncio
import math
import random
import shutil
import sys
import time
from pathlib import Path

import httpx
from playwright.async_api import Browser, Page, async_playwright

from app.settings import Settings
from tests.support.browser import FLAGS
from tests.support.servers import ROOT, RunningApp, SettableClock, serving

IMAGES = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/img"
SHARES = {"api.request": 300, "page.view": 210, "search.query": 84, "video.play": 43, "login": 27, "cart.add": 19}
SHARES |= {"email.sent": 13, "signup": 6, "checkout.completed": 5, "download": 4, "invite.sent": 2, "refund": 0.6}
MINUTES_AGE = 7200 + int(time.time()) % 3600  # seconds ago: hits are hourly before it, and then every minute
# The ages of the hits, in seconds.
AGES = [*range(MINUTES_AGE + 1800 + 32 * 24 * 3600, MINUTES_AGE, -3600), *range(MINUTES_AGE - 30, 0, -60)]
WIDE, PHONE, WALL = (1440, 960), (390, 844), (1920, 1080)
SCREENS = {"overview": "/", "event": "/#/event/search.query?range=day", "leaderboard": "/#/leaderboard?window=7d"}
SCREENS |= {"history": "/#/history?", "settings": "/#/settings"}


async def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    clock = SettableClock(-AGES[0])
    settings = Settings(TALLY_STORE="memory://", write_limit="1000000/second", read_limit="1000000/second")
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
        await page.locator("#banner").wait_for()  # it appears because the server has stopped
        await page.screenshot(path=IMAGES / "reconnecting.png")


async def count_a_month(tally: RunningApp, clock: SettableClock) -> None:
    """Count hits of a month for each hour, and for each minute of the last two or three hours."""
    chance, now = random.Random(5), time.time()  # a fixed seed, so that the images do not change
    async with tally.client() as client:
        for age in AGES:
            clock.shift = now - age - time.time()
            hours = (now - age) / 3600
            pace = (1 + 0.5 * math.sin(hours / 24 * math.tau - 2)) * (0.75 if hours // 24 % 7 in {2, 3} else 1.15)
            scale = pace * (7 if age > MINUTES_AGE else 0.12)
            counts = {name: round(share * scale * chance.uniform(0.8, 1.2)) for name, share in SHARES.items()}
            if age > MINUTES_AGE:
                await post(client, {name: count for name, count in counts.items() if count})
            else:
                await post(client, [hit(chance, name) for name, count in counts.items() for _ in range(count)])
    clock.shift = 0


def hit(chance: random.Random, name: str) -> dict[str, str]:
    user = min(int(chance.expovariate(1 / 200)), 1200)  # a few users have most hits
    return {"event": name, "user": f"user-{user}", "session": f"session-{user}"}


async def keep_counting(tally: RunningApp) -> None:
    chance = random.Random(7)
    async with tally.client() as client:
        while True:
            await post(client, [hit(chance, chance.choices(list(SHARES), SHARES.values())[0])])
            await asyncio.sleep(chance.expovariate(5))


async def post(client: httpx.AsyncClient, counts: object) -> None:
    (await client.post("/events", json=counts)).raise_for_status()


async def open_page(browser: Browser, tally: RunningApp, path: str, size: tuple[int, int], scheme: str) -> Page:
    viewport = {"width": size[0], "height": size[1]}
    scale = 1.5 if path == "/" else 1
    page = await browser.new_page(viewport=viewport, color_scheme=scheme, device_scale_factor=scale)
    await page.goto(tally.url + path)
    await page.wait_for_timeout(3500)  # so that the cards load their last hour and show some hits
    return page


async def screenshot(
    browser: Browser, tally: RunningApp, name: str, path: str, size: tuple[int, int], scheme: str
) -> None:
    page = await open_page(browser, tally, path, size, scheme)
    await page.screenshot(path=IMAGES / f"{name}.png")
    await page.close()


asyncio.run(main())
