"""CountAPI's routes: counting, reading, scripts, images and reserved words."""

import httpx
import pytest

from tests.support.servers import SettableClock


@pytest.fixture
def client_settings() -> dict[str, object]:
    return {"countapi": True}


async def test_countapi_counts_reads_and_describes(client: httpx.AsyncClient) -> None:
    for value in (1, 2, 3):
        response = await client.get("/hit/mysite.com/visits")
        assert (response.status_code, response.json()) == (200, {"value": value})
        assert response.headers["x-path"] == "mysite.com/visits"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["access-control-allow-origin"] == "*"
    assert (await client.get("/get/mysite.com/visits")).json() == {"value": 3}
    assert (await client.get("/info/mysite.com/visits")).json() == {
        "namespace": "mysite.com",
        "key": "visits",
        "value": 3,
        "update_lowerbound": 0,
        "update_upperbound": 1,
        "enable_reset": False,
        "full_key": "mysite.com:visits",
        "is_genuine": True,
        "expires_in": -1,
        "expires_str": "never",
        "exists": True,
    }
    assert (await client.get("/event/mysite.com:visits")).json()["total"] == 3
    assert (await client.get("/hit/visits")).json() == {"value": 1}
    assert (await client.get("/get/default/visits")).json() == {"value": 1}


async def test_countapi_returns_the_total_on_the_next_day(client: httpx.AsyncClient, clock: SettableClock) -> None:
    await client.get("/hit/mysite.com/visits")
    clock.go_to("2026-03-29T01:00:00+00:00")
    assert (await client.get("/hit/mysite.com/visits")).json() == {"value": 2}
    assert (await client.get("/event/mysite.com:visits")).json()["count"] == 1


@pytest.mark.parametrize("path", ["/get/mysite.com/nothing", "/info/mysite.com/nothing", "/get/nothing"])
async def test_countapi_returns_404_for_events_that_were_never_counted(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    body = {"value": None, "error": "Key not found", **({"exists": False} if path.startswith("/info") else {})}
    assert (response.status_code, response.json()) == (404, body)
    assert '"code":404,' in (await client.get(f"{path}?callback=cb")).text


async def test_countapi_returns_scripts_and_images(client: httpx.AsyncClient) -> None:
    script = await client.get("/hit/mysite.com/visits?callback=jQuery_1.cb")
    assert script.headers["content-type"].startswith("text/javascript")
    assert script.text == '/**/jQuery_1.cb({"code":200,"value":1});'
    image = await client.get("/hit/mysite.com/visits?img")
    assert (image.headers["content-type"], image.content[:6]) == ("image/gif", b"GIF89a")
    assert (await client.get("/get/mysite.com/visits")).json() == {"value": 2}


@pytest.mark.fails_on_mutant(
    "a script for Tally's own pages",
    "app/http/routes/countapi.py",
    'request.headers.get("sec-fetch-site") != "same-origin"',
    "True",
)
async def test_tallys_own_pages_get_no_script(client: httpx.AsyncClient) -> None:
    response = await client.get("/hit/mysite.com/visits?callback=cb", headers={"Sec-Fetch-Site": "same-origin"})
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("path", "headers", "counter"),
    [
        (":HOST:/:PATHNAME:", {"Referer": "https://mysite.com/example/page?q#f"}, "mysite.com/examplepage"),
        ("mysite.com/:PATHNAME:", {"Referer": "https://mysite.com/"}, "mysite.com/..."),
        (":HOST:/visits", {"Origin": "http://a.b:8080"}, "a.b/visits"),
        (":HOST:/visits", {"Origin": "null"}, ".../visits"),
        (":HOST:/:PATHNAME:", {"Referer": "https://u@[::1]:8/ورود/" + "x" * 99}, "..u/" + "x" * 64),
        (":HOST:/:PATHNAME:", {}, ".../..."),
    ],
)
async def test_reserved_words_are_replaced_by_the_page(
    client: httpx.AsyncClient, path: str, headers: dict[str, str], counter: str
) -> None:
    encoded = {name: value.encode() for name, value in headers.items()}
    assert (await client.get(f"/hit/{path}", headers=encoded)).headers["x-path"] == counter


@pytest.mark.fails_on_mutant(
    "HEAD counts", "app/http/routes/countapi.py", '@router.get(f"/hit/{path}"', '@router.head(f"/hit/{path}"'
)
async def test_only_a_get_counts(client: httpx.AsyncClient) -> None:
    assert (await client.get("/hit/mysite.com/visits")).status_code == 200
    for method in ("HEAD", "POST", "OPTIONS"):
        assert (await client.request(method, "/hit/mysite.com/visits")).status_code == 405
    assert (await client.get("/get/mysite.com/visits")).json() == {"value": 1}


