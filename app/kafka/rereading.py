"""Reads a partition's last commit again, before its next records are counted."""

from collections.abc import Sequence

from aiokafka import ConsumerRecord

from app.kafka.sources import LastCommit, record_digest


class Rereading:
    """The records of a partition's last commit, as Kafka has them now.

    `has_unsent_letters` is true if dead letters of the commit may be missing. Then `records` has all of its records,
    else only the last one.
    """

    def __init__(self, last: LastCommit, *, has_unsent_letters: bool) -> None:
        self.last = last
        self.has_unsent_letters = has_unsent_letters
        self.records: list[ConsumerRecord] = []
        self.is_complete = False

    def take(self, records: Sequence[ConsumerRecord]) -> list[ConsumerRecord]:
        """Add the records that belong to the commit, and return the others."""
        end = self.last.end
        self.records += [record for record in records if record.offset < end]
        self.is_complete = records[-1].offset >= end - 1
        return [record for record in records if record.offset >= end]

    def is_same_log(self) -> bool:
        """Return whether the last record is the one that was counted. Compaction may have deleted it."""
        found = self.records and self.records[-1].offset == self.last.end - 1
        return not found or record_digest(self.records[-1]) == self.last.digest
