"""GET /health, /metrics and /permissions, the probes of Kubernetes, and /healthcheck and /stats of Abacus."""

import time
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from typing_extensions import TypedDict

from app import __version__
from app.domain.buckets import TOTAL
from app.domain.calendar import Clock
from app.http.parsing import QUERY_EVENTS_MAX, event_in_query
from app.http.permissions import Open, Permissions
from app.http.queries import CountQueries
from app.http.rate_limits import RateLimits
from app.kafka.buffer import DURABILITY
from app.kafka.service import KafkaHealth, KafkaService
from app.live.broadcaster import Broadcaster
from app.live.peers import PeerSync
from app.metrics import EventCounts, EventMetrics, Metrics
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
        "open": list[Open],
        "version": str,
    },
)


class Probe(TypedDict):
    """The result of a probe, and why it failed."""

    ok: bool
    reasons: list[str]


class GrantedRoles(TypedDict):
    """What an API key may do."""

    read: bool
    write: bool
    admin: bool


Uptime = TypedDict("Uptime", {"status": Status, "uptime": str})
Stats = TypedDict("Stats", {"version": str, "uptime": str, "total_keys": int, "keys_created": int})


def add_metrics(
    router: APIRouter, reads: APIRouter, metrics: Metrics, queries: CountQueries, rate_limits: RateLimits
) -> None:
    """Add the routes of the Prometheus metrics, after adding those of the store."""
    store = queries.store
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

    @reads.get("/metrics/events", response_class=PlainTextResponse)
    async def read_event_metrics(event: Annotated[list[str], Query(max_length=QUERY_EVENTS_MAX)]) -> Response:
        """Return the total and today's count of each event of `?event=a&event=b`, in the text format of Prometheus."""
        events = list(dict.fromkeys(map(event_in_query, event)))
        hits, corrections, totals = await store.read([*queries.clock.slot().day_buckets, TOTAL], events)
        counts = (EventCounts(e, hits.get(e, 0) + corrections.get(e, 0), totals.get(e, 0)) for e in events)
        return Response(generate_latest(EventMetrics(counts)), media_type=CONTENT_TYPE_LATEST)


def add_health(
    router: APIRouter,
    store: CounterStore,
    clock: Clock,
    peers: PeerSync,
    broadcaster: Broadcaster,
    kafka: KafkaService | None,
    status_monitor: StatusMonitor,
    permissions: Permissions,
) -> None:
    """Add the routes of the health check and of the probes."""
    _add_probes(router, status_monitor)

    @router.get("/health", responses={503: {"model": Health, "description": "Hits cannot be accepted"}})
    async def read_health(response: Response) -> Health:
        """Return whether hits are accepted, how durable they are, and the reasons of any problem."""
        store_status, (status, reasons, _) = store.status(), status_monitor.current()
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
            open=permissions.open_access(),
            version=__version__,
        )


def _add_probes(router: APIRouter, status_monitor: StatusMonitor) -> None:
    """Add the routes for the probes of Kubernetes, which restarts a node if /health/live fails."""

    @router.get("/health/live", responses={503: {"model": Probe, "description": "Only a restart helps"}})
    async def read_liveness(response: Response) -> Probe:
        """Return whether the process works, even if its store does not."""
        reasons = status_monitor.current().restart_reasons
        return _probe(response, ok=not reasons, reasons=reasons)

    @router.get("/health/ready", responses={503: {"model": Probe, "description": "Hits cannot be accepted"}})
    async def read_readiness(response: Response) -> Probe:
        """Return whether hits are accepted."""
        current = status_monitor.current()
        return _probe(response, ok=current.status != "down", reasons=current.reasons)


def add_permissions(reads: APIRouter, permissions: Permissions) -> None:
    """Add the route that checks an API key."""

    @reads.get("/permissions")
    async def read_permissions(request: Request) -> GrantedRoles:
        """Return what the API key of this request may do, or a request without one. An unknown key may do nothing."""
        granted = permissions.granted(request.scope)
        return GrantedRoles(read="read" in granted, write="write" in granted, admin="admin" in granted)


def _probe(response: Response, *, ok: bool, reasons: list[str]) -> Probe:
    response.status_code = 200 if ok else 503
    return Probe(ok=ok, reasons=[] if ok else reasons)


def add_abacus_status(router: APIRouter, reads: APIRouter, store: CounterStore, status_monitor: StatusMonitor) -> None:
    """Add the health check of Abacus, and the statistics of Abacus and CountAPI."""
    began = time.monotonic()

    def uptime() -> str:
        return f"{time.monotonic() - began:.3f}s"

    @router.get("/healthcheck", responses={503: {"model": Uptime, "description": "Hits cannot be accepted"}})
    async def check_health(response: Response) -> Uptime:
        """Return `ok` and the uptime of this node, as Abacus does; `/health` has more."""
        status = status_monitor.current().status
        response.status_code = 503 if status == "down" else 200
        return Uptime(status=status, uptime=uptime())

    @reads.get("/stats")
    async def read_stats() -> Stats:
        """Return the version, the uptime of this node, and the number of events."""
        (events,) = await store.sizes([TOTAL])
        return Stats(version=__version__, uptime=uptime(), total_keys=events, keys_created=events)
