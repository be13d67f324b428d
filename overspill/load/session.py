"""The runs of one command, one after the other, with their progress."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from rich.console import Console
from rich.live import Live

from lifecycle.clock import SystemClock
from overspill.load.account import End
from overspill.load.doors import Door
from overspill.load.mix import Plan
from overspill.load.report import document
from overspill.load.run import Patience, Run
from overspill.tasks import alongside

LOOK_EVERY_S: Final = 0.5


@dataclass
class Session:
    """Runs a plan at each step of its rate; what is done is kept when it is ended.

    Attributes:
        door: the way in.
        plan: at a factor of 1.
        steps: factors of its rate, in the order of the runs.
        patience: of each run.
        max_lateness_s: of the generator, for a run to be valid.
        runs: a document of each run so far, the last one perhaps of its beginning.
    """

    door: Door
    plan: Plan
    steps: Sequence[float]
    patience: Patience
    max_lateness_s: float
    runs: list[dict[str, Any]] = field(default_factory=list)

    async def perform(self, progress: Console) -> None:
        """Do all runs.

        Raises:
            NoConnection: a link did not come up.
        """
        # Drawn when we say so: a thread of its own would make the generator late.
        with Live(console=progress, auto_refresh=False, transient=True) as live:
            for index, factor in enumerate(self.steps):
                plan = replace(self.plan, arrivals=self.plan.arrivals.scaled(factor))
                run = Run(plan, self.door, clock=SystemClock(), patience=self.patience)
                where = f"{index + 1}/{len(self.steps)} " if self.steps[1:] else ""
                try:
                    if progress.is_terminal:
                        await alongside(run.perform(), _tell(live, run, where))
                    else:
                        await run.perform()
                finally:
                    if run.account.total.offered:
                        self._keep(run)

    @property
    def valid(self) -> bool:
        """Whether the generator kept its schedule in all runs."""
        return all(run["valid"] for run in self.runs)

    @property
    def answered(self) -> int:
        """How many were answered in all runs."""
        return sum(run[End.ANSWERED.value] for run in self.runs)

    def _keep(self, run: Run) -> None:
        self.runs.append(
            document(
                run.plan,
                run.account,
                max_lateness_s=self.max_lateness_s,
                complete=run.finished,
            )
        )


async def _tell(live: Live, run: Run, where: str) -> None:
    while True:
        live.update(where + progress_line(run), refresh=True)
        await asyncio.sleep(LOOK_EVERY_S)


def progress_line(run: Run) -> str:
    """How far a run is, in one line."""
    account, bounds = run.account, run.plan.bounds
    total = account.total
    at_s = run.elapsed_s
    if at_s < 0:
        return "connecting"
    if at_s < bounds.warmup_s:
        return f"warming up: {account.warmup.offered:,} sent"
    p99_s = total.latency.quantile(0.99)
    p99 = "-" if p99_s is None else f"{p99_s * 1e3:,.1f} ms"
    good = total.goodput
    return (
        f"{at_s - bounds.warmup_s:.0f} of {bounds.for_s:g} s: {total.offered:,} offered, "
        f"{total.ends[End.ANSWERED]:,} answered, {account.open:,} open, "
        f"p99 {p99}, goodput {0.0 if good is None else 100 * good:.1f} %"
    )
