"""Find out what is missing here before anything starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from broker.node_files import find_server
from edge_agent.adapters.control import MAX_PATH_BYTES
from overspill.mosquitto import find_mosquitto
from overspill.system.places import AgentPlace

NEEDED: Final = ("tensorflow", "ai_edge_litert", "amqtt", "sqlalchemy")


class CannotStart(Exception):
    """The system cannot be started here."""


def check(folder: Path, agents: Sequence[AgentPlace]) -> None:
    """See that a system can be started in a folder.

    Raises:
        RabbitMissing, MosquittoMissing: it is not installed.
        CannotStart: a Python package is not, or the folder's path is too long.
    """
    find_server()
    find_mosquitto()
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise CannotStart(
            f"the Python package {missing[0]} is not installed: run "
            "`pip install 'overspill[all]'`"
        )
    longest = max(
        (place.control_socket for place in agents),
        key=lambda path: len(os.fsencode(path)),
    )
    if len(os.fsencode(longest)) > MAX_PATH_BYTES:
        raise CannotStart(
            f"{folder} is too long a path for the agents' sockets: choose "
            "another with --folder, such as /tmp/overspill"
        )
