"""Counters in Redis, for many nodes: one script, in one round trip, counts a whole batch.

Redis is one server, the one that Sentinels name (redis+sentinel://), or a cluster (redis+cluster://).
"""

import asyncio
import hashlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec
from redis import exceptions
from redis.asyncio import ConnectionPool, Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from app.domain.buckets import (
    ALL_EVENTS,
    CORRECTION,
    CORRECTION_LOG,
    GENERATION,
    SKETCH,
    TOTAL,
    VISITOR_DIMENSIONS,
    Bucket,
    is_event_bucket,
)
from app.domain.calendar import TimeSlot
from app.domain.counting import Commit, DayChange, visitor_buckets
from app.stores import hyperloglog, rules
from app.stores.base import (
    Cardinality,
    CounterStore,
    OffsetMismatch,
    OutcomeUnknown,
    StoreLimits,
    StoreOpenError,
    StoreUnavailable,
    WriteConflict,
)
from app.stores.results import Ack, ApplyResult, GroupResult, Reason, decode_result, from_row
from app.stores.rules import (
    IDEMPOTENCY_TTL_SECONDS,
    PERMANENT_SOURCE_PREFIX,
    SOURCE_TTL_SECONDS,
    VISITOR_MINUTES_TTL_SECONDS,
)

ANSWER_SECONDS = 1.5  # no request waits longer than 2.5 s, the spool's fsync included
SENTINEL_SECONDS = 0.3  # a dead Sentinel leaves time to ask another
COMMANDS_MAX = 64  # under way at once; more only wait for each other
TAGS_MAX = 1024
KEYS_AT_ONCE = 200  # looked up or forgotten: behind each there may be much
PAGE_FIELDS = 500  # of a bucket, read at once, which takes less than a millisecond

_OPTIONS: dict[str, Any] = {
    "decode_responses": True,
    # redis-py would send a command again whose answer was lost, and so count it twice
    "retry": Retry(NoBackoff(), 0),
    # with these on, redis-py 8.1 hands out connections that the server has closed
    "maint_notifications_config": MaintNotificationsConfig(enabled=False),
}

_DURABILITY = {  # by its appendfsync
    "always": "a crash of Redis and power loss: it is on the disk of Redis",
    "everysec": "a crash of Redis, but for the last 2 seconds",
    "no": "a crash of Redis, but for what the system had not written yet",
    "none": "the end of this process, not of Redis, which keeps no append-only file",
}

_FAILURES = (exceptions.RedisError, exceptions.RedisClusterException, OSError)  # the second is none of the first

T = TypeVar("T")

log = logging.getLogger("tally.redis")


class Script(NamedTuple):
    """A Lua script, and the name under which Redis knows it once it has run there."""

    text: str
    sha: str

    @classmethod
    def of(cls, *files: str) -> "Script":
        text = "".join((Path(__file__).parent / "lua" / file).read_text() for file in files)
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


COUNT = Script.of("offset.lua", "count.lua")
CHANGE = Script.of("offset.lua", "write.lua")
SKETCH_OF = """redis.call('PFMERGE', KEYS[1], unpack(KEYS, 2)) local sketch = redis.call('GET', KEYS[1])
redis.call('DEL', KEYS[1])
return (string.gsub(sketch, '.', function(c) return string.format('%02x', string.byte(c)) end))"""


class RedisTarget(NamedTuple):
    """A way to Redis, which all tags share; the identity names the data behind it."""

    client: Any  # Redis or RedisCluster: all that is used of them they have in common
    identity: str
    tags: int
    turns: asyncio.Semaphore


