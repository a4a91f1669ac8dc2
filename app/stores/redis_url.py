"""The Redis that TALLY_STORE names: a single server, one behind Sentinels, or a cluster."""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from redis import exceptions
from redis.asyncio import ConnectionPool, Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from app.stores.base import StoreOpenError

# No request may wait longer than 2.5 s, the spool's fsync included.
COMMAND_TIMEOUT_SECONDS = 1.5
CONNECT_TIMEOUT_SECONDS = 1.0
# If a Sentinel is down, there must be time to ask another one.
SENTINEL_TIMEOUT_SECONDS = 0.3
# More commands at once would only wait for each other. Reads have slots of their own: commits do not wait for them.
CONCURRENT_COMMANDS_MAX = 64
CONCURRENT_READS_MAX = 8
SHARDS_MAX = 1024

_INVALID_URL = (
    "TALLY_STORE is not a valid Redis URL; write redis://user:password@host:6379/0, and percent-encode all but"
    " letters and digits in the password"
)

_OPTIONS: dict[str, Any] = {
    "decode_responses": True,
    # A retry by redis-py could count a commit twice, because the reply may be lost after the commit was applied.
    "retry": Retry(NoBackoff(), 0),
    # With these notifications, redis-py 8.1 hands out connections that the server has closed.
    "maint_notifications_config": MaintNotificationsConfig(enabled=False),
}


class RedisTarget(NamedTuple):
    """A client that all shards of a store share.

    `identity` is the same for every URL of the same data, and `old_identities` are those that earlier versions gave it.
    `command_slots` limits how many commits and other short
    commands run at once, and `read_slots` how many reads.
    """

    client: Any  # Redis or RedisCluster, which have no common type for the commands that both have
    identity: str
    old_identities: Sequence[str]
    shards: int
    command_slots: asyncio.Semaphore
    read_slots: asyncio.Semaphore

    @classmethod
    def from_url(cls, url: str) -> "RedisTarget":
        """Return a client for a URL, not connected yet. Raises StoreOpenError if the URL is invalid."""
        parts = _split(url)
        scheme, _, kind = parts.scheme.partition("+")
        query = dict(parse_qsl(parts.query))
        shards = _pop_shards(query, kind)
        sentinel = {
            name.removeprefix("sentinel_"): query.pop(name) for name in [*query] if name.startswith("sentinel_")
        }
        service, path = parts.path.strip("/"), parts.path
        if kind == "sentinel":
            service, _, path = service.partition("/")
        credentials, at, addresses = parts.netloc.rpartition("@")
        single = f"{scheme}://{credentials}{at}{addresses.partition(',')[0]}/{path.lstrip('/')}?{urlencode(query)}"
        try:
            hosts = [_host_and_port(address) for address in addresses.split(",")]
            from_url: dict[str, Any] = {**parse_url(single)}
            client = _create_client(kind, hosts, service, from_url, sentinel)
        except (ValueError, exceptions.RedisClusterException):  # its text may contain a part of the password
            raise StoreOpenError(_INVALID_URL) from None
        service_or_socket = {"sentinel": f"/{service}", "": parts.path if scheme == "unix" else ""}.get(kind, "")
        database = from_url.get("db", 0)
        server = " ".join([kind, *sorted(f"{host}:{port}" for host, port in hosts)])
        identity = f"{server} {service_or_socket}/{database}"
        old_paths = {parts.path} if database else {parts.path, service_or_socket, f"{service_or_socket}/"}
        slots = asyncio.Semaphore(CONCURRENT_COMMANDS_MAX), asyncio.Semaphore(CONCURRENT_READS_MAX)
        return cls(client, identity, [f"{server} {path}" for path in sorted(old_paths)], shards, *slots)

    async def close(self) -> None:
        """Close all connections."""
        await self.client.aclose()
        if isinstance(self.client, RedisCluster):
            # After a connection has failed, aclose() closes nothing: redis-py regards the client as not initialized.
            for nodes in ("nodes_cache", "startup_nodes"):
                await self.client.nodes_manager.aclose(nodes)
        elif isinstance(pool := self.client.connection_pool, SentinelConnectionPool):
            await pool.sentinel_manager.aclose()  # its connections are not those of the client


def _split(url: str) -> SplitResult:
    """Return the parts of a URL. Raises StoreOpenError, also if a password ended the server's name too early.

    A `/`, `?` or `#` in a password ends it, so that the rest of it and the @ are behind the server's name.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise StoreOpenError(_INVALID_URL) from None
    path = "" if parts.scheme == "unix" else parts.path
    if parts.fragment or "@" in path or ("@" in parts.query and "@" not in parts.netloc):
        raise StoreOpenError(_INVALID_URL)
    return parts


def _pop_shards(query: dict[str, str], kind: str) -> int:
    if "tags" in query:
        raise StoreOpenError(f"TALLY_STORE: `tags` was renamed, write shards={query['tags']} instead")
    shards = query.pop("shards", "1")
    if not shards.isdecimal() or not 1 <= int(shards) <= SHARDS_MAX or (kind != "cluster" and shards != "1"):
        raise StoreOpenError(f"TALLY_STORE: shards must be 1 to {SHARDS_MAX}, and needs redis+cluster:// if not 1")
    return int(shards)


def _host_and_port(address: str) -> tuple[str, int]:
    parts = urlsplit(f"//{address}")
    return parts.hostname or "127.0.0.1", parts.port or 6379


def _create_client(
    kind: str, hosts: list[tuple[str, int]], service: str, from_url: dict[str, Any], from_sentinel_url: dict[str, str]
) -> Any:
    timeouts = {"socket_timeout": COMMAND_TIMEOUT_SECONDS, "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS}
    # Subscriptions and health checks need connections in addition to the commands and reads.
    connections_max = CONCURRENT_COMMANDS_MAX + CONCURRENT_READS_MAX + 8
    options = _OPTIONS | timeouts | {"health_check_interval": 15, "max_connections": connections_max} | from_url
    if not kind:
        return Redis.from_pool(ConnectionPool(**options))
    options |= {"ssl": options.pop("connection_class", None) is SSLConnection}
    options = {name: value for name, value in options.items() if name not in {"host", "port"}}
    if kind == "cluster":
        return RedisCluster(startup_nodes=[ClusterNode(host, port) for host, port in hosts], **options)
    timeouts = {"socket_timeout": SENTINEL_TIMEOUT_SECONDS, "socket_connect_timeout": SENTINEL_TIMEOUT_SECONDS}
    sentinel_options = _OPTIONS | timeouts | {"ssl": options["ssl"]} | from_sentinel_url
    sentinels = Sentinel(hosts, sentinel_kwargs=sentinel_options, **options)  # type: ignore[no-untyped-call] # redis-py
    return sentinels.master_for(service)
