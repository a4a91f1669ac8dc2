"""A copy of a SQLite file that is made between any two statements has every acknowledged commit once."""

import shutil
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test

from app.domain.calendar import TimeSlot
from app.domain.counting import Commit, DayChange
from app.stores import rules
from app.stores.base import CounterStore, StoreLimits
from app.stores.sqlite import SqliteStore
from tests.fuzz import TEST_SECONDS, repeatable, seeds
from tests.stores.test_state_machine import LIMITS, NAMES_MAX, RANKED_MAX, StoreMachine

pytestmark = pytest.mark.timeout(TEST_SECONDS)

Work = Callable[[CounterStore], Awaitable[object]]


class CrashMachine(StoreMachine):
    """A store whose files are copied while it works, as `kill -9` would leave them.

    A process that opens the copy retries the call that was running, and makes the later ones. Then it equals the model.
    """

    def make(self) -> CounterStore:
        if not hasattr(self, "directory"):
            self.directory = Path(tempfile.mkdtemp())
            self.statements_left = -1  # until a copy is made; a negative number makes none
            self.copy: Path | None = None
            self.work: list[Work] = []  # the calls that had not returned when the copy was made
        return SqliteStore(self.directory / "tally.db", StoreLimits(NAMES_MAX))

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.directory)

    @rule(statements=st.integers(1, 12))
    def crash_after(self, statements: int) -> None:
        self.statements_left = statements
        self.store._db.set_trace_callback(self.on_statement)

    def on_statement(self, sql: str) -> None:
        """Make the copy. SQLite calls this before each statement, on its thread. Statements that read do not count."""
        self.statements_left -= not sql.startswith(("SELECT", "WITH"))
        if self.statements_left == 0:
            copy = self.directory / uuid.uuid4().hex
            for end in ("", "-wal"):
                shutil.copy(f"{self.directory}/tally.db{end}", f"{copy}{end}")
            self.copy, self.work, self.statements_left = copy, [], -1

    def apply(self, commit: Commit, retries: int) -> None:
        super().apply(commit, retries)
        source, offset = self.source, self.offset
        self.work.append(lambda store: store.apply(source, offset - 1, offset, commit))

    def apply_change(self, change: DayChange) -> None:
        super().apply_change(change)
        source, offset = self.source, self.offset
        self.work.append(lambda store: store.apply_change(source, offset - 1, offset, change))

    def prune_store(self, cutoffs: Mapping[str, int], slot: TimeSlot) -> None:
        super().prune_store(cutoffs, slot)
        self.work.append(lambda store: store.prune(cutoffs, slot))

    @invariant()
    def a_copy_equals_the_model(self) -> None:
        if not self.copy:
            return
        original, self.store = self.store, SqliteStore(self.copy, StoreLimits(NAMES_MAX))
        self.run(self.store.open())
        for work in self.work:
            self.run(work(self.store))
        self.the_store_has_the_counts_of_the_model()
        self.the_store_has_the_visitors_and_corrections_of_the_model()
        self.run(self.store.close())
        self.copy, self.store = None, original


@pytest.mark.fails_on_mutant(
    "counts and offset in two transactions",
    "app/stores/sqlite_writer.py",
    "            results, counted = write()\n",
    "            results, counted = write()\n            self._db.executescript('COMMIT; BEGIN')\n",
)
@pytest.mark.fails_on_mutant(
    "the redo log is not replayed", "app/stores/sqlite_tables.py", "        self._replay_log()\n", ""
)
def test_sqlite_with_crash_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "RANKED_VISITORS_MAX", RANKED_MAX)
    limits = settings(LIMITS, max_examples=15, phases=[Phase.generate], database=None, print_blob=False)
    for number in seeds(1):
        with repeatable(number):
            run_state_machine_as_test(seed(number)(CrashMachine), settings=limits)
