"""Stand-ins for the images that docker-compose.yml and the Dockerfile name, for a machine that cannot pull them.

They consist of Debian's packages, and have the names, users and paths of the images that they replace.
"""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import yaml

from tests.support.servers import ROOT

SETTINGS_OF_PIP = ("etc/pip.conf", "etc/ssl/certs/ca-certificates.crt")  # this machine may need them for its registry


class StandIn(NamedTuple):
    """A release of Debian, its packages, a script that runs in its root directory, and instructions of a Dockerfile."""

    release: str
    packages: str
    script: str
    instructions: tuple[str, ...] = ()


STAND_INS = {
    "python": StandIn("trixie", "python3-venv,ca-certificates", "ln -s /usr/bin/python3 /usr/local/bin/python"),
    "redis": StandIn(
        "trixie", "redis-server", "install -d -o 999 -g 1000 /data", ("WORKDIR /data", "VOLUME /data", "EXPOSE 6379")
    ),
    "nginxinc/nginx-unprivileged": StandIn(
        "sid",  # only its nginx resolves names at run time
        "nginx-light,wget",
        "ln -sf /dev/stderr /var/log/nginx/error.log",
        ("USER 101", "EXPOSE 8080", 'CMD ["nginx", "-g", "daemon off;"]'),
    ),
}


def provide() -> None:
    """Pull each image, or build its stand-in, unless the engine has it."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].values()
    names = {service["image"] for service in services if "image" in service and "profiles" not in service}
    names.update(re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    for name in sorted(names):
        if not (_succeeds("docker", "image", "inspect", name) or _succeeds("docker", "pull", "--quiet", name)):
            _build(name, STAND_INS[name.split(":")[0]])


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def _build(name: str, image: StandIn) -> None:
    print(f"{name} cannot be pulled. Building a stand-in of it, which takes a minute or two ...", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        options = ["--variant=minbase", f"--include={image.packages}", image.release, scratch]
        subprocess.run(["debootstrap", *options], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["chroot", scratch, "sh", "-c", image.script], check=True)
        for path in SETTINGS_OF_PIP:
            if (Path("/") / path).exists() and (root / path).parent.exists():
                shutil.copy(Path("/") / path, root / path)
        changes = [word for instruction in image.instructions for word in ("--change", instruction)]
        with subprocess.Popen(["tar", "-C", scratch, "-c", "."], stdout=subprocess.PIPE) as files:
            subprocess.run(["docker", "import", *changes, "-", name], stdin=files.stdout, check=True)
