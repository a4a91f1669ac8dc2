"""Idempotency keys: retries, conflicts and the limit."""

import asyncio

import httpx
import pytest

from tests.http.problems import assert_problem
from tests.support.servers import SettableClock

KEY = {"Idempotency-Key": "order-17"}


async def test_a_retry_gets_the_first_response_even_after_midnight(
    client: httpx.AsyncClient, clock: SettableClock
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
    # A key expires after 24 h, so this is a new request.
    assert (await client.post("/event/a", json={"by": 3}, headers=KEY)).json()["total"] == 7


async def test_a_retry_of_a_batch_counts_nothing_twice(client: httpx.AsyncClient) -> None:
    first = await client.post("/events", json={"a": 1, "b": 2}, headers=KEY)
    again = await client.post("/events", json=[{"event": "b", "by": 2}, {"event": "a"}], headers=KEY)
    assert again.json() == first.json()
    assert again.headers["Idempotent-Replayed"] == "true"
    assert (await client.get("/events")).json() == {"a": 1, "b": 2}


async def test_a_key_belongs_to_one_route_event_and_request(client: httpx.AsyncClient) -> None:
    await client.post("/event/a", headers=KEY)
    assert_problem(await client.post("/event/a", json={"by": 2}, headers=KEY), 422, "no")
    assert (await client.post("/event/b", headers=KEY)).json()["count"] == 1
    assert (await client.post("/events", json={"a": 1}, headers=KEY)).json()["counts"] == {"a": 2}
    assert_problem(await client.post("/events", json={"a": 2}, headers=KEY), 422, "no")


@pytest.mark.fails_on_mutant(
    "the list of counts is sent",
    "app/http/routes/counts.py",
    "        dependencies=[Depends(reject_redirected_post)],\n",
    "",
)
@pytest.mark.fails_on_mutant(
    "the notes are sent", "app/http/routes/notes.py", ", dependencies=[Depends(reject_redirected_post)]", ""
)
async def test_a_get_with_a_key_is_an_error_because_a_redirect_made_it_of_a_post(client: httpx.AsyncClient) -> None:
    for path in ("/event/a", "/events", "/notes"):
        response = await client.get(path, headers=KEY)
        assert_problem(response, 422, None)
        assert "redirect" in response.json()["detail"]
        assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "é", "a\x7f", '""', '"a'])
async def test_a_key_is_visible_ascii(client: httpx.AsyncClient, key: str) -> None:
    response = await client.post("/event/a", headers={"Idempotency-Key": key.encode("latin-1")})
    assert_problem(response, 422, "no")


@pytest.mark.parametrize("client", [{"keys_max": 20}], indirect=True)
async def test_over_the_key_limit_a_new_key_gets_503_and_is_not_counted(client: httpx.AsyncClient) -> None:
    responses = [await client.post("/event/a", headers={"Idempotency-Key": f"k{i}"}) for i in range(3)]
    assert [response.status_code for response in responses] == [200, 200, 503]
    assert_problem(responses[2], 503, "no")
    assert (await client.post("/event/a", headers={"Idempotency-Key": "k1"})).headers["Idempotent-Replayed"] == "true"
    assert (await client.post("/event/a")).json()["count"] == 3


async def test_2000_concurrent_duplicates_of_200_keys_count_200(client: httpx.AsyncClient) -> None:
    async def post(i: int) -> httpx.Response:
        return await client.post("/event/a", headers={"Idempotency-Key": f"k{i % 200}"})

    responses = await asyncio.gather(*(post(i) for i in range(2000)))
    assert (await client.get("/event/a")).json()["count"] == 200
    firsts: dict[int, set[int]] = {}
    for i, response in enumerate(responses):
        firsts.setdefault(i % 200, set()).add(response.json()["count"])
    assert sorted(count for counts in firsts.values() for count in counts) == list(range(1, 201))
    assert sum("Idempotent-Replayed" in response.headers for response in responses) == 1800
    others = await asyncio.gather(
        *(client.post("/event/a", json={"by": 2}, headers={"Idempotency-Key": f"k{i}"}) for i in range(200))
    )
    assert {response.status_code for response in others} == {422}
    assert (await client.get("/event/a")).json()["count"] == 200
