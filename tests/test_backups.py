"""Local backups at intervals: when one is due, which are kept, and what a failure or a crash leaves."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.backups import Backups
from app.settings import Settings
from app.stores import create_store, sqlite_backup
from app.stores.sqlite_backup import find_damage
from tests.support.servers import SettableClock

HOUR = 3600


@pytest.fixture
async def backups(tmp_path: Path, clock: SettableClock) -> AsyncIterator[Backups]:
    clock.go_to("2026-03-27T12:00:00+00:00")
    settings = Settings(TALLY_STORE=f"sqlite:///{tmp_path}/tally.db", backup_every=6, backup_keep=3)
    store = create_store(settings)
    await store.open()
    yield Backups(store, clock, settings)
    await store.close()


def copies(tmp_path: Path) -> list[str]:
    return sorted(file.name for file in (tmp_path / "backups").iterdir())


def minutes(tmp_path: Path) -> list[str]:
    """Return when the copies were made, without the seconds, which depend on the machine."""
    return [name.removeprefix("tally-")[:13] for name in copies(tmp_path)]


@pytest.mark.fails_on_mutant("none is kept", "app/backups.py", "[self._keep - 1 :]", "[self._keep :]")
async def test_a_backup_is_made_when_due_and_the_newest_are_kept(
    backups: Backups, tmp_path: Path, clock: SettableClock
) -> None:
    for _ in range(9):
        await backups.back_up_if_due()
        clock.shift += 3 * HOUR + 1
    assert copies(tmp_path) == ["tally-20260328T000004Z.db", "tally-20260328T060006Z.db", "tally-20260328T120008Z.db"]
    assert [find_damage(file) for file in (tmp_path / "backups").iterdir()] == [[], [], []]


@pytest.mark.fails_on_mutant(
    "a copy of the future stops backups", "app/backups.py", "0 <= now - made < self", "now - made < self"
)
async def test_a_backup_is_made_although_one_has_a_time_in_the_future(
    backups: Backups, tmp_path: Path, clock: SettableClock
) -> None:
    clock.shift += 500 * 24 * HOUR
    await backups.back_up_if_due()
    clock.shift -= 500 * 24 * HOUR
    for _ in range(4):
        await backups.back_up_if_due()
        clock.shift += 7 * HOUR
    assert len(copies(tmp_path)) == 3
    assert "20260328T0900" in minutes(tmp_path)


async def test_a_failed_backup_is_a_reason_until_one_succeeds(
    backups: Backups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr(sqlite_backup, "FREE_BYTES_MIN", 10**18)
        await backups.back_up_if_due()
    (reason,) = backups.reasons()
    assert "the last local backup failed: a backup needs" in reason
    assert copies(tmp_path) == []
    await backups.back_up_if_due()
    assert backups.reasons() == []
    assert len(copies(tmp_path)) == 1


async def test_what_a_crash_leaves_is_removed_at_the_next_start_and_other_files_are_not(
    backups: Backups, tmp_path: Path
) -> None:
    await backups.back_up_if_due()
    (complete,) = copies(tmp_path)
    for name in ("tally-20260327T000000Z.db.part", "tally-download", "tally-download.part", "other-download.part"):
        (tmp_path / "backups" / name).touch()
    await asyncio.to_thread(backups.remove_incomplete)
    assert copies(tmp_path) == sorted(["other-download.part", complete])
