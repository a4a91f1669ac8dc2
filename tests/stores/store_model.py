"""A model of a store (docs/explanation/exactly-once.md): dictionaries of counts, visitors, keys and corrections."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from app.domain.buckets import ALL_EVENTS, TOTAL, Bucket
from app.domain.calendar import TimeSlot
from app.domain.counting import HitGroup, visitor_buckets
from app.stores.results import GroupResult, Value, reject
from app.stores.rules import IDEMPOTENCY_TTL_SECONDS, VISITOR_MINUTES_TTL_SECONDS


class StoreModel:
    """Does what a store should do. `is_exact` is false for a store that estimates the number of visitors."""

    def __init__(self, names_max: int, ranked_max: int, is_exact: bool) -> None:
        self.names_max, self.ranked_max, self.is_exact = names_max, ranked_max, is_exact
        self.counts: dict[Bucket, Counter[str]] = {}
        self.visitors: dict[Bucket, set[str]] = {}
        self.keys: dict[str, tuple[str, int, GroupResult]] = {}
        self.history: dict[int, list[Any]] = {}  # the corrections of each day

    def count(self, group: HitGroup) -> GroupResult:
        """Count a group and return the expected result."""
        key, slot = group.key, group.slot
        if not group.atomic:
            parts = {e: self.count(msgspec.structs.replace(group.only([e]), atomic=True)) for e in group.amounts}
            values = {event: part.values[event] for event, part in parts.items() if part.values}
            return GroupResult(values, {event: part.reason for event, part in parts.items() if part.reason})
        if key and key.id in self.keys and self.keys[key.id][1] > slot.minute - IDEMPOTENCY_TTL_SECONDS:
            request, _, replay = self.keys[key.id]
            return replay if request == key.request else reject("mismatch")
        totals = self.counts.setdefault(TOTAL, Counter())
        new = group.amounts.keys() - totals.keys()
        if new and len((totals.keys() | new) - {ALL_EVENTS}) > self.names_max:  # imports may have exceeded the limit
            return reject("full")
        for bucket in slot.buckets:
            self.add(bucket, group.amounts)
        for visit in group.visits:
            for bucket, visitor in visitor_buckets(slot, visit):
                self.count_visitor(bucket, visitor, visit.by)
        values = {event: self.value(slot, event) for event in group.amounts}
        if key:
            self.keys[key.id] = (key.request, slot.minute, GroupResult(values, {}, slot.date))
        return GroupResult(values)

    def add(self, bucket: Bucket, amounts: Mapping[str, int]) -> None:
        self.counts.setdefault(bucket, Counter()).update({**amounts, ALL_EVENTS: sum(amounts.values())})

    def count_visitor(self, bucket: Bucket, visitor: str, by: int) -> None:
        self.visitors.setdefault(bucket, set()).add(visitor)
        ranked = self.counts.setdefault(bucket, Counter())
        if by and (visitor in ranked or len(ranked) < self.ranked_max):
            ranked[visitor] += by

    def value(self, slot: TimeSlot, event: str) -> Value:
        hits, corrections = (self.counts.get(bucket, Counter()) for bucket in slot.day_buckets)
        return Value(hits[event] + corrections[event], self.counts.get(TOTAL, Counter())[event])

    def generation(self, slot: TimeSlot) -> int:
        return len(self.history.get(slot.day, ()))

    def has_room_for(self, event: str) -> bool:
        """Return whether the limit on names allows a correction of this event."""
        totals = self.counts.get(TOTAL, Counter()).keys()
        return event in totals or len(totals - {ALL_EVENTS}) < self.names_max

    def delete(self, event: str) -> None:
        for bucket in list(self.counts):
            if bucket.dimension in {f"user:{event}", f"session:{event}"}:
                del self.counts[bucket], self.visitors[bucket]
            elif event in self.counts[bucket] and ":" not in bucket.dimension.removeprefix("part:"):
                self.counts[bucket][ALL_EVENTS] -= self.counts[bucket].pop(event)

    def reset(self, slot: TimeSlot, at: int) -> None:
        hits, corrections = (self.counts.setdefault(bucket, Counter()) for bucket in slot.day_buckets)
        names = (hits.keys() | corrections.keys()) - {ALL_EVENTS}
        before_reset = Bucket("day", slot.day, f"part:{at}")
        self.add(before_reset, {name: hits[name] + corrections[name] for name in names})
        self.counts[slot.day_buckets[1]] = Counter({name: -count for name, count in hits.items()})

    def erase(self, user: str) -> None:
        for bucket in self.counts:
            if bucket.dimension.startswith("user:"):
                self.counts[bucket].pop(user, None)
                if self.is_exact:
                    self.visitors[bucket].discard(user)

    def prune(self, cutoffs: Mapping[str, int], slot: TimeSlot) -> None:
        visitors_cutoff = slot.minute - VISITOR_MINUTES_TTL_SECONDS
        for bucket in [bucket for bucket in self.counts if bucket.step != "total"]:
            expires_early = bucket.dimension and bucket.step == "minute"
            if bucket.start < max(cutoffs[bucket.step], visitors_cutoff if expires_early else 0):
                del self.counts[bucket]
                self.visitors.pop(bucket, None)
        self.history = {day: records for day, records in self.history.items() if day >= cutoffs["day"]}
