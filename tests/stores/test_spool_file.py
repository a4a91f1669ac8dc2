"""The spool on disk: its files, and the format of their lines."""

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from app.domain.calendar import Calendar
from app.domain.counting import HitGroup, IdempotencyKey, Visit
from app.stores.spool_file import Spool, SpooledCommit, SpoolFile, SpoolFull, decode, encode

NOON = Calendar(ZoneInfo("UTC")).slot(1_795_435_200)
OLD = Calendar(ZoneInfo("UTC")).slot(1_700_000_000)
GROUP = HitGroup(NOON, {"a": 2, "é": 1}, IdempotencyKey("k", "r", "c"), False, [Visit("a", 2, "u", None)])
PLAIN = HitGroup(NOON, {"a": 1}, limited=False, visits=[])
LINE = (
    '["node", 3, 4, [[["2026-11-23", 1795435200, 1795435200, 1795392000], {"a": 2, "\\u00e9": 1}, '
    '["k", "r", "c"], [["a", 2, "u", null]], false], '
    '[["2026-11-23", 1795435200, 1795435200, 1795392000], {"b": 1}, null, [], true]]]'
)


@pytest.fixture
def open_spool(tmp_path: Path) -> Iterator[Callable[..., Spool]]:
    spools: list[Spool] = []

    def open_one(identity: str = "redis", bytes_max: int = 1000) -> Spool:
        spools.append(Spool(tmp_path, identity, bytes_max))
        return spools[-1]

    yield open_one
    for spool in spools:
        close(spool.files)


def close(files: list[SpoolFile]) -> None:
    for file in files:
        file.close()


@pytest.mark.fails_on_mutant(
    "a group of single hits becomes atomic",
    "app/stores/spool_file.py",
    "group.visits, not group.atomic)",
    "group.visits, False)",
)
def test_a_line_has_the_format_of_all_versions() -> None:
    spooled = SpooledCommit("node", 3, 4, [GROUP, HitGroup(NOON, {"b": 1}, None, False, [], atomic=False)])
    assert encode(spooled) == LINE
    assert decode(LINE) == spooled


def test_a_spooled_group_has_no_limits() -> None:
    limited = SpooledCommit("node", 0, 1, [HitGroup(NOON, {"a": 1}, limited=True)])
    assert decode(encode(limited)).commit == [PLAIN]


@pytest.mark.fails_on_mutant(
    "lines of an older version are rejected", "app/stores/spool_file.py", "by_event: bool = False", "by_event: bool"
)
def test_a_line_of_an_older_version_has_atomic_groups() -> None:
    line = '["node", 0, 1, [[["2026-11-23", 1795435200, 1795435200, 1795392000], {"a": 1}, null, []]]]'
    assert decode(line) == SpooledCommit("node", 0, 1, [PLAIN])


def test_a_file_returns_its_lines_oldest_first(tmp_path: Path) -> None:
    file = SpoolFile(tmp_path / "file")
    for line in ("one", "two", "three"):
        file.append(line)
    assert (file.first(2), file.size) == (["one", "two"], 11)
    file.drop(["one", "two"])
    assert (list(file.lines()), file.size) == (["three"], 5)
    file.close()
    reopened = SpoolFile(tmp_path / "file")
    assert (list(reopened.lines()), reopened.size) == (["three"], 5)
    reopened.delete()
    assert not list(tmp_path.iterdir())


@pytest.mark.fails_on_mutant(
    "large lines are read together",
    "app/stores/spool_file.py",
    "                if bytes_max <= 0:\n",
    "                if False:\n",
)
def test_few_large_lines_are_read_at_once(tmp_path: Path) -> None:
    file = SpoolFile(tmp_path / "file")
    for line in ("x" * 100, "y" * 100, "z"):
        file.append(line)
    assert [len(file.first(10, size)) for size in (1, 100, 101, 1000)] == [1, 1, 2, 3]
    file.delete()


@pytest.mark.fails_on_mutant(
    "closed while a thread uses it",
    "app/stores/spool_file.py",
    "        with self._lock:\n            self._db.close()\n",
    "        self._db.close()\n",
)
def test_a_file_is_closed_after_the_thread_that_uses_it(tmp_path: Path) -> None:
    file = SpoolFile(tmp_path / "file")
    with ThreadPoolExecutor() as threads:
        with file._lock:  # as in a thread that is writing; SQLite crashes if the connection is closed meanwhile
            waiting = [threads.submit(file.append, "line"), threads.submit(file.first, 1), threads.submit(file.close)]
            assert not wait(waiting, timeout=0.1).done
        assert not wait(waiting).not_done
    reopened = SpoolFile(tmp_path / "file")
    reopened.delete()


