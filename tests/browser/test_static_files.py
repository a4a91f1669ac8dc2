"""The static files stay small: in lines of code, and compressed."""

import gzip

from tests.support.servers import ROOT

STATIC = ROOT / "static"


def test_static_files_have_at_most_2500_lines() -> None:
    files = [path for path in STATIC.rglob("*") if path.suffix in {".js", ".css", ".html"}]
    lines = [line for path in files if "vendor" not in path.parts for line in path.read_text().splitlines()]
    assert sum(bool(line.strip()) for line in lines) <= 2500


def test_static_files_are_small_when_compressed() -> None:
    files = sorted(path for path in STATIC.rglob("*") if path.is_file())
    assert len(gzip.compress(b"".join(path.read_bytes() for path in files))) < 70_000
