"""The overall status of the service: ok, degraded or down, with reasons."""

import time
from typing import Literal, NamedTuple

from app.backups import Backups
from app.group_commit import GroupCommitter
from app.kafka.service import KafkaService
from app.live.broadcaster import Broadcaster
from app.live.peers import PeerSync
from app.nightly_check import NightlyCheck
from app.stores.base import CounterStore

# The broadcaster and the scheduler run every second. They are stalled if they have not run for so long.
LATE_SECONDS = 10.0

Status = Literal["ok", "degraded", "down"]


class ServiceStatus(NamedTuple):
    """`down` if hits cannot be accepted, `degraded` if anything else is wrong, else `ok`."""

    status: Status
    reasons: list[str]
    restart_reasons: list[str]  # those that only a restart of the node removes


class StatusMonitor:
    """Computes the present status from the parts of the service, without I/O."""

    def __init__(
        self,
        store: CounterStore,
        committer: GroupCommitter,
        peers: PeerSync,
        broadcaster: Broadcaster,
        kafka: KafkaService | None,
        backups: Backups,
        nightly_check: NightlyCheck,
    ) -> None:
        """`kafka` is None if it is not configured."""
        self._store, self._committer, self._peers = store, committer, peers
        self._broadcaster, self._kafka = broadcaster, kafka
        self._backups, self._nightly_check = backups, nightly_check
        self._jobs_ran_at = time.monotonic()

    def record_jobs_ran(self) -> None:
        """Note that the scheduler is alive. Must be called every second."""
        self._jobs_ran_at = time.monotonic()

    def current(self) -> ServiceStatus:
        """Return the present status."""
        store, kafka = self._store.status(), self._kafka
        reasons = [*store.reasons, *self._peers.reasons(), *(kafka.reasons() if kafka else [])]
        reasons += [*self._backups.reasons(), *self._nightly_check.reasons()]
        if self._broadcaster.seconds_since_broadcast() > LATE_SECONDS:
            reasons.append("live updates are stalled")
        if time.monotonic() - self._jobs_ran_at > LATE_SECONDS:
            reasons.append("periodic jobs are stalled: days are not announced and old counts are not deleted")
        restart_reasons = []
        if kafka and not kafka.is_running:
            restart_reasons.append("counting from Kafka has stopped because of an error in Tally; restart this node")
        accepts_hits = kafka.is_accepting() if kafka and kafka.buffer else store.accepting
        if not self._committer.is_running:
            restart_reasons.append("hits are not counted because of an error in Tally; restart this node")
            accepts_hits = False
        reasons += restart_reasons
        status: Status = "down" if not accepts_hits else "degraded" if reasons else "ok"
        return ServiceStatus(status, reasons, restart_reasons)
