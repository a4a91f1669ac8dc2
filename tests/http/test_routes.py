"""The HTTP contract: forms of a batch, what is refused and how, reads, and OpenAPI."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.domain.calendar import Calendar, Clock
from app.domain.names import event_name, visitor_id
from app.export_import import STEPS as STEPS_KNOWN
from app.export_import import TransferError, pieces
from app.http.errors import Problem
from app.http.routes import counts as query
from app.http.routes.count import fold_names, fold_visits, parse_batch
from app.main import create_app
from app.stores import sqlite
from tests.support.redis_servers import RedisServer
from tests.support.servers import ChosenClock, eventually, settings_for


@pytest.fixture
async def client(
    request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer, clock: ChosenClock
) -> AsyncIterator[httpx.AsyncClient]:
    chosen = getattr(request, "param", {})
    clock.go_to("2026-03-28T22:30:00+00:00")
    app = create_app(
        settings_for("sqlite", tmp_path, redis_server, **{"write_limit": "100000/second", **chosen}), clock
    )
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://tally") as client,
    ):
        yield client


async def test_a_hit_answers_its_name_count_total_day_and_ack(client: httpx.AsyncClient) -> None:
    await client.post("/event/a")
    answer = await client.post("/event/a", json={"by": 41})
    expected = {"eventName": "a", "count": 42, "total": 42, "day": "2026-03-28", "ack": "disk"}
    assert answer.json() == expected
    assert (await client.get("/event/a")).json() == {k: v for k, v in expected.items() if k != "ack"}


@pytest.mark.parametrize(
    ("body", "counts"),
    [
        (b'[{"event":"a"},{"event":"b","by":3},{"event":"a"}]', {"a": 2, "b": 3}),
        (b" \n[\n]", {}),
        (b'{"a": 3, "b": 1}', {"a": 3, "b": 1}),
        (b'{"a": 3,\n "a": 4}', {"a": 7}),
        (b'{"by": 3}', {"by": 3}),
        (b"{}", {}),
        (b'{"event":"a"}', {"a": 1}),
        (b'{"event":"a","by":2}\n\n{"event":"b"}\r\n', {"a": 2, "b": 1}),
        (b'{\n"event":\n"a"}', {"a": 1}),
        (b"a\nb\r\n\n  \na\n", {"a": 2, "b": 1}),
        ("é\ne\u0301\n".encode(), {"é": 2}),
        (b"C++ [x]\n{y}", {"C++ [x]": 1, "{y}": 1}),
        (b"", {}),
        (b'\xef\xbb\xbf[{"event":"a"}]', {"a": 1}),
    ],
)
async def test_a_batch_is_told_apart_by_its_body(
    client: httpx.AsyncClient, body: bytes, counts: dict[str, int]
) -> None:
    for content_type in ("application/json", "application/x-www-form-urlencoded"):
        answer = await client.post("/events", content=body, headers={"content-type": content_type})
        assert answer.status_code == 200, answer.text
        assert answer.json()["accepted"] == sum(counts.values())
    expected = {name: 2 * count for name, count in counts.items()}
    assert (await client.get("/events")).json() == expected
    assert answer.json()["counts"] == expected


BAD_BATCHES = [
    (b'[{"event":"a"},{"event":""}]', "item 1"),
    (b'[{"event":"a"},{"event":"b","by":0}]', "$[1].by"),
    (b'[{"event":"a","by":1000001}]', "$[0].by"),
    (b'[{"event":"a","by":true}]', "$[0].by"),
    (b'[{"event":"a","by":"5"}]', "$[0].by"),
    (b'[{"event":"a","by":1.5}]', "$[0].by"),
    (b'[{"event":"a","by":NaN}]', "JSON"),
    (b'[{"event":"a","by":1e400}]', "$[0].by"),
    (b'[{"event":"a"},{"event":"b","user":""}]', "item 1: user"),
    (b'{"event":"a"}\n{"event":"b","session":7}', "session"),
    (b'[{"event":"\\ud800"}]', ""),
    (b'["a"]', "$[0]"),
    (b"[" * 100_000, ""),
    (b'{"a":' * 100_000, "item 0"),
    (b'[{"event":"a"}', ""),
    (b'{"a": 1, "b": 0}', "item 1"),
    (b'{"a": 1, "b": -1}', "item 1"),
    (b'{"a": 1, "b": 2.5}', "item 0"),
    (b'{"a": 1, "b": true}', "item 0"),
    (b'{"a": ' + b"9" * 5000 + b"}", "item 0"),
    (b'{"event":"a"}\n{"event":5}', "item 1"),
    (b'{"event":"a"}\n{"event":"b"', "item 1"),
    (b'{"event":"a"}\n[]', "item 1"),
    (b"a\nb/c\n", "item 1"),
    (b"a\n b\n", "item 1"),
    (b"a\n\x00\n", "item 1"),
    (b"a\n\xff\n", "UTF-8"),
    ('[{"event":"a"}]'.encode("utf-16"), ""),
]


@pytest.mark.parametrize(("body", "where"), BAD_BATCHES)
async def test_a_bad_item_refuses_the_whole_batch_and_names_its_place(
    client: httpx.AsyncClient, body: bytes, where: str
) -> None:
    answer = await client.post("/events", content=body)
    assert_problem(answer, 422, "no")
    assert where in answer.json()["detail"]
    assert (await client.get("/events")).json() == {}


async def test_a_batch_has_a_bound_in_items_and_in_bytes(client: httpx.AsyncClient) -> None:
    assert (await client.post("/events", content=b"a\n" * 10_000)).json()["accepted"] == 10_000
    assert_problem(await client.post("/events", content=b"a\n" * 10_001), 413, "no")
    assert_problem(await client.post("/events", content=b"x" * (4 * 1024 * 1024 + 1)), 413, "no")
    assert_problem(await client.post("/event/a", content=b" " * 20_000), 413, "no")


@pytest.mark.parametrize(
    "body",
    [
        b'{"by":0}',
        b'{"by":1000001}',
        b'{"by":-1}',
        b'{"by":1.5}',
        b'{"by":"1"}',
        b'{"by":true}',
        b'{"by":null}',
        b"[]",
        b"x",
        b'{"by":NaN}',
        b"null",
        b'{"user":"u "}',
        b'{"session":7}',
        b'{"user":""}',
        b'{"x":1}',
        b"\xff",
        b"[" * 10000,
    ],
)
async def test_a_bad_body_of_a_hit_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    assert_problem(await client.post("/event/a", content=body), 422, "no")
    assert (await client.get("/event/a")).json()["count"] == 0


@pytest.mark.parametrize(
    ("segment", "status"),
    [
        ("%C3%A9", 200),
        ("%f0%9f%91%8d", 200),
        ("a%20b", 200),
        ("%2E", 422),
        ("..%20", 422),
        ("%ff%fe", 422),
        ("%c0%af", 422),
        ("%00", 422),
        ("%0d%0a", 422),
        ("%E2%80%AE", 422),
        ("%20a", 422),
        ("x" * 129, 422),
        ("a%2Fb", 404),
        ("%zz", 200),
    ],
)
async def test_a_name_in_a_path_is_read_from_its_bytes(client: httpx.AsyncClient, segment: str, status: int) -> None:
    url = httpx.URL(str(client.base_url)).copy_with(raw_path=f"/event/{segment}".encode())
    answers = [await client.post(url), await client.get(url)]
    assert [answer.status_code for answer in answers] == [status, status]
    if status != 200:
        assert_problem(answers[0], status, "no")
        assert_problem(answers[1], status, None)


@pytest.mark.parametrize("client", [{"events_max": 2}], indirect=True)
async def test_over_the_cap_a_new_name_is_429_and_known_ones_go_on(client: httpx.AsyncClient) -> None:
    for name in "ab":
        await client.post(f"/event/{name}")
    refused = await client.post("/event/c")
    assert_problem(refused, 429, "no")
    assert "TALLY_EVENTS_MAX" in refused.json()["detail"]
    assert_problem(await client.post("/events", json={"a": 1, "c": 1}), 429, "no")
    assert (await client.post("/event/a")).json()["count"] == 2


async def test_a_count_stops_at_what_json_can_say(client: httpx.AsyncClient, tmp_path: Path) -> None:
    items = [{"event": "a", "by": 1_000_000}] * 10_000
    answer = await client.post("/events", json=items)
    assert answer.json()["counts"] == {"a": 10_000_000_000}


@pytest.mark.parametrize("client", [{"write_limit": "3/minute"}], indirect=True)
async def test_a_batch_costs_one_for_each_hundred_items_begun(client: httpx.AsyncClient) -> None:
    assert (await client.post("/events", content=b"a\n" * 200)).status_code == 200  # two of three
    assert_problem(await client.post("/events", content=b"a\n" * 101), 429, "no")
    assert (await client.get("/events")).json() == {"a": 200}


@pytest.mark.parametrize("client", [{"write_limit": "3/minute"}], indirect=True)
async def test_a_large_batch_costs_at_most_the_whole_limit(client: httpx.AsyncClient) -> None:
    assert (await client.post("/events", content=b"a\n" * 10_000)).status_code == 200
    assert_problem(await client.post("/event/a"), 429, "no")
    assert (await client.get("/events")).json() == {"a": 10_000}


async def test_a_path_with_an_encoded_slash_is_no_other_path(client: httpx.AsyncClient) -> None:
    for path in ("/event%2Fa", "/event%2Fgood/series"):
        url = httpx.URL(str(client.base_url)).copy_with(raw_path=path.encode())
        assert (await client.get(url)).status_code == 404
        assert (await client.post(url)).status_code in {404, 405}


async def test_a_name_that_is_far_too_long_costs_no_time(client: httpx.AsyncClient) -> None:
    hostile = "a" + "\u0315\u0300" * 700_000  # normalising this would take minutes
    assert_problem(await client.post("/events", content=hostile.encode()), 422, "no")


async def test_events_are_filtered_sorted_and_paged(client: httpx.AsyncClient) -> None:
    await client.post("/events", json={"page.a": 5, "page.b": 9, "page.c": 5, "other": 7})
    assert list((await client.get("/events")).json()) == ["other", "page.a", "page.b", "page.c"]
    assert list((await client.get("/events?prefix=page.&sort=-count")).json()) == ["page.b", "page.a", "page.c"]
    for sort in ("name", "-count"):
        seen, url = [], f"/events?sort={sort}&limit=3&prefix="
        while url:
            answer = await client.get(url)
            seen += answer.json()
            url = answer.links.get("next", {}).get("url")
        assert seen == list((await client.get(f"/events?sort={sort}")).json())


@pytest.mark.catches("a slice forgotten", "app/http/routes/counts.py", "chain(*runs)", "runs[-1]")
async def test_long_listings_are_put_together_from_slices(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "SLICE", 7)
    monkeypatch.setattr(sqlite, "PAGE_ROWS", 5)
    counts = {f"{'ab'[i % 2]} {i * 37 % 100}": 1 + i % 5 for i in range(100)}
    await client.post("/events", json=counts)
    orders = {"name": sorted(counts), "-count": sorted(counts, key=lambda event: (-counts[event], event))}
    for sort, order in orders.items():
        assert list((await client.get(f"/events?sort={sort}")).json().items()) == [(e, counts[e]) for e in order]
        seen, url = [], f"/events?sort={sort}&limit=9&prefix=a"
        while url:
            answer = await client.get(url)
            seen += answer.json()
            url = answer.links.get("next", {}).get("url")
        assert seen == [event for event in order if event.startswith("a")]
    for window in ("today", "total", "1h", "7d"):
        best = (await client.get(f"/leaderboard?limit=20&window={window}")).json()
        assert [(row["eventName"], row["count"]) for row in best] == [(e, counts[e]) for e in orders["-count"][:20]]


async def test_series_are_filled_with_zeros_and_end_with_the_running_bucket(
    client: httpx.AsyncClient, clock: ChosenClock
) -> None:
    await client.post("/event/a", json={"by": 2})
    clock.go_to("2026-03-28T23:10:00+00:00")
    await client.post("/events", json={"a": 1, "b": 5})
    series = (await client.get("/event/a/series?step=hour&points=3")).json()
    assert (series["eventName"], series["step"]) == ("a", "hour")
    assert [point["count"] for point in series["points"]] == [0, 2, 1]
    assert series["points"][-1]["start"] == "2026-03-28T23:00:00+00:00"
    together = (await client.get("/series?step=day&points=2")).json()
    assert (together["eventName"], [point["count"] for point in together["points"]]) == (None, [0, 8])
    lines = (await client.get("/series?event=a&event=b&event=a&points=1")).json()
    assert [(line["eventName"], line["points"][0]["count"]) for line in lines] == [("a", 1), ("b", 5), ("a", 1)]


@pytest.mark.parametrize("client", [{"timezone": ZoneInfo("Europe/Berlin")}], indirect=True)
async def test_days_and_hours_begin_on_the_zones_clock(client: httpx.AsyncClient, clock: ChosenClock) -> None:
    await client.post("/event/a")  # 23:30 in Berlin, the evening before the clock goes forward
    clock.go_to("2026-03-29T10:00:00+00:00")
    assert (await client.post("/event/a")).json() | {"ack": ""} == {
        "eventName": "a", "count": 1, "total": 2, "day": "2026-03-29", "ack": ""
    }  # fmt: skip
    points = (await client.get("/event/a/series?step=day&points=2")).json()["points"]
    assert points == [
        {"start": "2026-03-28T00:00:00+01:00", "count": 1},
        {"start": "2026-03-29T00:00:00+01:00", "count": 1},
    ]
    history = (await client.get("/history/2026-03-28")).json()
    parts = [{"until": "2026-03-29T00:00:00+01:00", "counts": {"a": 1}}]
    assert history == {"day": "2026-03-28", "parts": parts, "corrections": []}
    assert (await client.get("/health")).json()["resetsAt"] == "2026-03-30T00:00:00+02:00"


async def test_leaderboards_of_today_and_of_all_time(client: httpx.AsyncClient, clock: ChosenClock) -> None:
    await client.post("/events", json={"old": 10, "a": 1})
    clock.go_to("2026-03-29T00:10:00+00:00")
    await client.post("/events", json={"a": 2, "b": 2})
    names = [row["eventName"] for row in (await client.get("/leaderboard")).json()]
    assert names == ["a", "b"]
    total = (await client.get("/leaderboard?window=total&limit=2")).json()
    assert total == [{"rank": 1, "eventName": "old", "count": 10}, {"rank": 2, "eventName": "a", "count": 3}]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/leaderboard?limit=0", 422),
        ("/leaderboard?window=2h", 422),
        ("/series?points=0", 422),
        ("/series?step=week", 422),
        ("/series?points=1441", 422),
        ("/events?after=x", 422),
        ("/events?after=WzFd", 422),
        ("/events?sort=x", 422),
        ("/series?event=", 422),
        ("/series?" + "event=a&" * 101, 422),
        ("/history/2026-03-28", 404),
        ("/nothing", 404),
        ("/history/2999-01-01", 404),
        ("/history/x", 422),
        ("/history/0001-01-01", 404),
        ("/event/a/b/c", 404),
    ],
)
async def test_reads_refuse_what_makes_no_sense(client: httpx.AsyncClient, path: str, status: int) -> None:
    assert_problem(await client.get(path), status, None)


async def test_methods_that_are_not_there_are_405(client: httpx.AsyncClient) -> None:
    assert_problem(await client.delete("/events"), 405, None)
    assert_problem(await client.post("/leaderboard"), 405, "no")


@pytest.mark.parametrize("client", [{"read_limit": "2/minute"}], indirect=True)
async def test_reads_have_a_budget_of_their_own(client: httpx.AsyncClient) -> None:
    assert [(await client.get("/events")).status_code for _ in range(3)] == [200, 200, 429]
    assert (await client.post("/event/a")).status_code == 200
    assert (await client.get("/health")).status_code == 200


async def test_every_answer_carries_the_security_headers(client: httpx.AsyncClient) -> None:
    for path in ("/", "/docs", "/static/app.css", "/events", "/nothing"):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]


async def test_openapi_documents_what_is_served(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    operations = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    assert operations == {
        "POST /event/{name}", "GET /event/{name}", "POST /events", "GET /events", "GET /leaderboard",
        "GET /event/{name}/audience", "GET /audience", "GET /user/{id}", "GET /session/{id}", "PUT /event/{name}",
        "DELETE /event/{name}", "POST /reset", "DELETE /user/{id}", "GET /export", "POST /import",
        "GET /event/{name}/series", "GET /series", "GET /history", "GET /history/{day}", "GET /health", "GET /metrics",
        "GET /badge/{name}.svg", "GET /event/{name}/shield.json", "GET /stream",
    }  # fmt: skip
    told = set(document["paths"]["/events"]["post"]["responses"])
    assert told == {"200", "202", "400", "401", "403", "413", "421", "422", "429", "503"}
    page = (await client.get("/docs")).text
    assert "http://" not in page
    assert "https://" not in page
    assert (await client.get("/docs/assets/swagger-ui-bundle.js")).status_code == 200


TEXTS = st.text(max_size=6) | st.sampled_from(["a", "é", "e\u0301", "a/b", ".", "\ud800", "\u202e", "x" * 129])
VALUES = TEXTS | st.integers() | st.sampled_from([None, True, 1, 1_000_000, 1.5, [], {}])
ITEMS = st.fixed_dictionaries({"event": TEXTS}, optional={"by": VALUES, "user": VALUES, "session": VALUES, "x": VALUES})
BATCHES = st.lists(ITEMS, max_size=4).map(json.dumps) | st.dictionaries(TEXTS, VALUES, max_size=4).map(json.dumps)
BATCHES |= st.lists(ITEMS.map(json.dumps) | TEXTS, max_size=4).map("\n".join)
any_example = settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@given(
    st.binary(max_size=60)
    | st.text('[]{}":,ab1 \n', max_size=60).map(str.encode)
    | BATCHES.map(lambda text: text.encode(errors="surrogatepass"))
)
@any_example
def test_any_bytes_are_hits_or_a_problem(body: bytes) -> None:
    try:
        hits = parse_batch(body)
        amounts, visits = fold_names(hits), fold_visits(hits)
    except Problem as problem:
        assert problem.status_code in {413, 422}
        problem.detail.encode()
    else:
        assert sum(amounts.values()) == sum(hit.by for hit in hits)
        assert all(1 <= hit.by <= 1_000_000 for hit in hits)
        assert all(event_name(event) == event for event in amounts)
        assert all(visit.event in amounts and (visit.user or visit.session) for visit in visits)
        ids = [visitor for visit in visits for visitor in (visit.user, visit.session) if visitor is not None]
        assert all(visitor_id(visitor) == visitor for visitor in ids)


STEPS = st.sampled_from(["minute", "hour", "day", "total", "year"])
OFS = st.sampled_from(["", "offset", "generation", "log", "part:1", "user:a", "session:a/b", "sketch:user:a", "x"])
MEMBERS = st.dictionaries(TEXTS | st.sampled_from(["", "0", "16384", '[1,2,"reset","",[0,0],[0,0]]']), st.integers())
LINES = st.builds(
    lambda *bucket, counts: {"bucket": bucket, "counts": counts}, STEPS, st.integers(), OFS, counts=MEMBERS
)
LINES |= st.dictionaries(st.sampled_from(["bucket", "counts", "end"]), VALUES) | VALUES


@given(st.lists(LINES, max_size=3), st.integers(0, 5) | st.none(), st.binary(max_size=9))
@any_example
def test_any_file_is_an_export_or_is_refused(lines: list[object], end: int | None, rest: bytes) -> None:
    head = {"tally": 1, "export": "e", "timezone": "UTC"}
    file = [json.dumps(line).encode() for line in (head, *lines, {"end": len(lines) + 1 if end is None else end})]
    try:
        found = list(pieces(io.BytesIO(b"\n".join(file) + rest), Clock(Calendar(ZoneInfo("UTC")), lambda: 0.0)))
    except TransferError as error:
        str(error).encode()
    else:
        assert all(piece.bucket.step in STEPS_KNOWN and 0 <= piece.bucket.start < 2**40 for piece in found)
        assert all(abs(count) < 2**53 for piece in found for count in piece.counts.values())


def assert_problem(answer: httpx.Response, status: int, counted: str | None) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem.get("counted") == counted


KEY = {"Idempotency-Key": "order-17"}


async def test_a_retry_with_its_key_gets_the_first_answer_also_after_midnight(
    client: httpx.AsyncClient, clock: ChosenClock
) -> None:
    first = await client.post("/event/a", json={"by": 3}, headers=KEY)
    assert "Idempotent-Replayed" not in first.headers
    await client.post("/event/a")
    clock.go_to("2026-03-29T09:00:00+00:00")
    again = await client.post("/event/a", content=b' {"by" : 3}', headers={"Idempotency-Key": '"order-17"'})
    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert (await client.get("/event/a")).json()["total"] == 4
    clock.go_to("2026-03-29T23:00:00+00:00")
    assert (await client.post("/event/a", json={"by": 3}, headers=KEY)).json()["total"] == 7  # a day later it is new


async def test_a_batchs_retry_counts_nothing_twice(client: httpx.AsyncClient) -> None:
    first = await client.post("/events", json={"a": 1, "b": 2}, headers=KEY)
    again = await client.post("/events", json=[{"event": "b", "by": 2}, {"event": "a"}], headers=KEY)
    assert again.json() == first.json()
    assert again.headers["Idempotent-Replayed"] == "true"
    assert (await client.get("/events")).json() == {"a": 1, "b": 2}


async def test_a_key_belongs_to_its_route_and_name_and_to_one_request(client: httpx.AsyncClient) -> None:
    await client.post("/event/a", headers=KEY)
    assert_problem(await client.post("/event/a", json={"by": 2}, headers=KEY), 422, "no")
    assert (await client.post("/event/b", headers=KEY)).json()["count"] == 1
    assert (await client.post("/events", json={"a": 1}, headers=KEY)).json()["counts"] == {"a": 2}
    assert_problem(await client.post("/events", json={"a": 2}, headers=KEY), 422, "no")


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "é", "a\x7f", '""', '"a'])
async def test_a_key_is_visible_ascii(client: httpx.AsyncClient, key: str) -> None:
    answer = await client.post("/event/a", headers={"Idempotency-Key": key.encode("latin-1")})
    assert_problem(answer, 422, "no")


@pytest.mark.parametrize("client", [{"keys_max": 20}], indirect=True)
async def test_over_the_bound_a_new_key_is_503_and_nothing_is_counted(client: httpx.AsyncClient) -> None:
    answers = [await client.post("/event/a", headers={"Idempotency-Key": f"k{i}"}) for i in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 503]
    assert_problem(answers[2], 503, "no")
    assert (await client.post("/event/a", headers={"Idempotency-Key": "k1"})).headers["Idempotent-Replayed"] == "true"
    assert (await client.post("/event/a")).json()["count"] == 3


async def test_2000_concurrent_duplicates_of_200_keys_count_200(client: httpx.AsyncClient) -> None:
    async def post(i: int) -> httpx.Response:
        return await client.post("/event/a", headers={"Idempotency-Key": f"k{i % 200}"})

    answers = await asyncio.gather(*(post(i) for i in range(2000)))
    assert (await client.get("/event/a")).json()["count"] == 200
    firsts: dict[int, set[int]] = {}
    for i, answer in enumerate(answers):
        firsts.setdefault(i % 200, set()).add(answer.json()["count"])
    assert sorted(count for counts in firsts.values() for count in counts) == list(range(1, 201))
    assert sum("Idempotent-Replayed" in answer.headers for answer in answers) == 1800
    others = await asyncio.gather(
        *(client.post("/event/a", json={"by": 2}, headers={"Idempotency-Key": f"k{i}"}) for i in range(200))
    )
    assert {answer.status_code for answer in others} == {422}
    assert (await client.get("/event/a")).json()["count"] == 200


async def test_history_lists_closed_days_newest_first(client: httpx.AsyncClient, clock: ChosenClock) -> None:
    await client.post("/events", json={"a": 2, "=1+1": 3})
    clock.go_to("2026-03-30T12:00:00+00:00")
    await client.post("/event/a")
    assert (await client.get("/history")).json() == [{"day": "2026-03-28", "hits": 5, "events": 2, "parts": 1}]
    clock.go_to("2026-03-31T12:00:00+00:00")
    listed = (await client.get("/history")).json()
    assert [day["day"] for day in listed] == ["2026-03-30", "2026-03-28"]
    days = await client.get("/history?format=csv")
    assert days.headers["content-type"] == "text/csv; charset=utf-8"
    assert days.text == '"day","hits","events","parts"\r\n"2026-03-30",1,1,1\r\n"2026-03-28",5,2,1\r\n'
    day = await client.get("/history/2026-03-28?format=csv")
    assert day.text == (
        '"event","count","until"\r\n"\'=1+1",3,"2026-03-29T00:00:00+00:00"\r\n"a",2,"2026-03-29T00:00:00+00:00"\r\n'
    )


async def test_leaderboards_of_the_last_hour_and_week(client: httpx.AsyncClient, clock: ChosenClock) -> None:
    await client.post("/event/old", json={"by": 9})
    clock.go_to("2026-03-28T23:20:00+00:00")
    await client.post("/event/a", json={"by": 2})
    clock.go_to("2026-03-29T00:10:00+00:00")
    await client.post("/event/a")
    hour = (await client.get("/leaderboard?window=1h")).json()
    assert hour == [{"rank": 1, "eventName": "a", "count": 3}]
    week = (await client.get("/leaderboard?window=7d")).json()
    assert [(row["eventName"], row["count"]) for row in week] == [("old", 9), ("a", 3)]
    clock.go_to("2026-04-04T00:10:00+00:00")
    assert (await client.get("/leaderboard?window=7d")).json() == [{"rank": 1, "eventName": "a", "count": 1}]


async def test_metrics_count_what_happened_and_name_no_event(client: httpx.AsyncClient) -> None:
    await client.post("/event/secret-name", json={"by": 5})
    await client.post("/event/secret-name", json={"by": 0})
    text = (await client.get("/metrics")).text
    for line in ("tally_hits_total 5.0", 'tally_posts_total{outcome="accepted"} 1.0', "tally_commits_total 1.0"):
        assert line in text
    assert 'tally_posts_total{outcome="refused"} 1.0' in text
    assert "tally_spool_bytes 0.0" in text
    assert "secret-name" not in text


@pytest.mark.parametrize("client", [{"minutes_kept_hours": 24, "hours_kept_days": 2, "days_kept": 8}], indirect=True)
async def test_what_is_too_old_is_forgotten_and_totals_stay(client: httpx.AsyncClient, clock: ChosenClock) -> None:
    await client.post("/event/a")
    clock.go_to("2026-04-10T12:00:00+00:00")
    jobs = client._transport.app.state.jobs
    jobs.get_job("close_day").modify(next_run_time=datetime.now(UTC))

    async def forgotten() -> bool:
        return (await client.get("/event/a/series?step=day&points=14")).json()["points"][0]["count"] == 0

    await eventually(forgotten)
    assert (await client.get("/history")).json() == []
    assert (await client.get("/event/a")).json()["total"] == 1


@pytest.mark.catches("ranges are looked at", "app/main.py", 'if header[0] != b"range"', "if header[0]")
@pytest.mark.parametrize("part", ["bytes=0-3", "bytes=5-1", "bytes=99999999-", "lines=1"])
async def test_a_file_is_served_whole(client: httpx.AsyncClient, part: str) -> None:
    for path in ("/", "/static/app.css"):
        whole = await client.get(path)
        answer = await client.get(path, headers={"Range": part})
        assert (answer.status_code, answer.content) == (200, whole.content)
