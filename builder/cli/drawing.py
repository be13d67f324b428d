"""How a build looks in a terminal: progress on standard error, the result on the other."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table


class Drawn:
    """A line for each step, with a bar where it is known how much there is."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._now: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._finish()
        self._bars.stop()

    def begin(self, what: str) -> None:
        """Finish the step before, and draw this one."""
        self._finish()
        self._now = self._bars.add_task(what, total=None)

    def advance(self, done: int, of: int) -> None:
        """Move the bar."""
        if self._now is not None:
            self._bars.update(self._now, completed=done, total=of)

    def note(self, what: str) -> None:
        """Write a line above the bars."""
        self._bars.console.print(what, markup=False)

    def _finish(self) -> None:
        if self._now is not None:
            (task,) = (each for each in self._bars.tasks if each.id == self._now)
            total = task.total or 1
            self._bars.update(self._now, total=total, completed=total)
            self._now = None


@contextmanager
def quiet_tensorflow() -> Iterator[None]:
    """Hold back the converter's chatter; what goes wrong is raised."""
    import os
    import warnings

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def candidates_table(document: Mapping[str, Any]) -> Table:
    """The candidates, best first; the front and the chosen one are marked."""
    choice = document["choice"]
    table = Table("candidate", "KB", "p50 ms", "accuracy", "agreement", "cost", "")
    for each in sorted(document["candidates"], key=lambda one: float(one["cost"])):
        test = each["test"]
        agreement = test["agreement"]
        marks = [
            "chosen" if each["name"] == choice["chosen"] else "",
            "front" if each["name"] in choice["front"] else "",
            "not allowed" if each["name"] in choice["broken"] else "",
        ]
        table.add_row(
            each["name"],
            f"{each['size_bytes'] / 1000:.1f}",
            f"{each['p50_ms']:.3f}",
            f"{test['accuracy']:.2%}",
            "-" if agreement is None else f"{agreement:.2%}",
            f"{each['cost']:.2%}",
            ", ".join(mark for mark in marks if mark),
        )
    return table


def results() -> Console:
    """Where tables go. They are as wide as they need when nobody looks."""
    return Console() if sys.stdout.isatty() else Console(width=160)
