"""The command line: both ways to serve, the greeting, and one line for whatever prevents a start."""

import asyncio
import contextlib
import os
import resource
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import httpx
import pytest
from apscheduler.events import EVENT_JOB_SUBMITTED

from app import __version__, cli
from app.domain.buckets import Bucket
from app.domain.calendar import Calendar, Clock
from app.main import create_app
from app.settings import Settings
from app.store_commands import run_file_command
from app.stores.base import StoreLimits, StoreUnavailable
from app.stores.memory import MemoryStore
from app.stores.sqlite_backup import find_damage
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.scenarios.backups import enlarge
from tests.support.servers import ADMIN_KEY, ROOT, Process, run_tally


@pytest.fixture
def tally(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str | int | None]:
    """Run a command that ends before anything is started, in this process; return the argument of sys.exit."""

    def run(*arguments: str, **environment: str) -> str | int | None:
        for name in [name for name in os.environ if name.startswith(("TALLY_", "REDIS_"))]:
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["tally", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code

    return run


def test_the_version_is_printed(tally, capsys: pytest.CaptureFixture[str]) -> None:
    assert tally("--version", TALLY_PORT="invalid") == 0
    assert capsys.readouterr().out == f"tally {__version__}\n"


def test_the_greeting_has_the_address_and_a_curl_line_that_works(process, tmp_path: Path) -> None:
    app: Process = process(TALLY_STORE=f"sqlite:///{tmp_path}/tally.db")
    lines = app.log.read_text().splitlines()
    assert lines[0] == f"Tally is running at {app.url} (API docs: {app.url}/docs)"
    assert "survives kill -9 and power loss" in lines[1]
    curl = lines[2].removeprefix("Count something:").split()
    body = subprocess.run([*curl, "-sS"], capture_output=True, text=True, check=True).stdout
    assert '"count":1' in body
    assert app.terminate() == 0
    assert app.log.read_text().splitlines() == lines  # nothing else was printed


@pytest.mark.parametrize(
    ("host", "url", "reached"),
    [
        ("127.0.0.1", "http://127.0.0.1", ["127.0.0.1"]),
        ("localhost", "http://localhost", ["127.0.0.1"]),
        ("0.0.0.0", "http://localhost", ["127.0.0.1", "127.0.0.2"]),  # noqa: S104 # only for the test
        pytest.param(
            *("::", "http://localhost", ["[::1]", "127.0.0.1", "localhost"]),
            marks=pytest.mark.fails_on_mutant(
                "`::` is only IPv6", "app/server/server.py", 'if host == "::" and', "if not host and"
            ),
        ),
    ],
)
def test_the_greeting_has_an_address_that_opens(process, host: str, url: str, reached: list[str]) -> None:
    app: Process = process(TALLY_STORE="memory://", TALLY_HOST=host)
    assert app.log.read_text().startswith(f"Tally is running at {url}:{app.port} (API docs")
    for address in [url.removeprefix("http://"), *reached]:
        assert httpx.get(f"http://{address}:{app.port}/health").status_code == 200


@pytest.mark.fails_on_mutant(
    "the greeting has no root path", "app/cli.py", "{settings.port}{settings.root_path}", "{settings.port}"
)
def test_the_greeting_has_the_root_path(process) -> None:
    app: Process = process(TALLY_STORE="memory://", TALLY_ROOT_PATH="/counts/tally")
    greeting = app.log.read_text()
    assert greeting.startswith(f"Tally is running at {app.url}/counts/tally (API docs: {app.url}/counts/tally/docs)")
    assert f"{app.url}/counts/tally/event/hello" in greeting
    assert httpx.get(f"{app.url}/counts/tally", follow_redirects=True).url == f"{app.url}/counts/tally/"


def test_the_greeting_puts_an_ipv6_address_in_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    cli.print_greeting(Settings(host="::1"), "a restart", consume=False)
    assert "curl -X POST http://[::1]:8000/event/hello" in capsys.readouterr().out


@pytest.mark.fails_on_mutant(
    "the greeting comes before the port is bound",
    "app/server/server.py",
    "        await super().startup(",
    "        self._on_started()\n        await super().startup(",
)
@pytest.mark.parametrize("host", ["127.0.0.1", "::"])
def test_a_port_in_use_is_an_error_without_a_greeting(host: str) -> None:
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as other:
        port = other.getsockname()[1]
        done = run_tally(TALLY_STORE="memory://", TALLY_HOST=host, TALLY_PORT=str(port))
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr == f"tally: port {port} is in use: stop the other program, or set TALLY_PORT\n"


def test_an_address_of_another_machine_is_one_line() -> None:
    done = run_tally(TALLY_STORE="memory://", TALLY_HOST="192.0.2.1")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("tally: ")
    assert "annot assign requested address" in line


@pytest.mark.fails_on_mutant(
    "the scheduler keeps running", "app/main.py", "            stack.push_async_callback(services.jobs.close)\n", ""
)
@pytest.mark.anyio
async def test_the_jobs_stop_if_the_server_cannot_start() -> None:
    app = create_app(Settings(TALLY_STORE="memory://"))
    with pytest.raises(OSError, match="port 8000 is in use"):
        async with app.router.lifespan_context(app):
            assert app.state.jobs.running
            raise OSError("port 8000 is in use")
    assert not app.state.jobs.running


@pytest.mark.fails_on_mutant(
    "a cancelled job is an error in the log", "app/scheduler.py", "except asyncio.CancelledError:", "except KeyError:"
)
@pytest.mark.anyio
async def test_a_shutdown_during_a_job_logs_no_error(caplog: pytest.LogCaptureFixture) -> None:
    app, submitted = create_app(Settings(TALLY_STORE="memory://")), asyncio.Event()
    async with app.router.lifespan_context(app):
        job = app.state.jobs.get_job("nightly_check")  # it waits for LIVE_SECONDS
        app.state.jobs.add_listener(lambda event: event.job_id == job.id and submitted.set(), EVENT_JOB_SUBMITTED)
        job.modify(next_run_time=datetime.now(UTC))
        await submitted.wait()
    assert caplog.records == []


def test_idle_connections_are_kept_as_long_as_the_setting_says(process) -> None:
    app: Process = process(TALLY_STORE="memory://", TALLY_KEEP_ALIVE_SECONDS="1")
    with socket.create_connection(("127.0.0.1", app.port), timeout=20) as connection:
        connection.sendall(b"POST /event/a HTTP/1.1\r\nHost: tally\r\n\r\n")
        assert b" 200 OK" in connection.recv(10_000)
        assert connection.recv(10_000) == b""  # closed by the server


@pytest.mark.parametrize("store", ["sqlite", "redis", "memory"])
def test_uvicorn_serves_app_main_app(store: str, process, tmp_path: Path, redis_server: RedisServer) -> None:
    choice = {
        "sqlite": {"TALLY_STORE": f"sqlite:///{tmp_path}/tally.db"},
        "redis": {"REDIS_URL": redis_server.url},
        "memory": {"TALLY_STORE": "memory://"},
    }
    app: Process = process("-m", "uvicorn", "app.main:app", "--port", "{port}", **choice[store])
    assert [app.post("/event/a")["count"] for _ in range(3)] == [1, 2, 3]
    assert app.get("/health")["store"] == store


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"TALLY_STORE": "postgres://x"}, ["TALLY_STORE: invalid value. Where counts are stored", "sqlite:///path"]),
        ({"TALLY_TIMEZONE": "Mars/Olympus"}, ["TALLY_TIMEZONE", "timezone"]),
        ({"TALLY_TIMEZONE": "../../etc/passwd"}, ["TALLY_TIMEZONE", "timezone"]),
        ({"TALLY_WRITE_LIMIT": "many"}, ["TALLY_WRITE_LIMIT: couldn't parse rate limit", "e.g. `1000/second`"]),
        ({"TALLY_PORT": "0"}, ["TALLY_PORT"]),
        ({"TALLY_PORT": "http://127.0.0.1:8000"}, ["TALLY_PORT"]),
        ({"TALLY_KAFKA": "localhost"}, ["TALLY_KAFKA: invalid value", "`host:port`"]),
        ({"TALLY_ROOT_PATH": "tally"}, ["TALLY_ROOT_PATH"]),
        ({"TALLY_STORE": "memory://", "TALLY_ROOT_PATH": "/event"}, ["TALLY_ROOT_PATH", "/event"]),
        ({"TALLY_KAFKA": "localhost:65536"}, ["TALLY_KAFKA"]),
        ({"TALLY_ALLOWED_ORIGINS": "https://a.example:0"}, ["TALLY_ALLOWED_ORIGINS", "like https://example.com"]),
        ({"TALLY_ALLOWED_ORIGINS": "https://a.example:65536"}, ["TALLY_ALLOWED_ORIGINS"]),
        ({"TALLY_ALLOWED_ORIGINS": "https://*.a.example"}, ["TALLY_ALLOWED_ORIGINS"]),
        ({"TALLY_ALLOWED_HOSTS": "*.a.example"}, ["TALLY_ALLOWED_HOSTS"]),
        ({"TALLY_ALLOWED_HOSTS": "https://a.example"}, ["TALLY_ALLOWED_HOSTS"]),
        ({"TALLY_TRUSTED_PROXIES": "10.0.0.1/8"}, ["TALLY_TRUSTED_PROXIES", "a network like 10.0.0.0/8"]),
        ({"TALLY_TRUSTED_PROXIES": "10.0.0.0/33"}, ["TALLY_TRUSTED_PROXIES"]),
        ({"TALLY_TRUSTED_PROXIES": "10.0.0.*"}, ["TALLY_TRUSTED_PROXIES"]),
        ({"TALLY_TRUSTED_PROXIES": "*"}, ["TALLY_TRUSTED_PROXIES"]),
        ({"TALLY_TRUSTED_PROXIES": "127.0.0.1,proxy"}, ["TALLY_TRUSTED_PROXIES"]),
        ({"TALLY_TRUSTED_PROXIES": "http://10.0.0.1"}, ["TALLY_TRUSTED_PROXIES"]),
        ({"TALLY_TRUSTED_PROXIES": "10.0.0.1:80"}, ["TALLY_TRUSTED_PROXIES"]),
        ({"TALLY_TRUSTED_PROXIES": "[::1]"}, ["TALLY_TRUSTED_PROXIES"]),
        ({"TALLY_KAFKA_INPUTS": "k/orders"}, ["TALLY_KAFKA_INPUTS", "host:port"]),
    ],
)
def test_an_invalid_setting_is_one_line(tally, environment: dict[str, str], words: list[str]) -> None:
    (line,) = tally(**environment).splitlines()
    assert line.startswith("tally: ")
    assert all(word in line for word in words), line
    assert "Value error" not in line


