"""The shortcut of a single hit past the router: whatever is asked, both ways give the same answer."""

import re
from pathlib import Path

import httpx
import pytest

from app import group_commit as recorder
from app.http.routes import count as ingest
from app.main import create_app
from app.stores.base import OutcomeUnknown, StoreUnavailable
from app.stores.memory import MemoryStore
from app.stores.results import ApplyResult
from tests.http.test_bad_input import AMOUNTS, BODIES, NAMES
from tests.support.redis_servers import RedisServer
from tests.support.servers import ChosenClock, settings_for

SEGMENTS = [*NAMES.values(), b"a", b"A%20b", b"%C3%A9", b"e%CC%81", b"%zz", b"a%2Fb", b"a/series", b"a?b=c", b"x" * 128]
HIT_BODIES = [b"", b" \n", b"{}", b'{"by":2}', *BODIES.values(), *(b'{"by":' + by + b"}" for by in AMOUNTS.values())]
KEYS = ["k", '"k"', "k", "", "a b", "x" * 256]


class FailingStore(MemoryStore):
    """A memory store that fails as it is told to."""

    failure: Exception | None = None

    async def apply(self, *arguments: object) -> ApplyResult:
        if self.failure:
            raise self.failure
        return await super().apply(*arguments)


async def answers(shortcut: str, clock: ChosenClock, monkeypatch: pytest.MonkeyPatch, settings: object) -> list[tuple]:
    """All that the table's requests are answered, one after the other, and what was counted of them."""
    monkeypatch.setattr(ingest, "_EVENT_PATH", re.compile(shortcut))
    monkeypatch.setattr("app.stores.MemoryStore", FailingStore)
    monkeypatch.setattr(FailingStore, "failure", None)
    app = create_app(settings, clock)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    seen: list[tuple] = []
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://tally") as client,
    ):

        async def ask(segment: bytes, method: str = "POST", **request: object) -> None:
            url = client.base_url.copy_with(raw_path=b"/event/" + segment)
            answer = await client.request(method, url, **request)
            headers = {
                **answer.headers,
                "retry-after": "retry-after" in answer.headers,
            }  # how long is the time's affair
            seen.append((segment, request, answer.status_code, headers, answer.content))

        for segment in SEGMENTS:
            await ask(segment)
            await ask(segment, headers={"Idempotency-Key": "k"})
            await ask(segment, "GET")
        for body in HIT_BODIES:
            await ask(b"a", content=body)
        for key in KEYS:
            await ask(b"keyed", headers={"Idempotency-Key": key})
        await ask(b"keyed", headers=[("Idempotency-Key", "k"), ("Idempotency-Key", "k")])
        await ask(b"keyed", headers={"Idempotency-Key": "k"}, content=b'{"by":9}')
        for method in ("GET", "HEAD", "PUT", "OPTIONS"):
            await ask(b"a", method)
        await client.post("/events", json={f"name {i}": 1 for i in range(30)})
        await ask(b"one-too-many")
        for failure in (StoreUnavailable("away"), OutcomeUnknown("cut"), RuntimeError("a bug")):
            monkeypatch.setattr(FailingStore, "failure", failure)
            await ask(b"a")
        monkeypatch.setattr(FailingStore, "failure", None)
        with monkeypatch.context() as overloaded:
            overloaded.setattr(recorder, "WAITING_EVENTS_MAX", 0)
            await ask(b"a")
        with monkeypatch.context() as broken:
            broken.delattr(recorder.GroupCommitter, "submit")
            await ask(b"a")
        for method in ["POST", "GET"] * 200:
            await ask(b"over-the-limit", method)
        for path in ("/events", "/metrics"):
            text = (await client.get(path)).text
            seen.append(tuple(line for line in text.splitlines() if not re.search("created|seconds|live", line)))
    return seen


@pytest.mark.catches(
    "other paths taken for a hit's",
    "app/http/routes/count.py",
    "_EVENT_PATH.fullmatch(scope",
    "_EVENT_PATH.match(scope",
)
@pytest.mark.catches("no headers on the shortcut", "app/main.py", "refuse, _HEADERS)", "refuse, [])")
async def test_both_ways_to_a_hit_give_the_same_answers(
    tmp_path: Path, redis_server: RedisServer, clock: ChosenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(
        "memory", tmp_path, redis_server, write_limit="250/hour", read_limit="100/hour", events_max=40
    )
    clock.go_to("2026-03-28T12:00:00+00:00")
    short = await answers(ingest._EVENT_PATH.pattern, clock, monkeypatch, settings)
    clock.go_to("2026-03-28T12:00:00+00:00")
    routed = await answers("no path", clock, monkeypatch, settings)
    for one, other in zip(short, routed, strict=True):
        assert one == other
    assert {seen[2] for seen in short[:-2]} == {200, 401, 404, 405, 413, 422, 429, 500, 503}
    assert all(seen[3]["x-content-type-options"] == "nosniff" for seen in short[:-2])
