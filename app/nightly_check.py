"""The nightly check of a node: the counts of its store, and those that live clients see."""

import asyncio
import logging
from collections.abc import Callable

from app.backups import Backups
from app.check import check_copy, check_store
from app.domain.buckets import ALL_EVENTS
from app.live.day import LiveDay
from app.live.peers import PeerSync
from app.metrics import Metrics
from app.settings import Settings
from app.stores.base import CounterStore, StoreError

LIVE_READS = 3  # of the live counts, before a difference is reported
LIVE_SECONDS = 2.0  # all nodes show the same counts within a second
LOGGED_MAX = 20  # differences

log = logging.getLogger("tally.check")


class NightlyCheck:
    """Checks the counts, and reports differences as a metric, as a reason in /health, and by event in the log.

    One node checks a shared store, but each node checks what its live clients see.
    """

    def __init__(
        self,
        store: CounterStore,
        backups: Backups,
        live_day: LiveDay,
        peers: PeerSync,
        settings: Settings,
        now: Callable[[], float],
        metrics: Metrics,
    ) -> None:
        self._store, self._backups, self._live_day, self._peers = store, backups, live_day, peers
        self._settings, self._now = settings, now
        self._differences = 0
        metrics.watch(
            "tally_check_differences",
            "Differences between counts that the last check found.",
            lambda: self._differences,
        )

    async def run(self) -> None:
        """Check everything. A store that is unreachable is checked in the next night."""
        try:
            found = await self._check_store() if self._peers.is_first_node() else []
            found += await self._check_live()
        except StoreError as error:
            log.warning("the counts were not checked, and will be in the next night: %s", error)
            return
        self._differences = len(found)
        for difference in found[:LOGGED_MAX]:
            log.error("the check found a difference: %s", difference)

    async def _check_store(self) -> list[str]:
        if self._store.kind != "sqlite":
            return [] if self._is_stale() else await check_store(self._store, self._settings, self._now())
        async with self._backups.temporary_copy() as copy:
            return await check_copy(copy, self._settings, self._now())

    async def _check_live(self) -> list[str]:
        """Compare the live counts of today with the store. Hits only raise both, the live ones a moment later."""
        day = self._live_day
        for _ in range(LIVE_READS):
            version, before = (day.head.epoch, day.day, day.generation), day.counts()
            stored = await self._store.counts(day.day)
            await asyncio.sleep(LIVE_SECONDS)
            after = day.counts()
            if self._is_stale() or version != (day.head.epoch, day.day, day.generation):
                return []
            events = sorted({*stored, *after} - {ALL_EVENTS})
            found = [e for e in events if not before.get(e, 0) <= stored.get(e, 0) <= after.get(e, 0)]
            if not found:
                return []
        return [f"{e}: live clients see {after.get(e, 0)}, but the store has {stored.get(e, 0)}" for e in found]

    def _is_stale(self) -> bool:
        """Return whether reads may have returned the last known counts."""
        return self._store.stale_seconds() is not None

    def reasons(self) -> list[str]:
        """Return why the status is degraded. It has no event names, because anyone may read /health."""
        n = self._differences
        return [f"the last check found {n} differences between counts: the log names them"] if n else []
