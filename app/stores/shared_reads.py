"""Reads that share a round trip: those that arrive during one go together into the next.

There is no timer: an idle store reads at once, a busy one reads for many clients together, as a group commit writes.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from app.domain.buckets import Bucket
from app.stores.base import StoreUnavailable

Fetch = Callable[[Mapping[Bucket, Sequence[str]]], Awaitable[Sequence[Mapping[str, int]]]]


class _Read(NamedTuple):
    """A read that waits for its counts."""

    buckets: Sequence[Bucket]
    members: Sequence[str]
    counts: asyncio.Future[list[dict[str, int]]]


class SharedReads:
    """Combines the reads of concurrent requests into one round trip at a time.

    `fetch` returns the counts of these members of each bucket, in the same order. It is a round trip. A round trip has
    at most `reads_max` reads. A read waits for at most `timeout_seconds`.
    """

    def __init__(self, fetch: Fetch, reads_max: int, timeout_seconds: float) -> None:
        self._fetch, self._reads_max, self._timeout_seconds = fetch, reads_max, timeout_seconds
        self._waiting: deque[_Read] = deque()
        self._task: asyncio.Task[None] | None = None

    async def read(self, buckets: Sequence[Bucket], members: Sequence[str]) -> list[dict[str, int]]:
        """Return the counts of these members of each bucket.

        Raises StoreUnavailable after the time-out, or the error of `fetch` if the round trip of this read failed.
        """
        loop = asyncio.get_running_loop()
        read = _Read(buckets, members, loop.create_future())
        self._waiting.append(read)
        if self._task is None or self._task.done():
            # A task of its own: a request that is cancelled must not cancel the reads of others.
            self._task = asyncio.create_task(self._run())
        timer = loop.call_later(self._timeout_seconds, _fail, [read], StoreUnavailable("Redis did not reply in time"))
        try:
            return await read.counts
        finally:
            timer.cancel()

    async def _run(self) -> None:
        while reads := self._take():
            requested: defaultdict[Bucket, dict[str, None]] = defaultdict(dict)
            for read in reads:
                members = dict.fromkeys(read.members)
                for bucket in read.buckets:
                    requested[bucket] |= members
            try:
                found = await self._fetch({bucket: list(members) for bucket, members in requested.items()})
            except Exception as error:  # noqa: BLE001 # each read raises it
                _fail(reads, error)
            else:
                _resolve(reads, dict(zip(requested, found, strict=True)))

    def _take(self) -> list[_Read]:
        """Return the reads of the next round trip, without those that were cancelled or have timed out."""
        reads: list[_Read] = []
        while self._waiting and len(reads) < self._reads_max:
            read = self._waiting.popleft()
            if not read.counts.done():
                reads.append(read)
        return reads


def _resolve(reads: Sequence[_Read], found: Mapping[Bucket, Mapping[str, int]]) -> None:
    for buckets, members, counts in reads:
        if not counts.done():
            counts.set_result([{m: found[bucket][m] for m in members if m in found[bucket]} for bucket in buckets])


def _fail(reads: Sequence[_Read], error: Exception) -> None:
    for read in reads:
        if not read.counts.done():
            read.counts.set_exception(error)
