"""Bad input over every route, on a real socket: a 4xx problem that says why, never a 5xx, and the store unchanged."""

import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from conftest import RedisServer, Served, eventually, serving, settings_for

NAMES = {
    "empty": b"",
    "129 characters": b"x" * 129,
    "10,000 characters": b"x" * 10_000,
    "NUL": b"%00",
    "CR LF": b"a%0d%0ab",
    "no UTF-8": b"%ff",
    "overlong UTF-8": b"%c0%af",
    "a surrogate": b"%ed%a0%80",
    "a dot": b"%2e",
    "two dots": b"%2e%2e",
    "a slash": b"a%2fb",
    "a bidi control": b"%e2%80%ae",
    "a line separator": b"a%e2%80%a8b",
    "a private character": b"%ee%80%80",
    "a space before": b"%20a",
}
AMOUNTS = {
    "NaN": b"NaN",
    "Infinity": b"Infinity",
    "1e400": b"1e400",
    "2^63": b"9223372036854775808",
    "5,000 digits": b"9" * 5000,
    "over": b"1000001",
    "zero": b"0",
    "negative": b"-1",
    "a fraction": b"1.5",
    "true": b"true",
    "null": b"null",
    "a string": b'"5"',
    "a list": b"[1]",
    "deep": b"[" * 100_000,
}
BODIES = {
    "invalid UTF-8": b'{"by": "\xff"}',
    "UTF-16": '{"event":"a"}'.encode("utf-16"),
    "truncated": b'{"by": 1',
    "unknown fields": b'{"event": "a", "x": 1}',
    "a user with a space": b'{"event":"a","user":"u "}',
    "a session that is a number": b'{"event":"a","session":7}',
    "a lone surrogate": b'{"event":"\\ud800"}',
    "deep objects": b'{"a":' * 100_000,
    "5 MiB": b"[" + b" " * 5 * 2**20 + b"]",
}


@pytest.fixture(params=["sqlite", "redis"])
async def tally(request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer) -> AsyncIterator[Served]:
    async with serving(settings_for(request.param, tmp_path, redis_server)) as served, served.client() as client:
        await client.post("/event/known", json={"by": 7})
        yield served
        assert (await client.get("/events")).json() == {"known": 7}
        assert (await client.get("/leaderboard?window=total")).json() == [{"rank": 1, "eventName": "known", "count": 7}]


def assert_refused(answer: httpx.Response, *, counted: str | None) -> None:
    assert 400 <= answer.status_code < 500, answer.text
    problem = answer.json()
    assert problem["status"] == answer.status_code
    assert problem["detail"]
    assert problem.get("counted") == counted


@pytest.mark.parametrize("name", NAMES)
async def test_a_bad_name(tally: Served, name: str) -> None:
    segment = NAMES[name]
    async with tally.client() as client:
        for path in (b"/event/" + segment, b"/event/" + segment + b"/series"):
            url = httpx.URL(tally.url).copy_with(raw_path=path)
            assert_refused(await client.get(url), counted=None)
            assert_refused(await client.post(url), counted="no")
        if segment not in {b"%ed%a0%80", b"%ff", b"%c0%af"}:  # in a query these are three U+FFFD, which is a name
            query = httpx.URL(tally.url).copy_with(raw_path=b"/series?event=known&event=" + segment)
            assert_refused(await client.get(query), counted=None)


@pytest.mark.parametrize("amount", AMOUNTS)
async def test_a_bad_amount(tally: Served, amount: str) -> None:
    by = AMOUNTS[amount]
    async with tally.client() as client:
        assert_refused(await client.post("/event/known", content=b'{"by": ' + by + b"}"), counted="no")
        for body in (b'{"known": ' + by + b"}", b'[{"event":"known"},{"event":"known","by":' + by + b"}]"):
            assert_refused(await client.post("/events", content=body), counted="no")
        ndjson = b'{"event":"known"}\n{"event":"known","by":' + by + b"}\n"
        answer = await client.post("/events", content=ndjson)
        assert_refused(answer, counted="no")
        assert "item 1" in answer.json()["detail"]


@pytest.mark.parametrize("body", BODIES)
async def test_a_bad_body(tally: Served, body: str) -> None:
    async with tally.client() as client:
        for path in ("/event/known", "/events"):
            assert_refused(await client.post(path, content=BODIES[body]), counted="no")


async def test_a_client_that_goes_away_in_the_middle_of_its_body(
    tally: Served, caplog: pytest.LogCaptureFixture
) -> None:
    host, port = tally.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(b"POST /event/known HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    async with tally.client() as client:

        async def refused() -> bool:
            return 'tally_posts_total{outcome="refused"} 1.0' in (await client.get("/metrics")).text

        await eventually(refused)
    assert "Traceback" not in caplog.text
