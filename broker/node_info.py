"""What is known of a private node, and the file that keeps it. Starts nothing."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final
from urllib.parse import quote

from broker.ports import free_port
from broker.process import is_same
from broker.topics import check_id

STANDARD_USERS: Final = ("admin", "worker", "fleet")
PORTS: Final = ("amqp", "mqtt", "dist", "epmd")
FILE: Final = "node.json"


class NodeError(Exception):
    """The node could not be started, stopped or asked."""


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """What is known of a node; saved beside its data, readable by its owner only.

    `pid` and `epmd_pid` are None while it is stopped; `births` holds when each
    process began, so that an id that was used again is not taken for ours. A member
    of a cluster (`clustered`) shares the epmd, the passwords and the cookie of all.
    """

    name: str
    ports: Mapping[str, int]
    passwords: Mapping[str, str] = field(repr=False)
    agents: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    vhost: str = "/"
    version: str = ""
    pid: int | None = None
    epmd_pid: int | None = None
    births: Mapping[str, str] = field(default_factory=dict)
    clustered: bool = False

    @property
    def amqp_port(self) -> int:
        """Where AMQP is spoken."""
        return self.ports["amqp"]

    @property
    def mqtt_port(self) -> int:
        """Where MQTT is spoken."""
        return self.ports["mqtt"]

    @property
    def dist_port(self) -> int:
        """Where the Erlang node is spoken to by `rabbitmqctl`."""
        return self.ports["dist"]

    @property
    def epmd_port(self) -> int:
        """Where epmd tells of the Erlang node."""
        return self.ports["epmd"]

    def amqp_url(self, user: str) -> str:
        """Where `user` connects by AMQP, password included."""
        who = f"{quote(user, safe='')}:{quote(self.passwords[user], safe='')}"
        vhost = quote(self.vhost, safe="")
        return f"amqp://{who}@127.0.0.1:{self.amqp_port}/{vhost}"

    def mqtt_url(self, user: str) -> str:
        """Where `user` connects by MQTT, password included."""
        who = f"{quote(user, safe='')}:{quote(self.passwords[user], safe='')}"
        return f"mqtt://{who}@127.0.0.1:{self.mqtt_port}"

    @property
    def running(self) -> bool:
        """Whether the node's own process is alive."""
        return self.pid is not None and is_same(self.pid, self.births.get("node"))

    @property
    def processes(self) -> dict[int, str | None]:
        """The ids of its processes, and when each began."""
        pids = {"node": self.pid, "epmd": self.epmd_pid}
        return {
            pid: self.births.get(key) for key, pid in pids.items() if pid is not None
        }


@dataclass(frozen=True, slots=True)
class Wish:
    """What a node should be: agents, models, ports asked for, vhost."""

    agents: tuple[str, ...]
    models: tuple[str, ...]
    ports: Mapping[str, int]
    vhost: str


def plan(wish: Wish, old: NodeInfo | None) -> NodeInfo:
    """The node to start: the old one's ports and passwords, and what is wished for.

    Raises:
        BadId: an agent or a model has a name that would change the routing.
    """
    for agent in wish.agents:
        check_id("agent", agent)
    for model in wish.models:
        check_id("model", model)
    if old is None:
        return NodeInfo(
            name=f"overspill-{secrets.token_hex(4)}@localhost",
            ports=_ports({}, wish.ports),
            passwords=_passwords({}, wish.agents),
            agents=wish.agents,
            models=wish.models,
            vhost=wish.vhost,
        )
    agents = tuple(dict.fromkeys([*old.agents, *wish.agents]))
    return replace(
        old,
        ports=_ports(old.ports, wish.ports),
        passwords=_passwords(old.passwords, agents),
        agents=agents,
        models=tuple(dict.fromkeys([*old.models, *wish.models])),
    )


def _passwords(old: Mapping[str, str], agents: Sequence[str]) -> dict[str, str]:
    fresh = {user: secrets.token_urlsafe(18) for user in (*STANDARD_USERS, *agents)}
    return {**fresh, **old}


def _ports(old: Mapping[str, int], asked: Mapping[str, int]) -> dict[str, int]:
    """The ports to use: asked for, used before, or free, in this order."""
    ports = {**old, **asked}
    for key in PORTS:
        if key not in ports:
            ports[key] = free_port(avoid=ports.values())
    return ports


def read_info(folder: Path) -> NodeInfo | None:
    """The node that was saved in a folder; None when there never was one.

    Raises:
        NodeError: the file is damaged.
    """
    path = folder / FILE
    try:
        fields = json.loads(path.read_text())
        return NodeInfo(
            **{
                **fields,
                "agents": tuple(fields["agents"]),
                "models": tuple(fields["models"]),
            }
        )
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise NodeError(
            f"{path} is not readable ({error}): stop what runs there and delete it"
        ) from error


def save_info(folder: Path, info: NodeInfo) -> None:
    """Keep what is known of a node in its folder, readable by its owner only."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(folder / FILE, json.dumps(asdict(info), indent=2))


def write_private(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)