def server(url: str) -> RedisTarget:
    """Redis at this URL; nothing is connected yet. Raises StoreRefused for a URL that makes no sense."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise StoreOpenError("TALLY_STORE is no URL") from error
    scheme, _, kind = parts.scheme.partition("+")
    credentials, at, places = parts.netloc.rpartition("@")
    query = dict(parse_qsl(parts.query))
    tags = query.pop("tags", "1")
    sentinel = {name.removeprefix("sentinel_"): query.pop(name) for name in [*query] if name.startswith("sentinel_")}
    service, path = parts.path.strip("/"), parts.path
    if kind == "sentinel":
        service, _, path = service.partition("/")
    if not tags.isdecimal() or not 1 <= int(tags) <= TAGS_MAX or (kind != "cluster" and tags != "1"):
        raise StoreOpenError(f"TALLY_STORE: tags is 1 to {TAGS_MAX}, and of use for redis+cluster:// alone")
    one = f"{scheme}://{credentials}{at}{places.partition(',')[0]}/{path.lstrip('/')}?{urlencode(query)}"
    try:
        hosts = [_host(place) for place in places.split(",")]
        client = _client(kind, hosts, service, {**parse_url(one)}, sentinel)
    except (ValueError, exceptions.RedisClusterException) as error:  # whose texts may hold a part of the password
        raise StoreOpenError(
            "TALLY_STORE is no URL of a Redis; in a password, percent-encode all but letters"
        ) from error
    identity = " ".join([kind, *sorted(f"{host}:{port}" for host, port in hosts), parts.path])
    return RedisTarget(client, identity, int(tags), asyncio.Semaphore(COMMANDS_MAX))


def _host(place: str) -> tuple[str, int]:
    split = urlsplit(f"//{place}")
    return split.hostname or "127.0.0.1", split.port or 6379


def _client(
    kind: str, hosts: list[tuple[str, int]], service: str, chosen: dict[str, Any], sentinel: dict[str, str]
) -> Any:
    patience = {"socket_timeout": ANSWER_SECONDS, "socket_connect_timeout": 1, "health_check_interval": 15}
    options = _OPTIONS | patience | {"max_connections": COMMANDS_MAX + 8} | chosen
    if not kind:
        return Redis.from_pool(ConnectionPool(**options))
    options |= {"ssl": options.pop("connection_class", None) is SSLConnection}
    options = {name: value for name, value in options.items() if name not in {"host", "port"}}
    if kind == "cluster":
        return RedisCluster(startup_nodes=[ClusterNode(host, port) for host, port in hosts], **options)
    asking = {"socket_timeout": SENTINEL_SECONDS, "socket_connect_timeout": SENTINEL_SECONDS, "ssl": options["ssl"]}
    sentinels = Sentinel(hosts, sentinel_kwargs=_OPTIONS | asking | sentinel, **options)  # type: ignore[no-untyped-call] # redis-py's
    return sentinels.master_for(service)


class RedisStore(CounterStore):
    """The counters of one tag, all of whose keys lie in one slot of a cluster; most stores have but tag 0."""

    kind = "redis"
    ack: Ack = "redis"
    durability = "the end of this process: it is in Redis, or in the spool while Redis is away"
    shared = True

    def __init__(self, server: RedisTarget, limits: StoreLimits, tag: int = 0) -> None:
        self._server = server
        self._client = server.client
        self._prefix = f"tally:{{{tag}}}:"  # what is in the braces chooses the slot
        self._limits = limits

    async def open(self) -> None:
        """Connect, see that the store is cut into as many tags as the URL says, and how durable it is."""
        await self._answer(self._client.set(f"{self._prefix}tags", self._server.tags, nx=True))
        begun_with = await self._answer(self._client.get(f"{self._prefix}tags"))
        if begun_with != str(self._server.tags):
            raise StoreOpenError(f"TALLY_STORE: this store was begun with tags={begun_with}, which cannot be changed")
        self.durability = await self._durability()

    async def close(self) -> None:
        await self._client.aclose()

    async def apply(
        self,
        source: str,
        expected_offset: int,
        new_offset: int,
        commit: Commit,
        rejected: Mapping[int, Reason] | None = None,
        slots: Iterable[TimeSlot] = (),
    ) -> ApplyResult:
        """Apply a commit, or one shard's part of it.

        `rejected` groups (by index) were rejected by another shard: save that as their result. The generations of the
        days of `slots`, which are those of groups in other shards, are returned as well.
        """
        work = _encode_commit(commit, rejected or {}, slots)
        results = await self._run(COUNT, source, expected_offset, new_offset, _commit_keys(commit), work)
        return decode_result(commit, results, self.ack)

    async def apply_change(self, source: str, expected_offset: int, new_offset: int, change: DayChange) -> ApplyResult:
        log = _key(Bucket("day", change.slot.day, CORRECTION_LOG))
        keys = [log, *(key for write in change.writes for key in _listing(write.bucket))]
        results = await self._run(CHANGE, source, expected_offset, new_offset, keys, _encode_change(change))
        return decode_result((), results, self.ack)

    async def get_offset(self, source: str) -> int:
        return int(await self._answer(self._client.hget(f"{self._prefix}source:{source}", "offset")) or 0)

    async def ask(self, source: str, new_offset: int, commit: Commit) -> tuple[bool, list[GroupResult | None]]:
        """Return whether this commit was applied already, and what would become of each group: None if it would count.

        Remembers, and so claims, a key without hits. Raises what `apply` does, but for OffsetMismatch.
        """
        reply, text = await self._call(
            COUNT, source, "ask", new_offset, _commit_keys(commit), _encode_commit(commit, {}, ())
        )
        applied = reply == "counted"
        rows = msgspec.json.decode(text)[applied:]  # the results of an applied commit begin with the generations
        pairs = zip(commit, rows, strict=False)  # and have no claims
        return applied, [None if row is None else from_row(group, row) for group, row in pairs]

    async def _run(
        self, script: Script, source: str, expected_offset: int, new_offset: int, keys: Iterable[str], work: bytes
    ) -> str:
        """Run a script that applies something; return the saved results as JSON."""
        reply, text = await self._call(script, source, expected_offset, new_offset, keys, work)
        if reply == "moved":
            raise OffsetMismatch(int(text))
        if reply == "overtaken":
            raise WriteConflict
        return text

    async def _call(
        self, script: Script, source: str, expected_offset: int | str, new_offset: int, keys: Iterable[str], work: bytes
    ) -> tuple[str, str]:
        source_kept = 0 if source.startswith(PERMANENT_SOURCE_PREFIX) else SOURCE_TTL_SECONDS
        kept = source_kept, IDEMPOTENCY_TTL_SECONDS, VISITOR_MINUTES_TTL_SECONDS
        arguments = (self._prefix, expected_offset, new_offset, *self._limits, *kept, rules.RANKED_VISITORS_MAX, work)
        all_keys = [f"{self._prefix}source:{source}", *(self._prefix + key for key in keys)]
        call: tuple[Any, ...] = (len(all_keys), *all_keys, *arguments)
        try:
            async with asyncio.timeout(ANSWER_SECONDS), self._server.turns:
                try:
                    said, answer = await self._client.evalsha(script.sha, *call)
                except exceptions.NoScriptError:  # a server that is new, or was restarted
                    said, answer = await self._client.eval(script.text, *call)
        except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
            raise OutcomeUnknown(f"Redis: {str(error) or 'no answer in time'}") from error
        except _FAILURES as error:  # it answered, with a refusal, or no node of a cluster could be reached
            raise StoreUnavailable(f"Redis: {error}") from error
        except Exception as error:  # redis-py's own, while a cluster changes
            log.exception("redis-py failed")
            raise OutcomeUnknown("Redis: an unexpected error") from error
        return said, answer

    async def read(self, buckets: Sequence[Bucket], members: Sequence[str] | None = None) -> list[dict[str, int]]:
        if members is not None and not members:
            return [{} for _ in buckets]
        days = [
            (bucket._replace(dimension=GENERATION), [ALL_EVENTS])
            for bucket in buckets
            if bucket.dimension == CORRECTION
        ]
        if members is None:
            before = await self._some(days)
            found = [await self._whole(bucket) for bucket in buckets]
            after = await self._some(days)
        else:
            answers = await self._some([*days, *((bucket, members) for bucket in buckets), *days])
            begin, end = len(days), len(days) + len(buckets)
            before, found, after = answers[:begin], answers[begin:end], answers[end:]
        return found if before == after else await self.read(buckets, members)  # there was a change meanwhile

    async def _some(self, asked: Iterable[tuple[Bucket, Sequence[str]]]) -> list[dict[str, int]]:
        pipe = self._client.pipeline(transaction=False)
        wanted: list[Sequence[str]] = []
        for bucket, members in asked:
            wanted.append(members)
            if bucket.dimension.startswith(SKETCH):
                pipe.eval(*self._sketch([bucket]))
            else:
                pipe.hmget(self._prefix + _key(bucket), list(members))
        return [_counts(*answer) for answer in zip(await self._answer(pipe.execute()), wanted, strict=True)]

    async def _whole(self, bucket: Bucket) -> dict[str, int]:
        """A page at a time, with time for hits in between. What is there throughout is on some page, perhaps on two."""
        if bucket.dimension.startswith(SKETCH):
            return await self.sketch([bucket])
        cursor, counts = 0, dict[str, int]()
        while True:
            page = self._client.hscan(self._prefix + _key(bucket), cursor, count=PAGE_FIELDS)
            cursor, found = await self._answer(page)
            counts |= _counts(found, None)
            if cursor == 0:
                return counts

    async def sizes(self, buckets: Sequence[Bucket]) -> list[int]:
        pipe = self._client.pipeline(transaction=False)
        for bucket in buckets:
            pipe.hlen(self._prefix + _key(bucket))
        lengths = await self._answer(pipe.execute())
        return [max(0, n - is_event_bucket(b)) for b, n in zip(buckets, lengths, strict=True)]  # '' is no event

    async def sketch(self, buckets: Sequence[Bucket]) -> dict[str, int]:
        """That of all these together."""
        return _counts(await self._answer(self._client.eval(*self._sketch(buckets))), None)

    def _sketch(self, buckets: Sequence[Bucket]) -> tuple[Any, ...]:
        return SKETCH_OF, 1 + len(buckets), f"{self._prefix}sketch", *(self._prefix + _seen(b) for b in buckets)

    async def count_distinct(self, buckets: Sequence[Bucket]) -> Cardinality:
        """Estimated by Redis itself."""
        number = await self._answer(self._client.pfcount(*(self._prefix + _seen(bucket) for bucket in buckets)))
        return Cardinality(number, hyperloglog.ERROR)

    async def list_buckets(self, days: Sequence[int] | None = None) -> list[Bucket]:
        plain = [Bucket("day", day) for day in days or ()]
        if days is None:
            for step in ("minute", "hour", "day"):
                starts: list[str] = await self._answer(self._client.zrange(f"{self._prefix}starts:{step}", 0, -1))
                plain += [Bucket(step, int(start)) for start in starts]
            plain.append(TOTAL)
        others: list[Bucket] = []
        for i in range(0, len(plain), KEYS_AT_ONCE):
            pipe = self._client.pipeline(transaction=False)
            for bucket in plain[i : i + KEYS_AT_ONCE]:
                pipe.smembers(f"{self._prefix}ofs:{_key(bucket)}")
            for bucket, ofs in zip(plain[i:], await self._answer(pipe.execute()), strict=False):
                others += [bucket._replace(dimension=of) for of in ofs]
        return (
            plain
            + others
            + [b._replace(dimension=SKETCH + b.dimension) for b in others if b.dimension.startswith(VISITOR_DIMENSIONS)]
        )

    async def prune(self, cutoffs: Mapping[str, int], slot: TimeSlot) -> None:  # noqa: ARG002 # keys expire by themselves
        for step, start in cutoffs.items():
            listed = f"{self._prefix}starts:{step}"
            old: list[Any] = await self._answer(self._client.zrangebyscore(listed, "-inf", f"({start}"))
            for begun in map(int, old):
                bucket = Bucket(step, begun)
                ofs: set[str] = await self._answer(self._client.smembers(f"{self._prefix}ofs:{_key(bucket)}"))
                keys = [key for of in ofs for key in _listing(bucket._replace(dimension=of))]
                keys += [_key(bucket), f"ofs:{_key(bucket)}"]
                for i in range(0, len(keys), KEYS_AT_ONCE):
                    await self._answer(self._client.unlink(*(self._prefix + key for key in keys[i : i + KEYS_AT_ONCE])))
            if old:
                await self._answer(self._client.zrem(listed, *old))

    async def epoch(self) -> str:
        """The replication id of the server, which is new after a restart or a failover, and what nodes renewed."""
        info = await self._of_server("INFO", "replication")
        return f"{info['master_replid']} {await self._answer(self._client.get(f'{self._prefix}epoch'))}"

    async def record_data_loss(self, commits: int) -> None:  # noqa: ARG002 # whoever asks keeps count
        await self._answer(self._client.set(f"{self._prefix}epoch", secrets.token_hex(8)))

    async def publish(self, message: str) -> None:
        await self._answer(self._client.publish(f"{self._prefix}news", message))

    async def subscribe(self, timeout_seconds: float) -> AsyncIterator[str]:
        listener = self._client.pubsub()
        try:
            await self._answer(listener.subscribe(f"{self._prefix}news"))
            while message := await listener.get_message(timeout=timeout_seconds):
                if message["type"] == "message":
                    yield message["data"]
            raise StoreUnavailable(f"nothing was heard for {timeout_seconds:.0f} s")
        except _FAILURES as error:
            raise StoreUnavailable(f"Redis: {error}") from error
        finally:
            await listener.aclose()

    async def _durability(self) -> str:
        try:
            info = await self._of_server("INFO", "persistence")
            synced = (await self._of_server("CONFIG GET", "appendfsync"))["appendfsync"]
            return _DURABILITY[synced if info["aof_enabled"] else "none"]
        except (StoreUnavailable, KeyError):  # it may be forbidden to ask, or it is not quite a Redis
            return "what its Redis survives, which does not say what that is"

    async def _of_server(self, *command: str) -> Any:
        """The answer of the server that has this tag's keys."""

        async def answer() -> Any:
            if isinstance(self._client, RedisCluster):
                node = self._client.get_node_from_key(self._prefix)
                return await self._client.execute_command(*command, target_nodes=node)
            return await self._client.execute_command(*command)

        return await self._answer(answer())

    async def _answer(self, command: Awaitable[T]) -> T:
        try:
            # with the wait for a turn, which the sockets' own time-out does not know of
            async with asyncio.timeout(ANSWER_SECONDS), self._server.turns:
                return await command
        except _FAILURES as error:
            raise StoreUnavailable(f"Redis: {str(error) or 'no answer in time'}") from error
        except Exception as error:  # redis-py's own again
            log.exception("redis-py failed")
            raise StoreUnavailable("Redis: an unexpected error") from error


