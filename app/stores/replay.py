"""The replay of spooled commits: each is counted once, however often it is replayed."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from app.domain.counting import COUNT_MAX, Commit
from app.stores.base import CounterStore
from app.stores.results import GroupResult, Reason
from app.stores.rules import apply_despite_loss
from app.stores.spool_file import SpoolFile, decode

REPLAY_LINES = 20  # lines that are replayed, then deleted from the spool file in one transaction
REPLAY_BYTES = 1_000_000  # lines of more bytes than this are read one by one, because each may be large
LIMITS: set[Reason | None] = {"full", "keys"}

log = logging.getLogger("tally.spool")


class Replay:
    """Replays spool files to a store. `record_data_loss` is called with the number of commits that the store lost.

    `lines` is the number of lines that were replayed, and `rejected_hits` that of the acknowledged hits in them that
    cannot be counted. `shows_too_much` is true if this node may show hits that the store did not count.
    """

    def __init__(self, store: CounterStore, record_data_loss: Callable[[int], Awaitable[None]]) -> None:
        self._store = store
        self._record_data_loss = record_data_loss
        self._stopped = False
        self.lines = 0
        self.rejected_hits = 0
        self.shows_too_much = False

    def reasons(self) -> list[str]:
        """Return a sentence for operators if hits cannot be counted."""
        hits = self.rejected_hits
        text = f"{hits} acknowledged hits were spooled and cannot be counted: a count exceeds {COUNT_MAX}"
        return [text] if hits else []

    def stop(self) -> None:
        """End after the current line. A cancellation may get lost in redis-py or in a time-out."""
        self._stopped = True

    async def run(self, files: list[SpoolFile], until: float) -> bool:
        """Replay files, oldest line first, and delete them, until this monotonic time. Return whether all are done."""
        while files:
            while lines := await asyncio.to_thread(files[0].first, REPLAY_LINES, REPLAY_BYTES):
                replayed = 0
                try:
                    # At least one line, so that each slice makes progress.
                    while replayed < len(lines) and (not replayed or time.monotonic() < until):
                        await self._replay_line(lines[replayed])
                        replayed += 1
                        if self._stopped:
                            break
                finally:
                    await asyncio.to_thread(files[0].drop, lines[:replayed])
                    self.lines += replayed
                if self._stopped or replayed < len(lines):
                    return False
            files.pop(0).delete()
        return True

    async def _replay_line(self, line: str) -> None:
        source, expected_offset, new_offset, commit = decode(line)
        result = await apply_despite_loss(
            lambda offset: self._store.apply(source, offset, new_offset, commit),
            self._record_data_loss,
            expected_offset,
            new_offset,
        )
        if result is None:
            return
        # This node has counted the group on top, but the store has rejected it, or counted it for another node.
        self.shows_too_much |= not all(group_result.is_counted for group_result in result.groups)
        self._report_rejected(commit, result.groups)
        if missing := _counted_anyway(commit, result.groups):
            result = await self._store.apply(f"{source} {expected_offset}", 0, 1, missing)
            self._report_rejected(missing, result.groups)

    def _report_rejected(self, commit: Commit, results: Sequence[GroupResult]) -> None:
        """Log and count hits whose count would be too large: they were acknowledged, and nothing can count them."""
        hits = 0
        for group, result in zip(commit, results, strict=True):
            events = group.amounts if result.reason else result.rejected
            reasons = {event: result.reason or result.rejected[event] for event in events}
            hits += sum(group.amounts[event] for event, reason in reasons.items() if reason == "overflow")
        if hits:
            self.rejected_hits += hits
            log.error("%s acknowledged hits were spooled and cannot be counted: a count exceeds %s", hits, COUNT_MAX)


def _counted_anyway(commit: Commit, results: Sequence[GroupResult]) -> Commit:
    """Return the hits of a spooled commit that the store has rejected, but has to count, because they are acknowledged.

    A limit may have rejected them in the first attempt, whose response was lost. Their key may belong to another
    request, which another node counted meanwhile: then they are counted without it.
    """
    missing = []
    for group, result in zip(commit, results, strict=True):
        if result.reason in LIMITS:
            missing.append(group)
        elif result.reason == "mismatch":
            missing.append(group.only(group.amounts))
        elif events := [event for event, reason in result.rejected.items() if reason in LIMITS]:
            missing.append(group.only(events))
    return missing
