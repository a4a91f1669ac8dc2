"""The last known counts: what is merged, what waits, and what is dropped."""

import pytest

from app.domain.buckets import ALL_EVENTS, CORRECTION, GENERATION, TOTAL, Bucket
from app.domain.calendar import TimeSlot
from app.domain.counting import BucketWrite, DayChange, HitGroup
from app.stores.last_known import CachedRead, LastKnownCounts
from app.stores.results import ApplyResult, GroupResult, Value, reject

DAY = 1_795_392_000
SLOT = TimeSlot("2026-11-23", DAY + 60, DAY, DAY)
TODAY = Bucket("day", DAY)
USERS = Bucket("day", DAY, "user:a")


async def known(last_known: LastKnownCounts, bucket: Bucket = TODAY) -> dict[str, int]:
    """Return the events' counts of a bucket."""
    (counts,) = await last_known.store.read([bucket])
    counts.pop(ALL_EVENTS, None)
    return counts


def read(counts: dict[str, int], bucket: Bucket = TODAY, whole: bool = False) -> list[CachedRead]:
    return [CachedRead(bucket, counts, whole)]


def result(*groups: GroupResult, generation: int = 0) -> ApplyResult:
    return ApplyResult(groups, "redis", {DAY: generation} if generation else {})


async def test_the_larger_count_of_an_event_is_the_newer_one() -> None:
    last_known = LastKnownCounts()
    last_known.merge_reads(read({"a": 5, "b": 1}), commit_in_flight=False)
    last_known.merge_reads(read({"a": 4, "b": 2}), commit_in_flight=False)
    assert await known(last_known) == {"a": 5, "b": 2}


async def test_the_latest_count_of_a_correction_replaces_the_earlier_one() -> None:
    last_known, correction = LastKnownCounts(), Bucket("day", DAY, CORRECTION)
    for count in (5, -3):
        last_known.merge_reads(read({"a": count}, correction), commit_in_flight=False)
    assert await known(last_known, correction) == {"a": -3}


async def test_a_result_has_the_day_with_its_correction_and_the_total() -> None:
    last_known = LastKnownCounts()
    last_known.merge_reads(read({"a": -10}, Bucket("day", DAY, CORRECTION)), commit_in_flight=False)
    commit = [HitGroup(SLOT, {"a": 1}), HitGroup(SLOT, {"b": 1}), HitGroup(SLOT, {"c": 1})]
    replayed = GroupResult({"c": Value(9, 9)}, {}, "2026-11-22")
    last_known.merge_result(commit, result(GroupResult({"a": Value(2, 40)}), reject("full"), replayed))
    assert await known(last_known) == {"a": 12}
    assert await known(last_known, TOTAL) == {"a": 40}


async def test_spooled_commits_count_on_top_without_limits() -> None:
    last_known = LastKnownCounts()
    last_known.merge_result([HitGroup(SLOT, {"a": 1})], result(GroupResult({"a": Value(5, 50)})))
    assert last_known.count([HitGroup(SLOT, {"a": 2, "b": 1})]) == [GroupResult({"a": Value(7, 52), "b": Value(1, 1)})]
    assert await known(last_known) == {"a": 7, "b": 1}


@pytest.mark.fails_on_mutant(
    "whole reads are never merged",
    "app/stores/last_known.py",
    "for bucket, counts in self._whole_reads.items():",
    "for bucket, counts in ():",
)
async def test_whole_reads_of_events_are_merged_when_an_outage_starts() -> None:
    last_known = LastKnownCounts()
    last_known.merge_reads(read({"a": 1}, whole=True) + read({"u": 1}, USERS, whole=True), commit_in_flight=False)
    last_known.merge_reads(read({"a": 2}, whole=True), commit_in_flight=False)
    assert (await known(last_known), await known(last_known, USERS)) == ({}, {"u": 1})
    last_known.start_outage()
    assert await known(last_known) == {"a": 2}


@pytest.mark.fails_on_mutant(
    "reads are not deferred", "app/stores/last_known.py", "        if commit_in_flight:\n", "        if False:\n"
)
async def test_a_read_during_a_commit_that_is_spooled_is_dropped() -> None:
    last_known = LastKnownCounts()
    last_known.merge_reads(read({"a": 1}), commit_in_flight=False)
    # The store has applied the commit when it is read, but its response is lost.
    last_known.merge_reads(read({"a": 2}), commit_in_flight=True)
    last_known.start_outage()
    last_known.merge_deferred_reads()
    last_known.count([HitGroup(SLOT, {"a": 1})])
    assert await known(last_known) == {"a": 2}


