"""The last known counts: what is merged, what waits, and what is dropped."""

import pytest

from app.domain.buckets import ALL_EVENTS, CORRECTION, GENERATION, TOTAL, Bucket
from app.domain.calendar import TimeSlot
from app.domain.counting import BucketWrite, DayChange, HitGroup, IdempotencyKey, Visit
from app.stores import last_known as last_known_counts
from app.stores.base import StoreLimits
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
    last_known = LastKnownCounts(StoreLimits(names=1000))
    last_known.merge_reads(read({"a": 5, "b": 1}), commit_in_flight=False)
    last_known.merge_reads(read({"a": 4, "b": 2}), commit_in_flight=False)
    assert await known(last_known) == {"a": 5, "b": 2}


async def test_the_latest_count_of_a_correction_replaces_the_earlier_one() -> None:
    last_known, correction = LastKnownCounts(StoreLimits(names=1000)), Bucket("day", DAY, CORRECTION)
    for count in (5, -3):
        last_known.merge_reads(read({"a": count}, correction), commit_in_flight=False)
    assert await known(last_known, correction) == {"a": -3}


async def test_a_result_has_the_day_with_its_correction_and_the_total() -> None:
    last_known = LastKnownCounts(StoreLimits(names=1000))
    last_known.merge_reads(read({"a": -10}, Bucket("day", DAY, CORRECTION)), commit_in_flight=False)
    commit = [HitGroup(SLOT, {"a": 1}), HitGroup(SLOT, {"b": 1}), HitGroup(SLOT, {"c": 1})]
    replayed = GroupResult({"c": Value(9, 9)}, {}, "2026-11-22")
    last_known.merge_result(commit, result(GroupResult({"a": Value(2, 40)}), reject("full"), replayed))
    assert await known(last_known) == {"a": 12}
    assert await known(last_known, TOTAL) == {"a": 40}


async def test_spooled_commits_count_on_top_within_the_limits() -> None:
    last_known = LastKnownCounts(StoreLimits(names=2))
    last_known.merge_result([HitGroup(SLOT, {"a": 1})], result(GroupResult({"a": Value(5, 50)})))
    assert last_known.count([HitGroup(SLOT, {"a": 2, "b": 1})]) == [GroupResult({"a": Value(7, 52), "b": Value(1, 1)})]
    assert last_known.count([HitGroup(SLOT, {"a": 2, "c": 1})]) == [reject("full")]
    # Commits of a dead process were accepted before.
    assert last_known.count([HitGroup(SLOT, {"c": 1}, limited=False)]) == [GroupResult({"c": Value(1, 1)})]
    assert await known(last_known) == {"a": 7, "b": 1, "c": 1}


@pytest.mark.fails_on_mutant(
    "whole reads are never merged",
    "app/stores/last_known.py",
    "for bucket, counts in self._whole_reads.items():",
    "for bucket, counts in ():",
)
async def test_whole_reads_of_events_are_merged_when_an_outage_starts() -> None:
    last_known = LastKnownCounts(StoreLimits(names=1000))
    last_known.merge_reads(read({"a": 1}, whole=True) + read({"u": 1}, USERS, whole=True), commit_in_flight=False)
    last_known.merge_reads(read({"a": 2}, whole=True), commit_in_flight=False)
    assert (await known(last_known), await known(last_known, USERS)) == ({}, {"u": 1})
    last_known.start_outage()
    assert await known(last_known) == {"a": 2}


@pytest.mark.fails_on_mutant(
    "reads are not deferred",
    "app/stores/last_known.py",
    "        if commit_in_flight:\n            # Whole",
    "        if False:\n            # Whole",
)
async def test_a_read_during_a_commit_that_is_spooled_is_dropped() -> None:
    last_known = LastKnownCounts(StoreLimits(names=1000))
    last_known.merge_reads(read({"a": 1}), commit_in_flight=False)
    # The store has applied the commit when it is read, but its response is lost.
    last_known.merge_reads(read({"a": 2}), commit_in_flight=True)
    last_known.start_outage()
    last_known.merge_deferred()
    last_known.count([HitGroup(SLOT, {"a": 1})])
    assert await known(last_known) == {"a": 2}


@pytest.mark.fails_on_mutant(
    "deferred reads are never merged",
    "app/stores/last_known.py",
    "        self.merge_reads(reads, commit_in_flight=False)\n",
    "",
)
async def test_a_read_during_a_commit_that_succeeds_is_merged() -> None:
    last_known = LastKnownCounts(StoreLimits(names=1000))
    last_known.merge_reads(read({"a": 2}), commit_in_flight=True)
    assert await known(last_known) == {}
    last_known.merge_deferred()
    assert await known(last_known) == {"a": 2}


@pytest.mark.fails_on_mutant(
    "deferred reads have no bound",
    "app/stores/last_known.py",
    "deque([*waiting, *kept], DEFERRED_READS_MAX)",
    "deque([*waiting, *kept])",
)
async def test_only_the_latest_hundred_reads_are_deferred() -> None:
    last_known = LastKnownCounts(StoreLimits(names=1000))
    for n in range(101):
        last_known.merge_reads(read({f"event {n}": 1}), commit_in_flight=True)
    last_known.merge_deferred()
    assert set(await known(last_known)) == {f"event {n}" for n in range(1, 101)}