def test_lists_may_be_separated_by_commas_and_spaces() -> None:
    settings = Settings(trusted_proxies=" 10.0.0.0/8, 2001:db8::1 192.0.2.1,")
    assert settings.trusted_proxies == ("10.0.0.0/8", "2001:db8::1", "192.0.2.1")


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker Compose passes an empty text for a variable that .env does not set."""
    for name in Settings.model_fields:
        monkeypatch.setenv(f"TALLY_{name.upper()}", "")
    assert Settings() == Settings.model_construct()


def test_the_port_of_a_kubernetes_service_is_not_the_port_of_tally(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes sets TALLY_PORT in every pod if there is a Service with the name `tally`."""
    monkeypatch.setenv("TALLY_PORT", "tcp://10.96.7.1:80")
    assert Settings().port == 8000


LOW_LIMIT = """
import resource
_, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard_limit))
from app.cli import main
main()
"""


@pytest.mark.fails_on_mutant("the limit stays low", "app/cli.py", "        _raise_open_files_limit()\n", "")
def test_a_low_limit_of_open_files_is_raised_to_what_the_system_allows(process) -> None:
    app = process("-c", LOW_LIMIT, TALLY_STORE="memory://")
    soft_limit, hard_limit = resource.prlimit(app.pid, resource.RLIMIT_NOFILE)
    assert soft_limit == hard_limit


