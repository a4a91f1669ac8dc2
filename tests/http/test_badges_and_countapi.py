"""What is made for other people's pages, over HTTP: badges, shields, the page for a frame, CountAPI's routes."""

import gzip
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.http.routes.badges import abbreviated
from app.main import create_app
from tests.support.redis_servers import RedisServer
from tests.support.servers import AS_ADMIN, ROOT, ChosenClock, settings_for

SVG = "{http://www.w3.org/2000/svg}"
NAMES = ["signup", "a b+c%", "releases.svg", "<b>&\"'", "ورود کاربر", "👩‍💻", "x" * 128, "mysite.com:visits", "..."]


@pytest.fixture
async def client(
    request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer, clock: ChosenClock
) -> AsyncIterator[httpx.AsyncClient]:
    clock.go_to("2026-03-28T22:30:00+00:00")
    settings = settings_for("memory", tmp_path, redis_server, **{"countapi": True, **getattr(request, "param", {})})
    app = create_app(settings, clock)
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        yield client


def said(svg: str) -> tuple[str, list[str]]:
    """What a badge tells those who hear it, and what it shows."""
    root = ET.fromstring(svg)  # noqa: S314 # it is ours
    return root.findtext(f"{SVG}title"), [text.text for text in root.iter(f"{SVG}text")]


async def test_a_badge_shows_the_total_or_todays_count(client: httpx.AsyncClient, clock: ChosenClock) -> None:
    await client.post("/event/signup", json={"by": 1200})
    clock.go_to("2026-03-29T01:00:00+00:00")
    await client.post("/event/signup", json={"by": 34})
    badge = await client.get("/badge/signup.svg")
    assert badge.headers["content-type"] == "image/svg+xml"
    assert said(badge.text) == ("signup: 1,234", ["signup", "1.2k"])
    today = await client.get("/badge/signup.svg", params={"value": "count", "label": "Sign-ups & co", "color": "fd0"})
    assert said(today.text) == ("Sign-ups & co: 34 today", ["Sign-ups & co", "34 today"])
    assert 'fill="#ffdd00"' in today.text
    assert said((await client.get("/badge/signup.svg?label=")).text)[1] == ["1.2k"]
    await client.post("/reset", headers=AS_ADMIN)
    assert said((await client.get("/badge/signup.svg?value=count")).text)[1] == ["signup", "0 today"]
    assert said((await client.get("/badge/signup.svg")).text)[1] == ["signup", "1.2k"]


@pytest.mark.catches(
    "'.svg' taken off a name twice",
    "app/http/routes/count.py",
    ".removesuffix(suffix)",
    '.removesuffix(suffix).removesuffix(b".svg")',
)
@pytest.mark.catches(
    "a badge that is not escaped", "app/http/routes/badges.py", ">{escape(text)}</text>", ">{text}</text>"
)
async def test_any_name_has_a_badge_and_a_shield(client: httpx.AsyncClient) -> None:
    for name in NAMES:
        await client.post("/events", json=[{"event": name, "by": 7}])
        path = quote(name, safe="")
        for suffix in (".svg", "%2Esvg"):
            assert said((await client.get(f"/badge/{path}{suffix}")).text) == (f"{name}: 7", [name, "7"])
        shield = (await client.get(f"/event/{path}/shield.json?color=red")).json()
        expected = {"schemaVersion": 1, "label": name, "message": "7", "color": "c9372c", "cacheSeconds": 300}
        assert shield == expected
        assert (await client.get(f"/embed/{path}")).status_code == 200


async def test_an_unknown_event_is_0_and_asking_makes_no_event(client: httpx.AsyncClient) -> None:
    assert said((await client.get("/badge/nothing.svg")).text)[1] == ["nothing", "0"]
    assert (await client.get("/event/nothing/shield.json")).json()["message"] == "0"
    assert (await client.get("/get/nothing")).status_code == 404
    assert (await client.get("/events")).json() == {}


