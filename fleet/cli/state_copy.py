"""`overspill fleet copy`: the whole state into another database."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from fleet.adapters.state.database import FleetDatabase
from fleet.cli import terminal
from fleet.cli.terminal import AsJson, Home
from fleet.operator.copying import Copied, copy_state

# The daemon writes reports all the time: then it may run still.
LATELY_MS: Final = 10_000


def copy(
    to: Annotated[
        str,
        typer.Option(
            metavar="DATABASE",
            help="postgresql://user@host/name or a path for SQLite; nothing may be in "
            "it yet. A password is better kept in ~/.pgpass.",
            envvar="OVERSPILL_FLEET_COPY_TO",
            show_envvar=True,
        ),
    ],
    home: Home = None,
    *,
    json: AsJson = False,
) -> None:
    """Copy the fleet's state (devices, rollouts, audit log) into another database.

    All of it or nothing, compared row by row before it is kept. The registry and the
    keys stay where they are. Stop `overspill fleet run` before: what it hears after the
    copy would be in the old database only. Then set OVERSPILL_FLEET_DATABASE.
    """
    settings = terminal.read_settings(home)
    with (
        terminal.opened(settings) as fleet,
        FleetDatabase(to, timeout_s=settings.database_timeout_s) as target,
        _bar() as bar,
    ):
        task = bar.add_task("rows", total=None)
        now_ms = fleet.clock.wall_ms()
        copied = copy_state(
            fleet.database,
            target,
            who=fleet.who,
            now_ms=now_ms,
            moved=lambda done, of: bar.update(task, completed=done, total=of),
        )
    if copied.last_heard_ms is not None and now_ms - copied.last_heard_ms < LATELY_MS:
        terminal.warn(
            "agents were heard seconds ago: if `overspill fleet run` runs still, what it "
            "hears from now on is missing in the copy"
        )
    if copied.faults:
        terminal.warn(
            "the audit log is not whole, here as there: overspill audit verify says what"
        )
    if json:
        terminal.print_json(document(copied))
        return
    terminal.note(
        f"{sum(copied.rows.values())} rows copied to {copied.target}: "
        f"{copied.rows['devices']} devices, {copied.rows['rollouts']} rollouts, "
        f"{copied.rows['audit']} entries of the audit log"
    )
    terminal.note(
        "next: set OVERSPILL_FLEET_DATABASE to it for the daemon and for all commands, "
        "and start the daemon; keep the old database until then"
    )


def document(copied: Copied) -> dict[str, Any]:
    """What was copied, as JSON has it."""
    return {
        "from": copied.source,
        "to": copied.target,
        "rows": dict(copied.rows),
        "audit_head": asdict(copied.head),
        "audit_whole": not copied.faults,
    }


def _bar() -> Progress:
    console = terminal.progress_console()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
