"""Requests to URLs of administrators: only public addresses, no redirects, and a time-out."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.alerts import transport
from app.alerts.transport import create_client, is_public, post, url_error
from tests.support.receiver import Receiver, receiving
from tests.support.redis_servers import certificate

FILE = "app/alerts/transport.py"
PRIVATE = """
127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 255.255.255.255 240.0.0.1
::1 :: fe80::1 fe80::1%eth0 fc00::1 fec0::1 ff02::1 2001:0:7f00:1:: 2001:db8::1
::ffff:127.0.0.1 ::ffff:10.0.0.1 ::127.0.0.1 2002:7f00:1:: 64:ff9b::7f00:1 64:ff9b::10.0.0.1
""".split()  # noqa: SIM905 # a list of this length is hard to read
PUBLIC = ["93.184.216.34", "1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1", "2002:101:101::"]
INVALID_URLS = ["", "hooks", "ftp://example.com", "https://", "https://a:b@example.com", "https://exa mple.com"]
INVALID_URLS += ["https://[::1", f"https://example.com/{'x' * 2048}", "https://example.com/\n"]
INVALID_URLS += ["http://127.0.0.1/", "http://[::1]/", "http://localhost:8000/"]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


async def posted(url: str, *, allow_private: bool = False) -> str:
    async with create_client(allow_private=allow_private) as client:
        return await post(client, url, b"{}", {})


@pytest.mark.parametrize(
    ("address", "public"), [*((address, False) for address in PRIVATE), *((address, True) for address in PUBLIC)]
)
def test_an_address_is_public_or_not(address: str, public: bool) -> None:
    assert is_public(address) == public


@pytest.mark.fails_on_mutant("private addresses are allowed", FILE, "self._allow_private or is_public(address)", "True")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1"])
async def test_a_private_address_is_not_connected_to(receiver: Receiver, host: str) -> None:
    error = await posted(f"http://{host}:{receiver.port}/")
    assert error == "leads to a private address, which only TALLY_ALERTS_ALLOW_PRIVATE=true allows"
    assert receiver.connections == 0


@pytest.mark.fails_on_mutant("the name is resolved twice", FILE, "request.url.copy_with(host=address)", "request.url")
async def test_the_address_that_was_checked_is_the_one_connected_to(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server may answer the second lookup with a private address."""
    lookups: list[str] = []

    def resolve(host: str, *_: object, **__: object) -> list[Any]:
        lookups.append(str(host))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", receiver.port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert await posted(f"http://hooks.example:{receiver.port}/a?b=c", allow_private=True) == ""
    assert [lookup for lookup in lookups if lookup != "127.0.0.1"] == ["hooks.example"]
    (request,) = receiver.requests
    assert (request.path, request.headers["host"]) == ("/a?b=c", f"hooks.example:{receiver.port}")


@pytest.mark.fails_on_mutant("redirects are followed", FILE, "follow_redirects=False", "follow_redirects=True")
async def test_a_redirect_is_an_error_and_is_not_followed(receiver: Receiver) -> None:
    async with receiving() as target:
        receiver.status, receiver.headers = 307, f"location: {target.url}\r\n"
        assert await posted(receiver.url, allow_private=True) == "the response was 307"
        assert target.connections == 0


async def test_a_receiver_that_does_not_answer_is_given_up(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "TIMEOUT_SECONDS", 0.2)
    receiver.silent = True
    assert await posted(receiver.url, allow_private=True) == "no response within 0.2 s"


@pytest.mark.parametrize("status", [200, 204, 299])
async def test_any_2xx_is_success(receiver: Receiver, status: int) -> None:
    receiver.status = status
    assert await posted(receiver.url, allow_private=True) == ""


async def test_an_error_is_described(receiver: Receiver) -> None:
    receiver.status = 500
    assert await posted(receiver.url, allow_private=True) == "the response was 500"
    await receiver.stop()
    assert await posted(receiver.url, allow_private=True) == f"could not connect to 127.0.0.1:{receiver.port}"
    error = await posted("https://no-such-host.invalid/", allow_private=True)
    assert error == "could not find the address of no-such-host.invalid"


@pytest.mark.parametrize(
    ("scheme", "problem"),
    [
        ("https", "could not connect to {}: it does not speak TLS, which https:// needs"),
        ("http", "{} sent no valid response"),
    ],
)
async def test_a_server_that_does_not_speak_the_protocol_is_described(scheme: str, problem: str) -> None:
    def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert await posted(f"{scheme}://{host}/", allow_private=True) == problem.format(host)


@pytest.mark.parametrize("url", INVALID_URLS)
def test_an_invalid_url_is_rejected(url: str) -> None:
    assert url_error(url, allow_private=False)


def test_urls_are_accepted() -> None:
    assert url_error("https://hooks.example/services/T0/B0?x=1", allow_private=False) == ""
    assert url_error("http://127.0.0.1:8080/hook", allow_private=True) == ""


@pytest.mark.fails_on_mutant("no SNI", FILE, '"sni_hostname": host}', "}")
async def test_the_certificate_must_be_that_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path))
    context.sni_callback = lambda _, name, __: names.append(name)  # type: ignore[assignment] # it returns None
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]

    def resolve(*_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    error = await posted(f"https://hooks.example:{port}/", allow_private=True)
    assert error.startswith(f"could not connect to hooks.example:{port}: its certificate is not valid (")
    assert names == ["hooks.example"]
    server.close()
