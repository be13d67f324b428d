"""`overspill model`: publish versions and list them."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from fleet.adapters.registry import Publication
from fleet.adapters.trust_home import TrustHome
from fleet.app import Fleet
from fleet.cli import terminal
from fleet.cli.collection import gc
from fleet.cli.signing import signature_json, tell_signature
from fleet.cli.terminal import AsJson, Home

app = typer.Typer(
    help="Publish model versions into the fleet's registry.", no_args_is_help=True
)


app.command()(gc)


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
    back_to: Annotated[
        str | None,
        typer.Option(
            help="The version that an automatic way back leads to. Default: what most "
            "agents serve, or else the one that was published before."
        ),
    ] = None,
    home: Home = None,
    *,
    cloud: Annotated[
        bool,
        typer.Option(
            "--cloud",
            help="DIR is NAME/VERSION/ of the worker pool's models: it stays where it "
            "is, and its digests are signed. Workers with "
            "OVERSPILL_WORKER_TRUSTED_ROOT load nothing else.",
        ),
    ] = False,
    json: AsJson = False,
) -> None:
    """Pack, store and sign a model version; agents get it by `overspill rollout start`.

    It is signed with the keys at hand, and the way back to the version before with it.
    Two of the three targets keys must sign: what is missing is said, and given by
    `overspill trust sign`. Publishing the same folder again changes nothing; other
    contents need a new version.
    """
    settings = terminal.read_settings(home)
    with terminal.opened(settings) as fleet:
        if cloud:
            _publish_cloud(fleet, directory, as_json=json)
            return
        # No spinner over a question for a passphrase.
        if sys.stdin.isatty():
            done = fleet.publish(directory, back_to=back_to)
        else:
            with terminal.progress_console().status(f"packing {directory} …"):
                done = fleet.publish(directory, back_to=back_to)
        if json:
            terminal.print_json(_publication(done, fleet.trust))
            return
        _tell(done, fleet.trust)


def _publish_cloud(fleet: Fleet, directory: Path, *, as_json: bool) -> None:
    seal, signature = fleet.publish_folder(directory)
    if as_json:
        terminal.print_json(
            {
                "model": seal.name,
                "version": seal.version,
                "files": len(seal.files),
                **signature_json(fleet.trust, signature),
            }
        )
        return
    terminal.note(
        f"sealed {seal.name} {seal.version} for the pool ({len(seal.files)} files)"
    )
    tell_signature(fleet.trust, signature)


def _publication(done: Publication, trust: TrustHome) -> dict[str, Any]:
    seal = done.seal
    return {
        "model": seal.name,
        "version": seal.version,
        "epoch": seal.epoch,
        "way_back": None if done.way_back is None else asdict(done.way_back),
        "sha256": seal.sha256,
        "size_bytes": seal.size_bytes,
        "chunks": len(seal.chunks),
        "new": done.new,
        "visible": done.signed,
        **signature_json(trust, done.signature),
    }


def _tell(done: Publication, trust: TrustHome) -> None:
    seal = done.seal
    name = f"{seal.name} {seal.version}"
    if done.new:
        back = (
            ""
            if done.way_back is None
            else f"; the way back to {done.way_back.version} is epoch "
            f"{done.way_back.epoch}"
        )
        terminal.note(
            f"published {name} ({terminal.size(seal.size_bytes)}) in epoch "
            f"{seal.epoch}{back}"
        )
    else:
        terminal.note(f"{name} is already published, unchanged")
    tell_signature(trust, done.signature)
    if done.signed:
        terminal.note(f"Next: overspill rollout start {name}")


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
    table = Table("model", "version", "size", "published", "digest", "epoch", "state")
    for each in versions:
        table.add_row(
            each.model,
            each.version,
            terminal.size(each.size_bytes),
            f"{terminal.age(now_ms, each.published_at_ms)} ago",
            each.sha256[:12],
            str(each.epoch),
            each.state.value,
        )
    terminal.tables().print(table)
