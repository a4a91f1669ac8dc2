"""Counters in Redis, for many nodes: one script, in one round trip, counts a whole batch."""

import asyncio
import json
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from app.events import Batch, Bucket, Moment, Posting
from app.stores import base
from app.stores.base import Ack, Applied, Caps, CounterStore

PREFIX = "tally:{0}:"  # the braces put every key into one slot of a cluster
ANSWER_SECONDS = 2.0  # no request waits longer than 2.5 s, the spool's fsync included
CONNECTIONS_MAX = 16  # one writes at a time; the others read

T = TypeVar("T")


class RedisStore(CounterStore):
    kind = "redis"
    ack: Ack = "redis"

    def __init__(self, url: str, caps: Caps) -> None:
        pool = BlockingConnectionPool.from_url(
            url,
            decode_responses=True,
            max_connections=CONNECTIONS_MAX,
            timeout=ANSWER_SECONDS,
            socket_timeout=ANSWER_SECONDS,
            socket_connect_timeout=1,
            health_check_interval=15,
            # redis-py would send a command again whose answer was lost, and so count it twice
            retry=Retry(NoBackoff(), 0),
            # with these on, redis-py 8.1 hands out connections that the server has closed
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )
        self._redis = Redis.from_pool(pool)
        self._script = self._redis.register_script((Path(__file__).parent / "redis.lua").read_text())
        self._caps = caps
        where = pool.connection_kwargs
        self.identity = f"{where.get('path') or where.get('host')}:{where.get('port', '')}/{where.get('db', 0)}"

    async def open(self) -> None:
        await _reading(self._redis.ping())

    async def close(self) -> None:
        await self._redis.aclose()

    async def apply(self, source: str, at: int, next: int, batch: Batch) -> Applied:  # noqa: A002 # the contract's word
        caps = self._caps if batch.capped else Caps(-1, -1)
        arguments: list[str | int] = [PREFIX, at, next, *caps, base.SOURCE_KEPT_SECONDS, base.KEY_KEPT_SECONDS]
        arguments.append(json.dumps([_plain(posting) for posting in batch.postings]))
        try:
            # with the wait for a connection, which the pool's own time-out would add to the socket's
            async with asyncio.timeout(ANSWER_SECONDS):
                counted, answer = await self._script(keys=[f"{PREFIX}source:{source}"], args=arguments)
        except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
            raise base.OutcomeUnknown(f"Redis: {str(error) or 'no answer in time'}") from error
        except exceptions.RedisError as error:  # it answered, with a refusal
            raise base.StoreUnavailable(f"Redis: {error}") from error
        if not counted:
            raise base.Moved(int(answer))
        return Applied(list(map(base.from_row, batch.postings, json.loads(answer))), self.ack)

    async def read(self, buckets: Sequence[Bucket], events: Sequence[str] | None = None) -> list[dict[str, int]]:
        pipe = self._redis.pipeline(transaction=False)
        for bucket in buckets:
            if events is None:
                pipe.hgetall(PREFIX + _key(bucket))
            else:
                pipe.hmget(PREFIX + _key(bucket), list(events))
        found = await _reading(pipe.execute())
        hashes = found if events is None else [dict(zip(events, row, strict=True)) for row in found]
        return [{event: int(count) for event, count in counts.items() if count} for counts in hashes]

    async def sizes(self, buckets: Sequence[Bucket]) -> list[int]:
        pipe = self._redis.pipeline(transaction=False)
        for bucket in buckets:
            pipe.hlen(PREFIX + _key(bucket))
        return [max(0, length - 1) for length in await _reading(pipe.execute())]  # '' is no event

    async def prune(self, before: Mapping[str, int], moment: Moment) -> None:  # noqa: ARG002 # keys expire by themselves
        for step, start in before.items():
            listed = f"{PREFIX}starts:{step}"
            old: list[Any] = await _reading(self._redis.zrangebyscore(listed, "-inf", f"({start}"))
            if old:
                pipe = self._redis.pipeline(transaction=False)
                pipe.unlink(*(f"{PREFIX}{step}:{int(begun)}" for begun in old))
                pipe.zrem(listed, *old)
                await _reading(pipe.execute())


def _key(bucket: Bucket) -> str:
    return f"{bucket[0]}:{bucket[1]}"


def _plain(posting: Posting) -> list[object]:
    buckets, pairs = map(_key, posting.moment.buckets), posting.counts.items()
    counts = [part for pair in pairs for part in pair]
    return [list(buckets), counts, posting.moment.date, posting.moment.minute, posting.key or False]


async def _reading(answer: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await answer
    except (exceptions.RedisError, OSError) as error:
        raise base.StoreUnavailable(f"Redis: {str(error) or 'no answer in time'}") from error
