"""The Lua scripts that write to Redis and read from it, and the arguments that they take."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from app.domain.buckets import SKETCH, Bucket, is_event_bucket
from app.domain.calendar import TimeSlot
from app.domain.counting import BucketWrite, Commit, DayChange, visitor_buckets
from app.stores import hyperloglog, rules
from app.stores.base import StoreLimits
from app.stores.redis_keys import bucket_key
from app.stores.results import Reason


class Script(NamedTuple):
    """A Lua script, and the SHA-1 under which Redis caches it after its first run."""

    text: str
    sha: str

    @classmethod
    def load(cls, *files: str) -> "Script":
        text = "".join((Path(__file__).parent / "lua" / file).read_text() for file in files)
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


class UnfinishedChange(NamedTuple):
    """A change that the first shard has applied, and the others may lack, with its source and offsets."""

    source: str
    expected_offset: int
    new_offset: int
    change: DayChange

    @property
    def id(self) -> str:
        """The field under which it is saved: the next change of the same source has another one."""
        return f"{self.source} {self.new_offset}"


COUNT = Script.load("offset.lua", "count.lua")
WRITE = Script.load("offset.lua", "write.lua")
READ_MEMBER = Script.load("member.lua")
READ_SKETCH = Script.load("sketch.lua")
PRUNE = Script.load("prune.lua")
RECORDS = Script.load("records.lua")

PREPARE = "prepare"  # in place of the expected offset: COUNT decides on the groups of a commit and counts nothing


def arguments(
    prefix: str, source: str, expected_offset: int | str, new_offset: int, limits: StoreLimits, work: bytes, note: str
) -> tuple[object, ...]:
    """Return ARGV of COUNT and WRITE, as offset.lua documents it."""
    source_ttl = 0 if source.startswith(rules.PERMANENT_SOURCE_PREFIX) else rules.SOURCE_TTL_SECONDS
    ttls = source_ttl, rules.IDEMPOTENCY_TTL_SECONDS, rules.VISITOR_MINUTES_TTL_SECONDS
    return prefix, expected_offset, new_offset, *limits, *ttls, rules.RANKED_VISITORS_MAX, work, note


def encode_commit(commit: Commit, rejected: Mapping[int, Reason], other_slots: Iterable[TimeSlot]) -> bytes:
    """Return the work of count.lua as JSON.

    `rejected` gives the reason by the index of each group that another shard rejected. The results contain the
    generations of the days of `other_slots`, too.
    """
    slots = {slot: index for index, slot in enumerate(dict.fromkeys(other_slots))}
    groups = []
    for index, group in enumerate(commit):
        visits: dict[tuple[str, Bucket], list[str | int]] = {}
        for visit in group.visits:
            for bucket, visitor in visitor_buckets(group.slot, visit):
                visits.setdefault((visit.event, bucket), []).extend((visitor, visit.by))
        visit_rows = [(event, bucket_key(bucket), members) for (event, bucket), members in visits.items()]
        slot = slots.setdefault(group.slot, len(slots))
        key, reason = group.key or False, rejected.get(index, False)
        events, amounts = list(group.amounts), list(group.amounts.values())
        groups.append((slot, events, amounts, key, group.limited, reason, visit_rows, group.atomic))
    rows = [(list(map(bucket_key, slot.buckets)), slot.date, slot.minute) for slot in slots]
    return msgspec.json.encode((rows, groups))


def encode_change(change: DayChange, deadline: float | None, unfinished: UnfinishedChange | None) -> bytes:
    """Return the work of write.lua as JSON. `deadline` is a UTC second on the clock of Redis."""
    expected = False if change.expected_corrections is None else change.expected_corrections
    writes = [_encode_write(write) for write in change.writes]
    kept = unfinished and (unfinished.id, msgspec.json.encode(unfinished).decode())
    return msgspec.json.encode((f"day:{change.slot.day}", expected, deadline or False, writes, kept or False))


def _encode_write(write: BucketWrite) -> tuple[object, ...]:
    bucket = write.bucket._replace(dimension=write.bucket.dimension.removeprefix(SKETCH))
    content: object = [part for pair in write.counts.items() for part in pair]
    if write.op == "merge":
        content = hyperloglog.to_redis(write.counts).hex()
    return write.op, bucket_key(bucket), is_event_bucket(bucket), content
