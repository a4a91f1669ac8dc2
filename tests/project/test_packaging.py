"""Dependencies: pinned by hash, vendored files as the manifest says, licences allowed."""

import hashlib
import json
import os
import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.servers import ROOT


def test_vendored_files_match_the_manifest() -> None:
    done = subprocess.run(
        [sys.executable, "tools/vendor.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", ["package-lock.json", "bench/peers/express/package-lock.json"])
def test_npm_packages_are_pinned_by_hash_without_a_registry(file: str) -> None:
    text = (ROOT / file).read_text()
    packages = json.loads(text)["packages"]
    assert all(package["integrity"].startswith("sha512-") for name, package in packages.items() if name)
    assert "resolved" not in text


def test_javascript_modules_without_a_page_pass_their_unit_tests() -> None:
    environment = os.environ | {"LC_ALL": "en_US.UTF-8", "TZ": "UTC"}
    command = ["node", "--test", "tests/js/modules.test.js"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_requirements_pin_every_package_by_hash_without_an_index() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        text = (ROOT / name).read_text()
        packages = re.findall(r"^([a-z0-9][^\s=]*)==(\S+)", text, re.MULTILINE)
        assert len(packages) > 30
        assert text.count("==") >= len(packages)
        assert "index" not in text
        assert "://" not in text
        for block in re.split(r"\n(?=[a-z0-9])", text):
            if "==" in block.splitlines()[0]:
                assert "--hash=sha256:" in block, block.splitlines()[0]


def test_pip_rejects_a_package_with_another_hash(tmp_path: Path) -> None:
    """Run pip as the Makefile and the Dockerfile do, on a package whose content does not match its pinned hash."""
    recipes = "\n".join((ROOT / file).read_text() for file in ("Makefile", "Dockerfile", ".ci/run", "tools/setup"))
    commands = re.findall(r"(?:-m |/)pip install (.*)-r requirements\S*\.txt", recipes)
    assert len(commands) == 3
    assert not re.findall(r"uv pip install|npm install|npm i ", recipes)
    package = tmp_path / "pinned-1-py3-none-any.whl"
    target = ["--no-index", "--find-links", str(tmp_path), "--target", str(tmp_path / "out"), "-r"]
    requirements = tmp_path / "requirements.txt"
    for command in set(commands):
        for content, expected in (("what = 1", 0), ("what = 2", 1)):
            with zipfile.ZipFile(package, "w") as wheel:
                info = "pinned-1.dist-info"
                wheel.writestr("pinned.py", content)
                wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: pinned\nVersion: 1\n")
                wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
                wheel.writestr(f"{info}/RECORD", "")
            if not expected:
                digest = hashlib.sha256(package.read_bytes()).hexdigest()
                requirements.write_text(f"pinned==1 --hash=sha256:{digest}\n")
            install = [sys.executable, "-m", "pip", "install", *command.split(), *target, str(requirements)]
            done = subprocess.run(install, capture_output=True, text=True, check=False)
            assert done.returncode == expected, done.stderr
            assert ("DO NOT MATCH THE HASHES" in done.stderr) == bool(expected)
        requirements.write_text("pinned==1\n")  # without any hash
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        assert "require-hashes" in done.stderr, done.stderr
        assert done.returncode == 1


@pytest.mark.fails_on_mutant("no such program", "Dockerfile", "exec python -m app", "exec python -m tally")
def test_the_image_has_the_command_tally(tmp_path: Path) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert 'CMD ["tally"]' in dockerfile
    (write,) = re.findall(r"printf '.*' > (?=/usr/local/bin/tally)", dockerfile)
    subprocess.run(["sh", "-c", f"{write} {tmp_path}/tally && chmod +x {tmp_path}/tally"], check=True)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [f"{tmp_path}/tally", "--version"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("tally ")


def test_licences_are_listed_and_allowed() -> None:
    command = [sys.executable, "tools/licences.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    problems = runpy.run_path(str(ROOT / "tools/licences.py"))["problems"]
    licences = {"a": "MIT", "b": "AGPL-3.0-only", "c": "MIT OR GPL-2.0-only", "d": "Apache-2.0 AND MIT", "e": "?"}
    assert problems(licences) == ["b: AGPL-3.0-only", "c: MIT OR GPL-2.0-only", "e: ?"]
