"""GET /health and /metrics: the state of the service, and Prometheus metrics."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from typing_extensions import TypedDict

from app import __version__
from app.domain.calendar import Clock
from app.http.rate_limits import RateLimits
from app.kafka.buffer import DURABILITY
from app.kafka.service import KafkaHealth, KafkaService
from app.live.broadcaster import Broadcaster
from app.live.peers import PeerSync
from app.metrics import Metrics
from app.status import Status, StatusMonitor
from app.stores.base import CounterStore
from app.stores.results import Ack

Health = TypedDict(
    "Health",
    {
        "status": Status,
        "reasons": list[str],
        "store": str,
        "ack": Ack,
        "durability": str,
        "staleSeconds": float | None,
        "spoolBytes": int,
        "lostBatches": int,
        "kafka": KafkaHealth | None,
        "nodes": int,
        "liveTickSeconds": float,
        "resetsAt": str,
        "version": str,
    },
)


def add_metrics(router: APIRouter, metrics: Metrics, store: CounterStore, rate_limits: RateLimits) -> None:
    """Add the route of the Prometheus metrics, after adding those of the store."""
    metrics.watch("tally_spool_bytes", "Bytes in the spool.", lambda: store.status().spool_bytes)
    metrics.watch(
        "tally_store_stale_seconds",
        "How long the store has been unreachable.",
        lambda: store.status().stale_seconds or 0,
    )
    metrics.watch(
        "tally_lost_batches", "Acknowledged commits that the store lost.", lambda: store.status().lost_commits
    )
    metrics.watch(
        "tally_spool_rejected_hits",
        "Acknowledged hits that were spooled and then rejected by the store.",
        lambda: store.status().rejected_hits,
    )

    @router.get("/metrics", response_class=PlainTextResponse)
    async def read_metrics(request: Request) -> Response:
        """Return metrics in the text format of Prometheus."""
        rate_limits.consume(request, "read")
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def add_health(
    router: APIRouter,
    store: CounterStore,
    clock: Clock,
    peers: PeerSync,
    broadcaster: Broadcaster,
    kafka: KafkaService | None,
    status_monitor: StatusMonitor,
) -> None:
    """Add the route of the health check."""

    @router.get("/health", responses={503: {"model": Health, "description": "Hits cannot be accepted"}})
    async def read_health(response: Response) -> Health:
        """Return whether hits are accepted, how durable they are, and the reasons of any problem."""
        store_status, (status, reasons) = store.status(), status_monitor.current()
        stale = store_status.stale_seconds
        response.status_code = 503 if status == "down" else 200
        return Health(
            status=status,
            reasons=reasons,
            store=store.kind,
            ack="kafka" if kafka and kafka.buffer else store_status.ack,
            durability=DURABILITY if kafka and kafka.buffer else store.durability,
            staleSeconds=stale and round(stale, 1),
            spoolBytes=store_status.spool_bytes,
            lostBatches=store_status.lost_commits,
            kafka=kafka.health() if kafka else None,
            nodes=peers.live_node_count(),
            liveTickSeconds=round(broadcaster.seconds_since_broadcast(), 1),
            resetsAt=clock.calendar.local(clock.calendar.next_day(clock.at())).isoformat(),
            version=__version__,
        )
