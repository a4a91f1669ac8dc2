"""Counters in dicts: the shortest thing that keeps the contract, gone with the process."""

import math
import multiprocessing
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter

from app.events import EVERYTHING, GENERATION, LOG, OFFSET, TOTAL, Batch, Bucket, Changes, Key, Moment, Posting, Write
from app.stores import base
from app.stores.base import Ack, Answer, Applied, Caps, CounterStore, Remembered, Replayed, Value


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
        self._ranked: Counter[Bucket] = Counter()  # ids that have a count of their own

    async def open(self) -> None:
        if multiprocessing.parent_process():
            raise base.StoreRefused(
                "memory:// serves one process: run it without --workers, or set TALLY_STORE to a Redis"
            )

    async def apply(self, source: str, at: int, next: int, work: Batch | Changes) -> Applied:
        offset, applied = self._sources.get(source, (0, Applied([], self.ack)))
        if offset == next:
            return applied
        if offset != at:
            raise base.Moved(offset)
        if isinstance(work, Changes):
            if work.after not in {None, len(self._buckets.get(Bucket("day", work.moment.day, LOG), {}))}:
                raise base.Overtaken
            answers, days = list[Answer](), {work.moment.day}
            self.write(work.writes)
        else:
            answers, days = self.count(work), {posting.moment.day for posting in work}
        applied = Applied(answers, self.ack, {day: n for day in days if (n := self._generation(day))})
        self._sources[source] = (next, applied)
        return applied

    def count(self, batch: Batch) -> list[Answer]:
        return [answer for at, some in groupby(batch, attrgetter("moment")) for answer in self._count_at(at, some)]

    def _count_at(self, moment: Moment, postings: Iterable[Posting]) -> Iterator[Answer]:
        buckets = [self._buckets[bucket] for bucket in moment.buckets]
        offset = self._buckets.get(Bucket("day", moment.day, OFFSET), {})
        _, _, day, total = buckets
        names_max, together = self._caps.names + (EVERYTHING in total), 0

        def value_of(event: str) -> tuple[int, int] | None:
            return (day.get(event, 0) + offset.get(event, 0), total[event]) if event in total else None

        for posting in postings:
            names_left = names_max - len(total) if posting.capped else math.inf
            recalled = posting.key and self._recall(posting, posting.key)
            answer = recalled or base.settle(posting, value_of, names_left)
            values = base.counted(answer)
            for event in values:
                by = posting.counts[event]
                together += by
                for counts in buckets:
                    counts[event] = counts.get(event, 0) + by
            for visit in posting.visits:
                for bucket, visitor in moment.marks(visit) if visit.event in values else ():
                    self._mark(bucket, visitor, visit.by)
            if (key := posting.key) and isinstance(answer, dict):
                replayed = Replayed(moment.date, answer)
                self._keys[key.id] = Remembered(key.request, moment.minute, replayed, key.owner)
                self._owners[key.owner] += 1
            yield answer
        for counts in buckets if together else ():
            counts[EVERYTHING] = counts.get(EVERYTHING, 0) + together

    def _recall(self, posting: Posting, key: Key) -> Answer | None:
        self._forget_keys(posting.moment)
        found, owned, caps = self._keys.get(key.id), self._owners[key.owner], self._caps if posting.capped else None
        return base.recall(key, posting.moment.minute, found, len(self._keys), owned, caps)

    def _mark(self, bucket: Bucket, visitor: str, by: int) -> None:
        """Count a user or a session; who comes after the first RANKED_MAX is only known to have come."""
        marks = self._buckets[bucket]
        known = marks.setdefault(visitor, 0)
        if by and (known or self._ranked[bucket] < base.RANKED_MAX):
            self._ranked[bucket] += not known
            marks[visitor] += by

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
        """Take over what another store says of a bucket. Hits only grow, so the larger number is the newer."""
        known = self._buckets[bucket]
        known.update(counts if bucket.of else {event: n for event, n in counts.items() if n > known.get(event, 0)})

    def learn_values(self, start: int, values: Mapping[str, Value]) -> None:
        """The same of what events came to, on the day that begins then and in total."""
        day, total = self._buckets[Bucket("day", start)], self._buckets[TOTAL]
        offset = self._buckets.get(Bucket("day", start, OFFSET), {})
        for event, value in values.items():
            day[event] = max(day.get(event, 0), value.count - offset.get(event, 0))
            total[event] = max(total.get(event, 0), value.total)

    async def read(self, buckets: Sequence[Bucket], members: Sequence[str] | None = None) -> list[dict[str, int]]:
        found = [self._buckets.get(bucket, {}) for bucket in buckets]
        if members is None:
            return [dict(counts) for counts in found]
        return [{member: counts[member] for member in members if member in counts} for counts in found]

    async def sizes(self, buckets: Sequence[Bucket]) -> list[int]:
        return [len(counts) - (EVERYTHING in counts) for counts in (self._buckets.get(b, {}) for b in buckets)]

    async def buckets(self, days: Sequence[int] | None = None) -> list[Bucket]:
        return [b for b in self._buckets if days is None or (b.step == "day" and b.start in days)]

    async def prune(self, before: Mapping[str, int], moment: Moment) -> None:
        self._forget_keys(moment)
        ends = before, base.before_for_visits(before, moment)
        for bucket in [b for b in self._buckets if b.start < ends[bool(b.of)].get(b.step, 0)]:
            self._forget(bucket)

    def _forget(self, bucket: Bucket) -> None:
        self._buckets.pop(bucket, None)
        self._ranked.pop(bucket, None)

    def _generation(self, day: int) -> int:
        return self._buckets.get(Bucket("day", day, GENERATION), {}).get(EVERYTHING, 0)

    def write(self, writes: Iterable[Write]) -> None:
        for how, bucket, given in writes:
            if how == "drop":
                self._forget(bucket)
            else:
                self._write(how, bucket, given)

    def _write(self, how: str, bucket: Bucket, given: Mapping[str, int]) -> None:
        counts, everything = self._buckets[bucket], 0
        for member, n in given.items():
            known = counts.get(member, 0)
            if how == "mark":
                self._mark(bucket, member, n)
            elif how == "take":
                self._ranked[bucket] -= counts.pop(member, 0) > 0
                everything -= known
            else:
                counts[member] = max(n, known) if how == "merge" else known + n
                everything += n
        if base.is_of_events(bucket) and given:
            counts[EVERYTHING] = counts.get(EVERYTHING, 0) + everything
