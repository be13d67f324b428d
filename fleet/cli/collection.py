"""`overspill model gc`: clear what nobody can need any more from the registry."""

from __future__ import annotations

from typing import Annotated

import typer

from fleet.cli import terminal
from fleet.cli.terminal import AsJson, Home
from fleet.core.collection import Unneeded
from fleet.operator.collecting import collect, find_unneeded

HOUR_MS = 3_600_000


def gc(
    home: Home = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")
    ] = False,
    older_than_h: Annotated[
        float,
        typer.Option(
            min=1,
            help="Keep what is newer than so many hours: a publication may be under way.",
        ),
    ] = 24.0,
    json: AsJson = False,
) -> None:
    """Remove blobs and deltas from the registry that nobody can need any more.

    A blob stays while a seal that is signed or drafted names it, and while a rollout
    on its way may send agents to it; a delta while its result stays and agents may
    have what it begins from.
    """
    with (
        terminal.opened(terminal.read_settings(home)) as fleet,
        terminal.progress_console().status(f"looking through {fleet.tree.place} …"),
    ):
        now_ms = fleet.clock.wall_ms()
        found = find_unneeded(
            fleet.database,
            fleet.registry,
            fleet.tree,
            before_ms=now_ms - int(older_than_h * HOUR_MS),
        )
        if (found.blobs or found.offers) and not dry_run:
            collect(fleet.database, fleet.tree, found, who=fleet.who, now_ms=now_ms)
    if json:
        terminal.print_json(
            {
                "blobs": [each.path for each in found.blobs],
                "offers": [each.path for each in found.offers],
                "size_bytes": found.size_bytes,
                "removed": not dry_run,
            }
        )
        return
    terminal.note(_said(found, dry_run=dry_run))


def _said(found: Unneeded, *, dry_run: bool) -> str:
    if not found.blobs and not found.offers:
        return "everything in the registry is needed"
    what = (
        f"{len(found.blobs)} blobs and {len(found.offers)} offers of deltas, "
        f"{terminal.size(found.size_bytes)}"
    )
    return f"would remove {what}" if dry_run else f"removed {what}"
