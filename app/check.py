"""The checks of `tally check`: what a store counts in two ways must be equal.

docs/reference/cli.md lists them. A difference that hits or corrections may have caused meanwhile is read again.
"""

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from app.corrections import CorrectionRecord
from app.domain.buckets import ALL_EVENTS, CORRECTION, CORRECTION_LOG, GENERATION, TOTAL, Bucket, is_event_bucket
from app.domain.calendar import Calendar, Clock
from app.domain.counting import COUNT_MAX
from app.settings import Settings
from app.stores import create_store
from app.stores.base import CounterStore, OffsetMismatch
from app.stores.rules import PERMANENT_SOURCE_PREFIX
from app.stores.sqlite_backup import find_damage

READS = 3  # of a difference, before it is reported
BUCKETS_PER_READ = 100
_IMPORT_MARK = f"{PERMANENT_SOURCE_PREFIX}import"  # a source whose offset is the end of the last day with an import
Log = dict[int, list[CorrectionRecord]]  # the corrections by day


async def mark_import(store: CounterStore, clock: Clock) -> None:
    """Record that an import begins. Raises StoreError.

    An export may lack the hours of a day, or have hits in some of its lines and not in others. So buckets that begin
    before the next day need not be consistent.
    """
    offset, until = await store.get_offset(_IMPORT_MARK), clock.calendar.next_day(clock.at())
    if offset < until:
        with contextlib.suppress(OffsetMismatch):  # another import has recorded it
            await store.apply(_IMPORT_MARK, offset, until, [])


async def imported_until(store: CounterStore) -> int:
    """Return the UTC second from which days may be compared with their hours, or 0 if nothing was imported."""
    return await store.get_offset(_IMPORT_MARK)


class DifferencesFound(ValueError):
    """Counts differ. The message lists some of the differences."""


async def check_store(store: CounterStore, settings: Settings, at: float) -> list[str]:
    """Return a sentence for each difference in an open store. `at` is the current UTC second. Raises StoreError."""
    return [difference async for difference in StoreCheck(store, settings, at).differences()]


async def check_copy(file: Path, settings: Settings, at: float) -> list[str]:
    """Do the same for a copy of a SQLite file, unless SQLite finds damage in it. Raises StoreError."""
    if damage := await asyncio.to_thread(find_damage, file):
        return [f"the file is damaged: {problem}" for problem in damage]
    store = create_store(settings.model_copy(update={"store": f"sqlite:///{file}"}))
    try:
        await store.open()
        return await check_store(store, settings, at)
    finally:
        await store.close()


