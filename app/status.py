"""The overall status of the service: ok, degraded or down, with reasons."""

from typing import Literal, NamedTuple

from app.kafka.service import KafkaService
from app.live.broadcaster import Broadcaster
from app.live.peers import PeerSync
from app.stores.base import CounterStore

LATE_SECONDS = 10.0  # live updates are stalled if the broadcaster, which runs every second, has not run for so long

Status = Literal["ok", "degraded", "down"]


class ServiceStatus(NamedTuple):
    """`down` if hits cannot be accepted, `degraded` if anything else is wrong, else `ok`."""

    status: Status
    reasons: list[str]


def service_status(
    store: CounterStore, peers: PeerSync, broadcaster: Broadcaster, kafka: KafkaService | None
) -> ServiceStatus:
    """Return the present status, without I/O; `kafka` is None if it is not configured."""
    store_status = store.status()
    reasons = [*store_status.reasons, *peers.reasons(), *(kafka.reasons() if kafka else [])]
    if broadcaster.seconds_since_broadcast() > LATE_SECONDS:
        reasons.append("live updates are stalled")
    accepts_hits = kafka.is_accepting() if kafka and kafka.buffer else store_status.accepting
    return ServiceStatus("down" if not accepts_hits else "degraded" if reasons else "ok", reasons)
