"""What devices notice of an update: a real agent under load, versions pushed in between.

Requests come at a steady pace, whatever the agent does: each is timed from when it was
due, so that a moment in which the agent did nothing counts against every request in it.
An update is everything from the word that a version is desired until it is committed:
metadata verified, bundle pulled, unpacked, tried in a child, loaded, swapped.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.limits import Limit, arguments, progress, quantile, report
from broker.codec import encode
from broker.messages import Desired, DesiredModel, UpdatePolicy
from broker.node import Node
from bundle import layout
from bundle.folder_tree import FolderTree
from bundle.pack import pack
from bundle.seal import make_seal
from bundle.trust.keys import KeyRing, make_key
from bundle.trust.repository import Repository
from edge_agent.app import Agent
from edge_agent.core.slots import State
from edge_agent.settings import AgentSettings
from lifecycle.clock import SystemClock
from lifecycle.interpreter import share_interpreter
from lifecycle.logs import configure_logs

AGENT: Final = "agent-1"
MODEL: Final = "fashion"
EXAMPLE: Final = Path(__file__).parent.parent.parent / "examples" / "fashion"
BUNDLES: Final = (EXAMPLE / "edge" / "small", EXAMPLE / "edge" / "tiny")
COPY: Final = Path(__file__).parent.parent / "models" / "copy"
PER_S: Final = 200.0
QUIET_S: Final = 3.0
UPDATES: Final = 6
PATIENCE_S: Final = 60.0
POLICY: Final = UpdatePolicy(probation_s=0.5, probation_requests=20)


@dataclass(slots=True)
class Load:
    """Requests at a pace; what became of each.

    Attributes:
        answered: when each was due, and how long its answer took from then, in seconds.
        dropped: requests without an answer of the edge.
        versions: how many each version answered.
    """

    agent: Agent
    image: NDArray[np.float32]
    answered: list[tuple[float, float]] = field(default_factory=list)
    dropped: int = 0
    versions: dict[str, int] = field(default_factory=dict)

    async def run(self) -> None:
        """Ask for ever."""
        due = time.perf_counter()
        async with asyncio.TaskGroup() as asked:
            while True:
                due += 1.0 / PER_S
                wait_s = due - time.perf_counter()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                asked.create_task(self._ask(due))

    async def _ask(self, due: float) -> None:
        answer = await self.agent.infer(MODEL, self.image)
        self.answered.append((due, time.perf_counter() - due))
        if answer.status != "answered" or answer.source != "edge":
            self.dropped += 1
        else:
            name = answer.version or ""
            self.versions[name] = self.versions.get(name, 0) + 1

    def between(self, began: float, ended: float) -> list[float]:
        """Milliseconds of the requests that were due in that time."""
        return [took * 1e3 for due, took in self.answered if began <= due < ended]


class Operators:
    """They sign versions, and say which is desired."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.tree = FolderTree(folder / "registry")
        keys = folder / "keys"
        keys.mkdir()

        def made(role: str, count: int) -> list[Any]:
            return [make_key(keys / f"{role}-{n}.key", None) for n in range(count)]

        self._repository = Repository(
            self.tree, folder / "trust", lambda: SystemClock().wall_ms() / 1000.0
        )
        self._ring = KeyRing([keys], lambda _: None)
        (snapshot,), (timestamp,) = made("snapshot", 1), made("timestamp", 1)
        roots, targets = made("root", 3), made("targets", 3)
        self._repository.begin(roots, targets, snapshot, timestamp)
        self._settle()
        self.root = folder / "root.json"
        self.root.write_bytes(
            self.tree.read(layout.metadata("1.root.json"), max_bytes=1 << 20)
        )

    def _settle(self) -> None:
        self._repository.signing.sign(self._ring)
        self._repository.signing.settle(self._ring)

    def publish(self, number: int) -> None:
        """Sign a version that answers everything itself."""
        folder = self._folder / f"v{number}"
        shutil.copytree(BUNDLES[number % len(BUNDLES)], folder)
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["decision"]["threshold"] = 0.0
        manifest.pop("calibration", None)
        path.write_text(json.dumps({**manifest, "version": f"v{number}"}))
        packed = self._folder / "packed.tar"
        pack(folder, packed)
        made = make_seal(packed, MODEL, f"v{number}")
        seal = made.model_copy(update={"epoch": number})
        self._repository.draft_seals(MODEL, [(seal, False)])
        self._settle()
        self.tree.write_copy(layout.blob(seal.sha256), packed)

    def desire(self, number: int) -> None:
        """The agent shall serve that version."""
        model = DesiredModel(
            model=MODEL,
            version=f"v{number}",
            generation=number,
            epoch=number,
            # Nobody asks the first anything before it serves.
            policy=POLICY if number > 1 else UpdatePolicy(),
        )
        data = encode(Desired(agent=AGENT, models=[model]))
        self.tree.write(f"{layout.DESIRED}/{AGENT}", data)


