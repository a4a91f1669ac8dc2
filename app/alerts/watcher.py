"""Compares counts with the alerts of their events, and stores a delivery for each crossing.

Hits never wait for it. After a commit it notices which events were counted, and checks their alerts soon. All alerts
are also checked every few seconds, because the node that counted may have died.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping

from app.alerts.observer import AlertObserver
from app.alerts.storage import AlertStorage, Saved
from app.domain.alerts import Alert, Crossing, Delivery, Observation, advance, arm
from app.domain.calendar import Clock
from app.metrics import Metrics
from app.stores.base import CounterStore, StoreError

DELIVERIES_MAX = 1000  # of one alert; further crossings wait until there is room
CROSSINGS_PER_WRITE = 100
NOTICE_SECONDS = 0.25  # at least, between two checks of the events that are counted

log = logging.getLogger("tally.alerts")


class AlertWatcher:
    """Checks alerts. `on_fired` is called with each alert that has new deliveries."""

    def __init__(self, store: CounterStore, clock: Clock, metrics: Metrics, on_fired: Callable[[Alert], None]) -> None:
        self._storage, self._observer = AlertStorage(store.records), AlertObserver(store, clock)
        self._clock, self._metrics, self._on_fired = clock, metrics, on_fired
        self._watched: Mapping[str, None] = {}  # the events that have alerts
        self._counted = set[str]()  # those of them that were counted since the last check
        self._noticed = asyncio.Event()
        self._check_lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task that checks events after they were counted."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop. Another node, or the next start, finds the crossings that were not noticed."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def notice(self, counts: Mapping[str, int]) -> None:
        """Have the alerts of these events checked soon. It is called after each commit, so it must be quick."""
        if self._watched and (counted := self._watched.keys() & counts.keys()):
            self._counted |= counted
            self._noticed.set()

    async def _run(self) -> None:
        while True:
            await self._noticed.wait()
            self._noticed.clear()
            counted, self._counted = self._counted, set()
            try:
                await self._check(counted)
            except StoreError as error:
                log.info("alerts will be checked later: %s", error)
            except Exception:  # hits go on, and `check_all` repeats this check every few seconds
                log.exception("alerts could not be checked")
            await asyncio.sleep(NOTICE_SECONDS)

    async def check_all(self) -> list[Alert]:
        """Check all alerts, also those with a window; return them. Raises StoreError."""
        return await self._check(None)

    async def armed(self, alert: Alert) -> Alert:
        """Return an alert that fires only for crossings from now on. Raises StoreError."""
        (observed,) = await self._observer.observe([alert], windows=True)
        return arm(alert, observed, self._clock.slot().day)

    def watch(self, alert: Alert) -> None:
        """Notice the event of a new alert from now on. Other nodes do after their next check of all alerts."""
        if not alert.when.window:
            self._watched = {**self._watched, alert.event: None}

    async def _check(self, events: Collection[str] | None) -> list[Alert]:
        """Check the alerts of these events or, with None, all of them."""
        async with self._check_lock:
            saved = await self._storage.alerts()
            alerts = [alert for alert, _ in saved]
            self._watched = dict.fromkeys(alert.event for alert in alerts if not alert.when.window)
            checked = [alert for alert in saved if events is None or alert.value.event in events]
            if checked:
                values = [alert.value for alert in checked]
                observed = await self._observer.observe(values, windows=events is None)
                for alert, found in zip(checked, observed, strict=True):
                    await self._advance(alert, found)
            return alerts

    async def _advance(self, alert: Saved[Alert], observed: Observation) -> None:
        """Store a delivery for each new crossing. Another node may do the same: one of them succeeds."""
        before = alert.value
        changed, crossings = advance(before, observed, CROSSINGS_PER_WRITE)
        if crossings:
            room = DELIVERIES_MAX - await self._storage.count_deliveries(before.id)
            if room < len(crossings):
                changed, crossings = advance(before, observed, max(0, room))
        if changed is not before and await self._storage.replace(
            alert, changed, [self._delivery(before, crossing) for crossing in crossings]
        ):
            if crossings:
                self._metrics.alerts_fired.inc(len(crossings))
                self._on_fired(changed)
            if len(crossings) == CROSSINGS_PER_WRITE:  # there may be more of them
                self.notice({before.event: 0})

    def _delivery(self, alert: Alert, crossing: Crossing) -> Delivery:
        now = self._clock.at()
        date = self._clock.calendar.slot(crossing.day).date if crossing.day else ""
        id_, threshold, _, value = crossing
        return Delivery(id_, alert.event, alert.when, threshold, value, int(now), now, date)
