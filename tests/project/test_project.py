"""What the documents and the tree claim: settings, imports, vendored files, size."""

import ast
import hashlib
import json
import os
import re
import runpy
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest
import yaml

from app.settings import Settings
from tests.support.servers import ROOT

# A module imports only what stands before it.
ORDER = [
    "app",
    "app.settings",
    "app.events",
    "app.stores.hyperloglog",
    "app.stores.base",
    "app.stores.memory",
    "app.stores.sqlite_tables",
    "app.stores.sqlite",
]
ORDER += [
    "app.stores.redis",
    "app.stores.redis_sharded",
    "app.stores.offline",
    "app.metrics",
    "app.group_commit",
    "app.live.broadcaster.day",
    "app.live.inbound",
    "app.live.broadcaster",
    "app.live.peers",
    "app.http.errors",
    "app.http.rate_limits",
    "app.http.permissions",
    "app.kafka.decoding",
    "app.kafka.consumer",
]
ORDER += [
    "app.corrections",
    "app.http.routes.count",
    "app.http.routes.counts",
    "app.export_import",
    "app.http.routes.admin",
    "app.http.routes.badges",
    "app.http.routes.countapi",
    "app.http.routes.stream",
    "app.http.routes.operations",
    "app.scheduler",
    "app.cli",
    "app.main",
    "app.__main__",
]
ALONE = {
    "redis": ["app.stores.redis"],
    "sqlite3": ["app.stores.sqlite_tables", "app.stores.offline", "app.stores.sqlite"],
    "apscheduler": ["app.scheduler"],
    "aiokafka": ["app.kafka.consumer", "app.kafka.decoding"],
}
ALONE |= {"socketio": ["app.live.inbound", "app.live.broadcaster"], "slowapi": ["app.http.rate_limits"], "os": []}


def modules() -> dict[str, Path]:
    paths = sorted((ROOT / "app").rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return dict(zip(names, paths, strict=True))


@cache
def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_imports_point_one_way() -> None:
    assert set(modules()) - {"app.stores"} == set(ORDER)
    for name, path in modules().items():
        for imported in imports(path) & set(ORDER):
            assert ORDER.index(imported) < ORDER.index(name), f"{name} imports {imported}"


@pytest.mark.parametrize("library", ALONE)
def test_a_library_is_known_where_it_belongs_and_nowhere_else(library: str) -> None:
    users = [name for name, path in modules().items() if any(i.split(".")[0] == library for i in imports(path))]
    assert users == ALONE[library]


def test_every_setting_is_documented_with_its_default() -> None:
    rows = re.findall(r"^\| `TALLY_(\w+)` \| (.*?) \| (.*?) \|$", (ROOT / "docs/settings.md").read_text(), re.MULTILINE)
    documented = {name.lower(): (default, text) for name, default, text in rows}
    actual = {
        name: (f"`{field.default}`" if field.default not in {"", ()} else "none", field.description)
        for name, field in Settings.model_fields.items()
    }
    assert documented == actual


def test_vendored_files_are_what_the_manifest_says() -> None:
    done = subprocess.run(
        [sys.executable, "tools/vendor.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", ["package-lock.json", "bench/peers/express/package-lock.json"])
def test_what_comes_from_npm_is_pinned_by_hash_and_names_no_registry(file: str) -> None:
    text = (ROOT / file).read_text()
    packages = json.loads(text)["packages"]
    assert all(package["integrity"].startswith("sha512-") for name, package in packages.items() if name)
    assert "resolved" not in text


def test_the_modules_that_touch_no_page_do_what_they_say() -> None:
    environment = os.environ | {"LC_ALL": "en_US.UTF-8", "TZ": "UTC"}
    command = ["node", "--test", "tests/js/modules.test.js"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_lock_files_pin_everything_with_hashes_and_name_no_index() -> None:
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


def test_an_install_refuses_what_is_not_what_was_pinned(tmp_path: Path) -> None:
    """By pip as the Makefile and the Dockerfile call it, with a package whose content is another than its hash says."""
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


def test_the_licences_of_what_it_runs_on_are_listed_and_allowed() -> None:
    command = [sys.executable, "tools/licences.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    problems = runpy.run_path(str(ROOT / "tools/licences.py"))["problems"]
    said = {"a": "MIT", "b": "AGPL-3.0-only", "c": "MIT OR GPL-2.0-only", "d": "Apache-2.0 AND MIT", "e": "?"}
    assert problems(said) == ["b: AGPL-3.0-only", "c: MIT OR GPL-2.0-only", "e: ?"]


@pytest.mark.catches("pickle between nodes", "app/live/peers.py", "import msgspec\n", "import msgspec, pickle\n")
def test_nothing_that_is_read_is_run() -> None:
    """Neither what clients send nor what lies in a store or a log can become code."""
    for name, path in modules().items():
        assert not imports(path) & {"pickle", "marshal", "shelve", "subprocess", "ctypes", "code"}, name
        called = {node.func.id for node in ast.walk(ast.parse(path.read_text()))
                  if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}  # fmt: skip
        assert not called & {"eval", "exec", "compile", "__import__"}, name


PUBLISHED = '- "127.0.0.1:8000:8080"'


@pytest.mark.catches("all networks reach it", "docker-compose.yml", PUBLISHED, '- "8000:8080"')
@pytest.mark.catches("nodes reach the world", "docker-compose.yml", "[inside, counts]", "[inside, counts, outside]")
@pytest.mark.catches("the proxy reaches Redis", "docker-compose.yml", "[inside, outside]", "[inside, outside, counts]")
@pytest.mark.catches(
    "Redis reaches the world", "docker-compose.yml", "Redis\n    internal: true", "Redis\n    internal: false"
)
def test_the_proxy_alone_is_published_and_redis_is_among_the_nodes() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services = compose["services"]
    assert {name: service["ports"] for name, service in services.items() if "ports" in service} == {
        "proxy": ["127.0.0.1:8000:8080"]
    }
    internal = {name for name, network in compose["networks"].items() if network.get("internal")}
    assert internal == {"inside", "counts"}
    assert {name: set(service["networks"]) for name, service in services.items()} == {
        "proxy": {"inside", "outside"}, "app": {"inside", "counts"}, "redis": {"counts"}, "kafka": {"counts"},
    }  # fmt: skip
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service.get("read_only") or name == "kafka", name


def test_every_test_that_security_md_names_is_there() -> None:
    """And of each row of its table one is named."""
    text = (ROOT / "SECURITY.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    assert len(rows) > 20
    for row in rows:
        if row.split("|")[-2].strip() != "shown by":
            assert re.search(r"`test_\w+\.py::test_\w+`", row.split("|")[-2]), row
    for file, test in re.findall(r"`(test_\w+\.py)::(test_\w+)`", text):
        assert re.search(rf"^(async )?def {test}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), test


def test_links_between_documents_lead_somewhere() -> None:
    files = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "README.md" in files
    for name in files:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", (ROOT / name).read_text()):
            if "://" not in target:
                assert ((ROOT / name).parent / target).exists(), f"{name}: {target}"


def test_every_wrong_build_that_a_test_names_still_has_its_place(request: pytest.FixtureRequest) -> None:
    for item in request.session.items:
        for mark in item.iter_markers("catches"):
            _, file, old, new = mark.args
            assert (ROOT / file).read_text().count(old) == 1, f"{item.nodeid}: {old!r} in {file}"
            assert old != new
