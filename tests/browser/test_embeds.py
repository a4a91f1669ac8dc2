"""Other people's pages, on another origin: the API, badges, a CountAPI page, the script, and the frame."""

import io
import re
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image, ImageColor
from playwright.sync_api import Error, Page, Route, expect

from tests.support.redis_servers import wait_until
from tests.support.servers import ROOT, Process
from tests.support.site import Site
from tests.support.unreliable_proxy import SIGN_IN, unreliable

SCRIPT = "static/tally-1.js"
COUNTAPI_PAGE = """<!doctype html><meta charset="utf-8">
<p id="fetch"></p><p id="xhr"></p><p id="json"></p><p id="get"></p><p id="missing"></p><p id="path"></p>
<script>
  const show = (id, text) => { document.getElementById(id).textContent = text; };
  function cb(response) { show("json", response.value); }
</script>
<script src="{tally}/hit/mysite.com/json?callback=cb"></script>
<img id="pixel" src="{tally}/hit/mysite.com/pixel?img" alt="">
<script>
  fetch("{tally}/hit/mysite.com/visits").then((response) => response.json()).then(({ value }) => show("fetch", value));
  fetch("{tally}/hit/:HOST:/visits").then((response) => show("path", response.headers.get("X-Path")));
  fetch("{tally}/get/mysite.com/nothing")
    .then(async (response) => show("missing", response.status + JSON.stringify(await response.json())));
  const xhr = new XMLHttpRequest();
  xhr.open("GET", "{tally}/hit/mysite.com/button");
  xhr.responseType = "json";
  xhr.onload = () => show("xhr", xhr.response.value);
  xhr.send();
</script>"""

SCRIPT_PAGE = """<!doctype html><meta charset="utf-8">
<script src="{tally}/static/tally-1.js" defer></script>
<b data-tally-count="{event}"></b> <i data-tally-count="{event}"></i> <u data-tally-count="never"></u>
<button data-tally-hit="clicked"><span id="inside">Click</span></button>"""

FRAME_PAGE = """<!doctype html><style>:root {{ color-scheme: {scheme} }} body {{ background: tomato }}</style>
<iframe src="{url}" width="200" height="100" style="border:0;color-scheme:light"></iframe>"""

BADGE_PAGE = """<!doctype html><img src="{tally}/badge/mysite.com:badge.svg?label=visits" alt="visits">"""

POST_TWICE = """async ([tally, key]) => {
    const headers = { Authorization: `Bearer ${key}`, "Idempotency-Key": "k", "Content-Type": "application/json" };
    const post = () => fetch(`${tally}/event/a`, { method: "POST", headers, body: "{}" });
    await post();
    const repeated = await post();
    return [repeated.status, repeated.headers.get("Idempotent-Replayed")];
}"""
SUBSCRIBE = """async ([tally, key]) => {
    const { io } = await import(`${tally}/static/vendor/socket.io.esm.min.js`);
    const socket = io(`${tally}/live`, { auth: { key } });
    return new Promise((resolve) => {
        socket.on("snapshot", ({ names, counts }) => resolve([names, counts]));
        socket.on("connect_error", (error) => resolve(error.data?.status ?? "refused"));
    });
}"""


@pytest.fixture(scope="module")
def shared_site() -> Iterator[Site]:
    with Site() as site:
        yield site


@pytest.fixture
def site(shared_site: Site) -> Site:
    shared_site.html, shared_site.headers = "", {}
    return shared_site


@pytest.fixture(scope="module")
def tally(tmp_path_factory: pytest.TempPathFactory, shared_site: Site) -> Iterator[Process]:
    """A server that the site's pages may write to and read from. Each test uses event names of its own."""
    settings = {"TALLY_COUNTAPI": "true", "TALLY_ALLOWED_ORIGINS": shared_site.url}
    process = Process(tmp_path_factory.mktemp("tally"), TALLY_STORE="memory://", **settings)
    yield process.start()
    process.kill()


