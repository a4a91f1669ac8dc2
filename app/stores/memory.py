"""Counters in dicts: the shortest thing that keeps the contract, gone with the process."""

import math
import multiprocessing
from collections import defaultdict
from collections.abc import Mapping, Sequence

from app.events import EVERYTHING, TOTAL, Batch, Bucket, Posting
from app.stores.base import Ack, Answer, Applied, CounterStore, Moved, Refused, StoreRefused, Value, settle


class MemoryStore(CounterStore):
    kind = "memory"
    ack: Ack = "memory"

    def __init__(self, names_max: int) -> None:
        self._names_max = names_max
        self._buckets: defaultdict[Bucket, dict[str, int]] = defaultdict(dict)
        self._sources: dict[str, tuple[int, Applied]] = {}

    async def open(self) -> None:
        if multiprocessing.parent_process():
            raise StoreRefused("memory:// serves one process: run it without --workers, or set TALLY_STORE to a Redis")

    async def apply(self, source: str, at: int, next: int, batch: Batch) -> Applied:  # noqa: A002 # the contract's word
        offset, applied = self._sources.get(source, (0, Applied([], self.ack)))
        if offset == next:
            return applied
        if offset != at:
            raise Moved(offset)
        applied = Applied([self.count(posting, capped=batch.capped) for posting in batch.postings], self.ack)
        self._sources[source] = (next, applied)
        return applied

    def count(self, posting: Posting, *, capped: bool) -> Answer:
        day, total = self._buckets["day", posting.moment.day], self._buckets[TOTAL]

        def value_of(event: str) -> Value | None:
            return Value(day.get(event, 0), total[event]) if event in total else None

        answer = settle(posting, value_of, self._names_max - len(total.keys() - {EVERYTHING}) if capped else math.inf)
        if isinstance(answer, Refused):
            return answer
        for bucket in posting.moment.buckets:
            counts = self._buckets[bucket]
            for event, by in [*posting.counts.items(), (EVERYTHING, sum(posting.counts.values()))]:
                counts[event] = counts.get(event, 0) + by
        return answer

    def learn(self, bucket: Bucket, counts: Mapping[str, int]) -> None:
        """Take over what another store says of a bucket. Counts only grow, so the larger number is the newer."""
        known = self._buckets[bucket]
        known.update({event: max(count, known.get(event, 0)) for event, count in counts.items()})

    async def read(self, buckets: Sequence[Bucket], events: Sequence[str] | None = None) -> list[dict[str, int]]:
        found = [self._buckets.get(bucket, {}) for bucket in buckets]
        if events is None:
            return [dict(counts) for counts in found]
        return [{event: counts[event] for event in events if event in counts} for counts in found]
