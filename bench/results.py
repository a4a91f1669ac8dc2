"""The figures of a run, and the targets that Tally has to reach."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.load import Figures


@dataclass
class Results:
    """The figures of each row, one per round. A row's id is "scenario/row"."""

    rounds: dict[str, list[Figures]] = field(default_factory=lambda: defaultdict(list))

    def values(self, row_id: str, figure: str) -> list[float]:
        """Return one figure of a row for each round that has it."""
        return [figures[figure] for figures in self.rounds.get(row_id, []) if figure in figures]

    def rates(self, row_id: str) -> list[float]:
        """Return requests per second, or hits per second for batches."""
        return self.values(row_id, "rate") or self.values(row_id, "hits")

    def ratio_to(self, row_id: str, baseline: str) -> list[float]:
        """Return the ratio of the rates, round by round, so that a slow round of the machine does not show."""
        return [rate / base for rate, base in zip(self.rates(row_id), self.rates(baseline), strict=False)]

    def cpu_ratio_to(self, row_id: str, baseline: str) -> list[float]:
        """Return how many times less processor time a hit takes than on the baseline, round by round."""
        times = zip(self.values(row_id, "cpu_us"), self.values(baseline, "cpu_us"), strict=False)
        return [base / own for own, base in times]


@dataclass(frozen=True)
class Target:
    """A bound for the median of measured values. `form` formats a value with its unit."""

    title: str
    measured: Callable[[Results], list[float]]
    at_least: float | None = None
    at_most: float | None = None
    form: str = "{:.2f}×"

    def bounds(self) -> str:
        """Return the bounds as text for the report."""
        bounds = (("≥", self.at_least), ("≤", self.at_most))
        return " and ".join(f"{sign} {self.form.format(bound)}" for sign, bound in bounds if bound is not None)

    def is_met(self, value: float) -> bool:
        """Return whether a value is within the bounds."""
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


def _ratio(row_id: str, baseline: str) -> Callable[[Results], list[float]]:
    return lambda results: results.ratio_to(row_id, baseline)


def _cpu(row_id: str, baseline: str) -> Callable[[Results], list[float]]:
    return lambda results: results.cpu_ratio_to(row_id, baseline)


def _figure(row_id: str, figure: str) -> Callable[[Results], list[float]]:
    return lambda results: results.values(row_id, figure)


def _batch(store: str) -> Callable[[Results], list[float]]:
    """Compare the rate of batches with two bounds, and return the larger ratio of each round."""
    batch, single = f"batch/tally {store}", f"post/tally {store}"

    def ratios(results: Results) -> list[float]:
        both = zip(results.rates(batch), results.ratio_to(batch, single), strict=False)
        return [max(hits / 500_000, times / 40) for hits, times in both]

    return ratios


def _latency_to_express(results: Results) -> list[float]:
    """Compare latencies from when a hit was due, because Express delays the hits that wait during its broadcast."""
    own, express = (results.values(row, "due_p99_ms") for row in (LATENCY, "latency/express memory, 1,000 hits/s"))
    return [a / b for a, b in zip(own, express, strict=False)]


def _cost(figure: str, row: str, baseline: str) -> Callable[[Results], list[float]]:
    """Compare the processor time of a message or a connection with that of another row."""

    def ratios(results: Results) -> list[float]:
        own, base = (results.values(f"updates/{name}", figure) for name in (row, baseline))
        return [a / b for a, b in zip(own, base, strict=False)]

    return ratios


STORES = ("memory", "sqlite", "redis")
PLAIN = "dashboards/tally memory, 200 on /"
EXPRESS = "dashboards/express memory, 200 on /"
LATENCY = "latency/tally memory, 1,000 hits/s"
MANY = "many-dashboards/tally memory, 2,000"
MS, BYTES = "{:.1f} ms", "{:,.0f} B"