def test_a_page_of_an_allowed_origin_can_count_and_subscribe(process, site: Site, open_page) -> None:
    """It needs preflights, readable response headers, and Socket.IO that begins with polling."""
    key, page = "k" * 16, open_page(site.url)
    keys = {"TALLY_WRITE_KEYS": key, "TALLY_READ_KEYS": key}
    tally = process(TALLY_STORE="memory://", TALLY_ALLOWED_ORIGINS=site.url, **keys)
    assert page.evaluate(POST_TWICE, [tally.url, key]) == [200, "true"]
    assert page.evaluate(POST_TWICE, [tally.url, "w" * 16]) == [401, None]
    assert page.evaluate(SUBSCRIBE, [tally.url, key]) == [["a"], [1]]
    assert page.evaluate(SUBSCRIBE, [tally.url, "w" * 16]) == 401
    same_origin_only = process(TALLY_STORE="memory://")
    with pytest.raises(Error, match="Failed to fetch"):
        page.evaluate(POST_TWICE, [same_origin_only.url, key])
    assert same_origin_only.get("/events") == {}


# Bodies of navigator.sendBeacon, and the count of a hit that each is.
BEACONS = {
    "undefined": 1,
    "json": 5,
    "new Blob([json])": 5,
    "new Blob([json], { type: 'application/json' })": 5,
    "new TextEncoder().encode(json)": 5,
    "new URLSearchParams({ by: 5 })": None,
    "new FormData(form)": None,
}
SEND_BEACON = """([url]) => {
    const json = '{"by":5}';
    const form = document.createElement("form");
    form.append(Object.assign(document.createElement("input"), { name: "by", value: "5" }));
    return navigator.sendBeacon(url, BODY);
}"""
FETCH = "([url]) => fetch(url, { method: 'POST', credentials: 'include' }).then((response) => response.json())"


@pytest.mark.fails_on_mutant("credentials are not allowed", "app/http/origins.py", "_CREDENTIALS, _EXPOSED", "_EXPOSED")
def test_each_beacon_is_counted_or_rejected(tally: Process, site: Site, open_page, console_messages: list[str]) -> None:
    """A browser sends beacons with credentials. Only the body of a JSON Blob needs a preflight."""
    page = open_page(site.url)
    for i, (body, count) in enumerate(BEACONS.items()):
        with page.expect_response(lambda response: response.request.method == "POST") as received:
            assert page.evaluate(SEND_BEACON.replace("BODY", body), [f"{tally.url}/event/beacon-{i}"])
        assert received.value.status == (200 if count else 422), body
        assert tally.get(f"/event/beacon-{i}")["count"] == (count or 0), body
    assert page.evaluate(FETCH, [f"{tally.url}/event/fetched"])["count"] == 1
    assert [text for text in console_messages if "422" not in text] == []


def test_a_countapi_page_works_after_changing_its_host_name(
    process, site: Site, open_page, console_messages: list[str]
) -> None:
    tally = process(TALLY_STORE="memory://", TALLY_COUNTAPI="true")
    tally.get("/hit/mysite.com/visits")
    site.html = COUNTAPI_PAGE.replace("{tally}", tally.url)
    page = open_page(site.url)
    for name, text in {"fetch": "2", "xhr": "1", "json": "1", "path": "localhost/visits"}.items():
        expect(page.locator(f"#{name}")).to_have_text(text)
    expect(page.locator("#missing")).to_have_text('404{"value":null,"error":"Key not found"}')
    page.wait_for_function("document.getElementById('pixel').naturalWidth === 1")
    page.reload()
    expect(page.locator("#fetch")).to_have_text("3")
    assert tally.get("/event/mysite.com:pixel")["total"] == 2
    assert [text for text in console_messages if "404" not in text] == []


