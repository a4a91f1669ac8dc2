"""The dashboard as a reader uses it: waits, locators, accessibility checks, and event names that try to attack it."""

import unicodedata
from datetime import UTC, datetime, timedelta

from playwright.sync_api import Locator, Page, expect

from tests.support.servers import ROOT

ADMIN_KEY = "a-key-for-everything-4"
USUAL_COUNTS = {"signup": 40, "page.view": 300, "search": 120}
WIDTHS = [320, 390, 768, 1440, 1920, 3840]
HOSTILE_NAMES = [
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'-alert(1)-'",
    "javascript:alert(1)",
    "<script>alert(1)",
    "<style onload=alert(1)>",
    "${alert(1)}",
    "{{constructor.constructor('alert(1)')()}}",
    "`;alert(1);`",
    "<!--",
    "&lt;b&gt;&amp;",
    "%3Cscript%3E",
    "#event?range=day&x=1",
    "=HYPERLINK(1)",
    "+cmd|calc",
    "x" * 128,
    "W " * 63 + "W",
    "ورود کاربر به سامانه",
    "👩‍💻 pairing",
    unicodedata.normalize("NFC", "Z̸̢̛͔a̷l̶g̴o̵" * 6),
]
AXE = ROOT / "node_modules/axe-core/axe.min.js"
# axe cannot judge the colours of an element that fades, is drawn, or lies under a floating one. The colour tokens
# have a test of their own.
STYLE_FOR_AXE = """
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(`* { transition: none !important; animation: none !important }
    nav { position: static !important }
    del::after, .card .sparkline, .ranking .share { display: none !important }`);
  document.adoptedStyleSheets = [sheet];
"""
# It runs on the page itself, not in its frames.
RUN_AXE = """options => axe.run({ exclude: ['.axis'] },
  { resultTypes: ['violations', 'incomplete'], rules: { 'frame-tested': { enabled: false } }, ...options })"""


def enter_admin_key(page: Page) -> None:
    page.evaluate(f"sessionStorage.setItem('tally-key', '{ADMIN_KEY}')")
    page.reload()


def past_day(days_ago: int) -> str:
    return (datetime.now(UTC) - timedelta(days=days_ago)).date().isoformat()


def count_of(page: Page, event: str) -> Locator:
    return page.locator(f'[data-event="{event}"] [data-count]')


def expect_status(page: Page, name: str, timeout: float = 5000) -> None:
    expect(page.locator("#status")).to_have_attribute("data-state", name, timeout=timeout)


def wait_until_loaded(page: Page) -> Page:
    """Wait until the page is live and nothing visible is loading."""
    expect_status(page, "live")
    # After the next frame the page has handled a new address.
    page.evaluate("new Promise(requestAnimationFrame)")
    expect(page.locator("[aria-busy=true]:visible")).to_have_count(0)
    return page


def choose(page: Page, group: str, label: str) -> None:
    page.locator(group).get_by_role("radio", name=label, exact=True).check()


def fits_width(page: Page) -> bool:
    """Return whether nothing is wider than the screen. A kiosk adapts to a new size within some frames."""
    return page.evaluate("""async () => {
      const fits = () => document.documentElement.scrollWidth <= innerWidth;
      for (let frames = 0; frames < 120 && !fits(); frames += 1) await new Promise(requestAnimationFrame);
      return fits();
    }""")


def accessibility_violations(page: Page) -> list[str]:
    """Run axe on the page as it is, in light and dark colours."""
    page.evaluate(STYLE_FOR_AXE)
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text())
    found = []
    for scheme, rules in (("light", None), ("dark", ["color-contrast"])):
        page.emulate_media(color_scheme=scheme)
        results = page.evaluate(RUN_AXE, {"runOnly": rules} if rules else {})
        for rule in [*results["violations"], *results["incomplete"]]:
            found += [f"{scheme} {rule['id']}: {node['html'][:120]} {node['any'][:1]}" for node in rule["nodes"]]
    # axe takes a single digit for too short to judge.
    return [text for text in found if "too short" not in text]
