"""The metrics for Prometheus. Event names are never labels, because clients choose them and may send any number."""

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


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
        self.sends = Counter("tally_live_sends", "Messages sent to live clients.", **in_registry)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge with this help text; `value` is called at each scrape."""
        Gauge(name, text, registry=self.registry).set_function(value)
