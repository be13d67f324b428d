"""What `overspill doctor` finds and how it says it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from overspill.commands.doctor import lines
from overspill.machine import (
    GIBIBYTE,
    Finding,
    Verdict,
    disk,
    document,
    failed,
    memory,
    packages,
    port,
    python_version,
    rabbitmq,
    tensorflow,
)

DEBIAN = Path("/usr/lib/rabbitmq/lib/rabbitmq_server-3.10.8/sbin/rabbitmq-server")


@pytest.mark.parametrize(
    ("version", "verdict"),
    [
        ((3, 10, 9), Verdict.FAIL),
        ((3, 11, 0), Verdict.OK),
        ((3, 14, 1), Verdict.OK),
    ],
)
def test_python_is_new_enough_from_3_11(
    version: tuple[int, ...], verdict: Verdict
) -> None:
    assert python_version(version).verdict is verdict


@pytest.mark.parametrize(
    ("server", "verdict"),
    [
        (None, Verdict.FAIL),
        (DEBIAN, Verdict.OK),
        (Path("/opt/rabbitmq_server-4.1.2/sbin/rabbitmq-server"), Verdict.OK),
        (Path("/opt/rabbitmq_server-3.9.27/sbin/rabbitmq-server"), Verdict.FAIL),
        (Path("/opt/rabbitmq/sbin/rabbitmq-server"), Verdict.WARN),
    ],
)
def test_rabbitmq_is_new_enough_from_3_10(
    server: Path | None, verdict: Verdict
) -> None:
    assert rabbitmq(server, mqtt_plugin=True)[0].verdict is verdict


def test_a_missing_rabbitmq_comes_with_the_command_that_installs_it() -> None:
    (found,) = rabbitmq(None, mqtt_plugin=False)

    assert found.mend == "sudo apt-get install rabbitmq-server"


def test_a_rabbitmq_without_its_mqtt_plugin_is_not_enough() -> None:
    assert failed(rabbitmq(DEBIAN, mqtt_plugin=False))


def test_missing_packages_are_named_with_the_extras_that_bring_them() -> None:
    (found,) = packages(["aio_pika", "sqlalchemy"])

    assert found.verdict is Verdict.FAIL
    assert found.found == "missing: aio_pika, sqlalchemy"
    assert found.mend == "pip install 'overspill[cloud,fleet]'"


def test_a_taken_port_is_no_failure() -> None:
    assert port(1883, free=True).verdict is Verdict.OK
    assert port(1883, free=False).verdict is Verdict.WARN


@pytest.mark.parametrize(
    ("free_gib", "verdict"),
    [(5.0, Verdict.OK), (0.5, Verdict.WARN), (0.1, Verdict.FAIL)],
)
def test_a_disk_that_is_nearly_full_is_a_failure(
    free_gib: float, verdict: Verdict
) -> None:
    assert disk(int(free_gib * GIBIBYTE), "/tmp").verdict is verdict


def test_little_memory_is_a_warning() -> None:
    assert memory(8 * GIBIBYTE).verdict is Verdict.OK
    assert memory(GIBIBYTE).verdict is Verdict.WARN
    assert memory(None).verdict is Verdict.OK


def test_no_gpu_is_fine_and_said() -> None:
    assert "no GPU" in tensorflow("2.20.0", []).found
    assert "1 GPU" in tensorflow("2.20.0", ["/physical_device:GPU:0"]).found
    assert tensorflow("2.20.0", []).verdict is Verdict.OK


def test_a_finding_is_a_line_and_its_mending_the_next() -> None:
    shown = [
        line.plain
        for line in lines(
            [
                Finding("Python", Verdict.OK, "3.12.1"),
                Finding("RabbitMQ", Verdict.FAIL, "not installed", "install it"),
            ]
        )
    ]

    assert shown == [
        "ok    Python    3.12.1",
        "fail  RabbitMQ  not installed",
        "                install it",
    ]


def test_the_document_is_json_and_says_whether_all_is_well() -> None:
    well = Finding("Python", Verdict.OK, "3.12.1")
    ill = Finding("RabbitMQ", Verdict.FAIL, "not installed", "install it")
    warned = Finding("port", Verdict.WARN, "in use", "nothing to do")

    assert json.loads(json.dumps(document([well, warned])))["ok"] is True
    assert json.loads(json.dumps(document([well, ill])))["ok"] is False
