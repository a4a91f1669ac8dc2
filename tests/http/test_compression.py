"""Compressed responses: large ones are compressed once, and streams, exports and backups are not."""

import gzip

import httpx
import pytest

from tests.support.servers import ADMIN_KEY

ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
APP = "app/http/middleware.py"


async def body(client: httpx.AsyncClient, url: str, **headers: str) -> tuple[str, bytes]:
    """Return the encoding of a response, and its body as it was sent."""
    async with client.stream("GET", url, headers={**ADMIN, **headers}) as response:
        assert response.status_code == 200
        return response.headers.get("content-encoding", ""), b"".join([part async for part in response.aiter_raw()])


@pytest.mark.fails_on_mutant(
    "an export is compressed in parts",
    APP,
    '("application/x-ndjson", "application/vnd.sqlite3")',
    '("application/vnd.sqlite3",)',
)
@pytest.mark.fails_on_mutant(
    "a backup is compressed", APP, '("application/x-ndjson", "application/vnd.sqlite3")', '("application/x-ndjson",)'
)
async def test_large_responses_are_compressed_for_clients_that_accept_it(client: httpx.AsyncClient) -> None:
    assert await body(client, "/events") == ("", b"{}")
    await client.post("/events", json={f"event {i}": i + 1 for i in range(9000)})
    plain, large = await body(client, "/events", **{"Accept-Encoding": "identity"})
    encoding, compressed = await body(client, "/events", **{"Accept-Encoding": "br, gzip"})
    assert (plain, encoding) == ("", "gzip")
    assert gzip.decompress(compressed) == large
    assert len(compressed) < len(large) / 2
    for url in ("/export", "/backup"):
        encoding, sent = await body(client, url, **{"Accept-Encoding": "gzip"})
        assert encoding == "", url
        assert len(sent) > len(large), url
    head = await client.head("/events", headers={"Accept-Encoding": "gzip"})
    assert (head.content, head.headers["content-encoding"]) == (b"", "gzip")
    assert "Accept-Encoding" in head.headers["vary"]
