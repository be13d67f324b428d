"""`overspill rollout`: move a version through the fleet, watch it, and take it back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import typer

from fleet.cli.rollout_acts import abort, approve, pause, resume, rollback
from fleet.cli.rollout_past import history, status
from fleet.cli.rollout_plan import plan
from fleet.cli.rollout_start import start
from fleet.cli.rollout_watch import watch

app = typer.Typer(help="Move a model version through the fleet.", no_args_is_help=True)


@app.callback()
def rollout() -> None:
    """Move a model version through the fleet."""


COMMANDS: Final[tuple[Callable[..., None], ...]] = (
    plan,
    start,
    watch,
    status,
    pause,
    resume,
    approve,
    abort,
    rollback,
    history,
)
for command in COMMANDS:
    app.command()(command)
