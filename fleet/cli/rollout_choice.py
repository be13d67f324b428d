"""Which rollout is meant when an operator names one, or none."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from fleet.app import Fleet
from fleet.cli import terminal
from fleet.core.progress import RolloutProgress

Which = Annotated[
    str | None,
    typer.Argument(
        metavar="[ROLLOUT]",
        help="Its number, or a model whose newest one is meant. Default: the only one "
        "that is on its way.",
    ),
]
SHOWN: Final = 5


def chosen(fleet: Fleet, which: str | None, *, live: bool = True) -> int:
    """The number of the rollout that is meant.

    Args:
        fleet: open.
        which: what was typed.
        live: when nothing was typed, it must be on its way; else the newest will do.

    Raises:
        typer.Exit: there is none, or there are several.
    """
    if which is not None and which.isdecimal():
        return int(which)
    every = fleet.rollouts.progress(every=True)
    if which is not None:
        every = [each for each in every if each.rollout.model == which]
    if not every:
        terminal.fail(
            "there is no rollout yet: use overspill rollout start NAME VERSION"
            if which is None
            else f"no rollout of {which!r}: give a rollout's number or a model's name"
        )
    moving = [each for each in every if each.live]
    if which is not None or (not live and len(moving) <= 1):
        return (moving or every)[0].rollout.generation
    if not moving:
        newest = every[0].rollout.generation
        terminal.fail(
            f"no rollout is on its way; the newest was {newest}: give its number to "
            "mean it all the same"
        )
    if len(moving) > 1:
        named = ", ".join(map(_name, moving[:SHOWN]))
        terminal.fail(f"{len(moving)} rollouts are on their way, name one: {named}")
    return moving[0].rollout.generation


def _name(each: RolloutProgress) -> str:
    rollout = each.rollout
    return f"{rollout.generation} ({rollout.model} {rollout.version})"
