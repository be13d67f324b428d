"""`overspill model`: publish versions and list them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fleet.cli import terminal
from fleet.cli.terminal import AsJson, Home

app = typer.Typer(
    help="Publish model versions into the fleet's registry.", no_args_is_help=True
)


@app.callback()
def model() -> None:
    """Publish model versions into the fleet's registry."""


@app.command()
def publish(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="A bundle's folder: manifest.json, the model and its golden inputs.",
        ),
    ],
    home: Home = None,
    *,
    json: AsJson = False,
) -> None:
    """Pack, sign and store a model version; agents get it by `overspill rollout start`.

    The first publish makes the signing key. Agents must trust its public half.
    Publishing the same folder again changes nothing; other contents need a new version.
    """
    settings = terminal.read_settings(home)
    with (
        terminal.opened(settings) as fleet,
        terminal.progress_console().status(f"packing and signing {directory} …"),
    ):
        done = fleet.publish(directory)
    seal = done.seal
    if json:
        terminal.print_json(
            {
                "model": seal.name,
                "version": seal.version,
                "sha256": seal.sha256,
                "size_bytes": seal.size_bytes,
                "chunks": len(seal.chunks),
                "new": done.new,
                "key_id": done.key_id,
                "key_made": done.key_made,
                "public_key": str(settings.public_key),
            }
        )
        return
    what = f"{seal.name} {seal.version} ({terminal.size(seal.size_bytes)})"
    if done.new:
        terminal.note(f"published {what}, signed by {done.key_id}")
    else:
        terminal.note(f"{what} is already published, unchanged")
    if done.key_made:
        terminal.note(
            f"A signing key was made: {settings.signing_key} (keep it secret, back it "
            f"up).\nAgents must trust {settings.public_key}: copy it to each and set "
            "OVERSPILL_AGENT_TRUSTED_KEYS to it."
        )
    terminal.note(f"Next: overspill rollout start {seal.name} {seal.version}")


@app.command("list")
def list_versions(home: Home = None, *, json: AsJson = False) -> None:
    """List the published versions, newest last."""
    with terminal.opened(terminal.read_settings(home)) as fleet:
        versions = fleet.versions()
        now_ms = fleet.clock.wall_ms()
    if json:
        terminal.print_json([asdict(each) for each in versions])
        return
    if not versions:
        terminal.note("nothing is published yet: use overspill model publish DIR")
        return
    table = Table("model", "version", "size", "published", "digest", "signed by")
    for each in versions:
        table.add_row(
            each.model,
            each.version,
            terminal.size(each.size_bytes),
            f"{terminal.age(now_ms, each.published_at_ms)} ago",
            each.sha256[:12],
            each.key_id,
        )
    terminal.tables().print(table)