@pytest.mark.parametrize(
    "path",
    [
        "/badge/a.svg?color=red;x",
        "/badge/a.svg?color=%22/%3E",
        "/badge/a.svg?color=ffff",
        "/badge/a.svg?label=%00",
        "/badge/a.svg?label=%EF%BF%BF",
        f"/badge/a.svg?label={'x' * 129}",
        "/badge/a.svg?value=all",
        "/badge/%FF.svg",
        "/badge/%20.svg",
        "/badge/.svg",
        "/event/%FF/shield.json",
        "/embed/%FF",
        "/embed/a%2Fb",
        "/badge/a%2Fb.svg",
        "/badge/a",
        "/hit/ab/key",
        "/hit/mysite.com/k%20y",
        "/hit/mysite.com/" + "x" * 65,
        "/hit/" + "x" * 64 + "/" + "y" * 64,
        "/get/a%2Fb/key",
        "/hit/mysite.com/visits?callback=alert(1)//",
        "/hit/mysite.com/visits?callback=",
    ],
)
async def test_bad_input_is_refused_with_a_problem_and_not_counted(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code in {400, 404, 422}
    assert answer.headers["content-type"] == "application/problem+json"
    assert ("counted" in answer.json()) is path.startswith("/hit/")
    assert (await client.get("/events")).json() == {}


@pytest.mark.catches("a badge that is never new", "app/http/routes/badges.py", "blake2b(svg,", "blake2b(svg[:9],")
@pytest.mark.catches("an ETag that nobody looks at", "app/http/routes/badges.py", "fresh = etag in", "fresh = etag == ")
async def test_a_badge_is_fetched_again_only_when_it_has_changed(client: httpx.AsyncClient) -> None:
    first = await client.get("/badge/a.svg")
    assert first.headers["cache-control"] == "max-age=5, must-revalidate"
    for known in (first.headers["etag"], f'"x", W/{first.headers["etag"]}'):
        unchanged = await client.get("/badge/a.svg", headers={"If-None-Match": known})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert unchanged.headers["etag"] == first.headers["etag"]
    await client.post("/event/a")
    changed = await client.get("/badge/a.svg", headers={"If-None-Match": first.headers["etag"]})
    assert (changed.status_code, said(changed.text)[1]) == (200, ["a", "1"])


@pytest.mark.catches("our own policy on a badge", "app/main.py", " if n not in said)", ")")
async def test_a_badge_can_do_nothing_and_is_for_pages_of_any_origin(client: httpx.AsyncClient) -> None:
    for answer in (await client.get("/badge/a.svg"), await client.get("/badge/a.svg?color=x")):
        assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert (await client.get("/badge/a.svg")).headers.get_list("content-security-policy") == [
        "default-src 'none'; sandbox"
    ]
    assert "access-control-allow-origin" not in (await client.get("/events")).headers


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *((0, "0"), (999, "999"), (1000, "1k"), (1049, "1k"), (1050, "1.1k"), (1234, "1.2k"), (9949, "9.9k")),
        *((9950, "10k"), (12_499, "12k"), (12_500, "13k"), (999_499, "999k"), (999_500, "1M"), (1_250_000, "1.3M")),
        (2**53 - 1, "9P"),
    ],
)
def test_numbers_are_shortened_as_shields_does(number: int, text: str) -> None:
    assert abbreviated(number) == text


@given(st.integers(0, 2**53 - 1))
def test_a_short_number_is_short_and_near(number: int) -> None:
    text = abbreviated(number)
    assert len(text) <= 4
    digits = text.rstrip("kMGTP")
    meant = float(digits) * 1000 ** " kMGTP".index(text[len(digits) :] or " ")
    assert abs(meant - number) <= 0.05 * number


async def test_embedding_is_for_chosen_origins_alone(tmp_path: Path, redis_server: RedisServer) -> None:
    origins = "https://shop.example,https://blog.example"
    for chosen, policed in (("", "'none'"), (origins, origins.replace(",", " "))):
        app = create_app(settings_for("memory", tmp_path, redis_server, embed_origins=chosen))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
            page = await client.get("/embed/signup")
            (policy,) = page.headers.get_list("content-security-policy")
            assert policy.split("; ")[0] == "default-src 'none'"
            assert f"frame-ancestors {policed};" in policy
            assert "x-frame-options" not in page.headers  # it knows no list of origins, and would forbid them all
            assert "frame-ancestors 'none';" in (await client.get("/")).headers["content-security-policy"]


async def test_countapi_counts_reads_and_tells(client: httpx.AsyncClient) -> None:
    for value in (1, 2, 3):
        answer = await client.get("/hit/mysite.com/visits")
        assert (answer.status_code, answer.json()) == (200, {"value": value})
        assert answer.headers["x-path"] == "mysite.com/visits"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["access-control-allow-origin"] == "*"
    assert (await client.get("/get/mysite.com/visits")).json() == {"value": 3}
    assert (await client.get("/info/mysite.com/visits")).json() == {
        "namespace": "mysite.com",
        "key": "visits",
        "value": 3,
        "update_lowerbound": 0,
        "update_upperbound": 1,
        "enable_reset": False,
    }
    assert (await client.get("/event/mysite.com:visits")).json()["total"] == 3
    assert (await client.get("/hit/visits")).json() == {"value": 1}
    assert (await client.get("/get/default/visits")).json() == {"value": 1}