def test_a_file_that_cannot_be_opened_is_one_line() -> None:
    done = run_tally(TALLY_STORE="sqlite:////proc/nothing/tally.db")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("tally: ")
    assert "/proc/nothing/tally.db" in line
    assert "make it writable" in line


@pytest.mark.parametrize("environment", [{"TALLY_KAFKA": "k:9092"}, {"TALLY_STORE": "redis://127.0.0.1:1"}])
def test_consume_names_the_settings_that_it_needs(tally, environment: dict[str, str]) -> None:
    (line,) = tally("consume", **environment).splitlines()
    assert "consume needs TALLY_KAFKA or TALLY_KAFKA_INPUTS, and a Redis URL" in line


def test_a_backup_without_a_server_is_a_copy_of_the_file(tmp_path: Path) -> None:
    enlarge(tmp_path / "tally.db", 1)
    store = {"TALLY_STORE": f"sqlite:///{tmp_path}/tally.db"}
    assert run_tally("backup", str(tmp_path / "copy.db"), **store).stdout == f"Wrote {tmp_path}/copy.db\n"
    assert find_damage(tmp_path / "copy.db") == []


class UnreadableStore(MemoryStore):
    """A store that becomes unreachable while it is exported."""

    async def list_buckets(self, days: Sequence[int] | None = None) -> list[Bucket]:
        raise StoreUnavailable("gone")


