"""Copy vendored files from node_modules, and check them against the manifest without a network.

`python tools/vendor.py` copies the versions in package-lock.json; with --check it only compares.
"""

import base64
import hashlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
VENDOR = ROOT / "static/vendor"
# tsc finds types only next to their module.
OWN_FILES = {"MANIFEST.json", "LICENSES.txt", "socket.io.esm.min.d.ts", "uqr.d.ts"}
FILES = {"socket.io.esm.min.js": ("socket.io-client", "dist/socket.io.esm.min.js"), "uqr.js": ("uqr", "dist/index.mjs")}


def manifest_entry(file: str, content: bytes) -> dict[str, object]:
    """Return the manifest entry of a file: its package as pinned in package-lock.json, and its digest."""
    name, path = FILES[file]
    pinned = json.loads((ROOT / "package-lock.json").read_text())["packages"][f"node_modules/{name}"]
    digest = base64.b64encode(hashlib.sha384(content).digest()).decode()
    source = {"name": name, "version": pinned["version"], "licence": pinned["license"], "path": path}
    return {"file": file, **source, "npmIntegrity": pinned["integrity"], "sha384": digest, "bytes": len(content)}


def update() -> None:
    manifest, licences = [], []
    for file, (name, path) in FILES.items():
        package = ROOT / "node_modules" / name
        content = (package / path).read_bytes()
        (VENDOR / file).write_bytes(content)
        manifest.append(manifest_entry(file, content))
        licences.append(f"{file}: {name} {manifest[-1]['version']}, {manifest[-1]['licence']}\n\n")
        licences.append(f"{(package / 'LICENSE').read_text().strip()}\n\n")
    (VENDOR / "MANIFEST.json").write_text(json.dumps(manifest, indent=2) + "\n")
    (VENDOR / "LICENSES.txt").write_text("".join(licences))


def problems() -> list[str]:
    """Return a line for each difference from the manifest or package-lock.json."""
    manifest = {entry["file"]: entry for entry in json.loads((VENDOR / "MANIFEST.json").read_text())}
    found = {path.name for path in VENDOR.iterdir()} - OWN_FILES
    licences = (VENDOR / "LICENSES.txt").read_text()
    wrong = [f"{file}: only in the directory or only in the manifest" for file in found ^ manifest.keys()]
    for file in sorted(found & manifest.keys()):
        if manifest[file] != manifest_entry(file, (VENDOR / file).read_bytes()):
            wrong.append(f"{file}: differs from the manifest or package-lock.json")
        if f"{file}: {manifest[file]['name']} {manifest[file]['version']}, {manifest[file]['licence']}" not in licences:
            wrong.append(f"{file}: its licence is missing in LICENSES.txt")
    return wrong


if __name__ == "__main__":
    if "--check" not in sys.argv:
        update()
    sys.exit("\n".join(problems()) or 0)
