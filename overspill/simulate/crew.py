"""The processes that hold the simulated agents, and what they say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from overspill.program import Program, ProgramEnded, environment, python
from overspill.simulate.host import Task, shares
from overspill.simulate.plan import MODEL, Plan
from overspill.tasks import to_the_end, together

MAX_LINE_BYTES: Final = 8 * 1024**2

Said = Callable[[int, Mapping[str, Any]], None]


class Crew:
    """Use as `async with`: the processes run inside.

    Args:
        plan: of the simulation.
        urls: the broker with the credentials of each agent.
        folder: where they may write.
        provisioned: the bundle that agents come with; None: they have no model.
        root: the metadata that agents trust from the start.
        processes: how many.
        said: called with the number of a process and what it said.
        model: the name of what agents serve.
        visit: whether the broker is somebody else's.
    """

    def __init__(  # noqa: PLR0913 - what a process needs to know, by name
        self,
        plan: Plan,
        urls: Sequence[str],
        *,
        folder: Path,
        provisioned: Path | None,
        root: Path,
        processes: int,
        said: Said,
        model: str = MODEL,
        visit: bool = False,
    ) -> None:
        self._said = said
        self._started = [
            _Started(
                Program(
                    f"agents-{number}",
                    python("overspill.simulate.host"),
                    log=folder / f"agents-{number}.log",
                    variables=environment(),
                    talks=True,
                ),
                Task(
                    plan=plan.model_dump_json(exclude_unset=True),
                    urls={index: urls[index] for index in mine},
                    folder=str(folder / f"agents-{number}"),
                    provisioned=None if provisioned is None else str(provisioned),
                    root=str(root),
                    model=model,
                    visit=visit,
                ),
            )
            for number, mine in enumerate(shares(plan.agents, processes))
        ]

    @property
    def pids(self) -> list[int | None]:
        """The ids of the processes."""
        return [each.program.pid for each in self._started]

    async def __aenter__(self) -> Self:
        try:
            await together(*(each.start() for each in self._started))
        except BaseException:
            await to_the_end(self._stop())
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await to_the_end(self._stop())

    async def listen(self) -> None:
        """Hear what they say, for ever.

        Raises:
            ProgramEnded: one of them did.
        """
        await together(
            *(
                each.listen(number, self._said)
                for number, each in enumerate(self._started)
            )
        )

    async def _stop(self) -> None:
        await together(*(each.program.stop() for each in self._started))


class _Started:
    def __init__(self, program: Program, task: Task) -> None:
        self.program = program
        self._task = task

    async def start(self) -> None:
        await self.program.start()
        stdin = self.program.process.stdin
        if stdin is None:
            raise AssertionError("it talks")
        stdin.write(self._task.to_line())
        await stdin.drain()

    async def listen(self, number: int, said: Said) -> None:
        stdout = self.program.process.stdout
        if stdout is None:
            raise AssertionError("it talks")
        # Longer lines than a reader's own limit come when many change at once.
        rest = b""
        while data := await stdout.read(256 * 1024):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > MAX_LINE_BYTES:
                break
            for line in lines:
                said(number, json.loads(line))
        await asyncio.sleep(0.1)
        raise ProgramEnded(self.program.obituary())
