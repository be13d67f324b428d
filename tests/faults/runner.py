"""Run rows one after another against one RabbitMQ, and say how each ended."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from broker.node import Node
from tests.faults.checker import Verdict
from tests.faults.row import Row
from tests.faults.stage import Stage, new_node


@dataclass(frozen=True, slots=True)
class Ran:
    """How one row ended."""

    row: Row
    broker: str
    seed: int
    verdict: Verdict
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether all that must hold held."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """For a script."""
        return {
            "name": self.row.name,
            "fault": self.row.fault,
            "must_hold": self.row.must_hold,
            "broker": self.broker,
            "seed": self.seed,
            "good": self.good,
            "problems": self.problems,
            "seconds": round(self.seconds, 1),
            **asdict(self.verdict),
            "lost": self.verdict.lost,
            "duplicated": self.verdict.duplicated,
        }


@asynccontextmanager
async def own_folder() -> AsyncIterator[Path]:
    """A folder with a short name that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="f"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def running_node() -> AsyncIterator[Node]:
    """A private RabbitMQ; stopped and deleted afterwards."""
    async with own_folder() as folder:
        node = new_node(folder / "rabbit")
        try:
            await node.start()
            yield node
        finally:
            await node.kill()


async def run_row(
    row: Row,
    node: Node,
    *,
    seed: int = 1,
    scale: float = 1.0,
    keep: Path | None = None,
) -> Ran:
    """Run one row on a fresh stage.

    Args:
        row: which.
        node: a RabbitMQ that runs.
        seed: of what is random in it.
        scale: how much of everything.
        keep: where its histories and logs are left; nowhere when None.
    """
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    problems: list[str] = []
    async with AsyncExitStack() as stack:
        folder = await stack.enter_async_context(own_folder())
        kept = None if keep is None else keep / row.name
        if kept is not None:
            shutil.rmtree(kept, ignore_errors=True)
        histories = folder / "histories" if kept is None else kept
        stage = Stage(
            folder, node, name=row.name, histories=histories, seed=seed, scale=scale
        )
        try:
            async with asyncio.timeout(row.timeout_s), stage:
                await row.run(stage)
        except (Exception, ExceptionGroup) as error:  # noqa: BLE001 - a row's failure is its result
            problems.append(_said(error))
        # Every process has ended, so nothing is added any more.
        verdict = stage.verdict()
        problems += row.problems(verdict)
        if kept is not None:
            for log in folder.glob("*.log"):
                shutil.copy(log, kept)
    return Ran(
        row,
        node.info.version,
        seed,
        verdict,
        problems,
        loop.time() - began_s,
    )


def _said(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_said(each) for each in error.exceptions)
    return f"{type(error).__name__}: {error}"


async def run_rows(
    rows: list[Row], *, seed: int = 1, scale: float = 1.0, keep: Path | None = None
) -> AsyncIterator[Ran]:
    """Run rows; one RabbitMQ serves them until one of them fails or wants its own."""
    stack = AsyncExitStack()
    node: Node | None = None
    try:
        for row in rows:
            if node is None or row.own_node or not node.info.running:
                await stack.aclose()
                node = await stack.enter_async_context(running_node())
            ran = await run_row(row, node, seed=seed, scale=scale, keep=keep)
            yield ran
            if row.own_node or not ran.good:
                node = None
    finally:
        await stack.aclose()
