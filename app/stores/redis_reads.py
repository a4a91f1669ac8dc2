"""The reads of a store in Redis. Each round trip is short, so that Redis and this node can run commits in between."""

from abc import abstractmethod
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from app.domain.buckets import (
    ALL_EVENTS,
    CORRECTION,
    GENERATION,
    SKETCH,
    TOTAL,
    VISITOR_DIMENSIONS,
    Bucket,
    is_event_bucket,
)
from app.stores import hyperloglog, redis_keys, redis_scripts, redis_url
from app.stores.base import Cardinality, CounterStore
from app.stores.redis_keys import bucket_key, dimensions_key, hll_key, starts_key
from app.stores.shared_reads import SharedReads

# Keys to read in one round trip; each may be large.
KEYS_PER_CALL = 200
# Members to read in one round trip. A commit that arrives meanwhile waits for a few milliseconds.
FIELDS_PER_CALL = 2000
COMMAND_FIELDS = 5  # a command takes about as long as this many members
# Larger reads have round trips of their own, so that small ones do not wait for them.
SHARED_READ_FIELDS_MAX = 20
SHARED_READS_MAX = FIELDS_PER_CALL // SHARED_READ_FIELDS_MAX  # in one round trip
# Members of a bucket to scan in one round trip, which keeps Redis busy for less than a millisecond.
MEMBERS_PER_CALL = 500

T = TypeVar("T")


class RedisReads(CounterStore):
    """The reads of one shard. A subclass connects to Redis: it sets `_client` and `_prefix`, which begins all keys."""

    _client: Any
    _prefix: str

    def __init__(self) -> None:
        self._shared_reads = SharedReads(self._read_some, SHARED_READS_MAX, redis_url.COMMAND_TIMEOUT_SECONDS)

    @abstractmethod
    async def _read(self, command: Coroutine[Any, Any, T]) -> T:
        """Wait for the reply to a command that reads. Raises StoreUnavailable."""

    async def read(self, buckets: Sequence[Bucket], members: Sequence[str] | None = None) -> list[dict[str, int]]:
        if members is None:
            return await self._read_whole(buckets)
        if not members:
            return [{} for _ in buckets]
        if len(buckets) * len(members) <= SHARED_READ_FIELDS_MAX:
            return await self._shared_reads.read(buckets, members)
        requested = dict.fromkeys(buckets, members)
        found = dict(zip(requested, await self._read_some(requested), strict=True))
        return [found[bucket] for bucket in buckets]

    async def _read_some(self, requested: Mapping[Bucket, Sequence[str]]) -> list[dict[str, int]]:
        """Return the counts of some members of each bucket."""
        generations = [(bucket, [ALL_EVENTS]) for bucket in _generations(requested)]
        replies = await self._read_members([*generations, *requested.items(), *generations])
        begin, end = len(generations), len(generations) + len(requested)
        # If a day was changed during the read, the buckets may not belong together.
        return replies[begin:end] if replies[:begin] == replies[end:] else await self._read_some(requested)

    async def _read_whole(self, buckets: Sequence[Bucket]) -> list[dict[str, int]]:
        """Return all counts of each bucket."""
        generations = [(bucket, [ALL_EVENTS]) for bucket in _generations(buckets)]
        before = await self._read_members(generations)
        counts = [await self._scan(bucket) for bucket in buckets]
        after = await self._read_members(generations)
        return counts if before == after else await self._read_whole(buckets)

    async def read_at_once(self, buckets: Sequence[Bucket], member: str) -> list[dict[str, int]]:
        keys = [self._prefix + bucket_key(bucket) for bucket in buckets]
        call = self._client.eval(redis_scripts.READ_MEMBER.text, len(keys), *keys, member)
        return [{} if count is None else {member: int(count)} for count in await self._read(call)]

    async def _read_members(self, requested: Sequence[tuple[Bucket, Sequence[str]]]) -> list[dict[str, int]]:
        """Return the counts of some members of each bucket."""
        counts: list[dict[str, int]] = [{} for _ in requested]
        for part in _split(requested):
            pipe = self._client.pipeline(transaction=False)
            for _, bucket, members in part:
                if bucket.dimension.startswith(SKETCH):
                    pipe.eval(*self._sketch_call([bucket]))
                else:
                    pipe.hmget(self._prefix + bucket_key(bucket), list(members))
            for (index, _, members), reply in zip(part, await self._read(pipe.execute()), strict=True):
                counts[index] |= _decode_counts(reply, members)
        return counts

    async def _scan(self, bucket: Bucket) -> dict[str, int]:
        """Return all counts of a bucket, read in steps so that Redis can run commits in between.

        HSCAN returns each member that exists during the whole scan at least once.
        """
        if bucket.dimension.startswith(SKETCH):
            return await self.read_sketch([bucket])
        cursor, counts = 0, dict[str, int]()
        while True:
            step = self._client.hscan(self._prefix + bucket_key(bucket), cursor, count=MEMBERS_PER_CALL)
            cursor, found = await self._read(step)
            counts |= _decode_counts(found)
            if cursor == 0:
                return counts

    async def sizes(self, buckets: Sequence[Bucket]) -> list[int]:
        lengths: list[int] = []
        for i in range(0, len(buckets), KEYS_PER_CALL):
            pipe = self._client.pipeline(transaction=False)
            for bucket in buckets[i : i + KEYS_PER_CALL]:
                pipe.hlen(self._prefix + bucket_key(bucket))
            lengths += await self._read(pipe.execute())
        # In a bucket of events, the sum of all events is a field of its own.
        return [max(0, n - is_event_bucket(b)) for b, n in zip(buckets, lengths, strict=True)]

    async def read_sketch(self, buckets: Sequence[Bucket]) -> dict[str, int]:
        """Return the registers of the union of these buckets' HyperLogLogs."""
        return _decode_counts(await self._read(self._client.eval(*self._sketch_call(buckets))))

    def _sketch_call(self, buckets: Sequence[Bucket]) -> tuple[Any, ...]:
        keys = [redis_keys.SCRATCH_SKETCH_KEY, *map(hll_key, buckets)]
        return redis_scripts.READ_SKETCH.text, len(keys), *(self._prefix + key for key in keys)

    async def count_distinct(self, buckets: Sequence[Bucket]) -> Cardinality:
        number = await self._read(self._client.pfcount(*(self._prefix + hll_key(bucket) for bucket in buckets)))
        return Cardinality(number, hyperloglog.ERROR)

    async def list_buckets(self, days: Sequence[int] | None = None) -> list[Bucket]:
        plain = [Bucket("day", day) for day in days or ()]
        if days is None:
            for step in ("minute", "hour", "day"):
                starts: list[str] = await self._read(self._client.zrange(self._prefix + starts_key(step), 0, -1))
                plain += [Bucket(step, int(start)) for start in starts]
            plain.append(TOTAL)
        others = await self._list_dimensions(plain)
        visitors = [bucket for bucket in others if bucket.dimension.startswith(VISITOR_DIMENSIONS)]
        return plain + others + [bucket._replace(dimension=SKETCH + bucket.dimension) for bucket in visitors]

    async def _list_dimensions(self, buckets: Sequence[Bucket]) -> list[Bucket]:
        """Return all buckets with a dimension that have the step and start of one of these."""
        found: list[Bucket] = []
        sizes = list(zip(buckets, await self._count_dimensions(buckets), strict=True))
        for bucket, size in sizes:
            if size > MEMBERS_PER_CALL:
                found += await self._scan_dimensions(bucket)
        for part in _split([(bucket, range(size)) for bucket, size in sizes if size <= MEMBERS_PER_CALL]):
            pipe = self._client.pipeline(transaction=False)
            for _, bucket, _ in part:
                pipe.smembers(self._prefix + dimensions_key(bucket))
            for (_, bucket, _), dimensions in zip(part, await self._read(pipe.execute()), strict=True):
                found += [bucket._replace(dimension=dimension) for dimension in dimensions]
        return found

    async def _count_dimensions(self, buckets: Sequence[Bucket]) -> list[int]:
        sizes: list[int] = []
        for i in range(0, len(buckets), KEYS_PER_CALL):
            pipe = self._client.pipeline(transaction=False)
            for bucket in buckets[i : i + KEYS_PER_CALL]:
                pipe.scard(self._prefix + dimensions_key(bucket))
            sizes += await self._read(pipe.execute())
        return sizes

    async def _scan_dimensions(self, bucket: Bucket) -> list[Bucket]:
        """Read a large set of dimensions in steps, as `_scan` does."""
        cursor, dimensions = 0, set[str]()
        while True:
            step = self._client.sscan(self._prefix + dimensions_key(bucket), cursor, count=MEMBERS_PER_CALL)
            cursor, found = await self._read(step)
            dimensions.update(found)
            if not cursor:
                return [bucket._replace(dimension=dimension) for dimension in dimensions]


