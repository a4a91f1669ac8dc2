"""A store in Redis for many nodes: one script counts a whole commit in one round trip."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from redis import exceptions
from redis.asyncio import RedisCluster

from app.domain.buckets import Bucket
from app.domain.calendar import TimeSlot
from app.domain.counting import Commit, DayChange
from app.stores import redis_keys, redis_scripts, redis_url
from app.stores.base import (
    ChangeExpired,
    OffsetMismatch,
    OutcomeUnknown,
    StoreLimits,
    StoreOpenError,
    StoreStatus,
    StoreUnavailable,
    WriteConflict,
    check_zone,
)
from app.stores.redis_health import RedisHealth
from app.stores.redis_keys import bucket_key, dimensions_key, hll_key, starts_key
from app.stores.redis_reads import RedisReads
from app.stores.redis_records import RedisRecords
from app.stores.results import Ack, ApplyResult, GroupResult, Reason, decode_result, from_row

# How durable an acknowledged hit is, by Redis' appendfsync setting. It may pause while Redis rewrites its file.
_DURABILITY = {
    "always": "a crash of Redis and power loss: it is on the disk of Redis",
    "paused": "a crash of Redis, but not power loss while it rewrites its file: no-appendfsync-on-rewrite is yes",
    "everysec": "a crash of Redis, but for the last 2 seconds",
    "no": "a crash of Redis, but for data that the operating system had not written yet",
    "none": "a crash of this process, but not of Redis, which has no append-only file",
}
_EVICTED = "nothing for certain: Redis may evict it, because its maxmemory-policy is not noeviction"

DIMENSIONS_PER_CALL = 100  # deleted in one round trip; each has two keys

# RedisClusterException is not a RedisError.
_REDIS_ERRORS = (exceptions.RedisError, exceptions.RedisClusterException, OSError)

T = TypeVar("T")

log = logging.getLogger("tally.redis")


class RedisStore(RedisReads):
    """One shard of a store: all its keys share a hash slot. A store that is not sharded is shard 0."""

    kind = "redis"
    ack: Ack = "redis"
    shared = True

    def __init__(self, target: redis_url.RedisTarget, limits: StoreLimits, shard: int = 0, zone: str = "UTC") -> None:
        super().__init__()
        self._target = target
        self._client = target.client
        self._prefix = redis_keys.key_prefix(shard)
        self._limits = limits
        self._zone = zone
        self.records = RedisRecords(self._client, self._prefix, self._execute, self._read)
        self._health = RedisHealth()
        self._persistence = "the end of this process: it is in Redis, or in the spool while Redis is unreachable"

    async def open(self) -> None:
        """Connect, check the number of shards, and read how durable Redis is."""
        stored = await self._set_once(redis_keys.SHARD_COUNT_KEY, str(self._target.shards))
        if stored != str(self._target.shards):
            raise StoreOpenError(f"TALLY_STORE: this store was created with shards={stored}, which cannot be changed")
        check_zone(await self._set_once(redis_keys.ZONE_KEY, self._zone), self._zone)
        await self._read_health()
        for reason in self._health.reasons():
            log.warning("%s", reason)

    async def _set_once(self, key: str, value: str) -> str:
        """Save a value unless there is one already, and return the saved one."""
        await self._execute(self._client.set(self._prefix + key, value, nx=True))
        return str(await self._execute(self._client.get(self._prefix + key)))

    async def close(self) -> None:
        await self._target.close()

    async def apply(
        self,
        source: str,
        expected_offset: int,
        new_offset: int,
        commit: Commit,
        note: str = "",
        rejected: Mapping[int, Reason] | None = None,
        other_slots: Iterable[TimeSlot] = (),
    ) -> ApplyResult:
        """Apply a commit, or one shard's part of it.

        `rejected` gives the reason by the index of each group that another shard rejected: it is saved as the group's
        result. The result contains the generations of the days of `other_slots`, which groups in other shards have.
        """
        keys, work = redis_keys.commit_keys(commit), redis_scripts.encode_commit(commit, rejected or {}, other_slots)
        results = await self._apply(redis_scripts.COUNT, source, expected_offset, new_offset, keys, work, note)
        return decode_result(commit, results, self.ack)

    async def apply_change(
        self,
        source: str,
        expected_offset: int,
        new_offset: int,
        change: DayChange,
        unfinished: redis_scripts.UnfinishedChange | None = None,
    ) -> ApplyResult:
        """Apply a change, or one shard's part of it. In the same step, save the change that other shards lack."""
        deadline = None if change.may_be_late else self._deadline()
        keys, work = redis_keys.change_keys(change), redis_scripts.encode_change(change, deadline, unfinished)
        try:
            results = await self._apply(redis_scripts.WRITE, source, expected_offset, new_offset, keys, work)
        except ChangeExpired:
            # The clock of Redis may have been set since it was read.
            with contextlib.suppress(StoreUnavailable):
                await self._read_health()
            raise
        return decode_result((), results, self.ack)

    async def unfinished_changes(self) -> list[redis_scripts.UnfinishedChange]:
        """Return the changes that other shards may lack."""
        saved = await self._execute(self._client.hvals(self._prefix + redis_keys.UNFINISHED_KEY))
        return [msgspec.json.decode(text, type=redis_scripts.UnfinishedChange) for text in saved]

    async def finish_change(self, unfinished: redis_scripts.UnfinishedChange) -> None:
        """Remove an unfinished change, because all shards have it."""
        await self._execute(self._client.hdel(self._prefix + redis_keys.UNFINISHED_KEY, unfinished.id))

    def _deadline(self) -> float | None:
        """Return when a change must be applied, on the clock of Redis: then its request has failed."""
        server_time = self._health.server_time()
        return None if server_time is None else server_time + redis_url.COMMAND_TIMEOUT_SECONDS

    async def get_offset(self, source: str) -> int:
        key = self._prefix + redis_keys.source_key(source)
        return int(await self._execute(self._client.hget(key, "offset")) or 0)

    async def get_note(self, source: str) -> str:
        key = self._prefix + redis_keys.source_key(source)
        return await self._execute(self._client.hget(key, "note")) or ""

    async def prepare(self, source: str, new_offset: int, commit: Commit) -> tuple[bool, list[GroupResult | None]]:
        """Decide on the groups of a commit without counting them: the first phase of a commit to several shards.

        Return whether the commit was applied before, and each group's rejection or replayed result, or None if it
        would be counted. A key of a group without amounts is claimed: it is saved. If the commit was applied before,
        the results are those of the groups that were applied. Raises StoreUnavailable or OutcomeUnknown.
        """
        keys, work = redis_keys.commit_keys(commit), redis_scripts.encode_commit(commit, {}, ())
        reply, text = await self._evaluate(redis_scripts.COUNT, source, redis_scripts.PREPARE, new_offset, keys, work)
        applied = reply == "applied"
        # The results of an applied commit begin with the generations, and have no rows for the claims.
        rows = msgspec.json.decode(text)[applied:]
        pairs = zip(commit, rows, strict=False)
        return applied, [None if row is None else from_row(group, row) for group, row in pairs]

    async def _apply(
        self,
        script: redis_scripts.Script,
        source: str,
        expected_offset: int,
        new_offset: int,
        keys: Iterable[str],
        work: bytes,
        note: str = "",
    ) -> str:
        """Run a script that compares and saves the offset; return the saved results as JSON."""
        reply, text = await self._evaluate(script, source, expected_offset, new_offset, keys, work, note)
        if reply == "mismatch":
            raise OffsetMismatch(int(text))
        if reply == "conflict":
            raise WriteConflict
        if reply == "expired":
            raise ChangeExpired("the change reached Redis too late, so it was not made; try again")
        return text

    async def _evaluate(
        self,
        script: redis_scripts.Script,
        source: str,
        expected_offset: int | str,
        new_offset: int,
        keys: Iterable[str],
        work: bytes,
        note: str = "",
    ) -> tuple[str, str]:
        """Run a script; return the two parts of its reply. Raises StoreUnavailable or OutcomeUnknown."""
        all_keys = [self._prefix + key for key in (redis_keys.source_key(source), *keys)]
        arguments = redis_scripts.arguments(self._prefix, source, expected_offset, new_offset, self._limits, work, note)
        call: tuple[Any, ...] = (len(all_keys), *all_keys, *arguments)
        try:
            async with asyncio.timeout(redis_url.COMMAND_TIMEOUT_SECONDS), self._target.command_slots:
                try:
                    reply, text = await self._client.evalsha(script.sha, *call)
                except exceptions.NoScriptError:  # a new server, or one that was restarted
                    reply, text = await self._client.eval(script.text, *call)
        except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
            raise OutcomeUnknown("Redis did not reply; the hits may be counted or not") from error
        except _REDIS_ERRORS as error:
            # Redis replied with an error, or no node of the cluster could be reached: nothing was written.
            raise StoreUnavailable(f"Redis: {error}") from error
        except Exception as error:  # redis-py may raise anything while a cluster changes
            log.exception("unexpected error in redis-py")
            raise OutcomeUnknown("Redis: an unexpected error; details are in the server log") from error
        return reply, text

    async def prune(self, cutoffs: Mapping[str, int], slot: TimeSlot) -> None:  # noqa: ARG002 # Redis expires its keys
        if self._health.has_wrong_clock:  # a clock that is fast would delete the history of all nodes
            return
        for step, cutoff in cutoffs.items():
            starts_of_step = self._prefix + starts_key(step)
            starts: list[Any] = await self._execute(self._client.zrangebyscore(starts_of_step, "-inf", f"({cutoff}"))
            for start in map(int, starts):
                await self._delete_bucket(Bucket(step, start))

    async def _delete_bucket(self, bucket: Bucket) -> None:
        """Delete a bucket and all buckets with a dimension that have the same step and start.

        If a late hit adds another one meanwhile, the bucket remains until the next call.
        """
        dimensions: set[str] = await self._execute(self._client.smembers(self._prefix + dimensions_key(bucket)))
        ordered = list(dimensions)
        for i in range(0, len(ordered) or 1, DIMENSIONS_PER_CALL):
            part = ordered[i : i + DIMENSIONS_PER_CALL]
            keys = [starts_key(bucket.step), dimensions_key(bucket), bucket_key(bucket)]
            for dimension in part:
                visitors = bucket._replace(dimension=dimension)
                keys += [bucket_key(visitors), hll_key(visitors)]
            all_keys = [self._prefix + key for key in keys]
            script = redis_scripts.PRUNE.text
            await self._execute(self._client.eval(script, len(all_keys), *all_keys, bucket.start, *part))

    async def refresh(self) -> str:
        """Return the server's replication id, which a restart or a failover changes, and the id of the last loss."""
        info = await self._read_health()
        loss = await self._execute(self._client.get(self._prefix + redis_keys.EPOCH_KEY))
        return f"{info['master_replid']} {loss}"

    async def record_data_loss(self, commits: int) -> None:  # noqa: ARG002 # OfflineStore adds them up
        await self._execute(self._client.set(self._prefix + redis_keys.EPOCH_KEY, secrets.token_hex(8)))

    async def publish(self, message: str) -> None:
        await self._execute(self._client.publish(self._prefix + redis_keys.CHANNEL, message))

    async def subscribe(self, timeout_seconds: float) -> AsyncIterator[str]:
        subscription = self._client.pubsub()
        try:
            await self._execute(subscription.subscribe(self._prefix + redis_keys.CHANNEL))
            while message := await subscription.get_message(timeout=timeout_seconds):
                if message["type"] == "message":
                    yield message["data"]
            raise StoreUnavailable(f"no message arrived for {timeout_seconds:.0f} s")
        except _REDIS_ERRORS as error:
            raise StoreUnavailable(f"Redis: {error}") from error
        finally:
            await subscription.aclose()

    @property
    def durability(self) -> str:  # type: ignore[override] # a running Redis can be reconfigured
        return _EVICTED if self._health.evicts else self._persistence

    async def _describe_persistence(self, info: Mapping[str, Any]) -> str:
        try:
            config = await self._execute_on_server("CONFIG GET", "*appendfsync*")
            sync = config["appendfsync"] if info["aof_enabled"] else "none"
            may_pause = sync == "always" and config["no-appendfsync-on-rewrite"] == "yes"
            return _DURABILITY["paused" if may_pause else sync]
        except (StoreUnavailable, KeyError):  # an access list forbids it, or a service only resembles Redis
            return "as much as Redis does, which did not report its persistence settings"

    async def _read_health(self) -> dict[str, Any]:
        """Update the health of the server and its persistence, and return its INFO. Raises StoreUnavailable."""
        info: dict[str, Any] = await self._execute_on_server("INFO")
        self._health.update(info)
        self._persistence = await self._describe_persistence(info)
        try:
            await self._execute_on_server("TIME")
            self._health.forbids_time = False
        except StoreUnavailable as error:
            self._health.forbids_time = isinstance(error.__cause__, exceptions.ResponseError)
        return info

    def status(self) -> StoreStatus:
        return StoreStatus(self.ack, reasons=self._health.reasons())

    async def newest_days(self) -> list[int]:
        newest: list[str] = await self._execute(self._client.zrevrange(self._prefix + starts_key("day"), 0, 1))
        return list(map(int, newest))

    async def _execute_on_server(self, *command: str) -> Any:
        """Execute a command on the server that has this shard's keys."""

        async def execute() -> Any:
            if isinstance(self._client, RedisCluster):
                node = self._client.get_node_from_key(self._prefix)
                return await self._client.execute_command(*command, target_nodes=node)
            return await self._client.execute_command(*command)

        return await self._execute(execute())

    async def _read(self, command: Coroutine[Any, Any, T]) -> T:
        """Wait for the reply to a command that may take Redis or this node a millisecond. Raises StoreUnavailable."""
        return await self._execute(command, self._target.read_slots)

    async def _execute(self, command: Coroutine[Any, Any, T], slots: asyncio.Semaphore | None = None) -> T:
        """Wait for the reply to a command. Raises StoreUnavailable."""
        try:
            # The time-out of the sockets does not include the wait for a slot.
            async with asyncio.timeout(redis_url.COMMAND_TIMEOUT_SECONDS), slots or self._target.command_slots:
                return await command
        except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
            # Clients see this text, and that of the error has the address of Redis.
            raise StoreUnavailable("Redis did not reply") from error
        except _REDIS_ERRORS as error:
            raise StoreUnavailable(f"Redis: {error}") from error
        except Exception as error:  # redis-py may raise anything while a cluster changes
            log.exception("unexpected error in redis-py")
            raise StoreUnavailable("Redis: an unexpected error; details are in the server log") from error
        finally:
            command.close()  # it has not begun if it got no slot in time