def _key(bucket: Bucket) -> str:
    return f"{bucket.step}:{bucket.start}:{bucket.dimension}" if bucket.dimension else f"{bucket.step}:{bucket.start}"


def _seen(bucket: Bucket) -> str:
    """Where the estimate is of who came to a bucket, of which this may also be the sketch."""
    return f"seen:{bucket.step}:{bucket.start}:{bucket.dimension.removeprefix(SKETCH)}"


def _counts(answer: Any, members: Sequence[str] | None) -> dict[str, int]:
    """What Redis answers for a bucket: a map, or values of these members, or a sketch in hexadecimal."""
    if isinstance(answer, str):
        return hyperloglog.from_redis(bytes.fromhex(answer))
    pairs = answer.items() if isinstance(answer, dict) else zip(members or (), answer, strict=True)
    return {member: int(count) for member, count in pairs if count is not None}


def _listing(bucket: Bucket) -> list[str]:
    """The keys that a script touches for a bucket of anything but events."""
    return [_key(bucket), _seen(bucket), f"ofs:{bucket.step}:{bucket.start}"]


def _commit_keys(commit: Commit) -> dict[str, None]:
    """Return every key that the script may use: Redis Cluster must know them all while a slot moves."""
    keys: dict[str, None] = {}
    marked = {b for group in commit for visit in group.visits for b, _ in visitor_buckets(group.slot, visit)}
    for slot in {group.slot for group in commit}:
        keys |= _slot_keys(slot)
    for bucket in marked:
        keys |= dict.fromkeys(_listing(bucket))
    for group in commit:
        if group.key:
            keys |= {f"key:{group.key.id}": None, f"keys:{group.key.client}": None}
    return keys


