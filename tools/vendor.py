"""Vendored files: copied unchanged from node_modules, and checked against the manifest without a network.

`python tools/vendor.py` copies what package-lock.json pins; with --check it only compares.
"""

import base64
import hashlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
VENDOR = ROOT / "static/vendor"
FILES = {"socket.io.esm.min.js": ("socket.io-client", "dist/socket.io.esm.min.js")}


def described(file: str, content: bytes) -> dict[str, object]:
    """What the manifest says of a file: where it is from, as the lock pins it, and what is in it."""
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
        manifest.append(described(file, content))
        licences.append(f"{file}: {name} {manifest[-1]['version']}, {manifest[-1]['licence']}\n\n")
        licences.append((package / "LICENSE").read_text())
    (VENDOR / "MANIFEST.json").write_text(json.dumps(manifest, indent=2) + "\n")
    (VENDOR / "LICENSES.txt").write_text("".join(licences))


def problems() -> list[str]:
    """What is not as the manifest and the lock say."""
    manifest = {entry["file"]: entry for entry in json.loads((VENDOR / "MANIFEST.json").read_text())}
    found = {path.name for path in VENDOR.iterdir()} - {"MANIFEST.json", "LICENSES.txt"}
    licences = (VENDOR / "LICENSES.txt").read_text()
    wrong = [f"{file}: not in both the directory and the manifest" for file in found ^ manifest.keys()]
    for file in sorted(found & manifest.keys()):
        if manifest[file] != described(file, (VENDOR / file).read_bytes()):
            wrong.append(f"{file}: not what the manifest or package-lock.json says")
        if f"{file}: {manifest[file]['name']} {manifest[file]['version']}, {manifest[file]['licence']}" not in licences:
            wrong.append(f"{file}: without its licence")
    return wrong


if __name__ == "__main__":
    if "--check" not in sys.argv:
        update()
    sys.exit("\n".join(problems()) or 0)
