"""Write docs/reference/licences.md from the installed libraries, and check that the licences are allowed.

`python tools/licences.py` writes the page; with --check it only compares. It uses no network.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIST = ROOT / "docs/reference/licences.md"
HEAD = """# Licences

Tally is under the MIT licence. These are the licences of the packages in `requirements.txt`. `fastapi-swagger` contains
Swagger UI, under Apache-2.0. `static/vendor/LICENSES.txt` has the licences of the vendored files.
`tools/licences.py` writes this page.

| licence | packages |
|---|---|
"""
# All of them allow to use, change and distribute a program that includes the library. MPL-2.0 requires that changes to
# its own files are published.
ALLOWED = {"MIT", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0", "PSF-2.0", "MPL-2.0"}
SPDX = {"MIT License": "MIT", "Apache 2": "Apache-2.0", "Apache Software License": "Apache-2.0"}


def licence(package: str) -> str:
    """Return the licence of a package as an SPDX expression. Older packages use other texts."""
    fields = metadata(package)
    classifiers = [
        line.rpartition(" :: ")[2] for line in fields.get_all("Classifier", []) if line.startswith("License")
    ]
    text = fields["License-Expression"] or fields["License"] or classifiers[0]
    return SPDX.get(text, text)


def update(listed: dict[str, str]) -> dict[str, str]:
    """Return the current licences. A package that is not installed on this system keeps its listed one."""
    found = {}
    for package in sorted(
        set(re.findall(r"^([a-z0-9][\w.-]*)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    ):
        try:
            found[package] = licence(package)
        except PackageNotFoundError:
            found[package] = listed.get(package, "?")
    return found


def problems(found: dict[str, str]) -> list[str]:
    """Return the packages whose licence is not allowed."""
    parts = {package: set(re.split(r" (?:AND|OR) ", text)) for package, text in found.items()}
    return [f"{package}: {found[package]}" for package, named in parts.items() if not named <= ALLOWED]


def main() -> None:
    text = LIST.read_text() if LIST.exists() else ""
    rows = re.findall(r"^\| (.*) \| (.*) \|$", text, re.MULTILINE)
    found = update({package: name for name, packages in rows for package in packages.split(", ")})
    wanted = HEAD + "".join(
        f"| {name} | {', '.join(package for package, text in found.items() if text == name)} |\n"
        for name in sorted(set(found.values()))
    )
    if "--check" not in sys.argv:
        LIST.write_text(wanted)
    elif text != wanted:
        sys.exit("docs/reference/licences.md differs from the installed packages: run python tools/licences.py")
    sys.exit("\n".join(problems(found)) or 0)


if __name__ == "__main__":
    main()
