"""`tally check` and the nightly check: each kind of damage is found, and nothing in a store without damage."""

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from app import corrections
from app.check import check_copy, check_store, mark_import
from app.domain.buckets import Bucket
from app.domain.calendar import Calendar, Clock
from app.domain.counting import BucketWrite, DayChange
from app.settings import Settings
from app.stores.base import CounterStore, StoreLimits
from app.stores.memory import MemoryStore
from app.stores.sqlite import SqliteStore
from tests.stores.contract.support import commit_of, on_every_store
from tests.support.servers import SettableClock

CALENDAR = Calendar(Settings().timezone)
NOON = 1_795_435_200
NOW = NOON + 2 * 86_400 + 7200  # two days after the first hits
SETTINGS = Settings(hours_kept_days=30, minutes_kept_hours=100)


async def fill(store: CounterStore) -> None:
    """Count on three days, and do each kind of correction on the second one."""
    commits = [
        commit_of({"a": 5, "b": 3, "c": 2}, slot=CALENDAR.slot(NOON + minutes * 60))
        for minutes in range(0, 2 * 1440 + 120, 45)
    ]
    for offset, commit in enumerate(commits):
        await store.apply("hits", offset, offset + 1, commit)
    slot = CALENDAR.slot(NOON + 86_400)
    plans: list[Callable[[], object]] = [
        lambda: corrections.correct(store, slot, NOON + 86_400, "a", 1, 7, 100),
        lambda: corrections.delete(store, slot, NOON + 86_401, "b"),
        lambda: corrections.correct(store, slot, NOON + 86_402, "b", 9, 9, 100),
        lambda: corrections.reset(store, slot, NOON + 86_403),
    ]
    for offset, plan in enumerate(plans):
        change, _ = await plan()
        await store.apply_change("admin", offset, offset + 1, change)