async def test_countapi_answers_the_total_also_on_the_next_day(client: httpx.AsyncClient, clock: ChosenClock) -> None:
    await client.get("/hit/mysite.com/visits")
    clock.go_to("2026-03-29T01:00:00+00:00")
    assert (await client.get("/hit/mysite.com/visits")).json() == {"value": 2}
    assert (await client.get("/event/mysite.com:visits")).json()["count"] == 1


@pytest.mark.parametrize("path", ["/get/mysite.com/nothing", "/info/mysite.com/nothing", "/get/nothing"])
async def test_countapi_does_not_know_what_was_never_hit(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert (answer.status_code, answer.json()) == (404, {"value": None})
    assert (await client.get(f"{path}?callback=cb")).text == '/**/cb({"code":404,"value":null});'


async def test_countapi_answers_scripts_and_images(client: httpx.AsyncClient) -> None:
    script = await client.get("/hit/mysite.com/visits?callback=jQuery_1.cb")
    assert script.headers["content-type"].startswith("text/javascript")
    assert script.text == '/**/jQuery_1.cb({"code":200,"value":1});'
    image = await client.get("/hit/mysite.com/visits?img")
    assert (image.headers["content-type"], image.content[:6]) == ("image/gif", b"GIF89a")
    assert (await client.get("/get/mysite.com/visits")).json() == {"value": 2}


@pytest.mark.catches(
    "a script for our own pages",
    "app/http/routes/countapi.py",
    'request.headers.get("sec-fetch-site") != "same-origin"',
    "True",
)
async def test_no_script_is_made_for_a_page_of_our_own(client: httpx.AsyncClient) -> None:
    answer = await client.get("/hit/mysite.com/visits?callback=cb", headers={"Sec-Fetch-Site": "same-origin"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"


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
async def test_reserved_words_stand_for_the_page_that_asks(
    client: httpx.AsyncClient, path: str, headers: dict[str, str], counter: str
) -> None:
    encoded = {name: value.encode() for name, value in headers.items()}
    assert (await client.get(f"/hit/{path}", headers=encoded)).headers["x-path"] == counter


@pytest.mark.catches(
    "HEAD counts", "app/http/routes/countapi.py", '@app.get(f"/hit/{path}"', '@app.head(f"/hit/{path}"'
)
async def test_only_a_get_counts(client: httpx.AsyncClient) -> None:
    assert (await client.get("/hit/mysite.com/visits")).status_code == 200
    for method in ("HEAD", "POST", "OPTIONS"):
        assert (await client.request(method, "/hit/mysite.com/visits")).status_code == 405
    assert (await client.get("/get/mysite.com/visits")).json() == {"value": 1}


@pytest.mark.parametrize("client", [{"write_limit": "2/minute"}], indirect=True)
async def test_a_hit_that_is_over_the_limit_says_so_to_the_page(client: httpx.AsyncClient) -> None:
    answers = [await client.get("/hit/mysite.com/visits") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[-1].json()["counted"] == "no"
    assert answers[-1].headers["access-control-allow-origin"] == "*"
    assert (await client.get("/get/mysite.com/visits")).json() == {"value": 2}


@pytest.mark.parametrize("client", [{"countapi": False}], indirect=True)
async def test_countapis_routes_are_served_only_where_that_is_set(client: httpx.AsyncClient) -> None:
    assert (await client.get("/hit/mysite.com/visits")).status_code == 404
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert not [path for path in paths if path.startswith(("/hit", "/get", "/info"))]
    assert (await client.get("/events")).json() == {}


async def test_openapi_tells_what_these_routes_answer(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    badge = paths["/badge/{name}.svg"]["get"]
    assert list(badge["responses"]["200"]["content"]) == ["image/svg+xml"]
    assert {parameter["name"] for parameter in badge["parameters"]} == {"name", "label", "color", "value"}
    stream = paths["/stream"]["get"]
    assert list(stream["responses"]["200"]["content"]) == ["text/event-stream"]
    assert {parameter["name"] for parameter in stream["parameters"]} == {"event", "Last-Event-ID"}
    for path in ("/hit/{key}", "/hit/{ns}/{key}"):
        hit = paths[path]["get"]
        named = {parameter["name"]: parameter["in"] for parameter in hit["parameters"]}
        assert named == {word[1:-1]: "path" for word in path.split("/")[2:]} | {"callback": "query", "img": "query"}
    assert "404" in paths["/get/{ns}/{key}"]["get"]["responses"]


async def test_the_script_for_other_pages_is_small_and_may_be_loaded_by_any(client: httpx.AsyncClient) -> None:
    script = await client.get("/static/tally-1.js")
    assert "javascript" in script.headers["content-type"]
    assert script.headers["cross-origin-resource-policy"] == "cross-origin"
    assert script.headers["access-control-allow-origin"] == "*"
    assert len(gzip.compress((ROOT / "static/tally-1.js").read_bytes(), 9)) < 2048
