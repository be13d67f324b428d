"""Ask a private RabbitMQ for what only its own command can do."""

from __future__ import annotations

from typing import Final

from broker.node import Node

# A busy machine is slow to start the Erlang of each command.
TIMEOUT_S: Final = 300.0


async def rabbitmqctl(node: Node, *arguments: str) -> str:
    """Run `rabbitmqctl` against a node that runs; gives what it printed."""
    return await node.control(*arguments, timeout_s=TIMEOUT_S)
