"""Counters in dicts: the shortest thing that keeps the contract, gone with the process."""

import math
import multiprocessing
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from app.events import EVERYTHING, Batch, Bucket, Moment, Posting
from app.stores import base
from app.stores.base import Ack, Answer, Applied, Caps, CounterStore, Refused, Remembered, Replayed


class MemoryStore(CounterStore):
    kind = "memory"
    ack: Ack = "memory"
    survives = "nothing: counts live as long as this process"

    def __init__(self, caps: Caps) -> None:
        self._caps = caps
        self._buckets: defaultdict[Bucket, dict[str, int]] = defaultdict(dict)
        self._sources: dict[str, tuple[int, Applied]] = {}
        self._keys: dict[str, Remembered] = {}  # oldest first
        self._owners: Counter[str] = Counter()

    async def open(self) -> None:
        if multiprocessing.parent_process():
            raise base.StoreRefused(
                "memory:// serves one process: run it without --workers, or set TALLY_STORE to a Redis"
            )

    async def apply(self, source: str, at: int, next: int, batch: Batch) -> Applied:
        offset, applied = self._sources.get(source, (0, Applied([], self.ack)))
        if offset == next:
            return applied
        if offset != at:
            raise base.Moved(offset)
        applied = Applied([self.count(posting) for posting in batch], self.ack)
        self._sources[source] = (next, applied)
        return applied

    def count(self, posting: Posting) -> Answer:
        moment, key, capped = posting.moment, posting.key, posting.capped
        if key:
            self._forget_keys(moment)
            found, owned = self._keys.get(key.id), self._owners[key.owner]
            known = base.recall(posting, found, len(self._keys), owned, self._caps if capped else None)
            if known:
                return known
        buckets = [self._buckets[bucket] for bucket in moment.buckets]
        _, _, day, total = buckets

        def value_of(event: str) -> tuple[int, int] | None:
            return (day.get(event, 0), total[event]) if event in total else None

        names_left = self._caps.names - (len(total) - (EVERYTHING in total)) if capped else math.inf
        answer = base.settle(posting, value_of, names_left)
        if isinstance(answer, Refused):
            return answer
        together = sum(posting.counts.values())
        for counts in buckets:
            for event, by in posting.counts.items():
                counts[event] = counts.get(event, 0) + by
            counts[EVERYTHING] = counts.get(EVERYTHING, 0) + together
        if key:
            self._keys[key.id] = Remembered(key.request, moment.minute, Replayed(moment.date, answer), key.owner)
            self._owners[key.owner] += 1
        return answer

    def _forget_keys(self, moment: Moment) -> None:
        while self._keys:
            oldest = next(iter(self._keys))
            if self._keys[oldest].minute > moment.minute - base.KEY_KEPT_SECONDS:
                return
            owner = self._keys.pop(oldest).owner
            self._owners[owner] -= 1
            if not self._owners[owner]:
                del self._owners[owner]

    def learn(self, bucket: Bucket, counts: Mapping[str, int]) -> None:
        """Take over what another store says of a bucket. Counts only grow, so the larger number is the newer."""
        known = self._buckets[bucket]
        known.update({event: max(count, known.get(event, 0)) for event, count in counts.items()})

    async def read(self, buckets: Sequence[Bucket], events: Sequence[str] | None = None) -> list[dict[str, int]]:
        found = [self._buckets.get(bucket, {}) for bucket in buckets]
        if events is None:
            return [dict(counts) for counts in found]
        return [{event: counts[event] for event in events if event in counts} for counts in found]

    async def sizes(self, buckets: Sequence[Bucket]) -> list[int]:
        return [len(counts) - (EVERYTHING in counts) for counts in (self._buckets.get(b, {}) for b in buckets)]

    async def prune(self, before: Mapping[str, int], moment: Moment) -> None:
        self._forget_keys(moment)
        for step, start in list(self._buckets):
            if start < before.get(step, 0):
                del self._buckets[step, start]