TARGETS = [
    Target("POST on memory, compared with Express on memory", _ratio("post/tally memory", "post/express memory"), 3),
    Target("POST on memory, compared with bare uvicorn", _ratio("post/tally memory", "post/bare"), 2.5),
    Target("POST on memory, compared with webdis", _ratio("post/tally memory", "post/webdis"), 0.85),
    Target("POST on SQLite, compared with bare uvicorn", _ratio("post/tally sqlite", "post/bare"), 1.2),
    Target("POST on Redis, processor time of bare uvicorn to its own", _cpu("post/tally redis", "post/bare"), 1.7),
    Target("POST on SQLite, compared with Express on memory", _ratio("post/tally sqlite", "post/express memory"), 2),
    Target("POST on SQLite, p99", _figure("post/tally sqlite", "p99_ms"), at_most=8, form=MS),
    Target("GET on Redis, compared with GET on memory", _ratio("get/tally redis", "get/tally memory"), 0.6),
    Target("POST on Redis, compared with Express on Redis", _ratio("post/tally redis", "post/express redis"), 2.5),
    Target(
        "Redis CPU per hit, 512 connections",
        _figure("connections/tally redis, 512", "redis_us"),
        at_most=3,
        form="{:.1f} µs",
    ),
    Target(
        "POST with 200 dashboards, compared with Express", _ratio("dashboards/tally memory, 200 on /live", EXPRESS), 30
    ),
    Target("POST with 200 plain clients, compared with Express", _ratio(PLAIN, EXPRESS), 15),
    Target("updates/s to each of these clients", _figure(PLAIN, "updates"), 2, form="{:,.1f}"),
    Target("2,000 dashboards, 1,000 hits/s: converged after", _figure(MANY, "converged_s"), at_most=2, form="{:.2f} s"),
    Target("2,000 dashboards, 1,000 hits/s: POST p99", _figure(MANY, "p99_ms"), at_most=50, form=MS),
    *(Target(f"batches on {s}, compared with 500,000 hits/s or 40 times single POSTs", _batch(s), 1) for s in STORES),
    Target("update latency at 1,000 hits/s, p50", _figure(LATENCY, "shown_p50_ms"), at_most=10, form=MS),
    Target("update latency at 1,000 hits/s, p99", _figure(LATENCY, "shown_p99_ms"), at_most=150, form=MS),
    *(
        Target(
            f"processor time of a message on {channel}, compared with /live",
            _cost("message_us", f"tally memory, {channel}", "tally memory, /live"),
            at_most=1.5,
        )
        for channel in ("/stream", "/stream?event=event-1")
    ),
    Target(
        "processor time of a connection to /live, compared with Express",
        _cost("connect_us", "tally memory, /live", "express memory, /"),
        at_most=1,
    ),
    Target("the same p99 from when the hit was due, compared with Express", _latency_to_express, at_most=1),
    *(
        Target(f"memory per event name on {s}: process", _figure(f"memory/tally {s}", "rss_100000"), None, 1024, BYTES)
        for s in STORES
    ),
    Target("memory per event name on redis: Redis", _figure("memory/tally redis", "redis_b_100000"), None, 1024, BYTES),
    *(
        Target(
            f"POST on {s}, 100,000 names compared with 10",
            _ratio(f"names/tally {s}, 100,000 names", f"names/tally {s}, 10 names"),
            0.8,
            1.2,
        )
        for s in STORES
    ),
    *(
        Target(
            f"POST on {s} with 100 alerts, compared with none",
            _ratio(f"features/tally {s}, with 100 alerts", f"features/tally {s}, plain"),
            0.95,
        )
        for s in STORES
    ),
    Target(
        "POST with 1,000 dashboards, compared with none",
        _ratio("dashboards/tally memory, 1,000 on /live", "dashboards/tally memory, none"),
        0.7,
    ),
]


@dataclass(frozen=True)
class Highlight:
    """A row of the summary: the medians of some figures, and the ratio to a baseline, which `than` names."""

    title: str
    row_id: str
    forms: dict[str, str]  # how to show each figure
    baseline: str = ""
    than: str = ""


RATE = "{:,.0f} requests/s"
HIGHLIGHTS = [
    Highlight(
        "single POSTs on SQLite, on disk before each response",
        "post/tally sqlite",
        {"rate": RATE, "p99_ms": "p99 {:.1f} ms"},
        "post/express memory",
        "Express",
    ),
    Highlight(
        "single POSTs on Redis",
        "post/tally redis",
        {"rate": RATE, "p99_ms": "p99 {:.1f} ms"},
        "post/express redis",
        "Express on Redis",
    ),
    Highlight("single POSTs in memory", "post/tally memory", {"rate": RATE}, "post/express memory", "Express"),
    Highlight(
        "batches of 1,000 hits on SQLite",
        "batch/tally sqlite",
        {"hits": "{:,.0f} hits/s"},
        "post/tally sqlite",
        "single POSTs",
    ),
    Highlight(
        "90 % reads, 10 % hits on SQLite",
        "mixed/tally sqlite, 90 % GET",
        {"rate": RATE},
        "mixed/express memory, 90 % GET",
        "Express",
    ),
    Highlight(
        "single POSTs while 200 dashboards watch",
        "dashboards/tally memory, 200 on /live",
        {"rate": RATE},
        EXPRESS,
        "Express",
    ),
    Highlight(
        "from a hit to 200 clients, at 1,000 hits/s",
        LATENCY,
        {"shown_p50_ms": "p50 {:.1f} ms", "shown_p99_ms": "p99 {:.1f} ms"},
    ),
    Highlight(
        "2,000 dashboards at 1,000 hits/s",
        MANY,
        {"converged_s": "all show the last hit after {:.2f} s", "p99_ms": "POST p99 {:.1f} ms"},
    ),
    Highlight(
        "single POSTs buffered in Kafka, on Redis",
        "kafka/kafka redis, POST",
        {"rate": RATE},
        "post/tally redis",
        "without Kafka",
    ),
    Highlight("records of a Kafka topic, on Redis", "kafka/kafka redis, records", {"records": "{:,.0f} records/s"}),
]