def _generations(buckets: Iterable[Bucket]) -> list[Bucket]:
    """Return the buckets with the generations of the days whose corrections are read."""
    return [bucket._replace(dimension=GENERATION) for bucket in buckets if bucket.dimension == CORRECTION]


def _split(requested: Sequence[tuple[Bucket, Sequence[T]]]) -> Iterator[list[tuple[int, Bucket, Sequence[T]]]]:
    """Yield what each round trip reads: the index of a bucket in `requested`, the bucket, and some of its members."""
    part: list[tuple[int, Bucket, Sequence[T]]] = []
    fields, size = 0, FIELDS_PER_CALL - COMMAND_FIELDS
    for index, (bucket, members) in enumerate(requested):
        for first in range(0, len(members), size):
            some = members[first : first + size]
            if fields + len(some) + COMMAND_FIELDS > FIELDS_PER_CALL:
                yield part
                part, fields = [], 0
            part.append((index, bucket, some))
            fields += len(some) + COMMAND_FIELDS
    if part:
        yield part


def _decode_counts(reply: Any, members: Sequence[str] = ()) -> dict[str, int]:
    """Return the counts in a reply: a map, the values of `members`, or a HyperLogLog in hexadecimal."""
    if isinstance(reply, str):
        return hyperloglog.from_redis(bytes.fromhex(reply))
    pairs = reply.items() if isinstance(reply, dict) else zip(members, reply, strict=True)
    return {member: int(count) for member, count in pairs if count is not None}
