"""Alerts on three nodes, while nodes, Redis and the receiver are killed."""

from pathlib import Path

import pytest

from tests.support.scenarios.alerts import crossings


@pytest.mark.fails_on_mutant(
    "deliveries are forgotten after a failure",
    "app/scheduler.py",
    "add(self._alerts.check_alerts, ",
    "add(self.publish_status, ",
)
@pytest.mark.timeout(400)
async def test_no_crossing_is_missed_and_each_has_one_id(tmp_path: Path) -> None:
    figures = await crossings(tmp_path, 45, 1)
    assert figures.violations == []
    assert figures.details["crossings"] >= 45
