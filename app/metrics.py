"""What /metrics tells Prometheus. Never an event's name: names come from outside, and labels must not."""

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        kept: dict[str, Any] = {"registry": self.registry}
        self.hits = Counter("tally_hits", "Hits that were counted, by their amounts.", **kept)
        self.posts = Counter("tally_posts", "POSTs, by what became of them.", ["outcome"], **kept)
        self.accepted, self.refused, self.unknown = (
            self.posts.labels(outcome) for outcome in ("accepted", "refused", "unknown")
        )
        self.commits = Counter("tally_commits", "Batches that the store took.", **kept)
        self.batch_posts = Histogram(
            "tally_batch_posts", "POSTs in a batch.", buckets=[1, 3, 10, 30, 100, 300, 1000, 3000, 10_000], **kept
        )
        self.commit_seconds = Histogram(
            "tally_commit_seconds",
            "How long a commit took.",
            buckets=[0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3],
            **kept,
        )
        self.sends = Counter("tally_live_sends", "Messages queued for pages.", **kept)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Ask for this value whenever Prometheus asks."""
        Gauge(name, text, registry=self.registry).set_function(value)