@pytest.mark.fails_on_mutant("prefetches are counted", "app/http/bots.py", 'r"prefetch|', 'r"')
def test_a_prefetch_is_not_counted(tally: Process, site: Site, open_page) -> None:
    hit = f"{tally.url}/hit/mysite.com/prefetched"
    site.html = f'<!doctype html><link rel="prefetch" href="{hit}">'
    page = open_page("about:blank")
    with page.expect_response(hit) as received:
        page.goto(site.url)
    assert received.value.request.header_value("sec-purpose") == "prefetch"
    assert tally.get("/event/mysite.com:prefetched")["total"] == 0
    assert page.evaluate("(hit) => fetch(hit).then((response) => response.json())", hit) == {"value": 1}


def test_a_badge_loads_on_a_page_with_a_strict_embedder_policy(
    tally: Process, site: Site, open_page, console_messages: list[str]
) -> None:
    for _ in range(3):
        tally.get("/hit/mysite.com/badge")
    site.html = BADGE_PAGE.replace("{tally}", tally.url)
    site.headers["Cross-Origin-Embedder-Policy"] = "require-corp"
    page = open_page(site.url)
    page.wait_for_function("document.images[0].naturalHeight === 20")
    shield = tally.get("/event/mysite.com:badge/shield.json?label=visits")
    assert (shield["label"], shield["message"]) == ("visits", "3")
    assert console_messages == []


def test_the_texts_of_a_badge_fit_their_widths(tally: Process, open_page, console_messages: list[str]) -> None:
    page = open_page(
        f"{tally.url}/badge/x.svg?label=The%20quick%20brown%20fox%20jumps%20over%20a%20lazy%20dog,%20WMwm@il!"
    )
    ratios = page.evaluate(
        """[...document.querySelectorAll("text")].map((text) => {
             const width = Number(text.getAttribute("textLength"));
             text.removeAttribute("textLength");
             return text.getComputedTextLength() / width;
           })"""
    )
    # The font of the machine that runs the test differs from Verdana.
    assert all(0.85 < ratio < 1.15 for ratio in ratios), ratios
    assert console_messages == []


def load_script_page(page: Page, tally: Process, site: Site, event: str) -> Page:
    """Load a page with the script on the site's origin, which shows the count of an event."""
    site.html = SCRIPT_PAGE.replace("{tally}", tally.url).replace("{event}", event)
    page.goto(site.url)
    page.wait_for_function("window.tally !== undefined")
    return page


def test_the_script_counts_hits_and_shows_live_counts(
    tally: Process, site: Site, open_page, console_messages: list[str]
) -> None:
    tally.post("/event/signup", b'{"by": 1200}')
    page = load_script_page(open_page("about:blank", locale="de-DE"), tally, site, "signup")
    expect(page.locator("b")).to_have_text("1.200")
    expect(page.locator("u")).to_have_text("0")
    assert page.evaluate("tally('signup', { by: 34 })")["count"] == 1234
    for tag in ("b", "i"):
        expect(page.locator(tag)).to_have_text("1.234")
    page.locator("#inside").click()
    page.locator("button").click()
    page.evaluate("document.querySelector('u').dataset.tallyCount = 'clicked'; tally.watch()")
    expect(page.locator("u")).to_have_text("2")
    assert page.evaluate("tally('a/b').catch((error) => error.message)") == "there is no such route or file; see /docs"
    # One stream serves all spans. Streams of earlier tests may take a moment to close.
    wait_until(lambda: live_clients(tally) == 1)
    assert [text for text in console_messages if "404" not in text] == []


@pytest.mark.fails_on_mutant(
    "sends another Idempotency-Key with each retry",
    "static/tally-1.js",
    "await fetch(eventUrl(event), request)",
    "await fetch(eventUrl(event), { ...request, headers: {} })",
)
def test_the_script_retries_after_a_lost_response_and_counts_once(tally: Process, site: Site, open_page) -> None:
    page = load_script_page(open_page("about:blank"), tally, site, "retried")
    requests: list[Route] = []

    def disturb(route: Route) -> None:
        requests.append(route)
        if len(requests) == 1:
            # The server counts this hit, but the page does not get the response.
            assert route.fetch().ok
            route.abort()
        elif len(requests) == 2:
            route.fulfill(status=503, headers={"Retry-After": "1", "Access-Control-Allow-Origin": "*"}, body="{}")
        else:
            route.continue_()

    page.route("**/event/retried", disturb)
    assert page.evaluate("tally('retried')")["count"] == 1
    assert len(requests) == 3
    expect(page.locator("b")).to_have_text("1")


