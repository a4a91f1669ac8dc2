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


@pytest.mark.fails_on_mutant(
    "all items are parsed", "app/http/batches.py", "    if _has_too_many_items(text, first):\n", "    if False:\n"
)
@pytest.mark.parametrize(
    "body",
    [f"[{','.join([ITEM] * 300_000)}]", json.dumps(dict.fromkeys(range(300000), 1)), "\n" * 4_000_000],
    ids=["array", "map", "lines"],
)
def test_a_batch_that_is_too_long_is_rejected_without_parsing_it(body: str) -> None:
    """It takes about as long as a batch of the allowed size."""
    allowed = f"[{','.join([ITEM] * BATCH_ITEMS_MAX)}]".encode()
    rejected = body.encode()
    with pytest.raises(Problem, match="at most 10000 items"):
        parse_batch(rejected)
    assert seconds(lambda: parse_batch(rejected)) < 15 * seconds(lambda: parse_batch(allowed)) + 0.01
