"""The tool behind `make soak-service`, in a run of some seconds with one kill."""

from pathlib import Path

import pytest

from tests.support import soak as tool
from tests.support.soak import plot, soak, write_csv


@pytest.mark.fails_on_mutant(
    "a kill loses the counts of the last minute",
    "app/stores/sqlite_tables.py",
    "                self._load(Bucket(step, start)).update(counts)\n",
    "                self._load(Bucket(step, start))\n",
)
async def test_a_short_soak_keeps_all_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Some seconds after its start, a process still grows.
    limits = {"SAMPLE_SECONDS": 0.5, "KILL_SECONDS": 4.0, "WAIT_MAX_SECONDS": 60.0, "GROWTH_MAX": 1.0}
    for name, value in limits.items():
        monkeypatch.setattr(tool, name, value)
    running, figures = await soak(tmp_path, "sqlite", minutes=9 / 60)
    assert figures.violations == []
    assert figures.acknowledged > 100
    assert any(sample.killed for sample in running.samples)
    write_csv(running.samples, tmp_path / "soak.csv")
    assert "node 0 MB" in (tmp_path / "soak.csv").read_text()
    assert plot(running.samples, "a title").startswith("<svg")
