"""The whole fleet that docker-compose.yml describes: nginx, three nodes, and Redis with its shipped configuration."""

import asyncio
import json
import random
import re
from collections.abc import Callable
from contextlib import AsyncExitStack

import httpx
import pytest
import redis
import socketio
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.nginx import client_from, problem_of
from tests.support.redis_servers import USER, wait_until
from tests.support.servers import Fleet, Process, eventually

CONF = "deploy/nginx.conf"
POLL = "/socket.io/?EIO=4&transport=polling"


def live_clients(node: Process) -> float:
    metrics = httpx.get(f"{node.url}/metrics").text
    return float(re.search(r"^tally_live_clients (\S+)", metrics, re.MULTILINE)[1])


@pytest.mark.fails_on_mutant("polls go from node to node", CONF, "hash $pick;", "")
@pytest.mark.fails_on_mutant("clients without cookies change nodes", CONF, "'' $remote_addr;", "'' $request_id;")
@pytest.mark.fails_on_mutant("the proxy drops the port of the host", CONF, "Host $http_host", "Host $host")
async def test_twenty_of_twenty_default_clients_connect_and_get_updates(fleet: Fleet) -> None:
    received: list[list[dict]] = [[] for _ in range(20)]
    async with AsyncExitStack() as stack:
        for updates in received:
            sio = socketio.AsyncClient(reconnection=False)
            sio.on("update", updates.append)
            await sio.connect(fleet.proxy.url, headers={"Origin": fleet.proxy.url})
            stack.push_async_callback(sio.disconnect)
            assert sio.transport() == "websocket"
        http = await stack.enter_async_context(client_from(fleet.proxy, "127.0.1.1"))
        assert (await http.post("/event/seen")).json()["ack"] == "redis"
        await eventually(lambda: all({"eventName": "seen", "count": 1} in updates for updates in received))


async def test_clients_that_begin_with_a_websocket_are_spread_over_the_nodes(fleet: Fleet) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(20):
            client = socketio.AsyncClient(reconnection=False)
            await client.connect(fleet.proxy.url, transports=["websocket"])
            stack.push_async_callback(client.disconnect)
        assert len([node for node in fleet.nodes if live_clients(node)]) > 1


@pytest.mark.fails_on_mutant("the cookie is ignored", CONF, "default $cookie_tally_node;", "default $remote_addr;")
async def test_a_cookie_keeps_a_polling_client_at_its_node_when_its_address_changes(fleet: Fleet) -> None:
    async with client_from(fleet.proxy) as http:
        handshake = await http.get(POLL)
    sid = json.loads(handshake.text[1:])["sid"]
    cookie = handshake.headers["Set-Cookie"].partition(";")[0]
    for i in range(10):
        async with client_from(fleet.proxy, f"127.0.2.{i + 1}") as http:
            pong = await http.post(f"{POLL}&sid={sid}", content="3", headers={"Cookie": cookie})
            assert (pong.status_code, pong.text) == (200, "OK")


@pytest.mark.fails_on_mutant("each node has a rate limit of its own", CONF, "hash $remote_addr;", "")
@pytest.mark.fails_on_mutant("a client chooses its address", CONF, "For $remote_addr;", "For $http_x_forwarded_for;")
async def test_an_address_has_one_rate_limit_on_all_nodes_whatever_headers_it_sends(fleet: Fleet) -> None:
    async with client_from(fleet.proxy, "127.0.3.1") as http:
        responses = [
            await http.post("/event/limited", headers={name: f"203.0.113.{random.randrange(255)}"})
            for _ in range(20)
            for name in ("X-Forwarded-For", "X_Forwarded_For", "X-Real-IP")
        ]
    assert [response.status_code for response in responses] == [200] * 30 + [429] * 30
    assert problem_of(responses[-1])["detail"].startswith(
        "rate limit exceeded: 30 per 1 minute per client address (TALLY_WRITE_LIMIT); retry after "
    )
    async with client_from(fleet.proxy, "127.0.3.2") as http:
        assert (await http.post("/event/limited")).json()["count"] == 31


@pytest.mark.parametrize("end", [Process.kill, Process.terminate])
async def test_a_node_that_ends_fails_few_requests_and_counts_nothing_twice(
    fleet: Fleet, end: Callable[[Process], object]
) -> None:
    name, network = end.__name__, {"kill": 5, "terminate": 6}[end.__name__]
    statuses: dict[str, int] = {}

    async def count(address: int) -> None:
        async with client_from(fleet.proxy, f"127.0.{network}.{address}") as http:
            for i in range(20):
                event = f"{name}:{address}:{i}"
                try:
                    statuses[event] = (await http.post(f"/event/{event}")).status_code
                    assert (await http.get("/event/seen")).status_code == 200
                except httpx.RemoteProtocolError:  # the node died between the head and the body of its response
                    statuses.setdefault(event, 502)

    running = asyncio.gather(*(count(address) for address in range(1, 13)))
    await eventually(lambda: len(statuses) > 60)
    await asyncio.to_thread(end, fleet.nodes[1])
    try:
        await running
        async with client_from(fleet.proxy, f"127.0.{network}.100") as http:
            counts = (await http.get(f"/events?prefix={name}:")).json()
        assert len(statuses) == 240
        assert set(statuses.values()) <= {200, 502}
        assert list(statuses.values()).count(502) <= 12  # requests that were on their way to the dead node
        for event, status in statuses.items():
            assert counts.get(event, 0) == 1 or (counts.get(event, 0), status) == (0, 502)
    finally:
        await asyncio.to_thread(fleet.nodes[1].start)


@pytest.mark.fails_on_mutant(
    "Redis needs no password", "deploy/redis.conf", "user default off", "user default on nopass"
)
def test_redis_needs_a_password_and_a_node_may_use_few_commands(fleet: Fleet) -> None:
    wrong = {"username": USER, "password": f"{fleet.redis.password}?"}
    for credentials in ({}, wrong):
        client = redis.Redis(port=fleet.redis.port, retry=Retry(NoBackoff(), 0), **credentials)
        with client, pytest.raises(redis.AuthenticationError):
            client.ping()
    with fleet.redis.client() as node:
        assert node.ping()
        for forbidden in ("FLUSHALL", "KEYS *", "CONFIG SET appendonly no", "SET other 1", "SHUTDOWN", "ACL LIST"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                node.execute_command(*forbidden.split())
    health = fleet.nodes[0].get("/health")
    assert (health["status"], health["durability"]) == ("ok", "a crash of Redis, but for the last 2 seconds")


@pytest.mark.fails_on_mutant(
    "Redis may not load its own file", "deploy/redis.conf", "user default off ~* &* +@all", "user default off"
)
def test_redis_keeps_all_counts_across_a_restart(fleet: Fleet) -> None:
    with httpx.Client(base_url=fleet.proxy.url, transport=httpx.HTTPTransport(local_address="127.0.7.1")) as http:
        http.post("/events", json={"kept": 5})
        fleet.redis.stop()
        assert http.post("/event/kept").json()["ack"] == "spooled"
        fleet.redis.start()
        wait_until(lambda: all(node.get("/health")["staleSeconds"] is None for node in fleet.nodes))
        assert [node.get("/event/kept")["count"] for node in fleet.nodes] == [6, 6, 6]
        assert [node.get("/health")["lostBatches"] for node in fleet.nodes] == [0, 0, 0]
