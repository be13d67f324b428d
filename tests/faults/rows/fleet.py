"""A broker with a thousand agents dies; all of them come back at once."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from broker.node import Node
from broker.node_files import server_log
from tests.faults.crowd import name_of
from tests.faults.program import Program, python
from tests.faults.row import Row
from tests.faults.stage import AGENTS, MODELS, Stage

AGENTS_AT_FULL_SCALE = 1000
PROCESSES = 2
BACK_WITHIN_S = 60.0
MEMORY_LIMIT_BYTES = 2_000_000_000
ALARM = "resource limit alarm set"


class Crowds:
    """Light agents in a few processes."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files

    def _sum(self, what: str) -> int:
        return sum(
            json.loads(file.read_text())[what] for file in self._files if file.exists()
        )

    @property
    def up(self) -> int:
        """How many are connected and subscribed."""
        return self._sum("up")

    @property
    def risen(self) -> int:
        """How many times one of them came up."""
        return self._sum("risen")


@asynccontextmanager
async def crowds(stage: Stage, node: Node, count: int) -> AsyncIterator[Crowds]:
    """So many agents at `node`; ended at the end."""
    files, programs = [], []
    for number in range(PROCESSES):
        first, last = (count * (number + each) // PROCESSES for each in (0, 1))
        file = stage.folder / f"crowd-{number}.json"
        words = (node.folder, str(first), str(last - first), file)
        program = Program(
            f"crowd-{number}",
            stage.folder,
            python("tests.faults.crowd", *words),
            ready=None,
        )
        stage.programs.append(program)
        await program.start()
        files.append(file)
        programs.append(program)
    yield Crowds(files)
    for program in programs:
        await program.kill()


async def all_come_back(stage: Stage) -> None:
    count = max(50, round(AGENTS_AT_FULL_SCALE * stage.scale))
    names = [name_of(number) for number in range(count)]
    loop = asyncio.get_running_loop()
    folder = stage.folder / "fleet"
    async with (
        Node(folder, agents=[*AGENTS, *names], models=MODELS) as node,
        crowds(stage, node, count) as crowd,
    ):
        await stage.worker("w1", amqp_url=node.amqp_url("worker"))
        gateway = await stage.gateway("agent-1", cloud_url=node.mqtt_url("agent-1"))
        await stage.device(gateway, "cam1")
        await stage.local_stream(gateway)
        await stage.until(lambda: crowd.up == count, BACK_WITHIN_S)
        await stage.load(stage.n(100), rate=50)
        async with stage.fault(f"the broker of {count} agents is killed"):
            await node.kill()
            await stage.until(lambda: not crowd.up)
            load = stage.background(stage.load(stage.n(200), rate=20))
            before = crowd.risen
            await node.start()
            began_s = loop.time()
            await stage.until(lambda: crowd.up == count, BACK_WITHIN_S)
        stage.note_fault(
            f"{count} agents back {loop.time() - began_s:.1f} s after the broker; "
            f"most memory {peak_bytes(node) / 1e6:.0f} MB"
        )
        # Some may be cut off once more while the broker is overrun; not all, and ever.
        assert crowd.risen - before <= 2 * count, "agents came and went"
        assert ALARM not in server_log(folder).read_text(errors="replace")
        assert peak_bytes(node) < MEMORY_LIMIT_BYTES
        await load
        await stage.until_ended()


def peak_bytes(node: Node) -> int:
    """The most memory that a node ever had resident."""
    status = Path(f"/proc/{node.info.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


ROWS: tuple[Row, ...] = (
    Row(
        name="fleet-reconnects",
        fault="kill -9 of a broker with 1,000 agents",
        must_hold="all reconnected within a minute, and no memory alarm",
        run=all_come_back,
        timeout_s=300.0,
    ),
)