CHROME = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36"
UNSEEN = {
    "a prefetch": {"Sec-Purpose": "prefetch"},
    "a prerender": {"Sec-Purpose": "prefetch;prerender"},
    "a prefetch through a proxy": {"Sec-Purpose": "prefetch;anonymous-client-ip"},
    "a prefetch of an older Chrome": {"Purpose": "prefetch"},
    "a prefetch of an older Firefox": {"X-Moz": "prefetch"},
    "a preview of Safari": {"X-Purpose": "preview"},
}
BOTS = [
    "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)",
    "Mozilla/5.0 (compatible; Discordbot/2.0; +https://discordapp.com)",
    "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
    "Twitterbot/1.0",
    "TelegramBot (like TwitterBot)",
    "LinkedInBot/1.0 (compatible; Mozilla/5.0; Apache-HttpClient +http://www.linkedin.com)",
    "WhatsApp/2.23.20.0",
    "Mozilla/5.0 (Windows NT 6.1; WOW64) SkypeUriPreview Preview/0.5 skype-url-preview@microsoft.com",
    "http.rb/5.1.1 (Mastodon/4.2.0; +https://mastodon.social/)",
    f"{CHROME} (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Mediapartners-Google",
    f"{CHROME} (compatible; Google-InspectionTool/1.0;)",
    "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
    "Mozilla/5.0 (compatible; Yahoo! Slurp; http://help.yahoo.com/help/us/ysearch/slurp)",
    "Mozilla/5.0 (compatible; Baiduspider/2.0; +http://www.baidu.com/search/spider.html)",
    "Mozilla/5.0 (compatible; YandexBot/3.0; +http://yandex.com/bots)",
    "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; GPTBot/1.2; +https://openai.com/gptbot)",
    "meta-externalagent/1.1 (+https://developers.facebook.com/docs/sharing/webmasters/crawler)",
    "Mozilla/5.0 (compatible; archive.org_bot +http://archive.org/details/archive.org_bot)",
]
UNSEEN |= {bot: {"User-Agent": bot} for bot in BOTS}
SEEN = {
    "no user agent": {"User-Agent": ""},
    "Chrome": {"User-Agent": CHROME},
    "a phone of Cubot": {"User-Agent": "Mozilla/5.0 (Linux; Android 13; CUBOT P80) AppleWebKit/537.36 Mobile Safari"},
    "the browser in Facebook": {"User-Agent": f"{CHROME} [FB_IAB/FB4A;FBAV/440.0.0.30.106;]"},
    "GitHub's image proxy": {"User-Agent": "github-camo (876de43e)"},
    "Gmail's image proxy": {"User-Agent": "Mozilla/5.0 Firefox/11.0 (via ggpht.com GoogleImageProxy)"},
    "curl": {"User-Agent": "curl/8.5.0"},
    "node-fetch": {"User-Agent": "node-fetch/1.0 (+https://github.com/bitinn/node-fetch)"},
    "another purpose": {"Sec-Purpose": "x"},
}


@pytest.mark.fails_on_mutant("bots are counted", "app/http/bots.py", '_BOT.search(headers.get("user-agent", ""))', "0")
async def test_a_hit_that_nobody_sees_is_not_counted(client: httpx.AsyncClient) -> None:
    assert (await client.get("/hit/mysite.com/visits", headers={"Sec-Purpose": "prefetch"})).json() == {"value": 0}
    assert (await client.get("/events")).json() == {}
    await client.get("/hit/mysite.com/visits")
    for name, headers in UNSEEN.items():
        response = await client.get("/hit/mysite.com/visits", headers=headers)
        assert (response.status_code, response.json()) == (200, {"value": 1}), name
        image = await client.get("/hit/mysite.com/visits?img", headers=headers)
        assert (image.headers["content-type"], image.headers["cache-control"]) == ("image/gif", "no-store"), name
    for value, (name, headers) in enumerate(SEEN.items(), 2):
        assert (await client.get("/hit/mysite.com/visits", headers=headers)).json() == {"value": value}, name


@pytest.mark.parametrize("client", [{"write_limit": "1/minute", "read_limit": "1/minute"}], indirect=True)
async def test_a_hit_that_nobody_sees_costs_a_read(client: httpx.AsyncClient) -> None:
    statuses = [(await client.get("/hit/a.b/key", headers={"Purpose": "prefetch"})).status_code for _ in range(2)]
    assert statuses == [200, 429]
    assert (await client.get("/hit/a.b/key")).json() == {"value": 1}


@pytest.mark.parametrize("client", [{"write_limit": "2/minute"}], indirect=True)
async def test_a_page_can_read_the_429_of_its_hit(client: httpx.AsyncClient) -> None:
    responses = [await client.get("/hit/mysite.com/visits") for _ in range(3)]
    assert [response.status_code for response in responses] == [200, 200, 429]
    assert responses[-1].json()["counted"] == "no"
    assert responses[-1].headers["access-control-allow-origin"] == "*"
    assert (await client.get("/get/mysite.com/visits")).json() == {"value": 2}


@pytest.mark.parametrize("client", [{"countapi": False}], indirect=True)
async def test_countapi_routes_exist_only_if_enabled(client: httpx.AsyncClient) -> None:
    assert (await client.get("/hit/mysite.com/visits")).status_code == 404
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert not [path for path in paths if path.startswith(("/hit", "/get", "/info"))]
    assert (await client.get("/events")).json() == {}