@lru_cache(maxsize=256)  # those of this minute, mostly
def _slot_keys(slot: TimeSlot) -> dict[str, None]:
    """The keys that any hit needs then."""
    others = Bucket("day", slot.day, CORRECTION), Bucket("day", slot.day, GENERATION)
    return dict.fromkeys(["keys", "starts:minute", "starts:hour", "starts:day", *map(_key, slot.buckets + others)])


def _encode_commit(commit: Commit, rejected: Mapping[int, Reason], others: Iterable[TimeSlot]) -> bytes:
    """Return the work of count.lua as JSON; its first lines describe the form."""
    slots = {slot: index for index, slot in enumerate(dict.fromkeys(others))}
    groups = []
    for index, group in enumerate(commit):
        amounts = list(chain.from_iterable(group.amounts.items()))
        marks = [
            part
            for visit in group.visits
            for bucket, visitor in visitor_buckets(group.slot, visit)
            for part in (visit.event, _key(bucket), visitor, visit.by)
        ]
        slot = slots.setdefault(group.slot, len(slots))
        key, reason = group.key or False, rejected.get(index, False)
        groups.append((slot, amounts, key, group.limited, reason, marks, not group.atomic))
    return msgspec.json.encode(([(list(map(_key, slot.buckets)), slot.date, slot.minute) for slot in slots], groups))


def _encode_change(change: DayChange) -> bytes:
    """Return the work of write.lua as JSON; its first lines describe the form."""
    expected = False if change.expected_corrections is None else change.expected_corrections
    return msgspec.json.encode((f"day:{change.slot.day}", expected, [_write(*write) for write in change.writes]))


def _write(how: str, bucket: Bucket, counts: Mapping[str, int]) -> tuple[object, ...]:
    of_events = is_event_bucket(bucket)
    if bucket.dimension.startswith(SKETCH):
        return (
            how,
            _key(bucket._replace(dimension=bucket.dimension.removeprefix(SKETCH))),
            of_events,
            hyperloglog.to_redis(counts).hex(),
        )
    return how, _key(bucket), of_events, [part for pair in counts.items() for part in pair]
