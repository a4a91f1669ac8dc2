"""The files of the dashboard are compressed once, and kept by browsers for as long as they do not change."""

import gzip
import posixpath
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import httpx
import pytest

from tests.http.problems import detail_of
from tests.support.servers import ROOT, RunningApp

FILES = "app/http/static_files.py"
STYLE = (ROOT / "static/app.css").read_bytes()


@pytest.fixture
async def tally(serve: Callable[..., AbstractAsyncContextManager[RunningApp]]) -> AsyncIterator[httpx.AsyncClient]:
    async with serve() as app, app.client() as client:
        client.headers["Accept-Encoding"] = "identity"
        yield client


@pytest.mark.fails_on_mutant("nothing is compressed", FILES, 'if content.compressed and "gzip" in', 'if "zip2" in')
@pytest.mark.fails_on_mutant("caches mix both forms", FILES, '{"Vary": "Accept-Encoding"} if', "{} if")
async def test_pages_and_files_are_compressed_for_clients_that_accept_it(tally: httpx.AsyncClient) -> None:
    for path in ("/", "/kiosk", "/docs", "/docs/errors", "/static/app.css", "/docs/assets/swagger-ui-bundle.js"):
        plain = await tally.get(path)
        async with tally.stream("GET", path, headers={"Accept-Encoding": "gzip, br"}) as response:
            compressed = b"".join([part async for part in response.aiter_raw()])
        assert response.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(compressed) == plain.content
        assert len(compressed) < len(plain.content) * 0.6
        assert "Content-Encoding" not in plain.headers
        assert plain.headers["Vary"] == response.headers["Vary"] == "Accept-Encoding"
        assert plain.headers["Content-Length"] == str(len(plain.content))


@pytest.mark.fails_on_mutant("imports of imports", FILES, "in found: ", "in [module]: ")
async def test_a_page_preloads_each_module_that_its_script_imports(tally: httpx.AsyncClient) -> None:
    for path, script, other in (("/", "main.js", "data/series.js"), ("/kiosk", "kiosk.js", "data/series.js")):
        html = (await tally.get(path)).text
        preloaded = re.findall(r'<link rel="modulepreload" fetchpriority="low" href="(static/[^"]+)">', html)
        assert any(name.endswith(other) for name in preloaded)
        assert len(set(preloaded)) == len(preloaded)
        for name in [*preloaded, *re.findall(r'src="(static/[^"]+/' + script + ')"', html)]:
            imports = re.findall(r'^import [^"]*"([^"]+)"', (await tally.get(f"/{name}")).text, re.MULTILINE)
            assert {posixpath.normpath(f"{posixpath.dirname(name)}/{target}") for target in imports} <= set(preloaded)


@pytest.mark.fails_on_mutant("files are requested again", FILES, "_IMMUTABLE} if", "'no-cache'} if")
@pytest.mark.fails_on_mutant(
    "another version is kept for a year", FILES, 'name.startswith(f"{self.version}/")', 'name.startswith("v-")'
)
async def test_versioned_files_are_kept_and_others_revalidated(tally: httpx.AsyncClient) -> None:
    (style,) = re.findall(r'href="(static/v-[0-9a-f]{8}/app\.css)"', (await tally.get("/")).text)
    for path, cached in (
        (f"/{style}", "public, max-age=31536000, immutable"),
        ("/static/app.css", "no-cache"),
        ("/static/v-00000000/app.css", "no-cache"),  # of a node that was updated earlier or later
    ):
        response = await tally.get(path)
        assert (response.status_code, response.content) == (200, STYLE)
        assert response.headers["Cache-Control"] == cached, path
        assert response.headers["Content-Type"] == "text/css; charset=utf-8"
        again = await tally.get(path, headers={"If-None-Match": response.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
        head = await tally.head(path)
        assert (head.headers["Content-Length"], head.content) == (str(len(STYLE)), b"")


async def test_only_files_are_served(tally: httpx.AsyncClient) -> None:
    for path in (
        "",
        "/",
        "/js",
        "/nothing",
        "/../pyproject.toml",
        "/%2e%2e/pyproject.toml",
        "/v-00000000/",
        "/v-0/app.css",
    ):
        detail_of(await tally.get(f"/static{path}"), 404)
    rejected = await tally.post("/static/app.css")
    assert detail_of(rejected, 405) == "this route does not allow POST; it allows GET, HEAD"
    assert rejected.headers["Allow"] == "GET, HEAD"
