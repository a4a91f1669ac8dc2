"""The dashboard uses a WebSocket where it can, and long polling behind a proxy that blocks WebSockets."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.dashboard import count_of, expect_status
from tests.support.nginx import HTTP, Nginx
from tests.support.servers import Process

SOCKET = "static/js/data/socket.js"
SITE = """
server {{
    listen 8080;
    proxy_http_version 1.1;
    proxy_set_header Host $http_host;
    proxy_buffering off;
    location / {{
        {on_upgrade}
        proxy_pass http://127.0.0.1:{node};
    }}
}}"""
# What nginx does with a WebSocket handshake.
BLOCKS = {
    "removes the offer": "",
    "rejects": "if ($http_upgrade) { return 403; }",
    "disconnects": "if ($http_upgrade) { return 444; }",
    "does not respond": "if ($http_upgrade) { proxy_pass http://127.0.0.1:%d; }",
}
# Each poll after the first one fails. A WebSocket is rejected while the file exists.
NO_POLLS = """
        proxy_set_header Host $http_host;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection upgrade;
        if ($http_upgrade) { set $kind websocket; }
        if (-f /tmp/blocked) { set $kind "blocked $kind"; }
        if ($kind = "blocked websocket") { return 403; }
        if ($arg_sid) { return 400; }"""


@pytest.fixture
def silent_port() -> Iterator[int]:
    """The port of a server that accepts connections and sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.fails_on_mutant("it does not poll", SOCKET, '["websocket", "polling"]', '["websocket"]')
@pytest.mark.fails_on_mutant(
    "it begins with a WebSocket each time", SOCKET, "else socket.io.opts.transports.reverse();", ""
)
@pytest.mark.parametrize("block", BLOCKS)
def test_a_page_is_live_without_websockets(
    tally: Process, open_page, tmp_path: Path, silent_port: int, block: str, console_messages: list[str]
) -> None:
    on_upgrade = BLOCKS[block].replace("%d", str(silent_port))
    nginx = Nginx(tmp_path, HTTP.format(site=SITE.format(on_upgrade=on_upgrade, node=tally.port))).start()
    event = f"polled: {block}"
    tally.post(f"/event/{event.replace(' ', '%20')}")
    page = open_page("about:blank", clock=True)
    try:
        with page.expect_websocket():
            page.goto(nginx.url)
        if block == "does not respond":
            page.clock.fast_forward(10_000)
        expect_status(page, "live", timeout=20_000)
        tally.post(f"/event/{event.replace(' ', '%20')}")
        expect(count_of(page, event)).to_have_text("2", timeout=20_000)
        assert [text for text in console_messages if "WebSocket" not in text] == []
    finally:
        nginx.stop()


@pytest.mark.fails_on_mutant("it polls for ever", SOCKET, ".transports.reverse()", '.transports = ["polling"]')
def test_a_page_that_cannot_poll_tries_a_websocket_again(tally: Process, open_page, tmp_path: Path) -> None:
    """As with several nodes, if a proxy sends each poll to another one."""
    nginx = Nginx(tmp_path, HTTP.format(site=SITE.format(on_upgrade=NO_POLLS, node=tally.port)))
    (tmp_path / "blocked").touch()
    page = open_page("about:blank")
    try:
        with page.expect_response(lambda response: "sid=" in response.url and response.status == 400):
            page.goto(nginx.start().url)
        (tmp_path / "blocked").unlink()
        expect_status(page, "live", timeout=20_000)
    finally:
        nginx.stop()


@pytest.mark.fails_on_mutant(
    "it begins with long polling", SOCKET, '["websocket", "polling"]', '["polling", "websocket"]'
)
def test_a_page_uses_only_a_websocket_where_it_can(tally: Process, open_page, console_messages: list[str]) -> None:
    page = open_page("about:blank")
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    page.goto(tally.url)
    expect_status(page, "live")
    assert [url for url in urls if "/socket.io/?" in url] == []
    assert console_messages == []
