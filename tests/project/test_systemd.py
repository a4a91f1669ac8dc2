"""deploy/tally.service: systemd accepts each line, and the service has few rights."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import ROOT

UNIT = "deploy/tally.service"
EXPOSURE_MAX = 2.0  # from 0 to 10, as systemd rates it


def analyze(verb: str, *options: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze on the unit, with a Python that exists."""
    unit = directory / "tally.service"
    unit.write_text((ROOT / UNIT).read_text().replace("/opt/tally/.venv/bin/python", sys.executable))
    command = ["systemd-analyze", verb, *options, str(unit)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.fails_on_mutant("an unknown directive", UNIT, "ProtectHostname=", "ProtectHostName=")
@pytest.mark.fails_on_mutant("an invalid value", UNIT, "ProtectSystem=strict", "ProtectSystem=strictly")
def test_systemd_accepts_each_line_of_the_unit(tmp_path: Path) -> None:
    verified = analyze("verify", "--man=no", directory=tmp_path)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


@pytest.mark.fails_on_mutant("it runs as root", UNIT, "DynamicUser=yes\n", "")
@pytest.mark.fails_on_mutant("it has all capabilities", UNIT, "CapabilityBoundingSet=\n", "")
def test_the_service_has_few_rights(tmp_path: Path) -> None:
    threshold = f"--threshold={10 * EXPOSURE_MAX:.0f}"
    rated = analyze("security", "--offline=true", "--no-pager", threshold, directory=tmp_path)
    assert rated.returncode == 0, rated.stdout
