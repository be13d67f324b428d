"""Where a load goes in, from what a person typed: URLs, or a private broker's folder."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

from broker.link import without_password
from broker.mqtt.target import MqttTarget
from broker.node import Node, NodeInfo
from broker.topics import check_id
from overspill.load.ways import AsAgents, AsDevices, Hears, IntoQueue, Way

DEFAULT_BROKER: Final = Path(".overspill/broker")
LOCAL_BROKER: Final = "mqtt://127.0.0.1:1883"
# May publish requests and declare a queue for the results.
QUEUE_USER: Final = "worker"

Door = Callable[[Hears], Way]


class Via(StrEnum):
    """The way in."""

    MQTT = "mqtt"
    DEVICE = "device"
    QUEUE = "queue"


class NoDoor(ValueError):
    """What was typed does not say where to connect, or as whom."""


def find_door(
    via: Via,
    urls: Sequence[str],
    folder: Path | None,
    *,
    senders: int,
    spill: bool = False,
) -> Door:
    """What makes a way in, anew for each run.

    Args:
        via: which way.
        urls: brokers with credentials; none to take them from `folder`.
        folder: of a private RabbitMQ; None for the usual one.
        senders: agents or devices.
        spill: whether devices ask for the cloud.

    Raises:
        NoDoor: something is missing or does not fit.
        BadUrl: a URL names no broker.
    """
    if urls and folder is not None:
        raise NoDoor("give --url or --broker, not both")
    match via:
        case Via.MQTT:
            agents = _agents(urls, folder, senders)
            return lambda hears: AsAgents(_run(), agents, hears)
        case Via.DEVICE:
            if folder is not None:
                raise NoDoor("devices connect to an agent's local broker: give --url")
            target = MqttTarget.from_url(_only(urls or [LOCAL_BROKER]))
            return lambda hears: AsDevices(
                _run(), target, hears, devices=senders, spill=spill
            )
        case Via.QUEUE:
            url = _only(urls) if urls else _node(folder).amqp_url(QUEUE_USER)
            return lambda hears: IntoQueue(_run(), url, hears, agents=senders)


def _agents(
    urls: Sequence[str], folder: Path | None, senders: int
) -> list[tuple[str, MqttTarget]]:
    if not urls:
        info = _node(folder)
        urls = [info.mqtt_url(agent) for agent in info.agents]
    targets = [MqttTarget.from_url(url) for url in urls]
    if len(targets) < senders:
        raise NoDoor(
            f"{senders} agents need as many credentials, and {len(targets)} are known: "
            "give --url once for each, or add agents with `overspill broker up --agents`"
        )
    return [(_agent(target), target) for target in targets[:senders]]


def _agent(target: MqttTarget) -> str:
    if not target.username:
        raise NoDoor(
            f"{target} names no agent: write mqtt://AGENT:PASSWORD@HOST, or use "
            "--via device for an agent's local broker"
        )
    return check_id("agent", target.username)


def _only(urls: Sequence[str]) -> str:
    if len(urls) > 1:
        shown = ", ".join(map(without_password, urls))
        raise NoDoor(f"this way takes one --url, not {shown}")
    return urls[0]


def _node(folder: Path | None) -> NodeInfo:
    where = folder or DEFAULT_BROKER
    if not (where / "node.json").exists():
        raise NoDoor(
            f"{where} holds no private broker: give --url, or --broker with the folder "
            "of `overspill broker up` (.overspill/up/rabbitmq of `overspill up`)"
        )
    return Node.load(where).info


def _run() -> str:
    """Ids of a run: what answered one of the same id before would answer it again."""
    return f"load-{secrets.token_hex(4)}"
