"""The static files stay small, and their modules import one way."""

import gzip
import re
from pathlib import Path

import pytest

from tests.support.servers import ROOT

STATIC = ROOT / "static"
# A module imports from its own directory and from the ones before it.
SCRIPTS = ["theme.js", "first-count.js", "main.js"]  # of index.html
LAYERS = ["vendor", "lib", "data", "components", "pages", "js"]


def test_static_files_have_at_most_5000_lines() -> None:
    files = [path for path in STATIC.rglob("*") if path.suffix in {".js", ".css", ".html"}]
    lines = [line for path in files if "vendor" not in path.parts for line in path.read_text().splitlines()]
    assert sum(bool(line.strip()) for line in lines) <= 5000


def loaded(*modules: Path) -> set[Path]:
    """Return these modules, and all that are loaded with them."""
    found, new = set[Path](), set(modules)
    while new:
        found |= new
        imports = {
            (m, path) for m in new for path in re.findall(r'^import [^"]*"([^"]+)"', m.read_text(), re.MULTILINE)
        }
        new = {(module.parent / path).resolve() for module, path in imports} - found
    return found


def test_opening_the_dashboard_transfers_less_than_100_kb() -> None:
    files = {STATIC / "index.html", STATIC / "app.css", *loaded(*(STATIC / "js" / name for name in SCRIPTS))}
    assert len(files) > 40
    assert sum(len(gzip.compress(path.read_bytes(), 6)) for path in files) < 100_000


def test_no_number_depends_on_a_container_in_its_font_size() -> None:
    """WebKit applies the page's zoom twice to such a size, and the number is cut."""
    styles = [
        (path.name, style) for path in STATIC.glob("*.css") for style in re.findall(r"[^{}]+{[^}]*}", path.read_text())
    ]
    sizes = [(name, size) for name, style in styles for size in re.findall(r"font-size: [^;]*\dcq[^;]*", style)]
    assert sizes == [("app.css", "font-size: min(76px, calc(100cqi / (var(--len, 6) * .66)))")], (
        "it has a limit of 76 px"
    )


@pytest.mark.fails_on_mutant(
    "a helper imports the data layer",
    "static/js/lib/csv.js",
    "function cell(",
    'import { apiKey } from "../data/prefs.js";\nfunction cell(',
)
def test_javascript_modules_import_from_lower_layers_only() -> None:
    files = [*(STATIC / "js").rglob("*.js"), *(STATIC / "vendor").glob("*.js")]
    layers = {path: LAYERS.index(path.parent.name) for path in files}
    assert len(set(layers.values())) == len(LAYERS)
    for path, layer in layers.items():
        for target in re.findall(r'^import .*?"(\..+)";', path.read_text(), re.MULTILINE):
            assert layers[Path(path.parent / target).resolve()] <= layer, (path, target)
