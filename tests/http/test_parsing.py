"""Any bytes are parsed or rejected, as a batch and as an export."""

import asyncio
import contextlib
import io
import json
import time
from collections.abc import Callable
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.domain.calendar import Calendar, Clock
from app.domain.counting import Hit
from app.domain.names import event_name, visitor_id
from app.export_import import ExportError, read_lines
from app.http.batches import BATCH_ITEMS_MAX, parse_batch, sum_batch
from app.http.errors import Problem

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
def test_any_bytes_are_a_valid_batch_or_rejected(body: bytes) -> None:
    try:
        hits = parse_batch(body)
        amounts, visits = asyncio.run(sum_batch(hits))
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
DIMENSIONS = st.sampled_from(
    ["", "offset", "generation", "log", "part:1", "user:a", "session:a/b", "sketch:user:a", "x"]
)
MEMBERS = st.dictionaries(TEXTS | st.sampled_from(["", "0", "16384", '[1,2,"reset","",[0,0],[0,0]]']), st.integers())
LINES = st.builds(
    lambda *bucket, counts: {"bucket": bucket, "counts": counts}, STEPS, st.integers(), DIMENSIONS, counts=MEMBERS
)
LINES |= st.dictionaries(st.sampled_from(["bucket", "counts", "end"]), VALUES) | VALUES


@given(st.lists(LINES, max_size=3), st.integers(0, 5) | st.none(), st.binary(max_size=9))
@any_example
def test_any_file_is_a_valid_export_or_rejected(lines: list[object], end: int | None, rest: bytes) -> None:
    head = {"tally": 1, "export": "e", "timezone": "UTC"}
    file = [json.dumps(line).encode() for line in (head, *lines, {"end": len(lines) + 1 if end is None else end})]
    try:
        found = list(read_lines(io.BytesIO(b"\n".join(file) + rest), Clock(Calendar(ZoneInfo("UTC")), lambda: 0.0)))
    except ExportError as error:
        str(error).encode()
    else:
        assert all(
            line.bucket.step in {"minute", "hour", "day", "total"} and 0 <= line.bucket.start < 2**40 for line in found
        )
        assert all(abs(count) < 2**53 for line in found for count in line.counts.values())


def seconds(work: Callable[[], object]) -> float:
    """The least CPU time of three runs."""
    times = []
    for _ in range(3):
        began = time.thread_time()
        with contextlib.suppress(Problem):
            work()
        times.append(time.thread_time() - began)
    return min(times)


ITEM = '{"event":"a"}'
VISITED = [{"event": f"e{i}", "user": f"u{i}", "session": f"s{i}"} for i in range(BATCH_ITEMS_MAX)]


@pytest.mark.parametrize(
    "body",
    [
        f"[{','.join([ITEM] * 300_000)}]",
        pytest.param(
            json.dumps(dict.fromkeys(range(350_000), 1)),
            marks=pytest.mark.fails_on_mutant(
                "a long map is built", "app/http/batches.py", "and _LONG_MAP.match(plain)", "and False"
            ),
        ),
        "\n" * 4_000_000,
        " " * 4_000_000 + '{"a":0}',
        '{"a":[' + "{}," * 1_300_000 + "{}]}",
        "{" + ",".join(f'"{i}":{{"a":1}}' for i in range(200_000)) + "}",
        '{"' + ":" * 4_000_000 + '":1}',
        '{"' + '\\"' * 2_000_000 + ":" * 10_001,
        json.dumps({'"' * 180 + f":{i}": 1 for i in range(9_999)}),
        "[" * 4_000_000,
        pytest.param(
            "[" * 20_000 + "{" * 10_001,
            marks=pytest.mark.fails_on_mutant(
                "the time is quadratic", "app/http/batches.py", "_LONG_ARRAY.match(", "_LONG_ARRAY.search("
            ),
        ),
        '[{"event":"a","by":' + "1" * 4_000_000 + "}]",
        '[{"event":"' + "\\u0041" * 600_000 + '"}]',
    ],
    ids=[
        "array",
        "map",
        "lines",
        "spaces",
        "nested array",
        "nested maps",
        "colons",
        "open quote",
        "escapes",
        "brackets",
        "brackets and braces",
        "digits",
        "long name",
    ],
)
def test_a_batch_that_is_rejected_takes_little_time(body: str) -> None:
    """Not much more than an ordinary batch: the event loop cannot do anything else meanwhile."""
    ordinary, rejected = json.dumps(VISITED).encode(), body.encode()

    def parse(batch: bytes) -> None:
        asyncio.run(sum_batch(parse_batch(batch)))

    with pytest.raises(Problem):
        parse(rejected)
    assert seconds(lambda: parse(rejected)) < 3 * seconds(lambda: parse(ordinary))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(
            "[" + f"{ITEM}," * BATCH_ITEMS_MAX + f"{ITEM},x",
            marks=pytest.mark.fails_on_mutant(
                "a long array is built", "app/http/batches.py", "and _LONG_ARRAY.match(", "and not len("
            ),
        ),
        "{" + ",".join(f'"{i}":1' for i in range(BATCH_ITEMS_MAX + 1)) + ",x",
        pytest.param(
            f"{ITEM}\n" * (BATCH_ITEMS_MAX + 1) + "x",
            marks=pytest.mark.fails_on_mutant(
                "all lines are decoded",
                "app/http/batches.py",
                "lines_of(text)[: BATCH_ITEMS_MAX + 1]",
                "lines_of(text)",
            ),
        ),
    ],
    ids=["array", "map", "NDJSON"],
)
def test_a_batch_is_read_up_to_the_first_item_that_is_too_many(body: str) -> None:
    with pytest.raises(Problem) as rejected:
        parse_batch(body.encode())
    assert rejected.value.status_code == 413


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "}{",
        "[",
        "\\",
        '\\"',
        '":1,"',
        pytest.param(
            '"},{"',
            marks=pytest.mark.fails_on_mutant(
                "an escaped quote ends a string", "app/http/batches.py", """.replace('\\\\"', "")""", ""
            ),
        ),
    ],
)
def test_the_items_of_a_batch_are_counted_whatever_their_names_are(name: str) -> None:
    for number, status in ((BATCH_ITEMS_MAX, None), (BATCH_ITEMS_MAX + 1, 413)):
        for batch in ([{"event": name}] * number, {f"{i}{name}": 1 for i in range(number)}):
            try:
                assert len(parse_batch(json.dumps(batch).encode())) == number
                found = None
            except Problem as problem:
                found = problem.status_code
            assert found == status


def test_amounts_of_a_name_that_occurs_twice_in_a_map_add_up() -> None:
    hits = parse_batch(b'{"a:b": 1, "\\"": 2, "a:b": 3}')
    assert asyncio.run(sum_batch(hits)) == ({"a:b": 4, '"': 2}, [])


@pytest.mark.fails_on_mutant(
    "all names are checked at once", "app/http/batches.py", "        if start:\n", "        if False:\n"
)
async def test_other_tasks_run_while_the_names_of_a_batch_are_checked() -> None:
    """These names take long, because their marks are in the wrong order."""
    hits = [Hit("\u0301\u0323" * 50 + f"{i}") for i in range(BATCH_ITEMS_MAX)]
    summing = asyncio.create_task(sum_batch(hits))
    began = ended = time.thread_time()
    longest = 0.0
    while not summing.done():
        await asyncio.sleep(0)
        longest, ended = max(longest, time.thread_time() - ended), time.thread_time()
    assert len((await summing)[0]) == BATCH_ITEMS_MAX
    assert longest < (ended - began) / 4
