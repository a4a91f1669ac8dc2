"""The command line: it parses `tally serve | consume | backup | export | …`, runs the server, and prints."""

import argparse
import asyncio
import contextlib
import gc
import logging
import resource
import signal
import sys
import time
from functools import partial
from pathlib import Path

import uvloop
from fastapi import Response
from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from app import __version__
from app.alerts import command as alerts_command
from app.alerts.command import ALERTS_COMMAND
from app.domain.calendar import Calendar, Clock
from app.kafka.buffer import DURABILITY
from app.main import create_app
from app.server.server import TallyServer
from app.settings import Settings, invalid_settings
from app.store_commands import rezone_file, run_backup, run_check, run_file_command, run_import, run_set_offset
from app.stores import create_store
from app.stores.base import StoreError, StoreOpenError

SERVE_COMMANDS = {
    "serve": "run the server (the default)",
    "consume": "count records from Kafka and serve only /health, its probes and /metrics",
}
OPERATIONS = ("/health", "/health/live", "/health/ready", "/metrics")  # all that `consume` serves
BACKUP = "copy the SQLite store to a new file, also while Tally runs"
CHECK = "check that the counts of the store are consistent, also while Tally runs"
FILE_COMMANDS = {
    "export": "write all data to a new file, as NDJSON",
    "verify": "check that the store matches an export file",
}
IMPORT = "add the counts of a file or of a Redis to the store; safe to repeat"
IMPORT_EPILOG = (
    "FILE is an export of Tally or GoatCounter, a CSV whose header has an event and a count, or lines with a name and a"
    " count. See docs/how-to/migrate.md."
)
OFFSET_COMMAND = "set-offset"
OFFSET_HELP = "count a Kafka partition from this offset on, because its log was truncated or recreated"
REZONE = "write an export with days in TALLY_TIMEZONE to a new file, from an export with other days"


def main() -> None:
    """Run a command. Exits with one line on stderr if a setting is invalid or the command fails."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        arguments, settings = _parse_arguments(), Settings()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            if arguments.command == ALERTS_COMMAND:
                key = next((key.get_secret_value() for key in settings.admin_keys), None)
                print(alerts_command.run(arguments, _address(settings), key))
            elif arguments.command == "rezone":
                print(rezone_file(arguments.file, arguments.new_file, settings.timezone))
            elif arguments.command in FILE_COMMANDS:
                clock = Clock(Calendar(settings.timezone), time.time)
                print(runner.run(run_file_command(arguments.command, arguments.file, create_store(settings), clock)))
            elif arguments.command == "import":
                clock = Clock(Calendar(settings.timezone), time.time)
                print(runner.run(run_import(arguments, create_store(settings), clock)))
            elif arguments.command == "backup":
                print(runner.run(run_backup(arguments.file, settings)))
            elif arguments.command == "check":
                print(runner.run(run_check(settings)))
            elif arguments.command == OFFSET_COMMAND:
                print(runner.run(run_set_offset(arguments, create_store(settings))))
            else:
                runner.run(serve(settings, consume=arguments.command == "consume"))
    except ValidationError as error:
        sys.exit("tally: " + "; ".join(f"{name}: {reason}" for name, reason in invalid_settings(error)))
    # redis-py raises ValueError for an invalid URL.
    except (StoreError, alerts_command.CommandFailed, OSError, ValueError) as error:
        sys.exit(f"tally: {_describe(error)}")


def _describe(error: Exception) -> str:
    """Return the message of an error; of one about a file, its name and the reason, without the number."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    return str(error)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "tally",
        description="Run the Tally server, run a Kafka consumer, or move data between stores.",
        epilog="Settings are TALLY_* environment variables; see docs/reference/settings.md.",
    )
    parser.add_argument("--version", action="version", version=f"tally {__version__}")
    names = [*SERVE_COMMANDS, "backup", "check", "export", "import", "verify", "rezone", OFFSET_COMMAND, ALERTS_COMMAND]
    commands = parser.add_subparsers(dest="command", metavar=" | ".join(names))
    for name, text in SERVE_COMMANDS.items():
        commands.add_parser(name, help=text, description=text)
    for name, text in {"backup": BACKUP, **FILE_COMMANDS}.items():
        commands.add_parser(name, help=text, description=text).add_argument("file", type=Path)
    _add_import_arguments(commands.add_parser("import", help=IMPORT, description=IMPORT, epilog=IMPORT_EPILOG))
    commands.add_parser("check", help=CHECK, description=CHECK)
    offset_parser = commands.add_parser(OFFSET_COMMAND, help=OFFSET_HELP, description=OFFSET_HELP)
    offset_parser.add_argument("topic")
    for name in ("partition", "offset"):
        offset_parser.add_argument(name, type=_whole_number)
    rezone_parser = commands.add_parser("rezone", help=REZONE, description=REZONE)
    for name in ("file", "new_file"):
        rezone_parser.add_argument(name, type=Path)
    alerts_help = alerts_command.HELP
    alerts_command.add_arguments(commands.add_parser(ALERTS_COMMAND, help=alerts_help, description=alerts_help))
    return parser.parse_args()


