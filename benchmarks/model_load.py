"""What the answers of model A take while model B is put into the repository and loads.

One worker serves the Fashion-MNIST ResNet at a steady rate; again and again a copy of it
appears under another name, loads, warms up, and is taken away. p99 while it loads is
held against p99 just before.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.limits import (
    Limit,
    arguments,
    median,
    progress,
    quantile,
    report,
    together,
)
from broker.codec import decode, encode
from broker.messages import Priority, Reason, Request, Result, Status, Tensor
from broker.mqtt.link import MqttLink
from broker.mqtt.target import MqttTarget
from broker.node import Node
from broker.topics import downlink, requests
from lifecycle.clock import SystemClock
from lifecycle.logs import configure_logs

MODEL: Final = Path(__file__).parents[1] / "examples" / "fashion" / "cloud" / "fashion"
AGENT: Final = "steady"
PER_S: Final = 50
ROUNDS: Final = 8
# The process of a model that was taken away is gone by then.
SETTLE_S: Final = 3.0
BEFORE_S: Final = 12.0
PATIENCE_S: Final = 180.0


class Steady:
    """Requests at fixed times, and how long each answer took from its time on."""

    def __init__(self, node: Node) -> None:
        self._due: dict[str, float] = {}
        self.took_ms: list[float] = []
        self._image = Tensor(
            dtype="float32",
            shape=[1, 28, 28, 1],
            data=np.zeros((1, 28, 28, 1), np.float32).tobytes(),
        )
        self.link = MqttLink(
            MqttTarget.from_url(node.mqtt_url(AGENT)),
            client_id=AGENT,
            subscriptions=(downlink(AGENT),),
            on_message=self._hear,
            persistent=False,
        )

    async def run(self) -> None:
        """Send on time, whatever comes back."""
        began = time.perf_counter()
        count = 0
        async with asyncio.TaskGroup() as sending:
            while True:
                due = began + count / PER_S
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                sending.create_task(self._send(f"r{count}", due))
                count += 1

    async def _send(self, id_: str, due: float) -> None:
        self._due[id_] = due
        request = Request(
            id=id_,
            device="d",
            model="fashion",
            reason=Reason.HARD,
            expires_at_ms=SystemClock().wall_ms() + 60_000,
            tensors={"image": self._image},
        )
        topic = requests(AGENT, "fashion", Priority.NORM)
        await self.link.publish(topic, encode(request))

    def _hear(self, _: str, payload: bytes) -> None:
        now = time.perf_counter()
        for each in decode(payload, Result).items:
            if each.status is not Status.OK:
                raise RuntimeError(f"not answered: {each}")
            self.took_ms.append((now - self._due.pop(each.id)) * 1000)

    def taken(self) -> list[float]:
        """What was measured since the last call."""
        taken, self.took_ms = self.took_ms, []
        return taken


@contextlib.asynccontextmanager
async def worker(
    node: Node, models: Path
) -> AsyncIterator[Callable[[bytes], contextlib.AbstractAsyncContextManager[None]]]:
    """A worker; gives what waits until its log says something."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cloud_worker", "run", "--models", str(models)),
        *("--amqp-url", node.amqp_url("worker")),
        env={**os.environ, "OVERSPILL_WORKER_WATCH_S": "0.2"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    log = child.stderr

    @contextlib.asynccontextmanager
    async def until_said(words: bytes) -> AsyncIterator[None]:
        yield
        async with asyncio.timeout(PATIENCE_S):
            while words not in (line := await log.readline()):
                if not line:
                    raise RuntimeError("the worker has ended")

    try:
        async with asyncio.timeout(PATIENCE_S):
            await child.stdout.readline()
        yield until_said
    finally:
        child.terminate()
        await child.communicate()


async def measure() -> tuple[list[list[float]], list[list[float]], list[float]]:
    """Milliseconds before and during each load, and the seconds that the loads took."""
    with tempfile.TemporaryDirectory(prefix="ovs-") as name:
        folder = Path(name)
        models = folder / "models"
        shutil.copytree(MODEL, models / "fashion")
        node = Node(folder / "rabbit", agents=(AGENT,), models=("fashion", "other"))
        progress("starting a private RabbitMQ and a worker")
        async with (
            node,
            worker(node, models) as until_said,
            asyncio.TaskGroup() as group,
        ):
            steady = Steady(node)
            tasks = [group.create_task(steady.link.run())]
            await steady.link.wait_up()
            tasks.append(group.create_task(steady.run()))
            await asyncio.sleep(5)
            before, during, loads_s = [], [], []
            for number in range(ROUNDS):
                await asyncio.sleep(SETTLE_S)
                steady.taken()
                await asyncio.sleep(BEFORE_S)
                before.append(steady.taken())
                began = time.perf_counter()
                async with until_said(b'"model": "other", "shares": {"1"'):
                    shutil.copytree(MODEL, models / "other")
                loads_s.append(time.perf_counter() - began)
                during.append(steady.taken())
                progress(f"round {number + 1} of {ROUNDS}: {loads_s[-1]:.1f} s")
                async with until_said(b"model retired"):
                    shutil.rmtree(models / "other")
            for task in tasks:
                task.cancel()
        return before, during, loads_s


def main() -> int:
    chosen = arguments(__doc__ or "")
    configure_logs("error")
    before, during, loads_s = asyncio.run(measure())
    ratios = [
        quantile(b, 0.99) / quantile(a, 0.99)
        for a, b in zip(before, during, strict=True)
    ]
    figures = {
        "per_s": PER_S,
        "rounds": ROUNDS,
        "load_s": round(median(loads_s), 1),
        "before_p50_ms": round(median(together(before)), 2),
        "during_p50_ms": round(median(together(during)), 2),
        "before_p99_ms": round(quantile(together(before), 0.99), 2),
        "during_p99_ms": round(quantile(together(during), 0.99), 2),
        "ratio_least": round(min(ratios), 3),
        "ratio_most": round(max(ratios), 3),
    }
    limits = [Limit("p99_while_another_loads", round(median(ratios), 3), 1.2)]
    return report(figures, limits, as_json=chosen.json)


if __name__ == "__main__":
    sys.exit(main())
