"""Dead letters: records that cannot be counted go to a topic of their own, with the reason."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from aiokafka import ConsumerRecord

from app.domain.calendar import Clock
from app.domain.counting import IdempotencyKey
from app.kafka.decoding import Decoder, RecordRejected
from app.kafka.producer import KafkaWriter

WRITES_MAX = 100  # dead letters that are written at once

log = logging.getLogger("tally.kafka")


class DeadLetter(NamedTuple):
    """A record that cannot be counted. The reason is one word, or one word, a colon and details."""

    record: ConsumerRecord
    reason: str


class DeadLetterWriter:
    """Writes dead letters to a topic. `counts` has their number by the first word of the reason."""

    def __init__(self, writer: KafkaWriter, topic: str, clock: Clock) -> None:
        self._writer = writer
        self._topic = topic
        self._clock = clock
        self.counts: Counter[str] = Counter()

    async def send(self, letters: Sequence[DeadLetter]) -> None:
        """Write dead letters. If that fails, log where the records are: they are still in their own topic."""
        self.counts.update(letter.reason.partition(":")[0] for letter in letters)
        for begin in range(0, len(letters), WRITES_MAX):
            writes = map(self._write, letters[begin : begin + WRITES_MAX])
            if failures := [e for e in await asyncio.gather(*writes, return_exceptions=True) if e]:
                first = letters[begin].record
                location = f"topic {first.topic} partition {first.partition} from offset {first.offset}"
                log.error("cannot write %s dead letters, %s: %s", len(letters) - begin, location, failures[0])
                return

    async def _write(self, letter: DeadLetter) -> None:
        record = letter.record
        origin = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
        details = {"reason": letter.reason, **origin}
        headers = [*record.headers, *((f"tally.{name}", str(value).encode()) for name, value in details.items())]
        await self._writer.write(self._topic, record.key or b"", record.value or b"", self._clock.at(), headers)


def rejected_records(
    decode: Decoder, records: Sequence[ConsumerRecord], reasons: Mapping[IdempotencyKey | str, str]
) -> list[DeadLetter]:
    """Return the records that a store has rejected: those with an idempotency key, or an event, in `reasons`.

    A record that cannot be decoded is left out, because it is a dead letter already.
    """
    letters = []
    for record in records:
        with contextlib.suppress(RecordRejected):
            _, amounts, key, _ = decode(record)
            found = [reasons[name] for name in ([key] if key else amounts) if name in reasons]
            letters += [DeadLetter(record, reason) for reason in found[:1]]
    return letters