@pytest.mark.fails_on_mutant("half an export stays", "app/store_commands.py", "            path.unlink()\n", "")
def test_an_export_that_fails_leaves_no_file(tmp_path: Path) -> None:
    store, clock = UnreadableStore(StoreLimits(10)), Clock(Calendar(ZoneInfo("UTC")), time.time)
    export = run_file_command("export", tmp_path / "new.ndjson", store, clock)
    with pytest.raises(StoreUnavailable):
        asyncio.run(export)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fails_on_mutant(
    "an export says [Errno 17]", "app/store_commands.py", "    _require_new(path)\n    with", "    with"
)
def test_a_command_replaces_no_file(tmp_path: Path) -> None:
    enlarge(tmp_path / "tally.db", 1)
    file = tmp_path / "copy.db"
    file.touch()
    for words in (["backup"], ["export"], ["rezone", "/dev/null"]):
        done = run_tally(*words, str(file), TALLY_STORE=f"sqlite:///{tmp_path}/tally.db")
        expected = f"tally: {file} exists: remove it, or name another file\n"
        assert (done.returncode, done.stderr) == (1, expected)
    assert file.read_bytes() == b""


@pytest.mark.fails_on_mutant("a missing file is [Errno 2]", "app/cli.py", "{_describe(error)}", "{error}")
def test_a_file_that_cannot_be_read_or_written_is_one_line(tally, tmp_path: Path) -> None:
    missing, directory = tmp_path / "no.ndjson", tmp_path / "directory"
    directory.mkdir()
    store = {"TALLY_STORE": f"sqlite:///{tmp_path}/tally.db"}
    for words in (["verify"], ["import"], ["rezone"]):
        new = [str(tmp_path / "new.ndjson")] if words == ["rezone"] else []
        assert tally(*words, str(missing), *new, **store) == f"tally: {missing}: no such file or directory"
        assert tally(*words, str(directory), *new, **store) == f"tally: {directory}: is a directory"
    assert tally("export", f"{missing}/new", **store) == f"tally: {missing}/new: no such file or directory"


@pytest.mark.fails_on_mutant(
    "a backup of a new, empty store",
    "app/store_commands.py",
    "    _require_file(settings)\n    _require_new",
    "    _require_new",
)
def test_a_backup_needs_a_store_with_a_file(tally, tmp_path: Path) -> None:
    missing = tally("backup", str(tmp_path / "copy.db"), TALLY_STORE=f"sqlite:///{tmp_path}/tally.db")
    assert f"{tmp_path}/tally.db does not exist: set TALLY_STORE" in missing
    assert not (tmp_path / "tally.db").exists()
    memory = tally("backup", str(tmp_path / "copy.db"), TALLY_STORE="memory://")
    assert "the memory store has no file to copy; see docs/how-to/backup.md" in memory


@pytest.mark.parametrize(
    ("keys", "port", "advice"),
    [
        ("", None, "set TALLY_ADMIN_KEYS for it and for this command, or stop it"),
        ("another-administrators-key", None, "responded with 401: unknown API key"),
        (ADMIN_KEY, "1", "is in use, but Tally does not answer at http://127.0.0.1:1: try again when it has started"),
    ],
)
def test_a_backup_that_the_server_does_not_make_says_why(
    process, tmp_path: Path, keys: str, port: str | None, advice: str
) -> None:
    store = {"TALLY_STORE": f"sqlite:///{tmp_path}/tally.db"}
    app: Process = process(TALLY_ADMIN_KEYS=ADMIN_KEY, **store)
    done = run_tally("backup", str(tmp_path / "c.db"), TALLY_ADMIN_KEYS=keys, TALLY_PORT=port or str(app.port), **store)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert advice in line
    assert not list(tmp_path.glob("c.db*"))


