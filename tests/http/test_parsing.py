"""Any bytes are parsed or rejected, as a batch and as an export."""

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
from app.domain.names import event_name, visitor_id
from app.export_import import ExportError, read_lines
from app.http.batches import BATCH_ITEMS_MAX, parse_batch, sum_amounts, sum_visits
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
        amounts, visits = sum_amounts(hits), sum_visits(hits)
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
    began = time.thread_time()
    with contextlib.suppress(Problem):
        work()
    return time.thread_time() - began


ITEM = '{"event":"a"}'


@pytest.mark.parametrize(
    "body",
    [
        f"[{','.join([ITEM] * 300_000)}]",
        json.dumps(dict.fromkeys(range(300000), 1)),
        "\n" * 4_000_000,
        '{"a":[' + "{}," * 1_300_000 + "{}]}",
        "{" + ",".join(f'"{i}":{{"a":1}}' for i in range(200_000)) + "}",
        pytest.param(
            '{"' + '\\"' * 20_000 + ":" * 10_001,
            marks=pytest.mark.fails_on_mutant(
                "a quote that is not closed takes quadratic time",
                "app/http/batches.py",
                "        amounts = _MAP_DECODER.decode(text)\n",
                "        sum(1 for _ in _PAIR.finditer(text))\n        amounts = _MAP_DECODER.decode(text)\n",
            ),
        ),
    ],
    ids=["array", "map", "lines", "a nested array", "nested maps", "quotes"],
)
def test_a_batch_that_is_rejected_takes_little_time(body: str) -> None:
    """Not much more than a batch of the allowed size: the event loop cannot do anything else meanwhile."""
    allowed = f"[{','.join([ITEM] * BATCH_ITEMS_MAX)}]".encode()
    rejected = body.encode()
    with pytest.raises(Problem):
        parse_batch(rejected)
    assert seconds(lambda: parse_batch(rejected)) < 100 * seconds(lambda: parse_batch(allowed)) + 0.02