@contextmanager
def pool(amqp_url: str, models: Path, registry: Path) -> Iterator[None]:
    """A worker that serves the registry."""
    command = [sys.executable, "-m", "cloud_worker", "run", "--log-level", "warning"]
    command += ["--amqp-url", amqp_url, "--models", str(models)]
    command += ["--registry", str(registry)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or not process.stdout.readline():
                raise SystemExit("the worker did not start")
            yield
        finally:
            process.terminate()


async def swaps(
    folder: Path, node: Node, operators: Operators
) -> tuple[Load, list[tuple[float, float]]]:
    """Push versions to an agent under load; gives when each update began and ended."""
    settings = AgentSettings(
        agent_id=AGENT,
        state_dir=folder / "agent",
        cloud_url=node.mqtt_url(AGENT),
        local=False,
        trusted_root=operators.root,
        disk_reserve_bytes=0,
        poll_desired_every_s=600.0,
        look_spread_s=0.0,
        pull_jitter_s=0.0,
    )
    images = np.load(EXAMPLE / "images" / "test1000.npz")["images"]
    image = (images[0][None, :, :, None] / 255).astype(np.float32)
    async with Agent(settings) as agent:
        operators.desire(1)
        await settled(agent, 1)
        load = Load(agent, image)
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(load.run())
            await asyncio.sleep(QUIET_S)
            spans = []
            for number in range(2, 2 + UPDATES):
                progress(f"update {number - 1} of {UPDATES}")
                operators.desire(number)
                began = time.perf_counter()
                await settled(agent, number)
                spans.append((began, time.perf_counter()))
                await asyncio.sleep(QUIET_S)
            asking.cancel()
    return load, spans


async def settled(agent: Agent, number: int) -> None:
    """Wait until a version is committed; the word that it is desired is given at once."""
    cloud = agent._cloud  # noqa: SLF001 - a word from the fleet would take a daemon
    if cloud is None:
        raise SystemExit("the agent has no cloud")
    updates = cloud.updates
    updates.look_now()
    async with asyncio.timeout(PATIENCE_S):
        while True:
            slots = updates.slots.get(MODEL)
            if slots is not None and slots.active == f"v{number}":
                if slots.state is State.SWAPPED:
                    return
            elif slots is not None and slots.state in (State.REFUSED, State.RETURNED):
                raise SystemExit(f"v{number} was not taken: {slots.reason}")
            await asyncio.sleep(0.05)


def measure() -> tuple[dict[str, object], list[Limit]]:
    """Figures, and the limits that hold of them."""
    # As the daemon does.
    share_interpreter()
    with tempfile.TemporaryDirectory(prefix="ovs-") as name:
        folder = Path(name)
        models = folder / "models"
        shutil.copytree(COPY, models / "copy")
        operators = Operators(folder)
        for number in range(1, 2 + UPDATES):
            operators.publish(number)
        load, spans = asyncio.run(_measured(folder, models, operators))
    during = [ms for began, ended in spans for ms in load.between(began, ended)]
    quiet = [
        ms
        for number, (began, _) in enumerate(spans)
        for ms in load.between(
            spans[number - 1][1] if number else began - QUIET_S, began
        )
    ]
    ratio = quantile(during, 0.99) / quantile(quiet, 0.99)
    figures: dict[str, object] = {
        "requests": len(load.answered),
        "updates": len(spans),
        "update_s": round(sum(end - began for began, end in spans) / len(spans), 2),
        "dropped": load.dropped,
        "p50_before_ms": round(quantile(quiet, 0.5), 3),
        "p50_during_ms": round(quantile(during, 0.5), 3),
        "p99_before_ms": round(quantile(quiet, 0.99), 3),
        "p99_during_ms": round(quantile(during, 0.99), 3),
        "worst_during_ms": round(max(during), 3),
        "by_version": load.versions,
    }
    limits = [
        Limit("swap_dropped", load.dropped, 0.0),
        Limit("swap_p99_ratio", round(ratio, 3), 2.0),
    ]
    return figures, limits


async def _measured(
    folder: Path, models: Path, operators: Operators
) -> tuple[Load, list[tuple[float, float]]]:
    async with Node(folder / "node", agents=[AGENT], models=["copy", MODEL]) as node:
        with pool(node.amqp_url("worker"), models, folder / "registry"):
            return await swaps(folder, node, operators)


def main() -> int:
    """Run it on its own."""
    chosen = arguments(__doc__ or "")
    configure_logs("error")
    figures, limits = measure()
    return report(figures, limits, as_json=chosen.json)


if __name__ == "__main__":
    sys.exit(main())
