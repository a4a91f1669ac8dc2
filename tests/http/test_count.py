"""POST /event/{name} and POST /events: bodies, batches, names and limits."""

from pathlib import Path

import httpx
import pytest

from tests.http.problems import assert_problem


async def test_the_response_to_a_hit_has_name_count_total_day_and_ack(client: httpx.AsyncClient) -> None:
    await client.post("/event/a")
    response = await client.post("/event/a", json={"by": 41})
    expected = {"eventName": "a", "count": 42, "total": 42, "day": "2026-03-28", "ack": "disk"}
    assert response.json() == expected
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
async def test_the_body_decides_the_form_of_a_batch(
    client: httpx.AsyncClient, body: bytes, counts: dict[str, int]
) -> None:
    for content_type in ("application/json", "application/x-www-form-urlencoded"):
        response = await client.post("/events", content=body, headers={"content-type": content_type})
        assert response.status_code == 200, response.text
        assert response.json()["accepted"] == sum(counts.values())
    expected = {name: 2 * count for name, count in counts.items()}
    assert (await client.get("/events")).json() == expected
    assert response.json()["counts"] == expected


AMOUNT = "by: expected a whole number from 1 to 1000000"
BAD_BATCHES = [
    (b'[{"event":"a"},{"event":""}]', "item 1: event: must have 1 to 128 characters, not 0"),
    (b'[{"event":"a"},{"event":"b","by":0}]', f"item 1: {AMOUNT}"),
    (b'[{"event":"a","by":1000001}]', f"item 0: {AMOUNT}"),
    (b'[{"event":"a","by":true}]', f"item 0: {AMOUNT}"),
    (b'[{"event":"a","by":"5"}]', f"item 0: {AMOUNT}"),
    (b'[{"event":"a","by":1.5}]', f"item 0: {AMOUNT}"),
    (b'[{"event":"a","by":NaN}]', "body: JSON is malformed"),
    (b'[{"event":"a","by":1e400}]', f"item 0: {AMOUNT}"),
    (b'[{"event":"a"},{"event":"b","user":""}]', "item 1: user: must have 1 to 128 characters, not 0"),
    (b'{"event":"a"}\n{"event":"b","session":7}', "item 1: session: expected a string"),
    (b'[{"event":"a","amount":7}]', "item 0: Object contains unknown field `amount`; the fields are event, by, user"),
    (b'[{"event":"\\ud800"}]', "body: "),
    (b'["a"]', "item 0: expected `object`, got `str`"),
    (b"[" * 100_000, "item 0: expected `object`, got `array`"),
    (b'{"a":' * 100_000, "item 0: "),
    (b'[{"event":"a"}', "body: Input data was truncated"),
    (b'{"a": 1, "b": 0}', f"item 1: {AMOUNT}"),
    (b'{"a": 1, "b": -1}', f"item 1: {AMOUNT}"),
    (b'{"a": 1, "b": 2.5}', "item 0: "),
    (b'{"a": 1, "b": true}', "item 0: "),
    (b'{"a": ' + b"9" * 5000 + b"}", "item 0: "),
    (b'{"event":"a"}\n{"event":5}', "item 1: event: expected a string"),
    (b'{"event":"a"}\n{"event":"b"', "item 1: Input data was truncated"),
    (b'{"event":"a"}\n[]', "item 1: expected `object`, got `array`"),
    (b"a\nb/c\n", 'item 1: event: must not contain "/"'),
    (b"a\n b\n", "item 1: event: must not begin or end with a space"),
    (b"a\n\x00\n", "item 1: event: must not contain control"),
    (b"a\n\xff\n", "body: not valid UTF-8"),
    ('[{"event":"a"}]'.encode("utf-16"), "body: not valid UTF-8"),
]


@pytest.mark.parametrize(("body", "detail"), BAD_BATCHES)
async def test_a_bad_item_rejects_the_whole_batch_and_its_index_is_named(
    empty_app: httpx.AsyncClient, body: bytes, detail: str
) -> None:
    response = await empty_app.post("/events", content=body)
    assert_problem(response, 422, "no")
    assert response.json()["detail"].startswith(detail)


async def test_a_batch_is_limited_in_items_and_in_bytes(client: httpx.AsyncClient) -> None:
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
async def test_a_bad_body_of_a_hit_is_rejected(empty_app: httpx.AsyncClient, body: bytes) -> None:
    assert_problem(await empty_app.post("/event/a", content=body), 422, "no")


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
async def test_a_name_in_a_path_is_parsed_from_its_raw_bytes(
    client: httpx.AsyncClient, segment: str, status: int
) -> None:
    url = httpx.URL(str(client.base_url)).copy_with(raw_path=f"/event/{segment}".encode())
    responses = [await client.post(url), await client.get(url)]
    assert [response.status_code for response in responses] == [status, status]
    if status != 200:
        assert_problem(responses[0], status, "no")
        assert_problem(responses[1], status, None)


