"""docker-compose.yml: only the proxy is published, and each service reaches only what it needs."""

import pytest
import yaml

from app.settings import Settings
from tests.support.redis_servers import ALLOWED
from tests.support.servers import ROOT

# The settings that docker-compose.yml, or the image, fixes.
FIXED = {"TALLY_HOST", "TALLY_PORT", "TALLY_STORE", "TALLY_SPOOL", "TALLY_TRUSTED_PROXIES"}
PUBLISHED = '- "127.0.0.1:8000:8080"'


@pytest.mark.fails_on_mutant("all networks reach it", "docker-compose.yml", PUBLISHED, '- "8000:8080"')
@pytest.mark.fails_on_mutant(
    "nodes reach the world", "docker-compose.yml", "[inside, counts]", "[inside, counts, outside]"
)
@pytest.mark.fails_on_mutant(
    "the proxy reaches Redis", "docker-compose.yml", "[inside, outside]", "[inside, outside, counts]"
)
@pytest.mark.fails_on_mutant(
    "Redis reaches the world", "docker-compose.yml", "Redis\n    internal: true", "Redis\n    internal: false"
)
def test_only_the_proxy_is_published_and_only_nodes_reach_redis() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services = compose["services"]
    assert {name: service["ports"] for name, service in services.items() if "ports" in service} == {
        "proxy": ["127.0.0.1:8000:8080"]
    }
    internal = {name for name, network in compose["networks"].items() if network.get("internal")}
    assert internal == {"inside", "counts"}
    assert {name: set(service["networks"]) for name, service in services.items()} == {
        "proxy": {"inside", "outside"}, "app": {"inside", "counts"}, "redis": {"counts"}, "kafka": {"counts"},
    }  # fmt: skip
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service.get("read_only") or name == "kafka", name


@pytest.mark.fails_on_mutant(
    "a setting is not passed on", "docker-compose.yml", "      TALLY_COUNTAPI: ${TALLY_COUNTAPI:-}\n", ""
)
def test_the_nodes_get_every_setting_of_the_env_file() -> None:
    environment = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["app"]["environment"]
    names = {f"TALLY_{name.upper()}" for name in Settings.model_fields}
    assert set(environment) <= names
    passed_on = {name for name, value in environment.items() if value == f"${{{name}:-}}"}
    assert names - passed_on == FIXED
    for page, end in (("docker-compose.yml", "services:"), ("docs/reference/settings.md", "## ")):
        introduction = (ROOT / page).read_text().partition(end)[0]
        assert all(name in introduction for name in FIXED), page


def test_nodes_may_use_the_commands_that_the_tests_allow() -> None:
    """Besides them, they may read how durable Redis is."""
    command = " ".join(
        map(str, yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["redis"]["command"])
    )
    commands = {word for word in ALLOWED.split() if word[0] in "+-"}
    assert {word for word in command.split() if word[0] in "+-" and word[1] != "-"} == commands | {"+config|get"}