@pytest.mark.fails_on_mutant(
    "a GET with a key gets the count", "app/http/parsing.py", 'if "idempotency-key" in request.headers:', "if False:"
)
def test_the_script_reports_that_its_hit_was_redirected(tally: Process, open_page) -> None:
    with unreliable(tally, 301) as proxy:
        page = open_page(f"http://127.0.0.1:{proxy.server_port}{SIGN_IN}")
        page.evaluate("document.documentElement.dataset.tallyServer = '/'")
        page.add_script_tag(path=ROOT / SCRIPT)
        assert "a redirect made a GET of it" in page.evaluate("tally('redirected').catch(({ message }) => message)")


@pytest.mark.fails_on_mutant(
    "a path stays encoded", "docs/how-to/embed.md", "decodeURI(location.pathname)", "location.pathname"
)
@pytest.mark.fails_on_mutant(
    "a snippet has no script", "docs/how-to/embed.md", "defer></script>\n<button", "defer>\n<button"
)
def test_the_guide_counts_views_and_clicks_and_shows_a_live_count(tally: Process, site: Site, open_page) -> None:
    blocks = re.findall(r"```html\n(.*?)```", (ROOT / "docs/how-to/embed.md").read_text(), re.DOTALL)
    view, live = (block.replace("https://tally.example", tally.url) for block in blocks if "tally-1.js" in block)
    site.html = f'<!doctype html><meta charset="utf-8">{view}'
    page = open_page("about:blank")
    with page.expect_response(lambda response: response.request.method == "POST") as received:
        page.goto(f"{site.url}/caf%C3%A9/{'x' * 200}")
    assert received.value.json()["eventName"] == ":café:" + "x" * 122
    site.html = f"<!doctype html>{live}"
    page.goto(site.url)
    count = page.locator("span")
    expect(count).to_have_text(re.compile(r"^[\d,]+$"))
    with page.expect_response(lambda response: response.request.method == "POST") as received:
        page.locator("button").click()
    assert received.value.json()["eventName"] == "clicked"
    shown = int(count.inner_text().replace(",", ""))
    tally.post("/event/signup")
    expect(count).to_have_text(f"{shown + 1:,}")


CLASSIC = '<script src="{tally}/static/tally-1.js"></script>'
MODULE = '<script type="module" src="{tally}/static/tally-1.js"></script>'
COPY = '<script src="/js/tally-1.js"{name}></script>'
IMPORT = '<script type="module">await import("{tally}/static/tally-1.js")</script>'
EVAL = '<script>fetch("/js/tally-1.js").then((file) => file.text()).then(eval)</script>'
INLINE = "<script>{copy}</script>"
ON_SCRIPT, ON_PAGE = ' data-tally-server="{tally}"', '<html data-tally-server="{tally}/">'
# Each way to include the script counts a hit once.
INCLUDED = {
    "twice": CLASSIC + CLASSIC,
    "in two versions of its URL": CLASSIC + CLASSIC.replace(".js", ".js?v=2"),
    "also as a module": CLASSIC + MODULE + IMPORT,
    "as a module": MODULE,
    "as a module, twice": MODULE + MODULE.replace(".js", ".js?v=2"),
    "with import()": ON_PAGE + IMPORT,
    "with eval": ON_PAGE + EVAL,
    "inline": ON_PAGE + INLINE,
    "as a copy that names the server": COPY.replace("{name}", ON_SCRIPT),
    "as a copy at the same path": COPY.replace("/js", "/static").replace("{name}", ON_SCRIPT),
    "as a copy that does not, and from the server": COPY.replace("{name}", "") + CLASSIC,
}
# In these the server is unknown.
NOT_INCLUDED = {
    "a copy": COPY.replace("{name}", ""),
    "import() from the server": IMPORT,
    "eval": EVAL,
    "inline": INLINE,
    "an invalid server": '<html data-tally-server="http://">' + CLASSIC,
    "a server in text of a user": f"<p{ON_SCRIPT}></p>" + INLINE,
}


