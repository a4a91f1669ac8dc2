"""Asks a running Tally for a copy of the SQLite store that it has locked."""

import contextlib
import http.client
import json
import shutil
from pathlib import Path

from app.settings import Settings
from app.stores.base import BackupFailed

TIMEOUT_SECONDS = 3600  # the response begins when the copy is complete


def download_backup(settings: Settings, path: Path) -> None:
    """Write the copy to a new file. The server has the same settings. Raises BackupFailed, and then leaves no file."""
    part = path.with_name(f"{path.name}.part")
    address = f"http://{settings.host_to_open}:{settings.port}"
    if not settings.admin_keys:
        raise BackupFailed(
            f"{settings.sqlite_file} is in use, and only an administrator can ask the running Tally for a copy: set"
            " TALLY_ADMIN_KEYS for it and for this command, or stop it"
        )
    connection = http.client.HTTPConnection(settings.host_to_open.strip("[]"), settings.port, timeout=TIMEOUT_SECONDS)
    headers = {"Authorization": f"Bearer {settings.admin_keys[0].get_secret_value()}"}
    try:
        connection.connect()
    except OSError as error:
        raise BackupFailed(
            f"{settings.sqlite_file} is in use, but Tally does not answer at {address}: try again when it has started,"
            " and check TALLY_HOST and TALLY_PORT"
        ) from error
    try:
        with contextlib.closing(connection), part.open("wb") as file:
            connection.request("GET", "/backup", headers=headers)
            response = connection.getresponse()
            if response.status != http.client.OK:
                raise BackupFailed(f"{address}/backup responded with {response.status}: {_detail(response.read())}")
            shutil.copyfileobj(response, file)
        if response.length:  # bytes that did not arrive
            raise BackupFailed(f"{address}/backup: the connection broke; try again")
        part.replace(path)
    except (OSError, http.client.HTTPException) as error:
        raise BackupFailed(f"{settings.sqlite_file} is in use, but {address} gives no copy of it: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def _detail(body: bytes) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(body)["detail"])
    return "not a response of Tally"
