"""`overspill simulate --broker`: agents that visit a fleet until it is enough."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Final, NoReturn

import typer
from rich.console import Console

from overspill.demo.workplace import workplace
from overspill.interruption import Interrupted, run_until_interrupted
from overspill.simulate.guests import Guests
from overspill.simulate.live import SceneView
from overspill.simulate.plan import Plan
from overspill.simulate.report import output, show_visit, visit_document
from overspill.simulate.run import Options
from overspill.simulate.visit import Visit
from overspill.tasks import alongside

LOOK_EVERY_S: Final = 0.25


def visit(
    plan: Plan,
    guests: Guests,
    options: Options,
    *,
    to: str | None,
    folder: Path | None,
    as_json: bool,
) -> int:
    """Visit, say what became of the agents, and give the exit code."""
    progress = Console(stderr=True)
    with workplace(folder, keep=False) as place:
        visiting = Visit(
            plan,
            guests,
            place.folder,
            processes=options.processes,
            to=to,
            within_s=options.within_s,
        )
        code = 0
        try:
            run_until_interrupted(lambda: _perform(visiting, progress))
        except Interrupted as end:
            code = end.exit_code
        if as_json:
            typer.echo(json.dumps(visit_document(visiting, guests), indent=2))
        else:
            show_visit(output(), visiting, guests)
        return code or (1 if visiting.failures else 0)


async def _perform(visiting: Visit, progress: Console) -> None:
    with SceneView(visiting.scene, progress) as view:
        await alongside(visiting.run(), look_for_ever(view))


async def look_for_ever(view: SceneView) -> NoReturn:
    """Show how far it is, until cancelled."""
    while True:
        view.look()
        await asyncio.sleep(LOOK_EVERY_S)
