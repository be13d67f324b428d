"""Ask a private RabbitMQ for what only its own command can do."""

from __future__ import annotations

import asyncio
from typing import Final

from broker.node import Node, find_server

TIMEOUT_S: Final = 60.0


async def rabbitmqctl(node: Node, *arguments: str) -> str:
    """Run `rabbitmqctl` against a node that runs; gives what it printed."""
    command = find_server().parent / "rabbitmqctl"
    process = await asyncio.create_subprocess_exec(
        str(command),
        *arguments,
        env=node._environment(node.info),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            out, _ = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    said = out.decode(errors="replace")
    assert process.returncode == 0, f"rabbitmqctl {' '.join(arguments)}: {said}"
    return said
