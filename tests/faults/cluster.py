"""A private RabbitMQ cluster in a folder: several nodes of one machine, loopback only.

Its queues are declared once all members are there, so that each quorum queue has a
replica on each. The epmd belongs to the cluster: a member that is killed takes with
it nothing that the others need.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NoReturn, Self

from broker.node import Node, start_epmd, until_listening
from broker.node_files import COOKIE, environment
from broker.node_info import (
    NodeError,
    NodeInfo,
    Wish,
    plan,
    read_info,
    save_info,
    write_private,
)
from broker.node_server import Server, chosen_server
from broker.process import alive, birth_of, end

__all__ = ["Cluster"]

EPMD_TIMEOUT_S: Final = 10.0
STOP_TIMEOUT_S: Final = 30.0
MEMBERS: Final = 3


class Cluster:
    """Nodes that hold the same queues, users and sessions.

    Args:
        folder: a folder for each member; a stopped cluster that is started again
            keeps its ports, passwords and data.
        models: models whose queues exist from the start.
        agents: agents that may connect.
        size: how many members; a majority of them must run.
        server: see `broker.node.Node`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        models: Sequence[str] = (),
        agents: Sequence[str] = ("agent-1",),
        size: int = MEMBERS,
        server: Server | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self._server = server or chosen_server()
        self._wish = Wish(tuple(agents), tuple(models), {}, "/")
        self._epmd: dict[int, str | None] = {}
        self.nodes: tuple[Node, ...] = tuple(
            Node(
                self.folder / f"node-{number}",
                models=models,
                agents=agents,
                server=self._server,
            )
            for number in range(1, size + 1)
        )

    def amqp_url(self, user: str) -> str:
        """Where `user` connects by AMQP: every member, in turn."""
        infos = [node.info for node in self.nodes]
        return _joined(infos[0].amqp_url(user), [info.amqp_port for info in infos])

    def mqtt_url(self, user: str) -> str:
        """Where `user` connects by MQTT: every member, in turn."""
        infos = [node.info for node in self.nodes]
        return _joined(infos[0].mqtt_url(user), [info.mqtt_port for info in infos])

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start every member, join those that are new, and declare all queues.

        Raises:
            RabbitMissing: RabbitMQ is not installed.
            NodeError: a member did not come up or did not join.
        """
        try:
            fresh = self._write_members()
            await self._start_epmd()
            # At once: a member that was stopped waits for the one stopped after it.
            async with asyncio.TaskGroup() as starts:
                for node in self.nodes:
                    starts.create_task(node.start())
            if fresh:
                await self._join()
        except BaseException as error:
            await self.stop()
            if isinstance(error, ExceptionGroup):
                raise error.exceptions[0] from error
            raise

    async def stop(self) -> None:
        """Stop every member and the epmd; returns when none is left."""
        try:
            async with asyncio.TaskGroup() as stops:
                for node in self.nodes:
                    stops.create_task(node.stop())
        finally:
            await end(self._epmd, STOP_TIMEOUT_S)
            self._epmd = {}

    def _write_members(self) -> bool:
        """Give each member what all share; whether any of them is new."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if read_info(self.nodes[-1].folder) is not None:
            return False
        first = replace(plan(self._wish, None), clustered=True)
        cookie = secrets.token_hex(16)
        taken = dict(first.ports)
        for number, node in enumerate(self.nodes):
            info = first if number == 0 else self._another(first, taken)
            taken |= {f"{number} {key}": port for key, port in info.ports.items()}
            save_info(node.folder, info)
            write_private(node.folder / COOKIE, cookie, mode=0o400)
        return True

    def _another(self, first: NodeInfo, taken: dict[str, int]) -> NodeInfo:
        while True:
            info = plan(self._wish, None)
            ports = {**info.ports, "epmd": first.epmd_port}
            if not set(info.ports.values()) & set(taken.values()):
                return replace(
                    info, ports=ports, passwords=first.passwords, clustered=True
                )

    async def _start_epmd(self) -> None:
        info = read_info(self.nodes[0].folder)
        assert info is not None
        folder = self.folder
        epmd = start_epmd(
            self._server,
            info.epmd_port,
            folder,
            environment(info, folder),
            folder / "epmd.log",
        )
        self._epmd = {epmd: birth_of(epmd)}

        def fail() -> NoReturn:
            raise NodeError(f"epmd did not start in {folder}; see epmd.log there")

        async with asyncio.timeout(EPMD_TIMEOUT_S):
            await until_listening(info.epmd_port, epmd, fail)

    async def _join(self) -> None:
        first, *others = self.nodes
        for node in others:
            await node.control("stop_app")
            await node.control("reset")
            await node.control("join_cluster", first.info.name)
            await node.control("start_app")
        await first.control(
            "import_definitions", str(first.folder / "definitions.json")
        )

    def running(self) -> int:
        """How many members' processes are alive."""
        return sum(
            node.info.pid is not None and alive(node.info.pid) for node in self.nodes
        )


def _joined(url: str, ports: Sequence[int]) -> str:
    head, _, tail = url.rpartition("@")
    _, slash, vhost = tail.partition("/")
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    return f"{head}@{hosts}{slash}{vhost}"
