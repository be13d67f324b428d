"""`overspill demo`: everything at once, on real images, with a verdict."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from overspill.demo.report import show
from overspill.demo.run import DemoOptions, Performance, perform
from overspill.interruption import Interrupted, run_until_interrupted

MOST_IMAGES: Final = 1000


def demo(
    *,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write all figures there."),
    ] = None,
    images: Annotated[
        int,
        typer.Option(
            min=10, max=MOST_IMAGES, help="Images to stream, once with each version."
        ),
    ] = MOST_IMAGES,
    folder: Annotated[
        Path | None,
        typer.Option(help="Work there and leave it; a temporary folder if unset."),
    ] = None,
    plot: Annotated[
        Path, typer.Option(metavar="FILE", help="Where the picture goes.")
    ] = Path("demo.png"),
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the temporary folder.")
    ] = False,
) -> None:
    """Run the whole system on real images and push a good model to it, then a bad one.

    A private RabbitMQ, two workers, three agents and their devices, each a process of
    its own; then a crowd that asks more of the pool than it can do. Exit code 0 only
    if nothing was lost or answered twice, the cascade beat the edge alone, every agent
    got the new version, one with shuffled labels was stopped in its first wave and went
    back, none says that a promise is broken, and the devices had their answers in time
    under overload.
    """
    for path in (json_file, plot):
        _check_writable(path)
    progress = Console(stderr=True)
    options = DemoOptions(images=images, plot=plot, folder=folder, keep=keep)
    try:
        done = run_until_interrupted(lambda: perform(options, progress))
    except Interrupted as end:
        progress.print("interrupted: every process was stopped", highlight=False)
        raise typer.Exit(end.exit_code) from None
    if json_file is not None:
        json_file.write_text(json.dumps(done.document(), indent=2) + "\n")
    show(_output(), done)
    raise typer.Exit(_exit_code(done))


def _exit_code(done: Performance) -> int:
    return 1 if done.findings.faults else 0


def _check_writable(path: Path | None) -> None:
    """Find out now and not after a minute.

    Raises:
        typer.BadParameter: the file could not be written.
    """
    if path is None:
        return
    target = path if path.exists() else path.absolute().parent
    if path.is_dir() or not os.access(target, os.W_OK):
        raise typer.BadParameter(f"{path} cannot be written: name another file")


def _output() -> Console:
    """Where results go; as wide as they need when nobody looks."""
    console = Console()
    return console if console.is_terminal else Console(width=140)
