"""Pages of other people in Chromium, from another origin: badges, a page of CountAPI, the script, the frame."""

import http.server
import re
import threading
import urllib.request
from collections.abc import Callable, Iterator
from typing import Self

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests.support.servers import Process

COUNTAPI_PAGE = """<!doctype html><meta charset="utf-8">
<p id="fetch"></p><p id="xhr"></p><p id="json"></p><p id="get"></p><p id="missing"></p><p id="path"></p>
<script>
  const show = (id, text) => { document.getElementById(id).textContent = text; };
  function cb(response) { show("json", response.value); }
</script>
<script src="{tally}/hit/mysite.com/json?callback=cb"></script>
<img id="pixel" src="{tally}/hit/mysite.com/pixel?img" alt="">
<script>
  fetch("{tally}/hit/mysite.com/visits").then((answer) => answer.json()).then(({ value }) => show("fetch", value));
  fetch("{tally}/hit/:HOST:/visits").then((answer) => show("path", answer.headers.get("X-Path")));
  fetch("{tally}/get/mysite.com/nothing")
    .then(async (answer) => show("missing", answer.status + JSON.stringify(await answer.json())));
  const xhr = new XMLHttpRequest();
  xhr.open("GET", "{tally}/hit/mysite.com/button");
  xhr.responseType = "json";
  xhr.onload = () => show("xhr", xhr.response.value);
  xhr.send();
</script>"""

SCRIPT_PAGE = """<!doctype html><meta charset="utf-8">
<script src="{tally}/static/tally-1.js" defer></script>
<b data-tally-count="signup"></b> <i data-tally-count="signup"></i> <u data-tally-count="never"></u>
<button data-tally-hit="clicked"><span id="inside">Click</span></button>"""

BADGE_PAGE = """<!doctype html><img src="{tally}/badge/mysite.com:visits.svg?label=visits" alt="visits">"""