@pytest.mark.fails_on_mutant(
    "deferred reads are never merged",
    "app/stores/last_known.py",
    "        self.merge_reads(reads, commit_in_flight=False)\n",
    "",
)
async def test_a_read_during_a_commit_that_succeeds_is_merged() -> None:
    last_known = LastKnownCounts()
    last_known.merge_reads(read({"a": 2}), commit_in_flight=True)
    assert await known(last_known) == {}
    last_known.merge_deferred_reads()
    assert await known(last_known) == {"a": 2}


@pytest.mark.fails_on_mutant(
    "deferred reads have no bound", "app/stores/last_known.py", "deque(maxlen=DEFERRED_READS_MAX)", "deque()"
)
async def test_only_the_latest_hundred_reads_are_deferred() -> None:
    last_known = LastKnownCounts()
    for n in range(101):
        last_known.merge_reads(read({f"event {n}": 1}), commit_in_flight=True)
    last_known.merge_deferred_reads()
    assert set(await known(last_known)) == {f"event {n}" for n in range(1, 101)}


@pytest.mark.fails_on_mutant(
    "whole reads outlive their generation",
    "app/stores/last_known.py",
    "            self._whole_reads.clear()\n            self._deferred_reads.clear()\n            self.store",
    "            self.counts",
)
async def test_a_new_generation_drops_reads_that_are_not_merged() -> None:
    last_known = LastKnownCounts()
    last_known.merge_reads(read({"a": 5}, whole=True), commit_in_flight=False)
    last_known.merge_reads(read({"b": 5}), commit_in_flight=True)
    last_known.drop_stale_generations({DAY: 1})
    last_known.merge_deferred_reads()
    last_known.start_outage()
    assert await known(last_known) == {}
    assert last_known.generations == {DAY: 1}
    assert await last_known.store.read([Bucket("day", DAY, GENERATION)]) == [{ALL_EVENTS: 1}]


async def test_the_known_generation_drops_nothing() -> None:
    last_known = LastKnownCounts()
    last_known.drop_stale_generations({DAY: 1})
    last_known.merge_reads(read({"a": 5}, whole=True), commit_in_flight=False)
    last_known.drop_stale_generations({DAY: 1})
    last_known.start_outage()
    assert await known(last_known) == {"a": 5}


async def test_a_change_is_merged_if_it_begins_a_generation() -> None:
    last_known, correction = LastKnownCounts(), Bucket("day", DAY, CORRECTION)
    change = DayChange(SLOT, [BucketWrite("add", correction, {"a": -5})])
    last_known.merge_change(change, result(generation=1))
    # An import writes into the generation that is known already.
    last_known.merge_change(change, result(generation=1))
    assert await known(last_known, correction) == {"a": -5}


async def test_a_refill_starts_again_with_the_counts_of_the_store() -> None:
    last_known = LastKnownCounts()
    last_known.merge_reads(read({"a": 5, "b": 1}), commit_in_flight=False)
    last_known.merge_reads(read({"a": 5, "b": 1}, whole=True), commit_in_flight=False)
    assert not last_known.is_outdated
    last_known.drop_stale_generations({DAY: 1})
    assert last_known.is_outdated
    days = [Bucket("day", DAY, dimension) for dimension in ("", CORRECTION, GENERATION)]
    assert last_known.buckets_to_refill() == [TOTAL, *days]
    last_known.refill({TOTAL: {"b": 1}, TODAY: {"b": 1}}, {DAY: 1})
    last_known.start_outage()
    assert not last_known.is_outdated
    assert (await known(last_known), await known(last_known, TOTAL)) == ({"b": 1}, {"b": 1})


@pytest.mark.fails_on_mutant(
    "a change during the refill is missed",
    "app/stores/last_known.py",
    "_empty_store(), dict(generations)",
    "_empty_store(), dict(self.generations)",
)
async def test_counts_stay_outdated_if_a_day_is_changed_during_the_refill() -> None:
    last_known = LastKnownCounts()
    last_known.drop_stale_generations({DAY: 1})
    before = dict(last_known.generations)
    last_known.drop_stale_generations({DAY: 2})
    last_known.refill({TODAY: {"a": 1}}, before)
    assert last_known.is_outdated


async def test_pruning_deletes_old_buckets_that_are_merged_or_not() -> None:
    last_known, yesterday = LastKnownCounts(), Bucket("day", DAY - 86_400)
    for bucket in (yesterday, TODAY):
        last_known.merge_reads(read({"a": 1}, bucket), commit_in_flight=False)
        last_known.merge_reads(read({"b": 1}, bucket, whole=True), commit_in_flight=False)
    await last_known.prune({"day": DAY}, SLOT)
    last_known.start_outage()
    assert await last_known.store.list_buckets() == [TODAY]
    assert await known(last_known) == {"a": 1, "b": 1}
