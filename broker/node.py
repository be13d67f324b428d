"""A private RabbitMQ in a folder, for demos and tests. Loopback only, on every port.

A node is two processes that we start and end by their own ids: epmd, which Erlang
needs to find the node, and the node itself. Both outlive this program if it wants.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NoReturn, Self

import structlog

from broker.node_files import (
    RabbitMissing,
    environment,
    find_server,
    server_log,
    write_files,
)
from broker.node_info import NodeError, NodeInfo, Wish, plan, read_info, save_info
from broker.node_server import Server, chosen_server
from broker.ports import LOOPBACK, is_free
from broker.process import NotStarted, alive, birth_of, end, spawn

__all__ = [
    "Node",
    "NodeError",
    "NodeInfo",
    "PortTaken",
    "RabbitMissing",
    "find_server",
]

log = structlog.get_logger(__name__)

START_TIMEOUT_S: Final = 90.0
STOP_TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.1
LOG_LINES_SHOWN: Final = 15


class PortTaken(NodeError):
    """Another process listens on a port that the node wants."""


class Node:
    """A RabbitMQ node that lives in one folder.

    Args:
        folder: its configuration, data, logs and credentials; made when missing.
            A stopped node that is started again keeps its ports and passwords.
        models: models whose queues exist from the start.
        agents: agents that may connect, each with a password of its own.
        amqp_port: chosen free, like each other port, when None.
        mqtt_port: see `amqp_port`.
        vhost: one a tenant.
        server: the RabbitMQ to run; when None the one that the environment names
            (see `broker.node_server`), else this system's.
    """

    def __init__(  # noqa: PLR0913 - what a node is; all but its folder by name
        self,
        folder: Path,
        *,
        models: Sequence[str] = (),
        agents: Sequence[str] = ("agent-1",),
        amqp_port: int | None = None,
        mqtt_port: int | None = None,
        vhost: str = "/",
        server: Server | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self._server = server
        asked = {"amqp": amqp_port, "mqtt": mqtt_port}
        self._wish = Wish(
            agents=tuple(agents),
            models=tuple(models),
            ports={key: port for key, port in asked.items() if port is not None},
            vhost=vhost,
        )
        self._info: NodeInfo | None = None

    @classmethod
    def load(cls, folder: Path) -> Node:
        """The node that was started in `folder`, whether it runs or not.

        Raises:
            NodeError: no node was ever started there.
        """
        info = read_info(folder)
        if info is None:
            raise NodeError(
                f"there is no broker in {folder}: start one with `overspill broker up`"
            )
        node = cls(folder, models=info.models, agents=info.agents, vhost=info.vhost)
        node._info = info
        return node

    @property
    def info(self) -> NodeInfo:
        """What is known of the node.

        Raises:
            NodeError: it was not started yet.
        """
        if self._info is None:
            raise NodeError(f"the broker in {self.folder} was not started yet")
        return self._info

    def amqp_url(self, user: str) -> str:
        """Where `user` connects by AMQP, password included."""
        return self.info.amqp_url(user)

    def mqtt_url(self, user: str) -> str:
        """Where `user` connects by MQTT, password included."""
        return self.info.mqtt_url(user)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, timeout_s: float = START_TIMEOUT_S) -> NodeInfo:
        """Start the node, or find it running, and return once it takes clients.

        Raises:
            RabbitMissing: RabbitMQ is not installed.
            PortTaken: something else listens on a port that was asked for.
            NodeError: it did not come up; the message ends with its log.
        """
        server = self._chosen()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(self.folder / "lock"):
            old = read_info(self.folder)
            info = plan(self._wish, old)
            if old is not None and old.running:
                return self._found(old, info)
            await end(info.processes, STOP_TIMEOUT_S)
            _check_free(info)
            self._write_files(info, server)
            try:
                async with asyncio.timeout(timeout_s):
                    self._info = await self._boot(info, server)
            except TimeoutError:
                await self._abort()
                raise NodeError(
                    f"RabbitMQ in {self.folder} was not up within {timeout_s:g} s; the "
                    f"machine may be busy, or its log says why:\n{self._log_tail()}"
                ) from None
            except NotStarted as error:
                await self._abort()
                raise NodeError(f"no broker in {self.folder}: {error}") from error
            except BaseException:
                await self._abort()
                raise
        log.info("broker up", folder=str(self.folder), version=self._info.version)
        return self._info

    async def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop the node and its epmd; returns when neither is left."""
        info = self._info or read_info(self.folder)
        if info is None:
            return
        await end(info.processes, timeout_s)
        self._save(replace(info, pid=None, epmd_pid=None, births={}))
        log.info("broker down", folder=str(self.folder))

    async def restart(self, timeout_s: float = START_TIMEOUT_S) -> NodeInfo:
        """Stop and start on the same ports, passwords and data."""
        await self.stop()
        return await self.start(timeout_s)

    async def kill(self) -> None:
        """End the node at once, as a power cut would; `start` brings it back."""
        info = self.info
        await end(info.processes, 0)
        self._save(replace(info, pid=None, epmd_pid=None, births={}))

    async def control(
        self,
        *arguments: str | Path,
        program: str = "rabbitmqctl",
        timeout_s: float = START_TIMEOUT_S,
    ) -> str:
        """Run `rabbitmqctl` against the node and give what it said.

        Args:
            arguments: the command and its own.
            program: `rabbitmq-queues` and others of its kind work too.
            timeout_s: it is ended after so long.

        Raises:
            NodeError: it failed, or did not end in time.
        """
        command = self._chosen().command(
            program, *map(str, arguments), folder=self.folder
        )
        return await _output(command, self._environment(self.info), timeout_s, program)

    async def queues(self) -> dict[str, int]:
        """The messages in each queue, by name, as `rabbitmqctl` counts them.

        Raises:
            NodeError: the node does not answer.
        """
        words = f"-q -p {self.info.vhost} --formatter json list_queues name messages"
        out = await self.control(*words.split())
        try:
            return {row["name"]: row["messages"] for row in json.loads(out)}
        except (ValueError, TypeError, KeyError):
            raise NodeError(
                f"RabbitMQ in {self.folder} did not answer: {out}"
            ) from None

    def _chosen(self) -> Server:
        if self._server is None:
            self._server = chosen_server()
        return self._server

    def _write_files(self, info: NodeInfo, server: Server) -> None:
        write_files(info, self.folder, server.version)

    def _environment(self, info: NodeInfo) -> dict[str, str]:
        return environment(info, self.folder)

    def _found(self, running: NodeInfo, wanted: NodeInfo) -> NodeInfo:
        if running.agents != wanted.agents or running.ports != wanted.ports:
            raise NodeError(
                f"the broker in {self.folder} already runs, with other agents or "
                "ports: stop it with `overspill broker down`, then start it"
            )
        self._info = running
        return running

    async def _boot(self, info: NodeInfo, server: Server) -> NodeInfo:
        variables = self._environment(info)
        output = self.folder / "log" / "start.log"
        output.unlink(missing_ok=True)
        server_log(self.folder).unlink(missing_ok=True)
        if not info.clustered:
            epmd = start_epmd(server, info.epmd_port, self.folder, variables, output)
            info = replace(info, epmd_pid=epmd, births={"epmd": birth_of(epmd)})
            self._save(info)
            await until_listening(info.epmd_port, epmd, self._fail)
        command = server.command("rabbitmq-server", folder=self.folder)
        pid = spawn(command, variables, output)
        info = replace(info, pid=pid, births={**info.births, "node": birth_of(pid)})
        self._save(info)
        while not self._says_it_is_up():
            if not alive(pid):
                self._fail()
            await asyncio.sleep(POLL_S)
        for port in (info.amqp_port, info.mqtt_port):
            await until_listening(port, pid, self._fail)
        said = self._log_text() + self._output_text()
        found = re.search(r"RabbitMQ(?:\x1b\[0m)? (\d+\.\S+)", said)
        info = replace(info, version=found.group(1) if found else "")
        self._save(info)
        return info

    def _fail(self) -> NoReturn:
        tail = self._log_tail()
        if "eaddrinuse" in tail or "in use" in tail.lower():
            raise PortTaken(
                f"RabbitMQ in {self.folder} did not start, because a port is in use; "
                f"its log says:\n{tail}"
            )
        raise NodeError(
            f"RabbitMQ in {self.folder} did not start; its log says:\n{tail}"
        )

    async def _abort(self) -> None:
        info = read_info(self.folder)
        if info is not None:
            self._info = info
            await self.kill()

    def _says_it_is_up(self) -> bool:
        # A log that is written to very fast, as with a thousand users to load, drops
        # lines, this one too.
        return (
            "Server startup complete" in self._log_text()
            or "Starting broker... completed" in self._output_text()
        )

    def _log_text(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return server_log(self.folder).read_text(errors="replace")
        return ""

    def _output_text(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "log" / "start.log").read_text(errors="replace")
        return ""

    def _log_tail(self) -> str:
        """The errors of the log where it has some, else its last lines."""
        lines = (self._log_text() + self._output_text()).splitlines()
        lines = [line for line in lines if line.strip()]
        errors = [line for line in lines if "[error]" in line]
        return "\n".join(errors[:LOG_LINES_SHOWN] or lines[-LOG_LINES_SHOWN:])

    def _save(self, info: NodeInfo) -> None:
        self._info = info
        save_info(self.folder, info)


def _check_free(info: NodeInfo) -> None:
    for key, port in info.ports.items():
        if key == "epmd" and info.clustered:
            continue  # it belongs to the cluster and runs before its members
        if not is_free(port):
            raise PortTaken(
                f"port {port} ({key}) of 127.0.0.1 is in use by another process: stop "
                "it, or start the broker in another folder or on another port"
            )


def start_epmd(
    server: Server, port: int, folder: Path, variables: dict[str, str], output: Path
) -> int:
    """Start the epmd of a node or a cluster; gives its process id."""
    words = ("-port", str(port), "-address", LOOPBACK)
    return spawn(server.command("epmd", *words, folder=folder), variables, output)


async def until_listening(port: int, pid: int, fail: Callable[[], NoReturn]) -> None:
    """Return once a process takes connections at a port; `fail` when it has ended."""
    while True:
        try:
            _, writer = await asyncio.open_connection(LOOPBACK, port)
        except OSError:
            if not alive(pid):
                fail()
            await asyncio.sleep(POLL_S)
        else:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return


async def _output(
    command: list[str], environment: dict[str, str], timeout_s: float, program: str
) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, _ = await process.communicate()
    except TimeoutError:
        raise NodeError(f"{program} did not answer in {timeout_s:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = out.decode(errors="replace")
    if process.returncode:
        raise NodeError(f"{program} failed: {said.strip()}")
    return said


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep two starts in one folder apart."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NodeError(
                f"another process is starting a broker in {path.parent}: wait for it"
            ) from None
        yield
