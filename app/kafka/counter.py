"""Counts records: makes a commit of them, applies it, publishes the counts, and writes the dead letters."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from aiokafka import ConsumerRecord

from app.domain.calendar import Clock, TimeSlot
from app.domain.counting import Commit
from app.kafka.commits import BuiltCommit, build_commit, pair_results, rejection_reasons
from app.kafka.dead_letters import DeadLetter, DeadLetterWriter, rejected_records
from app.kafka.decoding import Decoder, decode_buffered
from app.kafka.sources import LastCommit, letters_source, parts_offset, parts_source, record_digest
from app.metrics import Metrics
from app.stores.base import CounterStore, OffsetMismatch
from app.stores.results import ApplyResult

log = logging.getLogger("tally.kafka")


class RecordCounter:
    """Counts the records of partitions, with a decoder for each topic.

    `publish` sends today's counts to clients, as for GroupCommitter. `records` were counted or became dead letters.
    """

    def __init__(
        self,
        decoders: Mapping[str, Decoder],
        store: CounterStore,
        clock: Clock,
        publish: Callable[[TimeSlot, dict[str, int], int], None],
        dead_letters: DeadLetterWriter,
        metrics: Metrics,
        days_kept: int,
    ) -> None:
        self._decoders = decoders
        self._store = store
        self._clock = clock
        self._publish = publish
        self._dead_letters = dead_letters
        self._metrics = metrics
        self._days_kept = days_kept
        self.records = 0

    async def count(self, source: str, offset: int, records: Sequence[ConsumerRecord]) -> tuple[int, int]:
        """Count as many records as one commit may have, with the source at `offset`.

        Returns their number and the new offset. Raises OffsetMismatch if the first record was counted already, or if
        another consumer has counted, and the errors of a store.
        """
        if records[0].offset < offset:
            raise OffsetMismatch(offset)
        now = self._clock.at()
        commit, dead, taken, parts = await self._build_commit(records, now)
        await self._dead_letters.send(dead)
        last = records[taken - 1]
        if parts:
            await self._count_parts(source, last, parts)
        made = LastCommit(offset, last.offset + 1, now, record_digest(last))
        applied = await self._apply(source, made, commit)
        self.records += taken
        self._publish_counts(commit, applied)
        await self._send_rejected(source, made, records[:taken], commit, applied)
        return taken, made.end

    async def _count_parts(self, source: str, record: ConsumerRecord, parts: Sequence[Commit]) -> None:
        """Count a large record in several commits, before its partition's source moves.

        They have a source of their own, so that each is counted once, also if a crash comes in between.
        """
        parts_of = parts_source(source)
        offset, first = await self._store.get_offset(parts_of), parts_offset(record.offset, 0)
        if offset <= first and not await self._count_first_part(parts_of, offset, record, parts[0]):
            return
        offset = max(offset, first)
        for number in range(1, len(parts)):
            if (next_offset := parts_offset(record.offset, number)) > offset:
                await self._store.apply(parts_of, offset, next_offset, parts[number])
                offset = next_offset

    async def _count_first_part(self, parts_of: str, offset: int, record: ConsumerRecord, commit: Commit) -> bool:
        """Count the hits of a large record, or get their saved result. Return whether they are counted."""
        first = parts_offset(record.offset, 0)
        try:
            applied = await self._store.apply(parts_of, offset, first, commit)
        except OffsetMismatch as mismatch:
            if mismatch.offset <= first:
                raise
            return True  # some shards have the next part
        self._publish_counts(commit, applied)
        (result,) = applied.groups
        if result.reason:
            await self._dead_letters.send([DeadLetter(record, result.reason)])
        return result.is_counted

    async def send_missing_letters(self, source: str, last: LastCommit, records: Sequence[ConsumerRecord]) -> None:
        """Make a source's last commit again, to get its saved results: a crash may have lost dead letters after it."""
        try:
            commit, _, taken, _ = await self._build_commit(records, last.at)
            if taken == len(records):
                applied = await self._store.apply(source, last.begin, last.end, commit, last.note)
                await self._send_rejected(source, last, records, commit, applied)
        except OffsetMismatch:
            pass  # some shards have a later commit, which was begun after the letters were sent
        except ValueError:  # another version of Tally made other groups of these records
            log.warning("%s: dead letters of the records from offset %s may be missing", source, last.begin)

    async def _build_commit(self, records: Sequence[ConsumerRecord], now: float) -> BuiltCommit:
        decode = self._decoders[records[0].topic]
        return await build_commit(
            decode, decode is decode_buffered, records, now, self._clock.calendar, self._days_kept
        )

    async def _apply(self, source: str, made: LastCommit, commit: Commit) -> ApplyResult:
        began = time.perf_counter()
        try:
            applied = await self._store.apply(source, made.begin, made.end, commit, made.note)
        except ValueError:  # the saved results are of another consumer, which made other groups of these records
            if await self._store.get_offset(source) < made.end:
                raise
            raise OffsetMismatch(made.end) from None
        self._metrics.commit_seconds.observe(time.perf_counter() - began)
        self._metrics.commits.inc()
        return applied

    def _publish_counts(self, commit: Commit, applied: ApplyResult) -> None:
        today = self._clock.slot()
        counts: dict[str, int] = {}
        for group, result in pair_results(commit, applied):
            self._metrics.hits.inc(sum(group.amounts[event] for event in result.counted))
            if group.slot.day == today.day:
                counts |= {event: max(v.count, counts.get(event, 0)) for event, v in result.counted.items()}
        if counts:
            self._publish(today, counts, applied.generations.get(today.day, 0))

    async def _send_rejected(
        self, source: str, made: LastCommit, records: Sequence[ConsumerRecord], commit: Commit, applied: ApplyResult
    ) -> None:
        """Write the records that the store has rejected as dead letters, and save in the store that this is done."""
        if reasons := rejection_reasons(commit, applied):
            await self._dead_letters.send(rejected_records(self._decoders[records[0].topic], records, reasons))
            letters = letters_source(source)
            await self._store.apply(letters, await self._store.get_offset(letters), made.end, [])
