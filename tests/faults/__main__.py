"""`python -m tests.faults [ROW…]`: make each fault, and show that nothing is lost.

Exit code 1 when anything was lost or doubled, or a row's own demand did not hold.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from broker.node_server import CHROOT_VARIABLE
from lifecycle.logs import configure_logs
from overspill.interruption import Interrupted, run_until_interrupted
from tests.faults.matrix import ROWS, chosen
from tests.faults.row import Row
from tests.faults.runner import Ran, run_rows

COLUMNS = (
    "fault",
    "broker",
    "offered",
    "accepted",
    "answered",
    "failed",
    "expired",
    "lost",
    "duplicated",
    "longest local gap s",
    "drain s",
    "",
)


def main(
    rows: Annotated[
        list[str] | None, typer.Argument(help="Names or their beginnings; all if none.")
    ] = None,
    *,
    listing: Annotated[bool, typer.Option("--list", help="Show the rows.")] = False,
    fast: Annotated[bool, typer.Option(help="Only those of the fast subset.")] = False,
    scale: Annotated[float, typer.Option(help="How much of everything.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of all that is random.")] = 1,
    server: Annotated[
        Path | None, typer.Option(help="The rabbitmq-server script to run.")
    ] = None,
    chroot: Annotated[
        Path | None,
        typer.Option(help="Run the RabbitMQ in it; see tests.faults.trixie."),
    ] = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", help="Write the results here.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Leave histories and logs here.")
    ] = None,
) -> None:
    """Make faults with real processes, and check what became of every request."""
    # Wide enough for the table where there is no terminal to ask.
    console = Console(width=None if sys.stdout.isatty() else 150)
    configure_logs("error")
    try:
        asked = chosen(rows or [], fast=fast)
    except KeyError as error:
        raise typer.BadParameter(f"{error.args[0]}; see --list") from None
    if listing:
        _list(console)
        return
    if server is not None:
        os.environ["OVERSPILL_RABBITMQ_SERVER"] = str(server.absolute())
    if chroot is not None:
        os.environ[CHROOT_VARIABLE] = str(chroot.absolute())
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    folder = keep.absolute() if keep is not None else None
    try:
        ran = run_until_interrupted(
            lambda: _run(console, asked, seed=seed, scale=scale, keep=folder)
        )
    except Interrupted as interrupted:
        raise typer.Exit(interrupted.exit_code) from None
    console.print(table(ran))
    if as_json is not None:
        found = {"good": all(each.good for each in ran)}
        as_json.write_text(
            json.dumps({**found, "rows": [each.as_json() for each in ran]}, indent=2)
        )
    raise typer.Exit(0 if all(each.good for each in ran) else 1)


def _list(console: Console) -> None:
    for row in ROWS:
        console.print(f"[bold]{row.name}[/]: {row.fault}\n    {row.must_hold}")


async def _run(
    console: Console, rows: list[Row], *, seed: int, scale: float, keep: Path | None
) -> list[Ran]:
    done: list[Ran] = []
    with console.status("starting RabbitMQ") as status:
        status.update(f"{rows[0].name if rows else 'nothing'} …")
        async for ran in run_rows(rows, seed=seed, scale=scale, keep=keep):
            done.append(ran)
            word = "[green]ok[/]" if ran.good else "[red]BROKEN[/]"
            console.print(f"{word} {ran.row.name} ({ran.seconds:.0f} s)")
            for problem in ran.problems:
                console.print(f"    {problem}", markup=False)
            left = [row.name for row in rows[len(done) :]]
            status.update(f"{left[0]} …" if left else "done")
    return done


def table(ran: list[Ran]) -> Table:
    """The matrix, a line a row."""
    shown = Table(*COLUMNS)
    for each in ran:
        verdict = each.verdict
        counts = (
            verdict.offered,
            verdict.accepted,
            verdict.answered,
            verdict.failed,
            verdict.expired,
            verdict.lost,
            verdict.duplicated,
        )
        shown.add_row(
            each.row.name,
            each.broker,
            *map(str, counts),
            f"{verdict.longest_local_gap_s:.2f}",
            f"{verdict.drain_s:.1f}",
            "[green]ok[/]" if each.good else "[red]broken[/]",
        )
    return shown


if __name__ == "__main__":
    typer.run(main)
