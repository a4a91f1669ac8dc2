"""Counters in Redis, for many nodes: one script, in one round trip, counts a whole batch."""

import json
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import TypeVar

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from app.events import Batch, Bucket
from app.stores import base
from app.stores.base import Ack, Applied, CounterStore

PREFIX = "tally:{0}:"  # the braces put every key into one slot of a cluster
ANSWER_SECONDS = 2.0  # no request waits longer than 2.5 s, the spool's fsync included
CONNECTIONS_MAX = 16  # one writes at a time; the others read

T = TypeVar("T")


class RedisStore(CounterStore):
    kind = "redis"
    ack: Ack = "redis"

    def __init__(self, url: str, names_max: int) -> None:
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
        self._names_max = names_max
        where = pool.connection_kwargs
        self.identity = f"{where.get('path') or where.get('host')}:{where.get('port', '')}/{where.get('db', 0)}"

    async def open(self) -> None:
        await _reading(self._redis.ping())

    async def close(self) -> None:
        await self._redis.aclose()

    async def apply(self, source: str, at: int, next: int, batch: Batch) -> Applied:  # noqa: A002 # the contract's word
        postings = [
            ([_key(b) for b in p.moment.buckets], [x for pair in p.counts.items() for x in pair])
            for p in batch.postings
        ]
        names_max = self._names_max if batch.capped else -1
        arguments: list[str | int] = [PREFIX, at, next, names_max, base.SOURCE_KEPT_SECONDS, json.dumps(postings)]
        try:
            counted, answer = await self._script(keys=[f"{PREFIX}source:{source}"], args=arguments)
        except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
            raise base.OutcomeUnknown(f"Redis: {error}") from error
        except exceptions.RedisError as error:  # it answered, with a refusal
            raise base.StoreUnavailable(f"Redis: {error}") from error
        if not counted:
            raise base.Moved(int(answer))
        return Applied(base.read_answers(batch, json.loads(answer)), self.ack)

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


def _key(bucket: Bucket) -> str:
    return f"{bucket[0]}:{bucket[1]}"


async def _reading(answer: Awaitable[T]) -> T:
    try:
        return await answer
    except (exceptions.RedisError, OSError) as error:
        raise base.StoreUnavailable(f"Redis: {error}") from error
