"""What all routes have in common: methods, headers, metrics, pages and the OpenAPI document."""

import asyncio
import json
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import httpx
import pytest
from fastapi.routing import APIRoute

from tests.http.problems import assert_problem
from tests.support.servers import ADMIN_KEY, AS_ADMIN, RunningApp, eventually


async def test_unknown_methods_get_405_with_the_allowed_ones(client: httpx.AsyncClient) -> None:
    assert_problem(await client.delete("/events"), 405, None)
    assert_problem(await client.post("/leaderboard"), 405, "no")


HEAD_PATHS = [
    "/", "/kiosk", "/docs", "/docs/errors", "/embed/a", "/static/app.css", "/docs/assets/swagger-ui.css",
    "/openapi.json", "/event/a", "/events", "/leaderboard", "/event/a/series", "/series", "/event/a/audience",
    "/audience", "/user/u", "/session/s", "/history", "/health", "/metrics", "/badge/a.svg",
    "/event/a/shield.json", "/export", "/get/a/b", "/info/abc/abc", "/stats", "/healthcheck", "/nothing",
    "/history/2026-99-99", "/events?limit=0", "/event/%00", "/reset",
]  # fmt: skip


@pytest.mark.fails_on_mutant(
    "HEAD is not accepted", "app/http/middleware.py", 'or scope["method"] != "HEAD" or', "or True or"
)
async def test_head_is_get_without_a_body(serve) -> None:
    async with serve(admin_keys=ADMIN_KEY, countapi=True) as tally, tally.client() as client:
        client.headers.update(AS_ADMIN)
        await client.post("/event/a", json={"user": "u", "session": "s"})
        varying = {"date", "etag", "last-modified"}
        for path in HEAD_PATHS:
            get, head = await client.get(path), await client.head(path)
            assert head.content == b"", path
            assert head.status_code == get.status_code, path
            assert head.headers.keys() - varying == get.headers.keys() - varying - {"transfer-encoding"}, path
        for path in (
            "/hit/site/page",
            "/update/site/page?amount=1",
            "/socket.io/?EIO=4&transport=polling",
        ):  # a GET has an effect
            assert (await client.head(path)).status_code in {400, 405}
        assert (await client.get("/events")).json() == {"a": 1}


@pytest.mark.fails_on_mutant(
    "a stream goes on after its head",
    "app/http/middleware.py",
    "            await head_sent.wait()\n",
    "            await asyncio.Event().wait()\n",
)
async def test_head_ends_a_stream(serve) -> None:
    async with serve() as tally, tally.client() as client:
        for path in ("/stream", "/embed/a/stream"):
            head = await asyncio.wait_for(client.head(path), 20)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-type"].startswith("text/event-stream")
        await eventually(lambda: not tally.app.state.broadcaster.clients)


@pytest.mark.fails_on_mutant(
    "a slash is redirected", "app/http/app.py", "redirect_slashes=False", "redirect_slashes=True"
)
async def test_no_route_redirects(serve: Callable[..., AbstractAsyncContextManager[RunningApp]]) -> None:
    """A client would drop the body of a redirected POST, or not follow it and take the hit as counted."""
    async with serve(countapi=True) as tally, tally.client() as client:
        for route in tally.app.routes:
            path = re.sub(r"{\w+(:path)?}", "abc", route.path)
            for method in sorted(getattr(route, "methods", None) or {"GET", "POST"}):
                for variant in (path, f"{path}/", f"{path}//", path.rstrip("/") or "/"):
                    if "stream" in path and variant == path:
                        continue  # it does not end
                    response = await client.request(method, variant)
                    assert not 300 <= response.status_code < 400, (method, variant)
                    if variant.endswith("/") and method == "POST" and isinstance(route, APIRoute):
                        assert_problem(response, 404, "no")


async def test_pages_and_errors_have_security_headers(client: httpx.AsyncClient) -> None:
    for path in ("/", "/docs", "/static/app.css", "/events", "/nothing"):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]


async def test_openapi_lists_all_routes_and_the_docs_work_offline(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    operations = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    assert operations == {
        "POST /event/{name}", "GET /event/{name}", "POST /events", "GET /events", "GET /leaderboard",
        "GET /event/{name}/audience", "GET /audience", "GET /user/{id}", "GET /session/{id}", "PUT /event/{name}",
        "DELETE /event/{name}", "POST /reset", "DELETE /user/{id}", "GET /export", "POST /import",
        "GET /event/{name}/series", "GET /series", "GET /movers", "GET /history", "GET /history/{day}", "GET /health",
        "GET /health/live", "GET /health/ready", "GET /metrics", "GET /badge/{name}.svg",
        "GET /event/{name}/shield.json", "GET /stream",
        "GET /metrics/events", "GET /backup", "GET /permissions",
        "GET /alerts", "POST /alerts", "GET /alerts/{id}", "PUT /alerts/{id}", "DELETE /alerts/{id}",
        "POST /alerts/{id}/test",
        "GET /goals", "PUT /goals/{name}", "DELETE /goals/{name}",
        "GET /notes", "POST /notes", "DELETE /notes/{id}",
        "GET /shares", "POST /shares", "DELETE /shares/{id}", "GET /share/{token}/counts",
    }  # fmt: skip
    statuses = set(document["paths"]["/events"]["post"]["responses"])
    assert statuses == {"200", "202", "400", "401", "403", "413", "415", "421", "422", "429", "503"}
    page = (await client.get("/docs")).text
    assert "http://" not in page
    assert "https://" not in page
    assert (await client.get("/docs/assets/swagger-ui-bundle.js")).status_code == 200


async def test_each_route_has_a_group_and_each_example_is_accepted(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    operations = [
        (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    groups = [tag["name"] for tag in document["tags"]]
    assert {*groups} == {group for *_, operation in operations for group in operation["tags"]}
    assert groups[:2] == ["Count", "Read"]
    for method, path, operation in operations:
        for media_type, body in operation.get("requestBody", {"content": {}})["content"].items():
            if "schema" in body:
                example = body["example"] if isinstance(body["example"], str) else json.dumps(body["example"])
                headers = {**AS_ADMIN, "Content-Type": media_type}
                response = await client.request(method, re.sub("{.*}", "a", path), content=example, headers=headers)
                assert response.is_success or "no alert" in response.json()["detail"], (method, path, response.text)


async def test_metrics_count_hits_and_do_not_name_events(client: httpx.AsyncClient) -> None:
    await client.post("/event/secret-name", json={"by": 5})
    await client.post("/event/secret-name", json={"by": 0})
    text = (await client.get("/metrics")).text
    for line in ("tally_hits_total 5.0", 'tally_posts_total{outcome="accepted"} 1.0', "tally_commits_total 1.0"):
        assert line in text
    assert 'tally_posts_total{outcome="refused"} 1.0' in text
    assert "tally_spool_bytes 0.0" in text
    assert "secret-name" not in text


@pytest.mark.fails_on_mutant(
    "ranges are supported", "app/http/middleware.py", 'if header[0] != b"range"', "if header[0]"
)
@pytest.mark.parametrize("part", ["bytes=0-3", "bytes=5-1", "bytes=99999999-", "lines=1"])
async def test_ranges_are_not_supported(empty_app: httpx.AsyncClient, part: str) -> None:
    for path in ("/", "/static/app.css"):
        whole = await empty_app.get(path)
        response = await empty_app.get(path, headers={"Range": part})
        assert (response.status_code, response.content) == (200, whole.content)
