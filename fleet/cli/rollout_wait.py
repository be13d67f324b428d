"""Waiting for a rollout, for no longer than an operator said."""

from __future__ import annotations

import time
from typing import Annotated, Final

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fleet.app import Fleet
from fleet.cli import terminal
from fleet.core.outlook import Outlook, counted, outlook, why
from fleet.core.rollouts import AgentState, RolloutState

POLL_S: Final = 0.2
# Nothing more happens by itself.
ASKS: Final = frozenset({RolloutState.PAUSED, RolloutState.AWAITING_APPROVAL})

Wait = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        min=0,
        help="Wait so long for it to be done; exit 1 when it is not, or ends otherwise.",
    ),
]


def wait_for(fleet: Fleet, generation: int, wait_s: float) -> Outlook:
    """Return once the rollout has ended or waits for a person, or the time is up."""
    until_s = fleet.clock.monotonic() + wait_s
    with bar() as shown:
        task = shown.add_task("waiting for agents", total=None)
        while True:
            progress = fleet.rollouts.progress_of(generation)
            seen = outlook(progress, fleet.clock.wall_ms())
            over = fleet.clock.monotonic() >= until_s
            if seen.ended or seen.state in ASKS or over:
                return seen
            shown.update(
                task, description=f"wave {seen.course.wave + 1}, {counted(seen)}"
            )
            time.sleep(POLL_S)


def undone(seen: Outlook, wait_s: float) -> str:
    """Why a rollout that was waited for is not done, in one sentence."""
    number = seen.rollout.generation
    what = f"rollout of {seen.rollout.model} {seen.rollout.version}"
    said = seen.state.value.replace("_", " ")
    because = f": {seen.course.reason}" if seen.course.reason else ""
    match seen.state:
        case RolloutState.FAILED:
            refusals = "; ".join(f"{each.agent}: {why(each)}" for each in seen.failed)
            return f"{what} failed: {refusals}"
        case RolloutState.SUPERSEDED:
            return f"{what} was superseded by a newer one"
        case RolloutState.PAUSED:
            return f"{what} is paused{because} (overspill rollout resume {number})"
        case RolloutState.AWAITING_APPROVAL:
            return f"{what} asks you{because} (overspill rollout approve {number})"
        case RolloutState.ABORTED | RolloutState.ROLLED_BACK:
            return f"{what} was {said}{because}"
        case _:
            return (
                f"{what} is not done after {wait_s:g} s: "
                f"{seen.count(AgentState.UPDATED)} of {seen.population} agents updated "
                "(is `overspill fleet run` up?)"
            )


def bar() -> Progress:
    """Progress on standard error, where somebody looks."""
    console = terminal.progress_console()
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
