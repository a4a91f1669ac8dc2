"""The history checker accepts right histories and rejects wrong ones."""

import pytest

from tests.support.history_checker import History, Outcome


def history(*steps: tuple[str, object]) -> History:
    """Build a history from steps: ("begin", by) and ("end", outcome) of adds in order, and ("read", value)."""
    built, open_adds = History(), []
    for step, value in steps:
        if step == "begin":
            open_adds.append(built.begin("a", value))
        elif step == "end":
            built.end(open_adds.pop(0), value)
        else:
            with built.reading("a") as values:
                values.append(value)
    return built


def added(by: int, outcome: Outcome) -> list[tuple[str, object]]:
    return [("begin", by), ("end", outcome)]


RIGHT = [
    [("read", 0)],
    [*added(3, "acknowledged"), ("read", 3)],
    [*added(3, "rejected"), ("read", 0)],
    [*added(3, "unknown"), ("read", 0), ("read", 3)],
    [("begin", 2), ("read", 0), ("read", 2), ("end", "acknowledged"), ("read", 2)],
    [("begin", 1), ("begin", 1), ("read", 1), ("end", "acknowledged"), ("end", "acknowledged"), ("read", 2)],
    [("begin", 5), ("read", 5)],  # this add never ended
]
WRONG = [
    [("read", 1)],
    [*added(3, "acknowledged"), ("read", 2)],  # lost
    [*added(3, "acknowledged"), ("read", 6)],  # counted twice
    [*added(3, "rejected"), ("read", 3)],  # rejected, but counted
    [*added(3, "unknown"), ("read", 6)],  # counted twice
    [("read", 1), *added(1, "acknowledged")],  # read before it was sent
    [*added(1, "acknowledged"), ("read", 1), *added(1, "acknowledged"), ("read", 1)],  # decreased
]


@pytest.mark.parametrize("steps", RIGHT)
def test_a_right_history_passes(steps) -> None:
    assert history(*steps).wrong_reads() == []


@pytest.mark.parametrize("steps", WRONG)
def test_a_wrong_history_fails(steps) -> None:
    (wrong,) = history(*steps).wrong_reads()
    assert not wrong.lower <= wrong.read.value <= wrong.upper


def test_events_are_checked_separately() -> None:
    built = history(*added(3, "acknowledged"))
    with built.reading("b") as values:
        values.append(0)
    assert built.wrong_reads() == []


def test_a_read_during_an_add_may_include_it_or_not() -> None:
    for value, right in ((0, True), (1, True), (2, False)):
        built = History()
        with built.reading("a") as values:
            add = built.begin("a")
            built.end(add, "acknowledged")
            values.append(value)
        assert (built.wrong_reads() == []) is right
