"""Debian's Caddy with the Caddyfile of the guide, for other ports and without TLS."""

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import NamedTuple, Self

from tests.support.redis_servers import free_port, wait_until

GUIDE = Path(__file__).parents[2] / "docs/how-to/reverse-proxy.md"


class Site(NamedTuple):
    """A site of a Caddy."""

    url: str


class Caddy:
    """A Caddy server with a site for each of these nodes. A site is configured as in the guide."""

    def __init__(self, directory: Path, nodes: list[int]) -> None:
        caddyfile = re.findall(r"```caddyfile\n(.*?)```", GUIDE.read_text(), re.DOTALL)[0]
        options, site = re.fullmatch(r"\{\n(.*?\n)\}\n\n(tally\.example .*)", caddyfile, re.DOTALL).groups()
        self._ports = [free_port() for _ in nodes]
        self.sites = [Site(f"http://127.0.0.1:{port}") for port in self._ports]
        sites = [
            site.replace("tally.example", f"http://:{port}").replace("127.0.0.1:8000", f"127.0.0.1:{node}")
            for port, node in zip(self._ports, nodes, strict=True)
        ]
        self._directory, self._log = directory, directory / "caddy.log"
        (directory / "Caddyfile").write_text("\n".join([f"{{\nadmin off\ndefault_bind 127.0.0.1\n{options}}}", *sites]))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        binary = shutil.which("caddy")
        assert binary, "caddy is not installed: apt-get install caddy"
        command = [binary, "run", "--config", str(self._directory / "Caddyfile"), "--adapter", "caddyfile"]
        # It writes its state into the home directory.
        environment = os.environ | {"XDG_DATA_HOME": str(self._directory), "XDG_CONFIG_HOME": str(self._directory)}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        wait_until(self._listens, self._log.read_text)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process
        self._process.terminate()
        self._process.wait(timeout=20)

    def _listens(self) -> bool:
        assert self._process
        assert self._process.poll() is None, f"Caddy ended: {self._log.read_text()}"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._ports[-1])) == 0
