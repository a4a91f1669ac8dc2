"""What all routes have in common: methods, headers, metrics, pages and the OpenAPI document."""

import httpx
import pytest

from tests.http.problems import assert_problem


async def test_unknown_methods_get_405_with_the_allowed_ones(client: httpx.AsyncClient) -> None:
    assert_problem(await client.delete("/events"), 405, None)
    assert_problem(await client.post("/leaderboard"), 405, "no")


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
        "GET /event/{name}/series", "GET /series", "GET /history", "GET /history/{day}", "GET /health", "GET /metrics",
        "GET /badge/{name}.svg", "GET /event/{name}/shield.json", "GET /stream",
    }  # fmt: skip
    statuses = set(document["paths"]["/events"]["post"]["responses"])
    assert statuses == {"200", "202", "400", "401", "403", "413", "421", "422", "429", "503"}
    page = (await client.get("/docs")).text
    assert "http://" not in page
    assert "https://" not in page
    assert (await client.get("/docs/assets/swagger-ui-bundle.js")).status_code == 200


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
