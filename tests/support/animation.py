"""The animation of the README: a terminal in which curl counts, next to the dashboard that shows it."""

import asyncio
import io
import itertools
import time
from pathlib import Path

from PIL import Image
from playwright.async_api import Browser, Page

from tests.support.servers import RunningApp

TERMINAL, DASHBOARD = (500, 590), (760, 590)
COMMANDS = [
    "curl -X POST localhost:8000/event/signup",
    'curl localhost:8000/events -d \'{"order": 40, "signup": 2}\'',
    "curl -X POST -H 'Idempotency-Key: order-17' localhost:8000/event/order",
    "curl -X POST -H 'Idempotency-Key: order-17' localhost:8000/event/order  # a retry",
]
FRAME_SECONDS = 0.1
TYPED_CHARACTERS = 5  # per frame
COLORS = 96
LAST_FRAME_SECONDS = 4
SCREEN = """<style>
  body { margin: 0; padding: 24px 20px; background: #14181f; color: #e8ecf2; font: 15px/1.5 monospace; }
  pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
</style><pre></pre>"""


async def record(browser: Browser, tally: RunningApp, path: Path) -> None:
    """Run the commands and write what the terminal and the dashboard show as an animated image."""
    terminal, dashboard = [await _open(browser, size) for size in (TERMINAL, DASHBOARD)]
    await terminal.set_content(SCREEN)
    await dashboard.goto(tally.url)
    await dashboard.locator("#status[data-state=live]").wait_for()
    film = _Film(terminal, dashboard)
    await film.run(1.5)
    for command in COMMANDS:
        for end in range(0, len(command) + TYPED_CHARACTERS, TYPED_CHARACTERS):
            await film.show("$ " + command[:end])
            await film.run(FRAME_SECONDS)
        output = await _output_of(command, tally)
        film.printed += f"$ {command}\n{output.strip()}\n\n"
        await film.show("$ ")
        await film.run(2)
    film.save(path)


class _Film:
    """Pictures of two pages side by side, with the time of each."""

    def __init__(self, *pages: Page) -> None:
        self.printed = ""
        self._pages = pages
        self._frames: list[tuple[float, Image.Image]] = []

    async def show(self, line: str) -> None:
        await self._pages[0].evaluate(
            "(text) => document.querySelector('pre').textContent = text", self.printed + line + "▌"
        )

    async def run(self, seconds: float) -> None:
        """Take a picture every FRAME_SECONDS, at least one."""
        end = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            images = await asyncio.gather(*(page.screenshot() for page in self._pages))
            self._frames.append((now, _side_by_side(images)))
            if (rest := FRAME_SECONDS - (time.monotonic() - now)) > 0:
                await asyncio.sleep(rest)
            if time.monotonic() >= end:
                return

    def save(self, path: Path) -> None:
        """Write the pictures, each shown as long as it lasted, with one palette for all of them."""
        times, images = zip(*self._frames, strict=True)
        lengths = [after - before for before, after in itertools.pairwise(times)] + [LAST_FRAME_SECONDS]
        palette = images[-1].quantize(COLORS)
        first, *others = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
        first.save(path, save_all=True, append_images=others, duration=[1000 * s for s in lengths], loop=0)


async def _open(browser: Browser, size: tuple[int, int]) -> Page:
    return await browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme="light")


async def _output_of(command: str, tally: RunningApp) -> str:
    here = command.replace("localhost:8000", tally.url.removeprefix("http://")).replace("curl", "curl -sS")
    process = await asyncio.create_subprocess_shell(here, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return output.decode()


def _side_by_side(images: list[bytes]) -> Image.Image:
    parts = [Image.open(io.BytesIO(image)).convert("RGB") for image in images]
    joined = Image.new("RGB", (sum(part.width for part in parts), parts[0].height))
    left = 0
    for part in parts:
        joined.paste(part, (left, 0))
        left += part.width
    return joined