class Site:
    """A web site of somebody else: its own origin, and a page on it."""

    def __init__(self) -> None:
        self.html, self.headers = "", {"Content-Type": "text/html"}
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                for header in site.headers.items():
                    self.send_header(*header)
                self.end_headers()
                self.wfile.write(site.html.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.url = f"http://localhost:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        yield site


@pytest.fixture
def tally(process: Callable[..., Process], site: Site) -> Process:
    """The site's pages may write and read here."""
    return process(TALLY_STORE="memory://", TALLY_COUNTAPI="true", TALLY_ALLOWED_ORIGINS=site.url)


def test_a_page_of_countapi_works_by_changing_the_host_name(
    process: Callable[..., Process], site: Site, open_page: Callable[..., Page], said: list[str]
) -> None:
    tally = process(TALLY_STORE="memory://", TALLY_COUNTAPI="true")  # and nothing is said of any origin
    tally.get("/hit/mysite.com/visits")
    site.html = COUNTAPI_PAGE.replace("{tally}", tally.url)
    page = open_page(site.url)
    for name, text in {"fetch": "2", "xhr": "1", "json": "1", "path": "localhost/visits"}.items():
        expect(page.locator(f"#{name}")).to_have_text(text)
    expect(page.locator("#missing")).to_have_text('404{"value":null}')
    page.wait_for_function("document.getElementById('pixel').naturalWidth === 1")
    page.reload()
    expect(page.locator("#fetch")).to_have_text("3")
    assert tally.get("/event/mysite.com:pixel")["total"] == 2
    assert [text for text in said if "404" not in text] == []


def test_a_badge_shows_on_a_page_that_trusts_nobody(
    tally: Process, site: Site, open_page: Callable[..., Page], said: list[str]
) -> None:
    for _ in range(3):
        tally.get("/hit/mysite.com/visits")
    site.html = BADGE_PAGE.replace("{tally}", tally.url)
    site.headers["Cross-Origin-Embedder-Policy"] = "require-corp"
    page = open_page(site.url)
    page.wait_for_function("document.images[0].naturalHeight === 20")
    shield = tally.get("/event/mysite.com:visits/shield.json?label=visits")
    assert (shield["label"], shield["message"]) == ("visits", "3")
    assert said == []


def test_a_badge_leaves_its_texts_the_room_they_need(
    tally: Process, open_page: Callable[..., Page], said: list[str]
) -> None:
    page = open_page(
        f"{tally.url}/badge/x.svg?label=The%20quick%20brown%20fox%20jumps%20over%20a%20lazy%20dog,%20WMwm@il!"
    )
    widths = page.evaluate(
        """[...document.querySelectorAll("text")].map((text) => {
             const room = Number(text.getAttribute("textLength"));
             text.removeAttribute("textLength");
             return text.getComputedTextLength() / room;
           })"""
    )
    assert all(0.85 < width < 1.15 for width in widths), widths  # in whatever font there is, here DejaVu Sans
    assert said == []


def scripted(page: Page, tally: Process, site: Site) -> Page:
    """The page that has the script, on the site's origin."""
    site.html = SCRIPT_PAGE.replace("{tally}", tally.url)
    page.goto(site.url)
    page.wait_for_function("window.tally")
    return page


def test_the_script_counts_and_shows_what_is_counted(
    tally: Process, site: Site, open_page: Callable[..., Page], said: list[str]
) -> None:
    tally.post("/event/signup", b'{"by": 1200}')
    page = scripted(open_page("about:blank", locale="de-DE"), tally, site)
    expect(page.locator("b")).to_have_text("1.200")
    expect(page.locator("u")).to_have_text("0")
    assert page.evaluate("tally('signup', { by: 34 })")["count"] == 1234
    for tag in ("b", "i"):
        expect(page.locator(tag)).to_have_text("1.234")
    page.locator("#inside").click()
    page.locator("button").click()
    page.evaluate("document.querySelector('u').dataset.tallyCount = 'clicked'; tally.watch()")
    expect(page.locator("u")).to_have_text("2")
    assert page.evaluate("tally('a/b').catch((error) => error.message)") == "Not Found"
    assert live_clients(tally) == 1  # for all the spans
    assert [text for text in said if "404" not in text] == []


@pytest.mark.catches(
    "another key each time",
    "static/tally-1.js",
    "await fetch(eventUrl(event), request)",
    "await fetch(eventUrl(event), { ...request, headers: {} })",
)
def test_a_hit_whose_answer_got_lost_is_sent_again_and_counted_once(
    tally: Process, site: Site, open_page: Callable[..., Page]
) -> None:
    page = scripted(open_page("about:blank"), tally, site)
    lost: list[Route] = []

    def lose(route: Route) -> None:
        lost.append(route)
        if len(lost) == 1:
            assert route.fetch().ok  # counted, and its answer lost
            route.abort()
        elif len(lost) == 2:
            route.fulfill(status=503, headers={"Retry-After": "1", "Access-Control-Allow-Origin": "*"}, body="{}")
        else:
            route.continue_()

    page.route("**/event/signup", lose)
    assert page.evaluate("tally('signup')")["count"] == 1
    assert len(lost) == 3
    expect(page.locator("b")).to_have_text("1")


def test_without_a_stream_the_script_shows_what_a_read_says(
    tally: Process, site: Site, open_page: Callable[..., Page]
) -> None:
    tally.post("/event/signup")
    page = open_page("about:blank")
    page.route("**/stream?*", lambda route: route.fulfill(status=503, body="{}"))
    scripted(page, tally, site)
    expect(page.locator("b")).to_have_text("1")
    expect(page.locator("u")).to_have_text("0")


def test_the_page_for_a_frame_shows_one_number_live(
    tally: Process, open_page: Callable[..., Page], said: list[str]
) -> None:
    page = open_page(f"{tally.url}/embed/sign%20up?theme=dark&accent=ff8800&label=%3Cb%3EJoined", locale="en-US")
    expect(page.locator("#count")).to_have_text("0")
    tally.post("/event/sign%20up", b'{"by": 1234}')
    expect(page.locator("#count")).to_have_text("1,234")
    expect(page.locator("#count")).to_have_css("color", "rgb(255, 136, 0)")
    expect(page.locator("#label")).to_have_text("<b>Joined")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    assert said == []


def test_what_the_query_of_a_frame_says_is_checked(
    tally: Process, open_page: Callable[..., Page], said: list[str]
) -> None:
    page = open_page(f"{tally.url}/embed/a?theme=x%22&accent=red;x")
    expect(page.locator("#label")).to_have_text("a")
    expect(page.locator("html")).not_to_have_attribute("data-theme", re.compile(".*"))
    assert page.evaluate("document.documentElement.style.length") == 0
    assert said == []


def test_nobody_may_frame_it_who_was_not_chosen(
    tally: Process, site: Site, open_page: Callable[..., Page], said: list[str]
) -> None:
    site.html = f'<!doctype html><iframe src="{tally.url}/embed/a"></iframe>'
    open_page(site.url).wait_for_load_state("networkidle")
    assert "frame-ancestors" in " ".join(said)


def test_a_chosen_origin_may_frame_it_and_needs_no_key(
    process: Callable[..., Process], site: Site, open_page: Callable[..., Page], said: list[str]
) -> None:
    keys = {"TALLY_READ_KEYS": "r" * 16, "TALLY_PUBLIC_BADGES": "true", "TALLY_EMBED_ORIGINS": site.url}
    tally = process(TALLY_STORE="memory://", **keys)
    site.html = f'<!doctype html><iframe src="{tally.url}/embed/a"></iframe><img src="{tally.url}/badge/a.svg">'
    page = open_page(site.url)
    number = page.frame_locator("iframe").locator("#count")
    expect(number).to_have_text("0")
    tally.post("/event/a")
    expect(number).to_have_text("1")
    page.wait_for_function("document.images[0].naturalHeight === 20")
    assert httpx.get(f"{tally.url}/stream").status_code == 401
    assert said == []


def live_clients(tally: Process) -> float:
    with urllib.request.urlopen(f"{tally.url}/metrics") as answer:
        return float(re.search(r"^tally_live_clients (\S+)", answer.read().decode(), re.MULTILINE)[1])