@pytest.mark.fails_on_mutant(
    "large reads pile up", "app/stores/last_known.py", "if not (r.whole and r.bucket in replaced)", ""
)
async def test_only_the_last_whole_read_of_a_bucket_is_deferred() -> None:
    last_known = LastKnownCounts(StoreLimits(names=1000))
    for n in range(5):
        last_known.merge_reads(read({"a": n}, whole=True), commit_in_flight=True)
        last_known.merge_reads(read({"a": n}), commit_in_flight=True)
    assert [kept.counts for kept in last_known._deferred_reads if kept.whole] == [{"a": 4}]
    last_known.merge_deferred()
    last_known.start_outage()
    assert await known(last_known) == {"a": 4}


@pytest.mark.fails_on_mutant(
    "whole reads outlive their generation",
    "app/stores/last_known.py",
    "            self._whole_reads.clear()\n            self._drop_deferred()\n            self.store",
    "            self.counts",
)
async def test_a_new_generation_drops_reads_that_are_not_merged() -> None:
    last_known = LastKnownCounts(StoreLimits(names=1000))
    last_known.merge_reads(read({"a": 5}, whole=True), commit_in_flight=False)
    last_known.merge_reads(read({"b": 5}), commit_in_flight=True)
    last_known.drop_stale_generations({DAY: 1})
    last_known.merge_deferred()
    last_known.start_outage()
    assert await known(last_known) == {}
    assert last_known.generations == {DAY: 1}
    assert await last_known.store.read([Bucket("day", DAY, GENERATION)]) == [{ALL_EVENTS: 1}]


async def test_the_known_generation_drops_nothing() -> None:
    last_known = LastKnownCounts(StoreLimits(names=1000))
    last_known.drop_stale_generations({DAY: 1})
    last_known.merge_reads(read({"a": 5}, whole=True), commit_in_flight=False)
    last_known.drop_stale_generations({DAY: 1})
    last_known.start_outage()
    assert await known(last_known) == {"a": 5}


async def test_a_change_is_merged_if_it_begins_a_generation() -> None:
    last_known, correction = LastKnownCounts(StoreLimits(names=1000)), Bucket("day", DAY, CORRECTION)
    change = DayChange(SLOT, [BucketWrite("add", correction, {"a": -5})])
    last_known.merge_change(change, result(generation=1))
    # An import writes into the generation that is known already.
    last_known.merge_change(change, result(generation=1))
    assert await known(last_known, correction) == {"a": -5}


async def test_a_refill_starts_again_with_the_counts_of_the_store() -> None:
    last_known = LastKnownCounts(StoreLimits(names=1000))
    last_known.merge_reads(read({"a": 5, "b": 1}), commit_in_flight=False)
    last_known.merge_reads(read({"a": 5, "b": 1}, whole=True), commit_in_flight=False)
    assert not last_known.is_outdated
    last_known.drop_stale_generations({DAY: 1})
    assert last_known.is_outdated
    days = [Bucket("day", DAY, dimension) for dimension in ("", CORRECTION, GENERATION)]
    assert last_known.begin_refill() == [TOTAL, *days]
    last_known.refill({TOTAL: {"b": 1}, TODAY: {"b": 1}}, {DAY: 1})
    last_known.start_outage()
    assert not last_known.is_outdated
    assert (await known(last_known), await known(last_known, TOTAL)) == ({"b": 1}, {"b": 1})


@pytest.mark.fails_on_mutant(
    "a change during the refill is missed",
    "app/stores/last_known.py",
    "_BoundedStore(self._limits), dict(generations)",
    "_BoundedStore(self._limits), dict(self.generations)",
)
async def test_counts_stay_outdated_if_a_day_is_changed_during_the_refill() -> None:
    last_known = LastKnownCounts(StoreLimits(names=1000))
    last_known.drop_stale_generations({DAY: 1})
    before = dict(last_known.generations)
    last_known.drop_stale_generations({DAY: 2})
    last_known.refill({TODAY: {"a": 1}}, before)
    assert last_known.is_outdated


async def test_pruning_deletes_old_buckets_that_are_merged_or_not() -> None:
    last_known, yesterday = LastKnownCounts(StoreLimits(names=1000)), Bucket("day", DAY - 86_400)
    for bucket in (yesterday, TODAY):
        last_known.merge_reads(read({"a": 1}, bucket), commit_in_flight=False)
        last_known.merge_reads(read({"b": 1}, bucket, whole=True), commit_in_flight=False)
    await last_known.prune({"day": DAY}, SLOT)
    last_known.start_outage()
    assert await last_known.store.list_buckets() == [TODAY]
    assert await known(last_known) == {"a": 1, "b": 1}


