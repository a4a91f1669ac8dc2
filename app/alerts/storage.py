"""Alerts and their deliveries as records of the store."""

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import msgspec

from app.domain.alerts import Alert, Delivery
from app.stores.records import RecordChange, RecordStore

T = TypeVar("T", Alert, Delivery)

_ALERTS = "alerts"


class Saved(NamedTuple, Generic[T]):
    """An alert or a delivery, and the text of its record, with which a change compares it."""

    value: T
    text: str


class AlertStorage:
    """The alerts of a store, each with its deliveries. Every method may raise StoreUnavailable.

    Methods that change something return False, and change nothing, if another node has changed it meanwhile.
    """

    def __init__(self, records: RecordStore) -> None:
        self._records = records

    async def alerts(self) -> list[Saved[Alert]]:
        """Return all alerts, oldest first."""
        texts = (await self._records.read(_ALERTS)).values()
        saved = [Saved(msgspec.json.decode(text, type=Alert), text) for text in texts]
        return sorted(saved, key=lambda alert: (alert.value.created, alert.value.id))

    async def deliveries(self, alert_id: str) -> list[Saved[Delivery]]:
        """Return the deliveries of an alert, oldest first."""
        texts = (await self._records.read(_deliveries_of(alert_id))).values()
        saved = [Saved(msgspec.json.decode(text, type=Delivery), text) for text in texts]
        return sorted(saved, key=lambda delivery: (delivery.value.fired_at, delivery.value.threshold))

    async def count_deliveries(self, alert_id: str) -> int:
        """Return the number of deliveries of an alert."""
        return await self._records.size(_deliveries_of(alert_id))

    async def add(self, alert: Alert) -> bool:
        """Save a new alert."""
        return await self._records.change([RecordChange(_ALERTS, alert.id, None, _encode(alert))])

    async def replace(self, before: Saved[Alert], after: Alert, fired: Sequence[Delivery] = ()) -> bool:
        """Save a changed alert, with new deliveries, in one atomic step."""
        collection = _deliveries_of(after.id)
        changes = [RecordChange(_ALERTS, after.id, before.text, _encode(after))]
        changes += [RecordChange(collection, delivery.id, None, _encode(delivery)) for delivery in fired]
        return await self._records.change(changes)

    async def delete(self, alert: Saved[Alert]) -> bool:
        """Delete an alert with its deliveries."""
        id_ = alert.value.id
        return await self._records.change([RecordChange(_ALERTS, id_, alert.text, None)], _deliveries_of(id_))

    async def replace_delivery(self, alert_id: str, before: Saved[Delivery], after: Delivery) -> Saved[Delivery] | None:
        """Save a changed delivery and return it, or None if another node has changed it."""
        saved = Saved(after, _encode(after))
        change = RecordChange(_deliveries_of(alert_id), after.id, before.text, saved.text)
        return saved if await self._records.change([change]) else None

    async def delete_delivery(self, alert_id: str, delivery: Saved[Delivery]) -> bool:
        """Delete a delivery."""
        collection = _deliveries_of(alert_id)
        return await self._records.change([RecordChange(collection, delivery.value.id, delivery.text, None)])


def _deliveries_of(alert_id: str) -> str:
    return f"deliveries:{alert_id}"


def _encode(value: Alert | Delivery) -> str:
    return msgspec.json.encode(value).decode()
