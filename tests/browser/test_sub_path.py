"""Tally under /tally/: all pages work behind the nginx of the guide, which keeps or strips the path, and without it."""

import io
import re
from collections.abc import Callable, Iterator

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Page, Request, expect

from tests.browser.dashboard import ADMIN_KEY, accessibility_violations, choose, count_of, expect_status
from tests.support.nginx import HTTP, Nginx
from tests.support.servers import ROOT, Process

PAGES = "app/http/routes/pages.py"
GUIDE = "docs/how-to/reverse-proxy.md"
SCRIPT_PAGE = """<script src="{base}/static/tally-1.js"></script>
<b data-tally-count="script"></b><button data-tally-hit="script">Click</button>"""
PROXIES = ["keeps", "strips", "none"]


def site(port: int, *, strips: bool) -> str:
    """Return the nginx configuration of the guide for a node on this port, without TLS."""
    server = re.findall(r"^```nginx\n(.*?)^```$", (ROOT / GUIDE).read_text(), re.MULTILINE | re.DOTALL)[0]
    server = re.sub(r"ssl_.*;", "", server).replace("listen 443 ssl", "listen 8080")
    server, locations = re.subn(r"( location (= )?/)", r"\1tally/", server)
    assert locations == 3  # as the guide says
    if strips:
        server = server.replace("127.0.0.1:8000;", "127.0.0.1:8000/;", 1)
    return server.replace("127.0.0.1:8000", f"127.0.0.1:{port}")


