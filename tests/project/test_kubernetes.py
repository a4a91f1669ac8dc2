"""deploy/kubernetes: the manifests match the schemas of Kubernetes and the app."""

from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.http.permissions import ROUTE_PERMISSIONS
from app.settings import Settings
from tests.support.servers import ROOT

DIRECTORY = ROOT / "deploy/kubernetes"
ONE_NODE, MANY_NODES = (f"deploy/kubernetes/{name}.yaml" for name in ("one-node", "many-nodes"))
VERSION = "1.37"


def objects(path: str) -> dict[str, Any]:
    """Return the objects of a manifest by their kinds."""
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all((ROOT / path).read_text())}


def container(path: str) -> dict[str, Any]:
    (only,) = objects(path)["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    return only


@pytest.mark.fails_on_mutant("an unknown field", ONE_NODE, "runAsNonRoot:", "runAsNonroot:")
@pytest.mark.fails_on_mutant("a text where a number is required", MANY_NODES, "replicas: 3", 'replicas: "3"')
def test_the_manifests_match_the_schemas_of_kubernetes() -> None:
    manifests = list(DIRECTORY.iterdir())
    assert {f"deploy/kubernetes/{manifest.name}" for manifest in manifests} == {ONE_NODE, MANY_NODES}
    for manifest in manifests:
        for described in yaml.safe_load_all(manifest.read_text()):
            kubernetes_validate.validate(described, VERSION, strict=True)
    assert f"Kubernetes {VERSION}" in (ROOT / "docs/how-to/deploy-kubernetes.md").read_text()


@pytest.mark.fails_on_mutant("a probe without a route", ONE_NODE, "/health/ready", "/health/readiness")
@pytest.mark.fails_on_mutant("an unknown setting", MANY_NODES, "TALLY_TIMEZONE", "TALLY_TIME_ZONE")
@pytest.mark.fails_on_mutant("another user than that of the image", MANY_NODES, "runAsUser: 10001", "runAsUser: 1001")
def test_the_manifests_use_routes_settings_and_the_user_that_exist() -> None:
    for path in (ONE_NODE, MANY_NODES):
        node = container(path)
        probes = [node[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")]
        assert {f"GET {probe}" for probe in probes} <= ROUTE_PERMISSIONS.keys()
        names = {variable["name"] for variable in node["env"]} | objects(path)["Secret"]["stringData"].keys()
        assert names <= {f"TALLY_{name.upper()}" for name in Settings.model_fields}
        user = objects(path)["StatefulSet"]["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
        assert f"USER {user}\n" in (ROOT / "Dockerfile").read_text()


@pytest.mark.fails_on_mutant("two nodes on SQLite", ONE_NODE, "replicas: 1", "replicas: 2")
def test_sqlite_has_one_node() -> None:
    assert objects(ONE_NODE)["StatefulSet"]["spec"]["replicas"] == 1
    assert "TALLY_STORE" not in objects(ONE_NODE)["Secret"]["stringData"]