def _add_import_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("file", type=Path, nargs="?")
    source.add_argument("--from-redis", metavar="URL", help="read keys that INCR counts, as totals of events")
    parser.add_argument("--match", default="*", metavar="PATTERN", help="with --from-redis: only these keys")
    parser.add_argument("--strip", default="", metavar="PREFIX", help="with --from-redis: remove it from the keys")
    parser.add_argument("--bots", action="store_true", help="from GoatCounter: import hits of bots, too")
    parser.add_argument("--dry-run", action="store_true", help="print what would be added, and write nothing")


def _whole_number(text: str) -> int:
    if not text.isascii() or not text.isdecimal():
        raise argparse.ArgumentTypeError("it must be a whole number from 0")
    return int(text)


async def serve(settings: Settings, *, consume: bool) -> None:
    """Serve until SIGINT or SIGTERM; if `consume`, only the OPERATIONS. Raises StoreError and OSError."""
    if consume and (settings.store_kind != "redis" or not settings.kafka + settings.kafka_inputs):
        raise StoreOpenError(
            "consume needs TALLY_KAFKA or TALLY_KAFKA_INPUTS, and a Redis URL as TALLY_STORE, so that other nodes can"
            " serve the counts"
        )
    app = create_app(settings)
    served = _only_operations(app, settings.root_path) if consume else app
    durability = DURABILITY if settings.kafka else app.state.store.durability
    server = TallyServer(
        served,
        settings.host,
        settings.port,
        ",".join(settings.trusted_proxies),
        settings.keep_alive_seconds,
        on_started=partial(print_greeting, settings, durability, consume=consume),
        end_streams=app.state.broadcaster.end_streams,
        fast_path=None if consume else app.fast_path,
    )
    # uvicorn raises the signal again when it has stopped, which would end the process before the lifespan has ended.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    # The lifespan is run here and not by uvicorn, so that a StoreOpenError is one line and not a traceback.
    async with app.router.lifespan_context(app):
        _tune_interpreter()
        _raise_open_files_limit()
        await server.serve()


def _only_operations(app: ASGIApp, root_path: str) -> ASGIApp:
    paths = {prefix + path for prefix in ("", root_path) for path in OPERATIONS}

    async def operations(scope: Scope, receive: Receive, send: Send) -> None:
        is_operation = scope.get("path") in paths
        await (app if is_operation else Response(status_code=404))(scope, receive, send)

    return operations


def _tune_interpreter() -> None:
    """Shorten garbage collection, and the waits of the event loop and SQLite's thread for each other."""
    gc.collect()
    gc.freeze()  # imported modules are never garbage; traversing them would delay hits by 50 ms
    gc.set_threshold(10_000)  # hits are short-lived; with 1,000 clients, a full collection takes 0.15 s
    sys.setswitchinterval(0.0005)  # SQLite's thread waits for the interpreter lock about five times per commit


def _raise_open_files_limit() -> None:
    """Allow as many connections as the system does: shells and container engines often begin with 1,024."""
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError):  # macOS names a hard limit that it does not accept
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))


def print_greeting(settings: Settings, durability: str, *, consume: bool) -> None:
    """Print where the service listens, how durable its counts are, and how to count a first hit."""
    address = _address(settings)
    if consume:
        print(f"Tally is counting records from Kafka. Status: {address}/health and {address}/metrics", flush=True)
        return
    print(f"Tally is running at {address} (API docs: {address}/docs)")
    print(f"Store: {settings.store_kind}. An acknowledged hit survives {durability}.")
    open_roles = [verb for verb, keys in (("count", settings.write_keys), ("read", settings.read_keys)) if not keys]
    if open_roles and not settings.loopback:
        print(
            f"Warning: anyone who can reach this address can {' and '.join(open_roles)}."
            " Set TALLY_WRITE_KEYS and TALLY_READ_KEYS to restrict access."
        )
    key = " -H 'Authorization: Bearer <one of TALLY_WRITE_KEYS>'" if settings.write_keys else ""
    print(f"Count something:  curl -X POST{key} {address}/event/hello", flush=True)


def _address(settings: Settings) -> str:
    return f"http://{settings.host_to_open}:{settings.port}{settings.root_path}"
