"""The tree of `app/`: packages import one way, each library has one owner, modules are documented and short."""

import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support.servers import ROOT

# A package (or top-level module) imports only those before it. `server` imports nothing of `app`.
ORDER = ["app", "server", "settings", "domain", "stores", "metrics", "pending_commit", "group_commit", "corrections"]
ORDER += ["alerts", "goals", "notes", "export_import", "importing", "rezone", "check", "backups", "backup_download"]
ORDER += ["live", "shares", "kafka", "nightly_check", "status", "http", "scheduler", "main", "store_commands", "cli"]
ORDER += ["__main__"]

# The modules that may import a library whose details the rest of the code should not know.
OWNERS = {
    "redis": {"app.stores.redis", "app.stores.redis_url", "app.importing.redis_counters"},
    "sqlite3": {f"app.stores.{name}" for name in ("spool_file", "sqlite", "sqlite_connection")}
    | {f"app.stores.{name}" for name in ("sqlite_backup", "sqlite_keys", "sqlite_tables", "sqlite_writer")},
    "apscheduler": {"app.scheduler"},
    "aiokafka": {"app.kafka"},
    "engineio": {"app.live.socketio", "app.live.direct_socket"},
    "socketio": {"app.live.inbound", "app.live.socketio"},
    "httpx": {"app.alerts.command", "app.alerts.transport"},
    "slowapi": {"app.http.rate_limits"},
    "uvicorn": {"app.server"},
    "os": {"app.stores.sqlite_backup"},  # it syncs the copy
}
FILE_LINES_MAX = 350
FUNCTION_LINES_MAX = 40


def modules() -> dict[str, Path]:
    """Every module of `app`, by its dotted name."""
    paths = sorted((ROOT / "app").rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return dict(zip(names, paths, strict=True))


def package(module: str) -> str:
    return module.split(".")[1] if "." in module else module


@cache
def imports(path: Path) -> set[str]:
    """The dotted names that a module imports: modules, and names of modules."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            # A package's __init__ may import its modules, so importing one of those is no import of the package.
            if not names <= set(modules()):
                found.add(node.module or "")
            found |= names
    return found


def test_packages_import_one_way() -> None:
    assert {package(name) for name in modules()} == set(ORDER)
    for name, path in modules().items():
        for imported in imports(path) & set(modules()) - {"app"}:
            own, other = package(name), package(imported)
            assert own == other or ORDER.index(other) < ORDER.index(own), f"{name} imports {imported}"
            assert own != "server" or other == "server", f"{name} imports {imported}"


def test_modules_have_no_import_cycles() -> None:
    names = set(modules())
    TopologicalSorter({name: imports(path) & names - {name} for name, path in modules().items()}).prepare()


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_is_imported_only_by_its_owner(library: str) -> None:
    users = {name for name, path in modules().items() if any(i.split(".")[0] == library for i in imports(path))}
    assert all(any(user == owner or user.startswith(f"{owner}.") for owner in OWNERS[library]) for user in users), users
    assert bool(users) == bool(OWNERS[library])


def test_every_module_has_a_docstring_with_a_short_first_line() -> None:
    for name, path in {**modules(), **{str(p): p for p in sorted((ROOT / "tests").rglob("*.py"))}}.items():
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        assert docstring, name
        assert len(docstring.splitlines()[0]) <= 120, name


def test_files_and_functions_are_short() -> None:
    for name, path in modules().items():
        text = path.read_text()
        assert len(text.splitlines()) <= FILE_LINES_MAX, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert own_lines(node) <= FUNCTION_LINES_MAX, f"{name}: {node.name}"


def own_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without those of the functions in it: a function that registers routes holds many."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    for node in ast.iter_child_nodes(function):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines -= (node.end_lineno or 0) - node.lineno + 1
    return lines


def test_every_static_module_says_its_job_first() -> None:
    for path in sorted((ROOT / "static/js").rglob("*.js")):
        assert re.match(r"// \w.{10,}|/\*\*? ", path.read_text()), path.name


@pytest.mark.fails_on_mutant(
    "a broad except without a reason",
    "app/store_commands.py",
    "BaseException:  # also if the user interrupts it",
    "BaseException:",
)
def test_a_broad_except_has_its_reason_on_its_line() -> None:
    for name, path in modules().items():
        for line in path.read_text().splitlines():
            if re.search(r"except.*\b(Base)?Exception\b|raise NotImplementedError", line):
                assert re.sub(r"# noqa: \S+", "", line).partition("#")[2].strip(), f"{name}: {line}"


@pytest.mark.fails_on_mutant(
    "pickle between nodes", "app/live/peers.py", "import msgspec\n", "import msgspec, pickle\n"
)
def test_data_never_becomes_code() -> None:
    """Neither requests nor the contents of a store or a topic can become code."""
    for name, path in modules().items():
        assert not imports(path) & {"pickle", "marshal", "shelve", "subprocess", "ctypes", "code"}, name
        called = {node.func.id for node in ast.walk(ast.parse(path.read_text()))
                  if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}  # fmt: skip
        assert not called & {"eval", "exec", "compile", "__import__"}, name