def test_a_file_can_be_open_only_once(tmp_path: Path) -> None:
    file = SpoolFile(tmp_path / "file")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        SpoolFile(tmp_path / "file")
    file.delete()


async def test_a_spool_adds_up_what_waits(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    assert (spool.size, spool.ack, spool.files) == (0, "spooled", [])
    assert await spool.append("12345") == "spooled"
    assert await spool.append("678") == "spooled"
    assert (spool.size, len(spool.files)) == (8, 1)


async def test_a_spool_is_full_until_a_line_fits(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool(bytes_max=5)
    await spool.append("123")
    with pytest.raises(SpoolFull):
        spool.check_space(3)
    assert spool.is_full
    spool.check_space(2)
    assert not spool.is_full


async def test_a_spool_goes_on_in_memory_if_its_file_fails(
    open_spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, append = open_spool(), SpoolFile.append
    assert await spool.append("on disk") == "spooled"

    def fail_on_disk(self: SpoolFile, line: str) -> None:
        if self.ack == "spooled":
            raise sqlite3.OperationalError("disk I/O error")
        append(self, line)

    monkeypatch.setattr(SpoolFile, "append", fail_on_disk)
    assert [await spool.append(line) for line in ("one", "two")] == ["memory", "memory"]
    assert [list(file.lines()) for file in spool.files] == [["on disk"], ["one", "two"]]
    assert spool.ack == "memory"


async def test_orphans_are_the_files_of_dead_processes_with_the_same_store(open_spool: Callable[..., Spool]) -> None:
    dead, living, other = open_spool(), open_spool(), open_spool("another redis")
    for spool in (dead, living, other):
        await spool.append(LINE)
    close(dead.files + other.files)
    orphans = open_spool().find_orphans()
    assert [file.path for file in orphans] == [file.path for file in dead.files]
    close(orphans)


@pytest.mark.fails_on_mutant(
    "files of an earlier version are left",
    "app/stores/spool_file.py",
    "self._suffixes = {self.suffix, *old_suffixes}",
    "self._suffixes = {self.suffix}",
)
@pytest.mark.fails_on_mutant(
    "foreign files are not reported",
    "app/stores/spool_file.py",
    "if _suffix_of(path) not in self._suffixes:",
    "if False:",
)
async def test_files_of_other_stores_are_reported_and_those_of_earlier_versions_found(
    open_spool: Callable[..., Spool], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    earlier, other = open_spool("redis h:6379 "), open_spool("another redis")
    for spool in (earlier, other):
        await spool.append(LINE)
        close(spool.files)
    spool = Spool(tmp_path, "redis h:6379 /0", 1000, ["redis h:6379 "])
    orphans = spool.find_orphans()
    assert [file.path for file in orphans] == [file.path for file in earlier.files]
    spool.report_foreign_files()
    assert [str(path) in caplog.text for path in (other.files[0].path, earlier.files[0].path)] == [True, False]
    close(orphans)


@pytest.mark.fails_on_mutant(
    "an empty file is recovered", "app/stores/spool_file.py", "if not path.stat().st_size:", "if False:"
)
def test_a_file_that_is_being_created_is_no_orphan(tmp_path: Path, open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    path = tmp_path / f"new{spool.suffix}"
    path.touch()
    assert spool.find_orphans() == []
    assert path.exists()


@pytest.mark.fails_on_mutant(
    "a file without lines is recovered", "app/stores/spool_file.py", "        if not lines:\n", "        if False:\n"
)
def test_a_file_without_lines_is_removed(tmp_path: Path, open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    SpoolFile(tmp_path / f"replayed{spool.suffix}").close()
    assert spool.find_orphans() == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param(
            encode(SpooledCommit("node", 0, 1, [HitGroup(OLD, {"a": 1})])),
            "is older than 30 days",
            id="old",
            marks=pytest.mark.fails_on_mutant(
                "old files are recovered", "app/stores/spool_file.py", "< time.time() - SOURCE_TTL_SECONDS", "< 0"
            ),
        ),
        pytest.param("no JSON", "cannot be read", id="damaged"),
    ],
)
async def test_a_file_that_cannot_be_replayed_is_logged_and_not_touched(
    open_spool: Callable[..., Spool], caplog: pytest.LogCaptureFixture, line: str, message: str
) -> None:
    dead = open_spool()
    await dead.append(line)
    close(dead.files)
    (path,) = [Path(file.path) for file in dead.files]
    assert open_spool().find_orphans() == []
    assert f"{path} {message}" in caplog.text
    assert path.exists()
