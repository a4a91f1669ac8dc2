"""Sums of hits."""

from hypothesis import given
from hypothesis import strategies as st

from app.domain.counting import Hit, sum_hits


@given(st.lists(st.builds(Hit, st.sampled_from("abc"), st.integers(1, 9))))
def test_the_sums_by_event_add_up_to_all_hits(hits: list[Hit]) -> None:
    counts = sum_hits(hits)
    assert sum(counts.values()) == sum(hit.by for hit in hits)
    assert set(counts) == {hit.event for hit in hits}
