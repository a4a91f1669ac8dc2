"""One store cut into tags, for a cluster: each event lives in one tag, and each tag in one slot.

A batch goes to every tag, so that a source stands at the same offset in all of them, and each tag takes
its part exactly once. Where a request has several events, or a key, all its tags are asked before any
counts, so that none of them refuses what another has counted.
"""

import asyncio
import itertools
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple

from app.events import EVERYTHING, GENERATION, SKETCH, Batch, Bucket, Changes, Moment, Posting, Visit, Write
from app.stores import base
from app.stores import hyperloglog as sketch
from app.stores.base import Ack, Answer, Apart, Applied, CounterStore, Distinct, Moved, Refused, Replayed, Value
from app.stores.redis import ANSWER_SECONDS, RedisStore


class _Part(NamedTuple):
    """What one tag gets of a batch, and each posting's place in the whole."""

    batch: list[Posting]
    places: list[int]


class TaggedStore(CounterStore):
    kind = "redis"
    ack: Ack = "redis"
    survives = RedisStore.survives
    shared = True

    def __init__(self, stores: Sequence[RedisStore]) -> None:
        self._stores = stores

    async def open(self) -> None:
        await self._stores[0].open()  # alone: it is where redis-py looks at the cluster for the first time
        await asyncio.gather(*(store.open() for store in self._stores[1:]))
        self.survives = self._stores[0].survives

    async def close(self) -> None:
        await self._stores[0].close()  # they share one client

    async def apply(self, source: str, at: int, next: int, work: Batch | Changes) -> Applied:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):  # both steps together
                if isinstance(work, Changes):
                    return await self._change(source, at, next, work)
                return await self._apply(source, at, next, work)
        except TimeoutError:
            raise base.OutcomeUnknown("Redis: no answer in time") from None

    async def _change(self, source: str, at: int, next: int, changes: Changes) -> Applied:
        parts = [
            changes._replace(writes=[write._replace(counts=self._share(tag, write)) for write in changes.writes])
            for tag in range(len(self._stores))
        ]
        home = self._tag(EVERYTHING)  # of the log, and so the one that knows whether there was another change
        first = await self._stores[home].apply(source, at, next, parts[home])
        outcomes = await asyncio.gather(
            *(
                store.apply(source, at, next, part._replace(after=None))
                for tag, (store, part) in enumerate(zip(self._stores, parts, strict=True))
                if tag != home
            ),
            return_exceptions=True,
        )
        return Applied([], self.ack, _generations([*_all_applied([first, *outcomes])]))

    def _share(self, tag: int, write: Write) -> dict[str, int]:
        """What of it is this tag's."""
        if base.is_of_events(write.bucket):
            return {event: n for event, n in write.counts.items() if self._tag(event) == tag}
        return dict(write.counts) if write.how == "take" or self._has(tag, write.bucket) else {}

    async def _apply(self, source: str, at: int, next: int, batch: Batch) -> Applied:
        refused: dict[int, Refused] = {}
        if any(posting.key or (len(posting.counts) > 1 and not posting.apart) for posting in batch):
            refused = await self._ask(source, next, batch)
        moments = list(dict.fromkeys(posting.moment for posting in batch))
        parts = self._cut(batch)
        theirs = [{i: refused[place] for i, place in enumerate(part.places) if place in refused} for part in parts]
        outcomes = await asyncio.gather(
            *(
                store.apply(source, at, next, part.batch, out, moments)
                for store, part, out in zip(self._stores, parts, theirs, strict=True)
            ),
            return_exceptions=True,
        )
        applied = _all_applied(outcomes)
        answers: list[Answer | None] = [refused.get(place) for place in range(len(batch))]
        for part, theirs_applied in zip(parts, applied, strict=True):
            for place, answer in zip(part.places, theirs_applied.answers, strict=True):
                answers[place] = _joined(answers[place], answer)
        known = [{} if answer is None else answer for answer in answers]
        return Applied(known, self.ack, _generations(applied))

    async def _ask(self, source: str, next: int, batch: Batch) -> dict[int, Refused]:
        """Which postings no tag may count. A key is claimed in the tag of its own, for one request of any events."""
        parts = self._cut(batch, capped=True)
        for place, posting in enumerate(batch):
            if key := posting.key:
                home = parts[self._tag(key.id)]
                home.batch.append(Posting(posting.moment, {}, key._replace(id=f"{key.id}@"), posting.capped))
                home.places.append(place)
        asked = await asyncio.gather(
            *(store.ask(source, next, part.batch) for store, part in zip(self._stores, parts, strict=True))
        )
        refused: dict[int, Refused] = {}
        counted: set[int] = set()  # by the tags that have taken this batch already
        for part, (taken, answers) in zip(parts, asked, strict=True):
            for place, answer in zip(part.places, answers, strict=False):  # of a batch once taken, without the claims
                if isinstance(answer, Refused):
                    refused[place] = answer
                elif taken:
                    counted.add(place)
        return {place: reason for place, reason in refused.items() if place not in counted}

    def _cut(self, batch: Batch, *, capped: bool = False) -> list[_Part]:
        """Each tag's part; what lies in several tags, or has a key, is past the caps once it was asked for."""
        parts = [_Part([], []) for _ in self._stores]
        for place, posting in enumerate(batch):
            shares: dict[int, dict[str, int]] = {}
            for event, by in posting.counts.items():
                shares.setdefault(self._tag(event), {})[event] = by
            visits: dict[int, list[Visit]] = {}
            for visit in posting.visits:
                visits.setdefault(self._tag(visit.event), []).append(visit)
            if posting.key and not shares:
                shares[self._tag(posting.key.id)] = {}
            for tag, counts in shares.items():
                share = posting
                if posting.key or len(posting.counts) > 1:
                    key = posting.key and posting.key._replace(owner="")  # its claim is what counts for its owner
                    bound = posting.capped and (capped or posting.apart)
                    share = Posting(posting.moment, counts, key, bound, visits.get(tag, ()), posting.apart)
                parts[tag].batch.append(share)
                parts[tag].places.append(place)
        return parts

    def _tag(self, name: str) -> int:
        return zlib.crc32(name.encode()) % len(self._stores)

    async def read(self, buckets: Sequence[Bucket], members: Sequence[str] | None = None) -> list[dict[str, int]]:
        found: dict[Bucket, list[dict[str, int]]] = {bucket: [] for bucket in buckets}
        for of_events, theirs in itertools.groupby(found, base.is_of_events):
            alike = list(theirs)
            tags = await asyncio.gather(
                *(self._read(tag, alike, members, of_events) for tag in range(len(self._stores)))
            )
            for part in tags:
                for bucket, counts in part.items():
                    found[bucket].append(counts)
        return [_together(bucket, found[bucket]) for bucket in buckets]

    async def _read(
        self, tag: int, buckets: Sequence[Bucket], members: Sequence[str] | None, of_events: bool
    ) -> dict[Bucket, dict[str, int]]:
        """What this tag has of them."""
        if of_events:
            wanted = members and [event for event in members if event == EVERYTHING or self._tag(event) == tag]
            return dict(zip(buckets, await self._stores[tag].read(buckets, wanted), strict=True))
        own = [bucket for bucket in buckets if self._has(tag, bucket) or _event_of(bucket) == EVERYTHING]
        return dict(zip(own, await self._stores[tag].read(own, members), strict=True)) if own else {}

    def _has(self, tag: int, bucket: Bucket) -> bool:
        """Visits lie where their event does, and generations everywhere."""
        return bucket.of == GENERATION or self._tag(_event_of(bucket)) == tag

    async def distinct(self, buckets: Sequence[Bucket]) -> Distinct:
        event = _event_of(buckets[0])
        if event != EVERYTHING:
            return await self._stores[self._tag(event)].distinct(buckets)
        return Distinct(
            sketch.estimate(*await asyncio.gather(*(store.sketch(buckets) for store in self._stores))), sketch.ERROR
        )

    async def buckets(self, days: Sequence[int] | None = None) -> list[Bucket]:
        found = await asyncio.gather(*(store.buckets(days) for store in self._stores))
        return list(dict.fromkeys(itertools.chain(*found)))

    async def sizes(self, buckets: Sequence[Bucket]) -> list[int]:
        found = await asyncio.gather(*(store.sizes(buckets) for store in self._stores))
        return [sum(sizes) for sizes in zip(*found, strict=True)]

    async def prune(self, before: Mapping[str, int], moment: Moment) -> None:
        await asyncio.gather(*(store.prune(before, moment) for store in self._stores))

    async def epoch(self) -> str:
        return " ".join(await asyncio.gather(*(store.epoch() for store in self._stores)))

    async def note_loss(self, batches: int) -> None:
        await self._stores[0].note_loss(batches)

    async def tell(self, news: str) -> None:
        await self._stores[0].tell(news)

    def hear(self, patience: float) -> AsyncIterator[str]:
        return self._stores[0].hear(patience)