def test_backups_of_a_store_without_a_file_are_an_invalid_setting(tally) -> None:
    assert tally(TALLY_STORE="memory://", TALLY_BACKUP_EVERY="6").startswith("tally: TALLY_BACKUP_EVERY: only a SQLite")


@pytest.mark.fails_on_mutant(
    "differences exit with 0", "app/store_commands.py", "    if found:\n        raise", "    if False:\n        raise"
)
def test_a_check_exits_with_0_or_with_the_differences(process, tmp_path: Path) -> None:
    environment = {"TALLY_STORE": f"sqlite:///{tmp_path}/tally.db", "TALLY_ADMIN_KEYS": ADMIN_KEY}
    app: Process = process(**environment)
    app.post("/events", b'{"signup": 3, "order": 4}')
    done = run_tally("check", TALLY_PORT=str(app.port), **environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "OK: the counts are consistent\n", "")
    app.terminate()
    with contextlib.closing(sqlite3.connect(tmp_path / "tally.db")) as db:
        db.execute("DELETE FROM log")
        db.execute("DELETE FROM total WHERE event = 1")
        db.execute("INSERT INTO total VALUES (0, 1, 1000)")
        db.commit()
    done = run_tally("check", **environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("tally: 1 differences\nthe totals: the sum of all events is")
    assert not list(tmp_path.glob("check-*"))
    assert not (tmp_path / "backups").exists()


def test_a_second_process_on_the_same_file_exits_with_advice(process, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tally.db"
    app = process("-m", "app", "serve", TALLY_STORE=url)
    done = run_tally(TALLY_STORE=url, TALLY_PORT="1")
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert "in use by another process: is another Tally running? Stop it." in line
    assert line.endswith("set TALLY_STORE to Redis")
    assert app.post("/event/a")["count"] == 1


@pytest.mark.parametrize("store", ["memory://", "sqlite:///{}/tally.db"])
def test_several_workers_on_a_store_for_one_process_exit(store: str, tmp_path: Path) -> None:
    environment = os.environ | {"TALLY_STORE": store.format(tmp_path)}
    command = [sys.executable, "-m", "uvicorn", "app.main:app", "--workers", "2", "--port", "0"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=40, check=False)
    assert "serves one" in done.stderr


def test_a_file_of_a_newer_tally_is_not_opened(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "tally.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    done = run_tally(TALLY_STORE=f"sqlite:///{tmp_path}/tally.db")
    assert "written by a newer Tally" in done.stderr


def test_tally_starts_while_redis_is_unreachable(process, own_redis: RedisServer) -> None:
    app: Process = process(TALLY_STORE=own_redis.url)
    assert [app.post("/event/a")["count"] for _ in range(3)] == [1, 2, 3]
    assert app.get("/event/a")["count"] == 3
    own_redis.start()
    wait_until(lambda: app.get("/health")["status"] == "ok")
    assert app.post("/event/a")["count"] == 4


@pytest.mark.fails_on_mutant(
    "each look-up that outlasts its connection logs an error",
    "app/main.py",
    '    if is_task or not isinstance(context.get("exception"), socket.gaierror):\n        loop',
    "    if context:\n        loop",
)
def test_a_host_of_redis_without_an_address_is_one_line_in_the_log(process) -> None:
    # The look-up fails without the network, because the name is too long. The connection times out before that.
    too_long = ".".join(["a" * 63] * 5)
    app: Process = process(TALLY_STORE=f"redis://{too_long}:6379/0?socket_connect_timeout=0")
    assert app.post("/event/a")["count"] == 1
    assert app.terminate() == 0
    (line,) = [line for line in app.log.read_text().splitlines() if line.startswith(("WARNING", "ERROR"))]
    assert line.startswith("WARNING tally.spool: Redis is unreachable, hits are spooled: ")
