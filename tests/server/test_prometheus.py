"""Debian's Prometheus scrapes a node and its events; the shipped rules record and fire."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import yaml

from tests.support.redis_servers import free_port, wait_until
from tests.support.servers import ROOT, Process

RULES = ROOT / "deploy/prometheus"
EVENT = 'order "1" \\n ☃'


class Prometheus:
    """A Prometheus that scrapes a node as docs/how-to/prometheus.md shows, but every second."""

    def __init__(self, directory: Path, port: int, events: list[str]) -> None:
        page = (ROOT / "docs/how-to/prometheus.md").read_text()
        blocks = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
        shown = yaml.safe_load("".join(block for block in blocks if "job_name" in block))
        jobs = shown["scrape_configs"]
        for job in jobs:
            del job["authorization"]  # the node has no keys
            job["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
        jobs[1]["params"]["event"] = events
        # Alerts need not wait here: rules_test.yml tests their `for`.
        rules = re.sub(r"for: \d+m", "for: 0s", (RULES / "rules.yml").read_text())
        (directory / "rules.yml").write_text(rules)
        interval = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        shown |= {"global": interval, "rule_files": [str(directory / "rules.yml")]}
        (directory / "prometheus.yml").write_text(yaml.safe_dump(shown))
        self._directory = directory
        self._log = directory / "prometheus.log"
        self.url = f"http://127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        binary = shutil.which("prometheus")
        assert binary, "Prometheus is not installed: apt-get install prometheus"
        address = self.url.removeprefix("http://")
        files = [f"--config.file={self._directory}/prometheus.yml", f"--storage.tsdb.path={self._directory}/data"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [binary, *files, f"--web.listen-address={address}"], cwd=self._directory, stdout=log, stderr=log
            )
        wait_until(self._responds, self._log.read_text, seconds=60)

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait(timeout=20)

    def _responds(self) -> bool:
        assert self._process
        assert self._process.poll() is None, f"prometheus ended: {self._log.read_text()}"
        try:
            return httpx.get(f"{self.url}/-/ready").is_success
        except httpx.TransportError:
            return False

    def values(self, query: str) -> list[tuple[dict[str, str], str]]:
        """Return the labels and the value of each series that a query finds now."""
        found = httpx.get(f"{self.url}/api/v1/query", params={"query": query}, timeout=20).json()
        return [(series["metric"], series["value"][1]) for series in found["data"]["result"]]

    def events(self, query: str) -> set[str]:
        return {labels["event"] for labels, _ in self.values(query)}

    def firing(self) -> set[str]:
        alerts = httpx.get(f"{self.url}/api/v1/alerts", timeout=20).json()["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


@pytest.fixture
def node(process) -> Process:
    return process(TALLY_STORE="memory://")


@pytest.fixture
def prometheus(tmp_path: Path, node: Process) -> Iterator[Prometheus]:
    server = Prometheus(tmp_path, node.port, ["signup", EVENT])
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.mark.timeout(180)
@pytest.mark.fails_on_mutant(
    "an alert never fires", "deploy/prometheus/rules.yml", 'up{job="tally"} == 0', 'up{job="x"} == 0'
)
def test_prometheus_scrapes_a_node_and_a_rule_fires(node: Process, prometheus: Prometheus) -> None:
    for count in (1, 2, 3):
        assert node.post(f"/event/{quote(EVENT)}")["count"] == count
    wait_until(lambda: [value for _, value in prometheus.values("max(tally_event_hits_total)")] == ["3"], seconds=60)
    assert {labels["event"]: value for labels, value in prometheus.values("tally_event_today")} == {
        EVENT: "3",
        "signup": "0",
    }
    wait_until(lambda: bool(prometheus.values("tally:hits:rate1m")), seconds=60)
    wait_until(lambda: prometheus.events("tally:event_hits:rate5m") == {EVENT, "signup"}, seconds=60)
    assert "TallyNodeDown" not in prometheus.firing()
    node.kill()
    wait_until(lambda: "TallyNodeDown" in prometheus.firing(), seconds=60)


def test_promtool_accepts_the_rules() -> None:
    for words in (["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"]):
        done = subprocess.run(["promtool", *words], cwd=RULES, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
