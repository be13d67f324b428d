"""The whole system in one folder for one fault: real processes, all ended by their ids.

A stage has one RabbitMQ, workers, and gateways: an agent with a Mosquitto of its own
and the devices around it. Every process writes its history into one folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from broker.node import Node
from broker.ports import free_port
from edge_agent.adapters.control import ControlError, ask
from tests.faults.checker import Verdict, check
from tests.faults.device import LOCAL, SPILLED, Device, Kind
from tests.faults.history import History, read
from tests.faults.program import ROOT, Program, python
from tests.waiting import until

AGENTS = ("agent-1", "agent-2", "agent-3", "agent-4")
MODELS = ("copy", "fragile")
COPY = ROOT / "benchmarks" / "models" / "copy"
FRAGILE = ROOT / "tests" / "contract" / "worker_models" / "fragile"
LOCAL_RATE = 20.0
PATIENCE_S = 60.0


def new_node(folder: Path) -> Node:
    """The RabbitMQ that rows share; it knows every agent of `AGENTS`."""
    return Node(folder, agents=AGENTS, models=MODELS)


class Mosquitto(Program):
    """A local broker that keeps its port over restarts, and nothing else."""

    def __init__(self, name: str, folder: Path) -> None:
        port = free_port()
        self.url = f"mqtt://127.0.0.1:{port}"
        config = folder / f"{name}.conf"
        config.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\n"
            # A device or an agent that is away misses nothing.
            "max_queued_messages 0\nmax_inflight_messages 100\n"
        )
        program = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin")
        assert program is not None, "run `sudo apt-get install mosquitto`"
        command = [program, "-c", str(config)]
        super().__init__(name, folder, command, ready="running")


@dataclass
class Gateway:
    """An agent, its Mosquitto and its devices."""

    name: str
    mosquitto: Mosquitto
    agent: Program
    state_dir: Path
    devices: list[Device] = field(default_factory=list)
    restarts: int = 0
    keep: bool = True

    async def status(self) -> dict[str, Any]:
        """What the agent says of itself."""
        path = self.state_dir / "control.sock"
        return await ask(path, {"do": "status"}, timeout_s=5.0)

    async def is_quiet(self) -> bool:
        """Whether no request waits for anything at this agent."""
        try:
            outbox = (await self.status())["outbox"]
        except (ControlError, OSError, TimeoutError):
            return False
        return not (outbox["error"] or outbox["open"] or outbox["untold"])


class Stage:
    """Use as `async with Stage(folder, node) as stage`.

    Args:
        folder: short, because it holds unix sockets; new for each stage.
        node: a RabbitMQ that runs.
        name: starts every id, so that no stage at the same RabbitMQ knows another's.
        histories: where each process writes; inside `folder` when None.
        seed: of all that is random.
        scale: how much of everything; 1 for `make faults`, less for the fast subset.
    """

    def __init__(
        self,
        folder: Path,
        node: Node,
        *,
        name: str = "stage",
        histories: Path | None = None,
        seed: int = 1,
        scale: float = 1.0,
    ) -> None:
        self.folder = folder
        self.node = node
        self.name = name
        self.histories = histories or folder / "histories"
        self.seed = seed
        self.scale = scale
        self.random = random.Random(seed)
        self.gateways: list[Gateway] = []
        self.workers: dict[str, Program] = {}
        self.programs: list[Program] = []

    async def __aenter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.histories.mkdir(parents=True, exist_ok=True)
        self._history = History(self.histories, "runner")
        self._background: list[asyncio.Task[None]] = []
        self._streams: list[Device] = []
        self._running: dict[str, asyncio.Task[None]] = {}
        self._streaming = True
        self._tasks = await asyncio.TaskGroup().__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        try:
            for gateway in self.gateways:
                gateway.keep = False
            for task in self._background:
                task.cancel()
            await self._tasks.__aexit__(*error)
        finally:
            for program in reversed(self.programs):
                program.signal(signal.SIGCONT)
                with contextlib.suppress(TimeoutError):
                    await program.kill()
            for device in [*self.devices, *self._streams]:
                device.history.close()
            self._history.close()

    def n(self, count: int) -> int:
        """So many at full scale; at least a few at any."""
        return max(5, round(count * self.scale))

    def background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run beside the row until the stage ends."""
        task = self._tasks.create_task(work)
        self._background.append(task)
        return task

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        self._background.append(self._tasks.create_task(work))

    # --- parts ----------------------------------------------------------------------

    async def usual(self, *, devices: int = 2, **settings: Any) -> Gateway:
        """One worker, one gateway with devices, and a device that the edge answers."""
        await self.worker("w1")
        gateway = await self.gateway("agent-1", **settings)
        for number in range(devices):
            await self.device(gateway, f"cam{number + 1}")
        await self.local_stream(gateway)
        return gateway

    async def worker(
        self,
        name: str,
        *,
        kill_at: str | None = None,
        models: Path | None = None,
        keep: bool = False,
        **settings: Any,
    ) -> Program:
        """A worker that consumes; `settings` by their names.

        With `keep` it is started again whenever it dies.
        """
        usual: dict[str, object] = {
            "worker_id": name,
            "amqp_url": self.node.amqp_url("worker"),
            "models": models or self.models("copy"),
        }
        variables = _variables("OVERSPILL_WORKER_", {**usual, **settings})
        command = python("tests.faults.worker", self.histories)
        program = Program(name, self.folder, command, variables)
        self.workers[name] = program
        self.programs.append(program)
        await program.start(*_kill(kill_at))
        if keep:
            self.keep(program)
        return program

    def keep(self, program: Program) -> None:
        """Start a program again whenever it dies, as long as the stage lasts."""
        self._beside(_keep_running(program))

    def models(self, *names: str) -> Path:
        """A model repository with these of the tests' models."""
        folder = self.folder / ("models-" + "-".join(names))
        if not folder.exists():
            for name in names:
                shutil.copytree({"copy": COPY, "fragile": FRAGILE}[name], folder / name)
        return folder

    def near(self) -> Path:
        """The bundle whose answers the edge always trusts; it copies, too."""
        folder = self.folder / "near"
        if not folder.exists():
            folder.mkdir()
            shutil.copy(COPY / "1" / "model.tflite", folder)
            manifest = {"format": 1, "name": LOCAL.model, "version": "1"}
            manifest["model_file"] = "model.tflite"
            (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    async def gateway(
        self,
        name: str = "agent-1",
        *,
        kill_at: str | None = None,
        **settings: Any,
    ) -> Gateway:
        """An agent that is started again whenever it dies; `settings` by their names."""
        mosquitto = Mosquitto(f"mosquitto-{name}", self.folder)
        self.programs.append(mosquitto)
        await mosquitto.start()
        state_dir = self.folder / name
        usual: dict[str, object] = {
            "agent_id": name,
            "state_dir": state_dir,
            "cloud_url": self.node.mqtt_url(name),
            "local_url": mosquitto.url,
            "bundles": self.near(),
            "resend_after_s": 1.0,
            "resend_most_s": 5.0,
            "default_deadline_s": 300.0,
            "disk_reserve_bytes": 0,
        }
        variables = _variables("OVERSPILL_AGENT_", {**usual, **settings})
        command = python("tests.faults.agent", self.histories)
        agent = Program(name, self.folder, command, variables)
        self.programs.append(agent)
        gateway = Gateway(name, mosquitto, agent, state_dir)
        self.gateways.append(gateway)
        await agent.start(*_kill(kill_at))
        self._beside(self._keep_alive(gateway))
        return gateway

    async def _keep_alive(self, gateway: Gateway) -> None:
        while True:
            await gateway.agent.ended(within_s=24 * 3600.0)
            while not gateway.keep:  # noqa: ASYNC110 - a row switches it
                await asyncio.sleep(0.02)
            await gateway.agent.start(wait=False)
            # Not before: until then it is the old process that has an end.
            gateway.restarts += 1

    async def device(self, gateway: Gateway, name: str, **more: Any) -> Device:
        """A device that is connected."""
        device = Device(
            gateway.mosquitto.url,
            name,
            self.histories,
            **{"run": f"{self.name}-{self.seed}", **more},
        )
        gateway.devices.append(device)
        await self.comes_back(device)
        return device

    async def comes_back(self, device: Device) -> None:
        """Connect a device."""
        self._running[device.name] = self.background(device.run_for_ever())
        async with asyncio.timeout(PATIENCE_S):
            await device.link.wait_up()

    async def leaves(self, device: Device) -> None:
        """Disconnect a device; returns when it is gone."""
        running = self._running.pop(device.name)
        running.cancel()
        await asyncio.wait([running])

    async def local_stream(self, gateway: Gateway) -> Device:
        """A device whose requests the edge answers, to measure the gaps between."""
        device = await self.device(gateway, f"near-{gateway.name}", resend_s=0.5)

        gateway.devices.remove(device)
        self._streams.append(device)
        self._beside(self._stream(device))
        return device

    async def _stream(self, device: Device) -> None:
        while self._streaming:
            await device.offer(LOCAL)
            await asyncio.sleep(1.0 / LOCAL_RATE)

    def stream_again(self) -> None:
        """Let the local streams go on that `until_ended` has ended."""
        self._streaming = True
        for device in self._streams:
            self._beside(self._stream(device))

    @property
    def devices(self) -> list[Device]:
        """Every device but the local streams."""
        return [device for gateway in self.gateways for device in gateway.devices]

    def forget_ended(self) -> None:
        """Let go of what has ended: a long run has no room for its past."""
        for device in [*self.devices, *self._streams]:
            device.ended.clear()
            device.heard_accepted.clear()

    # --- what rows do ------------------------------------------------------------------

    async def load(
        self, count: int, kind: Kind = SPILLED, *, rate: float | None = None
    ) -> None:
        """Every device offers so many requests; without a rate as fast as it goes."""
        async with asyncio.TaskGroup() as tasks:
            for device in self.devices:
                tasks.create_task(device.offer_many(count, kind, rate=rate))

    async def restarted(self, gateway: Gateway) -> None:
        """Return once an agent that was just killed is back and ready."""
        before = gateway.restarts
        await until(lambda: gateway.restarts > before)
        await gateway.agent.ready()

    def note_fault(self, what: str) -> None:
        """Write a fault into the history."""
        self._history.note("fault", detail=what)

    @asynccontextmanager
    async def fault(self, what: str) -> AsyncIterator[None]:
        """While it lasts the fault is there; its end starts the drain."""
        self.note_fault(f"{what} begins")
        try:
            yield
        finally:
            self.note_fault(f"{what} ends")

    async def until_ended(self, within_s: float = PATIENCE_S) -> None:
        """Return once all that was offered has ended, and every device was told.

        The local streams end with it.
        """
        with self._explained(within_s):
            await until(lambda: not any(each.open for each in self.devices), within_s)
            self._streaming = False
            await until(lambda: not any(each.open for each in self._streams), within_s)
            async with asyncio.timeout(within_s):
                while not await self.is_quiet():  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0.05)

    async def is_quiet(self) -> bool:
        """Whether no agent holds a request that waits for anything."""
        return all([await gateway.is_quiet() for gateway in self.gateways])

    @contextlib.contextmanager
    def _explained(self, within_s: float) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise AssertionError(
                f"not ended within {within_s:g} s: "
                + "; ".join(
                    f"{each.name} has {len(each.open)} open, "
                    f"e.g. {[(i, o.accepted) for i, o in list(each.open.items())[:3]]}"
                    for each in self.devices
                    if each.open
                )
                + "\n"
                + "\n".join(f"{each.name}: {each.tail(5)}" for each in self.programs)
            ) from None

    async def until(self, what: Callable[[], object], within_s: float = 30.0) -> None:
        """Return once `what()` holds."""
        await until(what, within_s)

    async def until_status(
        self,
        gateway: Gateway,
        holds: Callable[[dict[str, Any]], object],
        within_s: float = 30.0,
    ) -> dict[str, Any]:
        """The agent's status, once it is as wanted."""
        async with asyncio.timeout(within_s):
            while True:
                with contextlib.suppress(ControlError, OSError):
                    if holds(status := await gateway.status()):
                        return status
                await asyncio.sleep(0.05)

    def verdict(self) -> Verdict:
        """Judge what the histories hold by now."""
        return check(read(self.histories))


async def _keep_running(program: Program) -> None:
    while True:
        await program.ended(within_s=24 * 3600.0)
        await program.start()


def _variables(prefix: str, settings: dict[str, object]) -> dict[str, str]:
    return {f"{prefix}{name.upper()}": str(value) for name, value in settings.items()}


def _kill(at: str | None) -> tuple[str, ...]:
    return () if at is None else ("--kill-at", at)