@pytest.fixture
def own_page(site: Site, open_page) -> Page:
    """A page of the site, which has copies of the script."""
    page = open_page("about:blank")
    for path in ("/js/tally-1.js", "/static/tally-1.js"):
        page.route(site.url + path, lambda route: route.fulfill(path=ROOT / SCRIPT, content_type="text/javascript"))
    return page


def load_page_with(script: str, event: str, tally: Process, site: Site, page: Page) -> list[str]:
    """Load a page with this script and a button that counts the event. Return the URLs of its POSTs from then on."""
    script = script.replace("{copy}", (ROOT / SCRIPT).read_text()).replace("{tally}", tally.url)
    site.html = f'<!doctype html>{script}<button data-tally-hit="{event}">Click</button>'
    page.goto(site.url)
    page.wait_for_function("window.tally !== undefined")
    posts: list[str] = []
    page.on("request", lambda request: posts.append(request.url) if request.method == "POST" else None)
    return posts


@pytest.mark.fails_on_mutant(
    "a second script counts again", SCRIPT, "if (globalThis.tally?.server) return globalThis.tally.watch();", ""
)
@pytest.mark.fails_on_mutant(
    "a module has no server", SCRIPT, "document.currentScript, ...document.scripts", "document.currentScript"
)
@pytest.mark.fails_on_mutant("the named server is ignored", SCRIPT, "named === undefined ?", "script ?")
def test_the_script_counts_once_however_it_is_included(
    tally: Process, site: Site, own_page: Page, console_messages: list[str]
) -> None:
    for i, (how, script) in enumerate(INCLUDED.items()):
        posts = load_page_with(script, f"included {i}", tally, site, own_page)
        own_page.wait_for_function("window.tally.server")
        assert own_page.evaluate("tally.server") == f"{tally.url}/", how
        own_page.locator("button").click()
        assert own_page.evaluate(f"tally('after {i}')")["count"] == 1, how
        assert [url.partition("/event/")[2] for url in posts] == [f"included%20{i}", f"after%20{i}"], how
    assert [text for text in console_messages if "unknown server" not in text] == []
    assert len(console_messages) == 1  # of the copy that does not name the server


@pytest.mark.fails_on_mutant("a copy is taken for the server", SCRIPT, "/^[^?#]*\\/static\\/tally", "/^[^?#]*tally")
@pytest.mark.fails_on_mutant("any element may name the server", SCRIPT, "html[data-tally-server], script", "")
def test_a_script_without_a_known_server_logs_an_error_and_counts_nothing(
    tally: Process, site: Site, own_page: Page, console_messages: list[str]
) -> None:
    for how, script in NOT_INCLUDED.items():
        posts = load_page_with(script, "unknown", tally, site, own_page)
        own_page.locator("button").click()
        error = own_page.evaluate("tally.watch() ?? tally('unknown').catch((error) => error.message)")
        assert "data-tally-server" in error, how
        assert len(console_messages) == 1, how
        assert "unknown server" in console_messages[0], how
        assert posts == [], how
        console_messages.clear()
    assert tally.get("/event/unknown")["count"] == 0


