"""`overspill explain`: why one input would be answered here, or spilled."""

from __future__ import annotations

import json as json_of
import sys
from pathlib import Path
from typing import Annotated

import typer

from builder.adapters.explaining import explain as explained_by
from builder.adapters.explaining import page
from builder.adapters.needs import check_installed
from builder.cli.drawing import results


def explain(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A picture, or an array as .npy.")
    ],
    bundle: Annotated[
        Path, typer.Option(help="A bundle's folder, with its manifest.json.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write a page with the occlusion map here.")
    ] = None,
    *,
    json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Say what the edge model answers to FILE, how surely, and what that hangs on.

    The occlusion map covers a part of the input at a time and looks how far the
    probability of the answer falls.
    """
    check_installed("ai_edge_litert", *(["matplotlib"] if out else []))
    found = explained_by(file, bundle)
    if out is not None:
        out.write_text(page(found), encoding="utf-8")
    if json:
        sys.stdout.write(json_of.dumps(found.as_json(), indent=2) + "\n")
        return
    console = results()
    verdict = "spilled as hard" if found.hard else "answered on the edge"
    console.print(
        f"{file.name}: {found.label} ({found.score} {found.confidence:.4f}, threshold "
        f"{found.threshold:.4f}): {verdict}"
        + (f", because {found.why}" if found.why else ""),
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    for name, share in found.likeliest:
        console.print(f"  {share:7.2%}  {name}", markup=False, highlight=False)
    console.print(
        f"It hangs most on {found.where}: without it the answer's probability falls by "
        f"{100 * found.fall:.2f} points.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if out is not None:
        console.print(f"Map: {out}", markup=False, soft_wrap=True)
