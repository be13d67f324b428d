"""A system's life: who starts after whom, when each is ready, and who ends first.

RabbitMQ, a pool of workers, the fleet's daemon, and agents each with a local side of
its own: the first behind a Mosquitto, the others with the broker they embed. Agents
never share a local broker, because each hears every request on the one it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final, Self

from broker.node import Node, NodeError
from edge_agent.adapters.control import ControlError, ask
from overspill.example import Example
from overspill.mosquitto import listens, private_mosquitto
from overspill.program import (
    CommandFailed,
    Program,
    ProgramEnded,
    environment,
    follow_command,
    python,
    run_command,
)
from overspill.system import members
from overspill.system.claim import Claim
from overspill.system.places import AgentPlace, places
from overspill.system.preflight import check
from overspill.tasks import to_the_end, together

NODE_TIMEOUT_S: Final = 120.0
WORKER_TIMEOUT_S: Final = 180.0
AGENT_TIMEOUT_S: Final = 60.0
FLEET_TIMEOUT_S: Final = 60.0
STATUS_TIMEOUT_S: Final = 5.0

StateChanged = Callable[[str, str], None]
"""Called with a part's name and `starting`, `ready` or `stopping`."""


class System:
    """Use as `async with`: ready inside, and nothing is left after it.

    Args:
        folder: everything it writes; made when missing. What a system left there is
            found again, except for processes, which are ended.
        example: models and bundles.
        workers: how many share the queue.
        agents: how many, each with a device of its own.
        device_port: where the first agent's devices connect; a free one when None.
        audit_share: of what agents are sure of, how much they let the cloud check; as
            agents do it when None.
        changed: told how far each part has come.
    """

    def __init__(  # noqa: PLR0913 - what a system can be, with defaults
        self,
        folder: Path,
        example: Example,
        *,
        workers: int = 2,
        agents: int = 3,
        device_port: int | None = None,
        audit_share: float | None = None,
        changed: StateChanged = lambda _part, _state: None,
    ) -> None:
        self.folder = folder.absolute()
        self.example = example
        self.logs = self.folder / "logs"
        self.home = self.folder / "fleet"
        self.agents = places(self.folder, agents, device_port)
        self._worker_count = workers
        self._audit_share = audit_share
        self._changed = changed
        self._names = tuple(place.agent for place in self.agents)
        self._node = Node(
            self.folder / "rabbitmq", models=[example.model], agents=self._names
        )
        self._node_up = asyncio.Event()
        self._published = asyncio.Event()
        self._agents_up = asyncio.Event()
        self._started: list[Program] = []
        self._workers: list[Program] = []
        self._agents: list[Program] = []
        self._others: list[Program] = []
        self._claim = Claim(self.folder)

    # --- what is there ----------------------------------------------------------------

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of all that starts, as `changed` hears them."""
        workers = (f"worker-{n}" for n in range(1, self._worker_count + 1))
        return ("rabbitmq", "mosquitto", "registry", *workers, *self._names, "fleet")

    @property
    def programs(self) -> tuple[Program, ...]:
        """Every process started so far, RabbitMQ's own excepted."""
        return tuple(self._started)

    @property
    def rabbitmq_version(self) -> str:
        """Of the node that runs."""
        return self._node.info.version

    @property
    def rabbitmq_ports(self) -> dict[str, int]:
        """The node's ports on the loopback address, by what they are for."""
        return dict(self._node.info.ports)

    @property
    def rabbitmq_pids(self) -> tuple[int, ...]:
        """The node's own processes."""
        info = self._node.info
        return tuple(pid for pid in (info.pid, info.epmd_pid) if pid is not None)

    @property
    def operator_variables(self) -> dict[str, str]:
        """The settings of the operator's commands."""
        return {
            "OVERSPILL_FLEET_HOME": str(self.home),
            "OVERSPILL_FLEET_AMQP_URL": self._node.amqp_url("fleet"),
        }

    @property
    def _root_file(self) -> Path:
        return self.home / "trust" / "root.json"

    def amqp_url(self, user: str) -> str:
        """Where `user` connects to RabbitMQ, password included."""
        return self._node.amqp_url(user)

    def died(self) -> list[Program]:
        """Programs that have ended though nobody asked them to."""
        return [program for program in self._started if program.died]

    def crippled_by(self) -> Program | None:
        """A program whose end the system cannot make up for; None while there is none.

        A worker may go, as long as another is left.
        """
        for program in self.died():
            if program not in self._workers:
                return program
        dead = [worker for worker in self._workers if worker.died]
        return dead[0] if dead and len(dead) == len(self._workers) else None

    async def status(self, place: AgentPlace) -> dict[str, Any] | None:
        """What an agent says of itself; None when it does not answer."""
        try:
            return await ask(
                place.control_socket, {"do": "status"}, timeout_s=STATUS_TIMEOUT_S
            )
        except ControlError:
            return None

    async def operate(self, *words: str) -> tuple[int, str, str]:
        """Run one of the operator's commands, as `overspill` WORDS.

        Returns:
            Its exit code, output and errors.

        Raises:
            CommandFailed: it took too long.
        """
        variables = environment(**self.operator_variables)
        return await run_command(python("overspill", *words), variables)

    async def follow(self, hear: Callable[[str], None], *words: str) -> tuple[int, str]:
        """As `operate`, but hear each line of output when it is written.

        Returns:
            Its exit code and errors.

        Raises:
            CommandFailed: it took too long.
        """
        variables = environment(**self.operator_variables)
        return await follow_command(python("overspill", *words), variables, hear)

    # --- life -----------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        check(self.folder, self.agents)
        self.logs.mkdir(parents=True, exist_ok=True)
        self._claim.take()
        try:
            await self._claim.end_leftovers()
            await together(
                self._start_node(),
                self._start_mosquitto(),
                self._publish_first(),
                self._start_workers(),
                self._start_agents(),
                self._start_fleet(),
            )
        except BaseException:
            await to_the_end(self._stop())
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await to_the_end(self._stop())

    async def _start(self, program: Program) -> None:
        await program.start()
        self._started.append(program)
        self._claim.note(self._started)

    async def _start_node(self) -> None:
        self._changed("rabbitmq", "starting")
        await self._node.start(NODE_TIMEOUT_S)
        self._node_up.set()
        self._changed("rabbitmq", "ready")

    async def _start_mosquitto(self) -> None:
        self._changed("mosquitto", "starting")
        port = next(place.port for place in self.agents if not place.embedded)
        program = private_mosquitto(self.folder, port, log=self.logs / "mosquitto.log")
        self._others.append(program)
        await self._start(program)
        await program.until(lambda: listens(port), within_s=AGENT_TIMEOUT_S)
        self._changed("mosquitto", "ready")

    async def _publish_first(self) -> None:
        """Give the fleet its keys, whose root agents must trust, and its first version."""
        self._changed("registry", "starting")
        variables = environment(OVERSPILL_FLEET_HOME=str(self.home))
        if not self._root_file.exists():
            code, _, err = await run_command(
                python("overspill", "trust", "init", "--dev"), variables
            )
            if code:
                raise CommandFailed(f"no keys were made: {err.strip()}")
        words = ("model", "publish", str(self.example.bundles[0]))
        code, _, err = await run_command(python("overspill", *words), variables)
        if code:
            raise CommandFailed(f"the first version was not published: {err.strip()}")
        self._published.set()
        self._changed("registry", "ready")

    async def _start_workers(self) -> None:
        """Start the pool beside RabbitMQ: TensorFlow takes as long as it does."""
        url = await self._worker_url()
        await together(
            *(
                self._start_worker(f"worker-{number}", url)
                for number in range(1, self._worker_count + 1)
            )
        )

    async def _worker_url(self) -> str:
        """The pool's URL, which is settled soon after the node begins to start."""
        while True:
            with contextlib.suppress(NodeError):
                info = Node.load(self._node.folder).info
                if info.epmd_pid is not None:
                    return info.amqp_url("worker")
            await asyncio.sleep(0.05)

    async def _start_worker(self, name: str, url: str) -> None:
        self._changed(name, "starting")
        log = self.logs / f"{name}.log"
        log.write_bytes(b"")
        program = members.worker(
            name,
            log=log,
            url=url,
            example=self.example,
            registry=self.home / "registry",
            pool=self._worker_count,
        )
        self._workers.append(program)
        await self._start(program)
        said = f"READY {name} ".encode()

        async def consumes() -> bool:
            return said in log.read_bytes()

        await program.until(consumes, within_s=WORKER_TIMEOUT_S)
        self._changed(name, "ready")

    async def _start_agents(self) -> None:
        await self._published.wait()
        await self._node_up.wait()
        await together(*map(self._start_agent, self.agents))
        self._agents_up.set()

    async def _start_agent(self, place: AgentPlace) -> None:
        self._changed(place.agent, "starting")
        place.state_dir.mkdir(exist_ok=True)
        program = members.agent(
            place,
            log=self.logs / f"{place.agent}.log",
            url=self._node.mqtt_url(place.agent),
            bundle=self.example.bundles[0],
            trusted_root=self._root_file,
            registry=self.home / "registry",
            audit_share=self._audit_share,
        )
        self._agents.append(program)
        await self._start(program)

        async def serves() -> bool:
            said = await self.status(place)
            return said is not None and _serves(said, self.example.model)

        await program.until(serves, within_s=AGENT_TIMEOUT_S)
        self._changed(place.agent, "ready")

    async def _start_fleet(self) -> None:
        await self._published.wait()
        await self._node_up.wait()
        self._changed("fleet", "starting")
        program = members.fleet(
            log=self.logs / "fleet.log", variables=self.operator_variables
        )
        self._others.append(program)
        await self._start(program)
        await self._agents_up.wait()
        await program.until(self._all_reported, within_s=FLEET_TIMEOUT_S)
        self._changed("fleet", "ready")

    async def _all_reported(self) -> bool:
        """Whether a rollout that begins now would reach every agent at once."""
        code, out, err = await self.operate("device", "list", "--json")
        if code:
            raise CommandFailed(f"`overspill device list` failed: {err.strip()}")
        return {each["agent"] for each in json.loads(out)} >= set(self._names)

    async def _stop(self) -> None:
        """End everything: who asks before who answers, and RabbitMQ last."""
        for programs in (self._agents, [*self._workers, *self._others]):
            for program in programs:
                self._changed(program.name, "stopping")
            await _each(program.stop() for program in programs)
        self._changed("rabbitmq", "stopping")
        with contextlib.suppress(NodeError):
            # As it is now: somebody may have restarted it from outside meanwhile.
            await Node.load(self._node.folder).stop()
        self._claim.release()


def _serves(status: dict[str, Any], model: str) -> bool:
    slot = status["models"].get(model)
    return bool(
        status["cloud"]["up"]
        and status["local"]["up"]
        and slot is not None
        and slot["serving"] is not None
    )


async def _each(work: Iterable[Awaitable[None]]) -> None:
    """Run all at once and to the end, whatever becomes of the others."""
    for failure in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(failure, Exception) and not isinstance(failure, ProgramEnded):
            raise failure
