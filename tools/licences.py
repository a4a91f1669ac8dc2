"""Under which licences the libraries are that Tally runs on: docs/licences.md, from what their packages say themselves.

`python tools/licences.py` writes it from what is installed; with --check it only compares. No network.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIST = ROOT / "docs/licences.md"
HEAD = """# Licences

What `requirements.txt` installs beside Tally, which is under the MIT licence itself, as each package says of itself.
`fastapi-swagger` carries Swagger UI, under Apache-2.0; `static/vendor/LICENSES.txt` has the licence of what the
dashboard carries. Made by `tools/licences.py`, which `make check` runs as well.

| package | licence |
|---|---|
"""
# All let anybody use, change and pass on a program made with them; MPL-2.0 asks that changes to its own files be shown.
ALLOWED = {"MIT", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0", "PSF-2.0", "MPL-2.0"}
SPOKEN = {"MIT License": "MIT", "Apache 2": "Apache-2.0", "Apache Software License": "Apache-2.0"}


def licence(package: str) -> str:
    """What a package says of itself, as an SPDX expression; older ones say it in other words."""
    said = metadata(package)
    classifiers = [line.rpartition(" :: ")[2] for line in said.get_all("Classifier", []) if line.startswith("License")]
    text = said["License-Expression"] or said["License"] or classifiers[0]
    return SPOKEN.get(text, text)


def update(listed: dict[str, str]) -> dict[str, str]:
    """The list as it should be; of a package that this system does not need it says what it said."""
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
    """What may not be installed with Tally."""
    parts = {package: set(re.split(r" (?:AND|OR) ", text)) for package, text in found.items()}
    return [f"{package}: {found[package]}" for package, named in parts.items() if not named <= ALLOWED]


def main() -> None:
    text = LIST.read_text() if LIST.exists() else ""
    listed = dict(re.findall(r"^\| (\S+) \| (.*) \|$", text, re.MULTILINE))
    found = update(listed)
    wanted = HEAD + "".join(f"| {package} | {text} |\n" for package, text in found.items())
    if "--check" not in sys.argv:
        LIST.write_text(wanted)
    elif text != wanted:
        sys.exit("docs/licences.md is not what is installed: python tools/licences.py")
    sys.exit("\n".join(problems(found)) or 0)


if __name__ == "__main__":
    main()