class StoreCheck:
    """One check of an open store. `at` is the current UTC second, from which the age of buckets is counted."""

    def __init__(self, store: CounterStore, settings: Settings, at: float) -> None:
        self._store, self._calendar = store, Calendar(settings.timezone)
        slot = self._calendar.slot(at)
        self._today = slot.day
        # One step more than what `prune` may delete during the check.
        self._oldest = {
            "minute": slot.minute - settings.minutes_kept_hours * 3600 + 3600,
            "hour": slot.minute - settings.hours_kept_days * 86_400 + 3600,
            "day": self._calendar.starts("day", slot.day, settings.days_kept - 1)[0],
        }
        self._imported_until = 0

    async def differences(self) -> AsyncIterator[str]:
        """Yield a sentence for each difference, which names the event. Raises StoreError."""
        self._imported_until = await imported_until(self._store)
        buckets = [bucket for bucket in await self._store.list_buckets() if is_event_bucket(bucket)]
        for bucket in sorted(buckets):
            async for difference in self._check_bucket(bucket):
                yield difference
        starts: dict[str, list[int]] = defaultdict(list)
        for step, start in sorted({(bucket.step, bucket.start) for bucket in buckets}):
            starts[step].append(start)  # a day with corrections may have no hits
        async for difference in self._check_parts(starts["hour"], starts["minute"], "hour", "minute"):
            yield difference
        async for difference in self._check_parts(starts["day"], starts["hour"], "day", "hour"):
            yield difference
        async for difference in self._check_days([day for day in starts["day"] if day >= self._oldest["day"]]):
            yield difference

    async def _check_bucket(self, bucket: Bucket) -> AsyncIterator[str]:
        """Compare the sum of all events with the counts of the events, each of which must be possible."""
        least = -COUNT_MAX if bucket.dimension == CORRECTION else 0
        for _ in range(READS):
            await asyncio.sleep(0)  # a read from memory does not wait
            generation = await self._generation(bucket)
            (before,) = await self._store.read([bucket], [ALL_EVENTS])
            (counts,) = await self._store.read([bucket])
            (after,) = await self._store.read([bucket], [ALL_EVENTS])
            members = sum(counts.values()) - counts.get(ALL_EVENTS, 0)
            sums = before.get(ALL_EVENTS, 0), after.get(ALL_EVENTS, 0)
            if sums[0] <= members <= sums[1]:
                break
        else:
            if generation == await self._generation(bucket):
                yield f"{self._name(bucket)}: the sum of all events is {sums[1]}, but the events have {members}"
        for event, count in counts.items():
            if event != ALL_EVENTS and not least <= count <= COUNT_MAX:
                yield f"{event}: {self._name(bucket)} has the impossible count {count}"

    async def _generation(self, bucket: Bucket) -> list[Mapping[str, int]]:
        """Return the number of changes of the newest days, which may change any bucket."""
        days = [*await self._store.newest_days(), *([bucket.start] if bucket.step == "day" else [])]
        return list(await self._store.read([Bucket("day", day, GENERATION) for day in days], [ALL_EVENTS]))

    async def _check_parts(self, wholes: list[int], parts: list[int], step: str, part_step: str) -> AsyncIterator[str]:
        """Compare the counts of each hour with its minutes, or of each day with its hours, where all of them are kept.

        The oldest part is older than those that were kept for a shorter time, before a setting was changed. Those of
        today are always kept.
        """
        oldest_part = min([*parts, self._today])
        begin = max(self._oldest[step], self._oldest[part_step], self._imported_until, oldest_part)
        listed: dict[int, list[int]] = defaultdict(list)
        for start in parts:
            listed[getattr(self._calendar.slot(start), step)].append(start)
        for whole in sorted(start for start in {*wholes, *listed} if start >= begin):
            (counts,) = await self._store.read([Bucket(step, whole)])
            sums = await self._add_up(Bucket(part_step, start) for start in listed[whole])
            for event in sorted(event for event in counts.keys() | sums.keys() if counts.get(event, 0) != sums[event]):
                # Hits may have been counted between the reads.
                possible = self._parts_of(whole, step, part_step)
                found = await self._store.read_at_once([Bucket(step, whole), *possible], event)
                count, added = found[0].get(event, 0), sum(part.get(event, 0) for part in found[1:])
                if event != ALL_EVENTS and count != added:
                    yield f"{event}: {self._name(Bucket(step, whole))} has {count}, but its {part_step}s have {added}"

    def _parts_of(self, start: int, step: str, part_step: str) -> list[Bucket]:
        """Return all minutes of an hour, or all hours of a day. Neither is always equally long."""
        slots = map(self._calendar.slot, range(start, start + (7200 if step == "hour" else 30 * 3600), 60))
        return [*dict.fromkeys(Bucket(part_step, getattr(s, part_step)) for s in slots if getattr(s, step) == start)]

    async def _add_up(self, buckets: Iterable[Bucket]) -> Counter[str]:
        sums = Counter[str]()
        for bucket in buckets:  # one at a time, because each may be large
            await asyncio.sleep(0)  # a read from memory does not wait
            sums.update((await self._store.read([bucket]))[0])
        return sums

    async def _check_days(self, days: list[int]) -> AsyncIterator[str]:
        """Compare the corrections of the days with their log, and the totals with the days."""
        logs: Log = {}
        unreadable = False
        for day in (day for day in sorted(days) if day >= self._imported_until):
            try:
                logs[day] = await self._read_log(day)
            except msgspec.DecodeError as error:
                yield f"{self._name(Bucket('day', day))}: a correction cannot be read: {error}"
                unreadable = True
                continue
            async for difference in self._check_corrections(day, logs):
                yield difference
        if self._imported_until or unreadable:  # the totals of an import may belong to other days
            return
        counted = await self._add_up(Bucket("day", day) for day in days)
        (totals,) = await self._store.read([TOTAL])
        for event in sorted(counted.keys() - {ALL_EVENTS}):
            if totals.get(event, 0) < counted[event] + added_to_total(event, logs):
                async for difference in self._check_total(event, days):
                    yield difference

    async def _check_corrections(self, day: int, logs: Log) -> AsyncIterator[str]:
        name = self._name(Bucket("day", day))
        for _ in range(READS):
            (generation,) = await self._store.read([Bucket("day", day, GENERATION)], [ALL_EVENTS])
            logs[day] = await self._read_log(day)
            if generation.get(ALL_EVENTS, 0) == len(logs[day]):
                break
        else:
            yield f"{name}: its generation is {generation.get(ALL_EVENTS, 0)}, but its log has {len(logs[day])} changes"
        for event, count in (await self._store.counts(day)).items() if logs[day] else ():
            again = await self._store.counts(day, [event]) if count < 0 else {}
            if again.get(event, 0) < 0:
                yield f"{event}: {name} has the count {count} after its corrections"

    async def _check_total(self, event: str, days: Sequence[int]) -> AsyncIterator[str]:
        """Read a total and its days again, with the days first: hits that are counted meanwhile raise the total."""
        for _ in range(READS):
            logs = {day: await self._read_log(day) for day in days}
            counted = added_to_total(event, logs)
            for i in range(0, len(days), BUCKETS_PER_READ):
                part = [Bucket("day", day) for day in days[i : i + BUCKETS_PER_READ]]
                counted += sum(counts.get(event, 0) for counts in await self._store.read(part, [event]))
            (totals,) = await self._store.read([TOTAL], [event])
            if totals.get(event, 0) >= counted:
                return
            if logs == {day: await self._read_log(day) for day in days}:
                yield f"{event}: the total is {totals.get(event, 0)}, but the days have {counted}"
                return

    async def _read_log(self, day: int) -> list[CorrectionRecord]:
        (records,) = await self._store.read([Bucket("day", day, CORRECTION_LOG)])
        return sorted(msgspec.json.decode(record, type=CorrectionRecord) for record in records)

    def _name(self, bucket: Bucket) -> str:
        """Return a text for a bucket, such as "the day 2026-11-23"."""
        if bucket == TOTAL:
            return "the totals"
        if bucket.step == "day":
            date = f"the day {self._calendar.slot(bucket.start).date}"
            return f"{date} ({bucket.dimension})" if bucket.dimension else date
        return f"the {bucket.step} {datetime.fromtimestamp(bucket.start, UTC):%Y-%m-%dT%H:%MZ}"


def added_to_total(event: str, logs: Log) -> int:
    """Return what corrections have added to an event's total since it was last deleted."""
    added = 0
    for record in (record for day in sorted(logs) for record in logs[day] if record.event == event):
        added = 0 if record.action == "delete" else added + record.after.total - record.before.total
    return added
