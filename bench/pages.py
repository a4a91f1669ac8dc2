"""The cost of an open dashboard in the browser, compared with a page that redraws everything, and over a long time.

`make bench` ends with the comparison, which takes half a minute. `make soak` watches memory for MINUTES=10.
"""

import argparse
import json
import random
import shutil
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from playwright.sync_api import Browser, CDPSession, Page, sync_playwright

from bench.servers import serving

EVENTS = 1000
BATCH, BATCHES_PER_SECOND = 200, 20
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
VIEWPORT = {"width": 1440, "height": 900}
# A first attempt at a dashboard: for each update it redraws the card and sorts all cards.
NAIVE = """async () => {
  const { io } = await import("/static/vendor/socket.io.esm.min.js");
  const [counts, cards] = [{}, {}];
  document.body.innerHTML = "<main></main>";
  const main = document.querySelector("main");
  function show(name, count) {
    counts[name] = count;
    if (!cards[name]) {
      cards[name] = main.appendChild(document.createElement("div"));
      cards[name].className = "card";
      cards[name].dataset.event = name;
    }
    cards[name].innerHTML = `<p>${name}</p><p>${count.toLocaleString()}</p>`;
  }
  const order = () => Object.keys(cards).sort((a, b) => counts[b] - counts[a]);
  const sort = () => { for (const name of order()) main.append(cards[name]); };
  for (const [name, count] of Object.entries(await (await fetch("/events")).json())) show(name, count);
  io({ transports: ["websocket"] }).on("update", ({ eventName, count }) => { show(eventName, count); sort(); });
}"""
WATCH = """() => {
  window.measured = { frames: 0, long: 0, longest: 0 };
  new PerformanceObserver((list) => {
    for (const { duration } of list.getEntries()) {
      measured.long += 1;
      measured.longest = Math.max(measured.longest, duration);
    }
  }).observe({ type: "longtask" });
  const count = () => { measured.frames += 1; requestAnimationFrame(count); };
  count();
}"""


@dataclass
class Cost:
    """The cost of a page while it received so many batches; memory in bytes."""

    batches: int
    main_ms: float  # of the main thread, per batch
    frames: float  # per second
    long_tasks: int
    longest_ms: float
    heap_before: int
    heap_after: int


class Traffic(threading.Thread):
    """Sends batches of changes at a steady rate until it is stopped."""

    def __init__(self, url: str, events: int) -> None:
        super().__init__(daemon=True)
        self._url = f"{url}/events"
        self._names = [f"event.{i:05}" for i in range(events)]
        self._stopped = threading.Event()
        self.batches = 0
        for i in range(0, events, 10_000):
            self._post(dict.fromkeys(self._names[i : i + 10_000], 1))

    def run(self) -> None:
        chance, due = random.Random(1), time.monotonic()
        while not self._stopped.wait(max(0.0, due - time.monotonic())):
            due += 1 / BATCHES_PER_SECOND
            self._post({name: chance.randint(1, 5) for name in chance.sample(self._names, BATCH)})
            self.batches += 1

    def stop(self) -> None:
        """Stop, and count a last hit that shows when the page has received everything."""
        self._stopped.set()
        self.join()
        self._post({"the.end": 1})

    def _post(self, counts: dict[str, int]) -> None:
        with urllib.request.urlopen(self._url, data=json.dumps(counts).encode(), timeout=20):
            pass


def cost(page: Page, traffic: Traffic, seconds: float) -> Cost:
    """Measure a page that has finished loading, from the first batch until it shows the last one."""
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable", {"timeDomain": "threadTicks"})  # CPU time, not wall time
    page.evaluate(WATCH)
    before, heap = main_thread_seconds(devtools), live_heap(devtools)
    began = time.monotonic()
    traffic.start()
    page.wait_for_timeout(1000 * seconds)
    traffic.stop()
    page.locator('[data-event="the.end"], #match-count:text-is("1,001 events")').first.wait_for(
        state="attached", timeout=120_000
    )
    took, main = time.monotonic() - began, main_thread_seconds(devtools) - before
    measured = page.evaluate("measured")
    per_batch = 1000 * main / traffic.batches
    return Cost(
        traffic.batches,
        per_batch,
        measured["frames"] / took,
        measured["long"],
        measured["longest"],
        heap,
        live_heap(devtools),
    )


