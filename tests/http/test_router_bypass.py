"""The bypass of the router, for POST and GET of one event: it gives the same responses as the router."""

import re
from pathlib import Path

import pytest

from app import group_commit
from app.http import router_bypass
from app.stores.base import OutcomeUnknown, StoreUnavailable
from tests.http.bad_values import AMOUNTS, BODIES, NAMES
from tests.http.clients import asgi_client
from tests.support.failing_store import FailingStore
from tests.support.redis_servers import RedisServer
from tests.support.servers import SettableClock, settings_for

SEGMENTS = [*NAMES.values(), b"a", b"A%20b", b"%C3%A9", b"e%CC%81", b"%zz", b"a%2Fb", b"a/series", b"a?b=c", b"x" * 128]
HIT_BODIES = [b"", b" \n", b"{}", b'{"by":2}', *BODIES.values(), *(b'{"by":' + by + b"}" for by in AMOUNTS.values())]
KEYS = ["k", '"k"', "k", "", "a b", "x" * 256]


async def record_responses(
    path_pattern: str, clock: SettableClock, monkeypatch: pytest.MonkeyPatch, settings: object
) -> list[tuple]:
    """Send all requests of the tables, with this pattern of the bypass. Return the responses and the counts."""
    monkeypatch.setattr(router_bypass, "_EVENT_PATH", re.compile(path_pattern))
    monkeypatch.setattr("app.stores.MemoryStore", FailingStore)
    monkeypatch.setattr(FailingStore, "failure", None)
    recorded: list[tuple] = []
    async with asgi_client(settings, clock, raise_app_exceptions=False) as client:

        async def send(segment: bytes, method: str = "POST", **request: object) -> None:
            url = client.base_url.copy_with(raw_path=b"/event/" + segment)
            response = await client.request(method, url, **request)
            # The value of Retry-After depends on the time.
            headers = {**response.headers, "retry-after": "retry-after" in response.headers}
            content = re.sub(rb"retry after \d+ s", b"retry after N s", response.content)
            recorded.append((segment, request, response.status_code, headers, content))

        for segment in SEGMENTS:
            await send(segment)
            await send(segment, headers={"Idempotency-Key": "k"})
            await send(segment, "GET")
        for body in HIT_BODIES:
            await send(b"a", content=body)
        for key in KEYS:
            await send(b"keyed", headers={"Idempotency-Key": key})
        await send(b"keyed", headers=[("Idempotency-Key", "k"), ("Idempotency-Key", "k")])
        await send(b"keyed", headers={"Idempotency-Key": "k"}, content=b'{"by":9}')
        for method in ("GET", "HEAD", "PUT", "OPTIONS"):
            await send(b"a", method)
            await send(b"a", method, headers={"Idempotency-Key": "k"})
        await client.post("/events", json={f"name {i}": 1 for i in range(30)})
        await send(b"one-too-many")
        for failure in (StoreUnavailable("away"), OutcomeUnknown("cut"), RuntimeError("a bug")):
            monkeypatch.setattr(FailingStore, "failure", failure)
            await send(b"a")
        monkeypatch.setattr(FailingStore, "failure", None)
        with monkeypatch.context() as overloaded:
            overloaded.setattr(group_commit, "WAITING_WEIGHT_MAX", 0)
            await send(b"a")
        with monkeypatch.context() as broken:
            broken.delattr(group_commit.GroupCommitter, "submit")
            await send(b"a")
        counts = (await client.get("/events")).raise_for_status().json()
        for method in ["POST", "GET"] * 200:
            await send(b"over-the-limit", method)
        lines = (await client.get("/metrics")).text.splitlines()
        metrics = tuple(line for line in lines if not re.search("created|seconds|live", line))
        recorded += [(counts,), metrics]
    return recorded


@pytest.mark.fails_on_mutant(
    "the bypass matches longer paths",
    "app/http/router_bypass.py",
    "_EVENT_PATH.fullmatch(scope",
    "_EVENT_PATH.match(scope",
)
@pytest.mark.fails_on_mutant(
    "the bypass has only the CORS headers",
    "app/http/router_bypass.py",
    "headers = browser_headers(scope, self._origins)\n            self._permissions",
    "headers = self._origins.check_host_and_cors(dict(scope['headers']))\n            self._permissions",
)
async def test_the_bypass_and_the_router_give_the_same_responses(
    tmp_path: Path, redis_server: RedisServer, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(
        "memory", tmp_path, redis_server, write_limit="250/hour", read_limit="200/hour", events_max=40
    )
    clock.go_to("2026-03-28T12:00:00+00:00")
    fast = await record_responses(router_bypass._EVENT_PATH.pattern, clock, monkeypatch, settings)
    clock.go_to("2026-03-28T12:00:00+00:00")
    routed = await record_responses("no path", clock, monkeypatch, settings)
    for one, other in zip(fast, routed, strict=True):
        assert one == other
    assert {status for _, _, status, *_ in fast[:-2]} == {200, 401, 404, 405, 413, 422, 429, 500, 503}
    assert all(headers["x-content-type-options"] == "nosniff" for _, _, _, headers, _ in fast[:-2])
