"""TALLY_ROOT_PATH: Tally's own links begin with it, and requests are served with and without it."""

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from html import unescape

import httpx
import pytest
import socketio
from pydantic import ValidationError

from app.http.fast_path import FastPath
from app.main import create_app
from app.settings import Settings
from tests.http.problems import detail_of
from tests.support.servers import RunningApp

APP, ERRORS, FAST_PATH = "app/http/app.py", "app/http/errors.py", "app/http/fast_path.py"
PREFIXES = ["", "/tally"]
ROUTES = ["/", "/kiosk", "/docs", "/docs/errors", "/embed/a", "/static/app.css", "/docs/assets/swagger-ui.css"]
ROUTES += [
    "/openapi.json",
    "/event/a",
    "/events",
    "/event/a/series",
    "/user/u/1",
    "/badge/a.svg",
    "/health",
    "/metrics",
]


@pytest.fixture
async def tally(serve: Callable[..., AbstractAsyncContextManager[RunningApp]]) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server with the root path /tally."""
    async with serve(root_path="/tally", allowed_hosts="127.0.0.1", admin_keys="a" * 16) as app, app.client() as client:
        yield client


@pytest.mark.fails_on_mutant("the prefix is not removed", APP, "scope = self._without_prefix(scope)", "pass")
@pytest.mark.fails_on_mutant(
    "the raw path keeps the prefix", APP, 'scope["raw_path"][len(prefix) :]', 'scope["raw_path"]'
)
@pytest.mark.fails_on_mutant("only requests with the prefix are served", APP, 'startswith(b"%b/"', 'endswith(b"%b/"')
async def test_requests_are_served_with_and_without_the_root_path(tally: httpx.AsyncClient) -> None:
    await tally.post("/event/a", json={"user": "u/1"})
    for route in ROUTES:
        plain, prefixed = [await tally.get(prefix + route) for prefix in PREFIXES]
        assert (plain.status_code, prefixed.status_code) == (200, 200), route
        assert prefixed.headers.keys() == plain.headers.keys(), route
        assert route in {"/health", "/metrics"} or prefixed.content == plain.content, route
    for prefix in PREFIXES:
        assert (await tally.put(f"{prefix}/event/a", json={"count": 9})).status_code == 401
        page = await tally.get(f"{prefix}/static/tally-1.js")
        assert page.headers["access-control-allow-origin"] == "*"


@pytest.mark.fails_on_mutant("a longer path takes the fast path", FAST_PATH, 'b"(%b)?%b"', 'b"(%b.?)?%b"')
async def test_another_path_with_the_same_beginning_is_not_found(tally: httpx.AsyncClient) -> None:
    others = ["/tallyx", "/tallyx/events", "/tallyx/event/a", "/x/tally/events", "/%74ally/events", "/tally//events"]
    for path in others:
        detail_of(await tally.get(path), 404)
        detail_of(await tally.post(path), 404)


@pytest.mark.fails_on_mutant("the fast path needs the prefix", FAST_PATH, 'b"(%b)?%b"', 'b"(%b)%b"')
@pytest.mark.fails_on_mutant("hits with the prefix are slow", FAST_PATH, 'b"(%b)?%b"', 'b"(%b){0}%b"')
@pytest.mark.fails_on_mutant("the name is in another segment", FAST_PATH, 'url[url.rindex(b"/event/") :]', "url")
async def test_hits_take_the_fast_path_with_and_without_the_root_path(
    tally: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls: list[bytes] = []
    count = FastPath.count

    def record(self: FastPath, head: object, url: bytes, *arguments: object) -> None:
        urls.append(url)
        count(self, head, url, *arguments)

    monkeypatch.setattr(FastPath, "count", record)
    paths = [f"{prefix}/event/{name}" for name in ("a", "event", "tally") for prefix in PREFIXES]
    assert [(await tally.post(path)).json()["count"] for path in paths] == [1, 2] * 3
    assert urls == [path.encode() for path in paths]
    assert (await tally.get("/tally/events")).json() == {"a": 2, "event": 2, "tally": 2}


ERROR_PAGES = [
    (401, "/embed/a", "127.0.0.1", "send the header Authorization: Bearer <key>"),
    (404, "/nothing/at/all", "127.0.0.1", "there is no such route or file"),
    (404, "/share/unknown", "127.0.0.1", "ask for a new one"),
    (421, "/", "<script>.example", 'the host "<script>.example" is not allowed'),
]


@pytest.mark.fails_on_mutant("a person reads JSON", ERRORS, "return is_get and", "return False and")
@pytest.mark.fails_on_mutant("only wrong addresses have pages", ERRORS, "or _PAGES.fullmatch(", "or not _PAGES.search(")
@pytest.mark.fails_on_mutant("a program reads HTML", ERRORS, 'and "text/html" in', 'and "" in')
@pytest.mark.fails_on_mutant("markup in a detail", "app/http/problem_page.py", "escape(detail)", "detail")
async def test_errors_of_pages_are_pages_that_lead_to_the_dashboard(serve) -> None:
    keys = {"read_keys": "r" * 16, "admin_keys": "a" * 16}
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    async with serve(root_path="/tally", allowed_hosts="127.0.0.1", **keys) as app, app.client() as client:
        for status, path, host, detail in ERROR_PAGES:
            for prefix in PREFIXES:
                problem = await client.get(prefix + path, headers={"Host": host})
                assert detail in detail_of(problem, status)
                page = await client.get(prefix + path, headers={"Host": host, **browser})
                assert (page.status_code, page.headers["Content-Type"]) == (status, "text/html; charset=utf-8")
                assert problem.headers.keys() <= page.headers.keys()
                assert detail in unescape(page.text)
                assert "<script" not in page.text
                (dashboard,) = re.findall('<a href="(.*?)">Open the dashboard', page.text)
                assert client.base_url.join(prefix + path).join(dashboard).path == f"{prefix}/"
        detail_of(await client.post("/nothing", headers=browser), 404)
        detail_of(await client.get("/events", headers=browser), 401)


@pytest.mark.fails_on_mutant("a problem has no prefix", ERRORS, "root_path + kind.type", "kind.type")
async def test_the_type_of_a_problem_is_a_page_under_the_root_path(tally: httpx.AsyncClient) -> None:
    requests = [("POST", "/event/%00"), ("POST", "/nothing"), ("GET", "/event/%00"), ("GET", "/nothing"), ("PUT", "/")]
    for prefix in PREFIXES:
        for method, path in requests:
            problem = (await tally.request(method, prefix + path)).json()
            assert problem["type"] == f"/tally/docs/errors#{problem['code']}", path
            assert f'id="{problem["code"]}"' in (await tally.get(problem["type"])).text
    wrong_host = await tally.get("/tally/events", headers={"Host": "evil.example"})
    assert wrong_host.json()["type"] == "/tally/docs/errors#host-not-allowed"


@pytest.mark.fails_on_mutant(
    "a link has no prefix", "app/http/routes/counts.py", "f'<{root_path}/events?{urlencode", "f'</events?{urlencode"
)
async def test_the_next_page_is_under_the_root_path(tally: httpx.AsyncClient) -> None:
    await tally.post("/events", json={"a": 1, "b": 2})
    for prefix in PREFIXES:
        first = await tally.get(f"{prefix}/events?limit=1")
        (url,) = re.findall(r'<(/tally/events\?.*)>; rel="next"', first.headers["Link"])
        assert (await tally.get(url)).json() == {"b": 2}


@pytest.mark.fails_on_mutant("the prefix itself is removed", APP, 'startswith(b"%b/"', 'startswith(b"%b"')
@pytest.mark.fails_on_mutant(
    "the dashboard has no address without a slash", "app/http/app.py", "    app.redirect_prefix()\n", ""
)
async def test_the_root_path_redirects_to_the_dashboard_only(tally: httpx.AsyncClient) -> None:
    """The links of the dashboard are relative, so its address must end with a slash."""
    for method in ("GET", "HEAD"):
        response = await tally.request(method, "/tally")
        assert (response.status_code, response.headers["Location"]) == (307, "/tally/")
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert (await tally.post("/tally")).json()["counted"] == "no"
    detail_of(await tally.get("/tally/kiosk/"), 404)


@pytest.mark.fails_on_mutant("the server of the document is the host", APP, '{"url": "."}', '{"url": "/"}')
async def test_the_openapi_document_is_relative_to_its_own_url(tally: httpx.AsyncClient) -> None:
    for prefix in PREFIXES:
        url = httpx.URL(f"http://tally.example{prefix}/openapi.json")
        (server,) = (await tally.get(url.path)).json()["servers"]
        assert url.join(server["url"]) == f"http://tally.example{prefix}/"


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_a_websocket_works_with_and_without_the_root_path(tally: httpx.AsyncClient, prefix: str) -> None:
    client = socketio.AsyncSimpleClient()
    path = f"{prefix}/socket.io"
    await client.connect(str(tally.base_url), socketio_path=path, transports=["websocket"], namespace="/live")
    try:
        received = await client.receive(timeout=20)
    finally:
        await client.disconnect()
    assert received[0] in {"snapshot", "state"}


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_polling_works_with_and_without_the_root_path(tally: httpx.AsyncClient, prefix: str) -> None:
    url = f"{prefix}/socket.io/?EIO=4&transport=polling"
    opened = (await tally.get(url)).text
    assert opened.startswith("0{")
    url += f"&sid={json.loads(opened[1:])['sid']}"
    assert (await tally.post(url, content="40/live,")).text == "OK"
    received = (await tally.get(url)).text
    while "42/live," not in received:
        received += (await tally.get(url)).text
    assert '["snapshot",' in received or '["state",' in received


INVALID = ["tally", "/", "/tally/", "//", "/a//b", "/a b", "/a?b", "/é", "/%41", "/..", "/a/./b", "/a\n"]


@pytest.mark.fails_on_mutant("any text is accepted", "app/settings.py", "pattern=ROOT_PATH, ", "")
@pytest.mark.parametrize("path", INVALID)
def test_an_invalid_root_path_is_rejected(path: str) -> None:
    with pytest.raises(ValidationError, match="root_path"):
        Settings(root_path=path)


@pytest.mark.parametrize("path", ["", "/tally", "/numbers/tally-2.1_x"])
def test_a_valid_root_path_is_accepted(path: str) -> None:
    assert create_app(Settings(TALLY_STORE="memory://", root_path=path)).prefix == path


@pytest.mark.fails_on_mutant("paths are ambiguous", APP, "if first in {", "if False and first in {")
@pytest.mark.parametrize("path", ["/event", "/events/tally", "/socket.io", "/openapi.json", "/hit"])
def test_a_root_path_that_begins_like_a_route_is_rejected(path: str) -> None:
    with pytest.raises(ValueError, match=r"TALLY_ROOT_PATH: /.* choose another one"):
        create_app(Settings(TALLY_STORE="memory://", root_path=path))
