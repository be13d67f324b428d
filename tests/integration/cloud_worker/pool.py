"""Agents that speak for the tests, and workers as real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from broker.codec import decode, encode
from broker.messages import (
    Blob,
    Get,
    Priority,
    Reason,
    Request,
    Result,
    Tensor,
)
from broker.mqtt.link import MqttLink
from broker.mqtt.target import MqttTarget
from broker.node import Node
from broker.topics import blobs, downlink, gets, requests, results
from cloud_worker.app import Worker
from cloud_worker.settings import WorkerSettings
from lifecycle.clock import SystemClock
from tests.waiting import until

MODELS = Path(__file__).parents[2] / "contract" / "worker_models"
PATIENCE_S = 60.0


def repository(root: Path, **models: str) -> Path:
    """A model repository: each name served by one of the tests' models."""
    for name, model in models.items():
        shutil.copytree(MODELS / model, root / name.replace("_", "-"))
    return root


def request(id_: str, model: str, value: float = 1.0, **changes: Any) -> Request:
    """A request for a model that takes four float32."""
    array = np.full((1, 4), value, np.float32)
    fields: dict[str, Any] = {
        "id": id_,
        "device": "cam1",
        "model": model,
        "reason": Reason.HARD,
        "expires_at_ms": SystemClock().wall_ms() + 600_000,
        "tensors": {"x": Tensor(dtype="float32", shape=[1, 4], data=array.tobytes())},
    }
    return Request(**{**fields, **changes})


def first_value(result: Result) -> float:
    """The first item of the only output."""
    (tensor,) = result.outputs.values()
    return float(np.frombuffer(tensor.data, tensor.dtype)[0])


class Agent:
    """An agent's link, and all that it has heard, by request id.

    A `persistent` one hears what was said while it was away. One whose messages are
    large takes a longer keepalive: what is on its way holds up the pings behind it.
    """

    def __init__(
        self,
        node: Node,
        name: str = "agent-1",
        *,
        persistent: bool = False,
        keepalive_s: int = 10,
    ) -> None:
        self.name = name
        self.results: dict[str, list[Result]] = {}
        self.blobs: list[Blob] = []
        self._link = MqttLink(
            MqttTarget.from_url(node.mqtt_url(name)),
            client_id=name,
            subscriptions=(downlink(name),),
            on_message=self._hear,
            persistent=persistent,
            keepalive_s=keepalive_s,
        )
        self._stack: Any = None

    async def __aenter__(self) -> Self:
        self._stack = _running(self._link)
        await self._stack.__aenter__()
        async with asyncio.timeout(PATIENCE_S):
            await self._link.wait_up()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.__aexit__(*error)

    async def ask(
        self, *items: Request, model: str = "", priority: Priority = Priority.NORM
    ) -> None:
        """Send one envelope."""
        topic = requests(self.name, model or items[0].model, priority)
        async with asyncio.timeout(PATIENCE_S):
            await self._link.wait_up()
        await self._link.publish(topic, encode(*items), timeout_s=PATIENCE_S)

    async def send(self, topic: str, payload: bytes) -> None:
        """Send anything."""
        await self._link.publish(topic, payload, timeout_s=PATIENCE_S)

    async def get(self, get: Get) -> Blob:
        """Ask for a part of a model update."""
        before = len(self.blobs)
        await self._link.publish(gets(self.name), encode(get))
        await until(lambda: len(self.blobs) > before)
        return self.blobs[-1]

    async def result(self, id_: str) -> Result:
        """The first result of a request."""
        await until(lambda: id_ in self.results)
        return self.results[id_][0]

    async def all_results(self, ids: Iterable[str]) -> None:
        """Return once each of these has a result."""
        wanted = set(ids)
        await until(lambda: wanted <= self.results.keys())

    def _hear(self, topic: str, payload: bytes) -> None:
        if topic == results(self.name):
            for each in decode(payload, Result).items:
                self.results.setdefault(each.id, []).append(each)
        elif topic == blobs(self.name):
            self.blobs.extend(decode(payload, Blob).items)


@asynccontextmanager
async def _running(link: MqttLink) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(link.run())
        try:
            yield
        finally:
            task.cancel()


@asynccontextmanager
async def worker(node: Node, models: Path, **settings: object) -> AsyncIterator[None]:
    """A worker in this process, ready to serve."""
    stop, ready = asyncio.Event(), asyncio.Event()
    configured = WorkerSettings(
        **{  # type: ignore[arg-type] # validated there
            "worker_id": "w-here",
            "amqp_url": node.amqp_url("worker"),
            "models": models,
            **settings,
        }
    )
    running = Worker(configured, on_ready=lambda _: ready.set())
    async with asyncio.TaskGroup() as group:
        group.create_task(running.run(stop))
        async with asyncio.timeout(120):
            await ready.wait()
        try:
            yield
        finally:
            stop.set()


class WorkerProcess:
    """`overspill-worker run` as its own process."""

    def __init__(
        self, amqp_url: str, models: Path, *options: str, **environment: str
    ) -> None:
        self._environment = environment
        self._command = [
            *(sys.executable, "-m", "cloud_worker", "run"),
            *("--amqp-url", amqp_url),
            *("--models", str(models)),
            *options,
        ]
        self.lines: list[str] = []
        self.said: list[str] = []
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.TaskGroup | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            env=os.environ | self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self._reading = asyncio.TaskGroup()
        await self._reading.__aenter__()
        for stream, lines in (
            (self._process.stdout, self.lines),
            (self._process.stderr, self.said),
        ):
            assert stream is not None
            self._reading.create_task(_collect(stream, lines))
        return self

    async def __aexit__(self, *error: Any) -> None:
        assert self._process is not None
        assert self._reading is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reading.__aexit__(*error)

    async def ready(self) -> None:
        """Return once it consumes."""
        await until(lambda: self.lines or self.code is not None)
        assert self.lines, "\n".join(self.said)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code, once it has ended."""
        assert self._process is not None
        return self._process.returncode

    def model_process(self) -> int | None:
        """The process id of its child, if it has one."""
        for thread in Path(f"/proc/{self.pid}/task").iterdir():
            # A thread may end while we look.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for child in (thread / "children").read_text().split():
                    return int(child)
        return None

    def stop_model(self) -> None:
        """Let the model process stand still: what it has is in hand from now on."""
        self._signal_model(signal.SIGSTOP)

    def resume_model(self) -> None:
        """Let the model process go on."""
        self._signal_model(signal.SIGCONT)

    def _signal_model(self, number: signal.Signals) -> None:
        pid = self.model_process()
        assert pid is not None
        os.kill(pid, number)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    async def ended(self) -> int:
        """Its exit code, once it has ended."""
        assert self._process is not None
        async with asyncio.timeout(PATIENCE_S):
            return await self._process.wait()


async def _collect(stream: asyncio.StreamReader, lines: list[str]) -> None:
    async for line in stream:
        # One by one, since the test reads them meanwhile.
        lines.append(line.decode().rstrip())  # noqa: PERF401 - as said