@pytest.fixture(scope="module")
async def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file without damage, in which all counts are in the tables and none in the log."""
    file = tmp_path_factory.mktemp("check") / "tally.db"
    store = SqliteStore(file, StoreLimits(100))
    await store.open()
    await fill(store)
    await store.prune({}, CALENDAR.slot(NOW))
    await store.close()
    return file


DAY, HOUR, MINUTE = NOON - 43_200 + 86_400, NOON + 86_400, NOON + 2 * 86_400
DAMAGE = {
    "the sum of all events": (
        "UPDATE day SET count = count + 1 WHERE event = 0 AND start = {DAY}",
        "the sum of all events is",
    ),
    "a count of a day": ("UPDATE day SET count = count + 1 WHERE event = 1 AND start = {DAY}", "the day 2026-11-24"),
    "a count of an hour": (
        "UPDATE hour SET count = count - 1 WHERE event = 1 AND start = {HOUR}",
        "the hour 2026-11-24T12:00Z",
    ),
    "a count of a minute": ("UPDATE minute SET count = count + 1 WHERE event = 1 AND start = {MINUTE}", "a: the hour"),
    "a total": ("UPDATE total SET count = count - 1 WHERE event = 1", "a: the total is"),
    "a total and the sum of totals": ("UPDATE total SET count = count - 1 WHERE event IN (0, 1)", "a: the total is"),
    "a day that was counted twice": ("UPDATE day SET count = 2 * count WHERE start = {DAY}", "but its hours have"),
    "a missing day": ("DELETE FROM day WHERE start = {DAY}", "the day 2026-11-24 has 0, but its hours have"),
    "a missing hour": (
        "DELETE FROM hour WHERE start = {HOUR}",
        "the hour 2026-11-24T12:00Z has 0, but its minutes have",
    ),
    "a missing minute": ("DELETE FROM minute WHERE start = {MINUTE}", "but its minutes have"),
    "a missing event name": ("DELETE FROM event WHERE name = 'c'", "the totals: the sum of all events is"),
    "an impossible count": (
        "UPDATE total SET count = 9007199254740992 WHERE event = 1",
        "a: the totals has the impossible count",
    ),
    "a missing correction": ("DELETE FROM member WHERE name LIKE '%reset%'", "its log has 3 changes"),
    "a correction that is too large": (
        "UPDATE member SET count = count - 1000 WHERE crowd = (SELECT id FROM crowd WHERE of = 'offset')",
        "after its corrections",
    ),
    "a correction that cannot be read": (
        "UPDATE member SET name = '{{' WHERE name LIKE '%reset%'",
        "a correction cannot be read",
    ),
}


MUTANTS = {
    "the sum of all events": pytest.mark.fails_on_mutant(
        "sums are not checked", "app/check.py", "if sums[0] <= members <= sums[1]:", "if True:"
    ),
    "a missing hour": pytest.mark.fails_on_mutant(
        "hours are not checked", "app/check.py", "if event != ALL_EVENTS and count != added:", "if False:"
    ),
    "a total and the sum of totals": pytest.mark.fails_on_mutant(
        "totals are not checked",
        "app/check.py",
        "if totals.get(event, 0) < counted[event] +",
        "if 0 > counted[event] +",
    ),
    "a missing correction": pytest.mark.fails_on_mutant(
        "logs are not checked", "app/check.py", "if generation.get(ALL_EVENTS, 0) == len(logs[day]):", "if True:"
    ),
}


async def test_nothing_is_found_in_a_store_without_damage(healthy: Path) -> None:
    assert await check_copy(healthy, SETTINGS, NOW) == []


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=MUTANTS.get(kind, ())) for kind in DAMAGE])
async def test_each_kind_of_damage_is_found(kind: str, healthy: Path, tmp_path: Path) -> None:
    statement, expected = DAMAGE[kind]
    copy = tmp_path / "tally.db"
    shutil.copy(healthy, copy)
    with contextlib.closing(sqlite3.connect(copy)) as db:
        done = db.execute(statement.format(DAY=DAY, HOUR=HOUR, MINUTE=MINUTE))
        assert done.rowcount > 0
        db.commit()
    assert any(expected in difference for difference in await check_copy(copy, SETTINGS, NOW))


async def test_an_overwritten_page_is_found(healthy: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tally.db"
    shutil.copy(healthy, copy)
    with copy.open("r+b") as pages:
        pages.seek(4096 * 4)
        pages.write(b"x" * 4096)
    (first, *_) = await check_copy(copy, SETTINGS, NOW)
    assert first.startswith("the file is damaged: ")


@on_every_store()
async def test_nothing_is_found_on_any_store(store: CounterStore) -> None:
    await fill(store)
    assert await check_store(store, SETTINGS, NOW) == []


@on_every_store()
async def test_a_difference_is_found_on_every_store(store: CounterStore) -> None:
    await fill(store)
    slot = CALENDAR.slot(NOON + 86_400)
    for number, bucket in enumerate([Bucket("hour", slot.hour), Bucket("day", CALENDAR.slot(NOW).day)]):
        change = DayChange(slot, [BucketWrite("add", bucket, {"a": 1})])
        await store.apply_change(f"damage {number}", 0, 1, change)
    hour, parts, day, total = await check_store(store, SETTINGS, NOW)
    assert hour.startswith("a: the hour 2026-11-24T12:00Z has")
    assert parts.startswith("a: the day 2026-11-24 has")
    assert day.startswith("a: the day 2026-11-25 has")
    assert total.startswith("a: the total is")


@pytest.mark.fails_on_mutant("imports are forgotten", "app/check.py", "    if offset < until:\n", "    if False:\n")
async def test_after_an_import_only_later_days_are_compared(clock: SettableClock) -> None:
    store = MemoryStore(StoreLimits(100))
    await store.open()
    clock.shift = NOW - clock()
    await mark_import(store, Clock(CALENDAR, clock))
    slot = CALENDAR.slot(NOW)
    change = DayChange(slot, [BucketWrite("add", Bucket("day", slot.day), {"a": 1})])
    await store.apply_change("import", 0, 1, change)
    assert await check_store(store, SETTINGS, NOW) == []
    next_day = CALENDAR.slot(CALENDAR.next_day(NOW))
    await store.apply_change(
        "damage", 0, 1, DayChange(next_day, [BucketWrite("add", Bucket("day", next_day.day), {"a": 1})])
    )
    assert len(await check_store(store, SETTINGS, next_day.minute)) == 1


async def test_days_whose_hours_were_deleted_by_age_are_not_compared() -> None:
    store = MemoryStore(StoreLimits(100))
    await store.open()
    await fill(store)
    await store.prune({"minute": NOW - 86_400, "hour": NOW - 86_400, "day": 0}, CALENDAR.slot(NOW))
    assert await check_store(store, SETTINGS, NOW) == []  # although the settings keep more


class BusyStore(MemoryStore):
    """A store in which a hit is counted between any two reads."""

    hits = 0

    async def read(self, buckets, members=None):
        self.hits += 1
        await self.apply("busy", self.hits - 1, self.hits, commit_of({"a": 1, "d": 2}, slot=CALENDAR.slot(NOW)))
        return await super().read(buckets, members)


async def test_nothing_is_found_while_hits_are_counted() -> None:
    store = BusyStore(StoreLimits(100))
    await fill(store)
    assert await check_store(store, SETTINGS, NOW) == []
    assert store.hits > 100
