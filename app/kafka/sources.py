"""The sources of Kafka partitions: which log of a partition is counted, and what its last commit was made of."""

import hashlib

import msgspec
from aiokafka import ConsumerRecord

from app.stores.base import CounterStore, StoreOpenError
from app.stores.rules import PERMANENT_SOURCE_PREFIX

PARTS_MAX = 1024  # more than VISITS_MAX visits have


class LastCommit(msgspec.Struct, frozen=True, array_like=True):
    """The note of a source: its last commit, made of the records from `begin` to before `end`.

    `at` is the time at which it was made (UTC seconds), which decides on the slots of the hits. `digest` is that of the
    last record. It identifies the log: a log that was truncated or recreated has another record at this offset.
    """

    begin: int
    end: int
    at: float
    digest: str

    @property
    def note(self) -> str:
        """The text to save in a store."""
        return msgspec.json.encode(self).decode()


async def read_last_commit(store: CounterStore, source: str, offset: int) -> LastCommit | None:
    """Return the commit that moved a source to this offset, or None if that is unknown."""
    note = await store.get_note(source)
    last = msgspec.json.decode(note, type=LastCommit) if note else None
    return last if last and last.end == offset else None


def record_digest(record: ConsumerRecord) -> str:
    """Return a hash of a record's time, key and value."""
    content = b"%d %d " % (record.timestamp, len(record.key or b"")) + (record.key or b"") + (record.value or b"")
    return hashlib.blake2b(content, digest_size=12).hexdigest()


async def current_source(store: CounterStore, topic: str, partition: int) -> str:
    """Return the source of the log of a partition that is counted now."""
    return _source(topic, partition, await store.get_offset(_log_counter(topic, partition)))


def letters_source(source: str) -> str:
    """Return the source whose offset is the end of the last commit with rejected hits that are dead letters by now."""
    return f"{source} letters"


def parts_source(source: str) -> str:
    """Return the source of the parts of records that are too large for a commit; see `parts_offset`."""
    return f"{source} parts"


def parts_offset(offset: int, number: int) -> int:
    """Return the offset of a parts source after this part, from 0, of the record at this offset."""
    return offset * PARTS_MAX + number + 1


async def set_offset(store: CounterStore, topic: str, partition: int, offset: int) -> str:
    """Count a partition from this offset on, with a new source, because the log is another one. Return a sentence.

    Raises StoreOpenError if the store has counted no record of this partition, and the errors of a store.
    """
    counted = await store.get_offset(await current_source(store, topic, partition))
    number = current = await store.get_offset(_log_counter(topic, partition))
    if not counted and not number:
        raise StoreOpenError(f"the store has counted no record of topic {topic} partition {partition}")
    while await store.get_offset(source := _source(topic, partition, number)):
        number += 1
    if offset:
        await store.apply(source, 0, offset, [])
    await store.apply(_log_counter(topic, partition), current, number, [])
    return f"Topic {topic} partition {partition} is counted from offset {offset} on; before, it was {counted}"


def _source(topic: str, partition: int, log: int) -> str:
    """Return the source of a log of a partition. The first log has number 0."""
    return f"{PERMANENT_SOURCE_PREFIX}{topic} {partition}" + (f" {log}" if log else "")


def _log_counter(topic: str, partition: int) -> str:
    """Return the source whose offset is the number of the log that is counted."""
    return f"{PERMANENT_SOURCE_PREFIX}{topic} {partition} log"
