"""Which RabbitMQ a node runs, and how it is entered."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from broker.node_files import RabbitMissing, render_config
from broker.node_info import NodeInfo
from broker.node_server import chosen_server, server_in

INSTALLED = "usr/lib/rabbitmq/lib/rabbitmq_server-4.0.5/sbin"


def chroot(folder: Path) -> Path:
    """A folder that looks like a system with a RabbitMQ."""
    (folder / INSTALLED).mkdir(parents=True)
    script = folder / INSTALLED / "rabbitmq-server"
    script.write_text("")
    scripts = folder / "usr/lib/rabbitmq/bin"
    scripts.mkdir()
    (scripts / "rabbitmq-server").symlink_to(
        "../lib/rabbitmq_server-4.0.5/sbin/rabbitmq-server"
    )
    return folder


def test_a_chroot_s_rabbitmq_is_found_with_its_version(tmp_path: Path) -> None:
    server = chosen_server({"OVERSPILL_RABBITMQ_CHROOT": str(chroot(tmp_path))})

    assert server.root == tmp_path
    assert server.version == (4, 0)


def test_a_chroot_without_rabbitmq_is_said_with_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(RabbitMissing, match=r"tests\.faults\.trixie"):
        server_in(tmp_path)


def test_a_server_that_is_named_is_the_one_that_runs(tmp_path: Path) -> None:
    script = chroot(tmp_path) / INSTALLED / "rabbitmq-server"
    server = chosen_server({"OVERSPILL_RABBITMQ_SERVER": str(script)})

    command = server.command("rabbitmqctl", "status", folder=tmp_path)
    assert command == [str(script.parent / "rabbitmqctl"), "status"]


def test_a_server_that_is_named_and_is_not_there_is_missing() -> None:
    with pytest.raises(RabbitMissing, match="/nowhere"):
        chosen_server({"OVERSPILL_RABBITMQ_SERVER": "/nowhere/rabbitmq-server"})


def test_a_program_of_a_chroot_is_named_as_it_is_called_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    server = server_in(chroot(tmp_path))

    command = server.command("rabbitmqctl", "status", folder=Path("/n"))
    assert command[-4:] == [str(tmp_path), "/n", f"/{INSTALLED}/rabbitmqctl", "status"]


def test_only_root_enters_a_chroot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(RabbitMissing, match="needs root"):
        server_in(chroot(tmp_path)).command("epmd", folder=Path("/n"))


def test_a_member_of_a_cluster_brings_no_definitions_and_replicates_sessions() -> None:
    ports = {"amqp": 4001, "mqtt": 4002, "dist": 4003, "epmd": 4004}
    info = NodeInfo("x@localhost", ports, {"admin": "secret"}, clustered=True)
    text = render_config(info, Path("/f"), (4, 0))

    assert "load_definitions" not in text
    assert "mqtt.durable_queue_type = quorum" in text
    # Else RabbitMQ makes `guest`, whose password everybody knows.
    assert "default_user = admin" in text
