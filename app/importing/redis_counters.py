"""Import plain counters of a Redis: keys that `INCR` counts, as totals of events."""

from hashlib import blake2b
from typing import NamedTuple

from redis import exceptions

from app.domain.buckets import ALL_EVENTS, IMPORTED, TOTAL, Bucket
from app.domain.calendar import Clock
from app.domain.counting import COUNT_MAX, BucketWrite, DayChange
from app.export_import import LINE_MEMBERS_MAX, ExportError
from app.importing.rows import count_of, event_of
from app.stores.base import CounterStore, OffsetMismatch, StoreOpenError, StoreUnavailable
from app.stores.redis_url import RedisTarget

KEYS_PER_CALL = 1000
BAD_KEYS_MAX = 20  # that an error names


class RedisCounters(NamedTuple):
    """The counters of a Redis by event. The id is that of the Redis and the prefix that names lose."""

    id: str
    counts: dict[str, int]


async def read_counters(url: str, match: str, prefix: str) -> RedisCounters:
    """Return the values of the keys that match a glob pattern. Event names are the keys without the prefix.

    Raises ExportError if the Redis cannot be read, or if a value is not a whole number.
    """
    try:
        target = RedisTarget.from_url(url)
    except StoreOpenError:
        text = "write redis://user:password@host:6379/0, and percent-encode all but letters and digits in the password"
        raise ExportError(f"--from-redis is not a valid Redis URL: {text}") from None
    client, values = target.client, dict[str, str | Exception | None]()
    try:
        keys = list({key async for key in client.scan_iter(match, count=KEYS_PER_CALL)})
        for i in range(0, len(keys), KEYS_PER_CALL):
            part, pipeline = keys[i : i + KEYS_PER_CALL], client.pipeline(transaction=False)
            for key in part:
                pipeline.get(key)
            values |= zip(part, await pipeline.execute(raise_on_error=False), strict=True)
    except UnicodeDecodeError:
        raise ExportError("a key in this Redis is not UTF-8 text; choose others with --match") from None
    except (exceptions.RedisError, OSError) as error:
        raise ExportError(f"the Redis of --from-redis cannot be read: {error}") from None
    finally:
        await target.close()
    source = blake2b(f"{target.identity} {prefix}".encode(), digest_size=16).hexdigest()
    return RedisCounters(source, _sum_by_event(values, prefix))


def _sum_by_event(values: dict[str, str | Exception | None], prefix: str) -> dict[str, int]:
    counts, bad = dict[str, int](), list[str]()
    for key, value in values.items():
        try:
            if value is None:  # the key was deleted after it was listed
                continue
            event = event_of(key.removeprefix(prefix))
            count = count_of(str(value))  # a hash or a list has an error instead of a value
            counts[event] = counts.get(event, 0) + count
        except ValueError as error:
            bad.append(f"key {key!r}: {error}")
            if len(bad) == BAD_KEYS_MAX:
                break
    if bad:
        raise ExportError("; ".join(sorted(bad)))
    if not any(counts.values()):
        raise ExportError("no key with a count matches --match")
    return counts


async def missing_counts(store: CounterStore, counters: RedisCounters) -> dict[str, int]:
    """Return what each event lacks, because it was not imported before. Raises ExportError if it is too much."""
    missing = dict[str, int]()
    for part in _parts(counters.counts):
        missing |= await _missing(store, counters, part)
    (totals,) = await store.read([TOTAL], [ALL_EVENTS])
    if totals.get(ALL_EVENTS, 0) + sum(missing.values()) > COUNT_MAX:
        raise ExportError(f"the sum of all events would exceed {COUNT_MAX}")
    return missing


async def add_counters(store: CounterStore, clock: Clock, counters: RedisCounters) -> None:
    """Add to the totals what was not imported before.

    The same atomic change also adds it to a bucket of what was imported, so that nothing is added twice, even if the
    import is killed, or repeated after the Redis has counted more. Raises StoreError.
    """
    source, imported = f"import {counters.id}", _imported(counters)
    for part in _parts(counters.counts):
        while True:
            # The offset is read first: if another import or a late change adds anything in between, this change is
            # not applied, and the loop reads again what is missing.
            offset = await store.get_offset(source)
            missing = await _missing(store, counters, part)
            if not missing:
                break
            writes = [BucketWrite("add", bucket, missing) for bucket in (TOTAL, imported)]
            try:
                change = DayChange(clock.slot(), writes, may_be_late=True)
                await store.apply_change(source, offset, offset + 1, change)
            except OffsetMismatch:
                continue


async def _missing(store: CounterStore, counters: RedisCounters, part: list[str]) -> dict[str, int]:
    (found,) = await store.read([_imported(counters)], part)
    if store.stale_seconds() is not None:
        raise StoreUnavailable("the store has become unreachable; repeat the import")
    missing = {event: counters.counts[event] - found.get(event, 0) for event in part}
    return {event: count for event, count in missing.items() if count > 0}


def _imported(counters: RedisCounters) -> Bucket:
    return TOTAL._replace(dimension=IMPORTED + counters.id)


def _parts(counts: dict[str, int]) -> list[list[str]]:
    events = sorted(counts)
    return [events[i : i + LINE_MEMBERS_MAX] for i in range(0, len(events), LINE_MEMBERS_MAX)]
