"""The write buffer: hits are acknowledged when they are in Tally's own Kafka topic, and counted from there."""

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
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


# A new name that the store does not have after so many rounds was rejected. In the round in which it was added, its
# record may not be in Kafka yet. A round takes at least SYNC_INTERVAL_SECONDS, the time until a record is acknowledged.
ROUNDS_KEPT = 3


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
        self._new_names: dict[str, int] = {}  # not in the store yet; the round in which each was added
        self._round = 0
        self._is_fresh = False  # whether no name was added since the last refresh
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

    async def refresh_name_limit(self, all_counted: bool) -> None:
        """Read from the store how many new names are left, and which it has by now.

        `all_counted` is true if all records are counted that Kafka had when it was last true.
        """
        self._round += all_counted
        for event in [e for e, added in self._new_names.items() if self._round - added >= ROUNDS_KEPT]:
            del self._new_names[event]
        (known,) = await self._store.read([TOTAL], list(self._new_names))
        (names,) = await self._store.sizes([TOTAL])  # after the names, so that none is missing in both
        for event in known:
            self._new_names.pop(event, None)
        self._names_left = self._settings.events_max - names
        self._is_fresh = True

    async def _name_limit_error(self, amounts: Mapping[str, int]) -> Literal["full"] | None:
        """Return "full" if this node knows that the event names exceed TALLY_EVENTS_MAX."""
        new = self._not_seen(amounts)
        if len(self._new_names) + len(new) > self._names_left:
            (known,) = await self._store.read([TOTAL], new)
            if not self._is_fresh:  # some of the new names may be old ones that had no hits today
                await self.refresh_name_limit(all_counted=False)
            new = [event for event in self._not_seen(amounts) if event not in known]
            if new and len(self._new_names) + len(new) > self._names_left:
                return "full"
        self._is_fresh &= not new
        self._new_names |= dict.fromkeys(new, self._round)
        return None

    def _not_seen(self, events: Iterable[str]) -> list[str]:
        return [event for event in events if event not in self._new_names and not self._count_of(event)]

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
