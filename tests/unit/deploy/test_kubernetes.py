"""The pool on Kubernetes: what can be known of the files without a cluster."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from broker.topology import model_queues
from cloud_worker.settings import WorkerSettings
from tests.unit.cloud_worker.test_status import names_exposed

KUBERNETES = Path(__file__).resolve().parents[3] / "deploy" / "kubernetes"

TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
# By KEDA's reference of ScaledObject and of its scalers; every value of a trigger's
# metadata is a string there, and an unknown key is silently without effect.
METADATA = {
    "prometheus": {
        "required": ["serverAddress", "query", "threshold"],
        "known": ["activationThreshold", "ignoreNullValues", "namespace"],
    },
    "rabbitmq": {
        "required": ["queueName", "mode", "value"],
        "known": ["activationValue", "protocol", "vhostName", "host", "hostFromEnv"],
    },
}
COUNTS = {
    name: {"type": "integer", "minimum": 0}
    for name in (
        "pollingInterval",
        "cooldownPeriod",
        "minReplicaCount",
        "maxReplicaCount",
    )
}
SCALED_OBJECT = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "keda.sh/v1alpha1"},
        "kind": {"const": "ScaledObject"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "required": ["scaleTargetRef", "triggers"],
            "additionalProperties": False,
            "properties": {
                "scaleTargetRef": {"type": "object", "required": ["name"]},
                **COUNTS,
                "fallback": {
                    "type": "object",
                    "required": ["failureThreshold", "replicas"],
                },
                "advanced": {"type": "object"},
                "triggers": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["type", "metadata"],
                        "additionalProperties": False,
                        "properties": {
                            "type": {"enum": sorted(METADATA)},
                            "name": {"type": "string"},
                            "metricType": {"enum": ["AverageValue", "Value"]},
                            "authenticationRef": {
                                "type": "object",
                                "required": ["name"],
                            },
                            "metadata": TEXTS,
                        },
                    },
                },
            },
        },
    },
}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERNETES / name).read_text()))


@pytest.fixture
def deployment() -> dict[str, Any]:
    (found,) = documents("worker.yaml")
    return found


@pytest.fixture
def container(deployment: dict[str, Any]) -> dict[str, Any]:
    (found,) = deployment["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


@pytest.fixture
def scaled() -> dict[str, Any]:
    _, found = documents("autoscale.yaml")
    return found


def triggers(scaled: dict[str, Any], kind: str) -> list[dict[str, str]]:
    return [
        each["metadata"] for each in scaled["spec"]["triggers"] if each["type"] == kind
    ]


def test_the_scaled_object_is_as_keda_describes_one(scaled: dict[str, Any]) -> None:
    jsonschema.validate(scaled, SCALED_OBJECT)
    for each in scaled["spec"]["triggers"]:
        rule = METADATA[each["type"]]
        given = set(each["metadata"])
        assert set(rule["required"]) <= given
        assert given <= {*rule["required"], *rule["known"]}


def test_keda_scales_by_metrics_that_a_worker_exposes(scaled: dict[str, Any]) -> None:
    (prometheus,) = triggers(scaled, "prometheus")
    named = set(re.findall(r"overspill_\w+", prometheus["query"]))
    assert named
    assert named <= names_exposed()


def test_each_queue_of_the_model_stands_in_for_prometheus(
    scaled: dict[str, Any],
) -> None:
    named = {each["queueName"] for each in triggers(scaled, "rabbitmq")}
    assert named == {queue.name for queue in model_queues("fashion")}


def test_keda_scales_the_deployment_with_the_workers_own_url(
    scaled: dict[str, Any], deployment: dict[str, Any], container: dict[str, Any]
) -> None:
    assert scaled["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]
    authentication, _ = documents("autoscale.yaml")
    (secret,) = authentication["spec"]["secretTargetRef"]
    assert secret["parameter"] == "host"
    assert container["envFrom"] == [{"secretRef": {"name": secret["name"]}}]
    assert secret["key"] == "OVERSPILL_WORKER_AMQP_URL"
    names = {
        each["authenticationRef"]["name"]
        for each in scaled["spec"]["triggers"]
        if "authenticationRef" in each
    }
    assert names == {authentication["metadata"]["name"]}


def test_probes_and_prometheus_ask_where_the_worker_answers(
    deployment: dict[str, Any],
    container: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for each in container["env"]:
        monkeypatch.setenv(each["name"], each["value"])
    settings = WorkerSettings()
    assert settings.http_host == "0.0.0.0"
    (port,) = container["ports"]
    assert port["containerPort"] == settings.http_port
    notes = deployment["spec"]["template"]["metadata"]["annotations"]
    assert notes["prometheus.io/port"] == str(settings.http_port)
    assert container["livenessProbe"]["httpGet"] == {
        "path": "/healthz",
        "port": port["name"],
    }
    assert container["readinessProbe"]["httpGet"] == {
        "path": "/readyz",
        "port": port["name"],
    }
    mounts = {each["mountPath"] for each in container["volumeMounts"]}
    assert str(settings.models) in mounts


def test_a_pod_outlives_the_drain_and_may_do_nothing_else(
    deployment: dict[str, Any], container: dict[str, Any]
) -> None:
    pod = deployment["spec"]["template"]["spec"]
    grace_s = pod["terminationGracePeriodSeconds"]
    assert grace_s >= WorkerSettings().drain_s + 10
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
