"""One process full of simulated agents. Told what to do by one line of JSON, and tells.

In: a `Task` on standard input; the end of the input is the end of the process. Out: a
line of JSON now and then: how many are connected, what changed, what it costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import structlog

from broker.messages import SlotReport
from broker.mqtt.target import MqttTarget
from lifecycle.clock import SystemClock
from lifecycle.logs import configure_logs
from overspill.simulate.agent import SimulatedAgent
from overspill.simulate.costs import resident_mb
from overspill.simulate.flash import Unpacked
from overspill.simulate.plan import Persona, Plan, cast, random_of
from overspill.simulate.surroundings import Surroundings
from overspill.simulate.trust import Verifier

log = structlog.get_logger(__name__)

TELL_EVERY_S: Final = 0.25
# What real bundles ask for.
VISITORS_RUNTIME: Final = "litert"
MAX_TASK_BYTES: Final = 16 * 1024**2


@dataclass(frozen=True, slots=True)
class Task:
    """What one process does.

    Attributes:
        plan: the whole simulation's, as JSON.
        urls: the broker with the credentials of each agent, by its number.
        folder: where it may write.
        provisioned: the bundle that agents come with; None: they have no model.
        root: the metadata that agents trust from the start.
        model: the name of what they serve.
        visit: whether the broker is somebody else's.
    """

    plan: str
    urls: Mapping[int, str]
    folder: str
    provisioned: str | None
    root: str
    model: str
    visit: bool

    def to_line(self) -> bytes:
        """As it is written to the process."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """As it was written."""
        fields = json.loads(line)
        urls = {int(number): url for number, url in fields.pop("urls").items()}
        return cls(urls=urls, **fields)


class Host:
    """The agents of one process."""

    def __init__(self, task: Task) -> None:
        self._plan = Plan.model_validate_json(task.plan)
        folder = Path(task.folder)
        folder.mkdir(parents=True, exist_ok=True)
        unpacked = Unpacked(folder / "unpacked")
        provisioned = (
            None
            if task.provisioned is None
            else unpacked.provision(Path(task.provisioned))
        )
        self._changed: dict[str, SlotReport] = {}
        self._failed: dict[str, str] = {}
        around = Surroundings(
            plan=self._plan,
            folder=folder,
            unpacked=unpacked,
            provisioned=provisioned,
            verifier=Verifier(Path(task.root), folder / "trust"),
            clock=SystemClock(),
            told=self._changed.__setitem__,
            model=task.model,
            visit=task.visit,
        )
        personas = cast(self._plan)
        self._agents = [
            SimulatedAgent(
                _named(personas[number], target, visit=task.visit), target, around
            )
            for number, url in task.urls.items()
            for target in (MqttTarget.from_url(url),)
        ]

    async def run(self) -> None:
        """Be all of them, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for agent in self._agents:
                tasks.create_task(self._be(agent))
            tasks.create_task(self._tell())

    async def _be(self, agent: SimulatedAgent) -> None:
        rng = random_of(self._plan, agent.persona.index, "connect")
        try:
            await agent.run(rng.uniform(0.0, self._plan.connect_over_s))
        except Exception as error:
            # A fault of the simulation's own: told, and the others go on.
            log.exception("a simulated agent failed", agent=agent.persona.agent)
            self._failed[agent.persona.agent] = repr(error)

    async def _tell(self) -> None:
        while True:
            changed, failed = dict(self._changed), dict(self._failed)
            self._changed.clear()
            self._failed.clear()
            _say(self._document(changed, failed))
            await asyncio.sleep(TELL_EVERY_S)

    def _document(
        self, changed: Mapping[str, SlotReport], failed: Mapping[str, str]
    ) -> dict[str, Any]:
        return {
            "connected": sum(agent.up for agent in self._agents),
            "down": next((each.down for each in self._agents if each.down), None),
            "heard_bytes": sum(agent.heard_bytes for agent in self._agents),
            "resident_mb": resident_mb(os.getpid()),
            "slots": {
                name: slot.model_dump(exclude={"health", "before", "cascade"})
                for name, slot in changed.items()
            },
            "failed": failed,
        }


def main() -> None:
    """Read the task, and be its agents until the input ends."""
    # Standard output is for the one who started us.
    configure_logs("warning")
    line = sys.stdin.buffer.readline(MAX_TASK_BYTES)
    if not line:
        return
    with contextlib.suppress(KeyboardInterrupt), _runner() as runner:
        runner.run(_run(Task.from_line(line)))


def _runner() -> asyncio.Runner:
    """With the quicker loop where it is installed."""
    try:
        from uvloop import new_event_loop  # noqa: PLC0415 - it may be missing
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=new_event_loop)


async def _run(task: Task) -> None:
    host = Host(task)
    # What was made so far lives as long as the process.
    gc.collect()
    gc.freeze()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(host.run())
        await _input_ended()
        running.cancel()


async def _input_ended() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while await reader.read(1024):
        pass


def _say(document: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def _named(persona: Persona, target: MqttTarget, *, visit: bool) -> Persona:
    """The agent that the broker knows; a visitor passes for a device with a model."""
    facts = dict(persona.facts)
    if visit:
        facts |= {"runtime": VISITORS_RUNTIME, "simulated": "yes"}
    return replace(persona, agent=target.username or persona.agent, facts=facts)


def shares(count: int, processes: int) -> list[Sequence[int]]:
    """The numbers of agents of each process."""
    return [range(first, count, processes) for first in range(min(processes, count))]


if __name__ == "__main__":
    main()
