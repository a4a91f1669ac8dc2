"""Alerts as administrators manage them, and the parts that watch and send them."""

import base64
import secrets
import uuid

import msgspec

from app.alerts.messages import SECRET_PREFIX
from app.alerts.sender import AlertSender
from app.alerts.storage import AlertStorage, Saved
from app.alerts.watcher import AlertWatcher
from app.domain.alerts import ALERTS_MAX, Alert, AlertFields, Delivery, format_of
from app.domain.calendar import Clock
from app.metrics import Metrics
from app.stores.base import CounterStore, StoreUnavailable

ATTEMPTS_MAX = 10  # to change an alert that fires at the same time
SECRET_BYTES = 32


class TooManyAlerts(Exception):
    """There are ALERTS_MAX alerts. Nothing was added."""


class AlertService:
    """The alerts of a store, whose URLs may have private addresses if `allow_private`.

    Methods raise StoreUnavailable while the store is unreachable.
    """

    def __init__(self, store: CounterStore, clock: Clock, metrics: Metrics, *, allow_private: bool) -> None:
        self.allow_private = allow_private
        self._store, self._clock, self._storage = store, clock, AlertStorage(store.records)
        self._sender = AlertSender(self._storage, clock, metrics, allow_private=allow_private)
        self.watcher = AlertWatcher(store, clock, metrics, self._sender.send_due)

    def start(self) -> None:
        """Start to notice the hits of events that have alerts."""
        self.watcher.start()

    async def close(self) -> None:
        """Stop watching, then sending."""
        await self.watcher.close()
        await self._sender.close()

    async def check_alerts(self) -> None:
        """Check all alerts, and send what is due. It runs every few seconds. Raises StoreError.

        It does nothing while the store is unreachable.
        """
        if self._store.stale_seconds() is None:
            for alert in await self.watcher.check_all():
                self._sender.send_due(alert)

    async def list_all(self) -> list[Alert]:
        """Return all alerts, oldest first."""
        return [alert for alert, _ in await self._storage.alerts()]

    async def get(self, alert_id: str) -> Alert | None:
        """Return an alert."""
        saved = await self._find(alert_id)
        return saved and saved.value

    async def deliveries(self, alert_id: str) -> list[Delivery]:
        """Return the deliveries of an alert that were not accepted so far."""
        return [delivery for delivery, _ in await self._storage.deliveries(alert_id)]

    async def add(self, fields: AlertFields) -> Alert:
        """Add an alert, which fires for crossings from now on. Raises TooManyAlerts."""
        if len(await self._storage.alerts()) >= ALERTS_MAX:  # several at the same moment may exceed it by a few
            raise TooManyAlerts
        event, when, url, format_, secret = msgspec.structs.astuple(fields)
        secret = secret or SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
        now = int(self._clock.at())
        new = Alert(uuid.uuid4().hex, event, when, url, format_ or format_of(url), secret, now, 0)
        alert = await self.watcher.armed(new)
        await self._storage.add(alert)
        self.watcher.watch(alert)
        return alert

    async def replace(self, alert_id: str, fields: AlertFields) -> Alert | None:
        """Change an alert, or return None if there is none. With another event or condition it is armed again."""
        for _ in range(ATTEMPTS_MAX):
            if not (saved := await self._find(alert_id)):
                return None
            old = saved.value
            changes = {name: value for name, value in msgspec.structs.asdict(fields).items() if value is not None}
            alert = msgspec.structs.replace(old, **{"format": format_of(fields.url), **changes})
            if (alert.event, alert.when) != (old.event, old.when):
                alert = await self.watcher.armed(msgspec.structs.replace(alert, revision=old.revision + 1))
            if await self._storage.replace(saved, alert):
                self.watcher.watch(alert)
                return alert
        raise StoreUnavailable("the alert has fired at the same time, so it was not changed; try again")

    async def delete(self, alert_id: str) -> Alert | None:
        """Delete an alert with its deliveries and return it, or None if there is none."""
        for _ in range(ATTEMPTS_MAX):
            if not (saved := await self._find(alert_id)):
                return None
            if await self._storage.delete(saved):
                return saved.value
        raise StoreUnavailable("the alert has fired at the same time, so it was not deleted; try again")

    async def send_test(self, alert_id: str) -> str | None:
        """Send an example of an alert's message once. Return "" if its URL has accepted it, else what is wrong.

        It returns None if there is no such alert.
        """
        if not (alert := await self.get(alert_id)):
            return None
        when, now = alert.when, self._clock.at()
        threshold = when.threshold(1)
        value = threshold + bool(when.above) - bool(when.below)
        date = self._clock.slot().date if when.count else ""
        sample = Delivery(f"msg_{uuid.uuid4().hex}", alert.event, when, threshold, value, int(now), now, date)
        return await self._sender.send_test(alert, sample)

    async def _find(self, alert_id: str) -> Saved[Alert] | None:
        return next((saved for saved in await self._storage.alerts() if saved.value.id == alert_id), None)