def _all_applied(outcomes: Sequence[Applied | BaseException]) -> list[Applied]:
    """Every tag's answers, or the error that says most: what is unknown in one tag is unknown in all."""
    applied = [outcome for outcome in outcomes if isinstance(outcome, Applied)]
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    for error in errors:
        if not isinstance(error, Moved):
            nothing = not applied and all(isinstance(e, base.StoreUnavailable) for e in errors)
            raise error if nothing or not isinstance(error, base.StoreError) else base.OutcomeUnknown(str(error))
    offsets = sorted(error.offset for error in errors if isinstance(error, Moved))
    if offsets:  # the lowest, since that tag still wants this batch; or else every tag is past it
        raise Moved(offsets[0])
    return applied


def _joined(one: Answer | None, other: Answer) -> Answer:
    """The answer to a posting that lies in two tags. Where one had the key already, this completes a first attempt."""
    if one is None or isinstance(other, Refused):
        return other
    if isinstance(one, Refused):
        return one
    if isinstance(one, Apart) and isinstance(other, Apart):
        return Apart(one.values | other.values, one.refused | other.refused)
    replayed = [answer for answer in (one, other) if isinstance(answer, Replayed)]
    values = {e: v for answer in (one, other) for e, v in _values(answer).items()}
    return Replayed(replayed[0].date, values) if replayed else values


def _values(answer: Answer) -> dict[str, Value]:
    return answer.values if isinstance(answer, Replayed) else answer  # type: ignore[return-value] # nobody refused


def _together(bucket: Bucket, parts: Sequence[dict[str, int]]) -> dict[str, int]:
    """A bucket of several tags: they have different events, but know the same visitors, and each its own sum.

    A new generation has begun when it has in all of them.
    """
    if bucket.of == GENERATION:
        return {EVERYTHING: n} if (n := min(part.get(EVERYTHING, 0) for part in parts)) else {}
    counts: dict[str, int] = {}
    for part in parts:
        shared = part.keys() & counts.keys()
        together = max if bucket.of.startswith(SKETCH) else int.__add__
        counts |= part | {member: together(counts[member], part[member]) for member in shared}
    return counts


def _event_of(bucket: Bucket) -> str:
    """Whose visits they are."""
    return bucket.of.removeprefix(SKETCH).partition(":")[2]


def _generations(applied: Sequence[Applied]) -> dict[int, int]:
    days = {day for part in applied for day in part.generations}
    return {day: min(part.generations.get(day, 0) for part in applied) for day in days}
