"""What simulated agents meet: a private RabbitMQ, a pool of workers, the fleet's daemon."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

from broker.node import Node, NodeError
from broker.node_files import find_server
from overspill.example import Example
from overspill.program import CommandFailed, Program, environment, python, run_command
from overspill.simulate.plan import Plan, name_of
from overspill.tasks import to_the_end, together

NODE_TIMEOUT_S: Final = 180.0
WORKER_TIMEOUT_S: Final = 120.0
WORKER_MODEL: Final = "idle"
FLEET_TIMEOUT_S: Final = 60.0
COMMAND_TIMEOUT_S: Final = 120.0

StateChanged = Callable[[str, str], None]


class Stage:
    """Use as `async with`: ready inside, and nothing is left running after it.

    Args:
        folder: everything it writes.
        plan: whose agents may connect.
        bundles: what is published, in this order.
        workers: how many serve the registry.
        changed: told how far each part has come.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        bundles: Sequence[Path],
        *,
        workers: int = 1,
        changed: StateChanged = lambda _part, _state: None,
    ) -> None:
        self.folder = folder.absolute()
        self.home = self.folder / "fleet"
        self.logs = self.folder / "logs"
        self.node = Node(
            self.folder / "rabbitmq",
            agents=[name_of(index) for index in range(plan.agents)],
        )
        self.programs: list[Program] = []
        self._bundles = tuple(bundles)
        self._workers = workers
        self._changed = changed
        self._node_up = asyncio.Event()

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of all that starts."""
        workers = (f"worker-{n}" for n in range(1, self._workers + 1))
        return ("rabbitmq", "registry", "fleet", *workers)

    @property
    def root(self) -> Path:
        """The metadata that agents trust from the start."""
        return self.home / "trust" / "root.json"

    @property
    def operator_variables(self) -> dict[str, str]:
        """The settings of the operator's commands; with the broker once it is there."""
        variables = {"OVERSPILL_FLEET_HOME": str(self.home)}
        with suppress(NodeError):
            variables["OVERSPILL_FLEET_AMQP_URL"] = self.node.amqp_url("fleet")
        return variables

    def died(self) -> Program | None:
        """A program that has ended though nobody asked it to."""
        return next((each for each in self.programs if each.died), None)

    async def operate(self, *words: str) -> Any:  # noqa: ANN401 - JSON of a command
        """Run one of the operator's commands with `--json`.

        Raises:
            CommandFailed: it failed, or took too long.
        """
        return json.loads(await self._type(*words, "--json"))

    async def _type(self, *words: str) -> str:
        code, out, err = await run_command(
            python("overspill", *words),
            environment(**self.operator_variables),
            timeout_s=COMMAND_TIMEOUT_S,
        )
        if code:
            raise CommandFailed(f"`overspill {' '.join(words)}` failed: {err.strip()}")
        return out

    async def __aenter__(self) -> Self:
        find_server()
        self.logs.mkdir(parents=True, exist_ok=True)
        try:
            await together(self._start_fleet(), self._start_pool())
        except BaseException:
            await to_the_end(self._stop())
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await to_the_end(self._stop())

    async def _start_node(self) -> None:
        self._changed("rabbitmq", "starting")
        await self.node.start(NODE_TIMEOUT_S)
        self._changed("rabbitmq", "ready")

    async def _publish(self) -> None:
        """Make the fleet's keys and publish the bundles."""
        self._changed("registry", "starting")
        await self._type("trust", "init", "--dev")
        for bundle in self._bundles:
            await self._type("model", "publish", str(bundle))
        self._changed("registry", "ready")

    async def _start_fleet(self) -> None:
        # Nobody needs the broker to sign and to publish.
        await self._publish()
        await self._node_up.wait()
        self._changed("fleet", "starting")
        log = self.logs / "fleet.log"
        program = Program(
            "fleet",
            python("overspill", "fleet", "run"),
            log=log,
            variables=environment(**self.operator_variables),
        )
        await self._start(program)
        await program.until(_says(log, b"link up"), within_s=FLEET_TIMEOUT_S)
        self._changed("fleet", "ready")

    async def _start_pool(self) -> None:
        await self._start_node()
        self._node_up.set()
        await together(*map(self._start_worker, range(1, self._workers + 1)))

    async def _start_worker(self, number: int) -> None:
        name = f"worker-{number}"
        self._changed(name, "starting")
        log = self.logs / f"{name}.log"
        program = Program(
            name,
            python("cloud_worker", "run"),
            log=log,
            variables=environment(
                OVERSPILL_WORKER_WORKER_ID=name,
                OVERSPILL_WORKER_AMQP_URL=self.node.amqp_url("worker"),
                OVERSPILL_WORKER_MODELS=str(self._repository()),
                OVERSPILL_WORKER_REGISTRY=str(self.home / "registry"),
                OVERSPILL_WORKER_DRAIN_S="1",
                TF_CPP_MIN_LOG_LEVEL="2",
            ),
        )
        await self._start(program)
        ready = _says(log, f"READY {name} ".encode())
        await program.until(ready, within_s=WORKER_TIMEOUT_S)
        self._changed(name, "ready")

    def _repository(self) -> Path:
        """A worker wants a model to serve: the smallest there is."""
        folder = self.folder / "models"
        version = folder / WORKER_MODEL / "1"
        version.mkdir(parents=True, exist_ok=True)
        tiny = Example.beside_package().bundles[0] / "model.tflite"
        shutil.copyfile(tiny, version / "model.tflite")
        return folder

    async def _start(self, program: Program) -> None:
        program.log.write_bytes(b"")
        self.programs.append(program)
        await program.start()

    async def _stop(self) -> None:
        await together(*(program.stop() for program in self.programs))
        # Nobody wants to know any more what it would put in order.
        with suppress(NodeError):
            await self.node.kill()


def _says(log: Path, what: bytes) -> Callable[[], Any]:
    def read() -> bool:
        return what in log.read_bytes()

    async def said() -> bool:
        return await asyncio.to_thread(read)

    return said
