"""nginx with deploy/nginx.conf, but with fixed nodes instead of DNS. As a script it checks the configuration."""

import getpass
import os
import re
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Self

import httpx

from tests.support.redis_servers import free_port, wait_until

# For Nginx: what any configuration of ours needs around its `server`.
HTTP = """
error_log /dev/stderr warn; pid /tmp/nginx.pid; events {{}}
http {{
    access_log off; client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi; uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
    {site}
}}"""
CONF = Path(__file__).parents[2] / "deploy/nginx.conf"
NODE = re.compile(r"server app:8000 resolve (.*);")  # Debian's nginx cannot resolve names at run time


class Nginx:
    """An nginx with this configuration, which listens on port 8080 and writes to /tmp/; both are replaced."""

    def __init__(self, directory: Path, conf: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = directory / "nginx.log"
        conf = conf.replace("listen 8080", f"listen 127.0.0.1:{self.port}").replace("/tmp/", f"{directory}/")  # noqa: S108 # the path in the image
        (directory / "nginx.conf").write_text(conf)
        # If root starts nginx, its workers run as a user that may not write here.
        directives = f"daemon off; user {getpass.getuser()};"
        self._command = [_binary(), "-p", str(directory), "-c", str(directory / "nginx.conf"), "-g", directives]
        self._process: subprocess.Popen[bytes] | None = None

    def check(self) -> int:
        """Return 0 if nginx accepts the configuration."""
        return subprocess.run([*self._command, "-t", "-q"], check=False).returncode

    def start(self) -> Self:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        wait_until(self._listens, self.log.read_text)
        return self

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait(timeout=20)
            self._process = None

    def _listens(self) -> bool:
        assert self._process
        assert self._process.poll() is None, f"nginx ended: {self.log.read_text()}"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class Proxy(Nginx):
    """An nginx in front of these ports. `replaced` maps texts of its configuration to other texts."""

    def __init__(self, directory: Path, nodes: list[int], replaced: dict[str, str] | None = None) -> None:
        conf = CONF.read_text()
        for old, new in (replaced or {}).items():
            assert conf.count(old) == 1, f"{old!r} occurs {conf.count(old)} times"
            conf = conf.replace(old, new)
        conf = NODE.sub(lambda match: " ".join(f"server 127.0.0.1:{node} {match[1]};" for node in nodes), conf)
        super().__init__(directory, conf)


def client_from(proxy: Proxy, address: str = "127.0.0.1") -> httpx.AsyncClient:
    """A client of the proxy with this address."""
    transport = httpx.AsyncHTTPTransport(local_address=address)
    return httpx.AsyncClient(base_url=proxy.url, transport=transport, timeout=20)


def problem_of(response: httpx.Response) -> dict[str, object]:
    """The problem document of a response, which must have every header and member that errors have."""
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["Cache-Control"] == "no-cache"
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "frame-ancestors 'none'" in policy
    assert "Strict-Transport-Security" not in response.headers
    problem = response.json()
    assert (problem["type"], problem["status"]) == (f"/docs/errors#{problem['code']}", response.status_code)
    assert problem["title"]
    assert problem["detail"]
    return problem


def _binary() -> str:
    binary = shutil.which(
        "nginx", path=f"{os.environ['PATH']}:/usr/sbin"
    )  # Debian's directory, which is not in a user's PATH
    assert binary, "nginx is not installed: apt-get install nginx"
    return binary


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        raise SystemExit(Proxy(Path(scratch), [8000, 8001]).check())
