"""Badges, shields, and what pages of other origins may load."""

import gzip
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.http.routes.badges import abbreviated
from app.main import create_app
from tests.support.redis_servers import RedisServer
from tests.support.servers import AS_ADMIN, ROOT, SettableClock, settings_for

SVG = "{http://www.w3.org/2000/svg}"
NAMES = ["signup", "a b+c%", "releases.svg", "<b>&\"'", "ورود کاربر", "👩‍💻", "x" * 128, "mysite.com:visits", "..."]


@pytest.fixture
def client_settings() -> dict[str, object]:
    return {"countapi": True}


def texts_of(svg: str) -> tuple[str, list[str]]:
    """Return the text of a badge for screen readers, and the texts that it shows."""
    root = ET.fromstring(svg)  # noqa: S314 # Tally made it
    return root.findtext(f"{SVG}title"), [text.text for text in root.iter(f"{SVG}text")]


async def test_a_badge_shows_the_total_or_todays_count(client: httpx.AsyncClient, clock: SettableClock) -> None:
    await client.post("/event/signup", json={"by": 1200})
    clock.go_to("2026-03-29T01:00:00+00:00")
    await client.post("/event/signup", json={"by": 34})
    badge = await client.get("/badge/signup.svg")
    assert badge.headers["content-type"] == "image/svg+xml"
    assert texts_of(badge.text) == ("signup: 1,234", ["signup", "1.2k"])
    today = await client.get("/badge/signup.svg", params={"value": "count", "label": "Sign-ups & co", "color": "fd0"})
    assert texts_of(today.text) == ("Sign-ups & co: 34 today", ["Sign-ups & co", "34 today"])
    assert 'fill="#ffdd00"' in today.text
    assert texts_of((await client.get("/badge/signup.svg?label=")).text)[1] == ["1.2k"]
    await client.post("/reset", headers=AS_ADMIN)
    assert texts_of((await client.get("/badge/signup.svg?value=count")).text)[1] == ["signup", "0 today"]
    assert texts_of((await client.get("/badge/signup.svg")).text)[1] == ["signup", "1.2k"]


@pytest.mark.fails_on_mutant(
    "'.svg' removed from a name twice",
    "app/http/parsing.py",
    ".removesuffix(suffix)",
    '.removesuffix(suffix).removesuffix(b".svg")',
)
@pytest.mark.fails_on_mutant(
    "the text of a badge is not escaped", "app/http/routes/badges.py", ">{escape(text)}</text>", ">{text}</text>"
)
async def test_any_name_has_a_badge_and_a_shield(client: httpx.AsyncClient) -> None:
    for name in NAMES:
        await client.post("/events", json=[{"event": name, "by": 7}])
        path = quote(name, safe="")
        for suffix in (".svg", "%2Esvg"):
            assert texts_of((await client.get(f"/badge/{path}{suffix}")).text) == (f"{name}: 7", [name, "7"])
        shield = (await client.get(f"/event/{path}/shield.json?color=red")).json()
        expected = {"schemaVersion": 1, "label": name, "message": "7", "color": "c9372c", "cacheSeconds": 300}
        assert shield == expected
        assert (await client.get(f"/embed/{path}")).status_code == 200


async def test_an_unknown_event_is_0_and_reading_creates_no_event(client: httpx.AsyncClient) -> None:
    assert texts_of((await client.get("/badge/nothing.svg")).text)[1] == ["nothing", "0"]
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
        "/get/a%2Fb/key",
        "/hit/mysite.com/visits?callback=alert(1)//",
        "/hit/mysite.com/visits?callback=",
    ],
)
async def test_bad_input_is_rejected_and_not_counted(empty_app: httpx.AsyncClient, path: str) -> None:
    response = await empty_app.get(path)
    assert response.status_code in {400, 404, 422}
    assert response.headers["content-type"] == "application/problem+json"
    assert ("counted" in response.json()) is path.startswith("/hit/")


@pytest.mark.fails_on_mutant(
    "the ETag of a badge does not change", "app/http/routes/badges.py", "blake2b(svg,", "blake2b(svg[:9],"
)
@pytest.mark.fails_on_mutant(
    "a list of ETags is not searched", "app/http/routes/badges.py", "fresh = etag in", "fresh = etag == "
)
async def test_a_badge_has_an_etag_of_its_content(client: httpx.AsyncClient) -> None:
    first = await client.get("/badge/a.svg")
    assert first.headers["cache-control"] == "max-age=5, must-revalidate"
    for known in (first.headers["etag"], f'"x", W/{first.headers["etag"]}'):
        unchanged = await client.get("/badge/a.svg", headers={"If-None-Match": known})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert unchanged.headers["etag"] == first.headers["etag"]
    await client.post("/event/a")
    changed = await client.get("/badge/a.svg", headers={"If-None-Match": first.headers["etag"]})
    assert (changed.status_code, texts_of(changed.text)[1]) == (200, ["a", "1"])


@pytest.mark.fails_on_mutant(
    "the general policy on a badge", "app/http/middleware.py", "if n not in own or", "if True or"
)
async def test_a_badge_is_sandboxed_and_pages_of_any_origin_may_use_it(client: httpx.AsyncClient) -> None:
    for response in (await client.get("/badge/a.svg"), await client.get("/badge/a.svg?color=x")):
        assert response.headers["cross-origin-resource-policy"] == "cross-origin"
        assert response.headers["access-control-allow-origin"] == "*"
        assert response.headers["x-content-type-options"] == "nosniff"
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
def test_numbers_are_abbreviated_as_in_shields(number: int, text: str) -> None:
    assert abbreviated(number) == text


@given(st.integers(0, 2**53 - 1))
def test_an_abbreviated_number_is_short_and_close(number: int) -> None:
    text = abbreviated(number)
    assert len(text) <= 4
    digits = text.rstrip("kMGTP")
    value = float(digits) * 1000 ** " kMGTP".index(text[len(digits) :] or " ")
    assert abs(value - number) <= 0.05 * number


async def test_only_configured_origins_may_embed(tmp_path: Path, redis_server: RedisServer) -> None:
    origins = "https://shop.example,https://blog.example"
    for chosen, ancestors in (("", "'self'"), (origins, "'self' " + origins.replace(",", " "))):
        app = create_app(settings_for("memory", tmp_path, redis_server, embed_origins=chosen))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
            page = await client.get("/embed/signup")
            (policy,) = page.headers.get_list("content-security-policy")
            assert policy.split("; ")[0] == "default-src 'none'"
            assert f"frame-ancestors {ancestors};" in policy
            # It cannot have a list of origins, and would forbid all of them.
            assert "x-frame-options" not in page.headers
            assert "frame-ancestors 'none';" in (await client.get("/")).headers["content-security-policy"]
            assert ("frames" in (await client.get("/health")).json()["open"]) == bool(chosen)


async def test_openapi_describes_badges_streams_and_countapi(client: httpx.AsyncClient) -> None:
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


async def test_the_script_for_other_pages_is_small_and_any_page_may_load_it(client: httpx.AsyncClient) -> None:
    script = await client.get("/static/tally-1.js")
    assert "javascript" in script.headers["content-type"]
    assert script.headers["cross-origin-resource-policy"] == "cross-origin"
    assert script.headers["access-control-allow-origin"] == "*"
    assert len(gzip.compress((ROOT / "static/tally-1.js").read_bytes(), 9)) < 2048