@pytest.mark.fails_on_mutant("fails silently", SCRIPT, "if (!warned) console", "if (0) console")
def test_the_script_names_what_the_server_needs(process, site: Site, open_page) -> None:
    """By default, pages of other origins may neither count nor read. With read keys, they cannot read."""
    page = open_page("about:blank")
    for settings, warning in (
        ({}, f"Tally: no response. Is {site.url} in TALLY_ALLOWED_ORIGINS?"),
        ({"TALLY_READ_KEYS": "r" * 16, "TALLY_ALLOWED_ORIGINS": site.url}, "Tally: API key required"),
    ):
        tally = process(TALLY_STORE="memory://", **settings)
        with page.expect_console_message(lambda message: message.type == "warning") as warned:
            load_script_page(page, tally, site, "silent")
        assert warned.value.text.startswith(warning)


def test_the_script_shows_a_read_count_without_a_stream(tally: Process, site: Site, open_page) -> None:
    tally.post("/event/polled")
    page = open_page("about:blank")
    page.route("**/stream?*", lambda route: route.fulfill(status=503, body="{}"))
    load_script_page(page, tally, site, "polled")
    expect(page.locator("b")).to_have_text("1")
    expect(page.locator("u")).to_have_text("0")


def test_an_embed_shows_one_live_number(tally: Process, open_page, console_messages: list[str]) -> None:
    page = open_page(f"{tally.url}/embed/sign%20up?theme=dark&accent=ff8800&label=%3Cb%3EJoined", locale="en-US")
    expect(page.locator("#count")).to_have_text("0")
    tally.post("/event/sign%20up", b'{"by": 1234}')
    expect(page.locator("#count")).to_have_text("1,234")
    expect(page.locator("#count")).to_have_css("color", "rgb(255, 136, 0)")
    expect(page.locator("#label")).to_have_text("<b>Joined")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    assert console_messages == []


@pytest.mark.fails_on_mutant(
    "a frame has a color-scheme", "static/embed.css", ":root { --accent", ":root { color-scheme: light dark; --accent"
)
def test_a_frame_is_transparent_on_light_and_dark_pages(process, site: Site, open_page) -> None:
    tally = process(TALLY_STORE="memory://", TALLY_EMBED_ORIGINS=site.url)
    page = open_page("about:blank", color_scheme="dark")
    for scheme, theme, colour in (("light", "light", "#2457d6"), ("light dark", "dark", "#86abff")):
        site.html = FRAME_PAGE.format(scheme=scheme, url=f"{tally.url}/embed/a?theme={theme}")
        page.goto(site.url)
        expect(page.frame_locator("iframe").locator("#count")).to_have_css("color", f"rgb{ImageColor.getrgb(colour)}")
        expect(page.frame_locator("iframe").locator("#count")).to_have_text("0")
        picture = Image.open(io.BytesIO(page.locator("iframe").screenshot())).convert("RGB")
        corners = [(x, y) for x in (0, picture.width - 1) for y in (0, picture.height - 1)]
        assert {picture.getpixel(corner) for corner in corners} == {ImageColor.getrgb("tomato")}, scheme


def test_an_embed_ignores_invalid_query_values(tally: Process, open_page, console_messages: list[str]) -> None:
    page = open_page(f"{tally.url}/embed/a?theme=x%22&accent=red;x")
    expect(page.locator("#label")).to_have_text("a")
    expect(page.locator("html")).not_to_have_attribute("data-theme", re.compile(".*"))
    assert page.evaluate("document.documentElement.style.length") == 0
    assert console_messages == []


def test_other_origins_cannot_frame_an_embed(
    tally: Process, site: Site, open_page, console_messages: list[str]
) -> None:
    site.html = f'<!doctype html><iframe src="{tally.url}/embed/a"></iframe>'
    page = open_page("about:blank")
    with page.expect_console_message(lambda message: "frame-ancestors" in message.text):
        page.goto(site.url)


def test_an_allowed_origin_can_frame_an_embed_without_a_key(
    process, site: Site, open_page, console_messages: list[str]
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
    assert console_messages == []


def live_clients(tally: Process) -> float:
    metrics = httpx.get(f"{tally.url}/metrics").text
    return float(re.search(r"^tally_live_clients (\S+)", metrics, re.MULTILINE)[1])
