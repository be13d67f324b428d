"""compose.yaml: valid, complete, and closed until an operator opens it.

`compose-spec.json` is the schema of the Compose Specification as docker-compose 1.29.2
ships it on PyPI (Apache-2.0), unchanged. It is older than the top-level `name`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from deploy import render

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
VARIABLE = re.compile(r"\$\{([A-Z_]+):-([^}]*)\}")


def example() -> dict[str, str]:
    lines = (DEPLOY / ".env.example").read_text().splitlines()
    pairs = (line.split("=", 1) for line in lines if line and line[0] != "#")
    return dict(pairs)


def fill_in(text: str) -> str:
    return VARIABLE.sub(lambda found: found.group(2), text)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return document


@pytest.fixture
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose["services"]
    return found


def binds(service: dict[str, Any]) -> list[str]:
    mounts = (fill_in(each) for each in service.get("volumes", []))
    return [mount.split(":")[0] for mount in mounts if mount.startswith(".")]


def test_compose_file_follows_the_specification(compose: dict[str, Any]) -> None:
    schema = json.loads((Path(__file__).parent / "compose-spec.json").read_text())
    schema["properties"]["name"] = {"type": "string"}
    validator = jsonschema.Draft201909Validator(schema)
    assert [error.message for error in validator.iter_errors(compose)] == []
    compose = {**compose, "services": {"worker": {"restrat": "always"}}}
    assert not validator.is_valid(compose), "the schema takes anything"


def test_the_whole_cloud_side_and_an_optional_agent(
    services: dict[str, dict[str, Any]],
) -> None:
    always = {name for name, each in services.items() if "profiles" not in each}
    assert always == {"rabbitmq", "worker", "fleet"}
    assert {name for name in services if name not in always} == {"mosquitto", "agent"}


def test_images_from_elsewhere_are_pinned(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        if "build" not in service:
            _, _, tag = service["image"].partition(":")
            assert tag, f"{name} has no tag"
            assert tag != "latest"


def test_every_mounted_and_built_path_exists(
    services: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    env = tmp_path / ".env"
    env.write_text((DEPLOY / ".env.example").read_text())
    render.write_secrets(render.Deployment.read(env), tmp_path / "secrets")
    for name, service in services.items():
        for source in [*binds(service), *service.get("env_file", [])]:
            base = tmp_path if source.startswith("./secrets") else DEPLOY
            assert (base / source).exists(), f"{name} mounts {source}"
        if build := service.get("build"):
            context = DEPLOY / build["context"]
            assert (context / build["dockerfile"]).is_file()


def test_everything_restarts_and_keeps_its_logs_bounded(
    services: dict[str, dict[str, Any]],
) -> None:
    for name, service in services.items():
        assert service["restart"] == "unless-stopped", name
        assert "max-size" in service["logging"]["options"], name


def test_dependencies_are_waited_for_until_healthy(
    services: dict[str, dict[str, Any]],
) -> None:
    for service in services.values():
        for name, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in services[name]
    assert "rabbitmq" not in services["agent"]["depends_on"], "an agent starts offline"


def test_ports_are_on_loopback_until_the_operator_says_otherwise(
    services: dict[str, dict[str, Any]],
) -> None:
    published = {
        name: [fill_in(port) for port in service["ports"]]
        for name, service in services.items()
        if "ports" in service
    }
    for ports in published.values():
        assert all(port.startswith("127.0.0.1:") for port in ports)
    # Device credentials log in over AMQP as well: that port stays inside.
    assert not any(
        port.endswith(":5672") for ports in published.values() for port in ports
    )


def test_no_password_is_in_the_file(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        for variable, value in service.get("environment", {}).items():
            assert "@" not in str(value), f"{name} has credentials in {variable}"
            assert "PASS" not in variable
    for program in ("worker", "fleet", "agent"):
        assert services[program]["env_file"] == [f"./secrets/{program}.env"]


def test_only_the_fleet_can_read_the_signing_key(
    services: dict[str, dict[str, Any]],
) -> None:
    mounts = {
        name: [each.split(":")[0] for each in service.get("volumes", [])]
        for name, service in services.items()
    }
    assert [name for name, used in mounts.items() if "fleet" in used] == ["fleet"]
    worker = services["worker"]["volumes"]
    assert all(mount.endswith(":ro") for mount in worker), "a worker writes nothing"


def test_every_variable_has_the_default_that_the_example_shows(
    compose: dict[str, Any],
) -> None:
    used = dict(VARIABLE.findall((DEPLOY / "compose.yaml").read_text()))
    shown = example()
    assert used.items() <= shown.items()
    rendered = {
        f"OVERSPILL_DEPLOY_{name.upper()}"
        for name in render.DeploySettings.model_fields
    }
    assert shown.keys() == used.keys() | rendered
    assert set(compose["volumes"]) == {
        "rabbitmq",
        "registry",
        "fleet",
        "record",
        "mosquitto",
        "agent",
    }


def test_the_example_keeps_secrets_out_of_git_and_renders(tmp_path: Path) -> None:
    ignored = (DEPLOY / ".gitignore").read_text().split()
    assert {"/.env", "/secrets/"} <= set(ignored)
    env = tmp_path / ".env"
    env.write_text((DEPLOY / ".env.example").read_text())
    assert render.Deployment.read(env).agents == ("gateway-1",)


def test_both_mosquitto_files_hold_the_same_limits() -> None:
    limit = re.compile(r"^(max_|persist|autosave|set_tcp|log_|connection)\w* ")
    own_place = "persistence_location"

    def limits(name: str) -> set[str]:
        lines = (DEPLOY / "mosquitto" / name).read_text().splitlines()
        return {x for x in lines if limit.match(x) and not x.startswith(own_place)}

    assert limits("mosquitto.conf") == limits("compose.conf")
    assert len(limits("mosquitto.conf")) >= 10