def entries(last_known: LastKnownCounts) -> int:
    """Return how many counts and keys are kept, besides the totals and those of the current day."""
    store = last_known.store
    counts = sum(len(counts) for bucket, counts in store._buckets.items() if bucket not in {TOTAL, TODAY})
    return counts + sum(len(record.result.values) for record in store._keys.values())


@pytest.mark.fails_on_mutant(
    "memory grows with the spool",
    "app/stores/last_known.py",
    "        if self._added < ENTRIES_MAX // 10:\n",
    "        if True:\n",
)
def test_spooled_commits_need_limited_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_known_counts, "ENTRIES_MAX", 1000)
    last_known, names = LastKnownCounts(StoreLimits(names=100)), [f"name {i}" for i in range(100)]
    for minute in range(60):
        slot = SLOT._replace(minute=DAY + minute * 60)
        visits = [Visit(name, 1, f"user {minute} {name}", None) for name in names]
        key = IdempotencyKey(f"key {minute}", "request", "client")
        (counted,) = last_known.count([HitGroup(slot, dict.fromkeys(names, 1), key, visits=visits)])
        assert counted.values["name 99"] == Value(minute + 1, minute + 1)
    assert 500 < entries(last_known) < 2 * 1000 + 2 * 100


@pytest.mark.fails_on_mutant(
    "an export is kept", "app/stores/last_known.py", "if not read.whole or self._is_recent(read.bucket)]", "]"
)
@pytest.mark.fails_on_mutant(
    "minutes are never dropped", "app/stores/last_known.py", "if not self._is_recent(bucket) or (", "if False or ("
)
async def test_only_recent_buckets_are_kept_after_a_read_of_all_members() -> None:
    last_known, yesterday = LastKnownCounts(StoreLimits(names=1000)), DAY - 86_400
    last_known.merge_reads(read({"a": 1}, Bucket("day", DAY)), commit_in_flight=False)
    sketch = Bucket("day", DAY, "sketch:user:a")
    for step, seconds in (("minute", 60), ("hour", 3600), ("day", 86_400)):
        for start in range(yesterday, DAY + 1, seconds):
            for bucket in (Bucket(step, start), Bucket(step, start, "user:a"), sketch):
                last_known.merge_reads(read({"a": 1}, bucket, whole=True), commit_in_flight=False)
    assert len(last_known._whole_reads) == 60 + 1 + 1
    last_known.start_outage()
    kept = await last_known.store.list_buckets()
    assert Bucket("minute", DAY - 3540) in kept
    assert not [bucket for bucket in kept if bucket.step == "day" and bucket.start < DAY]
    assert sketch not in kept


@pytest.mark.fails_on_mutant(
    "whole reads have no bound", "app/stores/last_known.py", '(bucket.step == "minute" and size > ENTRIES_MAX)', "False"
)
def test_the_oldest_minutes_are_dropped_if_they_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_known_counts, "ENTRIES_MAX", 1000)
    last_known = LastKnownCounts(StoreLimits(names=1000))
    for bucket in (TOTAL, TODAY, *(Bucket("minute", DAY + minute * 60) for minute in range(10))):
        last_known.merge_reads(read(dict.fromkeys(map(str, range(200)), 1), bucket, whole=True), commit_in_flight=False)
    newest = [Bucket("minute", DAY + minute * 60) for minute in (7, 8, 9)]
    assert set(last_known._whole_reads) == {TOTAL, TODAY, *newest}


@pytest.mark.fails_on_mutant(
    "counts of another generation are merged",
    "app/stores/last_known.py",
    "if self.generations.get(day, 0) != generation:",
    "if False:",
)
async def test_counts_of_other_nodes_are_known() -> None:
    last_known = LastKnownCounts(StoreLimits(names=1000))
    last_known.merge_reads(read({"a": 5}), commit_in_flight=False)
    last_known.merge_counts_of_day(DAY, {"a": 7, "b": 2}, 0, commit_in_flight=False)
    last_known.merge_counts_of_day(DAY, {"a": 9}, 1, commit_in_flight=False)
    assert await known(last_known) == {"a": 7, "b": 2}
    assert last_known.count([HitGroup(SLOT, {"b": 1})]) == [GroupResult({"b": Value(3, 3)})]


@pytest.mark.parametrize(
    "is_spooled",
    [
        pytest.param(
            True,
            marks=pytest.mark.fails_on_mutant(
                "counts that may include the commit are merged",
                "app/stores/last_known.py",
                "        if commit_in_flight:\n            self._deferred_counts",
                "        if False:\n            self._deferred_counts",
            ),
        ),
        False,
    ],
)
async def test_counts_of_other_nodes_wait_for_the_commit_in_flight(is_spooled: bool) -> None:
    last_known = LastKnownCounts(StoreLimits(names=1000))
    last_known.merge_counts_of_day(DAY, {"a": 5}, 0, commit_in_flight=False)
    # The store has applied the commit, and its response may get lost.
    last_known.merge_counts_of_day(DAY, {"a": 6}, 0, commit_in_flight=True)
    if is_spooled:
        last_known.start_outage()
    last_known.merge_deferred()
    assert await known(last_known) == {"a": 5 if is_spooled else 6}