def main_thread_seconds(devtools: CDPSession) -> float:
    """Return the CPU seconds of the page's main thread: script, style, layout and paint."""
    metrics = devtools.send("Performance.getMetrics")["metrics"]
    return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")


def live_heap(devtools: CDPSession) -> int:
    devtools.send("HeapProfiler.collectGarbage")
    usage = devtools.send("Runtime.getHeapUsage")
    # Scripts are on the first heap, and the document on the second.
    return int(usage["usedSize"] + usage["embedderHeapUsedSize"])


def dashboard_cost(browser: Browser, url: str, seconds: float) -> Cost:
    traffic = Traffic(url, EVENTS)
    with open_page(browser, url) as page:
        page.locator('#status[data-state="live"]').wait_for()
        page.evaluate("document.querySelector('.all').scrollIntoView()")  # the screen is full of cards
        page.locator(".card .sparkline path[d]").first.wait_for(state="attached")
        page.wait_for_load_state("networkidle")  # the last hour of the cards has come
        return cost(page, traffic, seconds)


def naive_cost(browser: Browser, url: str, seconds: float) -> Cost:
    traffic = Traffic(url, EVENTS)
    with open_page(browser, f"{url}/health") as page:
        page.evaluate(NAIVE)
        page.locator(".card").first.wait_for()
        return cost(page, traffic, seconds)


@contextmanager
def open_page(browser: Browser, url: str) -> Iterator[Page]:
    context = browser.new_context(viewport=VIEWPORT, bypass_csp=True)
    page = context.new_page()
    page.goto(url)
    yield page
    context.close()


def until_usable(browser: Browser, url: str, events: int) -> tuple[float, float]:
    """Open a page with so many events again; return the seconds to its first count and to the result of a filter."""
    Traffic(url, events)
    with open_page(browser, url) as page:
        number = page.locator("main:not([aria-busy]) .card .count").first
        number.wait_for()
        page.reload(wait_until="commit")
        number.wait_for()
        first = page.evaluate("performance.now()")
        page.locator("#filter").fill(f"{events - 1:05}")
        page.locator(f'.card:only-child[data-event="event.{events - 1:05}"]').wait_for()
        return first / 1000, page.evaluate("performance.now()") / 1000


def compare(browser: Browser) -> None:
    print(f"{EVENTS} cards, {BATCHES_PER_SECOND} batches/s of {BATCH} changes:")
    for name, measure, seconds in (("redraws on each update", naive_cost, 1), ("the dashboard", dashboard_cost, 10)):
        with serving("tally memory") as server:
            cost = measure(browser, server.url, seconds)
        print(
            f"  {name}: {cost.main_ms:.1f} ms of the main thread per batch, {cost.frames:.0f} frames/s,"
            f" {cost.long_tasks} long tasks (the longest {cost.longest_ms:.0f} ms)"
        )
    for events in (10, EVENTS, 10_000):
        with serving("tally memory") as server:
            first, usable = min(until_usable(browser, server.url, events) for _ in range(3))
        print(f"  {events} events: first count after {first:.2f} s, filtered after {usable:.2f} s")


def soak(browser: Browser, minutes: float) -> None:
    """Send the same traffic for a long time, and print the memory of the page and the server ten times."""
    with serving("tally memory") as server, open_page(browser, server.url) as page:
        traffic = Traffic(server.url, EVENTS)
        devtools = page.context.new_cdp_session(page)
        page.evaluate("document.querySelector('.all').scrollIntoView()")
        traffic.start()
        for i in range(11):
            page.wait_for_timeout(6000 * minutes if i else 5000)
            heap, rss = live_heap(devtools) / 1e6, server.rss() / 1e6
            print(f"  {i * minutes / 10:6.1f} min: page {heap:.1f} MB, server {rss:.1f} MB", flush=True)
        traffic.stop()


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.pages", description=__doc__)
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="watch memory for this time instead")
    options = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        soak(browser, options.soak) if options.soak else compare(browser)


if __name__ == "__main__":
    sys.exit(main())
