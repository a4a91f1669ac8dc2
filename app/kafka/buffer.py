"""The write buffer: hits are acknowledged when they are in Tally's own Kafka topic, and counted from there."""

import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec

from app.domain.buckets import TOTAL
from app.domain.calendar import Clock
from app.domain.counting import IdempotencyKey, Visit
from app.kafka.decoding import BufferedHits
from app.kafka.producer import KafkaWriter
from app.metrics import Metrics
from app.pending_commit import Outcome
from app.settings import Settings
from app.stores.base import CounterStore
from app.stores.results import GroupResult, Value, reject
from app.stores.rules import IDEMPOTENCY_TTL_SECONDS

DURABILITY = "a crash of this process: it is in Kafka, as durable as the topic's replicas (min.insync.replicas)"


class HitBuffer:
    """Writes the hits of each request to Tally's own topic, as one record.

    Limits are checked before a hit is acknowledged, against the names and keys that this node has seen. `count_of`
    returns the last known count of today of an event, 0 if it is unknown.
    """

    def __init__(
        self,
        settings: Settings,
        writer: KafkaWriter,
        store: CounterStore,
        clock: Clock,
        count_of: Callable[[str], int],
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._writer = writer
        self._store = store
        self._clock = clock
        self._count_of = count_of
        self._metrics = metrics
        self._names_left = settings.events_max
        self._new_names: set[str] = set()
        self._client_keys, self._client_keys_until = Counter[str](), 0.0

    async def submit(
        self, amounts: Mapping[str, int], key: IdempotencyKey | None = None, visits: Sequence[Visit] = ()
    ) -> Outcome:
        """Write these hits to Kafka, and wait until it has acknowledged them.

        They are not counted yet: the values are the last known counts without them, with totals of 0. Raises
        Overloaded, RequestTooLarge, StoreUnavailable (not written), or OutcomeUnknown.
        """
        at = self._clock.at()
        date = self._clock.calendar.slot(at).date
        if reason := await self._name_limit_error(amounts) or self._key_limit_error(key, at):
            return Outcome(reject(reason), date, "kafka")
        last_known = GroupResult({event: Value(self._count_of(event), 0) for event in amounts})
        record_key = next(iter(amounts)).encode() if len(amounts) == 1 else secrets.token_bytes(8)
        value = msgspec.json.encode(BufferedHits(dict(amounts), key, tuple(visits)))
        await self._writer.write(self._settings.kafka_topic, record_key, value, at)
        self._metrics.accepted.inc()
        return Outcome(last_known, date, "kafka")

    async def refresh_name_limit(self, caught_up: bool) -> None:
        """Read from the store how many new names are left. `caught_up` is true if all records are counted."""
        (names,) = await self._store.sizes([TOTAL])
        self._names_left = self._settings.events_max - names
        if caught_up:
            self._new_names.clear()

    async def _name_limit_error(self, amounts: Mapping[str, int]) -> Literal["full"] | None:
        """Return "full" if this node knows that the event names exceed TALLY_EVENTS_MAX."""
        new = [event for event in amounts if event not in self._new_names and not self._count_of(event)]
        if len(self._new_names) + len(new) > self._names_left:
            (known,) = await self._store.read([TOTAL], new)
            if len(known) < len(new):
                return "full"
        self._new_names.update(new)
        return None

    def _key_limit_error(self, key: IdempotencyKey | None, at: float) -> Literal["keys"] | None:
        """Return "keys" if this node has accepted TALLY_KEYS_MAX keys in about a day, or a tenth from one client."""
        if at > self._client_keys_until:
            self._client_keys, self._client_keys_until = Counter(), at + IDEMPOTENCY_TTL_SECONDS
        if key:
            keys_max = self._settings.keys_max
            total, of_client = self._client_keys[""], self._client_keys[key.client]
            if total >= keys_max or of_client >= max(1, keys_max // 10):
                return "keys"
            self._client_keys.update((key.client, ""))
        return None
