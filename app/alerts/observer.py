"""Reads what alerts compare: counts by day, totals, sums of windows, and administrative changes."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

from app import corrections
from app.domain.alerts import DAYS_CHECKED, Alert, Change, Observation, Window
from app.domain.buckets import ALL_EVENTS, BEFORE_RESET, CORRECTION, GENERATION, TOTAL, Bucket, Step
from app.domain.calendar import Clock
from app.stores.base import CounterStore, StoreUnavailable

_WINDOWS: Mapping[Window, tuple[Step, int]] = {"5m": ("minute", 5), "1h": ("minute", 60), "1d": ("hour", 24)}


class AlertObserver:
    """Reads a store for alerts."""

    def __init__(self, store: CounterStore, clock: Clock) -> None:
        self._store, self._clock = store, clock
        # By day: the generation up to which its corrections were read, and the corrections.
        self._history: dict[int, tuple[int, list[corrections.CorrectionRecord]]] = {}

    async def observe(self, alerts: Collection[Alert], *, windows: bool) -> list[Observation]:
        """Return what the store has of the event of each alert; sums of windows only if `windows`. Raises StoreError.

        While the store is unreachable this raises StoreUnavailable, because counts then include spooled hits.
        """
        outages = self._outages()
        events = [*{alert.event for alert in alerts}, ALL_EVENTS]
        days = self._clock.calendar.starts("day", self._clock.at(), DAYS_CHECKED)
        # Generations come first, so that no change is considered before its effect on the counts is read.
        buckets = [Bucket("day", day, GENERATION) for day in days]
        buckets += [TOTAL, *(Bucket("day", day, dimension) for day in days for dimension in ("", CORRECTION))]
        found = dict(zip(buckets, await self._store.read(buckets, events), strict=True))
        generations = {day: found[Bucket("day", day, GENERATION)].get(ALL_EVENTS, 0) for day in days}
        await self._read_history(generations)
        sums = await self._sum_windows(alerts) if windows else {}
        observed = []
        for alert in alerts:
            counts = {
                day: sum(found[Bucket("day", day, dimension)].get(alert.event, 0) for dimension in ("", CORRECTION))
                for day in days
            }
            changes = [await self._change(alert, *entry) for entry in self._new_records(alert, generations)]
            total, window = found[TOTAL].get(alert.event, 0), sums.get(alert.id)
            observed.append(Observation(counts, total, generations, changes, window))
        if self._outages() != outages:
            raise StoreUnavailable("the store was unreachable during the check")
        return observed

    def _outages(self) -> int:
        """Return the number of outages so far. Raises StoreUnavailable during one."""
        status = self._store.status()
        if status.stale_seconds is not None:
            raise StoreUnavailable("the store is unreachable")
        return status.outages

    async def _read_history(self, generations: Mapping[int, int]) -> None:
        """Read the corrections of each day that was changed since they were last read."""
        changed = {day: generation for day, generation in generations.items() if generation}
        self._history = {day: self._history[day] for day in changed if day in self._history}
        for day, generation in changed.items():
            if self._history.get(day, (0, []))[0] < generation:
                self._history[day] = generation, await corrections.history(self._store, day)

    def _new_records(
        self, alert: Alert, generations: Mapping[int, int]
    ) -> Iterator[tuple[int, corrections.CorrectionRecord]]:
        """Yield the corrections that concern an alert and that it has not considered, with their day."""
        for day, (_, records) in sorted(self._history.items()):
            considered = alert.changes.get(day, 0)
            for record in records if day >= alert.since else ():
                is_new = considered < record.generation <= generations[day]
                concerns = record.event == alert.event or (record.action == "reset" and alert.when.count)
                if is_new and concerns and not alert.when.window:
                    yield day, record

    async def _change(self, alert: Alert, day: int, record: corrections.CorrectionRecord) -> Change:
        if record.action != "reset":
            values = [{"count": value.count, "total": value.total} for value in (record.before, record.after)]
            return Change(day, record.generation, *values)
        (before,) = await self._store.read([Bucket("day", day, f"{BEFORE_RESET}{record.at}")], [alert.event])
        return Change(day, record.generation, {"count": before.get(alert.event, 0)}, {"count": 0})

    async def _sum_windows(self, alerts: Collection[Alert]) -> dict[str, int]:
        """Return the sum of the window of each alert that has one, by the id of the alert.

        The last bucket is still running. `below` has one more before it, so that it never compares a shorter time.
        """
        groups = defaultdict[tuple[Step, int], list[Alert]](list)
        for alert in alerts:
            if alert.when.window:
                step, buckets = _WINDOWS[alert.when.window]
                groups[step, buckets + bool(alert.when.below)].append(alert)
        sums: dict[str, int] = {}
        for (step, buckets), group in groups.items():
            starts = self._clock.calendar.starts(step, self._clock.at(), buckets)
            events = list({alert.event for alert in group})
            found = await self._store.read([Bucket(step, start) for start in starts], events)
            sums |= {alert.id: sum(counts.get(alert.event, 0) for counts in found) for alert in group}
        return sums