@pytest.mark.parametrize("client", [{"events_max": 2}], indirect=True)
async def test_over_the_event_limit_new_names_get_429_and_known_ones_still_count(client: httpx.AsyncClient) -> None:
    for name in "ab":
        await client.post(f"/event/{name}")
    rejected = await client.post("/event/c")
    assert_problem(rejected, 429, "no")
    assert "TALLY_EVENTS_MAX" in rejected.json()["detail"]
    assert_problem(await client.post("/events", json={"a": 1, "c": 1}), 429, "no")
    assert (await client.post("/event/a")).json()["count"] == 2


async def test_amounts_of_a_batch_add_up_beyond_32_bits(client: httpx.AsyncClient, tmp_path: Path) -> None:
    items = [{"event": "a", "by": 1_000_000}] * 10_000
    response = await client.post("/events", json=items)
    assert response.json()["counts"] == {"a": 10_000_000_000}


@pytest.mark.parametrize("client", [{"write_limit": "3/minute"}], indirect=True)
async def test_a_batch_costs_one_for_each_hundred_items_begun(client: httpx.AsyncClient) -> None:
    assert (await client.post("/events", content=b"a\n" * 200)).status_code == 200  # costs two of three
    assert_problem(await client.post("/events", content=b"a\n" * 101), 429, "no")
    assert (await client.get("/events")).json() == {"a": 200}


@pytest.mark.fails_on_mutant("visitors cost nothing", "app/http/routes/count.py", " + weight((), visits)", "")
@pytest.mark.parametrize("client", [{"write_limit": "20/hour"}], indirect=True)
async def test_users_and_sessions_make_a_batch_cost_more(client: httpx.AsyncClient) -> None:
    items = [{"event": "a", "user": f"u{i}"} for i in range(100)]  # (100 + 1,600) / 100 = 17
    assert (await client.post("/events", json=items)).status_code == 200
    assert (await client.post("/events", content=b"a\n" * 300)).status_code == 200
    assert (await client.post("/event/a")).status_code == 429


@pytest.mark.parametrize("client", [{"write_limit": "3/minute"}], indirect=True)
async def test_a_large_batch_costs_at_most_the_whole_limit(client: httpx.AsyncClient) -> None:
    assert (await client.post("/events", content=b"a\n" * 10_000)).status_code == 200
    assert_problem(await client.post("/event/a"), 429, "no")
    assert (await client.get("/events")).json() == {"a": 10_000}


@pytest.mark.fails_on_mutant(
    "a rejected body is free", "app/http/routes/count.py", "if cost_of_bytes > 1:", "if False:"
)
@pytest.mark.parametrize("client", [{"write_limit": "3/minute"}], indirect=True)
async def test_a_batch_that_is_rejected_costs_one_for_each_32_kib_begun(client: httpx.AsyncClient) -> None:
    assert_problem(await client.post("/events", content=b"x" * 33_000), 422, "no")  # costs two of three
    assert (await client.post("/event/a")).status_code == 200
    assert_problem(await client.post("/event/a"), 429, "no")


@pytest.mark.fails_on_mutant(
    "the limit is consumed twice",
    "app/http/rate_limits.py",
    "min(cost, limit.amount) - min(already_consumed, limit.amount)",
    "min(cost, limit.amount) - (already_consumed > 1)",
)
@pytest.mark.parametrize("client", [{"write_limit": "3/minute"}], indirect=True)
async def test_a_long_batch_of_many_items_costs_at_most_the_whole_limit(client: httpx.AsyncClient) -> None:
    """Its bytes cost more than the limit, and its items cost even more."""
    names = "\n".join(["x" * 120] * 2_000)
    assert (await client.post("/events", content=names)).status_code == 200
    assert_problem(await client.post("/event/a"), 429, "no")


async def test_a_path_with_an_encoded_slash_is_not_another_path(client: httpx.AsyncClient) -> None:
    for path in ("/event%2Fa", "/event%2Fgood/series"):
        url = httpx.URL(str(client.base_url)).copy_with(raw_path=path.encode())
        assert (await client.get(url)).status_code == 404
        assert (await client.post(url)).status_code in {404, 405}


async def test_a_far_too_long_name_is_rejected_quickly(client: httpx.AsyncClient) -> None:
    hostile = "a" + "\u0315\u0300" * 700_000  # normalising this would take minutes
    assert_problem(await client.post("/events", content=hostile.encode()), 422, "no")
