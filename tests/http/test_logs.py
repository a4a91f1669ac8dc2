"""What is logged: no lines that a client chooses, and no passwords."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable

import httpx
import pytest

from tests.server.test_cli import run_tally
from tests.support.redis_servers import free_port
from tests.support.servers import ADMIN_KEY, AS_ADMIN, ROOT, Process

FORGED = b"a\r\nERROR forged\x1b[31m\x00"
IN_A_PATH = b"a%0d%0aERROR%20forged%1b[31m%00"
REQUESTS = [
    b"POST /event/" + IN_A_PATH,
    b"GET /events?prefix=" + IN_A_PATH,
    b"GET /" + IN_A_PATH,
    b"GET /%ff" + IN_A_PATH,
]
REQUESTS += [b"GET /static/" + IN_A_PATH, b"PUT /event/" + IN_A_PATH, b"GET /socket.io/?EIO=4&sid=" + IN_A_PATH]
REQUESTS += [b"GET /hit/abc?callback=" + IN_A_PATH, b"GET /history/" + IN_A_PATH]
HEADERS = [
    b"Authorization: Bearer ",
    b"Origin: ",
    b"Idempotency-Key: ",
    b"Last-Event-ID: ",
    b"User-Agent: ",
    b"Referer: ",
]
HEADERS += [b"X-Forwarded-For: ", b"Cookie: "]
BODY = b'[{"event":"a\\r\\nERROR forged\\u001b","user":"\\r\\nERROR forged"}]'


@pytest.mark.fails_on_mutant(
    "a path is logged unescaped",
    "app/http/router_bypass.py",
    "            response = self._error_response(request, error)\n",
    "            log.warning('%s', scope['path'])\n            response = self._error_response(request, error)\n",
)
@pytest.mark.parametrize("command", [(), ("-m", "uvicorn", "app.main:app", "--port", "{port}")], ids=["own", "uvicorn"])
def test_clients_cannot_write_lines_into_the_log(process: Callable[..., Process], command: tuple[str, ...]) -> None:
    """uvicorn's own command logs each request; `python -m app` logs none."""
    tally = process(*command, TALLY_STORE="memory://", TALLY_COUNTAPI="true", TALLY_TRUSTED_PROXIES="127.0.0.1")
    before = tally.log.read_text()
    for request in REQUESTS:
        assert re.match(rb"HTTP/1.1 [24]\d\d ", first_line(tally, request + b" HTTP/1.1\r\nHost: a\r\n\r\n")), request
    for header in HEADERS:
        for text in (b"\x1b[31mERROR forged", b"a\nERROR forged", b"a\rERROR forged", "ünï\u2028ERROR forged".encode()):
            head = b"POST /event/a HTTP/1.1\r\nHost: a\r\n" + header + text + b"\r\nContent-Length: 0\r\n\r\n"
            assert re.match(rb"HTTP/1.1 [24]\d\d ", first_line(tally, head)), head
    for host in (FORGED, b"a\x1b[31m", b"a b"):
        first_line(tally, b"GET /events HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
    length = b"Content-Length: %d\r\n\r\n" % len(BODY)
    assert b" 422 " in first_line(tally, b"POST /events HTTP/1.1\r\nHost: a\r\n" + length + BODY)
    logged = tally.log.read_text().removeprefix(before)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u2028]", logged)
    lines = logged.splitlines()
    assert not [line for line in lines if line.startswith("ERROR")]
    if command:
        assert [line for line in lines if "ERROR%20forged" in line]
    else:
        assert set(lines) <= {"WARNING:  Invalid HTTP request received."}


def first_line(tally: Process, request: bytes) -> bytes:
    """Send these bytes, and return the first line of the response."""
    with socket.create_connection(("127.0.0.1", tally.port), timeout=20) as connection:
        connection.sendall(request)
        return connection.makefile("rb").readline()


PASSWORD = "a-secret-password"  # noqa: S105 # of no real server


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        pytest.param(
            *("TALLY_STORE", "redis://:1#{}@127.0.0.1:6379/0"),
            marks=pytest.mark.fails_on_mutant(
                "the error contains the URL",
                "app/stores/redis_url.py",
                "    if parts.fragment or",
                "    if parts.fragment: raise StoreOpenError(url)\n    if",
            ),
        ),
        # A character of the password that is not encoded ends the name of the server, and 1 looks like its port.
        ("TALLY_STORE", "redis://tally:{}@127.0.0.1:x/0"),
        ("TALLY_STORE", "redis://:1/{}@127.0.0.1:6379/0"),
        ("TALLY_STORE", "redis://:1?{}@127.0.0.1:6379/0"),
        ("TALLY_STORE", "redis://:1?a={}@127.0.0.1:6379/0"),
        ("TALLY_STORE", "rediss://:{}/@127.0.0.1:6379/0"),
        ("TALLY_STORE", "redis+cluster://:1/{}@127.0.0.1:6379"),
        ("TALLY_STORE", "redis+sentinel://:1/{}@127.0.0.1:26379/main/0"),
        ("TALLY_STORE", "redis://:[{}@127.0.0.1:6379/0"),
        ("TALLY_KAFKA_OPTIONS", "sasl_plain_password={}&x=1"),
    ],
)
def test_an_error_about_a_setting_does_not_contain_its_password(variable: str, value: str) -> None:
    ended = run_tally(**{"TALLY_STORE": "memory://", "TALLY_KAFKA": "127.0.0.1:1", variable: value.format(PASSWORD)})
    assert ended.returncode == 1
    assert ended.stderr.startswith("tally: ")
    assert PASSWORD not in ended.stdout + ended.stderr


def test_an_invalid_url_is_not_in_the_traceback_of_another_server() -> None:
    """`uvicorn app.main:app` prints the traceback of an error at startup, with the errors that caused it."""
    command = [sys.executable, "-m", "uvicorn", "app.main:app", "--port", "1"]
    environment = os.environ | {"TALLY_STORE": f"redis://tally:{PASSWORD}@127.0.0.1:x/0"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=40, check=False)
    assert "is not a valid Redis URL" in ended.stderr
    assert PASSWORD not in ended.stdout + ended.stderr


def test_the_password_of_a_redis_is_neither_shown_nor_logged(process: Callable[..., Process]) -> None:
    tally = process(TALLY_STORE=f"redis://tally:{PASSWORD}@127.0.0.1:{free_port()}/0", TALLY_ADMIN_KEYS=ADMIN_KEY)
    with httpx.Client(base_url=tally.url, headers=AS_ADMIN) as client:
        texts = [client.get(path).text for path in ("/health", "/metrics", "/events", "/openapi.json", "/export")]
        texts += [client.post(path).text for path in ("/event/a", "/reset")]
    texts.append(tally.log.read_text())
    assert "Redis is unreachable" in texts[-1]
    assert not [text for text in texts if PASSWORD in text]
