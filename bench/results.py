"""The figures of a run, and what Tally is asked to reach."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.load import Figures


@dataclass
class Results:
    """The figures of each row, one a round. A row's place is "scenario/row"."""

    rounds: dict[str, list[Figures]] = field(default_factory=lambda: defaultdict(list))

    def of(self, place: str, figure: str) -> list[float]:
        return [figures[figure] for figures in self.rounds.get(place, []) if figure in figures]

    def rates(self, place: str) -> list[float]:
        return self.of(place, "rate") or self.of(place, "hits")  # those of batches

    def beside(self, place: str, other: str) -> list[float]:
        """How many times the other's rate, round by round, so that a slow round of the machine does not show."""
        return [a / b for a, b in zip(self.rates(place), self.rates(other), strict=False)]

    def beside_by_cpu(self, place: str, other: str) -> list[float]:
        return [b / a for a, b in zip(self.of(place, "us"), self.of(other, "us"), strict=False)]


@dataclass(frozen=True)
class Asked:
    what: str
    find: Callable[[Results], list[float]]
    least: float | None = None
    most: float | None = None
    form: str = "{:.2f}×"

    def bounds(self) -> str:
        given = [(sign, bound) for sign, bound in (("≥", self.least), ("≤", self.most)) if bound is not None]
        return " and ".join(f"{sign} {self.form.format(bound)}" for sign, bound in given)

    def met(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


def _beside(place: str, other: str) -> Callable[[Results], list[float]]:
    return lambda results: results.beside(place, other)


def _figure(place: str, figure: str) -> Callable[[Results], list[float]]:
    return lambda results: results.of(place, figure)


def _batch(store: str) -> Callable[[Results], list[float]]:
    """The share reached of either 500,000 hits a second or 40 times single POSTs, whichever is nearer."""
    batch, single = f"batch/tally {store}", f"post/tally {store}"

    def share(results: Results) -> list[float]:
        both = zip(results.rates(batch), results.beside(batch, single), strict=False)
        return [max(hits / 500_000, times / 40) for hits, times in both]

    return share


def _delay_beside_express(results: Results) -> list[float]:
    """Of all that are due: Express shows a hit in the turn that answers it, and whoever is due meanwhile waits."""
    mine, others = (results.of(place, "due_p99_ms") for place in (DELAY, "delay/express memory, 1,000 a second"))
    return [a / b for a, b in zip(mine, others, strict=False)]


STORES = ("memory", "sqlite", "redis")
PLAIN = "dashboards/tally memory, 200 on /"
EXPRESS = "dashboards/express memory, 200 on /"
DELAY = "delay/tally memory, 1,000 a second"
CROWD = "crowd/tally memory, 2,000"
MS, BYTES = "{:.1f} ms", "{:,.0f} B"

ASKED = [
    Asked("POST on memory, beside Express on memory", _beside("post/tally memory", "post/express memory"), 3),
    Asked("POST on memory, beside bare uvicorn", _beside("post/tally memory", "post/bare"), 0.6),
    Asked("POST on SQLite, beside Express on memory", _beside("post/tally sqlite", "post/express memory"), 2),
    Asked("POST on SQLite, p99", _figure("post/tally sqlite", "p99_ms"), most=8, form=MS),
    Asked("POST on Redis, beside Express on Redis", _beside("post/tally redis", "post/express redis"), 2.5),
    Asked(
        "Redis CPU a hit, 512 connections",
        _figure("connections/tally redis, 512", "redis_us"),
        most=3,
        form="{:.1f} µs",
    ),
    Asked("POST with 200 dashboards, beside Express", _beside("dashboards/tally memory, 200 on /live", EXPRESS), 20),
    Asked("POST with 200 plain clients, beside Express", _beside(PLAIN, EXPRESS), 15),
    Asked("and updates a second to each of them", _figure(PLAIN, "updates"), 2, form="{:,.1f}"),
    Asked("2,000 dashboards, 1,000 hits/s: all the same after", _figure(CROWD, "same_s"), most=2, form="{:.2f} s"),
    Asked("2,000 dashboards, 1,000 hits/s: POST p99", _figure(CROWD, "p99_ms"), most=50, form=MS),
    *(Asked(f"batches on {s}: share of 500,000 hits/s or 40 times single POSTs", _batch(s), 1) for s in STORES),
    Asked("an update at 1,000 hits/s, p50", _figure(DELAY, "shown_p50_ms"), most=10, form=MS),
    Asked("an update at 1,000 hits/s, p99", _figure(DELAY, "shown_p99_ms"), most=150, form=MS),
    Asked("the same p99 from when the hit was due, beside Express", _delay_beside_express, most=1),
    *(
        Asked(f"a name on {s}, in the process", _figure(f"memory/tally {s}", "rss_100000"), None, 1024, BYTES)
        for s in STORES
    ),
    Asked("a name on redis, in Redis", _figure("memory/tally redis", "redis_b_100000"), None, 1024, BYTES),
    *(
        Asked(
            f"POST on {s}, 100,000 names beside 10",
            _beside(f"names/tally {s}, 100,000 names", f"names/tally {s}, 10 names"),
            0.8,
            1.2,
        )
        for s in STORES
    ),
    Asked(
        "POST with 1,000 dashboards, beside none",
        _beside("dashboards/tally memory, 1,000 on /live", "dashboards/tally memory, nobody"),
        0.7,
    ),
]
