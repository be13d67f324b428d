from pathlib import Path

import pytest

from broker.node_files import RabbitMissing, environment, find_server, render_config
from broker.node_info import NodeInfo, Wish, plan

WISH = Wish(agents=("cam-1",), models=(), ports={"amqp": 4001, "mqtt": 4002}, vhost="/")
PORTS = {"amqp": 4001, "mqtt": 4002, "dist": 4003, "epmd": 4004}


def stopped(**more: object) -> NodeInfo:
    fields = {"name": "x@localhost", "ports": PORTS, "passwords": {"cam-1": "old"}}
    return NodeInfo(**{**fields, "agents": ("cam-1",), **more})  # type: ignore[arg-type] # any field


def test_rabbitmq_that_is_missing_is_said_with_the_command_that_installs_it() -> None:
    with pytest.raises(RabbitMissing, match="sudo apt-get install rabbitmq-server"):
        find_server(folders=[], path="/nowhere")


@pytest.mark.parametrize("version", [(3, 10), (4, 0), ()])
def test_every_listener_is_bound_to_the_loopback_address(
    version: tuple[int, ...],
) -> None:
    text = render_config(stopped(), Path("/f"), version)
    listeners = [line for line in text.splitlines() if "listeners.tcp" in line]

    assert listeners == [
        "listeners.tcp.local = 127.0.0.1:4001",
        "mqtt.listeners.tcp.local = 127.0.0.1:4002",
    ]


def test_a_key_of_rabbitmq_4_is_not_given_to_3_which_would_not_boot() -> None:
    assert "anonymous_login_user" not in render_config(stopped(), Path("/f"), (3, 10))
    assert "anonymous_login_user" in render_config(stopped(), Path("/f"), (4, 0))


def test_the_system_s_own_node_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITMQ_NODENAME", "rabbit@production")
    monkeypatch.setenv("RABBITMQ_MNESIA_DIR", "/var/lib/rabbitmq/mnesia")
    variables = environment(stopped(), Path("/f"))

    assert variables["RABBITMQ_NODENAME"] == "x@localhost"
    assert "RABBITMQ_MNESIA_DIR" not in variables


def test_a_node_that_is_started_again_keeps_ports_and_passwords() -> None:
    again = plan(Wish(("cam-1", "cam-2"), ("m",), {}, "/"), stopped())

    assert again.ports == PORTS
    assert again.passwords["cam-1"] == "old"
    assert again.agents == ("cam-1", "cam-2")
    assert len(again.passwords["cam-2"]) >= 16


def test_a_new_node_has_four_ports_of_its_own_and_the_ones_asked_for() -> None:
    ports = plan(WISH, None).ports

    assert set(ports) == set(PORTS)
    assert len(set(ports.values())) == 4
    assert (ports["amqp"], ports["mqtt"]) == (4001, 4002)


def test_the_urls_of_a_node_carry_credentials_and_vhost() -> None:
    info = stopped(passwords={"cam-1": "p@ss/word"}, vhost="a/b")

    assert info.amqp_url("cam-1") == "amqp://cam-1:p%40ss%2Fword@127.0.0.1:4001/a%2Fb"
    assert info.mqtt_url("cam-1") == "mqtt://cam-1:p%40ss%2Fword@127.0.0.1:4002"
