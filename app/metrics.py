"""The metrics for Prometheus.

Event names are no labels of /metrics, because clients choose them and may send any number. A scraper names the events
whose counts it wants.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class Metrics:
    """The metrics of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        in_registry: dict[str, Any] = {"registry": self.registry}
        self.hits = Counter("tally_hits", "Hits counted, by amount.", **in_registry)
        self.posts = Counter("tally_posts", "Write requests, by outcome.", ["outcome"], **in_registry)
        self.accepted, self.refused, self.unknown = (
            self.posts.labels(outcome) for outcome in ("accepted", "refused", "unknown")
        )
        self.commits = Counter("tally_commits", "Commits written to the store.", **in_registry)
        self.batch_posts = Histogram(
            "tally_batch_posts",
            "Write requests per commit.",
            buckets=[1, 3, 10, 30, 100, 300, 1000, 3000, 10_000],
            **in_registry,
        )
        self.commit_seconds = Histogram(
            "tally_commit_seconds",
            "Duration of a commit.",
            buckets=[0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3],
            **in_registry,
        )
        self.alerts_fired = Counter("tally_alerts_fired", "Crossings of alerts.", **in_registry)
        self.alert_deliveries = Counter(
            "tally_alert_deliveries", "Attempts to send an alert, by result.", ["result"], **in_registry
        )
        self.sends = Counter("tally_live_sends", "Messages sent to live clients.", **in_registry)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge with this help text; `value` is called at each scrape."""
        Gauge(name, text, registry=self.registry).set_function(value)


class EventCounts(NamedTuple):
    """Today's count of an event, and its total."""

    event: str
    today: int
    total: int


class EventMetrics(Collector):
    """The counts of some events, labelled by event, for one scrape."""

    def __init__(self, events: Iterable[EventCounts]) -> None:
        self._events = list(events)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        total = CounterMetricFamily("tally_event_hits", "Hits of an event, of all time.", labels=["event"])
        today = GaugeMetricFamily("tally_event_today", "Today's count of an event.", labels=["event"])
        for event in self._events:
            total.add_metric([event.event], event.total)
            today.add_metric([event.event], event.today)
        yield from (total, today)
