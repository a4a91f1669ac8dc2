"""What an operator asks: how it is, and figures for Prometheus."""

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from typing_extensions import TypedDict

from app import __version__
from app.domain.calendar import Clock
from app.http.rate_limits import RateLimits
from app.kafka.consumer import DURABILITY, Kafka, KafkaHealth
from app.live.broadcaster import Broadcaster
from app.live.peers import PeerSync
from app.metrics import Metrics
from app.status import Status, service_status
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


def add_routes(
    app: FastAPI,
    store: CounterStore,
    nodes: PeerSync,
    live: Broadcaster,
    kafka: Kafka | None,
    clock: Clock,
    limits: RateLimits,
    metrics: Metrics,
) -> None:
    metrics.watch("tally_spool_bytes", "What waits to be applied.", lambda: store.status().spool_bytes)
    metrics.watch("tally_store_stale_seconds", "How long the store is away.", lambda: store.status().stale_seconds or 0)
    metrics.watch("tally_lost_batches", "Acknowledged, then lost by the store.", lambda: store.status().lost_commits)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def read_metrics(request: Request) -> Response:
        """For Prometheus."""
        limits.charge(request, "read")
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/health", responses={503: {"model": Health, "description": "Hits cannot be accepted"}})
    async def read_health(response: Response) -> Health:
        """Whether hits are accepted, what an acknowledgement survives, and what an operator should know."""
        condition, (status, reasons) = store.status(), service_status(store, nodes, live, kafka)
        stale = condition.stale_seconds
        response.status_code = 503 if status == "down" else 200
        return Health(
            status=status,
            reasons=reasons,
            store=store.kind,
            ack="kafka" if kafka and kafka.buffers else condition.ack,
            durability=DURABILITY if kafka and kafka.buffers else store.durability,
            staleSeconds=stale and round(stale, 1),
            spoolBytes=condition.spool_bytes,
            lostBatches=condition.lost_commits,
            kafka=kafka.health() if kafka else None,
            nodes=nodes.count(),
            liveTickSeconds=round(live.tick_seconds(), 1),
            resetsAt=clock.calendar.local(clock.calendar.next_day(clock.at())).isoformat(),
            version=__version__,
        )
