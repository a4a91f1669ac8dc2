"""`tally alerts`: list, add, test and delete the alerts of a running Tally, over HTTP."""

import argparse
import contextlib
import re
from collections.abc import Mapping
from typing import Any

import httpx

ALERTS_COMMAND = "alerts"
HELP = "list, add, test or delete alerts of the Tally that runs with the same settings"
_CONDITION = re.compile(r"(count|total|every|above|below)=(\d{1,16})(?:/(5m|1h|1d))?")
_TIMEOUT_SECONDS = 10.0


class CommandFailed(Exception):
    """The command failed; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    actions = parser.add_subparsers(dest="action", metavar="add | test | delete")
    add = actions.add_parser("add", help="add an alert")
    add.add_argument("event")
    add.add_argument("when", type=_condition, help="such as total=1000, every=100, count=50 or below=1/1h")
    add.add_argument("url")
    add.add_argument("--format", choices=("json", "slack", "discord", "ntfy"), help="by default that of the URL's host")
    actions.add_parser("test", help="send an example of an alert's message once").add_argument("id")
    actions.add_parser("delete", help="delete an alert, and its messages that were not sent").add_argument("id")


def run(arguments: argparse.Namespace, url: str, key: str | None) -> str:
    """Run the command against the Tally at this URL; return the text to print. Raises CommandFailed."""
    if key is None:
        raise CommandFailed("alerts needs an admin key: set TALLY_ADMIN_KEYS as for the running Tally")
    headers = {"Authorization": f"Bearer {key}"}
    try:
        # A proxy of the environment could not reach this machine.
        with httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_SECONDS, trust_env=False) as client:
            return _run(arguments, client)
    except httpx.HTTPError as error:
        raise CommandFailed(f"no response from {url}: is Tally running there? ({error})") from error


def _run(arguments: argparse.Namespace, client: httpx.Client) -> str:
    if arguments.action == "add":
        fields = {name: getattr(arguments, name) for name in ("event", "when", "url", "format")}
        body = {name: value for name, value in fields.items() if value is not None}
        alert = _json(client.post("/alerts", json=body))
        secret = f" JSON is signed with {alert['secret']}" if alert["format"] == "json" else ""
        return f"Added {alert['id']}.{secret}"
    if arguments.action == "delete":
        return f"Deleted {_json(client.delete(f'/alerts/{arguments.id}'))['id']}."
    if arguments.action == "test":
        error = _json(client.post(f"/alerts/{arguments.id}/test"))["error"]
        if error:
            raise CommandFailed(f"the message was not accepted: {error}")
        return "The message was accepted."
    alerts = _json(client.get("/alerts"))
    return "\n".join(map(_line, alerts)) or "There are no alerts."


def _json(response: httpx.Response) -> Any:
    """Return the content of a response. Raises CommandFailed with the detail of an error."""
    if response.is_success:
        return response.json()
    detail = f"the response was {response.status_code}"
    with contextlib.suppress(ValueError, KeyError):
        detail = response.json()["detail"]
    raise CommandFailed(detail)


def _line(alert: Mapping[str, Any]) -> str:
    return f"{alert['id']}  {alert['event']}  {_text(alert['when'])}  {alert['format']}  {alert['url']}"


def _text(when: Mapping[str, Any]) -> str:
    """Return a condition as `add` takes it."""
    window = f"/{when['window']}" if "window" in when else ""
    return "".join(f"{name}={number}{window}" for name, number in when.items() if name != "window")


def _condition(text: str) -> dict[str, object]:
    match = _CONDITION.fullmatch(text)
    if not match:
        raise argparse.ArgumentTypeError(
            "it must be such as total=1000, every=100, count=50, above=500/5m or below=1/1h"
        )
    name, number, window = match.groups()
    return {name: int(number), **({"window": window} if window else {})}