@pytest.fixture(scope="module", params=PROXIES)
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def tally(mode: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A node, which knows its path only if the proxy does not strip it."""
    settings = {"TALLY_TRUSTED_PROXIES": "127.0.0.1", "TALLY_ADMIN_KEYS": ADMIN_KEY}
    settings |= {} if mode == "strips" else {"TALLY_ROOT_PATH": "/tally"}
    process = Process(tmp_path_factory.mktemp("tally"), TALLY_STORE="memory://", **settings)
    yield process.start()
    process.kill()


@pytest.fixture(scope="module")
def base(mode: str, tally: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of Tally, without a slash at its end."""
    if mode == "none":
        yield f"{tally.url}/tally"
        return
    conf = HTTP.format(site=site(tally.port, strips=mode == "strips"))
    nginx = Nginx(tmp_path_factory.mktemp("nginx"), conf)
    yield f"{nginx.start().url}/tally"
    nginx.stop()


@pytest.fixture
def page(base: str, open_page: Callable[..., Page], console_messages: list[str]) -> Iterator[Page]:
    """A page that may only send requests under the path, and on which nothing may fail."""
    page = open_page("about:blank")
    urls: list[str] = []
    failures: list[str] = []

    def note_failure(request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page was left
            failures.append(f"{request.url}: {request.failure}")

    page.on("request", lambda request: urls.append(request.url))
    page.on("websocket", lambda socket: urls.append(socket.url))
    page.on("response", lambda response: failures.append(response.url) if response.status >= 400 else None)
    page.on("requestfailed", note_failure)
    yield page
    under = (f"{base}/", f"{base}/".replace("http", "ws", 1), "data:")
    assert [url for url in urls if not url.startswith(under)] == []
    assert failures == []
    assert console_messages == []


@pytest.mark.fails_on_mutant(
    "requests leave the path", "static/js/data/api.js", "fetch(SERVER_URL + path", "fetch(path"
)
@pytest.mark.fails_on_mutant("Socket.IO leaves the path", "static/js/data/socket.js", "    path, auth, ", "    auth, ")
@pytest.mark.fails_on_mutant(
    "a file leaves the path", "static/app.css", 'url("stroke.svg")', 'url("/static/stroke.svg")'
)
def test_the_dashboard_is_live(tally: Process, base: str, page: Page) -> None:
    page.goto(f"{base}/")
    expect(page.locator("#empty code")).to_contain_text(f"-X POST '{base}/event/signup'")
    page.locator("#test-hit").click()
    expect_status(page, "live")
    expect(count_of(page, "signup")).to_have_text("1")
    tally.post("/event/signup")
    expect(count_of(page, "signup")).to_have_text("2")
    page.locator('[data-event="signup"] a').first.click()
    expect(page.locator("#event-name")).to_have_text("signup")
    tally.post("/event/signup")
    expect(page.locator("#event-today .hero .value")).to_have_text("3")
    for hash_ in ("leaderboard", "history", "settings"):
        page.evaluate(f"location.hash = '#/{hash_}'")
        expect(page.locator(f"#page-{hash_}")).to_be_visible()
    page.locator("#set-look ~ p a").click()
    expect(page).to_have_url(f"{base}/kiosk")


@pytest.mark.fails_on_mutant("the manifest is not allowed", PAGES, " manifest-src 'self';", "")
@pytest.mark.fails_on_mutant("the app opens another page", "static/manifest.json", '"../../"', '"/"')
def test_the_dashboard_can_be_added_to_a_home_screen(base: str, page: Page) -> None:
    page.goto(f"{base}/")
    found = page.context.new_cdp_session(page).send("Page.getAppManifest")
    assert (found["errors"], found["manifest"]["startUrl"]) == ([], f"{base}/")
    touch_icon = page.locator("link[rel=apple-touch-icon]").evaluate("link => link.href")
    assert touch_icon in [icon["url"] for icon in found["manifest"]["icons"]]
    for icon in found["manifest"]["icons"]:
        response = httpx.get(icon["url"]).raise_for_status()
        assert response.headers["Content-Type"] == icon["type"]
        assert len(response.content) < 6000
        if icon["type"] == "image/png":
            width, height = Image.open(io.BytesIO(response.content)).size
            assert f"{width}x{height}" == icon["sizes"]


@pytest.mark.fails_on_mutant(
    "URLs have no path", "static/js/data/snippets.js", "return SERVER_URL + path", "return path"
)
def test_the_share_dialog_has_urls_under_the_path(tally: Process, base: str, page: Page) -> None:
    tally.post("/event/shared")
    page.goto(f"{base}/#/event/shared")
    page.locator("#share-open").click()
    for form in ("Frame", "Script", "Badge", "Kiosk", "curl"):
        choose(page, "#share-body", form)
        texts = page.locator("#share-body .curl code").all_text_contents()
        assert all(f"{base}/" in text for text in texts), form
        if form == "Badge":
            expect(page.locator("#share-body img")).to_have_js_property("naturalHeight", 20)
        if form == "Frame":
            expect(page.frame_locator("#share-body iframe").locator("#count")).to_have_text("1")


@pytest.mark.fails_on_mutant(
    "Escape leaves the path", "static/js/kiosk.js", 'location.assign(".")', 'location.assign("/")'
)
@pytest.mark.fails_on_mutant(
    "the key leaves the path", "static/js/main.js", 'location.assign("kiosk")', 'location.assign("/kiosk")'
)
@pytest.mark.fails_on_mutant("a link leaves the path", "static/kiosk.html", 'href="."', 'href="/"')
def test_the_kiosk_is_live_and_leads_back(tally: Process, base: str, page: Page) -> None:
    tally.post("/event/shown")
    page.goto(f"{base}/")
    expect_status(page, "live")
    page.keyboard.press("k")
    expect(page).to_have_url(f"{base}/kiosk")
    page.goto(f"{base}/kiosk?event=shown")
    expect(page.locator("#slides")).to_contain_text("shown")
    expect_status(page, "live")
    tally.post("/event/shown", b'{"by": 41}')
    expect(page.locator("#slides .value").first).to_have_text("42")
    page.keyboard.press("Escape")
    expect(page).to_have_url(f"{base}/")
    page.goto(f"{base}/kiosk")
    page.get_by_role("link", name="Exit").click()
    expect(page).to_have_url(f"{base}/")


@pytest.mark.fails_on_mutant("the document is elsewhere", "static/js/docs.js", '"openapi.json"', '"/openapi.json"')
@pytest.mark.fails_on_mutant("requests are sent elsewhere", "app/http/app.py", '{"url": "."}', '{"url": "/"}')
def test_the_api_docs_send_requests_under_the_path(base: str, page: Page) -> None:
    page.goto(f"{base}/docs")
    block = page.locator(".opblock", has=page.locator('[data-path="/leaderboard"]'))
    block.locator(".opblock-summary-control").click()
    with page.expect_response(f"{base}/leaderboard?**") as response:
        block.get_by_role("button", name="Execute").click()
    assert response.value.ok
    page.locator("a.brand").click()
    expect(page).to_have_url(f"{base}/")


@pytest.mark.fails_on_mutant(
    "the style is missing", "static/errors.html", 'href="../static/app.css"', 'href="static/app.css"'
)
def test_the_errors_page_has_its_style_and_links(base: str, page: Page) -> None:
    page.goto(f"{base}/docs/errors#event-limit")
    expect(page.locator("#event-limit")).to_be_in_viewport()
    page.locator("a.brand").click()
    expect(page).to_have_url(f"{base}/")


@pytest.mark.fails_on_mutant(
    "the style is not allowed", "app/http/problem_page.py", "_STYLE.encode()", "_STYLE.strip().encode()"
)
@pytest.mark.fails_on_mutant("links leave the path", "app/http/problem_page.py", '"../" * depth', '"/" or depth')
def test_the_page_of_an_error_has_its_style_and_links(base: str, open_page) -> None:
    page = open_page("about:blank", viewport={"width": 200, "height": 100})
    page.goto(f"{base}/share/unknown")
    expect(page.get_by_role("heading")).to_have_css("font-size", "15px")
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    page.set_viewport_size({"width": 1280, "height": 900})
    expect(page.locator("img")).not_to_have_js_property("naturalWidth", 0)
    assert accessibility_violations(page) == []
    page.get_by_role("link", name="Open the dashboard").click()
    expect(page).to_have_url(f"{base}/")


@pytest.mark.fails_on_mutant("the name is in another segment", "static/js/embed.js", '.at(-1) ?? ""', "[2]")
@pytest.mark.fails_on_mutant("a file is missing", "static/embed.html", "../static/embed.css", "static/embed.css")
def test_an_embed_is_live(tally: Process, base: str, page: Page) -> None:
    page.goto(f"{base}/embed/sign%20up")
    expect(page.locator("#label")).to_have_text("sign up")
    expect(page.locator("#count")).to_have_text("0")
    tally.post("/event/sign%20up")
    expect(page.locator("#count")).to_have_text("1")


@pytest.mark.fails_on_mutant(
    "numbers are elsewhere", "static/js/share.js", "fetch(`${location.pathname}/counts`", "fetch(`/counts`"
)
def test_a_share_is_live(tally: Process, base: str, mode: str, page: Page) -> None:
    admin = {"Authorization": f"Bearer {ADMIN_KEY}"}
    body = {"title": "Launch", "events": ["shared"]}
    share = httpx.post(f"{base}/shares", json=body, headers=admin).raise_for_status().json()
    assert share["path"] == f"{'' if mode == 'strips' else '/tally'}/share/{share['token']}"
    page.goto(f"{base}/share/{share['token']}")
    expect_status(page, "live")
    before = int(page.locator("article > .value span").text_content() or "")
    tally.post("/event/shared")
    expect(page.locator("article > .value span")).to_have_text(str(before + 1))


@pytest.mark.fails_on_mutant(
    "the path is ignored", "static/tally-1.js", 'new URL("..", script.src)', 'new URL("/", script.src)'
)
def test_the_script_counts_and_shows_counts(base: str, page: Page) -> None:
    html = SCRIPT_PAGE.format(base=base)
    page.route(f"{base}/any-page", lambda route: route.fulfill(body=html, content_type="text/html"))
    page.goto(f"{base}/any-page")
    assert page.evaluate("tally.server") == f"{base}/"
    expect(page.locator("b")).to_have_text("0")
    page.locator("button").click()
    expect(page.locator("b")).to_have_text("1")
