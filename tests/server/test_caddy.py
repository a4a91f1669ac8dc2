"""Tally behind Debian's Caddy with the configuration of the guide: offered upgrades, WebSockets, streams and limits."""

import re
from pathlib import Path

import httpx
import pytest
import websockets

from app.settings import Settings
from tests.server.test_fast_path import LAST, exchange, state
from tests.server.test_upgrades import LOST, OFFERS, REQUESTS, offering, tally
from tests.support.caddy import Caddy, Site
from tests.support.servers import serving

GUIDE = "docs/how-to/reverse-proxy.md"


async def final_responses(site: Site, request: bytes) -> bytes:
    """Send a request, and return all responses without `100 Continue`, which Caddy sends once or twice."""
    received = await exchange(site, request)
    return re.sub(rb"HTTP/1\.1 100 Continue\r\n(Server: Caddy\r\n)?\r\n", b"", received)


@LOST
async def test_an_offer_changes_nothing_behind_caddy(tmp_path: Path) -> None:
    """Unlike nginx, Caddy passes each offer on. The response and the counts are those without the offer."""
    async with tally(fast_path=True) as offered, tally(fast_path=True) as plain:
        ports = [int(server.url.rpartition(":")[2]) for server in (offered, plain)]
        with Caddy(tmp_path, ports) as caddy:
            for of, offer in OFFERS.items():
                # A file with the offer of WebSockets would be a handshake.
                requests = b"".join(REQUESTS[what] for what in REQUESTS if (of, what) != ("of WebSockets", "a file"))
                expected = await final_responses(caddy.sites[1], requests + LAST)
                assert await final_responses(caddy.sites[0], offering(requests, offer) + LAST) == expected, of
        assert await state(offered) == await state(plain)


@pytest.mark.fails_on_mutant(
    "metrics are public", GUIDE, "\n\ntally.example {\n\t@metrics path /m", "\n\ntally.example {\n\t@metrics path /"
)
async def test_the_configuration_of_the_guide_works(tmp_path: Path) -> None:
    chosen = Settings(TALLY_STORE="memory://", trusted_proxies="127.0.0.1", write_limit="2/hour")
    async with serving(chosen) as node:
        with Caddy(tmp_path, [int(node.url.rpartition(":")[2])]) as caddy:
            url = caddy.sites[0].url
            async with websockets.connect(
                url.replace("http", "ws", 1) + "/socket.io/?EIO=4&transport=websocket"
            ) as page:
                assert (await page.recv())[0] == "0"
            async with httpx.AsyncClient(base_url=url, timeout=20) as client:
                async with client.stream("GET", "/stream?event=a") as stream:
                    lines = stream.aiter_lines()
                    assert await anext(lines) == "retry: 3000"
                    assert (await client.post("/event/a", headers={"Origin": url})).status_code == 200
                    assert 'data: {"eventName":"a","count":1}' in [await anext(lines) for _ in range(8)]
                # The address is Caddy's, which replaces the header of a client that it does not trust.
                forged = [await client.post("/event/a", headers={"X-Forwarded-For": f"10.0.0.{i}"}) for i in range(2)]
                assert [response.status_code for response in forged] == [200, 429]
                assert (await client.get("/metrics")).status_code == 403
