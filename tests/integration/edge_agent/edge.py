"""A device that speaks MQTT, an agent in this process, and a worker in another."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from broker.backoff import Backoff
from broker.messages import UpdatePolicy
from broker.mqtt.link import MqttLink
from broker.mqtt.target import MqttTarget
from edge_agent.adapters.model_store import ModelStore
from edge_agent.app import Agent
from edge_agent.core.slots import Slots, State
from edge_agent.settings import AgentSettings
from tests.waiting import until

ROOT = Path(__file__).parents[3]
TINY = ROOT / "examples" / "fashion" / "edge" / "tiny"
SMALL = ROOT / "examples" / "fashion" / "edge" / "small"
SHIRT = (ROOT / "examples" / "fashion" / "images" / "shirt.png").read_bytes()
WARDROBE = (ROOT / "examples" / "fashion" / "images" / "wardrobe.jpg").read_bytes()
COPY = ROOT / "benchmarks" / "models" / "copy"
CLOUD_VERSION = "9"
PATIENCE_S = 45.0


def pool_models(folder: Path) -> Path:
    """A model repository that starts fast: `copy`, and `fashion` as a .tflite."""
    shutil.copytree(COPY, folder / "copy")
    version = folder / "fashion" / CLOUD_VERSION
    version.mkdir(parents=True)
    shutil.copy(SMALL / "model.tflite", version)
    manifest = json.loads((SMALL / "manifest.json").read_text())
    sidecar = {name: manifest[name] for name in ("preprocess", "labels", "decision")}
    (version / "model.json").write_text(json.dumps(sidecar))
    return folder


def on_probation(folder: Path, policy: UpdatePolicy) -> tuple[ModelStore, Slots]:
    """Versions 1 and 2 in the store of the agent at `folder`, the second on probation.

    Its slots are not saved.
    """
    store = ModelStore(folder / "agent" / "models")
    store.prepare()
    for version in ("1", "2"):
        bundle = tiny(folder / version, threshold=0.0)
        path = bundle / "manifest.json"
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps({**manifest, "version": version}))
        store.provision(bundle)
    slots = Slots("fashion", active="1", epoch=1, floor=1, state=State.SWAPPED)
    return store, slots.pulling("2", 2, 2).pulled().passed(policy)


def tiny(folder: Path, *, threshold: float) -> Path:
    """The tiny bundle: with a threshold of 0 ever sure of itself, of 1 never."""
    shutil.copytree(TINY, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["decision"]["threshold"] = threshold
    # It is of the threshold that was.
    manifest.pop("calibration", None)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@dataclass(frozen=True)
class WorkerProcess:
    """One member of the pool."""

    process: subprocess.Popen[str]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While it lasts the pool is there and says nothing."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextmanager
def worker(amqp_url: str, models: Path, *more: str) -> Iterator[WorkerProcess]:
    """A worker that has printed READY; ended by its own id."""
    command = [sys.executable, "-m", "cloud_worker", "run", "--log-level", "warning"]
    command += ["--amqp-url", amqp_url, "--models", str(models), *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("READY"), f"the worker said {line!r}"
            yield WorkerProcess(process)
        finally:
            process.terminate()
            process.wait(30)


class Device:
    """A device: publishes requests and keeps every answer in order."""

    def __init__(self, url: str, name: str = "cam1") -> None:
        self.name = name
        self.raw: list[tuple[str, bytes]] = []
        self.link = MqttLink(
            MqttTarget.from_url(url),
            client_id=f"device-{name}-{os.getpid()}",
            subscriptions=["answer/#"],
            on_message=self._heard,
            backoff=Backoff(0.05, 0.3),
        )

    def _heard(self, topic: str, payload: bytes) -> None:
        self.raw.append((topic, payload))

    @property
    def answers(self) -> list[dict[str, Any]]:
        """All that was heard, whatever the encoding."""
        return [read(payload) for _, payload in self.raw]

    def of(self, id_: str | None) -> list[dict[str, Any]]:
        """What was heard of one request."""
        return [each for each in self.answers if each["id"] == id_]

    async def send(
        self, model: str, payload: bytes | dict[str, Any], device: str | None = None
    ) -> None:
        """Publish a request; a dict goes as JSON."""
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        await self.link.publish(f"infer/{device or self.name}/{model}", body)

    async def final(self, id_: str, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """The final answer to one request."""
        await until(lambda: any(each["final"] for each in self.of(id_)), patience_s)
        return next(each for each in self.of(id_) if each["final"])

    async def next_answer(self, seen: int) -> dict[str, Any]:
        """The answer after the first `seen`."""
        await until(lambda: len(self.raw) > seen)
        return self.answers[seen]


def read(payload: bytes) -> dict[str, Any]:
    """An answer in either encoding."""
    found: dict[str, Any] = (
        json.loads(payload) if payload.startswith(b"{") else msgpack.unpackb(payload)
    )
    return found


@asynccontextmanager
async def device(url: str, name: str = "cam1") -> AsyncIterator[Device]:
    """A connected device."""
    made = Device(url, name)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(made.link.run())
        async with asyncio.timeout(PATIENCE_S):
            await made.link.wait_up()
        yield made
        task.cancel()


@asynccontextmanager
async def serving(
    settings: AgentSettings, *, cloud: bool = True, **more: Any
) -> AsyncIterator[Agent]:
    """An agent whose devices are heard and, unless told otherwise, whose cloud is up.

    `more` goes to the `Agent`.
    """
    stop = asyncio.Event()
    async with Agent(settings, **more) as agent, asyncio.TaskGroup() as tasks:
        tasks.create_task(agent.run(stop))
        await until_status(agent, lambda status: status["local"]["up"])
        if cloud and settings.cloud_url is not None:
            await until_status(agent, lambda status: status["cloud"]["up"])
        yield agent
        stop.set()


async def until_status(
    agent: Agent,
    holds: Callable[[dict[str, Any]], object],
    patience_s: float = PATIENCE_S,
) -> dict[str, Any]:
    """The agent's status, once it is as wanted."""
    async with asyncio.timeout(patience_s):
        while not holds(status := await agent.status()):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.02)
    return status
