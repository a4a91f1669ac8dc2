"""Sends stored deliveries to the URLs of their alerts, again and again for a day. Any node can send any of them."""

import asyncio
import logging

import msgspec

from app.alerts.messages import compose
from app.alerts.storage import AlertStorage, Saved
from app.alerts.transport import TIMEOUT_SECONDS, create_client, post
from app.domain.alerts import Alert, Delivery
from app.domain.calendar import Clock
from app.metrics import Metrics
from app.stores.base import StoreError

RETRY_SECONDS = 86_400  # after which a delivery has failed permanently
FIRST_PAUSE_SECONDS, PAUSE_FACTOR, PAUSE_SECONDS_MAX = 5, 3, 3 * 3600
LEASE_SECONDS = 2 * TIMEOUT_SECONDS  # after which another node sends a delivery, because this one may have died
CONCURRENT_MAX = 4  # requests of one alert at once, and tests of all alerts
TEST_SECONDS = 4.0  # deploy/nginx.conf allows a response 5
FAILED_MAX = 100  # deliveries of one alert that are listed after they have failed

log = logging.getLogger("tally.alerts")


class AlertSender:
    """Sends the deliveries of each alert in a task of its own, so that a slow URL delays no other alert."""

    def __init__(self, storage: AlertStorage, clock: Clock, metrics: Metrics, *, allow_private: bool) -> None:
        self._storage, self._clock, self._metrics = storage, clock, metrics
        self._client = create_client(allow_private=allow_private)
        self._alerts: dict[str, Alert] = {}  # those with a task, as they are now
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._tests = asyncio.Semaphore(CONCURRENT_MAX)

    def send_due(self, alert: Alert) -> None:
        """Begin to send the deliveries of an alert that are due, unless they are being sent."""
        self._alerts[alert.id] = alert
        if alert.id not in self._tasks:
            task = self._tasks[alert.id] = asyncio.create_task(self._send_safely(alert.id))
            task.add_done_callback(lambda _: (self._tasks.pop(alert.id), self._alerts.pop(alert.id)))

    async def send_test(self, alert: Alert, sample: Delivery) -> str:
        """Send a delivery once, as a test. Return "" if the URL has accepted it, else what is wrong."""
        message = compose(alert, sample, self._clock.at(), is_test=True)
        try:
            async with asyncio.timeout(TEST_SECONDS), self._tests:
                return await post(self._client, alert.url, message.body, message.headers)
        except TimeoutError:
            return f"no response within {TEST_SECONDS:g} s"

    async def close(self) -> None:
        """Stop. What was not accepted is sent again after LEASE_SECONDS, or after the next start."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    async def _send_safely(self, alert_id: str) -> None:
        try:
            while due := await self._due(alert_id):
                slots = asyncio.Semaphore(CONCURRENT_MAX)
                async with asyncio.TaskGroup() as sending:
                    for delivery in due:
                        sending.create_task(self._send(alert_id, delivery, slots))
        except* StoreError as errors:
            log.info("alerts will be sent later: %s", errors.exceptions[0])
        except* Exception:  # later deliveries must be sent, and this one is due again soon
            log.exception("an alert could not be sent")

    async def _due(self, alert_id: str) -> list[Saved[Delivery]]:
        """Return the deliveries to send now. Delete the oldest of those that have failed, if there are too many."""
        deliveries = await self._storage.deliveries(alert_id)
        for old in [delivery for delivery in deliveries if delivery.value.failed][:-FAILED_MAX]:
            await self._storage.delete_delivery(alert_id, old)
        now = self._clock.at()
        return [delivery for delivery in deliveries if not delivery.value.failed and delivery.value.next_at <= now]

    async def _send(self, alert_id: str, delivery: Saved[Delivery], slots: asyncio.Semaphore) -> None:
        """Claim a delivery, so that no other node sends it at the same time, send it, and save the result."""
        async with slots:
            now, value = self._clock.at(), delivery.value
            claim = msgspec.structs.replace(value, attempts=value.attempts + 1, next_at=now + LEASE_SECONDS)
            claimed = await self._storage.replace_delivery(alert_id, delivery, claim)
            if claimed is None:
                return
            alert = self._alerts[alert_id]
            message = compose(alert, claim, now)
            error = await post(self._client, alert.url, message.body, message.headers)
            if not error:
                self._metrics.alert_deliveries.labels(result="accepted").inc()
                await self._storage.delete_delivery(alert_id, claimed)
                return
            await self._storage.replace_delivery(alert_id, claimed, self._after_failure(claim, error))

    def _after_failure(self, delivery: Delivery, error: str) -> Delivery:
        now = self._clock.at()
        failed = now >= delivery.fired_at + RETRY_SECONDS
        self._metrics.alert_deliveries.labels(result="failed" if failed else "retried").inc()
        log.warning("alert %s was not accepted%s: %s", delivery.id, " and is given up" if failed else "", error)
        pause = min(FIRST_PAUSE_SECONDS * PAUSE_FACTOR ** (delivery.attempts - 1), PAUSE_SECONDS_MAX)
        return msgspec.structs.replace(delivery, next_at=now + pause, error=error, failed=failed)
