"""Real Redis servers: a single one, a cluster, one with sentinels, one with TLS and an ACL, and that of compose."""

import contextlib
import hashlib
import itertools
import os
import random
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import redis

ROOT = Path(__file__).parents[2]
SLOTS = 16_384
_ports = itertools.count(random.randrange(1000))
SERVICE = "tally"  # the name of the master in the sentinels
USER = "tally"
# The only commands, keys and channels that Tally needs.
ALLOWED = (
    "resetkeys ~tally:* resetchannels &tally:* -@all +@read +@write -@dangerous"
    " +auth +hello +ping +eval +evalsha +publish +subscribe +unsubscribe +info +time"
)


def free_port() -> int:
    """Return a free port below those of outgoing connections, so that none of these takes it.

    No port is returned twice, and each worker of pytest-xdist has a thousand ports of its own.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = 20_000 + worker * 1000 + next(_ports) % 1000
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(done: Callable[[], bool], explain: Callable[[], str] = str, seconds: float = 20) -> None:
    """Wait for a condition. After so many seconds, fail with the explanation."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"the condition was not met within {seconds} s: {explain()}"
        time.sleep(0.02)


class RedisServer:
    """A redis-server process on a Unix socket, and on a port unless it is 0."""

    def __init__(self, directory: Path, *arguments: str, port: int = 0, password: str = "") -> None:
        directory.mkdir(exist_ok=True)
        self.socket = directory / "redis.sock"
        self.url = f"unix://{self.socket}"
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None
        self._log = directory / "redis.log"
        self._directory = directory
        self._arguments = (*arguments, "--requirepass", password) if password else arguments
        self._password = password

    def start(self, *options: str) -> None:
        """Start it, and wait until it responds."""
        self.launch(*options)
        wait_until(self.responds, self.log)

    def launch(self, *options: str) -> None:
        """Start it without waiting."""
        binary = shutil.which("redis-server")
        assert binary, "redis-server is not installed: apt-get install redis-server"
        listen = ["--bind", "127.0.0.1", "--port", str(self.port), "--unixsocket", str(self.socket)]
        with self._log.open("ab") as log:
            command = [binary, *self._arguments, *listen, "--save", "", *options]
            self.process = subprocess.Popen(command, cwd=self._directory, stdout=log, stderr=log)

    def stop(self) -> None:
        """Kill it with SIGKILL."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def flush(self) -> None:
        with self.client() as client:
            client.flushall()

    def client(self) -> redis.Redis:
        """Return a client that may use all commands."""
        return redis.Redis(
            unix_socket_path=str(self.socket), password=self._password or None, decode_responses=True, socket_timeout=5
        )

    def responds(self) -> bool:
        assert self.process
        assert self.process.poll() is None, f"redis-server ended: {self.log()}"
        with self.client() as client, contextlib.suppress(redis.ConnectionError):
            return bool(client.ping())
        return False

    def replicates(self) -> bool:
        """Return whether it is a replica with all data of its master."""
        return self.responds() and self.info("replication").get("master_link_status") == "up"

    def info(self, section: str) -> dict[str, object]:
        with self.client() as client:
            return client.info(section)

    def log(self) -> str:
        return self._log.read_text()


class Cluster:
    """Three masters with a third of the slots each, and so many replicas of each.

    Each node starts with a nodes.conf that describes the whole cluster, so that no CLUSTER MEET is needed. A master
    then waits for 2 s before it is ready.
    """

    def __init__(self, directory: Path, replicas: int = 0) -> None:
        self.nodes: list[RedisServer] = []
        ports = [(free_port(), free_port()) for _ in range(3 * (1 + replicas))]
        names = [hashlib.sha1(str(pair).encode()).hexdigest() for pair in ports]  # noqa: S324 # a name of 40 digits
        bounds = [SLOTS * i // 3 for i in range(4)]
        for me, (port, bus) in enumerate(ports):
            known = ["vars currentEpoch 3 lastVoteEpoch 0"]
            for i, (its_port, its_bus) in enumerate(ports):
                flags = ("myself," if i == me else "") + ("master -" if i < 3 else f"slave {names[i % 3]}")
                slots = f"{bounds[i]}-{bounds[i + 1] - 1}" if i < 3 else ""
                address = f"127.0.0.1:{its_port}@{its_bus}"
                known.append(f"{names[i]} {address} {flags} 0 0 {i % 3 + 1} connected {slots}".rstrip())
            (directory / str(port)).mkdir()
            (directory / str(port) / "nodes.conf").write_text("\n".join(known) + "\n")
            options = f"--cluster-enabled yes --cluster-port {bus} --cluster-node-timeout 2000".split()
            options += ["--repl-diskless-sync-delay", "0"]
            self.nodes.append(RedisServer(directory / str(port), *options, port=port))
        self.hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:3])
        self.url = f"redis+cluster://{self.hosts}?shards=16"

    def start(self, *options: str) -> None:
        for node in self.nodes:
            node.launch(*options)
        for node in self.nodes:
            wait_until(lambda node=node: node.responds() and self._is_ok(node), node.log)
        for node in self.nodes[3:]:
            wait_until(node.replicates, node.log)

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def flush(self) -> None:
        for node in self.masters():
            node.flush()

    @contextlib.contextmanager
    def writable(self, shards: Iterable[int], *, forget_changes: bool = True) -> Iterator[None]:
        """Let nodes write only to these shards, and remove unfinished changes only if `forget_changes`."""
        keys = ["resetkeys", "%R~*", *(f"~tally:{{{shard}}}:*" for shard in shards)]
        counts = " ".join(f"~tally:*:{step}:*" for step in ("minute", "hour", "day", "total"))
        commands = [] if forget_changes else ["-hdel", f"(+hdel {counts})"]
        # Only the scripts that read are sent with EVAL.
        self._set_permissions(*keys, *commands, "(+eval ~tally:*)")
        try:
            yield
        finally:
            self._set_permissions("allkeys", "clearselectors", "+@all")

    def _set_permissions(self, *rules: str) -> None:
        for master in self.masters():
            with master.client() as client:
                client.execute_command("ACL SETUSER", "default", *rules)

    def kill_master(self) -> None:
        """Kill a master that has a replica, which will be promoted."""
        self.masters()[-1].stop()

    def masters(self) -> list[RedisServer]:
        """Return the running nodes that are masters now."""
        return [node for node in self.nodes if node.process and node.info("replication")["role"] == "master"]

    def _is_ok(self, node: RedisServer) -> bool:
        with node.client() as client:
            return client.cluster("INFO")["cluster_state"] == "ok"


class Sentinels:
    """A master, its replica, and three sentinels. All of them require a user and a password."""

    def __init__(self, directory: Path) -> None:
        password, operators = secrets.token_hex(8), secrets.token_hex(8)
        user = ["--user", *f"{USER} on >{password} ~* &* +@all".split()]
        replication = ["--masterauth", operators, "--repl-diskless-sync-delay", "0"]
        ports = [free_port() for _ in range(5)]
        self.servers = [
            RedisServer(directory / str(port), *user, *replication, port=port, password=operators) for port in ports[:2]
        ]
        self.sentinels = []
        names = [hashlib.sha1(str(port).encode()).hexdigest() for port in ports]  # noqa: S324 # a name of 40 digits
        for me in (2, 3, 4):
            lines = [
                f"sentinel myid {names[me]}",
                f"sentinel monitor {SERVICE} 127.0.0.1 {ports[0]} 2",
                f"sentinel auth-pass {SERVICE} {operators}",
                f"sentinel down-after-milliseconds {SERVICE} 1000",
                f"sentinel failover-timeout {SERVICE} 2000",
                f"sentinel sentinel-pass {operators}",
                f"sentinel known-replica {SERVICE} 127.0.0.1 {ports[1]}",
                *(f"sentinel known-sentinel {SERVICE} 127.0.0.1 {ports[i]} {names[i]}" for i in (2, 3, 4) if i != me),
            ]
            sentinel_directory = directory / str(ports[me])
            sentinel_directory.mkdir()
            (sentinel_directory / "sentinel.conf").write_text("\n".join(lines) + "\n")
            arguments = [str(sentinel_directory / "sentinel.conf"), "--sentinel", *user]
            self.sentinels.append(RedisServer(sentinel_directory, *arguments, port=ports[me], password=operators))
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports[2:])
        credentials = f"sentinel_username={USER}&sentinel_password={password}"
        self.url = f"redis+sentinel://{USER}:{password}@{hosts}/{SERVICE}/0?{credentials}"

    def start(self) -> None:
        master, replica = self.servers
        master.launch()
        replica.launch("--replicaof", "127.0.0.1", str(master.port))
        for sentinel in self.sentinels:
            sentinel.launch()
        wait_until(replica.replicates, replica.log)
        for sentinel in self.sentinels:
            wait_until(lambda sentinel=sentinel: sentinel.responds() and self._sees_all(sentinel), sentinel.log)

    def stop(self) -> None:
        for server in (*self.sentinels, *self.servers):
            server.stop()

    def kill_master(self) -> None:
        self.master().stop()

    def stop_replication(self) -> None:
        """Disconnect the replica from its master for ever. The sentinels notice only when the master dies."""
        master = self.master()
        for server in self.servers:
            with server.client() as client:
                if server is master:
                    client.wait(1, 5000)  # the replica has everything up to now
                client.config_set("masterauth", "forgotten")
        with master.client() as client:
            client.client_kill_filter(_type="replica")

    def master(self) -> RedisServer:
        """Return the master, according to the first sentinel."""
        with self.sentinels[0].client() as client:
            _, port = client.sentinel_get_master_addr_by_name(SERVICE)
        return next(server for server in self.servers if server.port == port)

    def _sees_all(self, sentinel: RedisServer) -> bool:
        with sentinel.client() as client:
            master = client.sentinel_master(SERVICE)
            (replica,) = client.sentinel_slaves(SERVICE)
        state = (master["flags"], master["num-other-sentinels"], replica["flags"], replica["master-link-status"])
        return state == ("master", 2, "slave", "ok")


def certificate(directory: Path) -> tuple[Path, Path]:
    """Create a self-signed certificate of this address; return the certificate and its key."""
    assert shutil.which("openssl"), "openssl is not installed: apt-get install openssl"
    certificate, key = directory / "server.crt", directory / "server.key"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=here"
    out = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*make.split(), *out], check=True, capture_output=True)
    return certificate, key


class GuardedRedis(RedisServer):
    """Redis with TLS only, and with a user that may use only the commands, keys and channels of Tally."""

    def __init__(self, directory: Path) -> None:
        self.authority, key = certificate(directory)
        password, port = secrets.token_hex(8), free_port()
        super().__init__(
            directory,
            *("--tls-port", str(port), "--tls-cert-file", str(self.authority), "--tls-key-file", str(key)),
            *("--tls-auth-clients", "no", "--user", *f"{USER} on >{password} {ALLOWED}".split()),
            password=secrets.token_hex(8),
        )
        # Without the certificate of the authority, a client cannot verify the server.
        self.unverifiable = f"rediss://{USER}:{password}@127.0.0.1:{port}/0"
        self.url = f"{self.unverifiable}?ssl_ca_certs={self.authority}"


class ComposeRedis(RedisServer):
    """Redis as in docker-compose.yml with deploy/redis.conf, but on another port."""

    def __init__(self, directory: Path) -> None:
        compose = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", (ROOT / "docker-compose.yml").read_text())  # the defaults
        (options,) = re.findall(r"- /etc/redis.conf\n((?: {6,}.*\n)+)", compose)
        words = [line.strip().removeprefix("- ") for line in options.splitlines() if line.strip()[0] != "#"]
        port = free_port()
        super().__init__(directory, str(ROOT / "deploy/redis.conf"), *" ".join(words).split(), port=port)
        (self.password,) = re.findall(r"redis://tally:(.*?)@", compose)
        self.url = f"redis://{USER}:{self.password}@127.0.0.1:{port}/0"

    def client(self) -> redis.Redis:
        """Return a client with the credentials of a node, because no other user exists."""
        return redis.Redis.from_url(self.url, decode_responses=True, socket_timeout=5)
